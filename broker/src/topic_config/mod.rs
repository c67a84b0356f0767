//! A topic's configuration under Kafka's own names.
//!
//! Promise: every name Kafka knows is honoured or refused with the reason, never ignored; what
//! [`TopicConfig::described`] says is what this broker does.
//! Invariant: a [`TopicConfig`] holds values that passed their table row; reading one cannot fail.
//! Not here: who may change a configuration, and where the broker's own defaults come from.

mod describe;
mod overlay;
mod table;

pub use describe::{Described, Layer, Source, of_broker};
pub use overlay::{Overlay, check_default, list_of, names_of_broker};
pub use table::Kind;

use logd_proto::record_batch::{Codec, Compression, RecordRules};
use logd_storage::LogOptions;
use logd_storage::retention::Policy;
use std::collections::BTreeMap;
use table::{Rule, TABLE};

/// What a broker gives topics that say nothing themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDefaults {
    pub max_message_bytes: usize,
    pub segment_bytes: u32,
    /// -1: for ever.
    pub retention_ms: i64,
    /// -1: without limit.
    pub retention_bytes: i64,
    /// What was set while brokers ran, which beats the above.
    pub overlay: Overlay,
}

impl Default for TopicDefaults {
    fn default() -> Self {
        Self {
            // 1 MiB of records and the batch's own header, as in Kafka.
            max_message_bytes: 1_048_588,
            segment_bytes: 128 << 20,
            retention_ms: 7 * 24 * 3600 * 1000,
            retention_bytes: -1,
            overlay: Overlay::default(),
        }
    }
}

/// When a compacted topic's logs are due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CompactionRules {
    pub dirty_ratio_min: f64,
    pub lag_min_ms: i64,
    pub lag_max_ms: i64,
}

/// Why a configuration is refused: INVALID_CONFIG with this text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("Unknown topic config name: {name}{}", did_you_mean(.suggestion))]
    Unknown {
        name: String,
        suggestion: Option<&'static str>,
    },
    #[error("Invalid value {value:?} for configuration {name}: {expected}")]
    Invalid {
        name: &'static str,
        value: String,
        expected: String,
    },
    #[error("{name}={value} cannot be honoured by this version (it takes {takes}): {why}")]
    NotHonoured {
        name: &'static str,
        value: String,
        takes: String,
        why: &'static str,
    },
    #[error(
        "min.insync.replicas={wanted} cannot be kept with {replicas} replica(s): an acknowledgement means a \
         majority, here {majority}; create the topic with more replicas or ask for {majority}"
    )]
    TooFewReplicas {
        wanted: i64,
        replicas: i16,
        majority: i64,
    },
}

fn did_you_mean(suggestion: &Option<&'static str>) -> String {
    suggestion.map_or_else(String::new, |s| format!(" (did you mean {s}?)"))
}

/// A topic's configuration, checked and resolved.
///
/// ```
/// use logd::topic_config::TopicConfig;
/// use std::collections::BTreeMap;
///
/// let asked = BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned())]);
/// let config = TopicConfig::parse(&asked).unwrap();
/// assert!(config.retention_policy().is_none(), "nothing ever expires");
///
/// let wrong = BTreeMap::from([("retention.mss".to_owned(), "1".to_owned())]);
/// let error = TopicConfig::parse(&wrong).unwrap_err().to_string();
/// assert!(error.contains("did you mean retention.ms?"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfig {
    /// What the topic itself says, by the table's names.
    asked: BTreeMap<&'static str, String>,
    defaults: TopicDefaults,
    segment_ms: i64,
    delete_retention_ms: i64,
    /// In millionths: a configuration is compared.
    dirty_ratio_min_ppm: u32,
    compaction_lag_min_ms: i64,
    compaction_lag_max_ms: i64,
    deletes: bool,
    compacts: bool,
    min_insync_replicas: i64,
    log_append_time: bool,
    /// `None`: as the producer sent it.
    stored_as: Option<Codec>,
    timestamp_before_ms_max: i64,
    timestamp_after_ms_max: i64,
    /// With the topic's own values in place of the broker's.
    effective: TopicDefaults,
}

const RATIO_PPM: f64 = 1e6;

impl TopicConfig {
    /// Checks what a client asked for. Values of the broker come in with [`TopicConfig::over`].
    ///
    /// # Errors
    /// The first name or value that cannot be honoured, and why.
    pub fn parse(asked: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut checked = BTreeMap::new();
        for (name, value) in asked {
            let row = row(name)?;
            checked.insert(row.name, row.check(value)?);
        }
        Ok(Self::resolve(checked, TopicDefaults::default()))
    }

    /// What the broker gives where the topic says nothing.
    pub fn defaults(&self) -> &TopicDefaults {
        &self.defaults
    }

    /// Whether both topics say the same for themselves, whatever their brokers do.
    pub fn asks_as(&self, other: &TopicConfig) -> bool {
        self.asked == other.asked
    }

    /// The same topic on a broker with these defaults.
    #[must_use]
    pub fn over(&self, defaults: &TopicDefaults) -> Self {
        Self::resolve(self.asked.clone(), defaults.clone())
    }

    fn resolve(asked: BTreeMap<&'static str, String>, defaults: TopicDefaults) -> Self {
        let text = |name: &str| {
            asked
                .get(name)
                .map_or_else(|| default_of(name, &defaults), Clone::clone)
        };
        // The table has checked every value, its own defaults too: zero stands for what cannot happen.
        let number = |name: &str| text(name).parse::<i64>().unwrap_or(0);
        let policy = text("cleanup.policy");
        Self {
            segment_ms: number("segment.ms"),
            delete_retention_ms: number("delete.retention.ms"),
            dirty_ratio_min_ppm: (text("min.cleanable.dirty.ratio").parse().unwrap_or(1.0)
                * RATIO_PPM) as u32,
            compaction_lag_min_ms: number("min.compaction.lag.ms"),
            compaction_lag_max_ms: number("max.compaction.lag.ms"),
            deletes: policy.split(',').any(|p| p == "delete"),
            compacts: policy.split(',').any(|p| p == "compact"),
            min_insync_replicas: number("min.insync.replicas"),
            stored_as: stored_as(&text("compression.type"), |codec| {
                i32::try_from(number(&format!("compression.{codec}.level"))).ok()
            }),
            log_append_time: text("message.timestamp.type") == "LogAppendTime",
            timestamp_before_ms_max: number("message.timestamp.before.max.ms"),
            timestamp_after_ms_max: number("message.timestamp.after.max.ms"),
            effective: TopicDefaults {
                max_message_bytes: usize::try_from(number("max.message.bytes")).unwrap_or(0),
                segment_bytes: u32::try_from(number("segment.bytes")).unwrap_or(u32::MAX),
                retention_ms: number("retention.ms"),
                retention_bytes: number("retention.bytes"),
                overlay: Overlay::default(),
            },
            asked,
            defaults,
        }
    }

    /// Whether so many replicas can keep `min.insync.replicas`.
    ///
    /// # Errors
    /// If it asks for more than the majority that an acknowledgement stands for.
    pub fn check_replicas(&self, replicas: i16) -> Result<(), ConfigError> {
        let majority = i64::from(replicas) / 2 + 1;
        if self.min_insync_replicas > majority {
            return Err(ConfigError::TooFewReplicas {
                wanted: self.min_insync_replicas,
                replicas,
                majority,
            });
        }
        Ok(())
    }

    /// How the log of a partition rolls its segments.
    pub fn log_options(&self) -> LogOptions {
        LogOptions {
            segment_bytes: self.effective.segment_bytes,
            // What must be compacted in time must not stay in the segment that grows.
            segment_ms: Some(match self.compacts {
                true => self.segment_ms.min(self.compaction_lag_max_ms),
                false => self.segment_ms,
            }),
        }
    }

    /// What expires; `None` if nothing does.
    pub fn retention_policy(&self) -> Option<Policy> {
        let policy = Policy {
            max_bytes: u64::try_from(self.effective.retention_bytes).ok(),
            max_age_ms: (self.effective.retention_ms >= 0).then_some(self.effective.retention_ms),
        };
        (self.deletes && policy != Policy::default()).then_some(policy)
    }

    /// The largest batch, as the producer sent it.
    pub fn max_message_bytes(&self) -> usize {
        self.effective.max_message_bytes
    }

    /// The latest timestamp a record may have at `now`. A broker that stamps records itself does not care.
    pub fn timestamp_max(&self, now: i64) -> i64 {
        if self.log_append_time {
            i64::MAX
        } else {
            now.saturating_add(self.timestamp_after_ms_max)
        }
    }

    /// The earliest timestamp a record may have at `now`.
    pub fn timestamp_min(&self, now: i64) -> i64 {
        if self.log_append_time {
            i64::MIN
        } else {
            now.saturating_sub(self.timestamp_before_ms_max)
        }
    }

    /// What every record must satisfy. Each is looked at, as in Kafka: a record that does not decode
    /// would stop every consumer that comes to it, for as long as it is kept.
    pub fn record_rules(&self, now: i64) -> RecordRules {
        RecordRules {
            keys_required: self.compacts,
            timestamp_max: self.timestamp_max(now),
            timestamp_min: self.timestamp_min(now),
            // A compressed batch of a legal size may be this much larger inside: beyond it we take it for a bomb.
            output_bytes_max: self.max_message_bytes().saturating_mul(64).min(256 << 20),
        }
    }

    /// How batches are stored, if not as the producer sent them.
    pub fn stored_as(&self) -> Option<Codec> {
        self.stored_as
    }

    pub fn log_append_time(&self) -> bool {
        self.log_append_time
    }

    /// Whether old records go.
    pub fn deletes(&self) -> bool {
        self.deletes
    }

    /// When its logs are compacted; `None` if they are not.
    pub fn compaction_rules(&self) -> Option<CompactionRules> {
        self.compacts.then(|| CompactionRules {
            dirty_ratio_min: f64::from(self.dirty_ratio_min_ppm) / RATIO_PPM,
            lag_min_ms: self.compaction_lag_min_ms,
            lag_max_ms: self.compaction_lag_max_ms,
        })
    }

    /// How long a tombstone stays after compaction has met it.
    pub fn delete_retention_ms(&self) -> i64 {
        self.delete_retention_ms
    }

    pub fn is_compacted(&self) -> bool {
        self.compacts
    }

    pub fn min_insync_replicas(&self) -> i64 {
        self.min_insync_replicas
    }
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self::resolve(BTreeMap::new(), TopicDefaults::default())
    }
}

fn stored_as(word: &str, level: impl Fn(&str) -> Option<i32>) -> Option<Codec> {
    let (compression, level) = match word {
        "uncompressed" => (Compression::None, None),
        // Kafka's number for gzip's own default.
        "gzip" => (Compression::Gzip, level(word).filter(|l| *l >= 0)),
        "snappy" => (Compression::Snappy, None),
        "lz4" => (Compression::Lz4, None),
        "zstd" => (Compression::Zstd, level(word)),
        _ => return None,
    };
    Some(Codec { compression, level })
}

/// The value of a topic that says nothing: the broker's where it has one, the table's otherwise.
fn default_of(name: &str, defaults: &TopicDefaults) -> String {
    match defaults.overlay.get(name) {
        Some(set) => set.to_owned(),
        None => static_default_of(name, defaults),
    }
}

/// The same, as if nothing had been set while brokers ran.
fn static_default_of(name: &str, defaults: &TopicDefaults) -> String {
    match name {
        "max.message.bytes" => defaults.max_message_bytes.to_string(),
        "segment.bytes" => defaults.segment_bytes.to_string(),
        "retention.ms" => defaults.retention_ms.to_string(),
        "retention.bytes" => defaults.retention_bytes.to_string(),
        _ => table::find(name).map_or_else(String::new, |row| row.default.to_owned()),
    }
}

/// A configuration's kind, and its value where neither topic nor broker say anything.
///
/// # Errors
/// If there is no such configuration.
pub fn usual(name: &str) -> Result<(Kind, &'static str), ConfigError> {
    let row = row(name)?;
    Ok((row.kind, row.default))
}

fn row(name: &str) -> Result<&'static table::Row, ConfigError> {
    table::find(name).ok_or_else(|| ConfigError::Unknown {
        name: name.to_owned(),
        suggestion: table::nearest(name),
    })
}

/// One row of documentation: name, default, what it takes, what it does here.
pub fn documentation() -> impl Iterator<Item = (&'static str, &'static str, String, &'static str)> {
    TABLE.iter().map(|row| {
        let what = match row.rule {
            Rule::Only(_, why) => why,
            _ => row.meaning,
        };
        (row.name, row.default, row.rule.takes(), what)
    })
}

#[cfg(test)]
mod tests;
