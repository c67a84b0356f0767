//! What every part of an open disk shares: queues, the fault, counters, how to wait.
//!
//! Promise: a fault is set once, told once, and from then on nothing is accepted.
//! Lock order: a log's state, then a queue. The committer and the copier take a log's state only while
//! they hold no queue.
//! Not here: the table of logs and the threads (see `disk`).

use crate::commit::{CLOSED, CommitQueue, Committer};
use crate::copier::{Copier, CopyQueue};
use crate::error::WriteError;
use crate::open_files::OpenFiles;
use crate::segment::{Origin, SegmentFile};
use crate::stats::Stats;
use crate::vfs::Vfs;
use crate::wal::{Position, Shelf, Wal, WalFolder};
use crate::{DiskIdentity, DiskOptions, LogKey, Pump};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tracing::error;

/// Looks again after this long even if nobody woke it: a lost wake-up costs this, not for ever.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub(crate) type OnFatal = Box<dyn Fn(&str) + Send + Sync>;
/// Told the time of each group's write and its bytes, padding included.
pub(crate) type OnSync = Box<dyn Fn(Duration, u64) + Send + Sync>;
type Relief = Box<dyn FnOnce() + Send>;

pub(crate) struct Engine {
    pub fs: Arc<dyn Vfs>,
    pub root: PathBuf,
    pub options: DiskOptions,
    pub identity: DiskIdentity,
    pub queue: CommitQueue,
    pub committer: Mutex<Committer>,
    pub copies: CopyQueue,
    pub copier: Mutex<Copier>,
    pub shelf: Mutex<Shelf>,
    pub wal_folder: Arc<WalFolder>,
    /// Where the next group goes, as of the last one that is durable.
    pub position: Mutex<Position>,
    /// Operations up to this number are durable.
    pub durable_op: AtomicU64,
    /// Bytes staged and not yet in their segments.
    pub tail_bytes: AtomicUsize,
    /// Written since their last sync.
    pub dirty: Mutex<Vec<Arc<SegmentFile>>>,
    /// Logs whose folder has new names that are not synced.
    pub dirty_dirs: Mutex<BTreeSet<LogKey>>,
    /// Held while what was in both is synced.
    pub syncing: Mutex<()>,
    pub open_files: Arc<OpenFiles>,
    next_segment: AtomicU64,
    pub stats: Stats,
    /// The committer waits for free space: nothing becomes durable.
    pub committer_full: AtomicBool,
    /// The copier waits for free space: what is durable stays in memory.
    pub copier_full: AtomicBool,
    closed: AtomicBool,
    fault: Mutex<Option<String>>,
    poisoned: AtomicBool,
    on_fatal: Mutex<Option<OnFatal>>,
    pub on_sync: OnceLock<OnSync>,
    relief: Mutex<Vec<Relief>>,
    progress: Mutex<()>,
    moved: Condvar,
    waiting: AtomicUsize,
    /// The keeper should look: a file is to be prepared, a checkpoint is due.
    pub keeper_call: Mutex<bool>,
    pub keeper_wake: Condvar,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("root", &self.root).finish()
    }
}

/// Why a wait ended without what was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    Poisoned,
    Closed,
    NoSpace,
}

/// Where a disk goes on after recovery.
pub(crate) struct Resume {
    pub sequence: u64,
    pub next_op: u64,
    pub shelf: Shelf,
}

/// See [`Engine::poison_on_panic`].
pub(crate) struct PoisonOnPanic<'a> {
    engine: &'a Engine,
    worker: &'static str,
}

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.engine
                .poison(format!("the {} panicked: see its message", self.worker));
        }
    }
}

impl Engine {
    pub fn new(
        fs: Arc<dyn Vfs>,
        root: &Path,
        options: DiskOptions,
        identity: DiskIdentity,
        resume: Resume,
    ) -> Arc<Self> {
        let wal_folder = Arc::new(WalFolder {
            fs: fs.clone(),
            dir: root.join("wal"),
            disk: identity.id,
            file_bytes: options.wal_file_bytes,
        });
        let wal = Wal::new(wal_folder.clone(), resume.sequence);
        Arc::new(Self {
            fs,
            root: root.to_owned(),
            identity,
            queue: CommitQueue::new(resume.next_op),
            committer: Mutex::new(Committer::new(wal, &options)),
            copies: CopyQueue::default(),
            copier: Mutex::default(),
            shelf: Mutex::new(resume.shelf),
            wal_folder,
            position: Mutex::default(),
            durable_op: AtomicU64::new(resume.next_op - 1),
            tail_bytes: AtomicUsize::new(0),
            dirty: Mutex::default(),
            dirty_dirs: Mutex::default(),
            syncing: Mutex::default(),
            open_files: Arc::new(OpenFiles::new(options.open_segments_max)),
            // The start's number makes it unique for ever without being written anywhere.
            next_segment: AtomicU64::new(identity.start << 32),
            stats: Stats::default(),
            committer_full: AtomicBool::new(false),
            copier_full: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            fault: Mutex::default(),
            poisoned: AtomicBool::new(false),
            on_fatal: Mutex::default(),
            on_sync: OnceLock::new(),
            relief: Mutex::default(),
            progress: Mutex::default(),
            moved: Condvar::new(),
            waiting: AtomicUsize::new(0),
            keeper_call: Mutex::new(false),
            keeper_wake: Condvar::new(),
            options,
        })
    }

    pub fn log_dir(&self, key: LogKey) -> PathBuf {
        self.root.join("logs").join(key.to_string())
    }

    pub fn new_segment(&self, key: LogKey, base_offset: i64, base_index: u64) -> Arc<SegmentFile> {
        let origin = Origin {
            id: self.next_segment_id(),
            base_offset,
            base_index,
            rows: 0,
            bytes: 0,
        };
        self.segment(key, origin)
    }

    /// A number that no other segment of this disk ever has.
    pub fn next_segment_id(&self) -> u64 {
        self.next_segment.fetch_add(1, Ordering::Relaxed)
    }

    pub fn segment(&self, key: LogKey, origin: Origin) -> Arc<SegmentFile> {
        SegmentFile::new(
            self.fs.clone(),
            self.open_files.clone(),
            &self.log_dir(key),
            key,
            origin,
        )
    }

    /// The largest payload that fits into a file of the write-ahead log.
    pub fn payload_bytes_max(&self) -> usize {
        self.options.wal_file_bytes as usize - 2 * crate::group::BLOCK_BYTES
    }

    /// Refuses writes on a disk that failed or is closed.
    pub fn check(&self) -> Result<(), WriteError> {
        if self.poisoned.load(Ordering::Acquire) {
            Err(WriteError::Poisoned(
                self.poison_reason().unwrap_or_default(),
            ))
        } else if self.is_closed() {
            Err(WriteError::Closed)
        } else {
            Ok(())
        }
    }

    pub fn poison_reason(&self) -> Option<String> {
        self.fault.lock().clone()
    }

    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Takes the disk out of service for good and fails everything that waits.
    pub fn poison(&self, reason: String) {
        {
            let mut fault = self.fault.lock();
            if fault.is_some() {
                return;
            }
            error!(disk = %self.root.display(), reason, "the disk failed: nothing is accepted any more");
            *fault = Some(reason.clone());
            self.poisoned.store(true, Ordering::Release);
        }
        self.queue.fail_all(&reason);
        if let Some(tell) = self.on_fatal.lock().as_ref() {
            tell(&reason);
        }
        self.wake_all();
    }

    pub fn set_on_fatal(&self, f: OnFatal) {
        let mut on_fatal = self.on_fatal.lock();
        if let Some(reason) = self.poison_reason() {
            f(&reason);
        }
        *on_fatal = Some(f);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Ends the threads after what they are doing; what is queued fails.
    pub fn shut(&self) {
        self.closed.store(true, Ordering::Release);
        self.queue.fail_all(CLOSED);
        self.wake_all();
    }

    fn wake_all(&self) {
        self.queue.wake();
        self.copies.wake();
        self.call_keeper();
        self.progressed();
    }

    pub fn call_keeper(&self) {
        *self.keeper_call.lock() = true;
        self.keeper_wake.notify_one();
    }

    /// Something that somebody may wait for has moved.
    pub fn progressed(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let _guard = self.progress.lock();
            self.moved.notify_all();
        }
    }

    /// Waits until operations up to this number are durable.
    pub fn wait_durable(&self, op: u64) -> Result<(), Gone> {
        self.wait_until(
            || self.durable_op.load(Ordering::Acquire) >= op,
            &self.committer_full,
        )
    }

    /// Waits until so many jobs of the copier are done.
    pub fn wait_copied(&self, jobs: u64) -> Result<(), Gone> {
        self.wait_until(|| self.copies.done() >= jobs, &self.copier_full)
    }

    /// Waits until `met`, unless the worker it depends on is out of space. Without threads it does the work
    /// itself.
    fn wait_until(&self, met: impl Fn() -> bool, full: &AtomicBool) -> Result<(), Gone> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let outcome = loop {
            if met() {
                break Ok(());
            }
            if self.is_poisoned() {
                break Err(Gone::Poisoned);
            }
            if self.is_closed() {
                break Err(Gone::Closed);
            }
            let manual = self.options.pump == Pump::Manual;
            let moved = manual && self.pump_once();
            if !moved && !met() && (manual || full.load(Ordering::Acquire)) {
                break Err(self.gone().unwrap_or(Gone::NoSpace));
            }
            if !manual {
                let mut guard = self.progress.lock();
                if !met() {
                    self.moved.wait_for(&mut guard, LOOK_AGAIN);
                }
            }
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        outcome
    }

    fn gone(&self) -> Option<Gone> {
        match (self.is_poisoned(), self.is_closed()) {
            (true, _) => Some(Gone::Poisoned),
            (false, true) => Some(Gone::Closed),
            (false, false) => None,
        }
    }

    /// Some of what was accepted waits for free space.
    pub fn is_full(&self) -> bool {
        self.committer_full.load(Ordering::Acquire) || self.copier_full.load(Ordering::Acquire)
    }

    /// While the guard lives, a panic takes the disk out of service: a worker that is gone must not be
    /// waited for.
    pub fn poison_on_panic(&self, worker: &'static str) -> PoisonOnPanic<'_> {
        PoisonOnPanic {
            engine: self,
            worker,
        }
    }

    /// One group and one round of copies. Says whether there was anything to do and it could be done.
    pub fn pump_once(&self) -> bool {
        let committed = self.committer.lock().step(self);
        let copied = self.copier.lock().step(self);
        committed.moved() || copied.moved()
    }

    /// More is staged than memory or the log's budget allow for: the doors should hold back.
    pub fn is_saturated(&self) -> bool {
        self.tail_bytes.load(Ordering::Relaxed) > self.options.tail_budget_bytes
            || self.wal_used_bytes() > self.options.wal_budget_bytes * 3 / 4
    }

    /// Somebody waits for progress, or memory grows faster than it is given back.
    pub fn wants_copies(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
            || self.tail_bytes.load(Ordering::Relaxed) > self.options.tail_budget_bytes / 4
            || self.is_closed()
            || self.is_poisoned()
    }

    pub fn wal_used_bytes(&self) -> u64 {
        self.stats.wal_files.load(Ordering::Relaxed) * self.options.wal_file_bytes
    }

    /// The write-ahead log has grown enough. Well before the doors hold back, so that the checkpoint's
    /// syncs run beside the writes and nobody waits for them.
    pub fn is_checkpoint_urgent(&self) -> bool {
        self.wal_used_bytes() > self.options.wal_budget_bytes / 4
    }

    pub fn when_relieved(&self, f: Relief) {
        if self.is_saturated() && self.check().is_ok() {
            self.relief.lock().push(f);
            // It may have passed between the question and the push.
            self.relieve();
        } else {
            f();
        }
    }

    /// Lets go those who hold back, if there is room again or no hope.
    pub fn relieve(&self) {
        if !self.is_saturated() || self.check().is_err() {
            let waiting = std::mem::take(&mut *self.relief.lock());
            waiting.into_iter().for_each(|f| f());
        }
    }
}
