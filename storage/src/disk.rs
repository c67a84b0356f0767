//! The door: open a directory, find its logs, take checkpoints, close it.
//!
//! Promise: one process has a directory at a time; what [`Disk::open`] returns is recovered; dropping the
//! last handle without [`Disk::close`] is a crash, and as safe as one.
//! Three threads work behind it: the committer, the copier, and the keeper (files made ready ahead, checkpoints,
//! the trash). With [`Pump::Manual`] there are none, and the caller does their work step by step.

use crate::checkpoint;
use crate::commit;
use crate::copier;
use crate::engine::{Engine, Gone};
use crate::error::{CheckpointError, OpenError, OpenLogError, WriteError};
use crate::group::Operation;
use crate::identity::{self, DiskIdentity};
use crate::log::{Log, LogInner};
use crate::open_files::OPEN_SEGMENTS_MAX;
use crate::recovery::{self, Logs};
use crate::state::{LogOptions, State};
use crate::stats::DiskStats;
use crate::vfs::{Vfs, is_shortage};
use crate::{LogKey, wal};
use parking_lot::Mutex;
use std::any::Any;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use tracing::{debug, info, warn};

/// Who does the work that is nobody's call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pump {
    /// Threads of the disk's own.
    #[default]
    Threads,
    /// The caller, by [`Disk::pump`]: for simulations.
    Manual,
}

#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// Size of one file of the write-ahead log; an entry must fit into it.
    pub wal_file_bytes: u64,
    /// Space for the write-ahead log; a checkpoint is due at a quarter of it.
    pub wal_budget_bytes: u64,
    pub checkpoint_every: Duration,
    /// Memory for entries that are not in their segment yet; beyond it the disk says that it is saturated.
    pub tail_budget_bytes: usize,
    /// Free space below which [`Space::accepting`] is false.
    pub reserve_bytes: u64,
    /// Segments open at once; each may take two descriptors and two maps.
    pub open_segments_max: usize,
    pub pump: Pump,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            wal_file_bytes: 64 << 20,
            wal_budget_bytes: 1 << 30,
            checkpoint_every: Duration::from_secs(10),
            tail_budget_bytes: 32 << 20,
            reserve_bytes: 256 << 20,
            open_segments_max: OPEN_SEGMENTS_MAX,
            pump: Pump::Threads,
        }
    }
}

/// How far recovery is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecoveryProgress {
    pub done_logs: usize,
    pub total_logs: usize,
    pub bytes_replayed: u64,
}

/// Room on the disk, and whether it still works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// New data may come.
    pub accepting: bool,
    /// Why the disk takes nothing any more.
    pub poisoned: Option<String>,
}

/// Free space is looked at this often: a call costs more than an append should.
const SPACE_LOOK: Duration = Duration::from_millis(200);

pub(crate) struct DiskInner {
    pub engine: Arc<Engine>,
    pub logs: Mutex<Logs>,
    /// One checkpoint at a time.
    checkpointing: Mutex<()>,
    space: Mutex<Option<(Instant, u64, u64)>>,
    /// Whether the last look found room for new data: a change is said once.
    had_room: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
    _lock: Box<dyn Any + Send + Sync>,
}

/// An open data directory. Clones share it.
#[derive(Clone)]
pub struct Disk(Arc<DiskInner>);

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Disk").field(&self.0.engine.root).finish()
    }
}

impl Drop for DiskInner {
    /// The lock goes last: whoever opens the directory next must not meet a write of ours still under way.
    fn drop(&mut self) {
        self.engine.shut();
        self.join_threads();
    }
}

impl Disk {
    /// Opens a directory, making it one of ours if it is empty, and recovers what is in it.
    ///
    /// # Errors
    /// If it cannot be used, is used by another process, or holds damage that cannot be told from loss.
    pub fn open(
        fs: Arc<dyn Vfs>,
        root: &Path,
        options: DiskOptions,
        progress: &dyn Fn(RecoveryProgress),
    ) -> Result<Disk, OpenError> {
        let failed = |what: &'static str| {
            move |source| OpenError::Io {
                what,
                path: root.to_owned(),
                source,
            }
        };
        fs.create_dir_all(root).map_err(failed("create"))?;
        let lock = fs
            .try_lock(&root.join("LOCK"))
            .map_err(|source| match source.kind() {
                io::ErrorKind::WouldBlock => OpenError::Locked {
                    path: root.to_owned(),
                },
                _ => failed("lock")(source),
            })?;
        let identity = identity::start(&fs, root, fresh_id(root))?;
        for folder in ["wal", "logs", "trash"] {
            fs.create_dir_all(&root.join(folder))
                .map_err(failed("create folders in"))?;
        }
        fs.sync_dir(root).map_err(failed("sync"))?;
        let (engine, logs) = recovery::recover(fs, root, options, identity, progress)?;
        let inner = DiskInner {
            engine,
            logs: Mutex::new(logs),
            checkpointing: Mutex::default(),
            space: Mutex::default(),
            had_room: AtomicBool::new(true),
            threads: Mutex::default(),
            _lock: lock,
        };
        let disk = Disk(Arc::new(inner));
        if disk.0.engine.options.pump == Pump::Threads {
            disk.start_threads().map_err(failed("start threads for"))?;
        }
        Ok(disk)
    }

    fn start_threads(&self) -> io::Result<()> {
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(work)
        };
        let (committer, copier, keeper) = (
            self.0.engine.clone(),
            self.0.engine.clone(),
            self.0.engine.clone(),
        );
        let disk = Arc::downgrade(&self.0);
        self.0.threads.lock().extend([
            spawn("logd-committer", Box::new(move || commit::run(&committer)))?,
            spawn("logd-copier", Box::new(move || copier::run(&copier)))?,
            spawn("logd-keeper", Box::new(move || keep(&keeper, &disk)))?,
        ]);
        Ok(())
    }

    pub fn identity(&self) -> DiskIdentity {
        self.0.engine.identity
    }

    pub fn logs(&self) -> Vec<LogKey> {
        self.0.logs.lock().keys().copied().collect()
    }

    /// A log, created if it is not there. Nothing is written until something is appended or voted.
    ///
    /// # Errors
    /// If the disk is gone, or the log is fenced.
    pub fn open_log(&self, key: LogKey, options: LogOptions) -> Result<Log, OpenLogError> {
        match self.0.engine.check() {
            Ok(()) => {}
            Err(WriteError::Poisoned(reason)) => return Err(OpenLogError::Poisoned(reason)),
            Err(_) => return Err(OpenLogError::Closed),
        }
        let mut logs = self.0.logs.lock();
        let log = logs
            .entry(key)
            .or_insert_with(|| LogInner::new(self.0.engine.clone(), State::new(key, options)))
            .clone();
        let mut state = log.state.lock();
        if let Some(damage) = &state.fenced {
            return Err(OpenLogError::Fenced(damage.clone()));
        }
        state.options = options;
        drop(state);
        Ok(Log(log))
    }

    pub fn log(&self, key: LogKey) -> Option<Log> {
        self.0.logs.lock().get(&key).cloned().map(Log)
    }

    /// Deletes a log by way of the trash. Blocks until that is durable.
    ///
    /// # Errors
    /// If the disk failed or is closed: the log may still be there after a restart.
    pub fn delete_log(&self, key: LogKey) -> Result<(), WriteError> {
        let engine = &self.0.engine;
        engine.check()?;
        let (log, op) = {
            let mut logs = self.0.logs.lock();
            let Some(log) = logs.get(&key).cloned() else {
                return Ok(());
            };
            let mut state = log.state.lock();
            state.deleted = true;
            state.tail.clear();
            // Queued before the log is out of sight: a checkpoint without it waits for its deletion.
            log.submit(&mut state, Operation::Delete, Vec::new(), Box::new(|_| {}));
            logs.remove(&key);
            let op = state.last_op;
            drop(state);
            (log, op)
        };
        // Its owner holds the log, and the log its owner: as long as they do, the files keep their space.
        *log.source.lock() = None;
        engine.wait_durable(op).map_err(|gone| match gone {
            Gone::Poisoned => WriteError::Poisoned(engine.poison_reason().unwrap_or_default()),
            Gone::Closed => WriteError::Closed,
            Gone::NoSpace => WriteError::NoSpace,
        })
    }

    pub fn space(&self) -> Space {
        let (free_bytes, total_bytes) = self.0.free_space();
        let engine = &self.0.engine;
        let poisoned = engine.poison_reason();
        let room = free_bytes >= engine.options.reserve_bytes.max(1) && !engine.is_full();
        // Looked at by every append: written only when it changes.
        let had_room = &self.0.had_room;
        if had_room.load(Ordering::Relaxed) != room
            && had_room.swap(room, Ordering::Relaxed) != room
        {
            self.0.tell_room(room, free_bytes);
        }
        Space {
            free_bytes,
            total_bytes,
            accepting: room && poisoned.is_none(),
            poisoned,
        }
    }

    pub fn stats(&self) -> DiskStats {
        let engine = &self.0.engine;
        let logs = self.0.logs.lock();
        DiskStats {
            wal_used_bytes: engine.wal_used_bytes(),
            tail_bytes: engine.tail_bytes.load(Ordering::Relaxed) as u64,
            logs: logs.len() as u64,
            segments: logs
                .values()
                .map(|l| l.state.lock().all_segments().count() as u64)
                .sum(),
            ..engine.stats.read()
        }
    }

    /// More is staged than memory or the write-ahead log's budget allow for: hold new data back.
    pub fn is_saturated(&self) -> bool {
        self.0.engine.is_saturated()
    }

    /// Calls `f` once the disk is not saturated, or is gone.
    pub fn when_relieved(&self, f: Box<dyn FnOnce() + Send>) {
        self.0.engine.when_relieved(f);
    }

    /// Takes a checkpoint now. Blocks until it is durable.
    ///
    /// # Errors
    /// The older checkpoint stays in force.
    pub fn checkpoint(&self) -> Result<(), CheckpointError> {
        self.0.checkpoint()
    }

    /// Does one step of the work of the committer and the copier. Says whether there was any.
    pub fn pump(&self) -> bool {
        self.0.engine.pump_once()
    }

    /// Is called once, when the disk has failed and takes nothing any more.
    pub fn on_fatal(&self, f: Box<dyn Fn(&str) + Send + Sync>) {
        self.0.engine.set_on_fatal(f);
    }

    /// Is called after each group's synchronous write, on the committer's thread, with its time and its bytes
    /// (padding included): be quick. The first caller wins.
    pub fn on_sync(&self, f: Box<dyn Fn(std::time::Duration, u64) + Send + Sync>) {
        if self.0.engine.on_sync.set(f).is_err() {
            tracing::warn!("a second observer of syncs is ignored");
        }
    }

    /// Finishes what is queued, takes a checkpoint, and marks that the end was in order.
    ///
    /// # Errors
    /// The next start recovers, and loses nothing.
    pub fn close(self) -> Result<(), CheckpointError> {
        let engine = self.0.engine.clone();
        self.0.checkpoint()?;
        engine.shut();
        self.0.join_threads();
        identity::mark_clean(&engine.fs, &engine.root, &engine.identity).map_err(|source| {
            CheckpointError::Io {
                what: "mark the clean end in",
                path: engine.root.clone(),
                source,
            }
        })
    }
}

impl DiskInner {
    fn checkpoint(&self) -> Result<(), CheckpointError> {
        let _one = self.checkpointing.lock();
        checkpoint::take(self)
    }

    fn join_threads(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        // The keeper may be the one that drops the last handle.
        let own = std::thread::current().id();
        for thread in threads.into_iter().filter(|t| t.thread().id() != own) {
            if thread.join().is_err() {
                warn!("a thread of the disk panicked");
            }
        }
    }

    fn tell_room(&self, room: bool, free_bytes: u64) {
        let (disk, reserve_bytes) = (
            self.engine.root.display(),
            self.engine.options.reserve_bytes,
        );
        if room {
            info!(%disk, free_bytes, "there is room again: new data is accepted");
        } else {
            warn!(%disk, free_bytes, reserve_bytes, "free space or file descriptors run out: new data is refused until there is room; reads, deletions and group offsets go on");
        }
    }

    fn free_space(&self) -> (u64, u64) {
        let mut space = self.space.lock();
        if let Some((at, free, total)) = *space
            && self.engine.options.pump == Pump::Threads
            && at.elapsed() < SPACE_LOOK
        {
            return (free, total);
        }
        // A file system that does not say is not taken to be full.
        let (free, total) = self
            .engine
            .fs
            .free_space(&self.engine.root)
            .unwrap_or((u64::MAX, u64::MAX));
        *space = Some((Instant::now(), free, total));
        (free, total)
    }

    fn has_unsaved(&self) -> bool {
        let logs: Vec<Arc<LogInner>> = self.logs.lock().values().cloned().collect();
        logs.iter().any(|l| l.state.lock().unsaved)
    }
}

/// A number that no other directory has: time, process and place, stirred.
fn fresh_id(root: &Path) -> u128 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let stir = |salt: u64| {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u64(salt);
        hasher.write_u32(std::process::id());
        hasher.write(root.as_os_str().as_encoded_bytes());
        hasher.write_u128(
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |d| d.as_nanos()),
        );
        hasher.finish()
    };
    (u128::from(stir(1)) << 64) | u128::from(stir(2))
}

const NAP_MIN: Duration = Duration::from_millis(100);
const NAP_MAX: Duration = Duration::from_secs(1);

/// The keeper's thread.
fn keep(engine: &Engine, disk: &Weak<DiskInner>) {
    let _guard = engine.poison_on_panic("keeper");
    let mut last = Instant::now();
    while !engine.is_closed() && !engine.is_poisoned() {
        prepare_ahead(engine);
        let Some(inner) = disk.upgrade() else { return };
        let urgent = engine.is_checkpoint_urgent();
        if (urgent || last.elapsed() >= engine.options.checkpoint_every) && inner.has_unsaved() {
            last = Instant::now();
            if let Err(error) = inner.checkpoint() {
                warn!(%error, "checkpoint put off");
            }
        }
        drop(inner);
        empty_trash(engine);
        let mut call = engine.keeper_call.lock();
        if !std::mem::take(&mut *call) {
            let left = engine
                .options
                .checkpoint_every
                .saturating_sub(last.elapsed());
            // One that is due finds nothing to do while nobody writes: that is not looked for often.
            let nap = if left.is_zero() { NAP_MAX } else { left };
            engine
                .keeper_wake
                .wait_for(&mut call, nap.clamp(NAP_MIN, NAP_MAX));
            *call = false;
        }
    }
}

fn prepare_ahead(engine: &Engine) {
    match wal::prepare_ahead(&engine.wal_folder, &engine.shelf, true) {
        Ok(()) => {}
        Err(error) if is_shortage(&error) => {
            debug!(%error, "no file made ready ahead");
        }
        // It may have been a sync, and those are not tried again.
        Err(error) => engine.poison(format!(
            "making a file ready in {}: {error}",
            engine.wal_folder.dir.display()
        )),
    }
}

fn empty_trash(engine: &Engine) {
    let trash = engine.root.join("trash");
    for name in engine.fs.read_dir(&trash).unwrap_or_default() {
        if let Err(error) = engine.fs.remove_dir_all(&trash.join(&name)) {
            warn!(name, %error, "the trash is not empty");
        }
    }
}
