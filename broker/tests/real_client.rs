//! A real client, librdkafka, against a real broker process that is killed and restarted.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::{Broker, PATIENCE};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn client(broker: &Broker) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", broker.bootstrap())
        .set("message.timeout.ms", "60000");
    config
}

fn produce(broker: &Broker, topic: &str, numbers: std::ops::Range<usize>, codec: &str) {
    let producer: ThreadedProducer<_> = client(broker)
        .set("enable.idempotence", "true")
        .set("compression.type", codec)
        .create()
        .expect("a producer");
    for n in numbers {
        let (key, value) = (format!("k{}", n % 7), n.to_string());
        producer
            .send(BaseRecord::to(topic).key(&key).payload(&value))
            .unwrap_or_else(|(e, _)| panic!("{e}"));
    }
    producer
        .flush(PATIENCE)
        .expect("everything is acknowledged");
}

/// Reads until `count` records came, and returns them by key, in the order they came.
fn consume(
    broker: &Broker,
    topic: &str,
    group: &str,
    count: usize,
) -> BTreeMap<String, Vec<usize>> {
    let consumer: BaseConsumer = client(broker)
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    consumer.subscribe(&[topic]).expect("subscribed");
    let mut seen: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let begun = Instant::now();
    let mut got = 0;
    while got < count {
        assert!(begun.elapsed() < PATIENCE, "{got} of {count} records came");
        let Some(message) = consumer.poll(Duration::from_millis(200)) else {
            continue;
        };
        let message = message.expect("no error");
        let text = |bytes: Option<&[u8]>| {
            String::from_utf8(bytes.expect("bytes").to_vec()).expect("UTF-8")
        };
        seen.entry(text(message.key()))
            .or_default()
            .push(text(message.payload()).parse().expect("a number"));
        got += 1;
    }
    consumer
        .commit_consumer_state(CommitMode::Sync)
        .expect("committed");
    seen
}

fn assert_complete(seen: &BTreeMap<String, Vec<usize>>, numbers: std::ops::Range<usize>) {
    for (key, values) in seen {
        assert!(
            values.is_sorted_by(|a, b| a < b),
            "{key} is in order and without duplicates"
        );
    }
    let mut all: Vec<usize> = seen.values().flatten().copied().collect();
    all.sort_unstable();
    assert!(all.into_iter().eq(numbers), "every record, once");
}

#[test]
fn what_was_acknowledged_comes_back_after_kill_9_in_order_and_once() {
    let mut broker = Broker::start_with(&[("LOGD_GROUP__INITIAL_REBALANCE_DELAY_MS", "0")]);
    produce(&broker, "orders", 0..2_000, "none");
    broker.kill_and_restart();
    produce(&broker, "orders", 2_000..4_000, "lz4");
    broker.kill_and_restart();
    assert_complete(&consume(&broker, "orders", "readers", 4_000), 0..4_000);
}

#[test]
fn a_group_goes_on_where_it_committed_after_kill_9() {
    let mut broker = Broker::start_with(&[("LOGD_GROUP__INITIAL_REBALANCE_DELAY_MS", "0")]);
    produce(&broker, "orders", 0..500, "none");
    assert_complete(&consume(&broker, "orders", "readers", 500), 0..500);
    broker.kill_and_restart();
    produce(&broker, "orders", 500..700, "snappy");
    assert_complete(&consume(&broker, "orders", "readers", 200), 500..700);
}

#[test]
fn an_idempotent_producer_goes_on_through_a_kill_9_without_a_duplicate() {
    let mut broker = Broker::start_with(&[("LOGD_GROUP__INITIAL_REBALANCE_DELAY_MS", "0")]);
    let producer: ThreadedProducer<_> = client(&broker)
        .set("enable.idempotence", "true")
        .set("linger.ms", "1")
        .create()
        .expect("a producer");
    for n in 0..3_000 {
        if n == 1_000 || n == 2_000 {
            broker.kill_and_restart();
        }
        let (key, value) = (format!("k{}", n % 7), n.to_string());
        producer
            .send(BaseRecord::to("once").key(&key).payload(&value))
            .unwrap_or_else(|(e, _)| panic!("{e}"));
    }
    producer
        .flush(PATIENCE)
        .expect("everything is acknowledged");
    assert_complete(&consume(&broker, "once", "readers", 3_000), 0..3_000);
}

/// The value of a series, by its whole name with labels.
fn metric(page: &str, series: &str) -> f64 {
    let line = page
        .lines()
        .find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
    let value = line.unwrap_or_else(|| panic!("no {series} in\n{page}"));
    value.trim().parse().expect("a number")
}

#[test]
fn what_happens_is_counted_where_it_happens() {
    let broker = Broker::start_with(&[("LOGD_GROUP__INITIAL_REBALANCE_DELAY_MS", "0")]);
    produce(&broker, "orders", 0..500, "none");
    consume(&broker, "orders", "readers", 500);
    let page = broker.get("/metrics");
    for series in [
        r#"logd_kafka_requests_total{api="Produce"}"#,
        r#"logd_kafka_request_duration_seconds_count{api="Fetch"}"#,
        r#"logd_kafka_bytes_total{direction="in"}"#,
        r#"logd_kafka_bytes_total{direction="out"}"#,
        r#"logd_produce_stage_seconds_count{stage="validate"}"#,
        r#"logd_produce_stage_seconds_count{stage="queue"}"#,
        r#"logd_produce_stage_seconds_count{stage="commit"}"#,
        r#"logd_produce_stage_seconds_count{stage="respond"}"#,
        "logd_raft_proposals_total",
        "logd_raft_commit_seconds_count",
        "logd_raft_elections_total",
        "logd_storage_commit_seconds_count",
        "logd_storage_sync_seconds_count",
        "logd_storage_commits_total",
        "logd_storage_commit_bytes_total",
        "logd_group_rebalances_total",
        "logd_partitions_leading",
    ] {
        assert!(metric(&page, series) > 0.0, "{series} counts");
    }
    assert_eq!(
        metric(&page, r#"logd_topic_records_total{topic="orders"}"#),
        500.0
    );
}

#[test]
fn the_group_that_is_furthest_behind_is_shown_and_the_other_counted() {
    let broker = Broker::start_with(&[
        ("LOGD_GROUP__INITIAL_REBALANCE_DELAY_MS", "0"),
        ("LOGD_LIMITS__GROUP_LAG_SERIES", "1"),
    ]);
    produce(&broker, "orders", 0..500, "none");
    consume(&broker, "orders", "quick", 500);
    consume(&broker, "orders", "slow", 100);
    produce(&broker, "orders", 500..530, "none");
    let slow = r#"logd_group_lag_records{group="slow",topic="orders",partition="0"} 430"#;
    let begun = Instant::now();
    loop {
        let page = broker.get("/metrics");
        if page.lines().any(|line| line == slow) {
            assert!(!page.contains(r#"group="quick""#), "one is shown");
            let hidden = metric(&page, r#"logd_group_lag_hidden{reason="limit"}"#);
            assert_eq!(hidden, 1.0);
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "waited for {slow} in\n{page}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
