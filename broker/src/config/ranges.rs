//! What numbers the settings may be: one row each, so that none is taken and then cannot work.
//!
//! Not here: addresses and words (see `resolve`).

use super::raw::Raw;
use super::resolve::ConfigError;

/// No wait of a broker is longer: beyond it, clocks overflow.
const YEAR_MS: i128 = 366 * 24 * 3600 * 1000;

/// A batch has to fit one file of the write-ahead log (64 MiB) with room for what stands around it.
const MESSAGE_BYTES_MAX: i128 = 48 << 20;

struct Row {
    key: &'static str,
    value: i128,
    min: i128,
    max: Option<i128>,
    /// Why, where the range does not speak for itself.
    because: &'static str,
}

fn from_to(key: &'static str, value: impl Into<i128>, min: i128, max: i128) -> Row {
    Row {
        max: Some(max),
        ..at_least(key, value, min)
    }
}

fn at_least(key: &'static str, value: impl Into<i128>, min: i128) -> Row {
    Row {
        key,
        value: value.into(),
        min,
        max: None,
        because: "",
    }
}

impl Row {
    fn because(self, because: &'static str) -> Row {
        Row { because, ..self }
    }

    fn holds(&self) -> bool {
        self.value >= self.min && self.max.is_none_or(|max| self.value <= max)
    }

    fn refusal(self) -> ConfigError {
        let Row {
            key,
            value,
            min,
            max,
            because,
        } = self;
        let range = match max {
            Some(max) if max == min => min.to_string(),
            Some(max) => format!("from {min} to {max}"),
            None => format!("at least {min}"),
        };
        ConfigError::Range {
            key,
            value: value.to_string(),
            allowed: format!("{range}{because}"),
        }
    }
}

/// # Errors
/// The first setting that is out of its range.
pub(super) fn check_ranges(raw: &Raw) -> Result<(), ConfigError> {
    let rows = [topics(raw), broker(raw), storage(raw), limits(raw)];
    match rows.into_iter().flatten().find(|row| !row.holds()) {
        Some(row) => Err(row.refusal()),
        None => Ok(()),
    }
}

fn topics(raw: &Raw) -> Vec<Row> {
    let t = &raw.topics;
    vec![
        from_to("topics.default_partitions", t.default_partitions, 1, 10_000),
        from_to(
            "topics.default_replication_factor",
            t.default_replication_factor,
            0,
            32,
        ),
        from_to("topics.offsets_partitions", t.offsets_partitions, 1, 1_000),
        from_to(
            "topics.max_message_bytes",
            t.max_message_bytes as i128,
            1,
            MESSAGE_BYTES_MAX,
        ),
        from_to("topics.segment_bytes", t.segment_bytes, 1 << 20, 1 << 30),
        at_least("topics.retention_ms", t.retention_ms, -1).because(" (-1: for ever)"),
        at_least("topics.retention_bytes", t.retention_bytes, -1).because(" (-1: no limit)"),
    ]
}

fn broker(raw: &Raw) -> Vec<Row> {
    let (n, k, g) = (&raw.node, &raw.kafka, &raw.group);
    vec![
        from_to(
            "node.shutdown_timeout_ms",
            n.shutdown_timeout_ms,
            0,
            YEAR_MS,
        ),
        from_to(
            "kafka.fetch_max_bytes",
            k.fetch_max_bytes as i128,
            1024,
            1 << 30,
        ),
        at_least(
            "kafka.producer_id_expiration_ms",
            k.producer_id_expiration_ms,
            1,
        ),
        from_to(
            "group.initial_rebalance_delay_ms",
            g.initial_rebalance_delay_ms,
            0,
            YEAR_MS,
        ),
        from_to(
            "group.min_session_timeout_ms",
            g.min_session_timeout_ms,
            1,
            YEAR_MS,
        ),
        at_least(
            "group.max_session_timeout_ms",
            g.max_session_timeout_ms,
            g.min_session_timeout_ms.into(),
        )
        .because(" (group.min_session_timeout_ms)"),
        at_least("group.max_size", g.max_size as i128, 1),
        at_least(
            "group.offsets_retention_minutes",
            g.offsets_retention_minutes,
            1,
        ),
    ]
}

fn storage(raw: &Raw) -> Vec<Row> {
    let s = &raw.storage;
    vec![
        at_least("storage.wal_budget_bytes", s.wal_budget_bytes, 128 << 20).because(" (128 MiB)"),
        at_least(
            "storage.tail_budget_bytes",
            s.tail_budget_bytes as i128,
            1 << 20,
        )
        .because(" (1 MiB)"),
        from_to(
            "storage.checkpoint_interval_ms",
            s.checkpoint_interval_ms,
            100,
            YEAR_MS,
        ),
        from_to(
            "storage.retention_check_interval_ms",
            s.retention_check_interval_ms,
            100,
            YEAR_MS,
        ),
        from_to(
            "storage.compaction_check_interval_ms",
            s.compaction_check_interval_ms,
            100,
            YEAR_MS,
        ),
        at_least(
            "storage.compaction_map_bytes",
            s.compaction_map_bytes as i128,
            1 << 20,
        )
        .because(" (1 MiB)"),
    ]
}

fn limits(raw: &Raw) -> Vec<Row> {
    let l = &raw.limits;
    vec![
        from_to(
            "limits.max_connections",
            l.max_connections as i128,
            1,
            1 << 20,
        ),
        at_least(
            "limits.max_connections_per_address",
            l.max_connections_per_address as i128,
            1,
        ),
        from_to(
            "limits.max_frame_bytes",
            l.max_frame_bytes as i128,
            1024,
            1 << 30,
        ),
        at_least(
            "limits.in_flight_bytes",
            l.in_flight_bytes as i128,
            l.max_frame_bytes as i128,
        )
        .because(" (limits.max_frame_bytes), or the largest frame could never arrive"),
        from_to(
            "limits.requests_in_flight",
            l.requests_in_flight as i128,
            1,
            1_000,
        ),
        from_to(
            "limits.fetch_sessions",
            l.fetch_sessions as i128,
            0,
            1 << 20,
        ),
        from_to(
            "limits.fetch_session_partitions",
            l.fetch_session_partitions as i128,
            0,
            1 << 30,
        ),
        from_to(
            "limits.group_lag_series",
            l.group_lag_series as i128,
            0,
            100_000,
        ),
        from_to("limits.idle_timeout_ms", l.idle_timeout_ms, 1, YEAR_MS),
        from_to(
            "limits.handshake_timeout_ms",
            l.handshake_timeout_ms,
            1,
            YEAR_MS,
        ),
        from_to(
            "limits.min_frame_bytes_per_second",
            l.min_frame_bytes_per_second,
            0,
            1 << 30,
        ),
        from_to(
            "limits.stalled_timeout_ms",
            l.stalled_timeout_ms,
            1,
            YEAR_MS,
        ),
    ]
}
