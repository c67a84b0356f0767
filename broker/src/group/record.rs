//! What a group leaves behind in `__consumer_offsets`, as values.
//!
//! Promise: a group rebuilt from its records, oldest first, equals the group that wrote them in
//! everything a client was told and may rely on.
//!
//! Not here: the bytes (see `codec`), and anything a crash may forget: parked requests, pending
//! members, deadlines.

use bytes::Bytes;

use super::event::{Millis, Name};

/// A topic's id as the 16 bytes of the wire; all zero when unknown.
pub type TopicId = [u8; 16];

/// A remembered offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The next offset to read.
    pub offset: i64,
    /// The epoch of the last record read, or -1.
    pub leader_epoch: i32,
    /// The client's own note.
    pub metadata: Name,
    /// When it was committed.
    pub commit_time: Millis,
    /// When it may be forgotten, where the client said so itself.
    pub expire_time: Option<Millis>,
    /// The topic's id, or zero when the client named the topic only.
    pub topic_id: TopicId,
}

/// A member as remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRecord {
    /// The member.
    pub member_id: Name,
    /// Its instance id, if it is static.
    pub instance_id: Option<Name>,
    /// The client's own name for itself.
    pub client_id: Name,
    /// Where it connected from.
    pub client_host: Name,
    /// How long a rebalance waits for it.
    pub rebalance_timeout: Millis,
    /// How long it may stay silent.
    pub session_timeout: Millis,
    /// What it sent for the chosen protocol.
    pub subscription: Bytes,
    /// Its share, empty until the leader has spoken.
    pub assignment: Bytes,
}

/// A generation as remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRecord {
    /// Such as `consumer`.
    pub protocol_type: Name,
    /// The generation.
    pub generation: i32,
    /// The chosen protocol; none in an empty group.
    pub protocol: Option<Name>,
    /// Who assigns; none in an empty group.
    pub leader: Option<Name>,
    /// Since when the group has been as it is.
    pub state_since: Millis,
    /// In order of their ids.
    pub members: Vec<MemberRecord>,
}

/// One record of a group, the group's id aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An offset, or its end.
    Offset {
        /// The topic's name.
        topic: Name,
        /// The partition.
        partition: i32,
        /// `None` forgets it.
        value: Option<CommittedOffset>,
    },
    /// The group, or its end.
    Group(Option<GroupRecord>),
}
