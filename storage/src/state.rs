//! What a log holds, and how each operation changes it: the same code live and in recovery.
//!
//! A log is a base and, above it, the Raft log. The base is what is left of entries that were purged: whole
//! segments, found by offset alone. `segments` and everything that goes by index is the Raft log's.
//! Promise: rows are dense from `first_index` to the last entry; an entry that is not in its segment's
//! files yet is in the tail. Nothing here writes: operations name the segments that they drop.
//! Invariant: the base is never truncated; it ends where the Raft log starts, or before.
//! Not here: the write-ahead log, locks, threads.

use crate::error::{AppendError, Damage, ReadError};
use crate::ledger::Row;
use crate::segment::{SegmentFile, SegmentInfo, damage};
use crate::{Entry, EntryId, Kind, LogKey};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// How a log's segments are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    pub segment_bytes: u32,
    /// A segment takes no record this much younger than its first one.
    pub segment_ms: Option<i64>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 128 << 20,
            segment_ms: None,
        }
    }
}

/// Where a log begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub purged: Option<EntryId>,
    pub first_index: u64,
    /// The last entry present, or the last purged one if none is.
    pub last: Option<EntryId>,
    pub durable: Option<EntryId>,
    pub start_offset: i64,
    pub end_offset: i64,
}

/// The first entry of a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TermStart {
    pub term: u64,
    pub index: u64,
    pub offset: i64,
}

/// The owner's state after `applied`, kept in the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    pub applied: EntryId,
    pub state: Bytes,
}

/// What of a segment is present. Its files may hold more: rows cut off, or not copied yet.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub file: Arc<SegmentFile>,
    pub rows: u64,
    pub bytes: u64,
    pub last: EntryId,
    pub next_offset: i64,
    pub max_timestamp: i64,
    pub first_timestamp: i64,
    pub sealed: bool,
    pub clean: bool,
}

impl Segment {
    fn new(file: Arc<SegmentFile>, first: EntryId) -> Self {
        Self {
            rows: 0,
            bytes: 0,
            last: first,
            next_offset: file.base_offset,
            max_timestamp: -1,
            first_timestamp: -1,
            sealed: false,
            clean: false,
            file,
        }
    }

    fn push(&mut self, row: &Row) {
        self.rows += 1;
        self.bytes = row.end_position();
        self.last = row.id();
        self.next_offset = row.end_offset();
        self.max_timestamp = self.max_timestamp.max(row.max_timestamp);
        if self.first_timestamp < 0 {
            self.first_timestamp = row.max_timestamp;
        }
    }

    pub fn seal(&mut self) {
        self.sealed = true;
        self.file.seal(self.rows);
    }

    fn takes(&self, length: u32, max_timestamp: i64, options: &LogOptions) -> bool {
        let too_long =
            self.bytes > 0 && self.bytes + u64::from(length) > u64::from(options.segment_bytes);
        let too_old = options.segment_ms.is_some_and(|ms| {
            self.first_timestamp >= 0 && max_timestamp.saturating_sub(self.first_timestamp) >= ms
        });
        !self.sealed && !too_long && !too_old
    }

    pub fn info(&self) -> SegmentInfo {
        SegmentInfo {
            base_offset: self.file.base_offset,
            last: self.last,
            next_offset: self.next_offset,
            bytes: self.bytes,
            max_timestamp: self.max_timestamp,
            first_timestamp: self.first_timestamp,
            sealed: self.sealed,
            clean: self.clean,
        }
    }
}

/// An entry on its way to its segment.
#[derive(Debug, Clone)]
pub(crate) struct TailEntry {
    pub file: Arc<SegmentFile>,
    pub row: Row,
    pub head: Bytes,
    pub body: Bytes,
}

/// Segments whose files go when the operation that dropped them is durable.
pub(crate) type Dropped = Vec<Arc<SegmentFile>>;

#[derive(Debug)]
pub(crate) struct State {
    pub key: LogKey,
    pub options: LogOptions,
    /// Oldest first.
    pub base: Vec<Segment>,
    /// What lies wholly below this offset may go with a purge; the rest becomes the base. `None`: all may go.
    pub floor: Option<i64>,
    pub segments: Vec<Segment>,
    pub tail: VecDeque<TailEntry>,
    pub terms: Vec<TermStart>,
    /// Payloads of the control entries present.
    pub control: BTreeMap<u64, Bytes>,
    pub purged: Option<EntryId>,
    pub last: Option<EntryId>,
    pub durable: Option<EntryId>,
    /// Where the Raft log starts: the base lies before it.
    pub start_offset: i64,
    pub end_offset: i64,
    pub vote: Option<Bytes>,
    pub captured: Option<Captured>,
    pub fenced: Option<Damage>,
    pub deleted: bool,
    /// The disk's number of the last operation on this log.
    pub last_op: u64,
    /// Entries staged before this operation may be gone: that they became durable is no news.
    pub truncated_op: u64,
    /// The operation at hand took entries away: `truncated_op` is to be its number.
    pub truncating: bool,
    /// Something changed that the last checkpoint does not know.
    pub unsaved: bool,
}

impl State {
    pub fn new(key: LogKey, options: LogOptions) -> Self {
        Self {
            key,
            options,
            base: Vec::new(),
            floor: None,
            segments: Vec::new(),
            tail: VecDeque::new(),
            terms: Vec::new(),
            control: BTreeMap::new(),
            purged: None,
            last: None,
            durable: None,
            start_offset: 0,
            end_offset: 0,
            vote: None,
            captured: None,
            fenced: None,
            deleted: false,
            last_op: 0,
            truncated_op: 0,
            truncating: false,
            unsaved: true,
        }
    }

    pub fn first_index(&self) -> u64 {
        match (self.purged, self.segments.first()) {
            (Some(purged), _) => purged.index + 1,
            (None, Some(first)) => first.file.base_index,
            (None, None) => 0,
        }
    }

    pub fn has_entries(&self) -> bool {
        !self.segments.is_empty()
    }

    pub fn bounds(&self) -> Bounds {
        Bounds {
            purged: self.purged,
            first_index: self.first_index(),
            last: self.last,
            durable: self.durable,
            start_offset: self.first_offset(),
            end_offset: self.end_offset,
        }
    }

    /// Where the log starts, its base included.
    pub fn first_offset(&self) -> i64 {
        let base = self.base.first().map(|s| s.file.base_offset);
        base.unwrap_or(self.start_offset)
    }

    /// The base's and the Raft log's.
    pub fn all_segments(&self) -> impl Iterator<Item = &Segment> {
        self.base.iter().chain(&self.segments)
    }

    pub fn infos(&self) -> Vec<SegmentInfo> {
        self.all_segments().map(Segment::info).collect()
    }

    /// The position in `segments` of the one that holds an index.
    pub fn segment_of(&self, index: u64) -> Option<usize> {
        self.segments
            .partition_point(|s| s.file.base_index <= index)
            .checked_sub(1)
    }

    pub fn tail_first(&self) -> Option<u64> {
        self.tail.front().map(|t| t.row.index)
    }

    /// The row of an entry that is present; damage in the ledger is the only error.
    pub fn row(&self, index: u64) -> Result<Option<Row>, ReadError> {
        let present = index >= self.first_index()
            && self.has_entries()
            && self.last.is_some_and(|last| index <= last.index);
        if !present {
            return Ok(None);
        }
        if let Some(first) = self.tail_first()
            && index >= first
        {
            return Ok(self.tail.get((index - first) as usize).map(|t| t.row));
        }
        let Some(at) = self.segment_of(index) else {
            return Ok(None);
        };
        let file = &self.segments[at].file;
        let ordinal = index - file.base_index;
        file.ledger(ordinal + 1)?.row(ordinal).map(Some)
    }

    /// Refuses an entry that does not continue the log.
    pub fn check_next(
        last: Option<EntryId>,
        end_offset: i64,
        entry: &Entry,
    ) -> Result<(), AppendError> {
        // The first entry of a log that never had one may have any index.
        if last.is_some_and(|last| last.index + 1 != entry.id.index) {
            return Err(AppendError::Gap {
                last,
                found: entry.id.index,
            });
        }
        if entry.kind == Kind::Data && entry.base_offset != end_offset {
            return Err(AppendError::Offset {
                index: entry.id.index,
                found: entry.base_offset,
                expected: end_offset,
            });
        }
        Ok(())
    }

    /// True if this entry has to start a new segment.
    pub fn must_roll(&self, entry: &Entry) -> bool {
        let length = entry_length(entry);
        self.segments
            .last()
            .is_none_or(|s| !s.takes(length, entry.max_timestamp, &self.options))
    }

    /// Ends the growing segment, if there is one, and says which.
    pub fn seal(&mut self) -> Option<Arc<SegmentFile>> {
        let growing = self.segments.last_mut().filter(|s| !s.sealed)?;
        growing.seal();
        Some(growing.file.clone())
    }

    /// Gives the state the number of the operation that was just done to it.
    pub fn number(&mut self, op: u64) {
        self.last_op = op;
        self.unsaved = true;
        if std::mem::take(&mut self.truncating) {
            self.truncated_op = op;
        }
    }

    /// An entry staged as `op` is durable.
    pub fn became_durable(&mut self, id: EntryId, op: u64) {
        let news = op > self.truncated_op && self.durable.is_none_or(|d| d.index < id.index);
        if news {
            self.durable = Some(id);
        }
    }

    /// Takes a checked entry into the tail; `file` is the segment it starts, if it starts one.
    pub fn push(
        &mut self,
        entry: &Entry,
        payload_crc: u32,
        file: Option<Arc<SegmentFile>>,
    ) -> TailEntry {
        if let Some(file) = file {
            self.segments.push(Segment::new(file, entry.id));
        }
        let at = self.segments.len() - 1;
        let segment = &mut self.segments[at];
        let row = Row {
            index: entry.id.index,
            term: entry.id.term,
            base_offset: self.end_offset,
            max_timestamp: entry.max_timestamp,
            position: segment.bytes,
            length: entry_length(entry),
            records: entry.records,
            kind: entry.kind,
            payload_crc,
        };
        segment.push(&row);
        let data = entry.kind == Kind::Data;
        let staged = TailEntry {
            file: segment.file.clone(),
            row,
            head: if data {
                entry.head.clone()
            } else {
                Bytes::new()
            },
            body: if data {
                entry.body.clone()
            } else {
                Bytes::new()
            },
        };
        if !data {
            self.control.insert(row.index, one_piece(entry));
        }
        if self.terms.last().is_none_or(|t| t.term != row.term) {
            self.terms.push(TermStart {
                term: row.term,
                index: row.index,
                offset: row.base_offset,
            });
        }
        self.last = Some(row.id());
        self.end_offset = row.end_offset();
        self.tail.push_back(staged.clone());
        staged
    }

    /// Lets go of what the segments hold by now.
    pub fn evict(&mut self) {
        while self.tail.front().is_some_and(|t| t.file.holds(&t.row)) {
            self.tail.pop_front();
        }
    }

    /// Keeps the entries up to `keep`. The segment that is cut goes on in a successor.
    ///
    /// Replay passes the `end_offset` that its operation recorded: a later operation may have removed the
    /// files by which it was found.
    pub fn truncate(
        &mut self,
        keep: Option<u64>,
        end_offset: Option<i64>,
    ) -> Result<Dropped, ReadError> {
        let first = self.first_index();
        let Some(last) = self.last.filter(|_| self.has_entries()) else {
            return Ok(Vec::new());
        };
        match keep {
            Some(keep) if keep >= last.index => Ok(Vec::new()),
            Some(keep) if keep >= first => self.cut(keep, end_offset),
            _ => Ok(self.clear(self.purged, self.start_offset)),
        }
    }

    fn cut(&mut self, keep: u64, end_offset: Option<i64>) -> Result<Dropped, ReadError> {
        let Some(at) = self.segment_of(keep) else {
            return Ok(Vec::new());
        };
        let (bytes, end_offset, max_timestamp) = match (self.cut_at(at, keep), end_offset) {
            (Ok((bytes, _, newest)), Some(recorded)) => (bytes, recorded, newest),
            (Ok(found), None) => found,
            // What the segment was before is an upper bound, and good enough for what only measures it.
            (Err(_), Some(recorded)) => {
                let whole = &self.segments[at];
                (whole.bytes, recorded, whole.max_timestamp)
            }
            (Err(damage), None) => return Err(damage),
        };
        let last = EntryId {
            term: self.term_of(keep),
            index: keep,
        };
        self.truncating = true;
        let dropped = self.segments.split_off(at + 1);
        if let Some(cut) = self.segments.last_mut()
            && cut.last.index > keep
        {
            // Sealed by what was staged for it, not by what stays: late copies must still fit.
            cut.seal();
            cut.rows = keep - cut.file.base_index + 1;
            cut.bytes = bytes;
            cut.last = last;
            cut.next_offset = end_offset;
            cut.max_timestamp = max_timestamp;
        }
        while self.tail.back().is_some_and(|t| t.row.index > keep) {
            self.tail.pop_back();
        }
        self.terms.retain(|t| t.index <= keep);
        let _ = self.control.split_off(&(keep + 1));
        self.last = Some(last);
        if self.durable.is_some_and(|d| d.index > keep) {
            self.durable = self.last;
        }
        self.end_offset = end_offset;
        Ok(dropped.into_iter().map(|s| s.file).collect())
    }

    /// Bytes, end offset and newest timestamp of a segment that ends with `keep`.
    fn cut_at(&self, at: usize, keep: u64) -> Result<(u64, i64, i64), ReadError> {
        let Some(row) = self.row(keep)? else {
            let path = &self.segments[at].file.ledger_path;
            return Err(damage(path, 0, &format!("entry {keep} is not in it")).into());
        };
        let newest = self.newest_until(at, keep)?;
        Ok((row.end_position(), row.end_offset(), newest))
    }

    fn term_of(&self, index: u64) -> u64 {
        let after = self.terms.partition_point(|t| t.index <= index);
        after.checked_sub(1).map_or(0, |at| self.terms[at].term)
    }

    fn newest_until(&self, at: usize, keep: u64) -> Result<i64, ReadError> {
        let mut newest = -1;
        for index in self.segments[at].file.base_index..=keep {
            if let Some(row) = self.row(index)? {
                newest = newest.max(row.max_timestamp);
            }
        }
        Ok(newest)
    }

    /// Terms of which nothing is left.
    pub fn forget_terms(&mut self) {
        let (index, offset) = match self.base.first() {
            None if self.segments.is_empty() => return self.terms.clear(),
            Some(first) => (first.file.base_index, first.file.base_offset),
            None => (self.first_index(), self.start_offset),
        };
        let begun = self.terms.partition_point(|t| t.index <= index);
        self.terms.drain(..begun.saturating_sub(1));
        if let Some(term) = self.terms.first_mut().filter(|t| t.index < index) {
            term.index = index;
            term.offset = offset;
        }
    }

    /// Hides entries up to `upto`; segments that hold nothing else go. Replay passes the `start_offset`
    /// that its operation recorded, as with [`Self::truncate`].
    pub fn purge(
        &mut self,
        upto: EntryId,
        start_offset: Option<i64>,
    ) -> Result<Dropped, ReadError> {
        if self.purged.is_some_and(|p| p.index >= upto.index) {
            return Ok(Vec::new());
        }
        if self.last.is_none_or(|last| last.index <= upto.index) {
            return Ok(self.clear(Some(upto), self.end_offset));
        }
        if upto.index < self.first_index() {
            self.purged = Some(upto);
            return Ok(Vec::new());
        }
        let next = upto.index + 1;
        let start_offset = match start_offset {
            Some(recorded) => recorded,
            None => match self.row(next)? {
                Some(row) => row.base_offset,
                None => return Ok(Vec::new()),
            },
        };
        let whole = self
            .segments
            .partition_point(|s| s.last.index <= upto.index);
        let dropped: Vec<Segment> = self.segments.drain(..whole).collect();
        while self.tail.front().is_some_and(|t| t.row.index <= upto.index) {
            self.tail.pop_front();
        }
        self.control = self.control.split_off(&next);
        self.purged = Some(upto);
        if self.durable.is_none_or(|d| d.index < upto.index) {
            self.durable = Some(upto);
        }
        self.start_offset = start_offset;
        self.forget_terms();
        Ok(dropped.into_iter().map(|s| s.file).collect())
    }

    /// True if nothing of the log stays when a snapshot up to `upto` is put below it.
    pub fn replaced_by(&self, upto: EntryId) -> Result<bool, ReadError> {
        // The end of what was purged is ours too: there is no row of it any more, but what follows fits.
        let ours = self.fenced.is_none()
            && (self.purged == Some(upto) || self.row(upto.index)?.is_some_and(|r| r.id() == upto));
        // Where nothing is kept, there is nothing left to be told from a snapshot at the very end.
        Ok(!ours || (self.floor.is_none() && self.last == Some(upto)))
    }

    /// Puts a snapshot below a log that has its last entry.
    pub fn capture(&mut self, applied: EntryId, state: Bytes) {
        self.captured = Some(Captured { applied, state });
    }

    /// Empties the Raft log, which goes on behind `purged` at an offset. The base stays.
    pub fn clear(&mut self, purged: Option<EntryId>, end_offset: i64) -> Dropped {
        self.truncating = true;
        self.tail.clear();
        let ended = purged.map_or(0, |p| p.index + 1);
        self.terms
            .retain(|t| !self.base.is_empty() && t.index < ended);
        self.control.clear();
        self.purged = purged;
        self.last = purged;
        self.durable = purged;
        self.start_offset = end_offset;
        self.end_offset = end_offset;
        self.segments.drain(..).map(|s| s.file).collect()
    }
}

fn entry_length(entry: &Entry) -> u32 {
    match entry.kind {
        Kind::Data => (entry.head.len() + entry.body.len()) as u32,
        Kind::Control(_) => 0,
    }
}

fn one_piece(entry: &Entry) -> Bytes {
    if entry.head.is_empty() {
        entry.body.clone()
    } else {
        [&entry.head[..], &entry.body[..]].concat().into()
    }
}
