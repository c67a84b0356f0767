//! What members of a classic consumer group tell each other through the coordinator: their
//! subscriptions on joining, and the leader's assignments.
//!
//! Invariant: payloads of versions newer than ours are read as far as we understand them, because new
//! fields are appended and a group may hold clients of any age.
//!
//! Not here: assignment itself. A coordinator passes these bytes on without reading them, except to
//! learn which topics a group uses.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_wire::{ConsumerProtocolAssignment, ConsumerProtocolSubscription};
use kafka_wire_core::{ApiVersion, Decoder, KafkaDecode, KafkaEncode};

use crate::api::{DecodeError, EncodeError, limits};
use crate::wire::ReadError;

const VERSION_MAX: i16 = 3;
const ELEMENTS_MAX: usize = 100_000;

/// Writes a subscription, for a JoinGroup request.
///
/// # Errors
/// When the version has no place for what it says.
pub fn encode_subscription(
    subscription: &ConsumerProtocolSubscription,
    version: i16,
) -> Result<Bytes, EncodeError> {
    encode(subscription, "ConsumerProtocolSubscription", version)
}

/// Reads a subscription and the version it was written in.
///
/// # Errors
/// When the bytes are no subscription.
pub fn decode_subscription(
    payload: Bytes,
) -> Result<(i16, ConsumerProtocolSubscription), DecodeError> {
    decode(payload, "ConsumerProtocolSubscription")
}

/// Writes an assignment, for a SyncGroup request.
///
/// # Errors
/// When the version has no place for what it says.
pub fn encode_assignment(
    assignment: &ConsumerProtocolAssignment,
    version: i16,
) -> Result<Bytes, EncodeError> {
    encode(assignment, "ConsumerProtocolAssignment", version)
}

/// Reads an assignment and the version it was written in. No bytes at all is an assignment of nothing.
///
/// # Errors
/// When the bytes are no assignment.
pub fn decode_assignment(payload: Bytes) -> Result<(i16, ConsumerProtocolAssignment), DecodeError> {
    if payload.is_empty() {
        return Ok((VERSION_MAX, ConsumerProtocolAssignment::default()));
    }
    decode(payload, "ConsumerProtocolAssignment")
}

fn encode<M: KafkaEncode>(
    value: &M,
    message: &'static str,
    version: i16,
) -> Result<Bytes, EncodeError> {
    let mut out = BytesMut::new();
    out.put_i16(version);
    value
        .encode_into(&mut out, ApiVersion::new(version))
        .map_err(|source| EncodeError::Unrepresentable {
            message,
            version,
            source,
        })?;
    Ok(out.freeze())
}

fn decode<M: KafkaDecode>(
    mut payload: Bytes,
    message: &'static str,
) -> Result<(i16, M), DecodeError> {
    let Some(prefix) = payload.first_chunk::<2>() else {
        let source = ReadError::Truncated {
            at: 0,
            needed: 2,
            left: payload.len(),
        };
        return Err(DecodeError::Malformed {
            message,
            version: 0,
            source,
        });
    };
    let version = i16::from_be_bytes(*prefix);
    let malformed = |source| DecodeError::MalformedMessage {
        message,
        version,
        source,
    };
    let body = payload.split_off(2);
    let limits = limits(body.len(), ELEMENTS_MAX);
    let mut decoder = Decoder::new(body, limits).map_err(malformed)?;
    let known = ApiVersion::new(version.min(VERSION_MAX));
    let value = M::decode(&mut decoder, known).map_err(malformed)?;
    // Some clients pad, newer ones append; Kafka ignores both.
    Ok((version, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message;

    fn subscription() -> ConsumerProtocolSubscription {
        message!(ConsumerProtocolSubscription {
            topics: vec!["orders".into()]
        })
    }

    #[test]
    fn a_subscription_is_read_in_the_version_it_was_written() {
        for version in 0..=VERSION_MAX {
            let payload = encode_subscription(&subscription(), version).unwrap();
            assert_eq!(
                decode_subscription(payload).unwrap(),
                (version, subscription())
            );
        }
    }

    #[test]
    fn a_subscription_from_the_future_is_read_as_far_as_we_know() {
        let mut payload = encode_subscription(&subscription(), VERSION_MAX)
            .unwrap()
            .to_vec();
        payload[1] = 9;
        payload.extend([1, 2, 3]);
        let (version, read) = decode_subscription(Bytes::from(payload)).unwrap();
        assert_eq!((version, read), (9, subscription()));
    }

    #[test]
    fn a_member_without_partitions_may_get_no_bytes() {
        let (_, assignment) = decode_assignment(Bytes::new()).unwrap();
        assert!(assignment.assigned_partitions.is_empty());
        assert!(decode_subscription(Bytes::new()).is_err());
        assert!(decode_subscription(Bytes::from_static(&[0, 0, 0x7f, 0xff, 0xff, 0xff])).is_err());
    }
}
