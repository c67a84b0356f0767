//! One log: appends, truncations, purges and votes go to the disk's queue and change what is readable.
//!
//! Promise: an operation is visible when its method returns, and durable when its `done` is called with
//! `Ok`; operations of one log become durable in the order of the calls. No method waits for a disk
//! write; reading may touch a cold page, see [`ReadPlan`].
//! Not here: how state changes (see `state`), how reads find their bytes (see `read`).
//!
//! [`ReadPlan`]: crate::ReadPlan

use crate::base::Base;
use crate::checkpoint::encode_base;
use crate::commit::Staged;
use crate::copier::Job;
use crate::engine::Engine;
use crate::error::{AppendError, Damage, ReadError, WriteError};
use crate::files::Incoming;
use crate::group::{Operation, payload_checksum};
use crate::ledger::Row;
use crate::segment::{SegmentFile, SegmentInfo};
use crate::state::{Bounds, Captured, Dropped, LogOptions, State, TermStart};
use crate::{Done, Entry, EntryId, LogKey};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Gives the owner's state to the checkpoint.
pub trait StateSource: Send + Sync {
    /// A point in the log and the state after it. Called from the checkpoint's thread, without any lock
    /// of storage's.
    fn capture(&self) -> Option<Captured>;
}

pub(crate) struct LogInner {
    pub key: LogKey,
    pub engine: Arc<Engine>,
    pub state: Mutex<State>,
    pub source: Mutex<Option<Arc<dyn StateSource>>>,
}

/// A handle to a log of an open disk. Clones share it.
#[derive(Clone)]
pub struct Log(pub(crate) Arc<LogInner>);

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Log").field(&self.0.key).finish()
    }
}

impl LogInner {
    pub fn new(engine: Arc<Engine>, state: State) -> Arc<Self> {
        Arc::new(Self {
            key: state.key,
            engine,
            state: Mutex::new(state),
            source: Mutex::default(),
        })
    }

    /// Closes the log to its readers and writers after damage was seen.
    pub fn fence(&self, damage: &Damage) {
        let mut state = self.state.lock();
        if state.fenced.is_none() {
            tracing::error!(log = %self.key, %damage, "a log is fenced");
            state.fenced = Some(damage.clone());
            state.unsaved = true;
        }
    }

    /// The state, if the log may be changed.
    pub fn to_write(&self) -> Result<MutexGuard<'_, State>, WriteError> {
        self.engine.check()?;
        let state = self.state.lock();
        if state.deleted {
            Err(WriteError::Deleted)
        } else if let Some(damage) = &state.fenced {
            Err(WriteError::Fenced(damage.clone()))
        } else {
            Ok(state)
        }
    }

    pub fn stage(self: &Arc<Self>, operation: Operation, dropped: Dropped, done: Done) -> Staged {
        Staged {
            log: self.clone(),
            operation,
            segment: None,
            dropped,
            done: Some(done),
        }
    }

    /// Queues one operation that was just done to the state.
    pub fn submit(
        self: &Arc<Self>,
        state: &mut State,
        operation: Operation,
        dropped: Dropped,
        done: Done,
    ) {
        let staged = self.stage(operation, dropped, done);
        let op = self.engine.queue.push([staged]);
        state.number(op);
    }

    /// An operation that may drop segments or end the growing one; `describe` says what it came to.
    fn reshape(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        change: impl FnOnce(&mut State) -> Result<Dropped, ReadError>,
        describe: impl FnOnce(&State) -> Operation,
        done: Done,
    ) -> Result<(), WriteError> {
        let growing = state.segments.last().filter(|s| !s.sealed);
        let growing = growing.map(|s| s.file.clone());
        let changed = change(&mut state);
        let dropped = match changed {
            Ok(dropped) => dropped,
            Err(error) => {
                drop(state);
                return self.noted(Err(error)).map_err(WriteError::from);
            }
        };
        let operation = describe(&state);
        self.submit(&mut state, operation, dropped, done);
        drop(state);
        self.engine
            .copies
            .push(growing.into_iter().map(Job::Seal).collect());
        Ok(())
    }

    fn capture<'a>(
        self: &Arc<Self>,
        mut state: MutexGuard<'a, State>,
        captured: Captured,
        done: Done,
    ) -> MutexGuard<'a, State> {
        state.capture(captured.applied, captured.state.clone());
        let operation = Operation::Capture {
            applied: captured.applied,
            state: captured.state,
        };
        self.submit(&mut state, operation, Vec::new(), done);
        state
    }

    fn check_size(&self, bytes: usize) -> Result<(), WriteError> {
        let limit = self.engine.payload_bytes_max();
        if bytes > limit {
            Err(WriteError::TooLarge { bytes, limit })
        } else {
            Ok(())
        }
    }

    /// Takes checked entries into the state.
    fn stage_entries(
        self: &Arc<Self>,
        state: &mut State,
        entries: Vec<Entry>,
        checksums: Vec<u32>,
        done: Done,
    ) -> (Vec<Staged>, Vec<Job>) {
        let mut staged = Vec::with_capacity(entries.len());
        let mut sealed = Vec::new();
        for (entry, payload_crc) in entries.into_iter().zip(checksums) {
            let mut file = None;
            if state.must_roll(&entry) {
                sealed.extend(state.seal().map(Job::Seal));
                file = Some(self.next_segment(state, entry.id.index));
            }
            let new_segment = file.is_some();
            let tail = state.push(&entry, payload_crc, file);
            staged.push(Staged {
                log: self.clone(),
                operation: Operation::Entry {
                    row: tail.row,
                    head: entry.head,
                    body: entry.body,
                    new_segment,
                },
                segment: Some(tail.file),
                dropped: Vec::new(),
                done: None,
            });
        }
        if let Some(last) = staged.last_mut() {
            last.done = Some(done);
        }
        (staged, sealed)
    }

    pub fn next_segment(&self, state: &State, base_index: u64) -> Arc<SegmentFile> {
        self.engine
            .new_segment(self.key, state.end_offset, base_index)
    }
}

/// Refuses entries that do not continue the log, before any of them is taken.
fn check_entries(state: &State, entries: &[Entry], limit: usize) -> Result<(), AppendError> {
    let (mut last, mut end_offset) = (state.last, state.end_offset);
    for entry in entries {
        let bytes = entry.head.len() + entry.body.len();
        if bytes > limit {
            return Err(AppendError::TooLarge {
                index: entry.id.index,
                bytes,
                limit,
            });
        }
        State::check_next(last, end_offset, entry)?;
        last = Some(entry.id);
        end_offset += i64::from(entry.records);
    }
    Ok(())
}

impl Log {
    pub fn key(&self) -> LogKey {
        self.0.key
    }

    pub fn set_options(&self, options: LogOptions) {
        self.0.state.lock().options = options;
    }

    pub fn bounds(&self) -> Bounds {
        self.0.state.lock().bounds()
    }

    /// Appends entries that continue the log: readable on return, durable when `done` is called.
    ///
    /// # Errors
    /// Nothing was appended, and `done` will not be called.
    pub fn append(&self, entries: Vec<Entry>, done: Done) -> Result<(), AppendError> {
        if entries.is_empty() {
            done(Ok(()));
            return Ok(());
        }
        // Before the lock: readers need not wait for it.
        let checksums = entries
            .iter()
            .map(|e| payload_checksum([&e.head, &e.body]))
            .collect();
        let bytes: usize = entries
            .iter()
            .filter(|e| e.kind == crate::Kind::Data)
            .map(|e| e.head.len() + e.body.len())
            .sum();
        let engine = &self.0.engine;
        let mut state = self.0.to_write()?;
        check_entries(&state, &entries, engine.payload_bytes_max())?;
        let (staged, sealed) = self.0.stage_entries(&mut state, entries, checksums, done);
        engine.tail_bytes.fetch_add(bytes, Ordering::Relaxed);
        let op = engine.queue.push(staged);
        state.number(op);
        drop(state);
        engine.copies.push(sealed);
        Ok(())
    }

    /// Drops the entries behind `keep`; all of them for `None`.
    ///
    /// # Errors
    /// Nothing was dropped, and `done` will not be called.
    pub fn truncate_after(&self, keep: Option<u64>, done: Done) -> Result<(), WriteError> {
        let state = self.0.to_write()?;
        let describe = |s: &State| Operation::Truncate {
            keep,
            end_offset: Some(s.end_offset),
        };
        self.0
            .reshape(state, |s| s.truncate(keep, None), describe, done)
    }

    /// Keeps the owner's state for the next start, behind everything appended before. Whoever purges does this
    /// first: what the last checkpoint knows may be older than what is purged, and could not be made again.
    ///
    /// # Errors
    /// Nothing was kept, and `done` will not be called.
    pub fn save_state(&self, captured: Captured, done: Done) -> Result<(), WriteError> {
        self.0.check_size(captured.state.len())?;
        let state = self.0.to_write()?;
        // A checkpoint or a snapshot may have been faster; only what is queued here is sure to be in time.
        let newer = |known: &Captured| known.applied.index > captured.applied.index;
        let captured = state.captured.clone().filter(newer).unwrap_or(captured);
        drop(self.0.capture(state, captured, done));
        Ok(())
    }

    /// From now on a purge keeps the segments that reach above this offset: they become the base. For an owner
    /// whose log is worth more than its entries.
    pub fn set_floor(&self, offset: i64) {
        self.0.state.lock().floor = Some(offset);
    }

    /// Takes away the entries up to `upto`. Without a floor files that hold nothing else go when that is
    /// durable; with one, whole segments move into the base, and what lies below the floor goes from there:
    /// fewer entries may be purged than asked for.
    ///
    /// # Errors
    /// Nothing was purged, and `done` will not be called.
    pub fn purge_to(&self, upto: EntryId, done: Done) -> Result<(), WriteError> {
        let state = self.0.to_write()?;
        if let Some(floor) = state.floor {
            return self.settle(state, upto, floor, done);
        }
        let describe = |s: &State| Operation::Purge {
            upto,
            start_offset: Some(s.start_offset),
        };
        self.0
            .reshape(state, |s| s.purge(upto, None), describe, done)
    }

    fn settle(
        &self,
        state: MutexGuard<'_, State>,
        upto: EntryId,
        floor: i64,
        done: Done,
    ) -> Result<(), WriteError> {
        let upto = state.base_point(upto);
        let change = |s: &mut State| Ok(s.settle(upto, floor));
        let describe = |_: &State| Operation::Settle { upto, floor };
        self.0.reshape(state, change, describe, done)
    }

    /// Drops what of the base lies below the floor; true if there is anything, and `done` will be called.
    ///
    /// # Errors
    /// Nothing was dropped, and `done` will not be called.
    pub fn drop_below_floor(&self, done: Done) -> Result<bool, WriteError> {
        let state = self.0.to_write()?;
        let Some(floor) = state.floor else {
            return Ok(false);
        };
        if state.base.iter().all(|s| s.next_offset > floor) {
            return Ok(false);
        }
        let change = |s: &mut State| Ok(s.settle(None, floor));
        let describe = |_: &State| Operation::Settle { upto: None, floor };
        self.0.reshape(state, change, describe, done)?;
        Ok(true)
    }

    /// Whether a snapshot up to `upto` would take the place of the whole log: its entries are not here, or
    /// they are damaged.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub fn is_replaced_by(&self, upto: EntryId) -> Result<bool, ReadError> {
        let replaced = self.0.state.lock().replaced_by(upto);
        self.0.noted(replaced)
    }

    /// Puts a snapshot below the log. If `upto` is not among its entries, or differs in its term, the snapshot
    /// and its files take the place of the whole log, and a fence ends: what was damaged is replaced. Else
    /// the log stays as it is, up to what a purge would take, and files are not needed.
    ///
    /// # Errors
    /// Nothing was changed, and `done` will not be called.
    pub fn install_snapshot(
        &self,
        upto: EntryId,
        next_offset: i64,
        snapshot: Bytes,
        files: Option<Incoming>,
        done: Done,
    ) -> Result<(), WriteError> {
        let base = files.as_ref().map_or_else(Bytes::new, Incoming::encoded);
        self.0.check_size(snapshot.len() + base.len())?;
        self.0.engine.check()?;
        let state = self.0.state.lock();
        if state.deleted {
            return Err(WriteError::Deleted);
        }
        if let Some(floor) = state.floor {
            return self.install_above_base(state, floor, upto, next_offset, snapshot, files, done);
        }
        let replaces = match state.replaced_by(upto) {
            Ok(replaces) => replaces,
            Err(error) => {
                drop(state);
                return self.0.noted(Err(error)).map_err(WriteError::from);
            }
        };
        let described = snapshot.clone();
        let describe = move |s: &State| Operation::Snapshot {
            upto,
            next_offset: s.start_offset,
            state: described,
            // A restart does not know of the fence, and must come to the same.
            replaces: Some(replaces),
        };
        let change = |s: &mut State| {
            if replaces {
                return Ok(s.replace(upto, snapshot, next_offset, Base::default()));
            }
            let dropped = s.purge(upto, None)?;
            s.capture(upto, snapshot);
            Ok(dropped)
        };
        self.0.reshape(state, change, describe, done)
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "what `install_snapshot` was given, and what it found"
    )]
    fn install_above_base(
        &self,
        state: MutexGuard<'_, State>,
        floor: i64,
        upto: EntryId,
        next_offset: i64,
        snapshot: Bytes,
        files: Option<Incoming>,
        done: Done,
    ) -> Result<(), WriteError> {
        let replaced = match state.replaced_by(upto) {
            Ok(replaced) => replaced,
            Err(error) => {
                drop(state);
                return self.0.noted(Err(error)).map_err(WriteError::from);
            }
        };
        if !replaced {
            // The state first: without it, what was purged would not have been applied.
            let captured = Captured {
                applied: upto,
                state: snapshot,
            };
            let state = self.0.capture(state, captured, Box::new(|_| {}));
            return self.settle(state, upto, floor, done);
        }
        let base = files.map(Incoming::into_base).unwrap_or_default();
        let encoded = encode_base(base.segments.iter(), &base.terms);
        let operation = Operation::Replace {
            upto,
            next_offset,
            state: snapshot.clone(),
            base: encoded,
        };
        let change = |s: &mut State| Ok(s.replace(upto, snapshot, next_offset, base));
        self.0.reshape(state, change, |_| operation, done)
    }

    /// Saves the owner's vote, behind everything appended before.
    ///
    /// # Errors
    /// Nothing was saved, and `done` will not be called.
    pub fn save_vote(&self, vote: Bytes, done: Done) -> Result<(), WriteError> {
        self.0.check_size(vote.len())?;
        let mut state = self.0.to_write()?;
        state.vote = Some(vote.clone());
        self.0
            .submit(&mut state, Operation::Vote(vote), Vec::new(), done);
        Ok(())
    }

    pub fn vote(&self) -> Option<Bytes> {
        self.0.state.lock().vote.clone()
    }

    /// The row of an entry, if it is present and its ledger can be read.
    pub fn entry_row(&self, index: u64) -> Option<Row> {
        let row = self.0.state.lock().row(index);
        self.0.known(row).flatten()
    }

    /// The last control entry of a kind up to an index, of those present.
    pub fn last_control(&self, number: u8, upto: u64) -> Option<(EntryId, Bytes)> {
        let state = self.0.state.lock();
        let mut entries = state.control.range(..=upto).rev();
        entries.find_map(|(index, body)| {
            let row = state.row(*index).ok()??;
            (row.kind == crate::Kind::Control(number)).then(|| (row.id(), body.clone()))
        })
    }

    /// True if the entries from an index on are in memory: reading them touches no disk.
    pub fn is_in_memory(&self, from: u64) -> bool {
        let state = self.0.state.lock();
        let beyond = state.last.is_none_or(|last| from > last.index);
        beyond || state.tail_first().is_some_and(|first| from >= first)
    }

    pub fn terms(&self) -> Vec<TermStart> {
        self.0.state.lock().terms.clone()
    }

    /// Oldest first, the base's among them; the last one grows unless it is sealed.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.0.state.lock().infos()
    }

    pub fn size_bytes(&self) -> u64 {
        self.0.state.lock().all_segments().map(|s| s.bytes).sum()
    }

    /// Ends the growing segment: the next entry starts a new one.
    pub fn roll(&self) {
        let sealed = self.0.state.lock().seal();
        self.0
            .engine
            .copies
            .push(sealed.into_iter().map(Job::Seal).collect());
    }

    /// Why the log serves nothing, if it does not.
    pub fn fenced(&self) -> Option<Damage> {
        self.0.state.lock().fenced.clone()
    }

    /// The owner's state as of the last checkpoint or snapshot.
    pub fn recovered_state(&self) -> Option<Captured> {
        self.0.state.lock().captured.clone()
    }

    pub fn set_state_source(&self, source: Arc<dyn StateSource>) {
        *self.0.source.lock() = Some(source);
    }
}
