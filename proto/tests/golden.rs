//! Frames recorded between real clients and Apache Kafka: each is decoded, and encoded again to the
//! same bytes.

// Helpers of tests say what they expect by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use kafka_wire_core::{ApiVersion, DecodeLimits, KafkaDecode};
use logd_proto::api::{ApiKey, Request, decode_response, encode_request};
use logd_proto::frame::{FRAME_BYTES_MAX, split_frame, split_request};
use logd_proto::messages;
use logd_proto::record_batch::{
    BatchLimits, Compression, RecordRules, Records, batches, validate, validate_records,
};

use support::by_hand::*;
use support::every_api;

fn recorded(extension: &str) -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let sources = std::fs::read_dir(golden)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = sources
        .filter(|path| path.is_dir())
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

fn read_frame(path: &Path) -> (Bytes, Bytes) {
    let whole = Bytes::from(std::fs::read(path).unwrap());
    let mut rest = whole.clone();
    let frame = split_frame(&mut rest, FRAME_BYTES_MAX).unwrap().unwrap();
    assert!(rest.is_empty(), "{path:?}");
    (whole, frame)
}

/// `java/Fetch-v18-0.request` is Fetch in version 18.
fn api_and_version(path: &Path) -> (ApiKey, i16) {
    let stem = path.file_stem().unwrap().to_str().unwrap();
    let mut parts = stem.split('-');
    let name = parts.next().unwrap();
    let api = ApiKey::ALL.iter().find(|api| api.name() == name).unwrap();
    (
        *api,
        parts
            .next()
            .unwrap()
            .strip_prefix('v')
            .unwrap()
            .parse()
            .unwrap(),
    )
}

#[test]
fn requests_of_real_clients_are_understood() {
    let files = recorded("request");
    assert!(files.len() > 40, "{}", files.len());
    for path in files {
        let (whole, frame) = read_frame(&path);
        let (header, body) = split_request(frame).unwrap();
        assert_eq!((header.api, header.version), api_and_version(&path));
        let decoded = Request::decode(header.api, header.version, body.clone()).unwrap();
        assert_eq!(decoded.api(), header.api);

        let (version, client_id) = (header.version, header.client_id.as_deref());
        macro_rules! visit {
            ($api:ident, $request:ident, $response:ident, $ours:ident) => {
                if header.api == ApiKey::$api {
                    let limits = DecodeLimits::default();
                    let version_of = ApiVersion::new(version);
                    let body = body.clone();
                    let value =
                        messages::$request::decode_from_bytes(body, version_of, limits).unwrap();
                    let again = encode_request(&value, version, header.correlation_id, client_id);
                    assert_eq!(again.unwrap().to_bytes(), whole, "{path:?}");
                }
            };
        }
        every_api!(visit);
    }
}

#[test]
fn answers_of_a_real_broker_are_what_we_would_have_written() {
    let files = recorded("response");
    assert!(files.len() > 40, "{}", files.len());
    for path in files {
        let (whole, frame) = read_frame(&path);
        let (api, version) = api_and_version(&path);
        macro_rules! visit {
            ($api:ident, $request:ident, $response:ident, $ours:ident) => {
                if api == ApiKey::$api {
                    let decoded = decode_response::<messages::$request>(frame.clone(), version);
                    let (correlation, response) = decoded.unwrap();
                    let ours = $ours(response).unwrap_or_else(|| panic!("{path:?} says more"));
                    let again = ours.encode(version, correlation).unwrap();
                    assert_eq!(again.to_bytes(), whole, "{path:?}");
                }
            };
        }
        every_api!(visit);
    }
}

#[test]
fn batches_of_every_codec_from_both_families_of_clients_are_accepted() {
    let rules = RecordRules {
        keys_required: false,
        timestamp_max: i64::MAX,
        timestamp_min: 0,
        output_bytes_max: 1 << 20,
    };
    let mut seen = Vec::new();
    for path in recorded("request") {
        let (header, body) = split_request(read_frame(&path).1).unwrap();
        let Request::Produce(request) = Request::decode(header.api, header.version, body).unwrap()
        else {
            continue;
        };
        for partition in request.topics.iter().flat_map(|topic| &topic.partitions) {
            let records = partition.records.clone().unwrap();
            let limits = BatchLimits::size(1 << 20);
            let batch = validate(&records, &limits).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            let summary = validate_records(&records, &rules).unwrap();
            assert_eq!(summary.max_timestamp, batch.max_timestamp, "{path:?}");
            seen.push((header.version, batch.attributes.compression().unwrap()));
        }
    }
    for codec in [
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ] {
        assert!(
            seen.contains(&(7, codec)) && seen.contains(&(13, codec)),
            "{codec:?}"
        );
    }
    assert!(seen.contains(&(13, Compression::None)));
}

#[test]
fn the_words_that_were_piped_in_come_out() {
    for file in [
        "kcat/Produce-v7-snappy.request",
        "java/Produce-v13-snappy.request",
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(file);
        let (header, body) = split_request(read_frame(&path).1).unwrap();
        let Request::Produce(request) = Request::decode(header.api, header.version, body).unwrap()
        else {
            panic!("{file} is no produce request")
        };
        let records = request.topics[0].partitions[0].records.clone().unwrap();
        let records = Records::open(&records, 1 << 20).unwrap();
        for (record, n) in records.iter().zip(1..) {
            let expected = format!("the same words again {n}");
            assert_eq!(record.unwrap().value, Some(expected.as_bytes()), "{file}");
        }
    }
}

#[test]
fn a_fetched_answer_holds_the_batches_of_two_producers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/kcat/Fetch-v11-0.response");
    let (_, frame) = read_frame(&path);
    let (_, response) = decode_response::<messages::FetchRequest>(frame, 11).unwrap();
    let records = response.responses[0].partitions[0].records.clone().unwrap();
    let found: Vec<_> = batches(records)
        .map(|batch| batch.unwrap().0)
        .map(|header| {
            (
                header.base_offset,
                header.record_count,
                header.has_producer(),
            )
        })
        .collect();
    assert_eq!(found, [(0, 3, true), (3, 2, false)]);
}
