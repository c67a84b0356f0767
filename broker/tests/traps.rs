//! What re-implementations of the protocol get wrong, asked of a running broker. The numbers are those of
//! the design's list; other traps are tests of the part that falls into them.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use bytes::Bytes;
use common::Broker;
use common::requests::*;
use logd_proto::ErrorCode;
use logd_proto::api::encode_request;
use logd_proto::message;
use logd_proto::messages::*;
use logd_proto::record_batch::batches;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TOPIC: &str = "traps";

const METADATA_VERSION: i16 = 9;

async fn described(
    socket: &mut tokio::net::TcpStream,
    topic: &str,
    auto_create: bool,
) -> MetadataResponse {
    let topic = message!(metadata_request::MetadataRequestTopic {
        name: Some(topic.into())
    });
    let request = message!(MetadataRequest {
        topics: Some(vec![topic]),
        allow_auto_topic_creation: auto_create
    });
    ask(socket, &request, METADATA_VERSION).await
}

#[tokio::test]
async fn trap_07_a_topic_comes_of_itself_only_where_broker_client_and_name_allow_it() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    let refused = described(&mut socket, TOPIC, false).await;
    let unknown = ErrorCode::UnknownTopicOrPartition.code();
    assert_eq!(refused.topics[0].error_code, unknown);
    let invalid = described(&mut socket, "no spaces", true).await;
    let invalid = invalid.topics[0].error_code;
    assert_eq!(invalid, ErrorCode::InvalidTopic.code());
    let all = message!(MetadataRequest {
        topics: None,
        allow_auto_topic_creation: true
    });
    let all = ask(&mut socket, &all, METADATA_VERSION).await;
    assert!(all.topics.is_empty(), "asking for all creates none");
    let none = message!(MetadataRequest {
        topics: Some(Vec::new())
    });
    assert!(
        ask(&mut socket, &none, METADATA_VERSION)
            .await
            .topics
            .is_empty()
    );
    for _ in 0..200 {
        let created = described(&mut socket, TOPIC, true).await;
        if created.topics[0].error_code == 0 {
            assert_eq!(created.topics[0].partitions[0].leader_id, 1);
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the topic does not come");
}

#[tokio::test]
async fn trap_20_pipelined_batches_are_appended_and_answered_in_order() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 1, &[]).await;
    let mut frames = Vec::new();
    for n in 0..50 {
        let request = produce(TOPIC, -1, 30_000, vec![batch(n)]);
        let frame = encode_request(&request, PRODUCE_VERSION, n as i32, None);
        frames.extend_from_slice(&frame.expect("it encodes").to_bytes());
    }
    socket.write_all(&frames).await.expect("sent");
    for n in 0..50 {
        let length = socket.read_i32().await.expect("an answer");
        let mut answer = vec![0; length as usize];
        socket.read_exact(&mut answer).await.expect("whole");
        let (correlation, response) = logd_proto::api::decode_response::<ProduceRequest>(
            Bytes::from(answer),
            PRODUCE_VERSION,
        )
        .expect("it decodes");
        let part = &response.responses[0].partition_responses[0];
        assert_eq!(
            (correlation, part.error_code, part.base_offset),
            (n, 0, i64::from(n))
        );
    }
}

#[tokio::test]
async fn trap_21_acks_of_nothing_get_no_answer_and_what_cannot_be_told_ends_the_connection() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 1, &[]).await;
    let strange = produced(&mut socket, &produce(TOPIC, 2, 30_000, vec![batch(1)])).await;
    assert_eq!(strange[0].error_code, ErrorCode::InvalidRequiredAcks.code());

    let silent = produce(TOPIC, 0, 30_000, vec![batch(1)]);
    let frame = encode_request(&silent, PRODUCE_VERSION, 1, None).expect("it encodes");
    socket.write_all(&frame.to_bytes()).await.expect("sent");
    // The next answer on the connection is the next request's.
    let heard = produced(&mut socket, &produce(TOPIC, 1, 30_000, vec![batch(2)])).await;
    assert_eq!((heard[0].error_code, heard[0].base_offset), (0, 1));

    let nowhere = produce("nowhere", 0, 30_000, vec![batch(1)]);
    let frame = encode_request(&nowhere, PRODUCE_VERSION, 2, None).expect("it encodes");
    socket.write_all(&frame.to_bytes()).await.expect("sent");
    let ended = socket.read(&mut [0; 16]).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

/// Every start is an election with an entry of its own in the log: it takes no offset.
#[tokio::test]
async fn trap_28_offsets_have_no_gaps_whatever_raft_writes_between() {
    let mut broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 1, &[]).await;
    for n in 0..4 {
        let mut socket = broker.connect().await;
        let taken = produced(&mut socket, &produce(TOPIC, -1, 30_000, vec![batch(n)])).await;
        assert_eq!((taken[0].error_code, taken[0].base_offset), (0, n));
        broker.kill_and_restart();
    }
    let mut socket = broker.connect().await;
    let read = ask(&mut socket, &fetch(TOPIC, 0, 1, 0), FETCH_VERSION).await;
    let records = read.responses[0].partitions[0].records.clone();
    let offsets: Vec<i64> = batches(records.expect("records"))
        .map(|b| b.expect("a batch").0.base_offset)
        .collect();
    assert_eq!(offsets, [0, 1, 2, 3]);
}
