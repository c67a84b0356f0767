//! openraft's messages to what travels between brokers, and back.
//!
//! Record bytes are shared, never copied. What comes from a peer is checked: a message without its
//! vote, or with an entry that is none, is an error and not a default.
//! Not here: streams and deadlines (`peers`), and who answers (`exchange`).

use super::codec::{CodecError, decode_membership, encode_membership};
use super::log_store::{BLANK, MEMBERSHIP};
use super::types::{
    ControlKind, EntryKind, LeaderId, LogId, Payload, Proposal, RaftEntry, RaftVote,
    StoredMembership, TypeConfig, log_id,
};
use bytes::Bytes;
use logd_proto::rpc::v1::{self as rpc, append_response::Outcome};
use logd_storage::EntryId;
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::entry::RaftEntry as _;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;
use openraft::vote::RaftLeaderId;

/// A peer said something that is no message of this protocol.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("a message without its {0}")]
    Missing(&'static str),
    #[error("an entry of kind {0}, which no version has")]
    Kind(u32),
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Kinds on the wire: 0 is data, so that the common case takes no byte.
const DATA: u32 = 0;

pub(super) fn vote_out(vote: &RaftVote) -> rpc::Vote {
    rpc::Vote {
        term: vote.leader_id.term,
        voted_for: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub(super) fn vote_in(vote: Option<rpc::Vote>) -> Result<RaftVote, WireError> {
    let vote = vote.ok_or(WireError::Missing("vote"))?;
    Ok(RaftVote {
        leader_id: LeaderId::new(vote.term, vote.voted_for),
        committed: vote.committed,
    })
}

pub(super) fn id_out(id: &LogId) -> rpc::LogId {
    rpc::LogId {
        term: id.committed_leader_id().term,
        index: id.index(),
    }
}

pub(super) fn entry_id_in(id: rpc::LogId) -> EntryId {
    EntryId {
        term: id.term,
        index: id.index,
    }
}

pub(super) fn id_in(id: rpc::LogId) -> LogId {
    log_id(id.term, id.index)
}

fn entry_out(entry: RaftEntry) -> Result<rpc::Entry, WireError> {
    let id = entry.log_id();
    let control = |number: u8, body: Bytes| rpc::Entry {
        term: id.committed_leader_id().term,
        index: id.index(),
        kind: u32::from(number) + 1,
        records: 0,
        max_timestamp: -1,
        head: Bytes::new(),
        body,
    };
    Ok(match entry.payload {
        Payload::Blank => control(BLANK, Bytes::new()),
        Payload::Membership(m) => control(MEMBERSHIP, encode_membership(&m)?),
        Payload::Normal(p) => match p.kind {
            EntryKind::Control(kind) => control(kind.number(), p.body),
            EntryKind::Data => rpc::Entry {
                term: id.committed_leader_id().term,
                index: id.index(),
                kind: DATA,
                records: p.records,
                max_timestamp: p.max_timestamp,
                head: p.head,
                body: p.body,
            },
        },
    })
}

fn entry_in(entry: rpc::Entry) -> Result<RaftEntry, WireError> {
    let id = log_id(entry.term, entry.index);
    let payload = match entry.kind {
        DATA => Payload::Normal(Proposal {
            kind: EntryKind::Data,
            head: entry.head,
            body: entry.body,
            records: entry.records,
            max_timestamp: entry.max_timestamp,
            base_offset: -1,
        }),
        kind => match u8::try_from(kind - 1).map_err(|_| WireError::Kind(kind))? {
            BLANK => Payload::Blank,
            MEMBERSHIP => Payload::Membership(decode_membership(&entry.body)?),
            number => Payload::Normal(Proposal::control(ControlKind::new(number), entry.body)),
        },
    };
    Ok(RaftEntry::new(id, payload))
}

pub(super) fn append_out(
    request: AppendEntriesRequest<TypeConfig>,
) -> Result<rpc::AppendRequest, WireError> {
    let entries = request.entries.into_iter().map(entry_out);
    Ok(rpc::AppendRequest {
        vote: Some(vote_out(&request.vote)),
        previous: request.prev_log_id.as_ref().map(id_out),
        committed: request.leader_commit.as_ref().map(id_out),
        entries: entries.collect::<Result<_, _>>()?,
    })
}

pub(super) fn append_in(
    request: rpc::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    let entries = request.entries.into_iter().map(entry_in);
    Ok(AppendEntriesRequest {
        vote: vote_in(request.vote)?,
        prev_log_id: request.previous.map(id_in),
        leader_commit: request.committed.map(id_in),
        entries: entries.collect::<Result<_, _>>()?,
    })
}

pub(super) fn appended_out(response: AppendEntriesResponse<TypeConfig>) -> rpc::AppendResponse {
    let outcome = match response {
        AppendEntriesResponse::Success => Outcome::Success(true),
        AppendEntriesResponse::PartialSuccess(upto) => {
            Outcome::Partial(upto.as_ref().map(id_out).unwrap_or_default())
        }
        AppendEntriesResponse::Conflict => Outcome::Conflict(true),
        AppendEntriesResponse::HigherVote(vote) => Outcome::HigherVote(vote_out(&vote)),
    };
    rpc::AppendResponse {
        outcome: Some(outcome),
    }
}

pub(super) fn appended_in(
    response: rpc::AppendResponse,
) -> Result<AppendEntriesResponse<TypeConfig>, WireError> {
    let outcome = response.outcome.ok_or(WireError::Missing("outcome"))?;
    Ok(match outcome {
        Outcome::Success(_) => AppendEntriesResponse::Success,
        Outcome::Partial(upto) => AppendEntriesResponse::PartialSuccess(
            (upto != rpc::LogId::default()).then(|| id_in(upto)),
        ),
        Outcome::Conflict(_) => AppendEntriesResponse::Conflict,
        Outcome::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote_in(Some(vote))?),
    })
}

pub(super) fn ask_vote_out(request: &VoteRequest<TypeConfig>, pre_vote: bool) -> rpc::VoteRequest {
    rpc::VoteRequest {
        vote: Some(vote_out(&request.vote)),
        last: request.last_log_id.as_ref().map(id_out),
        transfer: request.leadership_transfer,
        pre_vote,
    }
}

pub(super) fn ask_vote_in(request: rpc::VoteRequest) -> Result<VoteRequest<TypeConfig>, WireError> {
    let mut asked = VoteRequest::new(vote_in(request.vote)?, request.last.map(id_in));
    asked.leadership_transfer = request.transfer;
    Ok(asked)
}

pub(super) fn voted_out(response: &VoteResponse<TypeConfig>) -> rpc::VoteResponse {
    rpc::VoteResponse {
        vote: Some(vote_out(&response.vote)),
        last: response.last_log_id.as_ref().map(id_out),
        granted: response.vote_granted,
    }
}

pub(super) fn voted_in(response: rpc::VoteResponse) -> Result<VoteResponse<TypeConfig>, WireError> {
    let vote = vote_in(response.vote)?;
    let last = response.last.map(id_in);
    Ok(VoteResponse::new(vote, last, response.granted))
}

pub(super) fn transfer_out(request: &TransferLeaderRequest<TypeConfig>) -> rpc::TransferRequest {
    rpc::TransferRequest {
        from: Some(vote_out(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().map(id_out),
    }
}

pub(super) fn transfer_in(
    request: rpc::TransferRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, WireError> {
    let last = request.last.map(id_in);
    Ok(TransferLeaderRequest::new(
        vote_in(request.from)?,
        request.to,
        last,
    ))
}

pub(super) fn snapshot_out(
    vote: &RaftVote,
    snapshot: SnapshotOf<TypeConfig, Bytes>,
) -> Result<rpc::SnapshotRequest, WireError> {
    let Snapshot { meta, snapshot } = snapshot;
    Ok(rpc::SnapshotRequest {
        vote: Some(vote_out(vote)),
        last: meta.last_log_id.as_ref().map(id_out),
        membership_at: meta.last_membership.log_id().as_ref().map(id_out),
        membership: encode_membership(meta.last_membership.membership())?,
        state: snapshot,
    })
}

pub(super) fn snapshot_in(
    request: rpc::SnapshotRequest,
) -> Result<(RaftVote, SnapshotOf<TypeConfig, Bytes>), WireError> {
    let membership = decode_membership(&request.membership)?;
    let meta = SnapshotMetaOf::<TypeConfig> {
        last_log_id: request.last.map(id_in),
        last_membership: StoredMembership::new(request.membership_at.map(id_in), membership),
    };
    let snapshot = Snapshot {
        meta,
        snapshot: request.state,
    };
    Ok((vote_in(request.vote)?, snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote() -> RaftVote {
        RaftVote {
            leader_id: LeaderId::new(4, 9),
            committed: true,
        }
    }

    #[test]
    fn an_append_comes_back_as_it_was() {
        let data = Proposal {
            head: Bytes::from_static(b"head"),
            base_offset: 17,
            ..Proposal::data(Bytes::from_static(b"records"), 3, 1_000)
        };
        let control = Proposal::control(ControlKind::new(2), Bytes::from_static(b"start"));
        let entries = vec![
            RaftEntry::new(log_id(4, 7), Payload::Blank),
            RaftEntry::new(log_id(4, 8), Payload::Normal(data)),
            RaftEntry::new(log_id(4, 9), Payload::Normal(control)),
        ];
        let request = AppendEntriesRequest::<TypeConfig> {
            vote: vote(),
            prev_log_id: Some(log_id(3, 6)),
            leader_commit: None,
            entries,
        };
        let back = append_in(append_out(request.clone()).unwrap()).unwrap();
        assert_eq!(
            (back.vote, back.prev_log_id),
            (request.vote, request.prev_log_id)
        );
        // The base offset is the one thing that does not travel: each replica derives it.
        let said = format!("{:?}", request.entries).replace("base_offset: 17", "base_offset: -1");
        assert_eq!(format!("{:?}", back.entries), said);
    }

    #[test]
    fn an_append_without_a_vote_is_refused() {
        let request = rpc::AppendRequest::default();
        assert!(matches!(
            append_in(request),
            Err(WireError::Missing("vote"))
        ));
    }

    #[test]
    fn an_entry_of_no_known_kind_is_refused() {
        let request = rpc::AppendRequest {
            vote: Some(vote_out(&vote())),
            entries: vec![rpc::Entry {
                kind: 1_000,
                ..rpc::Entry::default()
            }],
            ..rpc::AppendRequest::default()
        };
        assert!(matches!(append_in(request), Err(WireError::Kind(1_000))));
    }

    #[test]
    fn answers_come_back_as_they_were() {
        for response in [
            AppendEntriesResponse::Success,
            AppendEntriesResponse::PartialSuccess(None),
            AppendEntriesResponse::PartialSuccess(Some(log_id(2, 5))),
            AppendEntriesResponse::Conflict,
            AppendEntriesResponse::HigherVote(vote()),
        ] {
            assert_eq!(
                appended_in(appended_out(response.clone())).unwrap(),
                response
            );
        }
        let voted = VoteResponse::<TypeConfig>::new(vote(), Some(log_id(1, 1)), true);
        assert_eq!(voted_in(voted_out(&voted)).unwrap(), voted);
    }
}
