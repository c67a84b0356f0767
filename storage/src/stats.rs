//! What the disk counts about itself, for metrics. Sums only; rates and percentiles are the reader's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub groups: AtomicU64,
    pub operations: AtomicU64,
    pub payload_bytes: AtomicU64,
    pub wal_bytes: AtomicU64,
    pub wal_files: AtomicU64,
    pub copied_bytes: AtomicU64,
    pub checkpoints: AtomicU64,
    pub checkpoint_bytes: AtomicU64,
    sync_ns: AtomicU64,
}

/// Counters since the start, and what is held now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DiskStats {
    /// Groups written, each with one sync.
    pub syncs: u64,
    pub sync_seconds: f64,
    /// Entries, votes and the like in those groups.
    pub operations: u64,
    pub payload_bytes: u64,
    /// What reached the write-ahead log, padding included.
    pub wal_bytes: u64,
    pub wal_used_bytes: u64,
    /// What was copied to segments.
    pub copied_bytes: u64,
    pub checkpoints: u64,
    pub checkpoint_bytes: u64,
    /// Staged and not yet in a segment.
    pub tail_bytes: u64,
    pub logs: u64,
    pub segments: u64,
}

impl Stats {
    pub fn synced(&self, took: Duration, operations: u64, payload_bytes: u64, wal_bytes: u64) {
        for (counter, by) in [
            (&self.sync_ns, took.as_nanos() as u64),
            (&self.groups, 1),
            (&self.operations, operations),
            (&self.payload_bytes, payload_bytes),
            (&self.wal_bytes, wal_bytes),
        ] {
            counter.fetch_add(by, Ordering::Relaxed);
        }
    }

    pub fn read(&self) -> DiskStats {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        DiskStats {
            syncs: get(&self.groups),
            sync_seconds: get(&self.sync_ns) as f64 / 1e9,
            operations: get(&self.operations),
            payload_bytes: get(&self.payload_bytes),
            wal_bytes: get(&self.wal_bytes),
            copied_bytes: get(&self.copied_bytes),
            checkpoints: get(&self.checkpoints),
            checkpoint_bytes: get(&self.checkpoint_bytes),
            ..DiskStats::default()
        }
    }
}
