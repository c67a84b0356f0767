//! Every key of the settings: its name for Kafka's clients, and whether it can change while the broker runs.
//!
//! Promise: each key has a row, and each row says when a change of it applies. A new key does not pass the tests
//! without. Not here: defaults, ranges and types (`config`).

use crate::topic_config::Kind;

/// When a change of a setting takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applies {
    /// While the broker runs.
    AtOnce,
    /// When the broker is started with it.
    AtRestart,
}

impl Applies {
    /// For whoever reads about the setting.
    pub fn note(self) -> &'static str {
        match self {
            Applies::AtOnce => "Applies at once.",
            Applies::AtRestart => "Needs a restart.",
        }
    }
}

/// The same of what is shown beside the settings, and takes one value only.
pub const FIXED: &str = "Cannot be changed.";

#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// As it stands in the file: `section.key`.
    pub key: &'static str,
    /// Kafka's name for it, or ours behind `logd.`.
    pub name: &'static str,
    pub kind: Kind,
    pub applies: Applies,
    pub meaning: &'static str,
}

const fn row(
    key: &'static str,
    name: &'static str,
    kind: Kind,
    applies: Applies,
    meaning: &'static str,
) -> Row {
    Row {
        key,
        name,
        kind,
        applies,
        meaning,
    }
}

/// In the order of the file.
pub const TABLE: &[Row] = &[
    row(
        "node.data_dir",
        "log.dirs",
        Kind::List,
        Applies::AtRestart,
        "Where everything is kept.",
    ),
    row(
        "node.rack",
        "broker.rack",
        Kind::String,
        Applies::AtRestart,
        "The failure domain the broker stands in; empty for none.",
    ),
    row(
        "node.seeds",
        "logd.node.seeds",
        Kind::List,
        Applies::AtRestart,
        "Broker-to-broker addresses of the cluster's first brokers.",
    ),
    row(
        "node.insecure",
        "logd.node.insecure",
        Kind::Boolean,
        Applies::AtRestart,
        "Listen beyond loopback although nobody is asked who they are.",
    ),
    row(
        "node.shutdown_timeout_ms",
        "logd.node.shutdown_timeout_ms",
        Kind::Long,
        Applies::AtRestart,
        "How long a stop may take to finish what is in flight.",
    ),
    row(
        "kafka.addr",
        "logd.kafka.addr",
        Kind::String,
        Applies::AtRestart,
        "The one listener of the short form.",
    ),
    row(
        "kafka.advertise",
        "logd.kafka.advertise",
        Kind::String,
        Applies::AtRestart,
        "What clients are told to connect to; empty: the address that was bound.",
    ),
    row(
        "kafka.listeners",
        "logd.kafka.listeners",
        Kind::List,
        Applies::AtRestart,
        "Several listeners with names, in place of the one.",
    ),
    row(
        "kafka.fetch_max_bytes",
        "fetch.max.bytes",
        Kind::Int,
        Applies::AtOnce,
        "Most record bytes in one Fetch response.",
    ),
    row(
        "kafka.replica_selector",
        "logd.kafka.replica_selector",
        Kind::String,
        Applies::AtOnce,
        "Where a consumer that names its rack is sent: rack: to a follower in it; leader: to the leader always.",
    ),
    row(
        "kafka.producer_id_expiration_ms",
        "producer.id.expiration.ms",
        Kind::Int,
        Applies::AtOnce,
        "A producer silent for so long is forgotten.",
    ),
    row(
        "topics.auto_create",
        "auto.create.topics.enable",
        Kind::Boolean,
        Applies::AtOnce,
        "Metadata for an unknown topic creates it.",
    ),
    row(
        "topics.default_partitions",
        "num.partitions",
        Kind::Int,
        Applies::AtOnce,
        "Partitions of topics that do not say.",
    ),
    row(
        "topics.default_replication_factor",
        "default.replication.factor",
        Kind::Int,
        Applies::AtOnce,
        "Replicas of topics that do not say; 0: three where there are three brokers or more, else one.",
    ),
    row(
        "topics.offsets_partitions",
        "offsets.topic.num.partitions",
        Kind::Int,
        Applies::AtOnce,
        "Partitions of __consumer_offsets, when it is created.",
    ),
    row(
        "topics.max_message_bytes",
        "message.max.bytes",
        Kind::Int,
        Applies::AtOnce,
        "The largest batch of topics that do not say.",
    ),
    row(
        "topics.segment_bytes",
        "log.segment.bytes",
        Kind::Int,
        Applies::AtOnce,
        "Where segments end, of topics that do not say.",
    ),
    row(
        "topics.retention_ms",
        "log.retention.ms",
        Kind::Long,
        Applies::AtOnce,
        "How long records stay, of topics that do not say; -1: for ever.",
    ),
    row(
        "topics.retention_bytes",
        "log.retention.bytes",
        Kind::Long,
        Applies::AtOnce,
        "How large partitions grow, of topics that do not say; -1: no limit.",
    ),
    row(
        "admin.addr",
        "logd.admin.addr",
        Kind::String,
        Applies::AtRestart,
        "HTTP: health and metrics.",
    ),
    row(
        "rpc.addr",
        "logd.rpc.addr",
        Kind::String,
        Applies::AtRestart,
        "Broker to broker.",
    ),
    row(
        "rpc.advertise",
        "logd.rpc.advertise",
        Kind::String,
        Applies::AtRestart,
        "What other brokers are told to connect to; empty: the address that was bound.",
    ),
    row(
        "rpc.learner_bytes_per_second",
        "logd.rpc.learner_bytes_per_second",
        Kind::Long,
        Applies::AtOnce,
        "What replicas that do not vote yet are sent, all together; 0: no limit.",
    ),
    row(
        "group.initial_rebalance_delay_ms",
        "group.initial.rebalance.delay.ms",
        Kind::Int,
        Applies::AtOnce,
        "How long the first rebalance of an empty group waits for more members.",
    ),
    row(
        "group.min_session_timeout_ms",
        "group.min.session.timeout.ms",
        Kind::Int,
        Applies::AtOnce,
        "The shortest session timeout that a member may ask for.",
    ),
    row(
        "group.max_session_timeout_ms",
        "group.max.session.timeout.ms",
        Kind::Int,
        Applies::AtOnce,
        "The longest session timeout that a member may ask for.",
    ),
    row(
        "group.max_size",
        "group.max.size",
        Kind::Int,
        Applies::AtOnce,
        "Members of one group.",
    ),
    row(
        "group.offsets_retention_minutes",
        "offsets.retention.minutes",
        Kind::Int,
        Applies::AtOnce,
        "Offsets of an empty group are kept this long.",
    ),
    row(
        "storage.wal_budget_bytes",
        "logd.storage.wal_budget_bytes",
        Kind::Long,
        Applies::AtRestart,
        "Space for the shared write-ahead log.",
    ),
    row(
        "storage.tail_budget_bytes",
        "logd.storage.tail_budget_bytes",
        Kind::Long,
        Applies::AtRestart,
        "Memory for entries that are not in their segment yet.",
    ),
    row(
        "storage.reserve_bytes",
        "logd.storage.reserve_bytes",
        Kind::Long,
        Applies::AtRestart,
        "Free space below which produce is refused.",
    ),
    row(
        "storage.checkpoint_interval_ms",
        "logd.storage.checkpoint_interval_ms",
        Kind::Long,
        Applies::AtRestart,
        "How often the write-ahead log is given back at the latest.",
    ),
    row(
        "storage.retention_check_interval_ms",
        "log.retention.check.interval.ms",
        Kind::Long,
        Applies::AtOnce,
        "How often old segments are looked for.",
    ),
    row(
        "storage.scrub_bytes_per_second",
        "logd.storage.scrub_bytes_per_second",
        Kind::Long,
        Applies::AtOnce,
        "How fast what nobody reads is read, to find damage; 0: not at all.",
    ),
    row(
        "storage.compaction_check_interval_ms",
        "log.cleaner.backoff.ms",
        Kind::Long,
        Applies::AtOnce,
        "How often compacted topics are looked at.",
    ),
    row(
        "storage.compaction_map_bytes",
        "log.cleaner.dedupe.buffer.size",
        Kind::Long,
        Applies::AtOnce,
        "Memory for the keys of the log that is compacted; one with more of them takes several passes.",
    ),
    row(
        "storage.compaction_bytes_per_second",
        "logd.storage.compaction_bytes_per_second",
        Kind::Long,
        Applies::AtOnce,
        "How fast compaction reads and writes together; 0: no limit.",
    ),
    row(
        "limits.max_connections",
        "max.connections",
        Kind::Int,
        Applies::AtOnce,
        "Connections of all clients; those that there are already stay.",
    ),
    row(
        "limits.max_connections_per_address",
        "max.connections.per.ip",
        Kind::Int,
        Applies::AtOnce,
        "Connections from one address; those that there are already stay.",
    ),
    row(
        "limits.max_frame_bytes",
        "socket.request.max.bytes",
        Kind::Int,
        Applies::AtOnce,
        "The largest request.",
    ),
    row(
        "limits.in_flight_bytes",
        "queued.max.request.bytes",
        Kind::Long,
        Applies::AtOnce,
        "What requests above 16 KiB of all connections together may hold; of smaller ones a connection holds 16 KiB for each that it has in flight.",
    ),
    row(
        "limits.requests_in_flight",
        "logd.limits.requests_in_flight",
        Kind::Int,
        Applies::AtOnce,
        "Requests of one connection that are worked on at once.",
    ),
    row(
        "limits.fetch_sessions",
        "max.incremental.fetch.session.cache.slots",
        Kind::Int,
        Applies::AtOnce,
        "Fetch sessions kept at once; those that there are already stay.",
    ),
    row(
        "limits.fetch_session_partitions",
        "logd.limits.fetch_session_partitions",
        Kind::Int,
        Applies::AtOnce,
        "Partitions of all fetch sessions.",
    ),
    row(
        "limits.group_lag_series",
        "logd.limits.group_lag_series",
        Kind::Int,
        Applies::AtOnce,
        "Series of groups' lags on the metrics page.",
    ),
    row(
        "limits.idle_timeout_ms",
        "connections.max.idle.ms",
        Kind::Long,
        Applies::AtOnce,
        "A connection that says nothing for so long is closed.",
    ),
    row(
        "limits.handshake_timeout_ms",
        "logd.limits.handshake_timeout_ms",
        Kind::Long,
        Applies::AtOnce,
        "The first request of a connection must be here within this.",
    ),
    row(
        "limits.stalled_timeout_ms",
        "logd.limits.stalled_timeout_ms",
        Kind::Long,
        Applies::AtOnce,
        "A frame that has begun, and answers that wait to be read, must move on within this.",
    ),
    row(
        "limits.min_frame_bytes_per_second",
        "logd.limits.min_frame_bytes_per_second",
        Kind::Long,
        Applies::AtOnce,
        "What a frame that has begun must bring, over each span of the stall timeout.",
    ),
    row(
        "log.format",
        "logd.log.format",
        Kind::String,
        Applies::AtRestart,
        "How the log is written: text or json.",
    ),
    row(
        "log.level",
        "logd.log.level",
        Kind::String,
        Applies::AtOnce,
        "How much is logged, as tracing filters are written.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Raw, texts};
    use std::collections::BTreeSet;

    #[test]
    fn each_key_of_the_file_has_a_row_and_each_row_is_a_key_of_the_file() {
        let keys: BTreeSet<String> = texts(&Raw::default()).into_keys().collect();
        let rows: BTreeSet<String> = TABLE.iter().map(|row| row.key.to_owned()).collect();
        assert_eq!(rows, keys);
        assert_eq!(rows.len(), TABLE.len(), "no key has two rows");
    }

    #[test]
    fn no_name_stands_for_two_keys_and_our_own_names_are_the_keys() {
        let names: BTreeSet<&str> = TABLE.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), TABLE.len());
        for row in TABLE {
            let own = row.name.strip_prefix("logd.");
            assert!(own.is_none_or(|key| key == row.key), "{}", row.name);
        }
    }
}
