//! The file's shape, with every default. What a value means is decided in `resolve`.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    pub node: Node,
    pub kafka: Kafka,
    pub topics: Topics,
    pub admin: Admin,
    pub rpc: Rpc,
    pub group: Group,
    pub storage: Storage,
    pub limits: Limits,
    pub log: Log,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// Where everything is kept. One directory is one disk.
    pub data_dir: String,
    /// The failure domain this broker stands in; empty for none.
    pub rack: String,
    /// Broker-to-broker addresses of the cluster's first brokers, this one's among them; the same list
    /// on each. Empty: this broker is a cluster of its own.
    pub seeds: Vec<String>,
    /// Listen beyond loopback although nobody is asked who they are.
    pub insecure: bool,
    /// How long a stop may take to finish what is in flight.
    pub shutdown_timeout_ms: u64,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            data_dir: "./logd-data".into(),
            rack: String::new(),
            seeds: Vec::new(),
            insecure: false,
            shutdown_timeout_ms: 30_000,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    /// The one listener of the short form; port 0 takes a free one.
    pub addr: String,
    /// What clients are told to connect to; empty: the address that was bound.
    pub advertise: String,
    /// The long form, `[[kafka.listeners]]`: several listeners with names. Replaces `addr` and `advertise`.
    /// In the environment: `inside=0.0.0.0:9092/kafka-1:9092,outside=0.0.0.0:19092/localhost:19092`.
    pub listeners: Vec<Listener>,
    /// Most record bytes in one Fetch response.
    pub fetch_max_bytes: usize,
    /// Whom consumers read from: `rack`: a follower in their own rack, if they say which it is and one keeps up
    /// (KIP-392), or else the leader; `leader`: always the leader, as Kafka's brokers unless told otherwise.
    pub replica_selector: String,
    /// A producer silent for this long is forgotten.
    pub producer_id_expiration_ms: i64,
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            addr: "127.0.0.1:9092".into(),
            advertise: String::new(),
            listeners: Vec::new(),
            fetch_max_bytes: 55 << 20,
            // Nobody is sent anywhere who has not named a rack, to a broker that was not given one.
            replica_selector: "rack".into(),
            producer_id_expiration_ms: 86_400_000,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    pub name: String,
    pub addr: String,
    #[serde(default)]
    pub advertise: String,
    /// Largest request on this listener; 0: `limits.max_frame_bytes`, which is the most it can be.
    #[serde(default)]
    pub max_frame_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Topics {
    /// Metadata for an unknown topic creates it, as in Kafka.
    pub auto_create: bool,
    pub default_partitions: i32,
    /// 0: three where there are three brokers or more, else one.
    pub default_replication_factor: i16,
    /// Partitions of `__consumer_offsets`, when it is created.
    pub offsets_partitions: i32,
    /// What a topic has that says nothing of its own: largest batch, segment size, retention (-1: no limit).
    pub max_message_bytes: usize,
    pub segment_bytes: u32,
    pub retention_ms: i64,
    pub retention_bytes: i64,
}

impl Default for Topics {
    fn default() -> Self {
        Self {
            auto_create: true,
            default_partitions: 1,
            default_replication_factor: 0,
            offsets_partitions: 50,
            max_message_bytes: 1_048_588,
            segment_bytes: 128 << 20,
            retention_ms: 604_800_000,
            retention_bytes: -1,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// HTTP: health and metrics.
    pub addr: String,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            addr: "127.0.0.1:9644".into(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rpc {
    /// Broker to broker, gRPC.
    pub addr: String,
    /// What other brokers are told to connect to; empty: the address that was bound.
    pub advertise: String,
    /// What replicas that do not vote yet are sent, all together: filling them leaves room for clients; 0: no limit.
    pub learner_bytes_per_second: u64,
}

impl Default for Rpc {
    fn default() -> Self {
        Self {
            addr: "127.0.0.1:9645".into(),
            advertise: String::new(),
            learner_bytes_per_second: 100 << 20,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Group {
    /// How long the first rebalance of an empty group waits for more members.
    pub initial_rebalance_delay_ms: i64,
    pub min_session_timeout_ms: i64,
    pub max_session_timeout_ms: i64,
    pub max_size: usize,
    /// Offsets of an empty group are kept this long.
    pub offsets_retention_minutes: i64,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            initial_rebalance_delay_ms: 3_000,
            min_session_timeout_ms: 6_000,
            max_session_timeout_ms: 1_800_000,
            max_size: 10_000,
            offsets_retention_minutes: 10_080,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// Space for the shared write-ahead log; half of it between two checkpoints.
    pub wal_budget_bytes: u64,
    /// Memory for entries that are not in their segment yet.
    pub tail_budget_bytes: usize,
    /// Free space below which produce is refused.
    pub reserve_bytes: u64,
    pub checkpoint_interval_ms: u64,
    /// How often old segments are looked for.
    pub retention_check_interval_ms: u64,
    /// How fast what nobody reads is read, to find damage while other replicas can mend it; 0: not at all.
    pub scrub_bytes_per_second: u64,
    /// How often compacted topics are looked at.
    pub compaction_check_interval_ms: u64,
    /// Memory for the keys of the log that is compacted; one with more of them takes several passes.
    pub compaction_map_bytes: usize,
    /// How fast compaction reads and writes together; 0: no limit.
    pub compaction_bytes_per_second: u64,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            wal_budget_bytes: 1 << 30,
            tail_budget_bytes: 32 << 20,
            reserve_bytes: 256 << 20,
            checkpoint_interval_ms: 10_000,
            retention_check_interval_ms: 300_000,
            scrub_bytes_per_second: 4 << 20,
            compaction_check_interval_ms: 15_000,
            compaction_map_bytes: 128 << 20,
            compaction_bytes_per_second: 256 << 20,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub max_connections: usize,
    pub max_connections_per_address: usize,
    pub max_frame_bytes: usize,
    /// What requests above 16 KiB of all connections together may hold. Smaller ones never wait for others: a connection
    /// holds at most 16 KiB for each of its `requests_in_flight`, and 16 KiB to read into.
    pub in_flight_bytes: usize,
    /// Of one connection; more are not read before one is answered.
    pub requests_in_flight: usize,
    /// Fetch sessions (KIP-227), and the partitions of all of them; a client without one sends whole requests.
    pub fetch_sessions: usize,
    pub fetch_session_partitions: usize,
    /// Series of `logd_group_lag_records` on the metrics page; groups furthest behind come first.
    pub group_lag_series: usize,
    pub idle_timeout_ms: u64,
    /// The first request of a connection must be here within this.
    pub handshake_timeout_ms: u64,
    /// A frame that has begun, and answers that wait to be read, must move on within this.
    pub stalled_timeout_ms: u64,
    /// What a frame that has begun must bring, on average over such a span, if it does not end in it.
    pub min_frame_bytes_per_second: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_connections_per_address: 2_000,
            max_frame_bytes: 100 << 20,
            in_flight_bytes: 128 << 20,
            requests_in_flight: 5,
            fetch_sessions: 1_000,
            fetch_session_partitions: 200_000,
            group_lag_series: 1_000,
            idle_timeout_ms: 600_000,
            handshake_timeout_ms: 60_000,
            stalled_timeout_ms: 30_000,
            min_frame_bytes_per_second: 1_024,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `text` or `json`.
    pub format: String,
    /// As `tracing` filters are written: `info`, or `info,logd::server=debug`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: "text".into(),
            level: "info,openraft=off".into(),
        }
    }
}
