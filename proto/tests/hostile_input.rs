//! Bytes that nobody meant well with: into the frame splitter, into every decoder in every version,
//! into batches. Nothing panics, nothing takes more memory or time than its size deserves.

// Helpers of tests say what they expect by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_wire_core::{ApiVersion, DecodeLimits, KafkaDecode, KafkaEncode};
use logd_proto::api::{ApiKey, CONTROL_BYTES_MAX, DecodeError, Request, decode_response};
use logd_proto::frame::{FRAME_BYTES_MAX, split_frame, split_request};
use logd_proto::messages::{self, RetainedSize};
use logd_proto::offsets_topic::{GroupValue, Key, OffsetValue};
use logd_proto::record_batch::{
    BatchBuilder, BatchLimits, Compression, RecordRules, Records, batches, decompress, validate,
    validate_records,
};
use logd_proto::{consumer_protocol, fetch, produce};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::FileFailurePersistence;

use support::every_api;

fn config(cases: u32) -> ProptestConfig {
    let persistence = FileFailurePersistence::WithSource("regressions");
    let mut config = ProptestConfig::with_cases(cases);
    config.failure_persistence = Some(Box::new(persistence));
    config
}

/// Decoded values may be this many times larger than their bytes: the smallest element of the
/// generated messages takes two bytes on the wire and a structure of some eighty in memory, which a
/// growing vector may double.
const GROWTH_MAX: usize = 100;

/// Decodes as a broker and as a client would; a request that decodes must encode to a fixed point.
fn throw_at_every_decoder(body: &Bytes) {
    macro_rules! visit {
        ($api:ident, $request:ident, $response:ident, $ours:ident) => {
            for version in ApiKey::$api.versions() {
                let _refused_or_not = Request::decode(ApiKey::$api, version, body.clone());
                throw_at::<messages::$request>(body, version);
                let answer = decode_response::<messages::$request>(body.clone(), version);
                if let Ok((_, response)) = answer {
                    let bytes = response.retained_size().heap_bytes();
                    assert!(
                        bytes <= body.len() * GROWTH_MAX,
                        "{bytes} of {}",
                        body.len()
                    );
                }
            }
        };
    }
    every_api!(visit);
}

fn throw_at<M: KafkaDecode + KafkaEncode + RetainedSize + PartialEq + std::fmt::Debug>(
    body: &Bytes,
    version: i16,
) {
    let version = ApiVersion::new(version);
    let limits = DecodeLimits::default();
    let Ok(value) = M::decode_from_bytes(body.clone(), version, limits) else {
        return;
    };
    let bytes = value.retained_size().heap_bytes();
    assert!(
        bytes <= body.len() * GROWTH_MAX,
        "{bytes} of {}: {value:?}",
        body.len()
    );
    let mut again = bytes::BytesMut::new();
    value.encode_into(&mut again, version).unwrap();
    assert_eq!(
        M::decode_from_bytes(again.freeze(), version, limits),
        Ok(value)
    );
}

fn throw_at_the_rest(bytes: &Bytes) {
    let _ = split_request(bytes.clone());
    let _ = Key::decode(bytes.clone());
    let _ = OffsetValue::decode(bytes.clone());
    let _ = GroupValue::decode(bytes.clone());
    let _ = consumer_protocol::decode_subscription(bytes.clone());
    let _ = consumer_protocol::decode_assignment(bytes.clone());
}

fn recorded_requests() -> Vec<Bytes> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let folders = ["kcat", "java", "kafka-serialisers"].map(|folder| golden.join(folder));
    let files = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "request")
    });
    paths
        .iter()
        .map(|path| Bytes::from(std::fs::read(path).unwrap()).slice(4..))
        .collect()
}

#[test]
fn four_bytes_that_announce_a_billion_entries_are_an_error() {
    for claim in [
        1_000_000_000u32.to_be_bytes(),
        [0x7f, 0xff, 0xff, 0xff],
        [0xff, 0xff, 0xff, 0x07],
    ] {
        let body = Bytes::copy_from_slice(&claim);
        throw_at_every_decoder(&body);
        let metadata = Request::decode(ApiKey::Metadata, 1, body.clone());
        assert!(metadata.is_err(), "{metadata:?}");
    }
    // The same claim where Produce and Fetch have their topics.
    let produce = [
        &[0xff, 0xff, 0, 1, 0, 0, 0, 0][..],
        &1_000_000_000u32.to_be_bytes(),
    ]
    .concat();
    let error = produce::ProduceRequest::read(Bytes::from(produce), 3).unwrap_err();
    assert!(
        error.to_string().contains("1000000000 elements announced"),
        "{error}"
    );
    let fetch = [&[0; 17][..], &1_000_000_000u32.to_be_bytes()].concat();
    let error = fetch::FetchRequest::read(Bytes::from(fetch), 4).unwrap_err();
    assert!(
        error.to_string().contains("1000000000 elements announced"),
        "{error}"
    );
}

#[test]
fn a_request_without_records_may_not_be_as_long_as_one_with() {
    let body = Bytes::from(vec![0; CONTROL_BYTES_MAX + 1]);
    for &api in ApiKey::ALL.iter().filter(|&&api| api != ApiKey::Produce) {
        let version = *api.versions().end();
        let refused = Request::decode(api, version, body.clone());
        assert!(
            matches!(refused, Err(DecodeError::TooLarge { .. })),
            "{api:?}"
        );
    }
}

#[test]
fn the_smallest_elements_do_not_become_the_largest_memory() {
    // As many two-byte topics as a Metadata request may have.
    let count = 99_999u32;
    let mut body = vec![
        (count & 0x7f) as u8 | 0x80,
        (count >> 7) as u8 | 0x80,
        (count >> 14) as u8,
    ];
    body.extend([1, 0].repeat(count as usize - 1));
    body.extend([0, 0, 0, 0]);
    let body = Bytes::from(body);
    let decoded = Request::decode(ApiKey::Metadata, 9, body.clone()).unwrap();
    let Request::Metadata(request) = decoded else {
        panic!("{:?}", decoded.api())
    };
    assert!(request.retained_size().heap_bytes() <= body.len() * GROWTH_MAX);
}

#[test]
fn every_length_of_a_real_request_is_lied_about() {
    for request in recorded_requests() {
        let (header, body) = split_request(request).unwrap();
        for at in 0..body.len() {
            for lie in [
                &[0x7f, 0xff, 0xff, 0xff][..],
                &[0xff, 0xff, 0xff, 0xff, 0x0f],
                &[0x80],
            ] {
                let mut forged = body.to_vec();
                let end = (at + lie.len()).min(forged.len());
                forged[at..end].copy_from_slice(&lie[..end - at]);
                let _ = Request::decode(header.api, header.version, Bytes::from(forged));
            }
        }
    }
}

#[test]
fn a_request_that_ends_too_soon_is_refused_wherever_it_ends() {
    for request in recorded_requests() {
        let (header, body) = split_request(request).unwrap();
        for end in 0..body.len() {
            let cut = Request::decode(header.api, header.version, body.slice(..end));
            // Some bodies are complete without their last field being present; none of these is.
            assert!(
                cut.is_err(),
                "{:?} v{} cut at {end}",
                header.api,
                header.version
            );
        }
    }
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn arbitrary_bytes_reach_every_decoder(body in vec(any::<u8>(), 0..300)) {
        let body = Bytes::from(body);
        throw_at_every_decoder(&body);
        throw_at_the_rest(&body);
    }

    /// Small numbers look like lengths, so these get further.
    #[test]
    fn plausible_bytes_reach_every_decoder(body in vec(0u8..4, 0..300)) {
        let body = Bytes::from(body);
        throw_at_every_decoder(&body);
        throw_at_the_rest(&body);
    }
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn frames_are_the_same_however_they_arrive(
        frames in vec(vec(any::<u8>(), 1..50), 0..8),
        chunk_bytes in 1usize..20,
    ) {
        let size = |frame: &Vec<u8>| (frame.len() as u32).to_be_bytes();
        let stream: Vec<u8> =
            frames.iter().flat_map(|frame| [&size(frame)[..], frame].concat()).collect();
        let mut received = Vec::new();
        let mut buffered = Vec::new();
        for chunk in stream.chunks(chunk_bytes) {
            buffered.extend_from_slice(chunk);
            let mut bytes = Bytes::from(buffered);
            while let Some(frame) = split_frame(&mut bytes, FRAME_BYTES_MAX).unwrap() {
                received.push(frame.to_vec());
            }
            buffered = bytes.to_vec();
        }
        prop_assert_eq!(received, frames);
        prop_assert!(buffered.is_empty());
    }

    #[test]
    fn arbitrary_streams_are_frames_or_errors(stream in vec(any::<u8>(), 0..200)) {
        let mut bytes = Bytes::from(stream);
        while let Ok(Some(frame)) = split_frame(&mut bytes, FRAME_BYTES_MAX) {
            let _ = split_request(frame);
        }
    }

    #[test]
    fn mutated_requests_are_requests_or_errors(
        which: Index,
        mutations in vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        let requests = recorded_requests();
        let mut request = which.get(&requests).to_vec();
        for (at, byte) in mutations {
            let at = at.index(request.len());
            request[at] = byte;
        }
        if let Ok((header, body)) = split_request(Bytes::from(request)) {
            let _ = Request::decode(header.api, header.version, body);
        }
    }
}

// ---- Record batches -------------------------------------------------------------------------

const OUTPUT_BYTES_MAX: usize = 1 << 16;

const RULES: RecordRules = RecordRules {
    keys_required: false,
    timestamp_max: i64::MAX,
    timestamp_min: i64::MIN,
    output_bytes_max: OUTPUT_BYTES_MAX,
};

fn throw_at_batches(bytes: &Bytes) {
    let accepted = validate(bytes, &BatchLimits::size(1 << 20));
    let _ = validate_records(bytes, &RULES);
    for batch in batches(bytes.clone()) {
        let _ = batch;
    }
    let Ok(records) = Records::open(bytes, OUTPUT_BYTES_MAX) else {
        return;
    };
    let mut count = 0i64;
    for record in records.iter().flatten() {
        count += 1;
        assert!(record.key.map_or(0, <[u8]>::len) <= OUTPUT_BYTES_MAX.max(bytes.len()));
        assert_eq!(record.headers.iter().count(), record.headers.len());
    }
    if let Ok(header) = accepted {
        assert!(count <= i64::from(header.record_count));
    }
}

/// A batch whose checksum is right, whatever else is done to it.
fn sign(mut batch: Vec<u8>) -> Bytes {
    if batch.len() >= 21 {
        let crc = crc_fast::crc32_iscsi(&batch[21..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
    }
    Bytes::from(batch)
}

fn codec() -> impl Strategy<Value = Compression> {
    prop::sample::select(Compression::ALL.to_vec())
}

proptest! {
    #![proptest_config(config(512))]

    #[test]
    fn whatever_is_built_is_read_back(
        codec in codec(),
        records in vec(
            (any::<i64>(), any::<Option<Vec<u8>>>(), any::<Option<Vec<u8>>>(), "[a-z]{0,9}"),
            1..20,
        ),
    ) {
        let mut builder = BatchBuilder::new().compression(codec);
        let timestamp = |t: i64| t >> 2;
        for (t, key, value, name) in &records {
            let headers = [(name.as_str(), key.as_deref())];
            builder.push(timestamp(*t), key.as_deref(), value.as_deref(), &headers).unwrap();
        }
        let batch = builder.build().unwrap();
        prop_assert!(validate(&batch, &BatchLimits::size(1 << 20)).is_ok());
        let read = Records::open(&batch, 1 << 20).unwrap();
        prop_assert_eq!(read.iter().count(), records.len());
        for (record, (t, key, value, name)) in read.iter().zip(&records) {
            let record = record.unwrap();
            prop_assert_eq!(record.timestamp, timestamp(*t));
            prop_assert_eq!((record.key, record.value), (key.as_deref(), value.as_deref()));
            let header = record.headers.iter().next().unwrap();
            prop_assert_eq!((header.key, header.value), (name.as_bytes(), key.as_deref()));
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_batch(bytes in vec(any::<u8>(), 0..200)) {
        throw_at_batches(&Bytes::from(bytes));
    }

    #[test]
    fn mutated_batches_with_right_checksums_are_read_or_refused(
        codec in codec(),
        count in 1usize..20,
        mutations in vec((any::<Index>(), any::<u8>()), 1..6),
        cut: Option<Index>,
    ) {
        let mut builder = BatchBuilder::new().compression(codec);
        for n in 0..count {
            let value = vec![n as u8; 40];
            builder.push(n as i64, Some(b"key"), Some(&value), &[("h", Some(b"v"))]).unwrap();
        }
        let mut batch = builder.build().unwrap().to_vec();
        for (at, byte) in mutations {
            let at = at.index(batch.len());
            batch[at] = byte;
        }
        if let Some(cut) = cut {
            batch.truncate(cut.index(batch.len()));
        }
        // Magic stays, or nothing behind it would be reached.
        if let Some(magic) = batch.get_mut(16) {
            *magic = 2;
        }
        throw_at_batches(&sign(batch));
    }

    #[test]
    fn decompression_of_anything_stops_at_the_limit(
        codec in codec(),
        prefix in prop::sample::select(vec![
            vec![],
            vec![0x1f, 0x8b, 0x08, 0, 0, 0, 0, 0, 0, 0],
            b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec(),
            vec![0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82],
            vec![0x28, 0xb5, 0x2f, 0xfd],
        ]),
        bytes in vec(any::<u8>(), 0..200),
        limit in 0usize..1000,
    ) {
        let input = [prefix, bytes].concat();
        if let Ok(output) = decompress(codec, &input, limit) {
            prop_assert!(output.len() <= limit);
        }
    }
}

#[test]
fn a_bomb_in_a_batch_costs_its_limit_and_no_more_time_than_that() {
    for codec in Compression::ALL {
        let mut builder = BatchBuilder::new().compression(codec);
        builder
            .push(0, None, Some(&vec![0; 32 << 20]), &[])
            .unwrap();
        let batch = builder.build().unwrap();
        let started = Instant::now();
        let opened = Records::open(&batch, OUTPUT_BYTES_MAX);
        // Uncompressed records need no output.
        assert_eq!(opened.is_ok(), codec == Compression::None, "{codec:?}");
        assert!(started.elapsed() < Duration::from_secs(2), "{codec:?}");
    }
}

#[test]
fn two_billion_records_in_no_bytes_are_counted_by_what_is_there() {
    for codec in Compression::ALL {
        let mut builder = BatchBuilder::new().compression(codec);
        builder.push(0, None, None, &[]).unwrap();
        let mut batch = builder.build().unwrap().to_vec();
        batch[57..61].copy_from_slice(&i32::MAX.to_be_bytes());
        batch[23..27].copy_from_slice(&(i32::MAX - 1).to_be_bytes());
        let batch = sign(batch);
        // Only decompression can tell that a header which agrees with itself is lying.
        let accepted = validate(&batch, &BatchLimits::size(1 << 20)).is_ok();
        assert_eq!(accepted, codec != Compression::None, "{codec:?}");
        let started = Instant::now();
        assert!(validate_records(&batch, &RULES).is_err());
        assert!(started.elapsed() < Duration::from_secs(1));
    }
}

#[test]
fn bytes_behind_a_request_are_ignored_as_kafka_does() {
    // librdkafka 2.12 leaves three behind a Metadata request for all topics in version 13.
    let request = logd_proto::message!(messages::MetadataRequest { topics: None });
    let mut body = logd_proto::api::encode_request(&request, 13, 1, None)
        .expect("it encodes")
        .to_bytes()
        .to_vec();
    body.extend([0, 0, 0]);
    let (header, rest) = split_request(Bytes::from(body).slice(4..)).expect("a header");
    assert!(Request::decode(header.api, header.version, rest).is_ok());
}

/// A frame as large as Produce may send, of the smallest topics there are: it would become gigabytes.
#[test]
fn a_produce_of_nothing_but_empty_topics_is_refused_before_it_is_built() {
    // No transaction, acks -1, no time, four million topics without a name or partitions.
    let mut body = vec![0, 0xff, 0xff, 0, 0, 0, 0, 0x81, 0x92, 0xf4, 0x01];
    body.resize(body.len() + 4 * 4_000_000, 1);
    let begun = Instant::now();
    let refused = produce::ProduceRequest::read(Bytes::from(body), 9).unwrap_err();
    assert!(refused.to_string().contains("elements"), "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(1));
}
