//! Compaction: of each key the last record stays; which log is next, and how fast.
//!
//! One log at a time, the one with most to gain first, on a thread of its own and below a rate. Each replica
//! compacts for itself what it has applied: sealed segments below the high watermark, never the segment with
//! the newest records. First they go below the snapshot, out of the Raft log: no replica is ever sent what is
//! left of an entry, but the files. So a leader waits with what a live follower still lacks, for a while.
//! Invariant: a log whose compaction fails is told of and set aside for a while; the others go on.
//! Not here: what of a batch stays (`filter`), one run over a log (`run`), files (storage).

mod filter;
mod keys;
mod plan;
mod run;
#[cfg(test)]
mod tests;

use super::replica::Clock;
use super::{Partition, Registry};
use crate::metrics;
use crate::raft::off_the_loop_in_steps;
use futures_util::future::BoxFuture;
use keys::KeyHasher;
use logd_proto::Uuid;
use plan::Dirt;
use run::{Done, RunError, Task};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

/// A log that could not be compacted is tried again after this long: its damage may be mended by then.
const SET_ASIDE: Duration = Duration::from_secs(600);

/// A follower that is there and still lacks what is due after this long is given files.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

/// How long the snapshot may take to move below what is to be compacted, and how often that is looked at.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);
const SETTLE_EVERY: Duration = Duration::from_millis(20);

/// How compaction goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How often logs are looked at.
    pub every: Duration,
    /// Memory for the keys of one log.
    pub map_bytes: usize,
    /// Read and written together; 0: no limit.
    pub bytes_per_second: u64,
    /// Nobody who chooses keys may know them.
    pub hash_seeds: [u64; 2],
}

/// Compacts what is due, round after round, until it is dropped. A run that is under way when the settings change ends
/// with what it has done, and the next goes on with the others.
pub async fn keep(registry: Arc<Registry>, mut settings: watch::Receiver<Settings>, clock: Clock) {
    let mut aside: HashMap<Key, Instant> = HashMap::new();
    let mut waiting: HashMap<Key, Instant> = HashMap::new();
    loop {
        wait_for_round(&mut settings).await;
        let now = Instant::now();
        aside.retain(|_, until| *until > now);
        for (partition, dirt) in due(&registry, &mut waiting, clock()) {
            let key = key_of(&partition);
            if aside.contains_key(&key) || !holds(&registry, &partition) {
                continue;
            }
            match compact(&registry, &partition, dirt, &settings, clock()).await {
                Ok(_) | Err(RunError::Stopped) => {}
                // Deleted meanwhile.
                Err(_) if !holds(&registry, &partition) => {}
                Err(error) => {
                    metrics::compaction_failed();
                    warn!(topic = partition.topic(), partition = partition.index(), %error, "compaction put off");
                    aside.insert(key, now + SET_ASIDE);
                }
            }
        }
    }
}

async fn wait_for_round(settings: &mut watch::Receiver<Settings>) {
    let begun = Instant::now();
    loop {
        let due = begun + settings.borrow_and_update().every;
        tokio::select! {
            () = tokio::time::sleep_until(due) => return,
            Ok(()) = settings.changed() => {}
        }
    }
}

fn holds(registry: &Registry, partition: &Arc<Partition>) -> bool {
    let held = registry.get(&partition.topic_id(), partition.index());
    held.is_some_and(|held| Arc::ptr_eq(&held, partition))
}

type Key = (Uuid, i32);

fn key_of(partition: &Partition) -> Key {
    (partition.topic_id(), partition.index())
}

/// With whom a leader waits before what it has leaves the Raft log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitFor {
    /// Who is there and could be sent it.
    Live,
    Nobody,
}

/// Partitions whose log is due and what of it, the dirtiest first. `waiting`: since when a log waits for some
/// follower.
fn due(
    registry: &Registry,
    waiting: &mut HashMap<Key, Instant>,
    now_ms: i64,
) -> Vec<(Arc<Partition>, Dirt)> {
    let all = registry.all();
    let keys: HashSet<Key> = all.iter().map(|p| key_of(p)).collect();
    waiting.retain(|key, _| keys.contains(key));
    let dirty = all.into_iter().filter_map(|partition| {
        let own = partition.dirt(WaitFor::Nobody, now_ms)?;
        let key = key_of(&partition);
        if !own.due {
            waiting.remove(&key);
            return Some((partition, own));
        }
        let of_all = partition.dirt(WaitFor::Live, now_ms);
        if of_all.is_some_and(|dirt| dirt.due) {
            waiting.remove(&key);
            return of_all.map(|dirt| (partition, dirt));
        }
        let since = waiting.entry(key).or_insert_with(Instant::now);
        let late = since.elapsed() > WAIT_MAX;
        let dirt = if late { Some(own) } else { of_all };
        dirt.map(|dirt| (partition, dirt))
    });
    let mut dirty: Vec<_> = dirty.collect();
    let ratios = dirty.iter().map(|(_, dirt)| dirt.ratio);
    metrics::set_dirty_ratio(ratios.fold(0.0, f64::max));
    dirty.retain(|(_, dirt)| dirt.due);
    dirty.sort_by(|(_, a), (_, b)| b.ratio.total_cmp(&a.ratio));
    dirty
}

async fn compact(
    registry: &Arc<Registry>,
    partition: &Arc<Partition>,
    dirt: Dirt,
    settings: &watch::Receiver<Settings>,
    now_ms: i64,
) -> Result<Done, RunError> {
    metrics::compaction_begun();
    partition.move_snapshot(dirt.to).await?;
    let (registry, partition, settings) = (registry.clone(), partition.clone(), settings.clone());
    let work = async move {
        let begun_with = *settings.borrow();
        let wanted = || *settings.borrow() == begun_with && holds(&registry, &partition);
        partition.compact(dirt, begun_with, now_ms, &wanted).await
    };
    let outcome = off_the_loop_in_steps(work).await;
    // Whoever panicked has said so.
    outcome.unwrap_or(Err(RunError::Stopped))
}

impl Partition {
    /// What there is to compact, if the topic is compacted.
    fn dirt(&self, wait_for: WaitFor, now_ms: i64) -> Option<Dirt> {
        let rules = self.config().compaction_rules()?;
        let rules = plan::Rules {
            dirty_ratio_min: rules.dirty_ratio_min,
            lag_min_ms: rules.lag_min_ms,
            lag_max_ms: rules.lag_max_ms,
        };
        let bounds = self.log.bounds();
        let limits = plan::Limits {
            offset: self.offsets().high_watermark,
            index: self
                .index_of_all(wait_for)
                .max(bounds.purged.map_or(0, |p| p.index)),
        };
        plan::dirt(&self.log.segments(), &limits, &rules, now_ms)
    }

    /// The last entry that is applied here and that every member has which could be there soon: who is dead may
    /// have to copy files.
    fn index_of_all(&self, wait_for: WaitFor) -> u64 {
        let members = self.group.members();
        if wait_for == WaitFor::Nobody {
            return members.applied;
        }
        let alive = |disk: &&u64| **disk != self.replica && (self.heard_by)(**disk);
        let others = members.voters.iter().chain(&members.learners).filter(alive);
        let matched = others.filter_map(|disk| members.matched.get(disk));
        matched.copied().fold(members.applied, u64::min)
    }

    /// Moves the snapshot up to an offset that is the end of a segment, and waits until it is there.
    async fn move_snapshot(&self, upto: i64) -> Result<(), RunError> {
        self.progress.clean_up_to(upto);
        let settled = || {
            let base = self.log.base_segments();
            base.last().is_some_and(|s| s.info().next_offset >= upto)
        };
        let moves = async {
            while !settled() {
                let asked = self.group.compact().await;
                asked.map_err(|e| RunError::Unsettled(e.to_string()))?;
                tokio::time::sleep(SETTLE_EVERY).await;
            }
            Ok(())
        };
        let moved = tokio::time::timeout(SETTLE_PATIENCE, moves).await;
        moved.unwrap_or_else(|_| {
            let why = format!("not within {SETTLE_PATIENCE:?}: {}", self.group.cut());
            Err(RunError::Unsettled(why))
        })
    }

    /// Compacts the log once, for as long as it is `wanted`. Blocks on the disk, and waits in between.
    async fn compact(
        &self,
        dirt: Dirt,
        settings: Settings,
        now_ms: i64,
        wanted: Wanted<'_>,
    ) -> Result<Done, RunError> {
        let config = self.config();
        let begun = Instant::now();
        let pace = Pace::new(settings.bytes_per_second);
        let pace = |bytes| -> BoxFuture<'_, bool> { Box::pin(pace.take(bytes, wanted)) };
        let task = Task {
            log: &self.log,
            from: dirt.from,
            to: dirt.to,
            segment_bytes: u64::from(config.log_options().segment_bytes),
            map_bytes: settings.map_bytes,
            hasher: KeyHasher(settings.hash_seeds),
            now_ms,
            horizon_ms: now_ms.saturating_add(config.delete_retention_ms()),
            remembered: &|| self.group.with_owner(|r| r.producers().remembered()),
            pace: &pace,
        };
        let mut done = Done::default();
        let outcome = task.run(&mut done).await;
        metrics::compacted(metrics::Compacted {
            bytes_read: done.bytes_read,
            bytes_written: done.bytes_written,
            kept: done.kept,
            removed: done.removed,
        });
        info!(
            topic = self.topic,
            partition = self.index,
            from = dirt.from,
            to = dirt.to,
            ?done,
            took = ?begun.elapsed(),
            whole = outcome.is_ok(),
            "compacted"
        );
        outcome.map(|()| done)
    }
}

/// Whether the work is still wanted.
type Wanted<'a> = &'a (dyn Fn() -> bool + Send + Sync);

/// The longest sleep between two looks at whether the work is still wanted.
const NAP: Duration = Duration::from_millis(200);

/// A rate for work that may sleep.
struct Pace {
    bytes_per_second: u64,
    begun: Instant,
    bytes: AtomicU64,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            begun: Instant::now(),
            bytes: AtomicU64::new(0),
        }
    }

    /// How long it takes at the rate until this much more may be done.
    fn due_at(&self, bytes: u64) -> Duration {
        let total = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        match self.bytes_per_second {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(total as f64 / rate as f64),
        }
    }

    async fn take(&self, bytes: u64, wanted: Wanted<'_>) -> bool {
        let due = self.due_at(bytes);
        loop {
            if !wanted() {
                return false;
            }
            match due.checked_sub(self.begun.elapsed()) {
                None | Some(Duration::ZERO) => return true,
                Some(left) => tokio::time::sleep(left.min(NAP)).await,
            }
        }
    }
}
