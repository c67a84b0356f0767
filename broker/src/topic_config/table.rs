//! The table of topic configurations: name, kind, default, what is taken, what it does.
//!
//! Promise: a row whose rule is not [`Rule::Only`] is honoured for every value the rule takes. Defaults
//! are Kafka's, except where our true behaviour is another: then the default says so.
//! Not here: what the values are used for.

use super::ConfigError;

/// A batch has to fit one file of the write-ahead log (64 MiB) with room for what stands around it.
pub const MESSAGE_BYTES_MAX: i64 = 48 << 20;

/// A segment below this is mostly overhead: two files, two descriptors and a map each.
const SEGMENT_BYTES_MIN: i64 = 16 << 10;

/// Positions in a segment stay below what Kafka's own tools read.
const SEGMENT_BYTES_MAX: i64 = i32::MAX as i64;

/// What values a configuration takes.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// A whole number between two, inclusive.
    Int(i64, i64),
    /// A number between 0 and 1.
    Ratio,
    /// One of these words.
    Word(&'static [&'static str]),
    /// `delete` and `compact`, one, both or none.
    Policies,
    /// Kafka knows more, this version takes only these, for a reason.
    Only(&'static [&'static str], &'static str),
}

/// What a value is, as Kafka tells its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Boolean,
    String,
    Int,
    Short,
    Long,
    Double,
    List,
}

#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    /// The broker's setting that stands in for it where a topic says nothing; empty if Kafka has none.
    pub broker_name: &'static str,
    pub kind: Kind,
    pub default: &'static str,
    pub rule: Rule,
    /// What it does; empty where the rule's reason says it.
    pub meaning: &'static str,
}

const fn row(
    name: &'static str,
    broker_name: &'static str,
    kind: Kind,
    default: &'static str,
    rule: Rule,
    meaning: &'static str,
) -> Row {
    Row {
        name,
        broker_name,
        kind,
        default,
        rule,
        meaning,
    }
}

const NO_TIERS: &str = "there is no remote storage";
const NO_THROTTLE: &str = "one broker replicates nothing, so there is nothing to throttle";
const FOREVER: &str = "9223372036854775807";

/// In the order of their names.
pub const TABLE: &[Row] = &[
    row(
        "cleanup.policy",
        "log.cleanup.policy",
        Kind::List,
        "delete",
        Rule::Policies,
        "delete: old segments expire. compact: records need keys, and of each key the last one stays",
    ),
    row(
        "compression.gzip.level",
        "compression.gzip.level",
        Kind::Int,
        "-1",
        Rule::Word(&["-1", "1", "2", "3", "4", "5", "6", "7", "8", "9"]),
        "how hard gzip tries where compression.type is gzip; -1: its own default",
    ),
    row(
        "compression.lz4.level",
        "compression.lz4.level",
        Kind::Int,
        "9",
        Rule::Only(&["9"], "lz4 is written at one level"),
        "",
    ),
    row(
        "compression.type",
        "compression.type",
        Kind::String,
        "producer",
        Rule::Word(&["producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"]),
        "how batches are stored; producer: as they were sent, which costs this broker nothing",
    ),
    row(
        "compression.zstd.level",
        "compression.zstd.level",
        Kind::Int,
        "3",
        Rule::Int(-131_072, 22),
        "how hard zstd tries where compression.type is zstd",
    ),
    row(
        "delete.retention.ms",
        "log.cleaner.delete.retention.ms",
        Kind::Long,
        "86400000",
        Rule::Int(0, i64::MAX),
        "the last tombstone of a key goes at the next compaction when it has stayed this long after the first one that \
         met it",
    ),
    row(
        "file.delete.delay.ms",
        "log.segment.delete.delay.ms",
        Kind::Long,
        "0",
        Rule::Only(&["0"], "files that expire go at once"),
        "",
    ),
    row(
        "flush.messages",
        "log.flush.interval.messages",
        Kind::Long,
        "1",
        Rule::Int(1, i64::MAX),
        "every batch is synced before it is acknowledged, which keeps any value",
    ),
    row(
        "flush.ms",
        "log.flush.interval.ms",
        Kind::Long,
        "0",
        Rule::Int(0, i64::MAX),
        "every batch is synced before it is acknowledged, which keeps any value",
    ),
    row(
        "follower.replication.throttled.replicas",
        "",
        Kind::List,
        "",
        Rule::Only(&[""], NO_THROTTLE),
        "",
    ),
    row(
        "index.interval.bytes",
        "log.index.interval.bytes",
        Kind::Int,
        "0",
        Rule::Int(0, i32::MAX as i64),
        "every batch is indexed, which is denser than any value",
    ),
    row(
        "leader.replication.throttled.replicas",
        "",
        Kind::List,
        "",
        Rule::Only(&[""], NO_THROTTLE),
        "",
    ),
    row(
        "local.retention.bytes",
        "log.local.retention.bytes",
        Kind::Long,
        "-2",
        Rule::Only(&["-2"], NO_TIERS),
        "",
    ),
    row(
        "local.retention.ms",
        "log.local.retention.ms",
        Kind::Long,
        "-2",
        Rule::Only(&["-2"], NO_TIERS),
        "",
    ),
    row(
        "max.compaction.lag.ms",
        "log.cleaner.max.compaction.lag.ms",
        Kind::Long,
        FOREVER,
        Rule::Int(1, i64::MAX),
        "a compacted topic's records are compacted when they are this old, however few; segments end in time",
    ),
    row(
        "max.message.bytes",
        "message.max.bytes",
        Kind::Int,
        "1048588",
        Rule::Int(1, MESSAGE_BYTES_MAX),
        "the largest batch, as compressed by the producer",
    ),
    row(
        "message.timestamp.after.max.ms",
        "log.message.timestamp.after.max.ms",
        Kind::Long,
        "3600000",
        Rule::Int(0, i64::MAX),
        "how far ahead of the broker's clock a record may be",
    ),
    row(
        "message.timestamp.before.max.ms",
        "log.message.timestamp.before.max.ms",
        Kind::Long,
        FOREVER,
        Rule::Int(0, i64::MAX),
        "how far behind the broker's clock a record may be",
    ),
    row(
        "message.timestamp.type",
        "log.message.timestamp.type",
        Kind::String,
        "CreateTime",
        Rule::Word(&["CreateTime", "LogAppendTime"]),
        "whose clock stamps the records: the producer's or the broker's",
    ),
    row(
        "min.cleanable.dirty.ratio",
        "log.cleaner.min.cleanable.ratio",
        Kind::Double,
        "0.5",
        Rule::Ratio,
        "compaction starts when this part of what it may touch is new",
    ),
    row(
        "min.compaction.lag.ms",
        "log.cleaner.min.compaction.lag.ms",
        Kind::Long,
        "0",
        Rule::Int(0, i64::MAX),
        "compaction leaves segments alone whose newest record is younger, or has no timestamp",
    ),
    row(
        "min.insync.replicas",
        "min.insync.replicas",
        Kind::Int,
        "1",
        Rule::Int(1, i32::MAX as i64),
        "replicas behind an acknowledgement; at most a majority of the topic's",
    ),
    row(
        "preallocate",
        "log.preallocate",
        Kind::Boolean,
        "true",
        Rule::Only(
            &["true"],
            "segments are always preallocated, so that a full disk is noticed early",
        ),
        "",
    ),
    row(
        "remote.log.copy.disable",
        "",
        Kind::Boolean,
        "false",
        Rule::Only(&["false"], NO_TIERS),
        "",
    ),
    row(
        "remote.log.delete.on.disable",
        "",
        Kind::Boolean,
        "false",
        Rule::Only(&["false"], NO_TIERS),
        "",
    ),
    row(
        "remote.storage.enable",
        "",
        Kind::Boolean,
        "false",
        Rule::Only(&["false"], NO_TIERS),
        "",
    ),
    row(
        "retention.bytes",
        "log.retention.bytes",
        Kind::Long,
        "-1",
        Rule::Int(-1, i64::MAX),
        "a partition's oldest segments go above this size; -1: no limit",
    ),
    row(
        "retention.ms",
        "log.retention.ms",
        Kind::Long,
        "604800000",
        Rule::Int(-1, i64::MAX),
        "segments go when their newest record is this old; -1: never",
    ),
    row(
        "segment.bytes",
        "log.segment.bytes",
        Kind::Int,
        "134217728",
        Rule::Int(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
        "a new segment begins at this size",
    ),
    row(
        "segment.index.bytes",
        "log.index.size.max.bytes",
        Kind::Int,
        "10485760",
        Rule::Only(&["10485760"], "an index is as large as its segment needs"),
        "",
    ),
    row(
        "segment.jitter.ms",
        "log.roll.jitter.ms",
        Kind::Long,
        "0",
        Rule::Only(&["0"], "segments roll when they are due"),
        "",
    ),
    row(
        "segment.ms",
        "log.roll.ms",
        Kind::Long,
        "604800000",
        Rule::Int(1, i64::MAX),
        "a new segment begins at this age",
    ),
    row(
        "unclean.leader.election.enable",
        "unclean.leader.election.enable",
        Kind::Boolean,
        "false",
        Rule::Only(
            &["false"],
            "a replica without acknowledged records can never lead",
        ),
        "",
    ),
];

/// Names that Kafka had once, and what to use instead.
const FORMER: &[(&str, &str)] = &[(
    "message.timestamp.difference.max.ms",
    "message.timestamp.before.max.ms",
)];

pub fn find(name: &str) -> Option<&'static Row> {
    TABLE
        .binary_search_by(|row| row.name.cmp(name))
        .ok()
        .map(|at| &TABLE[at])
}

/// The name that was probably meant.
pub fn nearest(name: &str) -> Option<&'static str> {
    if let Some((_, now)) = FORMER.iter().find(|(former, _)| *former == name) {
        return Some(now);
    }
    let likeness = |row: &&Row| strsim::jaro_winkler(row.name, name);
    let best = TABLE
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&best) > 0.85).then_some(best.name)
}

impl Rule {
    /// What is taken, in words.
    pub fn takes(&self) -> String {
        match self {
            Rule::Int(min, i64::MAX) => format!("a whole number from {min}"),
            Rule::Int(min, max) => format!("a whole number from {min} to {max}"),
            Rule::Ratio => "a number from 0 to 1".to_owned(),
            Rule::Word(words) => words.join(" or "),
            Rule::Policies => "delete, compact, both with a comma, or nothing".to_owned(),
            Rule::Only([""], _) => "only an empty value".to_owned(),
            Rule::Only(words, _) => format!("only {}", words.join(", ")),
        }
    }
}

impl Row {
    /// The value in the form it is kept.
    pub fn check(&self, value: &str) -> Result<String, ConfigError> {
        let value = value.trim();
        let taken = match self.rule {
            Rule::Int(min, max) => value
                .parse::<i64>()
                .ok()
                .filter(|n| (min..=max).contains(n))
                .map(|n| n.to_string()),
            Rule::Ratio => value
                .parse::<f64>()
                .ok()
                .filter(|n| (0.0..=1.0).contains(n))
                .map(|n| n.to_string()),
            Rule::Word(words) | Rule::Only(words, _) => {
                words.contains(&value).then(|| value.to_owned())
            }
            Rule::Policies => policies(value),
        };
        taken.ok_or_else(|| self.refusal(value))
    }

    fn refusal(&self, value: &str) -> ConfigError {
        let (name, value, takes) = (self.name, value.to_owned(), self.rule.takes());
        match self.rule {
            Rule::Only(_, why) => ConfigError::NotHonoured {
                name,
                value,
                takes,
                why,
            },
            _ => ConfigError::Invalid {
                name,
                value,
                expected: format!("{takes} is needed"),
            },
        }
    }
}

fn policies(value: &str) -> Option<String> {
    let mut wanted: Vec<&str> = value
        .split(',')
        .map(str::trim)
        .filter(|p| !p.is_empty())
        .collect();
    wanted.dedup();
    wanted
        .iter()
        .all(|p| matches!(*p, "delete" | "compact"))
        .then(|| wanted.join(","))
}
