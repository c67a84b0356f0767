//! A group's records as the bytes of `__consumer_offsets`, in Kafka's own format, so that tools
//! made for Kafka read them.
//!
//! Invariant: what is decoded owns its memory; a group must not pin the file it was read from.
//!
//! Not here: the byte layouts themselves (the protocol crate has them).

use bytes::Bytes;
use logd_proto::offsets_topic::{
    GroupValue, Key, MemberValue, OffsetKey, OffsetValue, OffsetsRecordError,
};
use logd_proto::{StrBytes, Uuid};

use super::event::{Millis, Name};
use super::record::{CommittedOffset, GroupRecord, MemberRecord, Record};

/// A record's key and value; no value marks the end of what the key names.
pub(super) type Encoded = (Bytes, Option<Bytes>);

pub(super) fn encode(group: &Name, record: &Record) -> Encoded {
    match record {
        Record::Offset {
            topic,
            partition,
            value,
        } => {
            let key = Key::Offset(OffsetKey {
                group: text(group),
                topic: text(topic),
                partition: *partition,
            });
            let value = value.as_ref().map(|value| offset_value(value).encode());
            (key.encode(), value)
        }
        Record::Group(value) => {
            let value = value.as_ref().map(|value| group_value(value).encode());
            (Key::Group(text(group)).encode(), value)
        }
    }
}

/// What one record of the topic says, and of which group; `None` for kinds that are not ours.
pub(super) fn decode(
    key: Bytes,
    value: Option<Bytes>,
) -> Result<Option<(Name, Record)>, OffsetsRecordError> {
    match Key::decode(key)? {
        Key::Offset(key) => {
            let value = value.map(OffsetValue::decode).transpose()?;
            let record = Record::Offset {
                topic: name(&key.topic),
                partition: key.partition,
                value: value.map(committed_offset),
            };
            Ok(Some((name(&key.group), record)))
        }
        Key::Group(group) => {
            let value = value.map(GroupValue::decode).transpose()?;
            Ok(Some((name(&group), Record::Group(value.map(group_record)))))
        }
        Key::Unknown(_) => Ok(None),
    }
}

fn text(name: &Name) -> StrBytes {
    StrBytes::from(&**name)
}

fn name(text: &StrBytes) -> Name {
    Name::from(text.as_str())
}

fn offset_value(offset: &CommittedOffset) -> OffsetValue {
    OffsetValue {
        offset: offset.offset,
        leader_epoch: offset.leader_epoch,
        metadata: text(&offset.metadata),
        commit_timestamp: offset.commit_time,
        expire_timestamp: offset.expire_time.unwrap_or(-1),
        topic_id: Uuid::from_bytes(offset.topic_id),
    }
}

fn committed_offset(value: OffsetValue) -> CommittedOffset {
    CommittedOffset {
        offset: value.offset,
        leader_epoch: value.leader_epoch,
        metadata: name(&value.metadata),
        commit_time: value.commit_timestamp,
        expire_time: (value.expire_timestamp >= 0).then_some(value.expire_timestamp),
        topic_id: value.topic_id.to_bytes(),
    }
}

fn group_value(group: &GroupRecord) -> GroupValue {
    GroupValue {
        protocol_type: text(&group.protocol_type),
        generation: group.generation,
        protocol: group.protocol.as_ref().map(text),
        leader: group.leader.as_ref().map(text),
        state_timestamp: group.state_since,
        members: group.members.iter().map(member_value).collect(),
    }
}

fn group_record(value: GroupValue) -> GroupRecord {
    GroupRecord {
        protocol_type: name(&value.protocol_type),
        generation: value.generation,
        protocol: value.protocol.as_ref().map(name),
        leader: value.leader.as_ref().map(name),
        state_since: value.state_timestamp,
        members: value.members.into_iter().map(member_record).collect(),
    }
}

fn member_value(member: &MemberRecord) -> MemberValue {
    // The timeouts came as 32-bit numbers.
    let milliseconds = |span: Millis| i32::try_from(span).unwrap_or(i32::MAX);
    MemberValue {
        member_id: text(&member.member_id),
        group_instance_id: member.instance_id.as_ref().map(text),
        client_id: text(&member.client_id),
        client_host: text(&member.client_host),
        rebalance_timeout_ms: milliseconds(member.rebalance_timeout),
        session_timeout_ms: milliseconds(member.session_timeout),
        subscription: member.subscription.clone(),
        assignment: member.assignment.clone(),
    }
}

fn member_record(value: MemberValue) -> MemberRecord {
    MemberRecord {
        member_id: name(&value.member_id),
        instance_id: value.group_instance_id.as_ref().map(name),
        client_id: name(&value.client_id),
        client_host: name(&value.client_host),
        rebalance_timeout: value.rebalance_timeout_ms.into(),
        session_timeout: value.session_timeout_ms.into(),
        subscription: Bytes::copy_from_slice(&value.subscription),
        assignment: Bytes::copy_from_slice(&value.assignment),
    }
}
