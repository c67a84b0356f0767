//! Every metric's name, in one table.
//!
//! Promise: what is exported is described here, and what is described here is exported. Names carry their
//! unit; counters end in `_total`.
//! Not here: values.

/// Which line of the exposition it becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        labels,
        help,
    }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric {
        name,
        kind: Kind::Gauge,
        labels,
        help,
    }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Histogram,
        labels,
        help,
    }
}

// Requests.
pub const REQUESTS: Metric = counter(
    "logd_kafka_requests_total",
    &["api"],
    "Kafka requests answered",
);
pub const REQUEST_SECONDS: Metric = histogram(
    "logd_kafka_request_duration_seconds",
    &["api"],
    "from a whole request to its answer; a Fetch without the time it was parked",
);
pub const FETCH_WAIT_SECONDS: Metric = histogram(
    "logd_kafka_fetch_wait_seconds",
    &[],
    "time fetches were parked, waiting for records",
);
pub const FETCH_SESSIONS: Metric = gauge(
    "logd_kafka_fetch_sessions",
    &[],
    "fetch sessions that are kept",
);
pub const FETCH_SESSION_PARTITIONS: Metric = gauge(
    "logd_kafka_fetch_session_partitions",
    &[],
    "partitions of all fetch sessions",
);
pub const FETCH_SESSION_EVICTIONS: Metric = counter(
    "logd_kafka_fetch_session_evictions_total",
    &[],
    "fetch sessions that made room for others",
);
pub const FOLLOWER_BYTES: Metric = counter(
    "logd_kafka_follower_bytes_total",
    &[],
    "record bytes that consumers read from followers here",
);
pub const SENT_NEARER: Metric = counter(
    "logd_kafka_fetches_sent_nearer_total",
    &[],
    "answers that sent a consumer to a follower in its own rack, one per partition",
);
pub const ERRORS: Metric = counter(
    "logd_kafka_errors_total",
    &["code"],
    "error codes in answers, one per partition, topic or request",
);
pub const BYTES: Metric = counter(
    "logd_kafka_bytes_total",
    &["direction"],
    "bytes of whole frames on Kafka listeners",
);
pub const CONNECTIONS: Metric = gauge("logd_kafka_connections", &[], "open client connections");
pub const CONNECTIONS_OPENED: Metric = counter(
    "logd_kafka_connections_opened_total",
    &[],
    "client connections accepted",
);
pub const CONNECTIONS_REFUSED: Metric = counter(
    "logd_kafka_connections_refused_total",
    &["reason"],
    "client connections turned away at a limit",
);
pub const CONNECTIONS_CLOSED: Metric = counter(
    "logd_kafka_connections_closed_total",
    &["reason"],
    "client connections that the broker ended: too late, too slow, or not understood",
);
pub const REQUEST_BYTES_HELD: Metric = gauge(
    "logd_kafka_request_bytes_held",
    &[],
    "bytes of large requests that are arriving or being worked on",
);
pub const REQUEST_BYTES_MAX: Metric = gauge(
    "logd_kafka_request_bytes_max",
    &[],
    "bytes of large requests there may be; more wait",
);
pub const PRODUCE_STAGE_SECONDS: Metric = histogram(
    "logd_produce_stage_seconds",
    &["stage"],
    "where a produce spends its time: validate, queue, commit, respond",
);
pub const REPACK_SECONDS: Metric = histogram(
    "logd_produce_repack_seconds",
    &["step"],
    "packing batches anew as their topics' compression.type says: turn (waiting for one), work",
);

// Topics.
pub const TOPIC_BYTES: Metric = counter(
    "logd_topic_bytes_total",
    &["topic", "direction"],
    "record bytes of the busiest topics; the others together are _other",
);
pub const TOPIC_RECORDS: Metric = counter(
    "logd_topic_records_total",
    &["topic"],
    "records produced to the busiest topics; the others together are _other",
);
pub const TOPICS: Metric = gauge("logd_topics", &[], "topics in the cluster");
pub const PARTITIONS: Metric = gauge(
    "logd_partitions",
    &[],
    "partitions with a replica on this broker",
);
pub const PARTITIONS_LEADING: Metric = gauge(
    "logd_partitions_leading",
    &[],
    "partitions this broker leads and serves",
);
pub const PARTITIONS_LEADERLESS: Metric = gauge(
    "logd_partitions_leaderless",
    &[],
    "partitions here whose leader is unknown",
);
pub const PARTITIONS_UNDER_REPLICATED: Metric = gauge(
    "logd_partitions_under_replicated",
    &[],
    "partitions led here of which a replica is missing or does not keep up",
);
pub const PARTITIONS_FAILED: Metric = gauge(
    "logd_partitions_failed",
    &[],
    "partitions here that stopped for good; the log says why",
);
pub const PARTITION_FORCED_RECOVERIES: Metric = counter(
    "logd_partition_forced_recoveries_total",
    &[],
    "partitions that an operator had go on with what the replica here has, without a majority",
);
pub const PARTITION_SEQUENCES_REFUSED: Metric = counter(
    "logd_partition_sequences_refused_total",
    &["place"],
    "batches of idempotent producers out of sequence: ahead of what is missing (gap), or older than what is remembered (late)",
);
pub const PRODUCERS: Metric = gauge("logd_producers", &[], "idempotent producers remembered");

// Raft.
pub const RAFT_PROPOSALS: Metric = counter(
    "logd_raft_proposals_total",
    &[],
    "entries proposed to this broker's Raft groups",
);
pub const RAFT_COMMIT_SECONDS: Metric = histogram(
    "logd_raft_commit_seconds",
    &[],
    "from a proposal to its application",
);
pub const RAFT_ELECTIONS: Metric = counter(
    "logd_raft_elections_total",
    &[],
    "times a replica here became leader",
);
pub const RAFT_FILES_BYTES: Metric = counter(
    "logd_raft_snapshot_files_bytes_total",
    &["way"],
    "bytes of segment files sent with snapshots, and received",
);

// Compaction.
pub const COMPACTION_RUNS: Metric = counter(
    "logd_compaction_runs_total",
    &[],
    "times the compaction of a log was begun",
);
pub const COMPACTION_FAILURES: Metric = counter(
    "logd_compaction_failures_total",
    &[],
    "times a log could not be compacted and was set aside",
);
pub const COMPACTION_READ_BYTES: Metric = counter(
    "logd_compaction_read_bytes_total",
    &[],
    "bytes of batches that compaction read",
);
pub const COMPACTION_WRITTEN_BYTES: Metric = counter(
    "logd_compaction_written_bytes_total",
    &[],
    "bytes of batches that compaction wrote",
);
pub const COMPACTION_RECORDS: Metric = counter(
    "logd_compaction_records_total",
    &["fate"],
    "records that compaction kept and removed",
);
pub const COMPACTION_DIRTY_RATIO: Metric = gauge(
    "logd_compaction_dirty_ratio_max",
    &[],
    "of all compacted logs here, the largest part that is new since its last compaction",
);

// Storage.
pub const STORAGE_COMMIT_SECONDS: Metric = histogram(
    "logd_storage_commit_seconds",
    &[],
    "from an append's arrival at the write-ahead log to its durability",
);
pub const STORAGE_SYNC_SECONDS: Metric = histogram(
    "logd_storage_sync_seconds",
    &[],
    "one synchronous write of the write-ahead log",
);
pub const STORAGE_COMMITS: Metric = counter(
    "logd_storage_commits_total",
    &[],
    "groups written to the write-ahead log",
);
pub const STORAGE_COMMIT_BYTES: Metric = counter(
    "logd_storage_commit_bytes_total",
    &[],
    "bytes written to the write-ahead log",
);
pub const STORAGE_LOG_BYTES: Metric = gauge(
    "logd_storage_log_bytes",
    &[],
    "bytes of all partitions' logs",
);
pub const DISK_FREE_BYTES: Metric = gauge(
    "logd_storage_disk_free_bytes",
    &[],
    "free bytes of the data directory's file system",
);
pub const DISK_TOTAL_BYTES: Metric = gauge(
    "logd_storage_disk_total_bytes",
    &[],
    "size of the data directory's file system",
);
pub const DISK_ALERT: Metric = gauge(
    "logd_storage_disk_alert",
    &[],
    "0: fine, 1: produce is refused until there is room, 2: a write failed for good",
);
pub const RECOVERY_SECONDS: Metric = gauge(
    "logd_recovery_seconds",
    &[],
    "how long the last recovery took",
);

// Groups.
pub const GROUPS: Metric = gauge(
    "logd_groups",
    &["state"],
    "consumer groups coordinated here",
);
pub const GROUP_LAG: Metric = gauge(
    "logd_group_lag_records",
    &["group", "topic", "partition"],
    "what a group has still to read by what it has committed, of those furthest behind",
);
pub const GROUP_LAG_HIDDEN: Metric = gauge(
    "logd_group_lag_hidden",
    &["reason"],
    "committed offsets whose lag is not shown: beyond the limit, or of partitions without a replica here",
);
pub const GROUP_MEMBERS: Metric = gauge(
    "logd_group_members",
    &[],
    "members of the groups coordinated here",
);
pub const GROUP_REBALANCES: Metric =
    counter("logd_group_rebalances_total", &[], "generations begun");

// The process.
pub const READY: Metric = gauge("logd_ready", &[], "1 when the broker serves");
pub const BUILD_INFO: Metric = gauge("logd_build_info", &["version"], "always 1");
pub const UPTIME_SECONDS: Metric = gauge("logd_uptime_seconds", &[], "since the process started");
pub const ANON_BYTES: Metric = gauge(
    "logd_process_anonymous_memory_bytes",
    &[],
    "resident memory that is not a mapped file",
);
pub const CPU_SECONDS: Metric =
    counter("process_cpu_seconds_total", &[], "CPU time of the process");
pub const RESIDENT_BYTES: Metric = gauge(
    "process_resident_memory_bytes",
    &[],
    "resident memory, mapped segments included",
);
pub const OPEN_FDS: Metric = gauge("process_open_fds", &[], "open file descriptors");
pub const MAX_FDS: Metric = gauge("process_max_fds", &[], "descriptors the process may open");

/// All of the above.
pub const TABLE: &[Metric] = &[
    REQUESTS,
    REQUEST_SECONDS,
    FETCH_WAIT_SECONDS,
    FETCH_SESSIONS,
    FETCH_SESSION_PARTITIONS,
    FETCH_SESSION_EVICTIONS,
    FOLLOWER_BYTES,
    SENT_NEARER,
    ERRORS,
    BYTES,
    CONNECTIONS,
    CONNECTIONS_OPENED,
    CONNECTIONS_REFUSED,
    CONNECTIONS_CLOSED,
    REQUEST_BYTES_HELD,
    REQUEST_BYTES_MAX,
    PRODUCE_STAGE_SECONDS,
    REPACK_SECONDS,
    TOPIC_BYTES,
    TOPIC_RECORDS,
    TOPICS,
    PARTITIONS,
    PARTITIONS_LEADING,
    PARTITIONS_LEADERLESS,
    PARTITIONS_UNDER_REPLICATED,
    PARTITIONS_FAILED,
    PARTITION_FORCED_RECOVERIES,
    PARTITION_SEQUENCES_REFUSED,
    PRODUCERS,
    RAFT_PROPOSALS,
    RAFT_COMMIT_SECONDS,
    RAFT_ELECTIONS,
    RAFT_FILES_BYTES,
    COMPACTION_RUNS,
    COMPACTION_FAILURES,
    COMPACTION_READ_BYTES,
    COMPACTION_WRITTEN_BYTES,
    COMPACTION_RECORDS,
    COMPACTION_DIRTY_RATIO,
    STORAGE_COMMIT_SECONDS,
    STORAGE_SYNC_SECONDS,
    STORAGE_COMMITS,
    STORAGE_COMMIT_BYTES,
    STORAGE_LOG_BYTES,
    DISK_FREE_BYTES,
    DISK_TOTAL_BYTES,
    DISK_ALERT,
    RECOVERY_SECONDS,
    GROUPS,
    GROUP_LAG,
    GROUP_LAG_HIDDEN,
    GROUP_MEMBERS,
    GROUP_REBALANCES,
    READY,
    BUILD_INFO,
    UPTIME_SECONDS,
    ANON_BYTES,
    CPU_SECONDS,
    RESIDENT_BYTES,
    OPEN_FDS,
    MAX_FDS,
];
