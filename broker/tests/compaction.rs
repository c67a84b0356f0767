//! Compacted topics on real broker processes, through a real client: what a reader from the start gets, after
//! a kill too, and on a replica that was filled from a compacted log.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::members::{Member, until, until_seen};
use common::{Broker, PATIENCE, metric, requests};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const REMOVED: &str = r#"logd_compaction_records_total{fate="removed"}"#;

const RECEIVED: &str = r#"logd_raft_snapshot_files_bytes_total{way="received"}"#;

/// The smallest segments there are.
const COMPACTED: [(&str, &str); 2] = [("cleanup.policy", "compact"), ("segment.bytes", "16384")];

const KEYS: usize = 25;

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("message.timeout.ms", "60000");
    config
}

/// Writes numbers under their keys; every seventh key ends with a tombstone.
fn produce(bootstrap: &str, topic: &str, numbers: std::ops::Range<usize>, codec: &str) {
    let producer: ThreadedProducer<_> = client(bootstrap)
        .set("enable.idempotence", "true")
        .set("batch.num.messages", "50")
        .set("compression.type", codec)
        .create()
        .expect("a producer");
    for n in numbers {
        let (key, value) = (key_of(n), format!("{n} {}", "x".repeat(60)));
        let record = BaseRecord::to(topic).partition(0).key(&key);
        let record = if (n % KEYS).is_multiple_of(7) {
            record
        } else {
            record.payload(&value)
        };
        producer.send(record).unwrap_or_else(|(e, _)| panic!("{e}"));
        if n % 50 == 0 {
            producer.flush(PATIENCE).expect("acknowledged");
        }
    }
    producer.flush(PATIENCE).expect("acknowledged");
}

fn key_of(n: usize) -> String {
    format!("k{}", n % KEYS)
}

/// What a reader from the start gets up to the end: the last value of each key, with its offset, and how many
/// records came.
fn read_all(bootstrap: &str, topic: &str) -> (BTreeMap<String, (i64, Option<String>)>, usize) {
    let consumer: BaseConsumer = client(bootstrap)
        .set("group.id", "reads from the start")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .create()
        .expect("a consumer");
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, 0, Offset::Beginning)
        .expect("a place");
    consumer.assign(&from).expect("assigned");
    let (mut last, mut count, begun) = (BTreeMap::new(), 0, Instant::now());
    loop {
        assert!(begun.elapsed() < PATIENCE, "the end comes");
        let message = match consumer.poll(Duration::from_millis(200)) {
            None => continue,
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => return (last, count),
            Some(message) => message.expect("no error"),
        };
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).expect("UTF-8");
        let value = message.payload().map(text);
        let key = text(message.key().expect("a key"));
        let before = last.insert(key, (message.offset(), value));
        let newer = before.is_none_or(|(offset, _): (i64, _)| offset < message.offset());
        assert!(newer, "offsets go forward");
        count += 1;
    }
}

/// Each key's last record, at the offset it was written to.
fn assert_last_of_each_key(bootstrap: &str, topic: &str, written: usize) -> usize {
    let (last, count) = read_all(bootstrap, topic);
    assert_eq!(last.len(), KEYS);
    for n in written - KEYS..written {
        let (offset, value) = &last[&key_of(n)];
        assert_eq!(*offset, n as i64, "{}", key_of(n));
        let number = value.as_deref().and_then(|v| v.split(' ').next());
        let expected = (!(n % KEYS).is_multiple_of(7)).then(|| n.to_string());
        assert_eq!(number, expected.as_deref(), "{}", key_of(n));
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn of_each_key_the_last_record_is_left_and_a_kill_changes_nothing() {
    let mut broker = Broker::start_with(&[
        ("LOGD_STORAGE__COMPACTION_CHECK_INTERVAL_MS", "200"),
        ("LOGD_STORAGE__CHECKPOINT_INTERVAL_MS", "500"),
    ]);
    let at = broker.bootstrap();
    let mut socket = broker.connect().await;
    requests::create(&mut socket, "table", 1, &COMPACTED).await;
    let mut written = 0;
    for codec in ["none", "lz4", "snappy"] {
        produce(&at, "table", written..written + 2_000, codec);
        written += 2_000;
        until("most of it goes", || {
            broker.metric(REMOVED) > 1_000.0 && read_all(&at, "table").1 < written / 3
        });
        assert_last_of_each_key(&at, "table", written);
        broker.kill_and_restart();
        let count = assert_last_of_each_key(&at, "table", written);
        assert!(
            count < written / 2,
            "{count} of {written} are left after a kill"
        );
    }
    assert!(broker.metric("logd_compaction_failures_total") == 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_29_a_key_that_was_deleted_is_gone_when_its_tombstone_has_had_its_time() {
    let broker = Broker::start_with(&[
        ("LOGD_STORAGE__COMPACTION_CHECK_INTERVAL_MS", "200"),
        ("LOGD_STORAGE__CHECKPOINT_INTERVAL_MS", "500"),
    ]);
    let at = broker.bootstrap();
    let mut socket = broker.connect().await;
    let settings = [COMPACTED[0], COMPACTED[1], ("delete.retention.ms", "300")];
    requests::create(&mut socket, "table", 1, &settings).await;
    produce(&at, "table", 0..1_000, "none");
    // Only keys that are not deleted, so that what deletes the others does not stay the newest.
    let mut written = 1_000;
    until("tombstones go", || {
        let others = (written..).filter(|n| !(n % KEYS).is_multiple_of(7));
        let producer: ThreadedProducer<_> = client(&at).create().expect("a producer");
        for n in others.take(300) {
            let (key, value) = (key_of(n), "x".repeat(60));
            let record = BaseRecord::to("table").key(&key).payload(&value);
            producer.send(record).unwrap_or_else(|(e, _)| panic!("{e}"));
        }
        producer.flush(PATIENCE).expect("acknowledged");
        written += 350;
        let (last, _) = read_all(&at, "table");
        let deleted = |key: &String| key[1..].parse::<usize>().is_ok_and(|n| n % 7 == 0);
        last.len() == KEYS - 4 && !last.keys().any(deleted)
    });
    assert!(broker.metric("logd_compaction_failures_total") == 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_offsets_are_compacted_and_a_group_goes_on() {
    let mut broker = Broker::start_with(&[
        ("LOGD_STORAGE__COMPACTION_CHECK_INTERVAL_MS", "200"),
        ("LOGD_STORAGE__CHECKPOINT_INTERVAL_MS", "500"),
        ("LOGD_TOPICS__SEGMENT_BYTES", "1048576"),
    ]);
    let at = broker.bootstrap();
    let mut socket = broker.connect().await;
    requests::create(&mut socket, "orders", 1, &[]).await;
    let commit_to = |from: i64, to: i64| {
        let consumer: BaseConsumer = client(&at)
            .set("group.id", "readers")
            .create()
            .expect("a consumer");
        for offset in from..to {
            let mut place = TopicPartitionList::new();
            let mut element = place.add_partition("orders", 0);
            element.set_offset(Offset::Offset(offset)).expect("a place");
            // What a client may add, so that few commits fill a segment.
            element.set_metadata("m".repeat(4_000));
            consumer
                .commit(&place, CommitMode::Sync)
                .expect("committed");
        }
    };
    let committed = |at: &str| {
        let consumer: BaseConsumer = client(at)
            .set("group.id", "readers")
            .create()
            .expect("a consumer");
        let mut place = TopicPartitionList::new();
        place.add_partition("orders", 0);
        let found = consumer
            .committed_offsets(place, PATIENCE)
            .expect("offsets");
        found.elements()[0].offset()
    };
    commit_to(0, 600);
    until("old commits go", || broker.metric(REMOVED) > 100.0);
    assert_eq!(committed(&at), Offset::Offset(599));
    broker.kill_and_restart();
    assert_eq!(committed(&at), Offset::Offset(599));
    commit_to(600, 620);
    assert_eq!(committed(&at), Offset::Offset(619));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_filled_from_a_compacted_log_holds_the_same() {
    let members = Member::found(3).await;
    let all: Vec<SocketAddr> = members.iter().map(|m| m.kafka).collect();
    let at = all
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",");
    members[0].create_with("table", &[&[1]], &COMPACTED).await;
    produce(&at, "table", 0..3_000, "lz4");
    until("much of it goes", || {
        metric(members[0].admin, REMOVED) > 1_000.0
    });
    let before = assert_last_of_each_key(&at, "table", 3_000);
    assert_eq!(members[0].reassign("table", 0, Some(&[2])).await, 0);
    let looked = async || {
        (
            members[0].moving().await,
            members[0].describe("table").await,
        )
    };
    until_seen("it has moved", looked, |(moving, partitions)| {
        moving.is_empty() && partitions.iter().all(|p| p.0 == 2 && p.1 == [2])
    })
    .await;
    assert!(
        metric(members[1].admin, RECEIVED) > 0.0,
        "what left the Raft log comes as files"
    );
    let after = assert_last_of_each_key(&at, "table", 3_000);
    assert!(
        after <= before,
        "{after} records on the new replica, {before} on the old one"
    );
    produce(&at, "table", 3_000..3_100, "none");
    assert_last_of_each_key(&at, "table", 3_100);
}

/// Waits until all three are in sync.
async fn whole(asked: &Member) {
    let look = || asked.describe("table");
    until_seen("all are in sync", look, |all| {
        all.iter().all(|p| p.0 > 0 && p.2 == [1, 2, 3])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_an_absence_and_a_wiped_disk_lose_no_key_of_a_compacted_log() {
    let mut members = Member::found(3).await;
    let all: Vec<String> = members.iter().map(|m| m.kafka.to_string()).collect();
    let at = all.join(",");
    members[0]
        .create_with("table", &[&[1, 2, 3]], &COMPACTED)
        .await;
    let more = |from: usize| produce(&at, "table", from..from + 2_000, "lz4");
    more(0);
    for member in &members {
        until("each compacts for itself", || {
            metric(member.admin, REMOVED) > 300.0
        });
    }
    // One is away while the others compact what it lacks.
    members[2].kill();
    more(2_000);
    until("what it lacks is compacted", || {
        metric(members[0].admin, REMOVED) > 2_300.0
    });
    members[2].restart();
    until("it is given files", || {
        metric(members[2].admin, RECEIVED) > 0.0
    });
    whole(&members[0]).await;
    // The leader dies while all of them are at it, and its disk is gone.
    more(4_000);
    members[0].kill();
    more(6_000);
    members[0].restart_wiped();
    until("its files come back", || {
        metric(members[0].admin, RECEIVED) > 0.0
    });
    whole(&members[1]).await;
    for leader in [2, 3, 1] {
        let others: Vec<i32> = [leader, leader % 3 + 1, (leader + 1) % 3 + 1].into();
        assert_eq!(members[1].reassign("table", 0, Some(&others)).await, 0);
        let led = async || {
            members[1].elect(Some(("table", 0))).await;
            members[1].describe("table").await
        };
        until_seen("it leads", led, |p| p[0].0 == leader).await;
        assert_last_of_each_key(&at, "table", 8_000);
    }
    for member in &members {
        assert!(metric(member.admin, "logd_compaction_failures_total") == 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_may_be_deleted_while_it_is_compacted() {
    let broker = Broker::start_with(&[
        ("LOGD_STORAGE__COMPACTION_CHECK_INTERVAL_MS", "100"),
        // Slow enough that it is under way when the topic goes.
        ("LOGD_STORAGE__COMPACTION_BYTES_PER_SECOND", "20000"),
    ]);
    let at = broker.bootstrap();
    let mut socket = broker.connect().await;
    let mut before = 0.0;
    for _ in 0..3 {
        requests::create(&mut socket, "table", 1, &COMPACTED).await;
        produce(&at, "table", 0..2_000, "none");
        // One at a time: what was under way when the topic before this one went has stopped.
        until("its compaction is begun", || {
            broker.metric("logd_compaction_runs_total") > before
        });
        before = broker.metric("logd_compaction_runs_total");
        // Whoever waits for its turn to read holds files of the topic.
        tokio::time::sleep(Duration::from_millis(300)).await;
        requests::delete(&mut socket, "table").await;
        until("it is told to stop, and its files go", || {
            let logs = broker.logs_and_trash();
            logs.len() == 1 && broker.deleted_files().is_empty()
        });
    }
    assert!(broker.metric("logd_compaction_failures_total") == 0.0);
    requests::create(&mut socket, "table", 1, &COMPACTED).await;
    produce(&at, "table", 0..100, "none");
    assert_last_of_each_key(&at, "table", 100);
}
