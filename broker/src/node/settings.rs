//! This broker's settings as Kafka's clients are shown them: under Kafka's names where it has one for them,
//! under `logd.` and our own where it has none.
//!
//! Promise: what is shown is what this broker goes by. All of it is read-only: settings change with a restart.

use super::Bound;
use crate::api::{ReplicaSelector, Settings};
use crate::config::{self, Config, Raw};
use crate::partition::CompactionSettings;
use crate::topic_config::{Described, Kind, Layer, Source, TopicDefaults, of_broker};
use std::time::Duration;

/// What topics of this broker have that say nothing themselves.
pub(super) fn topic_defaults(config: &Config) -> TopicDefaults {
    let t = &config.topics;
    TopicDefaults {
        max_message_bytes: t.max_message_bytes,
        segment_bytes: t.segment_bytes,
        retention_ms: t.retention_ms,
        retention_bytes: t.retention_bytes,
    }
}

/// How this broker compacts; nobody who chooses keys may know the seeds.
pub(super) fn of_compaction(config: &Config, hash_seeds: [u64; 2]) -> CompactionSettings {
    let s = &config.storage;
    CompactionSettings {
        every: s.compaction_check_interval,
        map_bytes: s.compaction_map_bytes,
        bytes_per_second: s.compaction_bytes_per_second,
        hash_seeds,
    }
}

/// What requests depend on.
pub(super) fn of_requests(config: &Config, node_id: i32, bound: &Bound) -> Settings {
    Settings {
        auto_create_topics: config.topics.auto_create,
        fetch_bytes_max: config.kafka.fetch_max_bytes,
        replica_selector: match config.kafka.replica_selector {
            config::ReplicaSelector::Leader => ReplicaSelector::Leader,
            config::ReplicaSelector::Rack => ReplicaSelector::Rack,
        },
        offsets_topic_partitions: config.topics.offsets_partitions,
        offsets_topic_replication: config.topics.default_replication_factor,
        topic_defaults: topic_defaults(config),
        log_dir: config.node.data_dir.display().to_string(),
        broker: described(config, node_id, bound).into(),
    }
}

/// Every setting, by name.
fn described(config: &Config, node_id: i32, bound: &Bound) -> Vec<Described> {
    // The defaults are a broker that works; if they were not, everything would show as set.
    let usual = Config::try_from(Raw::default()).ok();
    let rows = TABLE.iter().map(|row| {
        let usual = usual.as_ref().map(row.value);
        row.describe((row.value)(config), usual)
    });
    let mut all: Vec<Described> = rows.collect();
    all.extend(identity(config, node_id, bound));
    all.extend(of_broker(&topic_defaults(config)));
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

struct Row {
    name: &'static str,
    kind: Kind,
    value: fn(&Config) -> String,
    meaning: &'static str,
}

const fn row(
    name: &'static str,
    kind: Kind,
    value: fn(&Config) -> String,
    meaning: &'static str,
) -> Row {
    Row {
        name,
        kind,
        value,
        meaning,
    }
}

impl Row {
    fn describe(&self, here: String, usual: Option<String>) -> Described {
        let layer = |value, source| Layer {
            name: self.name.to_owned(),
            value,
            source,
        };
        let mut layers = Vec::new();
        if usual.as_ref() != Some(&here) {
            layers.push(layer(here, Source::Broker));
        }
        layers.extend(usual.map(|usual| layer(usual, Source::Default)));
        Described {
            name: self.name.to_owned(),
            kind: self.kind,
            read_only: true,
            documentation: self.meaning.to_owned(),
            layers,
        }
    }
}

/// What no other broker has: where it is and who it is.
fn identity(config: &Config, node_id: i32, bound: &Bound) -> Vec<Described> {
    let listed = |address: fn(&super::BoundListener) -> String| {
        let all = bound.kafka.iter();
        let each = all.map(|l| format!("{}://{}", l.name, address(l)));
        each.collect::<Vec<_>>().join(",")
    };
    let advertised = |l: &super::BoundListener| format!("{}:{}", l.advertised.0, l.advertised.1);
    let given = |name, kind, value: String, meaning| {
        let row = row(name, kind, |_| String::new(), meaning);
        row.describe(value, None)
    };
    let number = "The broker's number, which the cluster gave it.";
    vec![
        given("broker.id", Kind::Int, node_id.to_string(), number),
        given("node.id", Kind::Int, node_id.to_string(), number),
        given(
            "broker.rack",
            Kind::String,
            config.node.rack.clone().unwrap_or_default(),
            "The failure domain it stands in; empty for none.",
        ),
        given(
            "listeners",
            Kind::List,
            listed(|l| l.address.to_string()),
            "Where clients connect.",
        ),
        given(
            "advertised.listeners",
            Kind::List,
            listed(advertised),
            "What clients are told to connect to.",
        ),
        given(
            "log.dirs",
            Kind::List,
            config.node.data_dir.display().to_string(),
            "Where everything is kept.",
        ),
    ]
}

fn ms(span: Duration) -> String {
    span.as_millis().to_string()
}

const TABLE: &[Row] = &[
    row(
        "auto.create.topics.enable",
        Kind::Boolean,
        |c| c.topics.auto_create.to_string(),
        "Metadata for an unknown topic creates it.",
    ),
    row(
        "connections.max.idle.ms",
        Kind::Long,
        |c| ms(c.limits.idle_timeout),
        "A connection that says nothing for so long is closed.",
    ),
    row(
        "default.replication.factor",
        Kind::Int,
        |c| c.topics.default_replication_factor.to_string(),
        "Replicas of topics that do not say; 0: three where there are three brokers or more, else one.",
    ),
    row(
        "delete.topic.enable",
        Kind::Boolean,
        |_| true.to_string(),
        "Topics can be deleted.",
    ),
    row(
        "fetch.max.bytes",
        Kind::Int,
        |c| c.kafka.fetch_max_bytes.to_string(),
        "Most record bytes in one Fetch response.",
    ),
    row(
        "logd.kafka.replica_selector",
        Kind::String,
        |c| match c.kafka.replica_selector {
            config::ReplicaSelector::Leader => "leader".to_owned(),
            config::ReplicaSelector::Rack => "rack".to_owned(),
        },
        "Where a consumer that names its rack is sent: to a follower in it, or to the leader always.",
    ),
    row(
        "max.incremental.fetch.session.cache.slots",
        Kind::Int,
        |c| c.limits.fetch_sessions.to_string(),
        "Fetch sessions kept at once.",
    ),
    row(
        "group.initial.rebalance.delay.ms",
        Kind::Int,
        |c| c.group.initial_rebalance_delay_ms.to_string(),
        "How long the first rebalance of an empty group waits for more members.",
    ),
    row(
        "group.max.session.timeout.ms",
        Kind::Int,
        |c| c.group.max_session_timeout_ms.to_string(),
        "The longest session timeout that a member may ask for.",
    ),
    row(
        "group.max.size",
        Kind::Int,
        |c| c.group.max_size.to_string(),
        "Members of one group.",
    ),
    row(
        "group.min.session.timeout.ms",
        Kind::Int,
        |c| c.group.min_session_timeout_ms.to_string(),
        "The shortest session timeout that a member may ask for.",
    ),
    row(
        "log.cleaner.backoff.ms",
        Kind::Long,
        |c| ms(c.storage.compaction_check_interval),
        "How often compacted topics are looked at.",
    ),
    row(
        "log.cleaner.dedupe.buffer.size",
        Kind::Long,
        |c| c.storage.compaction_map_bytes.to_string(),
        "Memory for the keys of the log that is compacted; one with more of them takes several passes.",
    ),
    row(
        "log.retention.check.interval.ms",
        Kind::Long,
        |c| ms(c.storage.retention_check_interval),
        "How often old segments are looked for.",
    ),
    row(
        "logd.limits.fetch_session_partitions",
        Kind::Int,
        |c| c.limits.fetch_session_partitions.to_string(),
        "Partitions of all fetch sessions.",
    ),
    row(
        "logd.limits.group_lag_series",
        Kind::Int,
        |c| c.limits.group_lag_series.to_string(),
        "Series of groups' lags on the metrics page.",
    ),
    row(
        "logd.limits.handshake_timeout_ms",
        Kind::Long,
        |c| ms(c.limits.handshake_timeout),
        "The first request of a connection must be here within this.",
    ),
    row(
        "logd.limits.min_frame_bytes_per_second",
        Kind::Long,
        |c| c.limits.min_frame_bytes_per_second.to_string(),
        "What a frame that has begun must bring, over each span of the stall timeout.",
    ),
    row(
        "logd.limits.requests_in_flight",
        Kind::Int,
        |c| c.limits.requests_in_flight.to_string(),
        "Requests of one connection that are worked on at once.",
    ),
    row(
        "logd.limits.stalled_timeout_ms",
        Kind::Long,
        |c| ms(c.limits.stalled_timeout),
        "A frame that has begun, and answers that wait to be read, must move on within this.",
    ),
    row(
        "logd.rpc.learner_bytes_per_second",
        Kind::Long,
        |c| c.rpc_learner_bytes_per_second.to_string(),
        "What replicas that do not vote yet are sent, all together; 0: no limit.",
    ),
    row(
        "logd.storage.checkpoint_interval_ms",
        Kind::Long,
        |c| ms(c.storage.checkpoint_interval),
        "How often the write-ahead log is given back at the latest.",
    ),
    row(
        "logd.storage.reserve_bytes",
        Kind::Long,
        |c| c.storage.reserve_bytes.to_string(),
        "Free space below which produce is refused.",
    ),
    row(
        "logd.storage.compaction_bytes_per_second",
        Kind::Long,
        |c| c.storage.compaction_bytes_per_second.to_string(),
        "How fast compaction reads and writes together; 0: no limit.",
    ),
    row(
        "logd.storage.scrub_bytes_per_second",
        Kind::Long,
        |c| c.storage.scrub_bytes_per_second.to_string(),
        "How fast what nobody reads is read, to find damage; 0: not at all.",
    ),
    row(
        "logd.storage.tail_budget_bytes",
        Kind::Long,
        |c| c.storage.tail_budget_bytes.to_string(),
        "Memory for entries that are not in their segment yet.",
    ),
    row(
        "logd.storage.wal_budget_bytes",
        Kind::Long,
        |c| c.storage.wal_budget_bytes.to_string(),
        "Space for the shared write-ahead log.",
    ),
    row(
        "max.connections",
        Kind::Int,
        |c| c.limits.max_connections.to_string(),
        "Connections of all clients.",
    ),
    row(
        "max.connections.per.ip",
        Kind::Int,
        |c| c.limits.max_connections_per_address.to_string(),
        "Connections from one address.",
    ),
    row(
        "num.partitions",
        Kind::Int,
        |c| c.topics.default_partitions.to_string(),
        "Partitions of topics that do not say.",
    ),
    row(
        "offsets.retention.minutes",
        Kind::Int,
        |c| (c.group.offsets_retention_ms / 60_000).to_string(),
        "Offsets of an empty group are kept this long.",
    ),
    row(
        "offsets.topic.num.partitions",
        Kind::Int,
        |c| c.topics.offsets_partitions.to_string(),
        "Partitions of __consumer_offsets, when it is created.",
    ),
    row(
        "offsets.topic.replication.factor",
        Kind::Short,
        |c| c.topics.default_replication_factor.to_string(),
        "Replicas of __consumer_offsets, when it is created; 0: three where there are three brokers or more.",
    ),
    row(
        "producer.id.expiration.ms",
        Kind::Int,
        |c| c.kafka.producer_id_expiration_ms.to_string(),
        "A producer silent for so long is forgotten.",
    ),
    row(
        "queued.max.request.bytes",
        Kind::Long,
        |c| c.limits.in_flight_bytes.to_string(),
        "What requests of all connections together may hold.",
    ),
    row(
        "socket.request.max.bytes",
        Kind::Int,
        |c| c.limits.max_frame_bytes.to_string(),
        "The largest request.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn shown(change: impl FnOnce(&mut Raw)) -> Vec<Described> {
        let mut raw = Raw::default();
        change(&mut raw);
        let address = "127.0.0.1:9092".parse().unwrap();
        let bound = Bound {
            kafka: vec![crate::node::BoundListener {
                name: "outside".into(),
                address,
                advertised: ("broker-1".into(), 19092),
            }],
            admin: address,
            rpc: address,
        };
        described(&Config::try_from(raw).unwrap(), 3, &bound)
    }

    fn of(all: &[Described], name: &str) -> (String, Source) {
        let found = all.iter().find(|d| d.name == name).unwrap();
        (found.value().to_owned(), found.source())
    }

    #[test]
    fn what_was_set_is_told_from_what_is_usual() {
        let all = shown(|r| r.topics.default_partitions = 12);
        assert_eq!(of(&all, "num.partitions"), ("12".into(), Source::Broker));
        let usual = of(&all, "auto.create.topics.enable");
        assert_eq!(usual, ("true".into(), Source::Default));
    }

    #[test]
    fn a_broker_says_who_and_where_it_is() {
        let all = shown(|_| {});
        assert_eq!(of(&all, "broker.id").0, "3");
        let advertised = of(&all, "advertised.listeners").0;
        assert_eq!(advertised, "outside://broker-1:19092");
    }

    #[test]
    fn no_name_is_shown_twice_and_everything_is_read_only() {
        let all = shown(|_| {});
        let names: BTreeSet<_> = all.iter().map(|d| &d.name).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|d| d.read_only));
    }

    #[test]
    fn retention_of_topics_shows_under_the_brokers_name_for_it() {
        let all = shown(|r| r.topics.retention_ms = 1_000);
        let shown = of(&all, "log.retention.ms");
        assert_eq!(shown, ("1000".into(), Source::Broker));
    }
}
