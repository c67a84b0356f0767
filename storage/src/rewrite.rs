//! The base's segments, read whole, and written anew with less in them: the disk's part of compaction.
//!
//! Promise: what stays of an entry keeps its index, term and offsets; an entry of which nothing stays has no
//! row any more. Until the swap is durable the old files are what counts, and from then on the new ones:
//! power may go at any step.
//! Invariant: new files, their names and their folder are synced before the operation that names them is
//! queued; the old ones go when it is durable. Whoever gives up before the swap leaves nothing behind.
//! Not here: what of an entry is worth keeping (the caller's), and when.

use crate::checkpoint::encode_segment;
use crate::error::{ReadError, RewriteError};
use crate::group::Operation;
use crate::ledger::{Layout, LedgerHeader, ROW_BYTES, Row, row_seed};
use crate::log::Log;
use crate::new_files::NewFiles;
use crate::segment::{Ledger, Origin, SegmentInfo};
use crate::state::{Segment, State};
use crate::vfs::{Mapped, VfsFile};
use crate::{Done, Kind};
use bytes::Bytes;
use std::io::{self, IoSlice};
use std::sync::Arc;

/// Written at once.
const PIECE_BYTES: usize = 1 << 20;

/// A segment of the base.
#[derive(Debug, Clone)]
pub struct BaseSegment {
    log: Log,
    segment: Segment,
}

impl Log {
    /// Oldest first.
    pub fn base_segments(&self) -> Vec<BaseSegment> {
        let state = self.0.state.lock();
        let base = state.base.iter();
        base.take_while(|s| s.file.written_rows() >= s.rows)
            .map(|segment| BaseSegment {
                log: self.clone(),
                segment: segment.clone(),
            })
            .collect()
    }

    /// Begins to write one segment in place of some that follow each other.
    ///
    /// # Errors
    /// If there is no space, or the log is gone.
    pub fn rewriter(&self, group: &[BaseSegment]) -> Result<Rewriter, RewriteError> {
        let group: Vec<Segment> = group.iter().map(|s| s.segment.clone()).collect();
        Rewriter::new(self.clone(), group)
    }
}

impl BaseSegment {
    pub fn info(&self) -> SegmentInfo {
        self.segment.info()
    }

    /// Its entries with their bytes, each compared with its checksum. Blocks on the disk.
    ///
    /// # Errors
    /// If its files cannot be read; damage fences the log.
    pub fn entries(&self) -> Result<BaseEntries, ReadError> {
        self.entries_from(0)
    }

    /// As [`BaseSegment::entries`], from a row on.
    ///
    /// # Errors
    /// If its files cannot be read; damage fences the log.
    pub fn entries_from(&self, row: u64) -> Result<BaseEntries, ReadError> {
        let file = &self.segment.file;
        let ledger = self.log.0.noted(file.ledger(self.segment.rows))?;
        let map = match self.segment.bytes {
            0 => None,
            bytes => Some(self.log.0.noted(file.log(bytes))?),
        };
        Ok(BaseEntries {
            of: self.clone(),
            ledger,
            map,
            next: row,
            ahead: 0,
        })
    }
}

/// See [`BaseSegment::entries`]. Control entries have no bytes, and mean nothing any more.
#[derive(Debug)]
pub struct BaseEntries {
    of: BaseSegment,
    ledger: Ledger,
    map: Option<Mapped>,
    next: u64,
    /// The kernel was asked to read up to here.
    ahead: usize,
}

impl BaseEntries {
    fn entry(&mut self, ordinal: u64) -> Result<(Row, Bytes), ReadError> {
        let row = self.ledger.row(ordinal)?;
        let (Some(map), true) = (&self.map, row.length > 0) else {
            return Ok((row, Bytes::new()));
        };
        let range = row.position as usize..row.end_position() as usize;
        if range.end > self.ahead {
            let to = (range.end + PIECE_BYTES).min(map.len());
            map.prefetch(range.start..to);
            self.ahead = to;
        }
        self.of.segment.file.check_payload(&row, map)?;
        Ok((row, map.slice(range)))
    }
}

impl Iterator for BaseEntries {
    type Item = Result<(Row, Bytes), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.of.segment.rows {
            return None;
        }
        let entry = self.entry(self.next);
        self.next += 1;
        Some(self.of.log.0.noted(entry))
    }
}

/// Bytes on their way to the end of a new file.
#[derive(Debug)]
struct Tail {
    file: Arc<dyn VfsFile>,
    written: u64,
    waiting: Vec<u8>,
}

impl Tail {
    fn create(file: Arc<dyn VfsFile>) -> Self {
        Self {
            file,
            written: 0,
            waiting: Vec::new(),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= PIECE_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.waiting.is_empty() {
            let piece = [IoSlice::new(&self.waiting)];
            self.file.write_all_at(&piece, self.written)?;
            self.written += self.waiting.len() as u64;
            self.waiting.clear();
        }
        Ok(())
    }
}

/// Writes one segment anew. Dropped before [`Rewriter::swap`], it takes its files along.
#[derive(Debug)]
pub struct Rewriter {
    log: Log,
    group: Vec<Segment>,
    files: NewFiles,
    payloads: Tail,
    ledger: Tail,
    /// The first index that may come next.
    next: u64,
    rows: u64,
    bytes: u64,
    max_timestamp: i64,
    swapped: bool,
}

impl Rewriter {
    fn new(log: Log, group: Vec<Segment>) -> Result<Self, RewriteError> {
        let first = group.first().ok_or(RewriteError::Changed)?;
        log.0.engine.check()?;
        let (base_offset, base_index) = (first.file.base_offset, first.file.base_index);
        // The folder is there, or the log was deleted: it must not come back.
        let files = NewFiles::create(&log, base_offset, base_index)?;
        let (payloads, ledger) = (
            Tail::create(files.log.clone()),
            Tail::create(files.ledger.clone()),
        );
        let header = LedgerHeader {
            layout: Layout::Sparse,
            key: log.key(),
            base_offset,
            base_index,
        };
        let mut rewriter = Self {
            log,
            group,
            files,
            payloads,
            ledger,
            next: base_index,
            rows: 0,
            bytes: 0,
            max_timestamp: -1,
            swapped: false,
        };
        let written = rewriter.ledger.push(&header.encode());
        written.map_err(|e| rewriter.failed(e))?;
        Ok(rewriter)
    }

    /// Bytes of payloads so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes what stays of an entry: its bytes, and the time of its newest record. Entries come in their order.
    ///
    /// # Errors
    /// If it is not behind the one before, or not among those that are rewritten; if it cannot be written.
    pub fn push(
        &mut self,
        row: &Row,
        bytes: &[u8],
        max_timestamp: i64,
    ) -> Result<(), RewriteError> {
        let last = self.group.last().map_or(0, |s| s.last.index);
        if !(self.next..=last).contains(&row.index) || row.kind != Kind::Data || bytes.is_empty() {
            return Err(RewriteError::Order {
                expected: self.next..=last,
                found: row.index,
            });
        }
        let length = bytes.len() as u32;
        let new = Row {
            position: self.bytes,
            length,
            payload_crc: crc32fast::hash(bytes),
            max_timestamp,
            ..*row
        };
        let written = self.payloads.push(bytes);
        written.map_err(|e| self.failed(e))?;
        let encoded: [u8; ROW_BYTES] = new.encode(row_seed(self.log.key()));
        let written = self.ledger.push(&encoded);
        written.map_err(|e| self.failed(e))?;
        self.next = row.index + 1;
        self.rows += 1;
        self.bytes += u64::from(length);
        self.max_timestamp = self.max_timestamp.max(max_timestamp);
        Ok(())
    }

    /// Makes the new files durable and puts them in the place of the old ones: readable on return, durable
    /// when `done` is called. Blocks on the disk. `clean` is kept with the segment.
    ///
    /// # Errors
    /// Nothing was changed, and `done` will not be called.
    pub fn swap(mut self, clean: bool, done: Done) -> Result<(), RewriteError> {
        self.make_durable()?;
        let last = self.group.last().ok_or(RewriteError::Changed)?;
        let new = self.segment(last, clean);
        let inner = self.log.0.clone();
        let mut state = inner.to_write()?;
        if !holds(&state, &self.group) {
            return Err(RewriteError::Changed);
        }
        let dropped = state.rewrite(&new).ok_or(RewriteError::Changed)?;
        let operation = Operation::Rewrite(encode_segment(&new));
        inner.submit(&mut state, operation, dropped, done);
        self.swapped = true;
        Ok(())
    }

    fn segment(&self, last: &Segment, clean: bool) -> Segment {
        let newest = self.group.iter().map(|s| s.max_timestamp).max();
        let mut with_time = self.group.iter().map(|s| s.first_timestamp);
        // All that is in the files by now: readers find every row, and look at each payload once.
        let origin = Origin {
            id: self.files.segment.id,
            base_offset: self.files.segment.base_offset,
            base_index: self.files.segment.base_index,
            rows: self.rows,
            bytes: self.bytes,
        };
        let file = self.log.0.engine.segment(self.log.key(), origin);
        file.seal(self.rows);
        Segment {
            rows: self.rows,
            bytes: self.bytes,
            last: last.last,
            next_offset: last.next_offset,
            // A segment of which nothing stays ages as it did.
            max_timestamp: match self.max_timestamp {
                ..0 => newest.unwrap_or(-1),
                newest => newest,
            },
            first_timestamp: with_time.find(|t| *t >= 0).unwrap_or(-1),
            sealed: true,
            clean,
            file,
        }
    }

    fn make_durable(&mut self) -> Result<(), RewriteError> {
        let written = self.payloads.flush().and_then(|()| self.ledger.flush());
        written.map_err(|e| self.failed(e))?;
        Ok(self.files.sync()?)
    }

    fn failed(&self, source: io::Error) -> RewriteError {
        self.files.failed(source).into()
    }
}

impl Drop for Rewriter {
    fn drop(&mut self) {
        if !self.swapped {
            self.files.discard();
        }
    }
}

/// True if these very segments are still there, in a row.
fn holds(state: &State, group: &[Segment]) -> bool {
    let Some(first) = group.first() else {
        return false;
    };
    let from = state.base.iter().position(|s| s.file.id == first.file.id);
    let Some(now) = from.and_then(|from| state.base.get(from..from + group.len())) else {
        return false;
    };
    let same =
        |(a, b): (&Segment, &Segment)| (a.file.id, a.rows, a.last) == (b.file.id, b.rows, b.last);
    now.iter().zip(group).all(same)
}
