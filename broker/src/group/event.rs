//! The words a group understands: what may happen to it, what it answers, what it wants done.
//!
//! Invariant: a [`Ticket`] is consumed by its answer, so no request is answered twice; one that is
//! dropped tells the waiting side that this coordinator is gone.
//!
//! Not here: Kafka's messages and error codes (the API room translates), and any clock or I/O.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::record::{CommittedOffset, Record, TopicId};

/// A point in time or a span, in milliseconds; points count from the Unix epoch.
pub type Millis = i64;

/// A group, member, instance, protocol or topic name. Copied out of the request: a slice of the
/// request's frame, kept for as long as a member lives, would pin the whole frame.
pub type Name = Arc<str>;

/// Identifies one [`Effect::Persist`] until its outcome comes back.
pub type Token = u64;

/// Why a group said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A group id that is empty where one is needed.
    #[error("the group id is empty")]
    InvalidGroupId,
    /// Outside `group.min.session.timeout.ms..=group.max.session.timeout.ms`.
    #[error("the session timeout is outside the limits of this broker")]
    InvalidSessionTimeout,
    /// Not a member of this group, or no longer.
    #[error("the member id is not known to the group")]
    UnknownMember,
    /// Of an older (or invented) generation.
    #[error("the generation is not the current one")]
    IllegalGeneration,
    /// The member should rejoin.
    #[error("the group is rebalancing")]
    RebalanceInProgress,
    /// Another process took over this instance id.
    #[error("another member holds this instance id")]
    FencedInstance,
    /// No protocol in common with the other members, or another protocol type.
    #[error("no protocol in common with the group")]
    InconsistentProtocol,
    /// The group has `group.max.size` members.
    #[error("the group is full")]
    GroupFull,
    /// Longer than `offset.metadata.max.bytes`.
    #[error("the offset's metadata is too long")]
    MetadataTooLarge,
    /// A commit that does not fit into one batch of the offsets topic.
    #[error("the commit does not fit into one record batch")]
    CommitTooLarge,
    /// A group description that does not fit into one batch of the offsets topic.
    #[error("the group's state does not fit into one record batch")]
    GroupTooLarge,
    /// Deleting a group that has members.
    #[error("the group has members")]
    NonEmpty,
    /// No such group.
    #[error("no such group")]
    NotFound,
    /// Deleting offsets of a topic that the group consumes.
    #[error("the group is subscribed to the topic")]
    Subscribed,
    /// The record could not be written; nothing changed; trying again may help.
    #[error("the group's log did not take the record")]
    NotAvailable,
    /// Another broker coordinates this group.
    #[error("this broker does not coordinate the group")]
    NotCoordinator,
    /// The group's log is still being read.
    #[error("the group's log is being loaded")]
    Loading,
}

/// A way to answer one request, once.
#[derive(Debug)]
pub struct Ticket<T>(oneshot::Sender<T>);

impl<T: Send + 'static> Ticket<T> {
    /// A ticket, and where its answer will arrive.
    pub fn new() -> (Ticket<T>, oneshot::Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        (Ticket(sender), receiver)
    }

    /// Uses the ticket up. The answer leaves when the reply is sent.
    pub fn accept(self, answer: T) -> Reply {
        // A requester that went away no longer cares; there is nobody left to tell.
        Reply(Box::new(move || drop(self.0.send(answer))))
    }
}

/// An answer on its way out.
pub struct Reply(Box<dyn FnOnce() + Send>);

impl Reply {
    /// Delivers it.
    pub fn send(self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply")
    }
}

/// One assignment strategy a member offers, with what it wants its leader to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// The strategy's name, such as `range`.
    pub name: Name,
    /// The subscription, opaque here.
    pub metadata: Bytes,
}

/// A wish to take part in the next generation.
#[derive(Clone, Debug)]
pub struct Join {
    /// Empty for a member that has none yet.
    pub member_id: Name,
    /// The id to give out if one is needed. It carries randomness, so it comes from outside.
    pub fresh_member_id: Name,
    /// Set for a static member.
    pub instance_id: Option<Name>,
    /// The client's own name for itself.
    pub client_id: Name,
    /// Where it connects from.
    pub client_host: Name,
    /// How long it may stay silent.
    pub session_timeout: Millis,
    /// How long a rebalance waits for it.
    pub rebalance_timeout: Millis,
    /// Such as `consumer` or `connect`.
    pub protocol_type: Name,
    /// In the member's order of preference.
    pub protocols: Vec<Protocol>,
    /// The client can repeat a join with the id it is told (version 4 and later).
    pub takes_member_id: bool,
    /// The client understands that a leader may keep its assignment (version 9 and later).
    pub takes_skip: bool,
    /// Why, in the client's words; for the log line.
    pub reason: Option<Name>,
}

/// One row of the list that a leader gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedMember {
    /// The member.
    pub member_id: Name,
    /// Its instance id, if it is static.
    pub instance_id: Option<Name>,
    /// What it sent for the chosen protocol.
    pub metadata: Bytes,
}

/// A seat in a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The generation joined.
    pub generation: i32,
    /// The group's protocol type.
    pub protocol_type: Name,
    /// The chosen protocol.
    pub protocol: Name,
    /// Who computes the assignment.
    pub leader: Name,
    /// The member's own id.
    pub member_id: Name,
    /// All members, for the leader only.
    pub members: Vec<JoinedMember>,
    /// A leader that need not assign anew.
    pub skip_assignment: bool,
}

/// The answer to [`Join`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinReply {
    /// In.
    Joined(Joined),
    /// Join again with this id.
    MemberIdRequired(Name),
    /// Out.
    Refused(Refusal),
}

/// Asks for an assignment; a leader brings everybody's.
#[derive(Clone, Debug)]
pub struct Sync {
    /// Who asks.
    pub member_id: Name,
    /// The generation it joined.
    pub generation: i32,
    /// Set for a static member.
    pub instance_id: Option<Name>,
    /// What the member believes; absent in old versions.
    pub protocol_type: Option<Name>,
    /// What the member believes; absent in old versions.
    pub protocol: Option<Name>,
    /// From the leader: member id and assignment.
    pub assignments: Vec<(Name, Bytes)>,
}

/// A member's share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    /// The group's protocol type.
    pub protocol_type: Name,
    /// The chosen protocol.
    pub protocol: Name,
    /// Opaque here.
    pub assignment: Bytes,
}

/// The answer to [`Sync`].
pub type SyncReply = Result<Synced, Refusal>;

/// A sign of life.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// Who.
    pub member_id: Name,
    /// In which generation it believes to be.
    pub generation: i32,
    /// Set for a static member.
    pub instance_id: Option<Name>,
}

/// One member that leaves, by id, by instance, or both.
#[derive(Clone, Debug)]
pub struct Leaving {
    /// Empty if only the instance is named (an administrator removes a static member).
    pub member_id: Name,
    /// Set for a static member.
    pub instance_id: Option<Name>,
    /// Why, in the client's words.
    pub reason: Option<Name>,
}

/// What became of one thing named in a request.
pub type Verdict = Result<(), Refusal>;

/// One verdict per thing named in a request, in order, or one for the whole of it.
pub type Verdicts = Result<Vec<Verdict>, Refusal>;

/// An answer that waits for a record to be applied.
pub(super) type Parked = (Ticket<Verdicts>, Vec<Verdict>);

/// The answer to a leave: one verdict per member.
pub type LeaveReply = Verdicts;

/// One offset to remember.
#[derive(Clone, Debug)]
pub struct OffsetToCommit {
    /// The topic's name.
    pub topic: Name,
    /// Its id, or zero when the topic was named only.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: i32,
    /// The next offset to read.
    pub offset: i64,
    /// The epoch of the last record read, or -1.
    pub leader_epoch: i32,
    /// The client's own note.
    pub metadata: Name,
}

/// Offsets to remember together.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Empty for a client that manages its assignment itself.
    pub member_id: Name,
    /// Negative for a client that manages its assignment itself.
    pub generation: i32,
    /// Set for a static member.
    pub instance_id: Option<Name>,
    /// Old clients may ask for a retention of their own.
    pub retention: Option<Millis>,
    /// What to remember.
    pub offsets: Vec<OffsetToCommit>,
}

/// The answer to [`Commit`]: one verdict per offset.
pub type CommitReply = Verdicts;

/// Topics and their partitions, or everything the group has.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// All committed offsets.
    All,
    /// These, in this order.
    These(Vec<(Name, i32)>),
}

/// One row of an offset fetch; `None` where nothing is committed.
pub type FetchedOffset = (Name, i32, Option<CommittedOffset>);

/// What an operator sees of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDescription {
    /// The member.
    pub member_id: Name,
    /// Its instance id, if it is static.
    pub instance_id: Option<Name>,
    /// The client's own name for itself.
    pub client_id: Name,
    /// Where it connects from.
    pub client_host: Name,
    /// Its subscription; empty unless the group is stable.
    pub metadata: Bytes,
    /// Its share; empty unless the group is stable.
    pub assignment: Bytes,
}

/// What an operator sees of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// One of Kafka's state names.
    pub state: &'static str,
    /// Empty for a group that only stores offsets.
    pub protocol_type: Name,
    /// Empty unless the group is stable.
    pub protocol: Name,
    /// In order of their ids.
    pub members: Vec<MemberDescription>,
}

/// Why a record was not written. All of these mean that it never will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// No room, no quorum, overload.
    #[error("the offsets partition took no append")]
    Unavailable,
    /// Larger than a batch may be.
    #[error("the record is larger than a batch may be")]
    TooLarge,
}

/// Everything that can happen to a group.
#[derive(Debug)]
pub enum Event {
    /// JoinGroup.
    Join(Ticket<JoinReply>, Join),
    /// SyncGroup.
    Sync(Ticket<SyncReply>, Sync),
    /// Heartbeat.
    Heartbeat(Ticket<Result<(), Refusal>>, Heartbeat),
    /// LeaveGroup.
    Leave(Ticket<LeaveReply>, Vec<Leaving>),
    /// OffsetCommit.
    Commit(Ticket<CommitReply>, Commit),
    /// OffsetFetch.
    FetchOffsets(Ticket<Result<Vec<FetchedOffset>, Refusal>>, Wanted),
    /// DescribeGroups.
    Describe(Ticket<Result<Description, Refusal>>),
    /// DeleteGroups.
    Delete(Ticket<Result<(), Refusal>>),
    /// OffsetDelete: one verdict per partition, in order.
    DeleteOffsets(Ticket<Verdicts>, Vec<(Name, i32)>),
    /// The topics of these ids are gone, and their offsets with them. By id: a topic that has the
    /// name now may have offsets of its own.
    TopicsDeleted(BTreeSet<TopicId>),
    /// Time to forget what retention no longer protects.
    Expire,
    /// A deadline may have passed.
    Tick,
    /// The record of this token is applied.
    Persisted(Token),
    /// The record of this token was refused and will never appear.
    PersistFailed(Token, WriteError),
}

impl Event {
    /// Whether the event must wait while a change of the membership is being written.
    pub(super) fn waits_for_write(&self) -> bool {
        match self {
            Event::Join(..)
            | Event::Sync(..)
            | Event::Leave(..)
            | Event::Delete(..)
            | Event::DeleteOffsets(..)
            | Event::TopicsDeleted(..) => true,
            Event::Heartbeat(..)
            | Event::Commit(..)
            | Event::FetchOffsets(..)
            | Event::Describe(..)
            | Event::Expire
            | Event::Tick
            | Event::Persisted(..)
            | Event::PersistFailed(..) => false,
        }
    }

    /// The answer to a request that nobody here can serve.
    pub fn refuse(self, refusal: Refusal) -> Option<Reply> {
        match self {
            Event::Join(ticket, _) => Some(ticket.accept(JoinReply::Refused(refusal))),
            Event::Sync(ticket, _) => Some(ticket.accept(Err(refusal))),
            Event::Heartbeat(ticket, _) | Event::Delete(ticket) => {
                Some(ticket.accept(Err(refusal)))
            }
            Event::Leave(ticket, _) => Some(ticket.accept(Err(refusal))),
            Event::Commit(ticket, _) => Some(ticket.accept(Err(refusal))),
            Event::DeleteOffsets(ticket, _) => Some(ticket.accept(Err(refusal))),
            Event::FetchOffsets(ticket, _) => Some(ticket.accept(Err(refusal))),
            Event::Describe(ticket) => Some(ticket.accept(Err(refusal))),
            Event::TopicsDeleted(..)
            | Event::Expire
            | Event::Tick
            | Event::Persisted(..)
            | Event::PersistFailed(..) => None,
        }
    }
}

/// What the group wants done.
#[derive(Debug)]
pub enum Effect {
    /// Send this answer.
    Reply(Reply),
    /// Append these records together; report with [`Event::Persisted`] or
    /// [`Event::PersistFailed`]. Appends of one group keep their order.
    Persist {
        /// To be handed back.
        token: Token,
        /// To appear in one batch.
        records: Vec<Record>,
    },
    /// Tell the operator what the group does.
    Log(String),
}
