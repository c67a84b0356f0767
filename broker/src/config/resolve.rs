//! From what was written to what is meant: plain values, checked against each other.

use super::ranges::check_ranges;
use super::raw::{self, Listener, Raw, Topics};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("`{key}`: `{value}` is not an address: write HOST:PORT, such as 127.0.0.1:9092")]
    Address { key: String, value: String },
    #[error("`{key}` is {value}, must be {allowed}")]
    Range {
        key: &'static str,
        value: String,
        allowed: String,
    },
    #[error("two listeners are called `{0}`; give each a name of its own")]
    ListenerTwice(String),
    #[error(
        "`{key}` listens on {address}, beyond this machine, and nobody who connects is asked who they are: \
         anybody who reaches it can read, write and delete everything. Bind to 127.0.0.1, or say --insecure"
    )]
    Exposed { key: String, address: SocketAddr },
    #[error(
        "`rpc.addr` is {0}, which other brokers cannot connect to: set `rpc.advertise` (--rpc-advertise HOST:PORT) to \
         the address by which the seeds name this broker"
    )]
    NoRpcAdvertise(SocketAddr),
}

/// Settings as the broker uses them.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: NodeConfig,
    pub kafka: KafkaConfig,
    pub topics: Topics,
    pub admin_addr: SocketAddr,
    pub rpc_addr: SocketAddr,
    /// Host and port that other brokers are told; `None`: what was bound.
    pub rpc_advertise: Option<(String, u16)>,
    pub rpc_learner_bytes_per_second: u64,
    pub group: GroupConfig,
    pub storage: StorageConfig,
    pub limits: LimitsConfig,
    pub log_format: LogFormat,
    pub log_level: String,
    /// What will probably not work as wished, to be said at start.
    pub warnings: Vec<String>,
    /// What all of this was made of.
    pub written: Raw,
    /// Connections that the limit of open files has room for, whatever is asked for.
    pub connections_room: usize,
}

#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub data_dir: PathBuf,
    pub seeds: Vec<String>,
    pub rack: Option<String>,
    pub shutdown_timeout: Duration,
}

#[derive(Debug, Clone)]
pub struct ListenerConfig {
    pub name: String,
    pub addr: SocketAddr,
    /// Host and port that clients are told; `None`: what was bound.
    pub advertise: Option<(String, u16)>,
    pub max_frame_bytes: usize,
}

#[derive(Debug, Clone)]
pub struct KafkaConfig {
    pub listeners: Vec<ListenerConfig>,
    pub fetch_max_bytes: usize,
    pub replica_selector: ReplicaSelector,
    pub producer_id_expiration_ms: i64,
}

#[derive(Debug, Clone)]
pub struct GroupConfig {
    pub initial_rebalance_delay_ms: i64,
    pub min_session_timeout_ms: i64,
    pub max_session_timeout_ms: i64,
    pub max_size: usize,
    pub offsets_retention_ms: i64,
}

#[derive(Debug, Clone)]
pub struct StorageConfig {
    pub wal_budget_bytes: u64,
    pub tail_budget_bytes: usize,
    pub reserve_bytes: u64,
    /// As many as storage wants, unless the limit of open files says less.
    pub open_segments_max: usize,
    pub checkpoint_interval: Duration,
    pub retention_check_interval: Duration,
    pub scrub_bytes_per_second: u64,
    pub compaction_check_interval: Duration,
    pub compaction_map_bytes: usize,
    pub compaction_bytes_per_second: u64,
}

#[derive(Debug, Clone)]
pub struct LimitsConfig {
    pub max_connections: usize,
    pub max_connections_per_address: usize,
    pub max_frame_bytes: usize,
    pub in_flight_bytes: usize,
    pub requests_in_flight: usize,
    pub fetch_sessions: usize,
    pub fetch_session_partitions: usize,
    pub group_lag_series: usize,
    pub idle_timeout: Duration,
    pub handshake_timeout: Duration,
    pub stalled_timeout: Duration,
    pub min_frame_bytes_per_second: u64,
}

/// Whom consumers read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaSelector {
    Leader,
    Rack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl TryFrom<Raw> for Config {
    type Error = ConfigError;

    fn try_from(raw: Raw) -> Result<Self, ConfigError> {
        check_ranges(&raw)?;
        let mut warnings = Vec::new();
        let listeners = listeners(&raw, &mut warnings)?;
        let admin_addr = guarded("admin.addr", &raw.admin.addr, raw.node.insecure)?;
        let rpc_addr = guarded("rpc.addr", &raw.rpc.addr, raw.node.insecure)?;
        for seed in &raw.node.seeds {
            host_port("node.seeds", seed)?;
        }
        let rpc_advertise = Some(&raw.rpc.advertise)
            .filter(|a| !a.is_empty())
            .map(|a| host_port("rpc.advertise", a))
            .transpose()?;
        if rpc_advertise.is_none() && rpc_addr.ip().is_unspecified() && !raw.node.seeds.is_empty() {
            return Err(ConfigError::NoRpcAdvertise(rpc_addr));
        }
        let log_format = match raw.log.format.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                return Err(ConfigError::Range {
                    key: "log.format",
                    value: format!("`{other}`"),
                    allowed: "text or json".into(),
                });
            }
        };
        let written = raw.clone();
        let (n, s) = (raw.node, raw.storage);
        Ok(Self {
            node: NodeConfig {
                data_dir: PathBuf::from(n.data_dir),
                seeds: n.seeds,
                rack: Some(n.rack).filter(|r| !r.is_empty()),
                shutdown_timeout: Duration::from_millis(n.shutdown_timeout_ms),
            },
            kafka: kafka(&raw.kafka, listeners)?,
            topics: raw.topics,
            admin_addr,
            rpc_addr,
            rpc_advertise,
            rpc_learner_bytes_per_second: raw.rpc.learner_bytes_per_second,
            group: group(&raw.group),
            storage: StorageConfig {
                wal_budget_bytes: s.wal_budget_bytes,
                tail_budget_bytes: s.tail_budget_bytes,
                reserve_bytes: s.reserve_bytes,
                open_segments_max: usize::MAX,
                checkpoint_interval: Duration::from_millis(s.checkpoint_interval_ms),
                scrub_bytes_per_second: s.scrub_bytes_per_second,
                compaction_check_interval: Duration::from_millis(s.compaction_check_interval_ms),
                compaction_map_bytes: s.compaction_map_bytes,
                compaction_bytes_per_second: s.compaction_bytes_per_second,
                retention_check_interval: Duration::from_millis(s.retention_check_interval_ms),
            },
            limits: limits(&raw.limits),
            log_format,
            log_level: level(&raw.log.level)?,
            warnings,
            written,
            connections_room: usize::MAX,
        })
    }
}

impl Config {
    /// The same broker with other values for what changes while it runs; everything else stays.
    ///
    /// # Errors
    /// A value out of its range, also of what does not change.
    pub fn changed(&self, raw: &Raw) -> Result<Self, ConfigError> {
        check_ranges(raw)?;
        let mut listeners = self.kafka.listeners.clone();
        for (listener, own) in listeners.iter_mut().zip(&self.written.kafka.listeners) {
            listener.max_frame_bytes = frame_limit(own, raw.limits.max_frame_bytes)?;
        }
        if self.written.kafka.listeners.is_empty() {
            let all = listeners.iter_mut();
            all.for_each(|l| l.max_frame_bytes = raw.limits.max_frame_bytes);
        }
        let mut limits = limits(&raw.limits);
        limits.max_connections = limits.max_connections.min(self.connections_room);
        let interval = raw.storage.retention_check_interval_ms;
        Ok(Self {
            kafka: kafka(&raw.kafka, listeners)?,
            topics: raw.topics.clone(),
            rpc_learner_bytes_per_second: raw.rpc.learner_bytes_per_second,
            group: group(&raw.group),
            storage: StorageConfig {
                retention_check_interval: Duration::from_millis(interval),
                scrub_bytes_per_second: raw.storage.scrub_bytes_per_second,
                compaction_check_interval: Duration::from_millis(
                    raw.storage.compaction_check_interval_ms,
                ),
                compaction_map_bytes: raw.storage.compaction_map_bytes,
                compaction_bytes_per_second: raw.storage.compaction_bytes_per_second,
                ..self.storage.clone()
            },
            limits,
            log_level: level(&raw.log.level)?,
            ..self.clone()
        })
    }
}

fn kafka(k: &raw::Kafka, listeners: Vec<ListenerConfig>) -> Result<KafkaConfig, ConfigError> {
    let replica_selector = match k.replica_selector.as_str() {
        "leader" => ReplicaSelector::Leader,
        "rack" => ReplicaSelector::Rack,
        other => {
            return Err(ConfigError::Range {
                key: "kafka.replica_selector",
                value: format!("`{other}`"),
                allowed: "leader or rack".into(),
            });
        }
    };
    Ok(KafkaConfig {
        listeners,
        fetch_max_bytes: k.fetch_max_bytes,
        replica_selector,
        producer_id_expiration_ms: k.producer_id_expiration_ms,
    })
}

/// A filter takes as long to read as it is long, for every place that may log.
const LEVEL_CHARS_MAX: usize = 1_000;

fn level(text: &str) -> Result<String, ConfigError> {
    let understood = tracing_subscriber::EnvFilter::try_new(text).is_ok();
    if understood && text.len() <= LEVEL_CHARS_MAX {
        return Ok(text.to_owned());
    }
    Err(ConfigError::Range {
        key: "log.level",
        value: format!("`{text}`"),
        allowed: format!(
            "a level such as info, or info,logd::server=debug, of at most {LEVEL_CHARS_MAX} characters"
        ),
    })
}

fn group(g: &raw::Group) -> GroupConfig {
    GroupConfig {
        initial_rebalance_delay_ms: g.initial_rebalance_delay_ms,
        min_session_timeout_ms: g.min_session_timeout_ms,
        max_session_timeout_ms: g.max_session_timeout_ms,
        max_size: g.max_size,
        offsets_retention_ms: g.offsets_retention_minutes.saturating_mul(60_000),
    }
}

fn limits(l: &raw::Limits) -> LimitsConfig {
    LimitsConfig {
        max_connections: l.max_connections,
        max_connections_per_address: l.max_connections_per_address,
        max_frame_bytes: l.max_frame_bytes,
        in_flight_bytes: l.in_flight_bytes,
        requests_in_flight: l.requests_in_flight,
        fetch_sessions: l.fetch_sessions,
        fetch_session_partitions: l.fetch_session_partitions,
        group_lag_series: l.group_lag_series,
        idle_timeout: Duration::from_millis(l.idle_timeout_ms),
        handshake_timeout: Duration::from_millis(l.handshake_timeout_ms),
        stalled_timeout: Duration::from_millis(l.stalled_timeout_ms),
        min_frame_bytes_per_second: l.min_frame_bytes_per_second,
    }
}

fn listeners(raw: &Raw, warnings: &mut Vec<String>) -> Result<Vec<ListenerConfig>, ConfigError> {
    let short = [Listener {
        name: "default".into(),
        addr: raw.kafka.addr.clone(),
        advertise: raw.kafka.advertise.clone(),
        max_frame_bytes: 0,
    }];
    let written = if raw.kafka.listeners.is_empty() {
        &short[..]
    } else {
        &raw.kafka.listeners
    };
    let key_of = |name: &str, field: &str| {
        if raw.kafka.listeners.is_empty() {
            format!("kafka.{field}")
        } else {
            format!("kafka.listeners.{name}.{field}")
        }
    };
    let mut names = BTreeSet::new();
    let mut resolved = Vec::with_capacity(written.len());
    for l in written {
        if !names.insert(l.name.clone()) {
            return Err(ConfigError::ListenerTwice(l.name.clone()));
        }
        let addr = guarded(&key_of(&l.name, "addr"), &l.addr, raw.node.insecure)?;
        let advertise = Some(&l.advertise)
            .filter(|a| !a.is_empty())
            .map(|a| host_port(&key_of(&l.name, "advertise"), a))
            .transpose()?;
        warnings.extend(advertise_warning(&l.name, addr, advertise.as_ref()));
        resolved.push(ListenerConfig {
            name: l.name.clone(),
            addr,
            advertise,
            max_frame_bytes: frame_limit(l, raw.limits.max_frame_bytes)?,
        });
    }
    Ok(resolved)
}

/// A listener may take less than all of them, not more.
fn frame_limit(listener: &Listener, of_all: usize) -> Result<usize, ConfigError> {
    match listener.max_frame_bytes {
        0 => Ok(of_all),
        own if (1024..=of_all).contains(&own) => Ok(own),
        own => Err(ConfigError::Range {
            key: "kafka.listeners.max_frame_bytes",
            value: own.to_string(),
            allowed: format!("from 1024 to {of_all} (limits.max_frame_bytes), or 0 for that"),
        }),
    }
}

/// Says why clients will not find their way back, where that can be told from here.
fn advertise_warning(
    name: &str,
    addr: SocketAddr,
    advertise: Option<&(String, u16)>,
) -> Option<String> {
    let (host, beyond) = (advertise.map(|(h, _)| h.as_str()), !addr.ip().is_loopback());
    let advertised_ip = host.and_then(|h| h.parse::<IpAddr>().ok());
    let unspecified = advertised_ip.map_or(host.is_none() && addr.ip().is_unspecified(), |ip| {
        ip.is_unspecified()
    });
    if unspecified {
        return Some(format!(
            "listener {name} advertises {}, which no other machine can connect to: set --advertise HOST:PORT to a name clients can reach",
            advertised_ip.unwrap_or(addr.ip())
        ));
    }
    let local = host == Some("localhost") || advertised_ip.is_some_and(|ip| ip.is_loopback());
    (local && beyond).then(|| format!("listener {name} listens beyond this machine but advertises {}: clients elsewhere will connect to themselves", host.unwrap_or_default()))
}

fn host_port(key: &str, text: &str) -> Result<(String, u16), ConfigError> {
    let wrong = || ConfigError::Address {
        key: key.to_owned(),
        value: text.to_owned(),
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        Err(wrong())
    } else {
        Ok((host.to_owned(), port))
    }
}

fn guarded(key: &str, text: &str, insecure: bool) -> Result<SocketAddr, ConfigError> {
    let wrong = || ConfigError::Address {
        key: key.to_owned(),
        value: text.to_owned(),
    };
    let address = text
        .to_socket_addrs()
        .map_err(|_| wrong())?
        .next()
        .ok_or_else(wrong)?;
    if address.ip().is_loopback() || insecure {
        Ok(address)
    } else {
        Err(ConfigError::Exposed {
            key: key.to_owned(),
            address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Raw)) -> Result<Config, ConfigError> {
        let mut raw = Raw::default();
        change(&mut raw);
        Config::try_from(raw)
    }

    #[test]
    fn the_defaults_are_a_working_broker_on_loopback() {
        let config = with(|_| {}).unwrap();
        assert_eq!(
            config.kafka.listeners[0].addr,
            "127.0.0.1:9092".parse().unwrap()
        );
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn listening_beyond_this_machine_needs_a_word() {
        assert!(matches!(
            with(|r| r.kafka.addr = "0.0.0.0:9092".into()),
            Err(ConfigError::Exposed { .. })
        ));
        let config = with(|r| {
            r.kafka.addr = "0.0.0.0:9092".into();
            r.node.insecure = true;
        })
        .unwrap();
        assert!(
            config.warnings[0].contains("--advertise"),
            "{:?}",
            config.warnings
        );
    }

    #[test]
    fn an_advertised_address_that_cannot_work_is_said() {
        let warned = |advertise: &str| {
            let config = with(|r| {
                r.kafka.addr = "0.0.0.0:9092".into();
                r.kafka.advertise = advertise.into();
                r.node.insecure = true;
            })
            .unwrap();
            !config.warnings.is_empty()
        };
        assert!(warned("0.0.0.0:9092") && warned("localhost:9092") && warned("127.0.0.1:9092"));
        assert!(!warned("logd.example.org:9092"));
    }

    #[test]
    fn seeds_are_addresses_and_need_one_to_come_back_to() {
        let seeds = || vec!["a:9645".to_owned(), "b:9645".to_owned()];
        assert_eq!(
            with(|r| r.node.seeds = seeds()).unwrap().node.seeds,
            seeds()
        );
        assert!(matches!(
            with(|r| r.node.seeds = vec!["a".into()]),
            Err(ConfigError::Address { .. })
        ));
        let everywhere = |advertise: &str| {
            with(|r| {
                r.node.seeds = seeds();
                r.node.insecure = true;
                r.rpc.addr = "0.0.0.0:9645".into();
                r.rpc.advertise = advertise.into();
            })
        };
        assert!(matches!(
            everywhere(""),
            Err(ConfigError::NoRpcAdvertise(_))
        ));
        let advertised = everywhere("a:9645").unwrap().rpc_advertise;
        assert_eq!(advertised, Some(("a".into(), 9645)));
    }

    #[test]
    fn values_that_cannot_work_are_refused_with_the_range() {
        let error = with(|r| r.topics.default_partitions = 0)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "`topics.default_partitions` is 0, must be from 1 to 10000"
        );
        assert!(with(|r| r.limits.in_flight_bytes = 1024).is_err());
        // A batch of this size would not fit the write-ahead log, and end its partition for good.
        assert!(with(|r| r.topics.max_message_bytes = 64 << 20).is_err());
        assert!(with(|r| r.topics.retention_ms = -2).is_err());
        assert!(with(|r| r.limits.max_connections = usize::MAX).is_err());
        assert!(with(|r| r.limits.idle_timeout_ms = u64::MAX).is_err());
        assert!(with(|r| r.log.format = "xml".into()).is_err());
        assert!(with(|r| r.kafka.replica_selector = "any".into()).is_err());
        assert!(matches!(
            with(|r| r.admin.addr = "nowhere".into()),
            Err(ConfigError::Address { .. })
        ));
    }

    #[test]
    fn offsets_that_are_to_be_kept_for_ever_are() {
        let config = with(|r| r.group.offsets_retention_minutes = i64::MAX).unwrap();
        assert_eq!(config.group.offsets_retention_ms, i64::MAX);
        assert!(with(|r| r.group.offsets_retention_minutes = 0).is_err());
    }

    #[test]
    fn two_listeners_may_not_share_a_name() {
        let l = |addr: &str| Listener {
            name: "x".into(),
            addr: addr.into(),
            advertise: String::new(),
            max_frame_bytes: 0,
        };
        assert_eq!(
            with(|r| r.kafka.listeners = vec![l("127.0.0.1:1"), l("127.0.0.1:2")]).unwrap_err(),
            ConfigError::ListenerTwice("x".into())
        );
    }
}
