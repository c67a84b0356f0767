//! Every message we serve, in every version, against an independent implementation of the protocol:
//! it encodes, we decode and encode again, and the bytes must be the same. Produce and Fetch, which
//! are written by hand, are compared with the generated code as well, which knows every version.

// Helpers of tests say what they expect by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages as theirs;
use kafka_protocol::protocol::{
    Decodable, Encodable, HeaderVersion, Message, Request as TheirRequest, StrBytes,
};
use kafka_wire_core::DecodeError as Null;
use kafka_wire_core::{ApiVersion, DecodeLimits, KafkaDecode, KafkaEncode};
use logd_proto::ErrorCode;
use logd_proto::api::{ApiKey, DecodeError, Request, Response, decode_response, encode_request};
use logd_proto::frame::{split_frame, split_request};
use logd_proto::messages::{self, RequestResponsePair};
use logd_proto::{fetch, produce};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use support::Inventor;
use support::by_hand::*;
use support::every_api;

const CORRELATION: i32 = 77;

fn config(cases: u32) -> ProptestConfig {
    let persistence = FileFailurePersistence::WithSource("regressions");
    let mut config = ProptestConfig::with_cases(cases);
    config.failure_persistence = Some(Box::new(persistence));
    config
}

/// A random value of their type, if this seed happens to make one.
fn invent<T: Decodable>(seed: u64, version: i16) -> Option<T> {
    T::decode(&mut Inventor::new(seed), version).ok()
}

fn with_size(frame: &BytesMut) -> Bytes {
    Bytes::from([&(frame.len() as i32).to_be_bytes()[..], frame].concat())
}

fn their_request<T: TheirRequest>(request: &T, version: i16) -> Bytes {
    let mut frame = BytesMut::new();
    let header = theirs::RequestHeader::default()
        .with_request_api_key(T::KEY)
        .with_request_api_version(version)
        .with_correlation_id(CORRELATION)
        .with_client_id(Some(StrBytes::from_static_str("them")));
    header
        .encode(&mut frame, T::header_version(version))
        .unwrap();
    request.encode(&mut frame, version).unwrap();
    with_size(&frame)
}

fn their_response<T: Encodable + HeaderVersion>(response: &T, version: i16) -> Bytes {
    let mut frame = BytesMut::new();
    let header = theirs::ResponseHeader::default().with_correlation_id(CORRELATION);
    header
        .encode(&mut frame, T::header_version(version))
        .unwrap();
    response.encode(&mut frame, version).unwrap();
    with_size(&frame)
}

/// A null where Kafka's schema allows none in that version is refused by us, as by Kafka, but not by
/// the other side. Every other disagreement is an error.
fn unless_stricter<T>(decoded: Result<T, DecodeError>) -> Option<T> {
    match decoded {
        Ok(value) => Some(value),
        Err(DecodeError::MalformedMessage {
            source: Null::NullNotAllowed { .. } | Null::NegativeLength { length: -1, .. },
            ..
        }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Their request frame, decoded by us as a broker does, and encoded again as our client does.
fn check_request<T, W>(api: ApiKey, version: i16, seed: u64) -> bool
where
    T: TheirRequest + std::fmt::Debug,
    W: RequestResponsePair + KafkaDecode,
{
    let Some(request) = invent::<T>(seed, version) else {
        return false;
    };
    let frame = their_request(&request, version);
    let body = split_frame(&mut frame.clone(), 1 << 20).unwrap().unwrap();
    let (header, body) = split_request(body).unwrap();
    assert_eq!(
        (header.api, header.version, header.correlation_id),
        (api, version, CORRELATION)
    );
    assert_eq!(header.client_id.as_deref(), Some("them"));

    let Some(decoded) = unless_stricter(Request::decode(api, version, body.clone())) else {
        return false;
    };
    assert_eq!(decoded.api(), api);
    let generated =
        W::decode_from_bytes(body, ApiVersion::new(version), DecodeLimits::default()).unwrap();
    let again = encode_request(&generated, version, CORRELATION, Some("them")).unwrap();
    assert_eq!(
        again.to_bytes(),
        frame,
        "{} v{version}: {request:?}",
        api.name()
    );
    true
}

/// Their response frame, decoded by our client, and encoded again as our broker does.
fn check_response<T, W>(
    api: ApiKey,
    version: i16,
    seed: u64,
    ours: impl FnOnce(W::Response) -> Option<Response>,
) -> bool
where
    T: Decodable + Encodable + HeaderVersion + std::fmt::Debug,
    W: RequestResponsePair,
{
    let Some(response) = invent::<T>(seed, version) else {
        return false;
    };
    let frame = their_response(&response, version);
    let decoded = decode_response::<W>(frame.slice(4..), version);
    let Some((correlation, decoded)) = unless_stricter(decoded) else {
        return false;
    };
    assert_eq!(correlation, CORRELATION);
    let Some(ours) = ours(decoded) else {
        return false;
    };
    assert_eq!(ours.api(), api);
    let again = ours.encode(version, CORRELATION).unwrap();
    assert_eq!(
        again.to_bytes(),
        frame,
        "{} v{version}: {response:?}",
        api.name()
    );
    true
}

/// How often a seed made a value: requests and responses, by API and version.
type Tally = std::collections::BTreeMap<(ApiKey, i16), (usize, usize)>;

fn check_everything(seed: u64, tally: &mut Tally) {
    macro_rules! visit {
        ($api:ident, $request:ident, $response:ident, $ours:ident) => {{
            let api = ApiKey::$api;
            let known = <theirs::$request as Message>::VERSIONS;
            for version in api
                .versions()
                .filter(|v| (known.min..=known.max).contains(v))
            {
                let entry = tally.entry((api, version)).or_default();
                entry.0 += usize::from(check_request::<theirs::$request, messages::$request>(
                    api, version, seed,
                ));
                entry.1 += usize::from(check_response::<theirs::$response, messages::$request>(
                    api, version, seed, $ours,
                ));
            }
        }};
    }
    every_api!(visit);
}

#[test]
fn every_version_of_every_api_is_compared() {
    let mut tally = Tally::new();
    for seed in 0..400 {
        check_everything(seed, &mut tally);
    }
    for ((api, version), (requests, responses)) in tally {
        assert!(
            requests >= 10 && responses >= 10,
            "{api:?} v{version}: {requests} {responses}"
        );
    }
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn both_implementations_agree_on_random_values(seed: u64) {
        check_everything(seed, &mut Tally::new());
    }
}

#[test]
fn only_the_newest_versions_are_unknown_to_the_other_side() {
    macro_rules! visit {
        ($api:ident, $request:ident, $response:ident, $ours:ident) => {{
            let newest = *ApiKey::$api.versions().end();
            let known = <theirs::$request as Message>::VERSIONS.max;
            let gap = usize::from(matches!(
                ApiKey::$api,
                ApiKey::ListOffsets
                    | ApiKey::OffsetCommit
                    | ApiKey::OffsetFetch
                    | ApiKey::DescribeLogDirs
            ));
            // These are compared with Kafka's own bytes in golden.rs.
            assert_eq!((newest - known) as usize, gap, stringify!($api));
        }};
    }
    every_api!(visit);
}

// ---- Produce and Fetch ----------------------------------------------------------------------

/// The bytes of a generated response, with the header our frames have.
fn generated_frame<M: KafkaEncode>(api: ApiKey, message: &M, version: i16) -> Bytes {
    let mut frame = BytesMut::from(&CORRELATION.to_be_bytes()[..]);
    if api.has_flexible_response_header(version) {
        frame.extend_from_slice(&[0]);
    }
    message
        .encode_into(&mut frame, ApiVersion::new(version))
        .unwrap();
    with_size(&frame)
}

proptest! {
    #![proptest_config(config(128))]

    #[test]
    fn produce_by_hand_is_the_generated_produce(seed: u64) {
        for version in ApiKey::Produce.versions() {
            if let Some(request) = invent::<theirs::ProduceRequest>(seed, version) {
                compare_produce_request(&request, version);
            }
            if let Some(response) = invent::<theirs::ProduceResponse>(seed, version) {
                let frame = their_response(&response, version);
                let decoded = decode_response::<messages::ProduceRequest>(frame.slice(4..), version);
                let Some((_, decoded)) = unless_stricter(decoded) else { continue };
                let stripped = strip_produce(decoded);
                let expected = generated_frame(ApiKey::Produce, &stripped, version);
                let ours = Response::from(produce_response(stripped));
                prop_assert_eq!(ours.encode(version, CORRELATION).unwrap().to_bytes(), expected);
            }
        }
    }

    #[test]
    fn fetch_by_hand_is_the_generated_fetch(seed: u64, record_bytes in 0usize..600) {
        for version in ApiKey::Fetch.versions() {
            if let Some(request) = invent::<theirs::FetchRequest>(seed, version) {
                compare_fetch_request(&request, version);
            }
            if let Some(response) = invent::<theirs::FetchResponse>(seed, version) {
                let frame = their_response(&response, version);
                let decoded = decode_response::<messages::FetchRequest>(frame.slice(4..), version);
                let Some((_, decoded)) = unless_stricter(decoded) else { continue };
                compare_fetch_response(strip_fetch(decoded), version, record_bytes);
            }
        }
    }
}

fn compare_produce_request(request: &theirs::ProduceRequest, version: i16) {
    let mut body = BytesMut::new();
    request.encode(&mut body, version).unwrap();
    let body = body.freeze();
    let ours = produce::ProduceRequest::read(body.clone(), version).unwrap();
    let limits = DecodeLimits::default();
    let generated =
        messages::ProduceRequest::decode_from_bytes(body.clone(), ApiVersion::new(version), limits)
            .unwrap();
    assert_eq!(ours.transactional_id, generated.transactional_id);
    assert_eq!(
        (ours.acks, ours.timeout_ms),
        (generated.acks, generated.timeout_ms)
    );
    assert_eq!(ours.topics.len(), generated.topic_data.len());
    for (ours, generated) in ours.topics.iter().zip(&generated.topic_data) {
        assert_eq!(
            (&ours.name, ours.topic_id),
            (&generated.name, generated.topic_id)
        );
        let partition =
            |p: &messages::produce_request::PartitionProduceData| produce::ProducePartition {
                index: p.index,
                records: p.records.clone(),
            };
        let expected: Vec<_> = generated.partition_data.iter().map(partition).collect();
        assert_eq!(ours.partitions, expected);
    }
}

fn compare_fetch_request(request: &theirs::FetchRequest, version: i16) {
    let mut body = BytesMut::new();
    request.encode(&mut body, version).unwrap();
    let body = body.freeze();
    let ours = fetch::FetchRequest::read(body.clone(), version).unwrap();
    let limits = DecodeLimits::default();
    let generated =
        messages::FetchRequest::decode_from_bytes(body, ApiVersion::new(version), limits).unwrap();
    let topic = |t: &messages::fetch_request::FetchTopic| fetch::FetchTopic {
        name: t.topic.clone(),
        topic_id: t.topic_id,
        partitions: t.partitions.iter().map(fetch_request_partition).collect(),
    };
    let forgotten = |t: &messages::fetch_request::ForgottenTopic| fetch::ForgottenTopic {
        name: t.topic.clone(),
        topic_id: t.topic_id,
        partitions: t.partitions.clone(),
    };
    let replica_id = match version {
        15.. => generated.replica_state.replica_id,
        _ => generated.replica_id,
    };
    let expected = fetch::FetchRequest {
        replica_id,
        max_wait_ms: generated.max_wait_ms,
        min_bytes: generated.min_bytes,
        max_bytes: generated.max_bytes,
        isolation_level: generated.isolation_level,
        session_id: generated.session_id,
        session_epoch: generated.session_epoch,
        topics: generated.topics.iter().map(topic).collect(),
        forgotten_topics: generated
            .forgotten_topics_data
            .iter()
            .map(forgotten)
            .collect(),
        rack_id: generated.rack_id.clone(),
    };
    assert_eq!(ours, expected, "v{version}");
}

fn fetch_request_partition(p: &messages::fetch_request::FetchPartition) -> fetch::FetchPartition {
    fetch::FetchPartition {
        partition: p.partition,
        current_leader_epoch: p.current_leader_epoch,
        fetch_offset: p.fetch_offset,
        last_fetched_epoch: p.last_fetched_epoch,
        log_start_offset: p.log_start_offset,
        partition_max_bytes: p.partition_max_bytes,
    }
}

/// Gives each partition records in three slices, and expects the frame that one slice would give.
fn compare_fetch_response(mut generated: messages::FetchResponse, version: i16, bytes: usize) {
    let records = Bytes::from(vec![0xab; bytes]);
    for topic in &mut generated.responses {
        for partition in &mut topic.partitions {
            partition.records = Some(records.clone());
        }
    }
    let expected = generated_frame(ApiKey::Fetch, &generated, version);
    let mut ours = fetch_response(generated);
    let (first, second) = (bytes / 3, bytes / 3 * 2);
    for partition in ours
        .topics
        .iter_mut()
        .flat_map(|topic| &mut topic.partitions)
    {
        partition.records = vec![
            records.slice(..first),
            records.slice(first..second),
            records.slice(second..),
        ];
    }
    let frame = Response::from(ours).encode(version, CORRELATION).unwrap();
    assert_eq!(frame.len(), expected.len());
    assert_eq!(frame.to_bytes(), expected, "v{version}");
}

#[test]
fn a_fetch_of_a_gigabyte_copies_none_of_it() {
    let batch = Bytes::from(vec![1u8; 1 << 20]);
    let mut partition = fetch::FetchPartitionResponse::failed(0, ErrorCode::None);
    partition.records = vec![batch.clone(); 1024];
    let topic = fetch::FetchTopicResponse {
        partitions: vec![partition],
        ..Default::default()
    };
    let response = fetch::FetchResponse {
        topics: vec![topic],
        ..Default::default()
    };
    let frame = Response::from(response).encode(17, 1).unwrap();
    let shared = frame
        .chunks()
        .iter()
        .filter(|chunk| chunk.as_ptr() == batch.as_ptr())
        .count();
    assert_eq!(shared, 1024);
    assert!(frame.len() - (1 << 30) < 200);
}
