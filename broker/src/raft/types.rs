//! The types a group is made of: what is proposed, what comes back, and openraft's configuration of them.

use bytes::Bytes;
use openraft::impls::{BasicNode, Entry, EntryPayload, InlineBatch, Vote, leader_id_std};
use openraft::vote::RaftLeaderId;
use std::fmt;

/// A disk's incarnation, which is what votes. A wiped disk is another voter.
pub type ReplicaId = u64;

/// The owner's control commands; numbers 0 and 1 belong to Raft itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlKind(u8);

impl ControlKind {
    /// A command of the group's owner. Numbers below 2 are Raft's blank and membership entries.
    pub const fn new(number: u8) -> Self {
        assert!(number >= 2, "control kinds 0 and 1 are Raft's own");
        Self(number)
    }

    pub const fn number(self) -> u8 {
        self.0
    }
}

/// Whether an entry takes offsets and bytes in the `.log`, or only an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    Data,
    Control(ControlKind),
}

/// What a group's owner asks to be replicated.
#[derive(Clone)]
pub struct Proposal {
    pub kind: EntryKind,
    /// The first part of the payload. Empty until the log store stamps it.
    pub head: Bytes,
    pub body: Bytes,
    /// Offsets taken; 0 for control commands.
    pub records: u32,
    /// Milliseconds since the epoch, -1 if none.
    pub max_timestamp: i64,
    /// Assigned by the log store when the entry is appended; -1 before.
    pub base_offset: i64,
}

impl Proposal {
    pub fn data(payload: Bytes, records: u32, max_timestamp: i64) -> Self {
        Self {
            kind: EntryKind::Data,
            head: Bytes::new(),
            body: payload,
            records,
            max_timestamp,
            base_offset: -1,
        }
    }

    pub fn control(kind: ControlKind, payload: Bytes) -> Self {
        Self {
            kind: EntryKind::Control(kind),
            head: Bytes::new(),
            body: payload,
            records: 0,
            max_timestamp: -1,
            base_offset: -1,
        }
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proposal")
            .field("kind", &self.kind)
            .field("base_offset", &self.base_offset)
            .field("records", &self.records)
            .field("bytes", &(self.head.len() + self.body.len()))
            .finish()
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry tells the one who proposed it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub index: u64,
    pub base_offset: i64,
    /// The owner's own answer, empty for most.
    pub answer: Bytes,
}

/// Splits a payload into a head that carries what only the log knows (base offset, term) and the
/// untouched rest. Called once per entry and replica, serially per group.
pub type Stamp = fn(payload: &Bytes, base_offset: i64, term: u64) -> (Bytes, Bytes);

/// The stamp of payloads that need none.
pub fn unstamped(payload: &Bytes, _base_offset: i64, _term: u64) -> (Bytes, Bytes) {
    (Bytes::new(), payload.clone())
}

pub(super) type LeaderId = leader_id_std::LeaderId<u64, ReplicaId>;
pub(super) type CommittedLeaderId = <LeaderId as RaftLeaderId>::Committed;
pub(super) type RaftVote = Vote<LeaderId>;
pub(super) type LogId = openraft::LogId<CommittedLeaderId>;
pub(super) type Membership = openraft::Membership<ReplicaId, BasicNode>;
pub(super) type StoredMembership =
    openraft::StoredMembership<CommittedLeaderId, ReplicaId, BasicNode>;
pub(super) type Payload = EntryPayload<Proposal, ReplicaId, BasicNode>;
pub(super) type RaftEntry = Entry<CommittedLeaderId, Payload>;

/// One configuration serves partitions and the metadata group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeConfig;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Proposal;
    type R = Outcome;
    type NodeId = ReplicaId;
    type Node = BasicNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = RaftVote;
    type Payload = Payload;
    type Entry = RaftEntry;
    type AsyncRuntime = super::runtime::Runtime;
    type Responder<T>
        = super::group::Reply<T>
    where
        T: Send + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}
