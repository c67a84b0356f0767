//! Looks at all replicas, now and then during the run and thoroughly at its end.

use crate::invariants::{Seen, Settled, one_piece, parse};
use crate::net::BROKERS;
use crate::world::World;
use crate::{PARTITIONS, may_lack_records};
use bytes::Bytes;
use logd_storage::{Log, ReadError};

const LOOK_EVERY_MS: u64 = 100;
const LOOK_AT_SYNCS_EVERY_MS: u64 = 5;

/// How long a healed cluster may take until it is at rest, in simulated time.
const PATIENCE_MS: u64 = 60_000;

/// How the verdict on a cluster that does not come to rest begins.
pub const NO_REST: &str = "no rest";

/// It is at rest when it has looked so for this long.
const REST_MS: u64 = 1_000;

const AT_ONCE_BYTES: usize = 256 << 10;

impl World {
    /// # Errors
    /// What was seen that must not be.
    pub fn look(&mut self) -> Result<(), String> {
        if self.now.is_multiple_of(LOOK_AT_SYNCS_EVERY_MS) {
            (0..PARTITIONS).try_for_each(|partition| self.look_at_syncs(partition))?;
        }
        if !self.now.is_multiple_of(LOOK_EVERY_MS) {
            return Ok(());
        }
        self.scan_replicas()?;
        for broker in 0..BROKERS {
            if self.brokers[broker].up.is_none() || self.brokers[broker].is_paused(self.now) {
                continue;
            }
            self.look_at_groups(broker)?;
            for partition in 0..PARTITIONS {
                self.look_at_replica(broker, partition)?;
            }
        }
        Ok(())
    }

    fn look_at_syncs(&mut self, partition: u32) -> Result<(), String> {
        let of = |broker: usize| {
            let replica = self.brokers[broker].partition(partition)?;
            let log = self.brokers[broker].log(partition)?;
            // What it had synced it has lost again, and counts as it did.
            if self.brokers[broker].notes.lock().contains_key(&partition) {
                return None;
            }
            Some((synced(&log), replica.offsets().high_watermark))
        };
        let replicas = std::array::from_fn(of);
        self.invariants.see(&Seen::Synced {
            partition,
            replicas,
        })
    }

    fn look_at_groups(&mut self, broker: usize) -> Result<(), String> {
        let Some(up) = &self.brokers[broker].up else {
            return Ok(());
        };
        let groups = up.groups.lock();
        if let Some(why) = groups.failed.first() {
            return Err(format!("broker {broker} cannot open {why}"));
        }
        let ops = self.brokers[broker].fs.operations();
        self.trace
            .say(format_args!("{broker} did {ops} operations"));
        let Some((group, view)) = &groups.metadata else {
            return Ok(());
        };
        if let Some(why) = group.failure() {
            return Err(format!("broker {broker}'s metadata group ended: {why}"));
        }
        let role = group.role();
        if role.serving {
            self.invariants.see(&Seen::Serves {
                broker,
                partition: None,
                term: role.term as i64,
                high_watermark: 0,
            })?;
        }
        let state = view.borrow().clone();
        let encoded = state.encode().map_err(|e| e.to_string())?;
        self.invariants.see(&Seen::Metadata {
            broker,
            applied: state.applied,
            state: &encoded,
            level: state.features,
            oldest: state.brokers.values().map(|b| b.features).min(),
        })
    }

    fn look_at_replica(&mut self, broker: usize, partition: u32) -> Result<(), String> {
        let (Some(replica), Some(log)) = (
            self.brokers[broker].partition(partition),
            self.brokers[broker].log(partition),
        ) else {
            return Ok(());
        };
        if let Some(why) = replica.failure() {
            return Err(format!("p{partition} ended on broker {broker}: {why}"));
        }
        let (leadership, offsets) = (replica.leadership(), replica.offsets());
        if leadership.serving {
            self.invariants.see(&Seen::Serves {
                broker,
                partition: Some(partition),
                term: i64::from(leadership.epoch),
                high_watermark: offsets.high_watermark,
            })?;
        }
        let looked = self.looked.get(&(broker, partition)).copied().unwrap_or(0);
        let there = read(&log, partition, looked, offsets.high_watermark)
            .map_err(|e| format!("broker {broker}, p{partition}: {e}"))?;
        let Some((from, bytes)) = there else {
            return Ok(());
        };
        let batches =
            parse(partition, &bytes).map_err(|e| format!("broker {broker}, p{partition}: {e}"))?;
        let end = batches.last().map_or(looked, |b| b.end());
        if end > looked {
            self.trace
                .say(format_args!("{broker} holds p{partition} up to {end}"));
        }
        self.looked.insert((broker, partition), end);
        self.invariants.see(&Seen::Held {
            broker,
            start: self.brokers[broker].start,
            partition,
            log_start: offsets.log_start,
            high_watermark: offsets.high_watermark,
            from,
            batches: &batches,
        })
    }

    /// Goes on until all is at rest, and looks at everything once more.
    ///
    /// # Errors
    /// If it does not come to rest, or is not as it must be.
    pub fn settle(&mut self) -> Result<(), String> {
        let (deadline, mut restful) = (self.now + PATIENCE_MS, 0);
        while restful < REST_MS {
            self.step()?;
            match self.unrest() {
                Some(why) if self.now > deadline => {
                    return Err(format!(
                        "{NO_REST} after {PATIENCE_MS} ms of fair weather: {why}"
                    ));
                }
                Some(_) => restful = 0,
                None => restful += 1,
            }
        }
        (0..BROKERS).try_for_each(|broker| self.scan_replica(broker))?;
        (0..PARTITIONS).try_for_each(|partition| self.look_at_rest(partition))
    }

    /// Why it is not at rest.
    fn unrest(&self) -> Option<String> {
        let open = self.producers.iter().position(|p| !p.is_idle());
        if let Some(producer) = open {
            return Some(format!("producer {producer} has batches without an answer"));
        }
        for partition in 0..PARTITIONS {
            let replicas = self.brokers.iter().map(|b| b.partition(partition));
            let replicas: Option<Vec<_>> = replicas.collect();
            let Some(replicas) = replicas else {
                return Some(format!("p{partition} is not open everywhere"));
            };
            let leaders = replicas.iter().filter(|r| r.leadership().serving).count();
            if leaders != 1 {
                return Some(format!("p{partition} has {leaders} leaders"));
            }
            let ends = replicas
                .iter()
                .map(|r| (r.offsets().high_watermark, r.offsets().log_end));
            let ends: Vec<_> = ends.collect();
            if ends.iter().any(|e| *e != ends[0] || e.0 != e.1) {
                return Some(format!("p{partition} ends differently: {ends:?}"));
            }
            let starts: Vec<_> = replicas.iter().map(|r| r.offsets().log_start).collect();
            if starts.iter().any(|s| *s != starts[0]) {
                return Some(format!("p{partition} starts differently: {starts:?}"));
            }
        }
        None
    }

    fn look_at_rest(&mut self, partition: u32) -> Result<(), String> {
        let mut replicas = Vec::new();
        for broker in 0..BROKERS {
            let (Some(replica), Some(log)) = (
                self.brokers[broker].partition(partition),
                self.brokers[broker].log(partition),
            ) else {
                return Err(format!("p{partition} is not open on broker {broker}"));
            };
            let offsets = replica.offsets();
            let there = read(&log, partition, offsets.log_start, offsets.high_watermark)?;
            let (_, bytes) = there.ok_or("what there is room for is not in its files")?;
            replicas.push(Settled {
                broker,
                log_start: offsets.log_start,
                high_watermark: offsets.high_watermark,
                batches: parse(partition, &bytes)?,
                bytes,
            });
        }
        self.trace.say(format_args!(
            "p{partition} rests at {}..{}",
            replicas[0].log_start, replicas[0].high_watermark
        ));
        self.invariants.see(&Seen::Settled {
            partition,
            replicas: &replicas,
        })
    }
}

/// The offset behind the last entry that is synced.
fn synced(log: &Log) -> i64 {
    let bounds = log.bounds();
    let Some(durable) = bounds.durable else {
        return bounds.start_offset;
    };
    if let Some(row) = log.entry_row(durable.index) {
        return row.end_offset();
    }
    // It is no entry any more, but of what was compacted or came as files.
    let base = log.base_segments();
    let base = base.iter().map(|s| s.info());
    let synced = base.take_while(|s| s.last.index <= durable.index);
    synced.last().map_or(bounds.start_offset, |s| s.next_offset)
}

/// Whole batches from an offset, or from where the log begins, up to another; `None` as long as some of them are in
/// the write-ahead log alone, for want of room.
///
/// # Errors
/// If they cannot be read, or are not all there and may not be gone.
pub fn read(log: &Log, partition: u32, from: i64, to: i64) -> Result<Option<(i64, Bytes)>, String> {
    let mut at = from.max(log.bounds().start_offset);
    let (begin, mut slices) = (at, Vec::new());
    while at < to {
        let plan = match log.read(at, to, AT_ONCE_BYTES, true) {
            Err(ReadError::Moved { .. }) if may_lack_records(partition) => return Ok(None),
            plan => plan.map_err(|e| e.to_string())?,
        };
        plan.warm().map_err(|e| e.to_string())?;
        let piece = one_piece(plan.slices);
        let batches = parse(partition, &piece)?;
        let Some(last) = batches.last() else {
            if may_lack_records(partition) {
                break;
            }
            return Err(format!("nothing at {at}, below the high watermark {to}"));
        };
        at = last.end();
        slices.push(piece);
    }
    Ok(Some((begin, one_piece(slices))))
}
