use super::*;
use std::collections::BTreeSet;

/// Everything that can be observed, once.
fn observe_all() -> (OpenConnection, Arc<TopicTraffic>) {
    request_answered(ApiKey::Produce, Duration::from_micros(300));
    fetch_waited(Duration::from_millis(400));
    error_answered(ErrorCode::NotLeaderOrFollower);
    follower_served(5);
    fetch_sent_nearer();
    bytes_received(10);
    bytes_sent(20);
    connection_refused("total");
    connection_closed("idle");
    set_request_bytes(1, 2);
    for (stage, _) in Stage::ALL {
        produce_stage(stage, Duration::from_micros(50));
    }
    batch_repacked(Duration::from_micros(1), Duration::from_millis(2));
    sequence_refused(true);
    raft_proposed();
    raft_committed(Duration::from_millis(1));
    raft_elected();
    compacted(Compacted::default());
    compaction_failed();
    set_dirty_ratio(0.25);
    storage_committed(Duration::from_millis(1));
    storage_synced(Duration::from_millis(1), 4096);
    group_rebalanced();
    set_partitions(Partitions::default());
    set_disk(1, 2, true, false);
    set_groups(&[("Stable", 1)], 2);
    let lag = GroupLag {
        group: "billing".into(),
        topic: "orders".into(),
        partition: 0,
        records: 5,
    };
    set_group_lags(vec![lag], HiddenLags::default(), 1);
    set_fetch_sessions(1, 2, 3);
    set_ready(true);
    set_recovery(Duration::from_millis(3));
    let traffic = topic_traffic("orders");
    traffic.produced(1, 100);
    (connection_opened(), traffic)
}

#[test]
fn everything_in_the_table_is_exported_with_its_help() {
    let _held = observe_all();
    let page = render();
    for metric in TABLE {
        let help = format!("# HELP {} {}", metric.name, metric.help);
        assert!(page.contains(&help), "{} is missing:\n{page}", metric.name);
        let sample = page
            .lines()
            .find(|l| l.starts_with(metric.name))
            .expect(metric.name);
        for label in metric.labels {
            assert!(
                sample.contains(&format!("{label}=\"")),
                "{sample} has {label}"
            );
        }
    }
}

#[test]
fn nothing_is_exported_that_the_table_does_not_know() {
    let _held = observe_all();
    let known: BTreeSet<&str> = TABLE.iter().map(|m| m.name).collect();
    for line in render().lines().filter(|l| l.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(known.contains(name), "{name} is not in the table");
    }
}

#[test]
fn names_carry_their_unit_and_counters_their_suffix() {
    for metric in TABLE {
        assert_eq!(
            metric.kind == Kind::Counter,
            metric.name.ends_with("_total"),
            "{}",
            metric.name
        );
        if metric.kind == Kind::Histogram {
            assert!(metric.name.ends_with("_seconds"), "{}", metric.name);
        }
    }
    let names: BTreeSet<&str> = TABLE.iter().map(|m| m.name).collect();
    assert_eq!(names.len(), TABLE.len(), "no name twice");
}

#[test]
fn durations_fall_into_buckets_from_a_tenth_of_a_millisecond_to_ten_seconds() {
    request_answered(ApiKey::Heartbeat, Duration::from_micros(300));
    let page = render();
    let bucket = |le: &str| {
        format!("logd_kafka_request_duration_seconds_bucket{{api=\"Heartbeat\",le=\"{le}\"}} ")
    };
    let count = |le: &str| {
        let prefix = bucket(le);
        page.lines()
            .find_map(|l| l.strip_prefix(prefix.as_str()))
            .unwrap()
            .to_owned()
    };
    assert_eq!(count("0.0001"), "0");
    assert_ne!(count("0.0005"), "0");
    assert_ne!(count("10"), "0");
}

#[test]
fn a_sampler_runs_at_each_scrape_until_it_is_dropped() {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let sampling = on_scrape(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    // Other tests scrape as well.
    render();
    assert!(calls.load(Ordering::Relaxed) >= 1);
    drop(sampling);
    // A scrape that another test has begun may still hold it.
    let deadline = Instant::now() + Duration::from_secs(5);
    while Arc::strong_count(&calls) > 1 {
        assert!(
            Instant::now() < deadline,
            "the sampler and what it held are gone"
        );
        std::thread::yield_now();
    }
}

#[test]
fn an_open_connection_is_counted_until_it_is_dropped() {
    let line = |page: &str| {
        let value = page
            .lines()
            .find_map(|l| l.strip_prefix("logd_kafka_connections "))
            .unwrap();
        value.parse::<f64>().unwrap()
    };
    let held = [connection_opened(), connection_opened()];
    assert!(line(&render()) >= 2.0);
    drop(held);
}
