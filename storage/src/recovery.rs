//! From files to logs: the checkpoint's images, then the write-ahead log from its position on.
//!
//! Promise: every operation that was acknowledged is there again; one that was not is there whole or not
//! at all. Recovering twice comes to the same.
//! The rule for what does not validate: one group is in flight at a time, so a bad group is a torn tail if
//! and only if no valid group has a higher number. Anything else is damage to what may have been acknowledged,
//! and is not guessed at.

use crate::checkpoint::{self, Head};
use crate::copier::Job;
use crate::disk::{DiskOptions, RecoveryProgress};
use crate::engine::{Engine, Resume};
use crate::error::{OpenError, ReadError};
use crate::group::{BLOCK_BYTES, GroupHeader, HEADER_BYTES, Operation, to_entry};
use crate::identity::{DiskIdentity, read_file};
use crate::log::LogInner;
use crate::segment::Copy;
use crate::state::{Dropped, LogOptions, State};
use crate::vfs::{Open, Vfs, VfsFile};
use crate::wal::{Position, Shelf, file_name, file_number, file_seed, is_header};
use crate::{EntryId, Kind, LogKey};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tracing::{info, warn};

/// Logs by key.
pub(crate) type Logs = BTreeMap<LogKey, Arc<LogInner>>;

/// A valid group and where it lies.
#[derive(Debug, Clone, Copy)]
struct Found {
    file: u64,
    at: u64,
    header: GroupHeader,
}

/// The write-ahead log as it lies on the disk.
struct WalFiles {
    fs: Arc<dyn Vfs>,
    dir: PathBuf,
    disk: u128,
    /// Numbered files with a valid head, in order.
    numbers: Vec<u64>,
    spares: Vec<PathBuf>,
    highest: u64,
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { what, path, source }
}

impl WalFiles {
    fn list(fs: &Arc<dyn Vfs>, root: &Path, disk: u128) -> Result<Self, OpenError> {
        let dir = root.join("wal");
        let mut files = Self {
            fs: fs.clone(),
            dir: dir.clone(),
            disk,
            numbers: Vec::new(),
            spares: Vec::new(),
            highest: 0,
        };
        for name in fs.read_dir(&dir).map_err(io_error("list", &dir))? {
            if let Some(number) = file_number(&name) {
                files.highest = files.highest.max(number);
                if files.has_head(number)? {
                    files.numbers.push(number);
                } else {
                    // A file that was being made ready when the power went: nothing was ever written to it.
                    files.spares.push(dir.join(&name));
                }
            } else if name.ends_with(".spare") {
                files.spares.push(dir.join(&name));
            }
        }
        files.numbers.sort_unstable();
        Ok(files)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(file_name(number))
    }

    fn open(&self, number: u64) -> Result<Arc<dyn VfsFile>, OpenError> {
        let path = self.path(number);
        self.fs
            .open(
                &path,
                Open {
                    read: true,
                    ..Open::default()
                },
            )
            .map_err(io_error("open", &path))
    }

    fn has_head(&self, number: u64) -> Result<bool, OpenError> {
        let head = self.read(&*self.open(number)?, number, 0, BLOCK_BYTES)?;
        Ok(is_header(&head, self.disk, number))
    }

    /// Up to `len` bytes; fewer at the end of the file.
    fn read(
        &self,
        file: &dyn VfsFile,
        number: u64,
        at: u64,
        len: usize,
    ) -> Result<Bytes, OpenError> {
        let path = self.path(number);
        let there = file
            .len()
            .map_err(io_error("measure", &path))?
            .saturating_sub(at);
        let mut bytes = vec![0; len.min(usize::try_from(there).unwrap_or(usize::MAX))];
        file.read_exact_at(&mut bytes, at)
            .map_err(io_error("read", &path))?;
        Ok(Bytes::from(bytes))
    }

    fn header_at(
        &self,
        file: &dyn VfsFile,
        number: u64,
        at: u64,
    ) -> Result<Option<GroupHeader>, OpenError> {
        let bytes = self.read(file, number, at, HEADER_BYTES)?;
        Ok(GroupHeader::decode(&bytes, file_seed(self.disk, number)))
    }

    /// A group's operations; `None` if it does not validate as a whole.
    fn operations(&self, found: &Found) -> Result<Option<Vec<(LogKey, Operation)>>, OpenError> {
        let Some(len) = found.header.group_bytes() else {
            return Ok(None);
        };
        let group = self.read(&*self.open(found.file)?, found.file, found.at, len)?;
        Ok(found
            .header
            .operations(&group, file_seed(self.disk, found.file)))
    }

    /// The groups from a position on, by their heads; stops where the next number does not follow.
    fn chain(&self, from: Position) -> Result<Vec<Found>, OpenError> {
        let mut chain = Vec::new();
        let mut sequence = from.sequence;
        for number in self.numbers.iter().copied().filter(|n| *n >= from.file) {
            let file = self.open(number)?;
            let mut at = if number == from.file {
                from.at.max(BLOCK_BYTES as u64)
            } else {
                BLOCK_BYTES as u64
            };
            while let Some(header) = self
                .header_at(&*file, number, at)?
                .filter(|h| h.sequence == sequence)
            {
                let Some(len) = header.group_bytes() else {
                    break;
                };
                chain.push(Found {
                    file: number,
                    at,
                    header,
                });
                sequence += 1;
                at += len as u64;
            }
        }
        Ok(chain)
    }

    /// A valid group with a higher number than the chain's end, anywhere behind it.
    fn beyond(&self, end: Position) -> Result<Option<Found>, OpenError> {
        for number in self.numbers.iter().copied().filter(|n| *n >= end.file) {
            let file = self.open(number)?;
            let mut at = if number == end.file {
                end.at.max(BLOCK_BYTES as u64)
            } else {
                BLOCK_BYTES as u64
            };
            let len = file
                .len()
                .map_err(io_error("measure", &self.path(number)))?;
            while at < len {
                if let Some(header) = self
                    .header_at(&*file, number, at)?
                    .filter(|h| h.sequence > end.sequence)
                {
                    return Ok(Some(Found {
                        file: number,
                        at,
                        header,
                    }));
                }
                at += BLOCK_BYTES as u64;
            }
        }
        Ok(None)
    }
}

/// The chain with a torn last group cut off, and where it ends.
fn sound_chain(files: &WalFiles, from: Position) -> Result<(Vec<Found>, Position), OpenError> {
    let mut chain = files.chain(from)?;
    if let Some(last) = chain.last().copied()
        && files.operations(&last)?.is_none()
    {
        warn!(file = %files.path(last.file).display(), position = last.at, "the last group was never acknowledged and is cut off");
        chain.pop();
    }
    let end = match chain.last() {
        Some(last) => Position {
            sequence: last.header.sequence + 1,
            file: last.file,
            at: last.at + last.header.group_bytes().unwrap_or(0) as u64,
        },
        None => from,
    };
    match files.beyond(end)? {
        None => Ok((chain, end)),
        Some(later) => Err(OpenError::Corrupt {
            path: files.path(end.file),
            position: end.at,
            what: format!(
                "group {} is missing or torn, but group {} behind it is whole",
                end.sequence, later.header.sequence
            ),
        }),
    }
}

/// Opens what lies in `root`. The caller holds its lock and has its identity.
pub(crate) fn recover(
    fs: Arc<dyn Vfs>,
    root: &Path,
    options: DiskOptions,
    identity: DiskIdentity,
    progress: &dyn Fn(RecoveryProgress),
) -> Result<(Arc<Engine>, Logs), OpenError> {
    let path = root.join(checkpoint::FILE);
    let head = match read_file(&fs, &path).map_err(io_error("read", &path))? {
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
    let (chain, end) = sound_chain(&files, from)?;
    let last_op = chain.last().map_or(0, |g| {
        g.header.first_op + u64::from(g.header.operations) - 1
    });
    let next_op = last_op.max(head.as_ref().map_or(0, |h| h.last_op)) + 1;
    let (needed, old): (Vec<u64>, Vec<u64>) = files.numbers.iter().partition(|n| **n >= from.file);
    let next_number = files.highest + 1;
    let shelf = Shelf::new(next_number, needed, files.spares.clone());
    let engine = Engine::new(
        fs.clone(),
        root,
        options,
        identity,
        Resume {
            sequence: end.sequence,
            next_op,
            shelf,
        },
    );
    // Until the first group is written, a checkpoint points at the file that will get it.
    *engine.position.lock() = Position {
        sequence: end.sequence,
        file: next_number,
        at: BLOCK_BYTES as u64,
    };
    for number in old {
        let path = files.path(number);
        fs.remove_file(&path).map_err(io_error("remove", &path))?;
    }
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
        bytes: 0,
        progress,
    };
    let saved: Vec<(LogKey, Vec<(u64, u64)>)> = states
        .iter()
        .map(|s| {
            (
                s.key,
                s.segments.iter().map(|g| (g.rows, g.bytes)).collect(),
            )
        })
        .collect();
    replay.logs.extend(
        states
            .into_iter()
            .map(|s| (s.key, LogInner::new(engine.clone(), s))),
    );
    replay.run(&files, &chain)?;
    let (logs, bytes) = (replay.logs, replay.bytes);
    check_saved(&logs, &saved);
    sweep(&engine, &logs);
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

/// Fences logs whose files are shorter than what a checkpoint knows to be in them.
fn check_saved(logs: &Logs, saved: &[(LogKey, Vec<(u64, u64)>)]) {
    for (key, _) in saved {
        let Some(log) = logs.get(key) else { continue };
        let segments: Vec<_> = log.state.lock().segments.clone();
        for segment in segments {
            // What the replay added is in memory; what the checkpoint said must be in the file.
            let inherited = segment.file.inherited();
            if inherited.0 == 0 {
                continue;
            }
            if let Err(ReadError::Damaged(damage)) =
                segment.file.check_lengths(inherited.0, inherited.1)
            {
                log.fence(&damage);
            }
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
            .segments
            .iter()
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

    fn redo(&mut self, op: u64, key: LogKey, operation: Operation) -> Result<(), String> {
        if self.deletes.get(&key).is_some_and(|delete| op <= *delete) {
            if let (Operation::Delete, Some(_)) = (&operation, self.logs.remove(&key)) {
                self.engine.copies.push(vec![Job::Trash(key, op)]);
            } else if matches!(operation, Operation::Delete) {
                self.engine.copies.push(vec![Job::Trash(key, op)]);
            }
            return Ok(());
        }
        let engine = self.engine;
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
            Operation::Truncate(keep) => state.truncate(keep).map_err(damaged)?,
            Operation::Purge(upto) => state.purge(upto).map_err(damaged)?,
            Operation::Snapshot {
                upto,
                next_offset,
                state: snapshot,
            } => state
                .install(upto, next_offset, snapshot)
                .map_err(damaged)?,
            Operation::Delete => Dropped::new(),
        };
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
