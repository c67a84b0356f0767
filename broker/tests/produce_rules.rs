//! What a broker lets into a log, told by requests that no honest client sends.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use bytes::{Bytes, BytesMut};
use common::Broker;
use common::requests::*;
use logd_proto::ErrorCode;
use logd_proto::api::encode_request;
use logd_proto::message;
use logd_proto::messages::*;
use logd_proto::record_batch::{
    BatchBuilder, Compression, HEADER_BYTES, Records, with_max_timestamp,
};

const TOPIC: &str = "rules";

/// A batch whose checksum is right and whose only record is not: its length says more than there is.
fn poisoned() -> Bytes {
    let mut bytes = BytesMut::from(&batch(1)[..]);
    bytes[HEADER_BYTES] = 0x7e;
    with_max_timestamp(&bytes, 1)
}

#[tokio::test]
async fn a_record_that_no_consumer_could_read_is_refused_and_spoils_nothing_beside_it() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 2, &[]).await;
    let request = produce(TOPIC, -1, 30_000, vec![poisoned(), batch(1)]);
    let answers = produced(&mut socket, &request).await;
    assert_eq!(answers[0].error_code, ErrorCode::InvalidRecord.code());
    assert!(
        answers[0]
            .error_message
            .as_ref()
            .is_some_and(|m| m.contains("record 0"))
    );
    assert_eq!((answers[1].error_code, answers[1].base_offset), (0, 0));
}

#[tokio::test]
async fn a_header_that_lies_about_its_latest_time_does_not_lead_look_ups_astray() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 1, &[]).await;
    let lie = |bytes: Bytes, timestamp| with_max_timestamp(&bytes, timestamp);
    for lying in [lie(batch(1_000), 9_000), lie(batch(5_000), 0)] {
        let answers = produced(&mut socket, &produce(TOPIC, -1, 30_000, vec![lying])).await;
        assert_eq!(answers[0].error_code, 0, "{:?}", answers[0].error_message);
    }
    for (timestamp, offset) in [(1_000, 0), (1_001, 1), (5_000, 1), (5_001, -1), (-3, 1)] {
        let found = listed(&mut socket, TOPIC, timestamp, 7).await;
        assert_eq!(found.offset, offset, "at {timestamp}");
    }
}

#[tokio::test]
async fn a_time_limit_of_nothing_is_no_refusal() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 1, &[]).await;
    for (acks, offset) in [(1, 0), (-1, 1)] {
        let answers = produced(&mut socket, &produce(TOPIC, acks, 0, vec![batch(1)])).await;
        assert_eq!(
            (answers[0].error_code, answers[0].base_offset),
            (0, offset),
            "acks {acks}"
        );
    }
    // Without an answer the next request's comes first, on a connection that is still open.
    let silent = encode_request(
        &produce(TOPIC, 0, 0, vec![batch(1)]),
        PRODUCE_VERSION,
        8,
        None,
    );
    let silent = silent.expect("it encodes").to_bytes();
    tokio::io::AsyncWriteExt::write_all(&mut socket, &silent)
        .await
        .expect("sent");
    let answers = produced(&mut socket, &produce(TOPIC, 1, 0, vec![batch(1)])).await;
    assert_eq!((answers[0].error_code, answers[0].base_offset), (0, 3));
}

#[tokio::test]
async fn the_groups_topic_has_its_shape_whoever_asks_first_and_takes_no_records_from_clients() {
    let broker = Broker::start_with(&[("LOGD_TOPICS__OFFSETS_PARTITIONS", "3")]);
    let mut socket = broker.connect().await;
    let wanted = message!(metadata_request::MetadataRequestTopic {
        name: Some("__consumer_offsets".into())
    });
    let request = message!(MetadataRequest {
        topics: Some(vec![wanted]),
        allow_auto_topic_creation: true
    });
    let found = ask(&mut socket, &request, 9).await;
    let topic = &found.topics[0];
    assert_eq!((topic.error_code, topic.partitions.len()), (0, 3));
    assert!(topic.is_internal);

    let request = produce("__consumer_offsets", -1, 30_000, vec![batch(1)]);
    let answers = produced(&mut socket, &request).await;
    assert_eq!(answers[0].error_code, ErrorCode::InvalidTopic.code());
}

#[tokio::test]
async fn trap_19_a_batch_sent_again_is_answered_as_the_first_time_also_after_kill_9() {
    let mut broker = Broker::start();
    let mut socket = broker.connect().await;
    let stamped = [("message.timestamp.type", "LogAppendTime")];
    create(&mut socket, TOPIC, 1, &stamped).await;
    let init = message!(InitProducerIdRequest {
        transactional_id: None,
        producer_id: -1,
        producer_epoch: -1
    });
    let id = ask(&mut socket, &init, 4).await.producer_id;
    let numbered = |epoch: i16, first: i32| {
        let mut batch = BatchBuilder::new().producer(id, epoch, first);
        batch.push(1, None, Some(b"value"), &[]).expect("it fits");
        produce(TOPIC, -1, 30_000, vec![batch.build().expect("it builds")])
    };
    let mut first_time = Vec::new();
    for first in 0..3 {
        first_time.push(produced(&mut socket, &numbered(0, first)).await.remove(0));
    }
    for restart in [false, true] {
        if restart {
            broker.kill_and_restart();
            socket = broker.connect().await;
        }
        for (first, before) in (0..3).zip(&first_time) {
            let again = &produced(&mut socket, &numbered(0, first)).await[0];
            assert_eq!(
                (again.error_code, again.base_offset),
                (0, before.base_offset)
            );
            assert_eq!(again.log_append_time_ms, before.log_append_time_ms);
        }
        let gap = &produced(&mut socket, &numbered(0, 7)).await[0];
        assert_eq!(gap.error_code, ErrorCode::OutOfOrderSequenceNumber.code());
    }
    let bumped = &produced(&mut socket, &numbered(1, 0)).await[0];
    assert_eq!((bumped.error_code, bumped.base_offset), (0, 3));
    let fenced = &produced(&mut socket, &numbered(0, 3)).await[0];
    assert_eq!(fenced.error_code, ErrorCode::InvalidProducerEpoch.code());
}

/// Trap 18: what `compression.type` does not name is kept byte for byte.
#[tokio::test]
async fn trap_18_a_topic_that_names_a_codec_stores_every_batch_in_it() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    let compressed = |codec| {
        let mut batch = BatchBuilder::new().compression(codec);
        for n in 0..100 {
            batch
                .push(1_000 + n, Some(b"key"), Some(&[b'v'; 200]), &[])
                .expect("it fits");
        }
        batch.build().expect("a batch")
    };
    let as_sent = compressed(Compression::Snappy);
    for (word, codec) in [
        ("producer", Compression::Snappy),
        ("uncompressed", Compression::None),
        ("gzip", Compression::Gzip),
        ("lz4", Compression::Lz4),
        ("zstd", Compression::Zstd),
    ] {
        create(&mut socket, word, 1, &[("compression.type", word)]).await;
        let request = produce(word, -1, 30_000, vec![as_sent.clone()]);
        let answers = produced(&mut socket, &request).await;
        assert_eq!(answers[0].error_code, 0, "{:?}", answers[0].error_message);
        let read = ask(&mut socket, &fetch(word, 0, 1, 0), FETCH_VERSION).await;
        let stored = read.responses[0].partitions[0].records.clone();
        let stored = stored.expect("a batch");
        let records = Records::open(&stored, 1 << 20).expect("it opens");
        assert_eq!(
            records.header().attributes.compression(),
            Some(codec),
            "{word}"
        );
        let last = records.iter().last().expect("a record").expect("whole");
        assert_eq!((last.offset, last.timestamp), (99, 1_099));
        assert_eq!(
            stored[HEADER_BYTES..] == as_sent[HEADER_BYTES..],
            word == "producer"
        );
    }
}

#[tokio::test]
async fn trap_22_a_batch_that_is_too_large_as_the_topic_stores_it_is_refused() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    let config = [
        ("compression.type", "uncompressed"),
        ("max.message.bytes", "1000"),
    ];
    create(&mut socket, TOPIC, 1, &config).await;
    let mut batch = BatchBuilder::new().compression(Compression::Zstd);
    batch
        .push(5, None, Some(&[7; 5_000]), &[])
        .expect("it fits");
    let batch = batch.build().expect("a batch");
    assert!(batch.len() < 1_000);
    let answers = produced(&mut socket, &produce(TOPIC, -1, 30_000, vec![batch])).await;
    assert_eq!(answers[0].error_code, ErrorCode::MessageTooLarge.code());
}
