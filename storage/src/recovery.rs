//! From files to logs: the checkpoint's images, then the write-ahead log from its position on.
//!
//! Promise: every operation that was acknowledged is there again; one that was not is there whole or not
//! at all. Recovering twice comes to the same.
//! Not here: which groups of the write-ahead log are a torn tail and which are damage (see `wal_reader`).

use crate::base::Base;
use crate::checkpoint::{self, Head};
use crate::copier::Job;
use crate::disk::{DiskOptions, RecoveryProgress};
use crate::engine::{Engine, Resume};
use crate::error::{Damage, OpenError, ReadError};
use crate::group::{BLOCK_BYTES, HEADER_BYTES, Operation, to_entry};
use crate::identity::{DiskIdentity, read_file};
use crate::log::LogInner;
use crate::segment::Copy;
use crate::state::{Dropped, LogOptions, Segment, State};
use crate::vfs::Vfs;
use crate::wal::{Position, Shelf};
use crate::wal_reader::{Found, WalFiles, io_error};
use crate::{EntryId, Kind, LogKey};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tracing::{info, warn};

/// Logs by key.
pub(crate) type Logs = BTreeMap<LogKey, Arc<LogInner>>;

/// Opens what lies in `root`. The caller holds its lock and has its identity.
pub(crate) fn recover(
    fs: Arc<dyn Vfs>,
    root: &Path,
    options: DiskOptions,
    identity: DiskIdentity,
    progress: &dyn Fn(RecoveryProgress),
) -> Result<(Arc<Engine>, Logs), OpenError> {
    let path = root.join(checkpoint::FILE);
    let head =
        match read_file(&fs, &path, checkpoint::BYTES_MAX).map_err(io_error("read", &path))? {
            None => None,
            Some(bytes) => {
                let damaged = || OpenError::Corrupt {
                    path: path.clone(),
                    position: 0,
                    what: "the checkpoint does not match its checksum".into(),
                };
                Some(Head::decode(&bytes, identity.id).ok_or_else(damaged)?)
            }
        };
    let files = WalFiles::list(&fs, root, identity.id)?;
    let from = head.as_ref().map_or(
        Position {
            sequence: 1,
            ..Position::default()
        },
        |h| h.position,
    );
    let chain = files.sound_chain(from)?;
    if head.is_none() && chain.groups.is_empty() {
        refuse_forgotten_logs(&fs, root)?;
    }
    let last_op = chain.groups.last().map_or(0, |g| {
        (g.header.first_op + u64::from(g.header.operations)).saturating_sub(1)
    });
    let next_op = last_op.max(head.as_ref().map_or(0, |h| h.last_op)) + 1;
    let (needed, old): (Vec<u64>, Vec<u64>) = files.numbers.iter().partition(|n| **n >= from.file);
    // A checkpoint may point at a file that was never made: a lower number would not be read again.
    let next_number = (files.highest + 1).max(from.file);
    let shelf = Shelf::new(next_number, needed, files.reusable());
    let engine = Engine::new(
        fs.clone(),
        root,
        options,
        identity,
        Resume {
            sequence: chain.end.sequence,
            next_op,
            shelf,
        },
    );
    // Until the first group is written, a checkpoint points at the file that will get it.
    *engine.position.lock() = Position {
        sequence: chain.end.sequence,
        file: next_number,
        at: BLOCK_BYTES as u64,
    };
    if let Some(last) = chain.groups.last() {
        make_durable(&engine, &files, last)?;
    }
    let chain = chain.groups;
    let states = match &head {
        None => Vec::new(),
        Some(head) => head.logs(&engine).ok_or_else(|| OpenError::Corrupt {
            path: path.clone(),
            position: 0,
            what: "the checkpoint's logs do not decode".into(),
        })?,
    };
    let mut replay = Replay {
        engine: &engine,
        logs: Logs::new(),
        deletes: HashMap::new(),
        // Before anything is copied to them: a copy behind a file's end would hide that it is short.
        short: states.iter().flat_map(short_files).collect(),
        bytes: 0,
        progress,
    };
    replay.logs.extend(
        states
            .into_iter()
            .map(|s| (s.key, LogInner::new(engine.clone(), s))),
    );
    replay.run(&files, &chain)?;
    let (logs, bytes) = (replay.logs, replay.bytes);
    fence_short(&logs, &replay.short);
    sweep(&engine, &logs);
    for number in old {
        let path = files.path(number);
        fs.remove_file(&path).map_err(io_error("remove", &path))?;
    }
    if !chain.is_empty() {
        info!(
            groups = chain.len(),
            bytes,
            logs = logs.len(),
            "write-ahead log replayed"
        );
    }
    progress(RecoveryProgress {
        done_logs: logs.len(),
        total_logs: logs.len(),
        bytes_replayed: bytes,
    });
    Ok((engine, logs))
}

/// The write of the last group may have failed, and its bytes be read back all the same, from a cache of the
/// kernel's or of the disk's: that they are there does not say that they stay. One group is in flight at a
/// time, so all others were durable before it was begun.
fn make_durable(engine: &Engine, files: &WalFiles, last: &Found) -> Result<(), OpenError> {
    let path = files.path(last.file);
    match files.bytes(last)? {
        Some(bytes) => engine
            .wal_folder
            .write_again(last.file, last.at, &bytes)
            .map_err(io_error("write", &path)),
        None => Ok(()),
    }
}

/// Logs begin in the write-ahead log: without it and without a checkpoint there is nothing to tell what
/// their files hold.
fn refuse_forgotten_logs(fs: &Arc<dyn Vfs>, root: &Path) -> Result<(), OpenError> {
    let dir = root.join("logs");
    let names = fs.read_dir(&dir).map_err(io_error("list", &dir))?;
    let holds = |name: &String| {
        fs.read_dir(&dir.join(name))
            .is_ok_and(|files| !files.is_empty())
    };
    match names.iter().find(|name| holds(name)) {
        None => Ok(()),
        Some(name) => Err(OpenError::Corrupt {
            path: root.join(checkpoint::FILE),
            position: 0,
            what: format!("the checkpoint is missing, and logs/{name} is not empty"),
        }),
    }
}

/// A segment that is shorter than what the checkpoint, or an operation, knows to be in it.
struct Short {
    key: LogKey,
    segment: u64,
    damage: Damage,
}

fn short_files(state: &State) -> Vec<Short> {
    let segments = state.all_segments();
    segments.filter_map(|s| short_file(state.key, s)).collect()
}

fn short_file(key: LogKey, segment: &Segment) -> Option<Short> {
    let (rows, bytes) = segment.file.inherited();
    match segment.file.check_lengths(rows, bytes) {
        Err(ReadError::Damaged(damage)) => {
            // Either an operation to be replayed drops it, or its log is fenced: nothing goes there.
            segment.file.drop_files_later();
            Some(Short {
                key,
                segment: segment.file.id,
                damage,
            })
        }
        _ => None,
    }
}

/// Fences the logs that still have such a segment: one that an operation dropped meanwhile may be gone.
fn fence_short(logs: &Logs, short: &[Short]) {
    for Short {
        key,
        segment,
        damage,
    } in short
    {
        let Some(log) = logs.get(key) else { continue };
        let present = {
            let state = log.state.lock();
            state.all_segments().any(|s| s.file.id == *segment)
        };
        if present {
            log.fence(damage);
        }
    }
}

/// Removes segment files that no log knows: left by a crash between writing and remembering.
fn sweep(engine: &Engine, logs: &Logs) {
    let dir = engine.root.join("logs");
    let Ok(names) = engine.fs.read_dir(&dir) else {
        return;
    };
    let known: HashMap<String, &Arc<LogInner>> =
        logs.iter().map(|(k, l)| (k.to_string(), l)).collect();
    for name in names {
        let Some(log) = known.get(&name) else {
            continue;
        };
        let state = log.state.lock();
        let keep: HashSet<PathBuf> = state
            .all_segments()
            .flat_map(|s| [s.file.log_path.clone(), s.file.ledger_path.clone()])
            .collect();
        if state.fenced.is_some() {
            continue;
        }
        drop(state);
        let folder = dir.join(&name);
        let Ok(files) = engine.fs.read_dir(&folder) else {
            continue;
        };
        for path in files
            .iter()
            .map(|f| folder.join(f))
            .filter(|p| !keep.contains(p))
        {
            if let Err(error) = engine.fs.remove_file(&path) {
                warn!(path = %path.display(), %error, "a file that no log needs stays");
            }
        }
    }
}

struct Replay<'a> {
    engine: &'a Arc<Engine>,
    logs: Logs,
    /// The last deletion of a log: what came before it is of no use any more.
    deletes: HashMap<LogKey, u64>,
    short: Vec<Short>,
    bytes: u64,
    progress: &'a dyn Fn(RecoveryProgress),
}

impl Replay<'_> {
    fn run(&mut self, files: &WalFiles, chain: &[Found]) -> Result<(), OpenError> {
        self.find_deletes(files, chain)?;
        let total = self.logs.len();
        for found in chain {
            let operations = files.operations(found)?.ok_or_else(|| OpenError::Corrupt {
                path: files.path(found.file),
                position: found.at,
                what: format!(
                    "group {} does not match its checksums",
                    found.header.sequence
                ),
            })?;
            for (op, (key, operation)) in (found.header.first_op..).zip(operations) {
                self.bytes += operation.payload_len() as u64;
                self.redo(op, key, operation)
                    .map_err(|what| OpenError::Corrupt {
                        path: files.path(found.file),
                        position: found.at,
                        what,
                    })?;
            }
            self.drain();
            (self.progress)(RecoveryProgress {
                done_logs: 0,
                total_logs: total.max(self.logs.len()),
                bytes_replayed: self.bytes,
            });
        }
        Ok(())
    }

    /// Deletions first, by the descriptors alone: a log that went may have lost its files long before.
    fn find_deletes(&mut self, files: &WalFiles, chain: &[Found]) -> Result<(), OpenError> {
        for found in chain {
            let file = files.open(found.file)?;
            let len =
                HEADER_BYTES + found.header.operations as usize * crate::group::DESCRIPTOR_BYTES;
            let bytes = files.read(&*file, found.file, found.at, len)?;
            for (op, key) in (found.header.first_op..).zip(crate::group::deletions(&bytes)) {
                if let Some(key) = key {
                    self.deletes.insert(key, op);
                }
            }
        }
        Ok(())
    }

    fn delete(&mut self, op: u64, key: LogKey) {
        let known = self.logs.get(&key);
        // The checkpoint knows a later log of this name: the deleted one was in the trash before it was taken.
        if known.is_some_and(|log| log.state.lock().last_op > op) {
            return;
        }
        let log = self.logs.remove(&key);
        let trash = Job::Trash {
            key,
            number: op,
            log,
        };
        self.engine.copies.push(vec![trash]);
    }

    fn redo(&mut self, op: u64, key: LogKey, operation: Operation) -> Result<(), String> {
        if self.deletes.get(&key).is_some_and(|delete| op <= *delete) {
            if matches!(operation, Operation::Delete) {
                self.delete(op, key);
            }
            return Ok(());
        }
        let engine = self.engine;
        if matches!(operation, Operation::Settle { .. }) {
            // The base is read from its files alone: what goes there is not to wait in memory.
            while engine.copier.lock().step(engine).moved() {}
        }
        let log = self
            .logs
            .entry(key)
            .or_insert_with(|| {
                LogInner::new(engine.clone(), State::new(key, LogOptions::default()))
            })
            .clone();
        let mut state = log.state.lock();
        if op <= state.last_op {
            return Ok(());
        }
        let damaged = |e: ReadError| format!("replaying operation {op} on log {key}: {e}");
        let dropped = match operation {
            Operation::Entry {
                row,
                head,
                body,
                new_segment,
            } => {
                let entry = to_entry(&row, head, body);
                let fits = state
                    .last
                    .is_none_or(|last: EntryId| last.index + 1 == row.index);
                if !fits || (row.kind == Kind::Data && row.base_offset != state.end_offset) {
                    return Err(format!(
                        "entry {} at offset {} of log {key} does not follow {:?} at {}",
                        row.index, row.base_offset, state.last, state.end_offset
                    ));
                }
                // A segment that holds nothing on this disk cannot go on.
                let fresh = new_segment || !state.has_entries();
                let sealed = if fresh { state.seal() } else { None };
                let file = fresh.then(|| log.next_segment(&state, row.index));
                let tail = state.push(&entry, row.payload_crc, file);
                engine
                    .tail_bytes
                    .fetch_add(tail.row.length as usize, Ordering::Relaxed);
                state.durable = Some(row.id());
                let copy = Copy {
                    segment: tail.file,
                    row: tail.row,
                    head: tail.head,
                    body: tail.body,
                };
                let mut jobs: Vec<Job> = sealed.into_iter().map(Job::Seal).collect();
                jobs.push(Job::Copy(log.clone(), copy));
                engine.copies.push(jobs);
                Dropped::new()
            }
            Operation::Vote(vote) => {
                state.vote = Some(vote);
                Dropped::new()
            }
            Operation::Truncate { keep, end_offset } => {
                state.truncate(keep, end_offset).map_err(damaged)?
            }
            Operation::Purge { upto, start_offset } => {
                state.purge(upto, start_offset).map_err(damaged)?
            }
            Operation::Snapshot {
                upto,
                next_offset,
                state: snapshot,
                replaces,
            } => {
                let replaces = match replaces {
                    Some(recorded) => recorded,
                    None => state.replaced_by(upto).map_err(damaged)?,
                };
                if replaces {
                    state.replace(upto, snapshot, next_offset, Base::default())
                } else {
                    let dropped = state.purge(upto, Some(next_offset)).map_err(damaged)?;
                    state.capture(upto, snapshot);
                    dropped
                }
            }
            Operation::Settle { upto, floor } => state.settle(upto, floor),
            Operation::Capture {
                applied,
                state: captured,
            } => {
                state.capture(applied, captured);
                Dropped::new()
            }
            Operation::Replace {
                upto,
                next_offset,
                state: snapshot,
                base,
            } => {
                let (segments, terms) = checkpoint::decode_base(&base)
                    .ok_or_else(|| format!("operation {op} on log {key} does not decode"))?;
                let segments = segments.iter();
                let base = Base {
                    segments: segments
                        .map(|s| checkpoint::segment_of(s, key, engine))
                        .collect(),
                    terms,
                };
                let short = base.segments.iter().filter_map(|s| short_file(key, s));
                self.short.extend(short);
                state.replace(upto, snapshot, next_offset, base)
            }
            Operation::Delete => Dropped::new(),
            Operation::Rewrite(segment) => {
                let image = checkpoint::decode_segment(&segment)
                    .ok_or_else(|| format!("operation {op} on log {key} does not decode"))?;
                let new = checkpoint::segment_of(&image, key, engine);
                let dropped = state.rewrite(&new).ok_or_else(|| {
                    format!("operation {op} on log {key} rewrites segments that it does not have")
                })?;
                self.short.extend(short_file(key, &new));
                dropped
            }
        };
        // What is replayed is durable: copies that are queued already need not be made.
        dropped.iter().for_each(|file| file.drop_files_later());
        engine
            .copies
            .push(dropped.into_iter().map(Job::Drop).collect());
        state.number(op);
        Ok(())
    }

    /// Copies to segments what was replayed when it gets much: memory is not the log's size.
    fn drain(&self) {
        let engine = self.engine;
        while engine.tail_bytes.load(Ordering::Relaxed) > engine.options.tail_budget_bytes / 2 {
            if !engine.copier.lock().step(engine).moved() {
                return;
            }
        }
    }
}
