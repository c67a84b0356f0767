//! The checkpoint: what every log is, and from where in the write-ahead log to go on.
//!
//! Promise: whatever the file says is in the segments has been synced before the file was. Operations
//! up to a log's `last_op` are in its image, so replaying them again is skipped.
//! Invariant: the position is taken first; then the images; then everything in them is waited for and
//! synced; then the file replaces the older one; only then are write-ahead files used again. A failed sync is
//! final: it is not tried again, because the second one would say success and have written nothing.

use crate::codec::{Put, Take, crc};
use crate::disk::DiskInner;
use crate::engine::{Engine, Gone};
use crate::error::CheckpointError;
use crate::identity::replace;
use crate::log::LogInner;
use crate::segment::{Origin, SegmentFile};
use crate::state::{Captured, LogOptions, Segment, State, TermStart};
use crate::vfs::is_shortage;
use crate::wal::{self, Position};
use crate::{EntryId, LogKey};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(crate) const FILE: &str = "checkpoint";
const MAGIC: [u8; 8] = *b"logd.chk";
/// 1 knew no base.
const VERSION: u32 = 2;

/// Ten thousand logs of 400 KB: far beyond what anybody keeps, and little enough to be read.
pub(crate) const BYTES_MAX: u64 = 4 << 30;

/// Write-ahead files kept for use again; more than these are given back.
const SPARES_MIN: usize = 4;

/// Syncs of segments in flight at once: enough to keep a disk busy, few enough to leave it to others.
const SYNC_THREADS: usize = 4;

fn put_state(put: &mut Put, s: &State) {
    put.key(s.key);
    put.option(s.purged, Put::id);
    put.option(s.last, Put::id);
    put.i64(s.start_offset);
    put.i64(s.end_offset);
    put.option(s.vote.as_ref(), |p, v| p.bytes(v));
    put.option(s.captured.as_ref(), |p, c| {
        p.id(c.applied);
        p.bytes(&c.state);
    });
    put.list(&s.terms, put_term);
    let control: Vec<_> = s.control.iter().collect();
    put.list(&control, |p, (index, bytes)| {
        p.u64(**index);
        p.bytes(bytes);
    });
    put.list(&s.segments, put_segment);
    put.list(&s.base, put_segment);
    put.u64(s.last_op);
}

const SEALED: u8 = 1;
const CLEAN: u8 = 2;

/// A segment in few bytes: what the operation that puts it in place of others says of it.
pub(crate) fn encode_segment(segment: &Segment) -> Bytes {
    let mut put = Put::default();
    put_segment(&mut put, segment);
    put.0.into()
}

/// `None` if the bytes are not a segment's.
pub(crate) fn decode_segment(bytes: &Bytes) -> Option<SegmentImage> {
    let mut take = Take(bytes.clone());
    take_segment(&mut take).filter(|_| take.is_empty())
}

/// A base, as the operation that installs it has it, and as it is offered to another disk.
pub(crate) fn encode_base<'a>(
    segments: impl Iterator<Item = &'a Segment>,
    terms: &[TermStart],
) -> Bytes {
    let mut put = Put::default();
    let segments: Vec<&Segment> = segments.collect();
    put.list(&segments, |p, s| put_segment(p, s));
    put.list(terms, put_term);
    put.0.into()
}

/// `None` if the bytes are not a base's.
pub(crate) fn decode_base(bytes: &Bytes) -> Option<(Vec<SegmentImage>, Vec<TermStart>)> {
    let mut take = Take(bytes.clone());
    let segments = take.list(take_segment)?;
    let terms = take.list(take_term)?;
    take.is_empty().then_some((segments, terms))
}

fn put_term(put: &mut Put, term: &TermStart) {
    put.u64(term.term);
    put.u64(term.index);
    put.i64(term.offset);
}

fn take_term(take: &mut Take) -> Option<TermStart> {
    Some(TermStart {
        term: take.u64()?,
        index: take.u64()?,
        offset: take.i64()?,
    })
}

fn put_segment(put: &mut Put, s: &Segment) {
    put.u64(s.file.id);
    put.i64(s.file.base_offset);
    put.u64(s.file.base_index);
    put.u64(s.rows);
    put.u64(s.bytes);
    put.id(s.last);
    put.i64(s.next_offset);
    put.i64(s.max_timestamp);
    put.i64(s.first_timestamp);
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    put.u8(flag(s.sealed, SEALED) | flag(s.clean, CLEAN));
}

/// What a checkpoint says of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentImage {
    /// No other segment of the disk ever has it.
    pub id: u64,
    pub base_offset: i64,
    pub base_index: u64,
    /// What is present: the files may hold more.
    pub rows: u64,
    pub bytes: u64,
    pub last: EntryId,
    pub next_offset: i64,
    pub max_timestamp: i64,
    pub first_timestamp: i64,
    pub sealed: bool,
    pub clean: bool,
}

/// What a checkpoint says of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogImage {
    pub key: LogKey,
    pub purged: Option<EntryId>,
    pub last: Option<EntryId>,
    pub start_offset: i64,
    pub end_offset: i64,
    pub vote: Option<Bytes>,
    pub captured: Option<Captured>,
    pub terms: Vec<TermStart>,
    /// Payloads of control entries, by index.
    pub control: BTreeMap<u64, Bytes>,
    pub segments: Vec<SegmentImage>,
    /// What is left of purged entries, oldest first.
    pub base: Vec<SegmentImage>,
    /// The disk's number of the last operation in it.
    pub last_op: u64,
}

impl LogImage {
    /// Of a log that holds nothing.
    pub(crate) fn of(key: LogKey) -> Self {
        Self {
            key,
            purged: None,
            last: None,
            start_offset: 0,
            end_offset: 0,
            vote: None,
            captured: None,
            terms: Vec::new(),
            control: BTreeMap::new(),
            segments: Vec::new(),
            base: Vec::new(),
            last_op: 0,
        }
    }
}

fn take_segment(take: &mut Take) -> Option<SegmentImage> {
    let mut image = SegmentImage {
        id: take.u64()?,
        base_offset: take.i64()?,
        base_index: take.u64()?,
        rows: take.u64()?,
        bytes: take.u64()?,
        last: take.id()?,
        next_offset: take.i64()?,
        max_timestamp: take.i64()?,
        first_timestamp: take.i64()?,
        sealed: false,
        clean: false,
    };
    let flags = take.u8()?;
    image.sealed = flags & SEALED != 0;
    image.clean = flags & CLEAN != 0;
    Some(image)
}

fn take_log(take: &mut Take, version: u32) -> Option<LogImage> {
    Some(LogImage {
        key: take.key()?,
        purged: take.option(Take::id)?,
        last: take.option(Take::id)?,
        start_offset: take.i64()?,
        end_offset: take.i64()?,
        vote: take.option(Take::bytes)?,
        captured: take.option(|t| {
            Some(Captured {
                applied: t.id()?,
                state: t.bytes()?,
            })
        })?,
        terms: take.list(take_term)?,
        control: take
            .list(|t| Some((t.u64()?, t.bytes()?)))?
            .into_iter()
            .collect(),
        segments: take.list(take_segment)?,
        base: match version {
            1 => Vec::new(),
            _ => take.list(take_segment)?,
        },
        last_op: take.u64()?,
    })
}

pub(crate) fn segment_of(image: &SegmentImage, key: LogKey, engine: &Engine) -> Segment {
    let origin = Origin {
        id: image.id,
        base_offset: image.base_offset,
        base_index: image.base_index,
        rows: image.rows,
        bytes: image.bytes,
    };
    let file: Arc<SegmentFile> = engine.segment(key, origin);
    if image.sealed {
        file.seal(image.rows);
    }
    Segment {
        file,
        rows: image.rows,
        bytes: image.bytes,
        last: image.last,
        next_offset: image.next_offset,
        max_timestamp: image.max_timestamp,
        first_timestamp: image.first_timestamp,
        sealed: image.sealed,
        clean: image.clean,
    }
}

fn state_of(image: LogImage, engine: &Engine) -> State {
    let key = image.key;
    let open = |images: &[SegmentImage]| -> Vec<Segment> {
        let images = images.iter();
        images.map(|s| segment_of(s, key, engine)).collect()
    };
    State {
        segments: open(&image.segments),
        base: open(&image.base),
        purged: image.purged,
        last: image.last,
        durable: image.last,
        start_offset: image.start_offset,
        end_offset: image.end_offset,
        vote: image.vote,
        captured: image.captured,
        terms: image.terms,
        control: image.control,
        last_op: image.last_op,
        unsaved: false,
        ..State::new(key, LogOptions::default())
    }
}

/// The file's head, read before there is an engine.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub position: Position,
    /// Operations up to this number are in the images or before them.
    pub last_op: u64,
    version: u32,
    body: Bytes,
}

impl Head {
    /// `None` if the bytes are not a checkpoint of this disk.
    pub fn decode(bytes: &Bytes, disk: u128) -> Option<Head> {
        let body = bytes.len().checked_sub(4)?;
        let seed = disk_seed(disk);
        if Take(bytes.slice(body..)).u32()? != crc(seed, &bytes[..body]) {
            return None;
        }
        let mut take = Take(bytes.slice(..body));
        if take.array::<8>()? != MAGIC {
            return None;
        }
        let version = take.u32().filter(|v| (1..=VERSION).contains(v))?;
        let position = Position {
            sequence: take.u64()?,
            file: take.u64()?,
            at: take.u64()?,
        };
        Some(Head {
            position,
            last_op: take.u64()?,
            version,
            body: take.0,
        })
    }

    /// The logs as they were; `None` if they do not decode.
    pub fn logs(&self, engine: &Engine) -> Option<Vec<State>> {
        let images = self.images();
        images.map(|i| i.map(|i| state_of(i, engine))).collect()
    }

    /// The logs one by one; `None` and no more where they do not decode.
    pub fn images(&self) -> impl Iterator<Item = Option<LogImage>> {
        let mut take = Take(self.body.clone());
        let mut left = take.u32();
        let version = self.version;
        std::iter::from_fn(move || {
            let count = left.take()?;
            let Some(next) = count.checked_sub(1) else {
                return if take.is_empty() { None } else { Some(None) };
            };
            let image = take_log(&mut take, version);
            if image.is_some() {
                left = Some(next);
            }
            Some(image)
        })
    }
}

fn disk_seed(disk: u128) -> u32 {
    crc(0, &disk.to_le_bytes())
}

/// What one checkpoint found: bytes for the file, and whom to remind if it is not written.
struct Images {
    count: u32,
    bytes: Vec<u8>,
    saved: Vec<Arc<LogInner>>,
    last_op: u64,
}

/// Takes a checkpoint now.
pub(crate) fn take(disk: &DiskInner) -> Result<(), CheckpointError> {
    let engine = &disk.engine;
    refuse_if_gone(engine)?;
    let position = *engine.position.lock();
    let images = images(disk);
    let outcome = settle(engine, images.last_op)
        .and_then(|()| sync(engine))
        .and_then(|()| write(engine, position, &images));
    if outcome.is_err() {
        images
            .saved
            .iter()
            .for_each(|log| log.state.lock().unsaved = true);
        return outcome;
    }
    let budget = (engine.options.wal_budget_bytes / engine.options.wal_file_bytes) as usize;
    // The next checkpoint is as far away as this one was: a file made anew costs its length in zeros.
    let spares = engine.shelf.lock().used_files().max(SPARES_MIN).min(budget);
    let recycled = wal::recycle(&engine.wal_folder, &engine.shelf, position.file, spares);
    recycled.map_err(|source| CheckpointError::Io {
        what: "recycle the write-ahead log in",
        path: engine.wal_folder.dir.clone(),
        source,
    })?;
    engine
        .stats
        .wal_files
        .store(engine.shelf.lock().used_files() as u64, Ordering::Relaxed);
    engine.stats.checkpoints.fetch_add(1, Ordering::Relaxed);
    engine
        .stats
        .checkpoint_bytes
        .fetch_add(images.bytes.len() as u64, Ordering::Relaxed);
    engine.relieve();
    Ok(())
}

fn refuse_if_gone(engine: &Engine) -> Result<(), CheckpointError> {
    match (engine.poison_reason(), engine.is_closed()) {
        (Some(reason), _) => Err(CheckpointError::Poisoned(reason)),
        (None, true) => Err(CheckpointError::Closed),
        (None, false) => Ok(()),
    }
}

fn images(disk: &DiskInner) -> Images {
    let logs: Vec<Arc<LogInner>> = disk.logs.lock().values().cloned().collect();
    let mut put = Put::default();
    let (mut count, mut saved) = (0, Vec::new());
    for log in logs {
        // Without any lock of ours: the owner takes its own.
        let source = log.source.lock().clone();
        let captured = if log.state.lock().unsaved {
            source.and_then(|s| s.capture())
        } else {
            None
        };
        let mut state = log.state.lock();
        if state.deleted {
            continue;
        }
        let newer = |c: &Captured| {
            state
                .captured
                .as_ref()
                .is_none_or(|old| old.applied.index <= c.applied.index)
        };
        // What was applied may since have been truncated with the entry it stands on: then it is not ours to keep.
        if let Some(captured) = captured.filter(newer)
            && state
                .last
                .is_some_and(|last| captured.applied.index <= last.index)
        {
            state.captured = Some(captured);
        }
        put_state(&mut put, &state);
        count += 1;
        if state.unsaved {
            state.unsaved = false;
            drop(state);
            saved.push(log);
        }
    }
    Images {
        count,
        bytes: put.0,
        saved,
        last_op: disk.engine.queue.last_op(),
    }
}

/// Waits until every operation in the images is durable and copied to its segment.
fn settle(engine: &Engine, last_op: u64) -> Result<(), CheckpointError> {
    let gone = |gone| match gone {
        Gone::Poisoned => CheckpointError::Poisoned(engine.poison_reason().unwrap_or_default()),
        Gone::Closed => CheckpointError::Closed,
        Gone::NoSpace => CheckpointError::Stalled,
    };
    engine.wait_durable(last_op).map_err(gone)?;
    // The committer hands copies on before it lets go of its lock.
    drop(engine.committer.lock());
    engine.wait_copied(engine.copies.pushed()).map_err(gone)
}

/// Syncs what was written to segments so far. One at a time: whoever comes second knows that what the first
/// took is synced, too.
pub(crate) fn sync(engine: &Engine) -> Result<(), CheckpointError> {
    let _one = engine.syncing.lock();
    if let Some(why) = engine.poison_reason() {
        return Err(CheckpointError::Poisoned(why));
    }
    let segments = std::mem::take(&mut *engine.dirty.lock());
    let dirs = std::mem::take(&mut *engine.dirty_dirs.lock());
    let failed = parking_lot::Mutex::new(None);
    let sync_all = |segments: &[Arc<SegmentFile>]| {
        for segment in segments {
            if let Err(e) = segment.sync() {
                *failed.lock() = Some((segment.log_path.clone(), e));
                return;
            }
        }
    };
    if engine.options.pump == crate::Pump::Manual {
        sync_all(&segments);
    } else {
        let share = segments.len().div_ceil(SYNC_THREADS).max(1);
        std::thread::scope(|scope| {
            segments
                .chunks(share)
                .for_each(|some| drop(scope.spawn(|| sync_all(some))))
        });
    }
    // A deleted log took its folder along: there is no name left to be lost.
    let dirs_failed = dirs.iter().find_map(|key| {
        let dir = engine.log_dir(*key);
        match engine.fs.sync_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            other => other.err().map(|e| (dir, e)),
        }
    });
    let logs_dir = engine.root.join("logs");
    let parent_failed = if dirs.is_empty() {
        None
    } else {
        engine.fs.sync_dir(&logs_dir).err().map(|e| (logs_dir, e))
    };
    match failed.into_inner().or(dirs_failed).or(parent_failed) {
        None => Ok(()),
        Some((path, source)) => {
            if is_shortage(&source) {
                // A folder could not be opened, so it was not synced either: the next checkpoint does it.
                engine.dirty_dirs.lock().extend(dirs);
            } else {
                engine.poison(format!("syncing {}: {source}", path.display()));
            }
            Err(CheckpointError::Io {
                what: "sync",
                path,
                source,
            })
        }
    }
}

fn write(engine: &Engine, position: Position, images: &Images) -> Result<(), CheckpointError> {
    let mut put = Put::default();
    put.0.extend_from_slice(&MAGIC);
    put.u32(VERSION);
    put.u64(position.sequence);
    put.u64(position.file);
    put.u64(position.at);
    put.u64(images.last_op);
    put.u32(images.count);
    put.0.extend_from_slice(&images.bytes);
    let sum = crc(disk_seed(engine.identity.id), &put.0);
    put.u32(sum);
    replace(&engine.fs, &engine.root, FILE, &put.0).map_err(|source| {
        if !is_shortage(&source) {
            engine.poison(format!(
                "writing the checkpoint in {}: {source}",
                engine.root.display()
            ));
        }
        CheckpointError::Io {
            what: "write the checkpoint in",
            path: engine.root.clone(),
            source,
        }
    })
}
