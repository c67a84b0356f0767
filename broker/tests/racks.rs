//! Consumers that read from a follower in their own rack (KIP-392), and what followers serve.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::members::{Member, until_seen};
use common::requests::{ask, batch, produce, produced};
use common::{PATIENCE, metric};
use logd_proto::messages::*;
use logd_proto::{ErrorCode, message};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

const TOPIC: &str = "near";
const FOLLOWER_BYTES: &str = "logd_kafka_follower_bytes_total";
const SENT_NEARER: &str = "logd_kafka_fetches_sent_nearer_total";

/// Three brokers in three racks, and a topic that the first one leads; all of its replicas keep up.
async fn three_racks() -> Vec<Member> {
    let members = Member::found_in(&["a", "b", "c"]).await;
    members[0].create(TOPIC, &[&[1, 2, 3]]).await;
    until_seen(
        "the first leads, and all keep up",
        || members[0].describe(TOPIC),
        |all| all[0].0 == 1 && all[0].2.len() == 3,
    )
    .await;
    members
}

fn config(members: &[Member]) -> ClientConfig {
    let brokers: Vec<_> = members.iter().map(|m| m.kafka.to_string()).collect();
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers.join(","))
        .set("message.timeout.ms", "60000")
        .set("topic.metadata.refresh.interval.ms", "1000");
    config
}

fn write(members: &[Member], numbers: std::ops::Range<usize>) {
    let producer: ThreadedProducer<_> = config(members).create().expect("a producer");
    for number in numbers {
        let value = number.to_string();
        let record = BaseRecord::<(), _>::to(TOPIC).payload(&value);
        producer.send(record).expect("there is room");
    }
    producer.flush(PATIENCE).expect("all is acknowledged");
}

/// Reads on until so many records came, in order.
fn read(consumer: &BaseConsumer, numbers: std::ops::Range<usize>) {
    let begun = Instant::now();
    for number in numbers {
        let value = loop {
            assert!(begun.elapsed() < PATIENCE, "waited for record {number}");
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                break message.payload().map(<[u8]>::to_vec);
            }
        };
        assert_eq!(value, Some(number.to_string().into_bytes()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_reads_from_the_follower_in_its_rack_and_from_the_leader_when_that_dies() {
    let mut members = three_racks().await;
    write(&members, 0..500);
    let near = members[1].rack.clone();
    let consumer: BaseConsumer = config(&members)
        .set("group.id", "by-hand")
        .set("enable.auto.commit", "false")
        .set("client.rack", &near)
        .create()
        .expect("a consumer");
    let mut assignment = TopicPartitionList::new();
    let added = assignment.add_partition_offset(TOPIC, 0, Offset::Beginning);
    added.expect("an assignment");
    consumer.assign(&assignment).expect("assigned");
    read(&consumer, 0..500);
    // What comes later comes from there too.
    write(&members, 500..1_000);
    read(&consumer, 500..1_000);
    assert!(metric(members[0].admin, SENT_NEARER) >= 1.0);
    assert!(metric(members[1].admin, FOLLOWER_BYTES) >= 1_000.0);
    assert!(metric(members[2].admin, FOLLOWER_BYTES) < 1.0);
    members[1].kill();
    write(&members, 1_000..1_500);
    read(&consumer, 1_000..1_500);
}

/// A fetch of one partition as a consumer in `rack` sends it.
async fn fetch_at(
    at: &Member,
    rack: &str,
    offset: i64,
    epoch: i32,
) -> fetch_response::PartitionData {
    let partition = message!(fetch_request::FetchPartition {
        partition: 0,
        fetch_offset: offset,
        current_leader_epoch: epoch,
        partition_max_bytes: 1 << 20
    });
    let topic = message!(fetch_request::FetchTopic {
        topic: TOPIC.into(),
        partitions: vec![partition]
    });
    let request = message!(FetchRequest {
        replica_id: -1,
        max_wait_ms: 0,
        min_bytes: 1,
        max_bytes: 1 << 20,
        rack_id: rack.into(),
        topics: vec![topic]
    });
    let mut socket = TcpStream::connect(at.kafka).await.expect("it accepts");
    let mut answer = ask(&mut socket, &request, 12).await;
    answer.responses.remove(0).partitions.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_serves_what_is_committed_and_judges_offsets_and_epochs_as_a_leader_does() {
    let members = three_racks().await;
    let (leader, follower) = (&members[0], &members[1]);
    let mut socket = TcpStream::connect(leader.kafka).await.expect("it accepts");
    for _ in 0..3 {
        let answers = produced(&mut socket, &produce(TOPIC, -1, 30_000, vec![batch(1)])).await;
        assert_eq!(answers[0].error_code, 0);
    }
    let rack = follower.rack.as_str();
    let at_end = until_seen(
        "the follower knows that all is committed",
        || fetch_at(follower, rack, 3, -1),
        |p| p.high_watermark == 3,
    )
    .await;
    let bytes = |p: &fetch_response::PartitionData| p.records.as_ref().map_or(0, |r| r.len());
    assert_eq!((at_end.error_code, bytes(&at_end)), (0, 0));
    let records = fetch_at(follower, rack, 1, -1).await;
    assert_eq!((records.error_code, records.log_start_offset), (0, 0));
    assert!(bytes(&records) > 0);
    let out_of_range = ErrorCode::OffsetOutOfRange.code();
    for offset in [-1, 4] {
        assert_eq!(
            fetch_at(follower, rack, offset, -1).await.error_code,
            out_of_range
        );
    }
    let later = fetch_at(follower, rack, 0, i32::MAX).await;
    assert_eq!(later.error_code, ErrorCode::UnknownLeaderEpoch.code());
    let earlier = fetch_at(follower, rack, 0, 0).await;
    assert_eq!(earlier.error_code, ErrorCode::FencedLeaderEpoch.code());
    assert_eq!(earlier.current_leader.leader_id, 1);
    // Whoever names no rack was not sent here: it is told where the leader is.
    let lost = fetch_at(follower, "", 0, -1).await;
    assert_eq!(lost.error_code, ErrorCode::NotLeaderOrFollower.code());
    // The leader sends whoever stands beside a follower there, without records, and serves the others.
    let sent = fetch_at(leader, rack, 0, -1).await;
    assert_eq!((sent.preferred_read_replica, bytes(&sent)), (2, 0));
    assert_eq!(sent.high_watermark, 3);
    for elsewhere in ["nowhere", "", leader.rack.as_str()] {
        let served = fetch_at(leader, elsewhere, 0, -1).await;
        assert_eq!(served.preferred_read_replica, -1, "{elsewhere}");
        assert!(bytes(&served) > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_sent_to_a_follower_that_died_and_one_without_a_leader_sends_them_away() {
    let mut members = three_racks().await;
    let mut socket = TcpStream::connect(members[0].kafka)
        .await
        .expect("it accepts");
    let answers = produced(&mut socket, &produce(TOPIC, -1, 30_000, vec![batch(1)])).await;
    assert_eq!(answers[0].error_code, 0);
    let racks: Vec<_> = members.iter().map(|m| m.rack.clone()).collect();
    until_seen(
        "the leader sends to the third",
        || fetch_at(&members[0], &racks[2], 0, -1),
        |p| p.preferred_read_replica == 3,
    )
    .await;
    members[2].kill();
    until_seen(
        "the leader serves it itself",
        || fetch_at(&members[0], &racks[2], 0, -1),
        |p| p.preferred_read_replica == -1 && p.records.is_some(),
    )
    .await;
    // Alone, the second is elected by nobody: what it holds may be old.
    members[0].kill();
    until_seen(
        "the second says so",
        || fetch_at(&members[1], &racks[1], 0, -1),
        |p| p.error_code == ErrorCode::NotLeaderOrFollower.code(),
    )
    .await;
}
