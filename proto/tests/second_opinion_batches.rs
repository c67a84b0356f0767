//! Record batches against an independent implementation, in both directions and with every codec.

// Helpers of tests say what they expect by panicking, as tests do.
#![allow(clippy::unwrap_used)]

use bytes::{Bytes, BytesMut};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression as TheirCompression, NO_PARTITION_LEADER_EPOCH, Record as TheirRecord,
    RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use logd_proto::record_batch::{
    BatchBuilder, BatchLimits, Compression, RecordRules, Records, validate, validate_records,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

const CODECS: [(Compression, TheirCompression); 5] = [
    (Compression::None, TheirCompression::None),
    (Compression::Gzip, TheirCompression::Gzip),
    (Compression::Snappy, TheirCompression::Snappy),
    (Compression::Lz4, TheirCompression::Lz4),
    (Compression::Zstd, TheirCompression::Zstd),
];

#[derive(Clone, Debug)]
struct Wanted {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

fn wanted() -> impl Strategy<Value = Vec<Wanted>> {
    let bytes = || any::<Option<Vec<u8>>>();
    let headers = btree_map("[a-z]{1,9}", bytes(), 0..4);
    let record = (0i64..4_000_000_000_000, bytes(), bytes(), headers);
    let record = record.prop_map(|(timestamp, key, value, headers)| {
        let headers = headers.into_iter().collect();
        Wanted {
            timestamp,
            key,
            value,
            headers,
        }
    });
    vec(record, 1..30)
}

fn their_record(wanted: &Wanted, offset: i64) -> TheirRecord {
    let headers: IndexMap<StrBytes, Option<Bytes>> = wanted
        .headers
        .iter()
        .map(|(name, value)| {
            (
                StrBytes::from_string(name.clone()),
                value.clone().map(Bytes::from),
            )
        })
        .collect();
    TheirRecord {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: NO_PARTITION_LEADER_EPOCH,
        producer_id: 7,
        producer_epoch: 2,
        timestamp_type: TimestampType::Creation,
        offset,
        sequence: 100 + offset as i32,
        timestamp: wanted.timestamp,
        key: wanted.key.clone().map(Bytes::from),
        value: wanted.value.clone().map(Bytes::from),
        headers,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn they_read_what_we_write(records in wanted()) {
        for (codec, _) in CODECS {
            let mut builder = BatchBuilder::new().compression(codec).producer(7, 2, 100);
            for record in &records {
                let headers: Vec<(&str, Option<&[u8]>)> =
                    record.headers.iter().map(|(n, v)| (n.as_str(), v.as_deref())).collect();
                let (key, value) = (record.key.as_deref(), record.value.as_deref());
                builder.push(record.timestamp, key, value, &headers).unwrap();
            }
            let read = RecordBatchDecoder::decode(&mut builder.build().unwrap()).unwrap();
            let expected: Vec<TheirRecord> =
                records.iter().zip(0..).map(|(record, n)| their_record(record, n)).collect();
            prop_assert_eq!(read.records, expected, "{:?}", codec);
        }
    }

    #[test]
    fn we_read_what_they_write(records in wanted()) {
        let theirs: Vec<TheirRecord> =
            records.iter().zip(0..).map(|(record, n)| their_record(record, n)).collect();
        for (codec, compression) in CODECS {
            let mut batch = BytesMut::new();
            let options = RecordEncodeOptions { version: 2, compression };
            RecordBatchEncoder::encode(&mut batch, &theirs, &options).unwrap();
            let batch = batch.freeze();
            let header = validate(&batch, &BatchLimits::size(1 << 20)).unwrap();
            prop_assert_eq!(header.attributes.compression(), Some(codec));
            prop_assert_eq!((header.producer_id, header.base_sequence), (7, 100));
            check_records(&batch, &records);
        }
    }
}

fn check_records(batch: &Bytes, expected: &[Wanted]) {
    let rules = RecordRules {
        keys_required: false,
        timestamp_max: i64::MAX,
        timestamp_min: 0,
        output_bytes_max: 1 << 20,
    };
    let summary = validate_records(batch, &rules).unwrap();
    let newest = expected.iter().map(|record| record.timestamp).max();
    assert_eq!(Some(summary.max_timestamp), newest);
    let records = Records::open(batch, 1 << 20).unwrap();
    assert_eq!(records.iter().count(), expected.len());
    for (record, expected) in records.iter().zip(expected) {
        let record = record.unwrap();
        assert_eq!(record.timestamp, expected.timestamp);
        assert_eq!(record.key, expected.key.as_deref());
        assert_eq!(record.value, expected.value.as_deref());
        let headers: Vec<(&[u8], Option<&[u8]>)> = record
            .headers
            .iter()
            .map(|header| (header.key, header.value))
            .collect();
        let wanted: Vec<(&[u8], Option<&[u8]>)> = expected
            .headers
            .iter()
            .map(|(n, v)| (n.as_bytes(), v.as_deref()))
            .collect();
        assert_eq!(headers, wanted);
    }
}
