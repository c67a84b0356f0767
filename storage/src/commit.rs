//! Group commit: one thread drains what is queued, writes one group, completes every waiter in order.
//!
//! Promise: operations are durable in the order they were queued, and a waiter is told right after the
//! write that carried its operation. There is no timer: the write under way is the batching delay.
//! Not here: files (see `wal`), bytes (see `group`), what goes to segments afterwards (see `copier`).

use crate::copier::Job;
use crate::engine::Engine;
use crate::group::{self, HEADER_BYTES, Operation};
use crate::log::LogInner;
use crate::segment::{Copy, SegmentFile};
use crate::vfs::is_shortage;
use crate::wal::{Aligned, Wal};
use crate::{DiskOptions, Done, EntryId};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A group beyond this gains nothing: 1 MiB at a time wrote 906 MB/s, and waiters wait for all of it.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Space may come back: looks again after this long.
const NO_SPACE_PAUSE: Duration = Duration::from_millis(100);

/// What waiters are told when the disk is closed before their operation was written.
pub(crate) const CLOSED: &str = "the disk was closed";

/// One operation that waits for its group.
pub(crate) struct Staged {
    pub log: Arc<LogInner>,
    pub operation: Operation,
    /// The segment an entry goes to afterwards.
    pub segment: Option<Arc<SegmentFile>>,
    /// Segments whose files go when the operation is durable.
    pub dropped: Vec<Arc<SegmentFile>>,
    pub done: Option<Done>,
}

struct Queue {
    staged: VecDeque<Staged>,
    next_op: u64,
    refuse: Option<String>,
}

pub(crate) struct CommitQueue {
    queue: Mutex<Queue>,
    filled: Condvar,
}

impl CommitQueue {
    pub fn new(next_op: u64) -> Self {
        Self {
            queue: Mutex::new(Queue {
                staged: VecDeque::new(),
                next_op,
                refuse: None,
            }),
            filled: Condvar::new(),
        }
    }

    /// Queues consecutive operations; returns the number of the last one.
    /// On a disk that failed meanwhile they are refused through their waiters.
    pub fn push(&self, staged: impl IntoIterator<Item = Staged>) -> u64 {
        let mut queue = self.queue.lock();
        if let Some(reason) = queue.refuse.clone() {
            let last = queue.next_op;
            drop(queue);
            staged.into_iter().for_each(|s| fail(s.done, &reason));
            return last;
        }
        let was_empty = queue.staged.is_empty();
        for one in staged {
            queue.staged.push_back(one);
            queue.next_op += 1;
        }
        let last = queue.next_op - 1;
        drop(queue);
        if was_empty {
            self.filled.notify_one();
        }
        last
    }

    /// The number of the last operation queued.
    pub fn last_op(&self) -> u64 {
        self.queue.lock().next_op - 1
    }

    /// As many as fit into one group, at least one.
    fn take(&self, bytes_max: usize) -> (u64, Vec<Staged>) {
        let mut queue = self.queue.lock();
        let first_op = queue.next_op - queue.staged.len() as u64;
        let mut weight = HEADER_BYTES;
        let mut count = 0;
        for one in &queue.staged {
            weight += one.operation.weight();
            if count > 0 && weight > bytes_max {
                break;
            }
            count += 1;
        }
        (first_op, queue.staged.drain(..count).collect())
    }

    /// Sleeps until something is queued or `over`.
    pub fn wait(&self, over: impl Fn() -> bool) {
        let mut queue = self.queue.lock();
        while queue.staged.is_empty() && !over() {
            self.filled.wait(&mut queue);
        }
    }

    pub fn wake(&self) {
        let _queue = self.queue.lock();
        self.filled.notify_all();
    }

    /// Fails what waits, and all that comes.
    pub fn fail_all(&self, reason: &str) {
        let waiting = {
            let mut queue = self.queue.lock();
            queue.refuse = Some(reason.to_owned());
            std::mem::take(&mut queue.staged)
        };
        waiting.into_iter().for_each(|s| fail(s.done, reason));
    }
}

fn fail(done: Option<Done>, reason: &str) {
    if let Some(done) = done {
        done(Err(io::Error::other(reason.to_owned())));
    }
}

/// What a step of a worker came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Idle,
    Moved,
    /// There is work, but no space for it.
    NoSpace,
}

impl Step {
    pub fn moved(self) -> bool {
        self == Step::Moved
    }
}

pub(crate) struct Committer {
    wal: Wal,
    buffer: Aligned,
    group_bytes_max: usize,
    /// A group that found no space; nothing of it was written.
    held: Option<(u64, Vec<Staged>)>,
}

impl Committer {
    pub fn new(wal: Wal, options: &DiskOptions) -> Self {
        let file_room = options.wal_file_bytes as usize - group::BLOCK_BYTES;
        Self {
            wal,
            buffer: Aligned::default(),
            group_bytes_max: GROUP_BYTES_MAX.min(file_room),
            held: None,
        }
    }

    /// Writes one group, if anything is queued.
    pub fn step(&mut self, engine: &Engine) -> Step {
        if engine.is_poisoned() {
            self.abandon(&engine.poison_reason().unwrap_or_default());
            return Step::Idle;
        }
        let (first_op, staged) = match self.held.take() {
            Some(held) => held,
            None => engine.queue.take(self.group_bytes_max),
        };
        if staged.is_empty() {
            return Step::Idle;
        }
        let weight: usize = staged.iter().map(|s| s.operation.weight()).sum();
        let len = group::group_bytes(weight);
        match self.wal.make_room(len, &engine.shelf) {
            Ok(()) => engine.committer_full.store(false, Ordering::Release),
            Err(e) if is_shortage(&e) => {
                self.held = Some((first_op, staged));
                engine.committer_full.store(true, Ordering::Release);
                return Step::NoSpace;
            }
            Err(e) => {
                self.give_up(engine, staged, &e);
                return Step::Idle;
            }
        }
        self.write(engine, first_op, staged, len);
        Step::Moved
    }

    fn write(&mut self, engine: &Engine, first_op: u64, staged: Vec<Staged>, len: usize) {
        let buffer = self.buffer.get(len);
        let operations = staged.iter().map(|s| (s.log.key, &s.operation));
        group::encode(
            buffer,
            self.wal.seed(),
            self.wal.sequence,
            first_op,
            operations,
        );
        let began = Instant::now();
        if let Err(e) = self.wal.write(buffer) {
            self.give_up(engine, staged, &e);
            return;
        }
        let payload: usize = staged.iter().map(|s| s.operation.payload_len()).sum();
        let count = staged.len() as u64;
        let took = began.elapsed();
        engine.stats.synced(took, count, payload as u64, len as u64);
        if let Some(tell) = engine.on_sync.get() {
            tell(took, len as u64);
        }
        self.buffer.shrink(GROUP_BYTES_MAX);
        *engine.position.lock() = self.wal.position();
        engine
            .durable_op
            .store(first_op + count - 1, Ordering::Release);
        complete(engine, first_op, staged);
        self.keep_ahead(engine);
        engine.progressed();
    }

    pub fn holds_back(&self) -> bool {
        self.held.is_some()
    }

    /// Fails a group that waits for space.
    fn abandon(&mut self, reason: &str) {
        let held = self.held.take().into_iter().flat_map(|(_, staged)| staged);
        held.for_each(|s| fail(s.done, reason));
    }

    fn keep_ahead(&self, engine: &Engine) {
        let (used, wants) = {
            let shelf = engine.shelf.lock();
            (shelf.used_files() as u64, shelf.wants_preparing())
        };
        let before = engine.stats.wal_files.swap(used, Ordering::Relaxed);
        if wants || (used > before && engine.is_checkpoint_urgent()) {
            engine.call_keeper();
        }
    }

    fn give_up(&self, engine: &Engine, staged: Vec<Staged>, e: &io::Error) {
        let reason = format!(
            "writing the write-ahead log in {}: {e}",
            self.wal.folder.dir.display()
        );
        engine.poison(reason.clone());
        staged.into_iter().for_each(|s| fail(s.done, &reason));
    }
}

/// Tells the logs, then the waiters, in order; then hands entries on to the copier.
fn complete(engine: &Engine, first_op: u64, staged: Vec<Staged>) {
    note_durable(first_op, &staged);
    let mut jobs = Vec::with_capacity(staged.len());
    for (number, mut one) in (first_op..).zip(staged) {
        if let Some(done) = one.done.take() {
            done(Ok(()));
        }
        jobs.extend(jobs_of(number, one));
    }
    engine.copies.push(jobs);
}

fn note_durable(first_op: u64, staged: &[Staged]) {
    let id_of = |s: &Staged| -> Option<EntryId> {
        match &s.operation {
            Operation::Entry { row, .. } => Some(row.id()),
            _ => None,
        }
    };
    for (at, one) in staged.iter().enumerate() {
        // One look at the state per run of entries of the same log.
        let next = staged.get(at + 1);
        let same = next.is_some_and(|n| Arc::ptr_eq(&n.log, &one.log) && id_of(n).is_some());
        if let (Some(id), false) = (id_of(one), same) {
            one.log
                .state
                .lock()
                .became_durable(id, first_op + at as u64);
        }
    }
}

fn jobs_of(number: u64, staged: Staged) -> Vec<Job> {
    let drops = staged.dropped.into_iter().map(Job::Drop);
    match (staged.operation, staged.segment) {
        (
            Operation::Entry {
                row, head, body, ..
            },
            Some(segment),
        ) => {
            let copy = Copy {
                segment,
                row,
                head: if row.length > 0 {
                    head
                } else {
                    Default::default()
                },
                body: if row.length > 0 {
                    body
                } else {
                    Default::default()
                },
            };
            vec![Job::Copy(staged.log, copy)]
        }
        (Operation::Delete, _) => {
            let trash = Job::Trash {
                key: staged.log.key,
                number,
                log: Some(staged.log),
            };
            drops.chain([trash]).collect()
        }
        _ => drops.collect(),
    }
}

/// The committer's thread.
pub(crate) fn run(engine: &Engine) {
    let _guard = engine.poison_on_panic("committer");
    let mut held = false;
    while !engine.is_closed() {
        if !held {
            engine
                .queue
                .wait(|| engine.is_closed() || engine.is_poisoned());
        }
        let (step, holds_back) = {
            let mut committer = engine.committer.lock();
            (committer.step(engine), committer.holds_back())
        };
        held = holds_back;
        match step {
            // Space may come back from elsewhere, and nobody tells us.
            Step::NoSpace => std::thread::sleep(NO_SPACE_PAUSE),
            Step::Idle if engine.is_poisoned() => return,
            Step::Idle | Step::Moved => {}
        }
    }
    engine.committer.lock().abandon(CLOSED);
}
