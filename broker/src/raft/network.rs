//! The way to a group's other replicas, as openraft calls it.
//!
//! Invariant: every call has a deadline, and an answer that is none of the protocol's is a failure of
//! the call. An append waits longer than openraft would have it: the transport fails it when the peer
//! is gone, and a slow disk must not make the leader send everything again.
//! Appends of one replication go out in a row, a few ahead of their answers: a round trip, and a follower's
//! sync, do not hold back the next. An answer that is not a success ends the row, and openraft begins anew.
//! Not here: connections (whoever implements [`Transport`]).

use super::candidacy::Candidacy;
use super::exchange::Exchange;
use super::files::{self, SendError, Travelling};
use super::throttle::Throttle;
use super::types::{LogId, Payload, RaftEntry, RaftVote, ReplicaId, TypeConfig};
use super::wire::{self, WireError};
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{BoxStream, Stream, StreamExt};
use logd_proto::rpc::v1::GroupMessage;
use logd_proto::rpc::v1::group_message::Kind;
use logd_storage::{EntryId, Log, LogKey};
use openraft::alias::SnapshotOf;
use openraft::entry::RaftEntry as _;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::BasicNode;
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How long an append may take before it is sent again, to a peer that is there.
const APPEND_DEADLINE: Duration = Duration::from_secs(10);

/// Appends that are on their way to one replica of one group at most; each is a megabyte or one batch.
const IN_A_ROW: usize = 4;

/// How long a snapshot's state, or a piece of its files, may take: it is small, but its disk may be slow.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(30);

/// An unreachable peer is tried again this often; connecting again is the transport's business, so
/// a try costs next to nothing.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("replica {to} cannot be reached: {why}")]
    Unreachable { to: ReplicaId, why: String },
    #[error("replica {to} did not answer within {patience:?}")]
    TimedOut { to: ReplicaId, patience: Duration },
    #[error("replica {to} refuses: {why}")]
    Refused { to: ReplicaId, why: String },
}

/// Carries messages to replicas on other brokers' disks.
pub trait Transport: Send + Sync + 'static {
    /// Sends a message and waits for its answer, at most `patience`. Messages that are `in_order` go out in
    /// the order of these calls, not of the futures' polls.
    fn call(
        &self,
        message: GroupMessage,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Kind, CallError>>;
}

/// A transport to nobody: for a broker that is alone, and for tests.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl Transport for Alone {
    fn call(
        &self,
        message: GroupMessage,
        _patience: Duration,
    ) -> BoxFuture<'static, Result<Kind, CallError>> {
        let why = "this broker has no connection to others".into();
        let to = message.to;
        Box::pin(std::future::ready(Err(CallError::Unreachable { to, why })))
    }
}

pub(super) struct Network {
    pub key: LogKey,
    pub generation: u32,
    pub transport: Arc<dyn Transport>,
    pub candidacy: Candidacy,
    pub exchange: Exchange,
    pub throttle: Throttle,
    pub log: Log,
}

type Replies<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

pub(super) struct Peer {
    key: LogKey,
    generation: u32,
    to: ReplicaId,
    transport: Arc<dyn Transport>,
    candidacy: Candidacy,
    exchange: Exchange,
    throttle: Throttle,
    log: Log,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: ReplicaId, _node: &BasicNode) -> Self::Network {
        Peer {
            key: self.key,
            generation: self.generation,
            to: target,
            transport: self.transport.clone(),
            candidacy: self.candidacy.clone(),
            exchange: self.exchange.clone(),
            throttle: self.throttle.clone(),
            log: self.log.clone(),
        }
    }
}

impl Peer {
    async fn call(&self, kind: Kind, patience: Duration) -> Result<Kind, RPCError<TypeConfig>> {
        let message = self.message(kind, false);
        let answer = self.transport.call(message, patience).await;
        answer.map_err(failed)
    }

    fn message(&self, kind: Kind, in_order: bool) -> GroupMessage {
        GroupMessage {
            topic_id: Bytes::copy_from_slice(&self.key.topic),
            partition: self.key.partition,
            to: self.to,
            kind: Some(kind),
            in_order,
            generation: self.generation,
        }
    }

    /// Sends one append of a row now; the future is its answer.
    fn append_in_row(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>> {
        let previous = request.prev_log_id;
        let last = request.entries.last().map(|e| e.log_id()).or(previous);
        let request = match wire::append_out(request) {
            Ok(request) => request,
            Err(error) => return Box::pin(std::future::ready(Err(not_understood(error)))),
        };
        let message = self.message(Kind::Append(request), true);
        let answer = self.transport.call(message, APPEND_DEADLINE);
        let to = self.to;
        Box::pin(async move {
            match answer.await.map_err(failed)? {
                Kind::Appended(response) => {
                    let response = wire::appended_in(response).map_err(not_understood)?;
                    Ok(response.into_stream_result(previous, last))
                }
                other => Err(unexpected(to, &other)),
            }
        })
    }

    fn unexpected(&self, answer: &Kind) -> RPCError<TypeConfig> {
        unexpected(self.to, answer)
    }
}

fn unexpected(to: ReplicaId, answer: &Kind) -> RPCError<TypeConfig> {
    let why = format!("replica {to} answered {answer:?} to something else");
    RPCError::Network(NetworkError::new(&io::Error::other(why)))
}

fn bytes_of(request: &AppendEntriesRequest<TypeConfig>) -> u64 {
    let of = |entry: &RaftEntry| match &entry.payload {
        Payload::Normal(proposal) => proposal.head.len() + proposal.body.len(),
        Payload::Blank | Payload::Membership(_) => 0,
    };
    request.entries.iter().map(of).sum::<usize>() as u64
}

/// Passes answers on up to the first that is no full success: what was sent behind it is void.
fn until_failure<'s>(answers: impl Stream<Item = Answered> + Send + 's) -> Replies<'s> {
    let over = |ended: &mut bool, (whole, answer): (bool, _)| {
        let pass = (!*ended).then_some(answer);
        *ended = !whole;
        std::future::ready(pass)
    };
    let judged = answers.map(|(last, answer)| {
        let whole = matches!(&answer, Ok(Ok(upto)) if *upto == last);
        (whole, answer)
    });
    Box::pin(judged.scan(false, over))
}

/// The last entry that was sent, and what became of it.
type Answered = (
    Option<LogId>,
    Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>,
);

fn failed(error: CallError) -> RPCError<TypeConfig> {
    match error {
        CallError::TimedOut { .. } => RPCError::Network(NetworkError::new(&error)),
        CallError::Unreachable { .. } | CallError::Refused { .. } => {
            RPCError::Unreachable(Unreachable::new(&error))
        }
    }
}

fn not_understood(error: WireError) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(&error))
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = wire::append_out(request).map_err(not_understood)?;
        match self.call(Kind::Append(request), APPEND_DEADLINE).await? {
            Kind::Appended(response) => wire::appended_in(response).map_err(not_understood),
            other => Err(self.unexpected(&other)),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<Replies<'s>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let peer: &'s Peer = self;
        let input = input.then(move |request| async move {
            if !peer.exchange.votes(&peer.key, peer.to) {
                peer.throttle.take(bytes_of(&request)).await;
            }
            request
        });
        let answers = input.map(move |request| {
            let last = request.entries.last().map(|e| e.log_id());
            let last = last.or(request.prev_log_id);
            peer.append_in_row(request)
                .map(move |answer| (last, answer))
        });
        let replies = until_failure(answers.buffered(IN_A_ROW));
        Box::pin(std::future::ready(Ok(replies)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(request, false, option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(request, true, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: SnapshotOf<TypeConfig, Bytes>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            sent = self.send_snapshot(&vote, snapshot) => sent.map_err(as_streaming),
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let kind = Kind::Transfer(wire::transfer_out(&request));
        match self.call(kind, option.soft_ttl()).await? {
            Kind::Transferred(response) if response.refused.is_empty() => Ok(Ok(())),
            Kind::Transferred(response) => {
                let why = io::Error::other(response.refused);
                Err(RPCError::Network(NetworkError::new(&why)))
            }
            other => Err(self.unexpected(&other)),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(TRY_AGAIN)))
    }
}

impl Peer {
    /// The files first, then what they belong to.
    async fn send_snapshot(
        &self,
        vote: &RaftVote,
        mut snapshot: SnapshotOf<TypeConfig, Bytes>,
    ) -> Result<SnapshotResponse<TypeConfig>, RPCError<TypeConfig>> {
        if let Some(last) = snapshot.meta.last_log_id.as_ref() {
            let upto = EntryId {
                term: last.committed_leader_id().term,
                index: last.index(),
            };
            let mut travelling = Travelling::decode(&snapshot.snapshot)
                .map_err(|e| RPCError::Network(NetworkError::new(&e)))?;
            let call = |kind| -> BoxFuture<'_, _> {
                let message = self.message(kind, false);
                self.transport.call(message, SNAPSHOT_DEADLINE)
            };
            let pace = |bytes| -> BoxFuture<'_, ()> {
                if self.exchange.votes(&self.key, self.to) {
                    return Box::pin(std::future::ready(()));
                }
                Box::pin(self.throttle.take(bytes))
            };
            let log = self.log.clone();
            let sent = files::send(log, upto, travelling.next_offset, call, pace).await;
            travelling.with_files = sent.map_err(|error| match error {
                SendError::Call(error) => failed(error),
                other => RPCError::Network(NetworkError::new(&other)),
            })?;
            snapshot.snapshot = travelling.encode();
        }
        let request = wire::snapshot_out(vote, snapshot).map_err(not_understood)?;
        match self
            .call(Kind::Snapshot(request), SNAPSHOT_DEADLINE)
            .await?
        {
            Kind::SnapshotTaken(response) => wire::vote_in(response.vote)
                .map(SnapshotResponse::new)
                .map_err(not_understood),
            other => Err(self.unexpected(&other)),
        }
    }

    async fn ask_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        pre_vote: bool,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        if let Some(obstacle) = self.candidacy.obstacle() {
            let why = io::Error::other(obstacle);
            return Err(RPCError::Network(NetworkError::new(&why)));
        }
        let kind = Kind::Vote(wire::ask_vote_out(&request, pre_vote));
        match self.call(kind, option.soft_ttl()).await? {
            Kind::Voted(response) => wire::voted_in(response).map_err(not_understood),
            other => Err(self.unexpected(&other)),
        }
    }
}

fn as_streaming(error: RPCError<TypeConfig>) -> StreamingError<TypeConfig> {
    match error {
        RPCError::Timeout(e) => StreamingError::Timeout(e),
        RPCError::Unreachable(e) => StreamingError::Unreachable(e),
        RPCError::Network(e) => StreamingError::Network(e),
        other => StreamingError::Network(NetworkError::new(&io::Error::other(other.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::log_id;
    use super::*;
    use futures_util::stream;
    use openraft::raft::StreamAppendError;

    fn sent(index: u64, taken: u64) -> Answered {
        (Some(log_id(1, index)), Ok(Ok(Some(log_id(1, taken)))))
    }

    #[tokio::test]
    async fn a_row_ends_with_the_first_answer_that_is_no_full_success() {
        let conflict = || {
            (
                Some(log_id(1, 5)),
                Ok(Err(StreamAppendError::Conflict(log_id(1, 4)))),
            )
        };
        for bad in [sent(5, 3), conflict()] {
            let answers = stream::iter([sent(4, 4), bad, sent(6, 6)]);
            let passed: Vec<_> = until_failure(answers).collect().await;
            assert_eq!(
                passed.len(),
                2,
                "the bad one is told, what was sent behind it is not"
            );
        }
        let whole: Vec<_> = until_failure(stream::iter([sent(4, 4), sent(5, 5)]))
            .collect()
            .await;
        assert_eq!(whole.len(), 2);
    }
}
