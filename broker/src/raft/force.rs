//! A group that has lost its majority for good goes on with what one replica has.
//!
//! Promise: on return the replica's disk says that this replica is the group's only voter, in a later term
//! than any it knows of, and everything that its log holds is kept. Opened again, the group elects itself
//! and commits all of it, what nobody had acknowledged too.
//! Invariant: the group is closed here. A crash at any point leaves a log with which this can be done
//! again: first the vote, as if this replica had been elected alone, then the entry that says so.
//! Not here: whether it may be done. Raft's promises end here for what the other replicas had, so the
//! metadata decides that once, and numbers what comes after by generation (`cluster::generations`).

use super::codec::{CodecError, decode_vote, encode_membership, encode_vote};
use super::log_store::{MEMBERSHIP, durable};
use super::types::{LeaderId, Membership, RaftVote, ReplicaId};
use bytes::Bytes;
use logd_storage::{Entry, EntryId, Kind, Log};
use openraft::impls::BasicNode;
use openraft::vote::RaftLeaderId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

#[derive(Debug, thiserror::Error)]
pub enum ForceError {
    #[error("its log is empty: there is nothing to go on with")]
    Empty,
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("writing to its log: {0}")]
    Disk(#[from] io::Error),
    #[error("replica {0} alone is no membership: {1}")]
    Illegal(ReplicaId, String),
}

/// Makes this replica the only voter of its group; the term in which it says so, which is at least `least`.
///
/// # Errors
/// If the log is empty, or cannot be written.
pub async fn force_alone(log: &Log, me: ReplicaId, least: u64) -> Result<u64, ForceError> {
    let bounds = log.bounds();
    let last = bounds.last.ok_or(ForceError::Empty)?;
    let voted = log.vote().map(decode_vote).transpose()?;
    let voted = voted.map_or(0, |vote| vote.leader_id.term);
    let term = least.max(voted.max(last.term) + 1);
    let vote = RaftVote {
        leader_id: LeaderId::new(term, me),
        committed: true,
    };
    let vote = encode_vote(&vote);
    durable(|done| log.save_vote(vote, done).map_err(io::Error::other)).await?;
    let nodes = BTreeMap::from([(me, BasicNode::default())]);
    let alone = Membership::new(vec![BTreeSet::from([me])], nodes)
        .map_err(|e| ForceError::Illegal(me, e.to_string()))?;
    let entry = Entry {
        id: EntryId {
            term,
            index: last.index + 1,
        },
        kind: Kind::Control(MEMBERSHIP),
        base_offset: bounds.end_offset,
        records: 0,
        max_timestamp: -1,
        head: Bytes::new(),
        body: encode_membership(&alone)?,
    };
    durable(|done| log.append(vec![entry], done).map_err(io::Error::other)).await?;
    Ok(term)
}
