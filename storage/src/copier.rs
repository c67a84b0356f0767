//! Copies durable entries from memory to their segments, off the path of the acknowledgement.
//!
//! Promise: entries of a segment are written in order, one call per segment and round; a full disk
//! keeps them in memory until there is space. Nothing here is synced: the checkpoint does that.
//! Not here: what is present (see `state`); files of dropped segments go here too, because only here
//! is nothing being written to them.

use crate::LogKey;
use crate::commit::Step;
use crate::engine::Engine;
use crate::log::LogInner;
use crate::segment::{Copy, SegmentFile};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tracing::warn;

const NO_SPACE_PAUSE: Duration = Duration::from_millis(100);
/// Jobs of one round: enough for long writes, few enough that memory is given back soon.
const ROUND_JOBS_MAX: usize = 4096;

pub(crate) enum Job {
    Copy(Arc<LogInner>, Copy),
    Seal(Arc<SegmentFile>),
    Drop(Arc<SegmentFile>),
    /// The folder of a deleted log; the operation's number makes its name in the trash unique.
    Trash(LogKey, u64),
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    pushed: u64,
}

#[derive(Default)]
pub(crate) struct CopyQueue {
    queue: Mutex<Queue>,
    filled: Condvar,
    done: std::sync::atomic::AtomicU64,
}

impl CopyQueue {
    pub fn push(&self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let mut queue = self.queue.lock();
        queue.pushed += jobs.len() as u64;
        let was_empty = queue.jobs.is_empty();
        queue.jobs.extend(jobs);
        drop(queue);
        if was_empty {
            self.filled.notify_one();
        }
    }

    /// How many jobs were ever pushed: wait for [`Self::done`] to reach it.
    pub fn pushed(&self) -> u64 {
        self.queue.lock().pushed
    }

    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }

    fn take(&self) -> Vec<Job> {
        let mut queue = self.queue.lock();
        let count = queue.jobs.len().min(ROUND_JOBS_MAX);
        queue.jobs.drain(..count).collect()
    }

    pub fn wait(&self, over: impl Fn() -> bool) {
        let mut queue = self.queue.lock();
        while queue.jobs.is_empty() && !over() {
            self.filled.wait(&mut queue);
        }
    }

    pub fn wake(&self) {
        let _queue = self.queue.lock();
        self.filled.notify_all();
    }
}

/// What one segment gets in a round.
struct Batch {
    log: Arc<LogInner>,
    copies: Vec<Copy>,
}

#[derive(Default)]
pub(crate) struct Copier {
    /// Jobs that found no space, before all that is queued.
    held: Vec<Job>,
}

impl Copier {
    /// One round: what is queued, by segment. A drop ends a round, so that it comes after its copies.
    pub fn step(&mut self, engine: &Engine) -> Step {
        let jobs = match std::mem::take(&mut self.held) {
            held if held.is_empty() => engine.copies.take(),
            held => held,
        };
        if jobs.is_empty() || engine.is_poisoned() {
            return Step::Idle;
        }
        let mut jobs = VecDeque::from(jobs);
        while !jobs.is_empty() {
            let (batches, order) = gather(&mut jobs);
            if !self.write_all(engine, batches, &order) {
                self.held.extend(jobs);
                engine.no_space.store(true, Ordering::Release);
                return Step::NoSpace;
            }
            if let Some(job) = jobs.pop_front() {
                finish(engine, job);
                engine.copies.done.fetch_add(1, Ordering::Release);
            }
            if engine.is_poisoned() {
                return Step::Idle;
            }
        }
        engine.no_space.store(false, Ordering::Release);
        engine.relieve();
        engine.progressed();
        Step::Moved
    }

    /// False if there was no space: what is left to write is then held.
    fn write_all(
        &mut self,
        engine: &Engine,
        mut batches: HashMap<u64, Batch>,
        order: &[u64],
    ) -> bool {
        for (at, id) in order.iter().enumerate() {
            let Some(batch) = batches.remove(id) else {
                continue;
            };
            match write(engine, &batch) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                    self.hold(batch);
                    for id in &order[at + 1..] {
                        if let Some(batch) = batches.remove(id) {
                            self.hold(batch);
                        }
                    }
                    return false;
                }
                Err(e) => {
                    engine.poison(format!("writing a segment of {}: {e}", batch.log.key));
                    return true;
                }
            }
        }
        true
    }

    fn hold(&mut self, batch: Batch) {
        let Batch { log, copies } = batch;
        self.held
            .extend(copies.into_iter().map(|c| Job::Copy(log.clone(), c)));
    }
}

/// Takes copies from the front, up to the first job of another sort.
fn gather(jobs: &mut VecDeque<Job>) -> (HashMap<u64, Batch>, Vec<u64>) {
    let mut batches: HashMap<u64, Batch> = HashMap::new();
    let mut order = Vec::new();
    while let Some(Job::Copy(..)) = jobs.front() {
        if let Some(Job::Copy(log, copy)) = jobs.pop_front() {
            let id = copy.segment.id;
            let batch = batches.entry(id).or_insert_with(|| {
                order.push(id);
                Batch {
                    log,
                    copies: Vec::new(),
                }
            });
            batch.copies.push(copy);
        }
    }
    (batches, order)
}

fn write(engine: &Engine, batch: &Batch) -> io::Result<()> {
    let Some(segment) = batch.copies.first().map(|c| c.segment.clone()) else {
        return Ok(());
    };
    if !segment.is_dropped() {
        let written = segment.write(&batch.copies)?;
        if written.created {
            engine.dirty_dirs.lock().insert(batch.log.key);
        }
        if written.newly_dirty {
            engine.dirty.lock().push(segment.clone());
        }
        trim(engine, &segment);
    }
    let bytes: usize = batch.copies.iter().map(|c| c.row.length as usize).sum();
    batch.log.state.lock().evict();
    engine.tail_bytes.fetch_sub(bytes, Ordering::Relaxed);
    engine
        .stats
        .copied_bytes
        .fetch_add(bytes as u64, Ordering::Relaxed);
    engine
        .copies
        .done
        .fetch_add(batch.copies.len() as u64, Ordering::Release);
    Ok(())
}

fn trim(engine: &Engine, segment: &Arc<SegmentFile>) {
    match segment.trim() {
        Ok(true) => engine.dirty.lock().push(segment.clone()),
        Ok(false) => {}
        // Only space is lost: the length that counts is not the file's.
        Err(error) => {
            warn!(path = %segment.log_path.display(), %error, "a full segment keeps its spare space");
        }
    }
}

fn finish(engine: &Engine, job: Job) {
    match job {
        Job::Copy(..) => {}
        Job::Seal(segment) => trim(engine, &segment),
        Job::Drop(segment) => {
            segment.drop_files_later();
            if let Err(error) = segment.remove() {
                warn!(path = %segment.log_path.display(), %error, "a dropped segment's files stay");
            }
        }
        Job::Trash(key, number) => {
            let from = engine.log_dir(key);
            let to = engine.root.join("trash").join(format!("{key}.{number}"));
            match engine.fs.rename(&from, &to) {
                // A log that never had a segment has no folder.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    warn!(path = %from.display(), %error, "a deleted log's files stay until the next start");
                }
                Ok(()) => engine.call_keeper(),
            }
        }
    }
}

/// The copier's thread.
pub(crate) fn run(engine: &Engine) {
    while !engine.is_closed() {
        engine
            .copies
            .wait(|| engine.is_closed() || engine.is_poisoned());
        let step = engine.copier.lock().step(engine);
        match step {
            Step::NoSpace => std::thread::sleep(NO_SPACE_PAUSE),
            Step::Idle if engine.is_poisoned() => return,
            Step::Idle | Step::Moved => {}
        }
    }
}
