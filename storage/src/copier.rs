//! Copies durable entries from memory to their segments, off the path of the acknowledgement.
//!
//! Promise: entries of a segment are written in order, one call per segment and round; a full disk
//! keeps them in memory until there is space. Nothing here is synced: the checkpoint does that.
//! A round begins a moment after its first entry came: whoever needs new entries (followers, the state
//! machine, consumers that keep up) finds them in memory, and writes are fewer and longer.
//! Not here: what is present (see `state`); files of dropped segments go here too, because only here
//! is nothing being written to them.

use crate::LogKey;
use crate::checkpoint;
use crate::commit::Step;
use crate::engine::Engine;
use crate::log::LogInner;
use crate::segment::{Copy, SegmentFile, Written, damage};
use crate::vfs::is_shortage;
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tracing::warn;

const NO_SPACE_PAUSE: Duration = Duration::from_millis(100);
/// How long entries stay in memory for those that need them now: some round trips of a busy cluster.
const LINGER: Duration = Duration::from_millis(50);
/// How often it is looked whether somebody waits for the copies or for the memory.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Jobs of one round: enough for long writes, few enough that memory is given back soon.
const ROUND_JOBS_MAX: usize = 4096;

pub(crate) enum Job {
    Copy(Arc<LogInner>, Copy),
    Seal(Arc<SegmentFile>),
    Drop(Arc<SegmentFile>),
    /// The folder of a deleted log; the operation's number makes its name in the trash unique.
    Trash {
        key: LogKey,
        number: u64,
        log: Option<Arc<LogInner>>,
    },
}

impl Job {
    /// Gives space back and needs none.
    fn frees(&self) -> bool {
        !matches!(self, Job::Copy(..))
    }
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

    /// Those that need no space, past the others.
    fn take_freeing(&self) -> Vec<Job> {
        let mut queue = self.queue.lock();
        let jobs = std::mem::take(&mut queue.jobs);
        let (freeing, rest): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(Job::frees);
        queue.jobs = rest.into();
        freeing
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
                engine.copier_full.store(true, Ordering::Release);
                return self.free(engine);
            }
            if let Some(job) = jobs.pop_front() {
                finish(engine, job);
            }
            if engine.is_poisoned() {
                return Step::Idle;
            }
        }
        engine.copier_full.store(false, Ordering::Release);
        engine.relieve();
        engine.progressed();
        Step::Moved
    }

    pub fn holds_back(&self) -> bool {
        !self.held.is_empty()
    }

    /// On a full disk what gives space back goes first, or it would wait for the space it gives. A copy
    /// that comes after the end of its segment is left out.
    fn free(&mut self, engine: &Engine) -> Step {
        let (freeing, held) = std::mem::take(&mut self.held)
            .into_iter()
            .partition::<Vec<Job>, _>(Job::frees);
        self.held = held;
        let queued = engine.copies.take_freeing();
        let moved = !freeing.is_empty() || !queued.is_empty();
        freeing
            .into_iter()
            .chain(queued)
            .for_each(|job| finish(engine, job));
        if moved { Step::Moved } else { Step::NoSpace }
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
                Err(e) if is_shortage(&e) => {
                    self.hold(batch);
                    for id in &order[at + 1..] {
                        if let Some(batch) = batches.remove(id) {
                            self.hold(batch);
                        }
                    }
                    return false;
                }
                Err(e) => {
                    engine.poison(format!("writing a segment of log {}: {e}", batch.log.key));
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
    let written = if segment.is_dropped() {
        None
    } else {
        write_or_fence(&segment, batch)?
    };
    if let Some(written) = written {
        if written.created {
            engine.dirty_dirs.lock().insert(batch.log.key);
        }
        if written.newly_dirty {
            engine.dirty.lock().push(segment.clone());
        }
        trim(engine, &segment);
        sync_if_many(engine);
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

/// A segment stays open until it is synced. Too many, and the next has no descriptor: then no checkpoint
/// comes to an end, as it waits for copies, and none would ever be synced.
fn sync_if_many(engine: &Engine) {
    if engine.dirty.lock().len() * 2 < engine.options.open_segments_max {
        return;
    }
    // What fails for good poisons the disk. A folder that finds no descriptor is left for the checkpoint.
    if let Err(error) = checkpoint::sync(engine) {
        warn!(%error, "segments stay open");
    }
}

/// `None` if the files were taken away by somebody else: that is the end of this log, not of the disk.
fn write_or_fence(segment: &Arc<SegmentFile>, batch: &Batch) -> io::Result<Option<Written>> {
    match segment.write(&batch.copies) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let missing = damage(&segment.log_path, 0, "the segment's files are missing");
            segment.drop_files_later();
            batch.log.fence(&missing);
            Ok(None)
        }
        other => other.map(Some),
    }
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
        Job::Trash { key, number, log } => {
            if let Some(log) = log {
                let state = log.state.lock();
                state.all_segments().for_each(|s| s.file.drop_files_later());
            }
            let from = engine.log_dir(key);
            let to = engine.root.join("trash").join(format!("{key}.{number}"));
            match engine.fs.rename(&from, &to) {
                // A log that never had a segment has no folder.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    warn!(path = %from.display(), %error, "a deleted log's files stay until the next start");
                }
                Ok(()) => {
                    // Nobody needs them synced; holding them open would keep their space.
                    engine.dirty.lock().retain(|segment| segment.key != key);
                    engine.call_keeper();
                }
            }
        }
    }
    engine.copies.done.fetch_add(1, Ordering::Release);
}

fn linger(engine: &Engine) {
    let begun = Instant::now();
    while begun.elapsed() < LINGER && !engine.wants_copies() {
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// The copier's thread.
pub(crate) fn run(engine: &Engine) {
    let _guard = engine.poison_on_panic("copier");
    let mut held = false;
    while !engine.is_closed() {
        if !held {
            engine
                .copies
                .wait(|| engine.is_closed() || engine.is_poisoned());
            linger(engine);
        }
        let (step, holds_back) = {
            let mut copier = engine.copier.lock();
            (copier.step(engine), copier.holds_back())
        };
        held = holds_back;
        match step {
            // Space may come back from elsewhere, and nobody tells us.
            Step::NoSpace => std::thread::sleep(NO_SPACE_PAUSE),
            Step::Idle if engine.is_poisoned() => return,
            Step::Idle | Step::Moved => {}
        }
    }
}
