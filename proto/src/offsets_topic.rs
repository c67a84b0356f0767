//! The records of `__consumer_offsets`, byte for byte as Kafka writes them, so that its tools read
//! ours and a group can move.
//!
//! | key | starts with | value |
//! |---|---|---|
//! | committed offset | 0 or 1, group, topic, partition | [`OffsetValue`], versions 0 to 4 |
//! | group | 2, group | [`GroupValue`], versions 0 to 4 |
//!
//! Keys are never flexible; values are from version 4 on. A value of null deletes.
//!
//! Invariant: every version is read; offsets are written in version 3, or in 4 when they carry a topic
//! id; groups in version 3.
//!
//! Not here: what a group does with them. Keys of newer kinds of groups are [`Key::Unknown`].

use bytes::Bytes;

use crate::wire::{Gather, ReadError, Reader};
use crate::{StrBytes, Uuid};

const OFFSET_KEY: i16 = 1;
const GROUP_KEY: i16 = 2;
const FLEXIBLE_FROM: i16 = 4;

/// Why a record of the topic cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OffsetsRecordError {
    /// Its bytes make no sense.
    #[error("malformed {what}: {source}")]
    Malformed {
        what: &'static str,
        source: ReadError,
    },
    /// It was written by a Kafka newer than we know.
    #[error("{what} of the unknown version {version}")]
    UnknownVersion { what: &'static str, version: i16 },
}

/// What a record is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// How far a group has read a partition.
    Offset(OffsetKey),
    /// A classic group's generation and members.
    Group(StrBytes),
    /// A kind of record we do not write, by its number.
    Unknown(i16),
}

/// A group and a partition it reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OffsetKey {
    /// The group.
    pub group: StrBytes,
    /// The topic's name.
    pub topic: StrBytes,
    /// The partition.
    pub partition: i32,
}

impl Key {
    /// Reads the key of a record.
    ///
    /// # Errors
    /// When its bytes make no sense.
    pub fn decode(key: Bytes) -> Result<Key, OffsetsRecordError> {
        let mut reader = Reader::new(key);
        read_key(&mut reader).map_err(|source| OffsetsRecordError::Malformed {
            what: "offsets topic key",
            source,
        })
    }

    /// Writes the key of a record; [`Key::Unknown`] as its bare number.
    pub fn encode(&self) -> Bytes {
        let mut out = Gather::message();
        match self {
            Key::Offset(key) => {
                out.i16(OFFSET_KEY);
                out.string(false, &key.group);
                out.string(false, &key.topic);
                out.i32(key.partition);
            }
            Key::Group(group) => {
                out.i16(GROUP_KEY);
                out.string(false, group);
            }
            Key::Unknown(number) => out.i16(*number),
        }
        out.into_bytes()
    }
}

fn read_key(reader: &mut Reader) -> Result<Key, ReadError> {
    match reader.i16()? {
        0..=OFFSET_KEY => Ok(Key::Offset(OffsetKey {
            group: reader.string(false)?,
            topic: reader.string(false)?,
            partition: reader.i32()?,
        })),
        GROUP_KEY => Ok(Key::Group(reader.string(false)?)),
        number => Ok(Key::Unknown(number)),
    }
}

/// How far a group has read a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetValue {
    /// The next offset to read.
    pub offset: i64,
    /// The epoch of the last record read, or -1.
    pub leader_epoch: i32,
    /// Whatever the client wanted to remember.
    pub metadata: StrBytes,
    /// When it was committed.
    pub commit_timestamp: i64,
    /// When it expires, from clients that still say so; otherwise -1.
    pub expire_timestamp: i64,
    /// The topic's id, or zero.
    pub topic_id: Uuid,
}

impl OffsetValue {
    /// Reads the value of an offset record.
    ///
    /// # Errors
    /// When its bytes make no sense, or are of a version we do not know.
    pub fn decode(value: Bytes) -> Result<OffsetValue, OffsetsRecordError> {
        decode_value(value, "committed offset", |reader, version| {
            let flexible = version >= FLEXIBLE_FROM;
            let mut value = OffsetValue {
                offset: reader.i64()?,
                leader_epoch: if version >= 3 { reader.i32()? } else { -1 },
                metadata: reader.string(flexible)?,
                commit_timestamp: reader.i64()?,
                expire_timestamp: if version == 1 { reader.i64()? } else { -1 },
                topic_id: Uuid::ZERO,
            };
            reader.tags(flexible, |tag, field| {
                if tag == 0 {
                    value.topic_id = field.uuid()?;
                }
                Ok(())
            })?;
            Ok(value)
        })
    }

    /// Writes the value of an offset record.
    pub fn encode(&self) -> Bytes {
        let flexible = !self.topic_id.is_zero();
        // Version 1 is the only one with a place for an expiry.
        let version = match (flexible, self.expire_timestamp) {
            (_, 0..) => 1,
            (true, _) => 4,
            (false, _) => 3,
        };
        let flexible = version == 4;
        let mut out = Gather::message();
        out.i16(version);
        out.i64(self.offset);
        if version >= 3 {
            out.i32(self.leader_epoch);
        }
        out.string(flexible, &self.metadata);
        out.i64(self.commit_timestamp);
        if version == 1 {
            out.i64(self.expire_timestamp);
        }
        if flexible {
            out.unsigned_varint(1);
            out.tag(0, |out| out.uuid(self.topic_id));
        }
        out.into_bytes()
    }
}

/// A classic group, as it was when its last rebalance completed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupValue {
    /// `consumer`, `connect`, or what else its members agreed to be.
    pub protocol_type: StrBytes,
    /// Counts its rebalances.
    pub generation: i32,
    /// The assignment strategy that was chosen.
    pub protocol: Option<StrBytes>,
    /// The member that assigns.
    pub leader: Option<StrBytes>,
    /// When it came into this state, or -1.
    pub state_timestamp: i64,
    /// Its members; none means that it is empty.
    pub members: Vec<MemberValue>,
}

/// A member of a classic group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberValue {
    /// The id the coordinator gave it.
    pub member_id: StrBytes,
    /// The id it gave itself, if it is a static member.
    pub group_instance_id: Option<StrBytes>,
    /// The client's name for itself.
    pub client_id: StrBytes,
    /// Where it connected from.
    pub client_host: StrBytes,
    /// How long it may take to rejoin.
    pub rebalance_timeout_ms: i32,
    /// How long it may be silent.
    pub session_timeout_ms: i32,
    /// What it said on joining, under the chosen strategy.
    pub subscription: Bytes,
    /// What the leader gave it.
    pub assignment: Bytes,
}

impl GroupValue {
    /// Reads the value of a group record.
    ///
    /// # Errors
    /// When its bytes make no sense, or are of a version we do not know.
    pub fn decode(value: Bytes) -> Result<GroupValue, OffsetsRecordError> {
        decode_value(value, "group metadata", |reader, version| {
            let flexible = version >= FLEXIBLE_FROM;
            let value = GroupValue {
                protocol_type: reader.string(flexible)?,
                generation: reader.i32()?,
                protocol: reader.nullable_string(flexible)?,
                leader: reader.nullable_string(flexible)?,
                state_timestamp: if version >= 2 { reader.i64()? } else { -1 },
                members: reader.array_of(flexible, 9, |reader| read_member(reader, version))?,
            };
            reader.skip_tags(flexible)?;
            Ok(value)
        })
    }

    /// Writes the value of a group record, in version 3.
    pub fn encode(&self) -> Bytes {
        let mut out = Gather::message();
        out.i16(3);
        out.string(false, &self.protocol_type);
        out.i32(self.generation);
        out.nullable_string(false, self.protocol.as_deref());
        out.nullable_string(false, self.leader.as_deref());
        out.i64(self.state_timestamp);
        out.array_length(false, Some(self.members.len()));
        for member in &self.members {
            put_member(&mut out, member);
        }
        out.into_bytes()
    }
}

fn read_member(reader: &mut Reader, version: i16) -> Result<MemberValue, ReadError> {
    let flexible = version >= FLEXIBLE_FROM;
    let mut member = MemberValue {
        member_id: reader.string(flexible)?,
        ..MemberValue::default()
    };
    if version >= 3 {
        member.group_instance_id = reader.nullable_string(flexible)?;
    }
    member.client_id = reader.string(flexible)?;
    member.client_host = reader.string(flexible)?;
    let rebalance_timeout_ms = if version >= 1 {
        Some(reader.i32()?)
    } else {
        None
    };
    member.session_timeout_ms = reader.i32()?;
    // Before version 1 there was one timeout for both.
    member.rebalance_timeout_ms = rebalance_timeout_ms.unwrap_or(member.session_timeout_ms);
    member.subscription = reader.nullable_bytes(flexible)?.unwrap_or_default();
    member.assignment = reader.nullable_bytes(flexible)?.unwrap_or_default();
    reader.skip_tags(flexible)?;
    Ok(member)
}

fn put_member(out: &mut Gather, member: &MemberValue) {
    out.string(false, &member.member_id);
    out.nullable_string(false, member.group_instance_id.as_deref());
    out.string(false, &member.client_id);
    out.string(false, &member.client_host);
    out.i32(member.rebalance_timeout_ms);
    out.i32(member.session_timeout_ms);
    for bytes in [&member.subscription, &member.assignment] {
        out.bytes_length(false, Some(bytes.len()));
        out.own().extend_from_slice(bytes);
    }
}

/// Reads the version in front of a value, and then the value.
fn decode_value<T>(
    value: Bytes,
    what: &'static str,
    read: impl FnOnce(&mut Reader, i16) -> Result<T, ReadError>,
) -> Result<T, OffsetsRecordError> {
    let malformed = |source| OffsetsRecordError::Malformed { what, source };
    let mut reader = Reader::new(value);
    match reader.i16().map_err(malformed)? {
        version @ 0..=4 => read(&mut reader, version).map_err(malformed),
        version => Err(OffsetsRecordError::UnknownVersion { what, version }),
    }
}

/// The partition of `__consumer_offsets` that holds a group, as Kafka computes it: Java's hash of the
/// group's name, without its sign, modulo the partitions.
///
/// ```
/// use logd_proto::offsets_topic::partition_of;
/// assert_eq!(partition_of("readers", 50), 28);
/// ```
pub fn partition_of(group: &str, partitions: i32) -> i32 {
    let hash = group.encode_utf16().fold(0i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(i32::from(unit))
    });
    // The magnitude of the smallest number does not exist; Kafka takes zero for it.
    hash.checked_abs()
        .unwrap_or(0)
        .checked_rem(partitions)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Bytes {
        let digits: Vec<char> = text.chars().collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
        digits.chunks(2).map(|pair| byte(pair).unwrap()).collect()
    }

    // All bytes below were written by Kafka 4.3's own serialisers.

    #[test]
    fn keys_are_kafkas() {
        let offset = hex("000100077265616465727300066f726465727300000003");
        let key = OffsetKey {
            group: "readers".into(),
            topic: "orders".into(),
            partition: 3,
        };
        assert_eq!(
            Key::decode(offset.clone()).unwrap(),
            Key::Offset(key.clone())
        );
        assert_eq!(Key::Offset(key.clone()).encode(), offset);
        let legacy = hex("000000077265616465727300066f726465727300000003");
        assert_eq!(Key::decode(legacy).unwrap(), Key::Offset(key));

        let group = hex("0002000772656164657273");
        assert_eq!(
            Key::decode(group.clone()).unwrap(),
            Key::Group("readers".into())
        );
        assert_eq!(Key::Group("readers".into()).encode(), group);
        assert_eq!(Key::decode(hex("0003ff")).unwrap(), Key::Unknown(3));
    }

    fn offset_value() -> OffsetValue {
        OffsetValue {
            offset: 42,
            leader_epoch: 5,
            metadata: "note".into(),
            commit_timestamp: 1_700_000_000_000,
            expire_timestamp: -1,
            topic_id: Uuid::ZERO,
        }
    }

    #[test]
    fn offsets_of_every_version_are_read() {
        let v3 = offset_value();
        let early = OffsetValue {
            leader_epoch: -1,
            ..v3.clone()
        };
        let expiring = OffsetValue {
            expire_timestamp: 1_700_000_001_000,
            ..early.clone()
        };
        let id = Uuid::from_bytes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        let with_id = OffsetValue {
            topic_id: id,
            ..v3.clone()
        };
        for (bytes, value) in [
            ("0000000000000000002a00046e6f74650000018bcfe56800", &early),
            (
                "0001000000000000002a00046e6f74650000018bcfe568000000018bcfe56be8",
                &expiring,
            ),
            ("0002000000000000002a00046e6f74650000018bcfe56800", &early),
            (
                "0003000000000000002a0000000500046e6f74650000018bcfe56800",
                &v3,
            ),
            (
                "0004000000000000002a00000005056e6f74650000018bcfe5680000",
                &v3,
            ),
            (
                "0004000000000000002a00000005056e6f74650000018bcfe56800\
                 0100100102030405060708090a0b0c0d0e0f10",
                &with_id,
            ),
        ] {
            assert_eq!(&OffsetValue::decode(hex(bytes)).unwrap(), value, "{bytes}");
        }
    }

    #[test]
    fn offsets_are_written_in_the_oldest_version_that_holds_them() {
        let v3 = offset_value();
        let bytes = hex("0003000000000000002a0000000500046e6f74650000018bcfe56800");
        assert_eq!(v3.encode(), bytes);
        let id = Uuid::from_bytes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        let v4 = hex("0004000000000000002a00000005056e6f74650000018bcfe56800\
             0100100102030405060708090a0b0c0d0e0f10");
        assert_eq!(
            OffsetValue {
                topic_id: id,
                ..v3.clone()
            }
            .encode(),
            v4
        );
        let v1 = hex("0001000000000000002a00046e6f74650000018bcfe568000000018bcfe56be8");
        assert_eq!(
            OffsetValue {
                expire_timestamp: 1_700_000_001_000,
                ..v3
            }
            .encode(),
            v1
        );
    }

    const GROUP_V3: &str = "00030008636f6e73756d657200000007000572616e676500036d2d31\
        0000018bcfe568000000000100036d2d310003692d31000163000a2f3132372e302e302e31\
        000493e00000afc80000000201020000000103";

    fn group_value() -> GroupValue {
        let member = MemberValue {
            member_id: "m-1".into(),
            group_instance_id: Some("i-1".into()),
            client_id: "c".into(),
            client_host: "/127.0.0.1".into(),
            rebalance_timeout_ms: 300_000,
            session_timeout_ms: 45_000,
            subscription: Bytes::from_static(&[1, 2]),
            assignment: Bytes::from_static(&[3]),
        };
        GroupValue {
            protocol_type: "consumer".into(),
            generation: 7,
            protocol: Some("range".into()),
            leader: Some("m-1".into()),
            state_timestamp: 1_700_000_000_000,
            members: vec![member],
        }
    }

    #[test]
    fn groups_are_written_as_kafka_writes_them() {
        assert_eq!(group_value().encode(), hex(GROUP_V3));
        let empty = GroupValue {
            protocol_type: "consumer".into(),
            generation: 8,
            state_timestamp: 1,
            ..GroupValue::default()
        };
        let bytes = hex("00030008636f6e73756d657200000008ffffffff000000000000000100000000");
        assert_eq!(empty.encode(), bytes);
        assert_eq!(GroupValue::decode(bytes).unwrap(), empty);
    }

    #[test]
    fn groups_of_every_version_are_read() {
        let v3 = group_value();
        let mut v2 = v3.clone();
        v2.members[0].group_instance_id = None;
        let v1 = GroupValue {
            state_timestamp: -1,
            ..v2.clone()
        };
        let mut v0 = v1.clone();
        v0.members[0].rebalance_timeout_ms = 45_000;
        for (bytes, value) in [
            (
                "00000008636f6e73756d657200000007000572616e676500036d2d310000000100036d2d31000163\
                 000a2f3132372e302e302e310000afc80000000201020000000103",
                &v0,
            ),
            (
                "00010008636f6e73756d657200000007000572616e676500036d2d310000000100036d2d31000163\
                 000a2f3132372e302e302e31000493e00000afc80000000201020000000103",
                &v1,
            ),
            (
                "00020008636f6e73756d657200000007000572616e676500036d2d310000018bcfe5680000000001\
                 00036d2d31000163000a2f3132372e302e302e31000493e00000afc80000000201020000000103",
                &v2,
            ),
            (GROUP_V3, &v3),
            (
                "000409636f6e73756d6572000000070672616e6765046d2d310000018bcfe5680002046d2d310469\
                 2d3102630b2f3132372e302e302e31000493e00000afc803010202030000",
                &v3,
            ),
        ] {
            assert_eq!(&GroupValue::decode(hex(bytes)).unwrap(), value, "{bytes}");
        }
    }

    #[test]
    fn a_value_from_the_future_is_told_from_a_broken_one() {
        let future = OffsetValue::decode(hex("0005")).unwrap_err();
        assert!(matches!(
            future,
            OffsetsRecordError::UnknownVersion { version: 5, .. }
        ));
        let broken = GroupValue::decode(hex("000300")).unwrap_err();
        assert!(matches!(broken, OffsetsRecordError::Malformed { .. }));
    }
}
