//! Reading: from an offset or an index to bytes, in the segments' maps and in the tail.
//!
//! Promise: whole entries, contiguous, in order; nothing that fails its checksum where one is due:
//! every row, every payload that goes to a replica, every payload from before this start once.
//! Invariant: maps are read without the log's lock, so a cold page never stalls an append.
//! Not here: what may be read (the limit is the caller's).

use crate::error::ReadError;
use crate::group::to_entry;
use crate::ledger::Row;
use crate::log::{Log, LogInner};
use crate::segment::{Ledger, SegmentFile};
use crate::state::{Segment, State, TailEntry};
use crate::vfs::Mapped;
use crate::{Entry, Kind};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// A segment is replaced at most once in a long while: a reader meets that once, if ever.
const READ_TRIES: usize = 8;

/// Bytes to send, in order of offset; the first entry contains the offset asked for.
#[derive(Debug, Clone)]
pub struct ReadPlan {
    pub slices: Vec<Bytes>,
    pub bytes: usize,
    pub next_offset: i64,
    /// False if some of it is not in memory, or not checked yet: call [`ReadPlan::warm`] first, where
    /// blocking is allowed.
    pub resident: bool,
    cold: Vec<Piece>,
}

#[derive(Debug, Clone)]
struct Piece {
    log: Log,
    file: Arc<SegmentFile>,
    map: Mapped,
    bytes: Range<usize>,
    ordinals: Range<u64>,
}

impl ReadPlan {
    fn new(offset: i64) -> Self {
        Self {
            slices: Vec::new(),
            bytes: 0,
            next_offset: offset,
            resident: true,
            cold: Vec::new(),
        }
    }

    /// Reads ahead and checks what is not in memory. Blocks on the disk.
    ///
    /// # Errors
    /// If a payload does not match its checksum: the slices must not be used.
    pub fn warm(&self) -> Result<(), ReadError> {
        for piece in &self.cold {
            piece.map.prefetch(piece.bytes.clone());
        }
        for piece in &self.cold {
            let checked = piece.file.check(&piece.ordinals);
            piece.log.0.noted(checked)?;
        }
        Ok(())
    }

    fn push(&mut self, slice: Bytes) {
        if !slice.is_empty() {
            self.bytes += slice.len();
            self.slices.push(slice);
        }
    }
}

/// How much a read may return.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    offset: i64,
    bytes: usize,
    at_least_one: bool,
}

impl Limit {
    fn takes(&self, row: &Row, so_far: usize) -> bool {
        let length = row.length as usize;
        row.base_offset < self.offset
            && (so_far.saturating_add(length) <= self.bytes || (self.at_least_one && so_far == 0))
    }
}

/// Where an entry is.
enum Place {
    Tail,
    Segment(Segment),
    Nowhere,
}

fn place_of(state: &State, index: u64) -> Place {
    if state.last.is_none_or(|last| index > last.index) || index < state.first_index() {
        Place::Nowhere
    } else if state.tail_first().is_some_and(|first| index >= first) {
        Place::Tail
    } else {
        state.segment_of(index).map_or(Place::Nowhere, |at| {
            Place::Segment(state.segments[at].clone())
        })
    }
}

/// Entries of the tail from an index on.
fn tail_from(state: &State, index: u64) -> impl Iterator<Item = &TailEntry> {
    let first = state.tail_first().unwrap_or(index);
    let skip = index.saturating_sub(first) as usize;
    state.tail.iter().skip(skip)
}

impl Segment {
    /// Rows that are present and in the files. Taken after the state was looked at, it covers all that
    /// was not in the tail then.
    fn readable_rows(&self) -> u64 {
        self.rows.min(self.file.written_rows())
    }

    pub fn readable(&self) -> Result<(u64, Ledger), ReadError> {
        let rows = self.readable_rows();
        Ok((rows, self.file.ledger(rows)?))
    }
}

impl LogInner {
    /// Passes a result on; damage fences the log.
    pub fn noted<T>(&self, result: Result<T, ReadError>) -> Result<T, ReadError> {
        if let Err(ReadError::Damaged(damage)) = &result {
            self.fence(damage);
        }
        result
    }

    pub fn known<T>(&self, result: Result<T, ReadError>) -> Option<T> {
        self.noted(result).ok()
    }

    /// Reads, again if a segment was replaced between the look at the state and the look at its file; damage
    /// fences the log.
    fn read_steadily<T>(
        &self,
        mut read: impl FnMut() -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let mut outcome = read();
        for _ in 1..READ_TRIES {
            if !matches!(outcome, Err(ReadError::Moved { .. })) {
                break;
            }
            outcome = read();
        }
        self.noted(outcome)
    }

    fn refuse_fenced(&self) -> Result<(), ReadError> {
        match &self.state.lock().fenced {
            Some(damage) => Err(damage.clone().into()),
            None => Ok(()),
        }
    }

    /// The first entry for which `before` is false; `before` is true for a prefix of the log.
    fn search(
        &self,
        segment_before: impl Fn(&Segment) -> bool,
        before: impl Fn(&Row) -> bool,
    ) -> Result<Option<Row>, ReadError> {
        let segment = {
            let state = self.state.lock();
            if state.tail.front().is_some_and(|t| before(&t.row)) || state.segments.is_empty() {
                let at = state.tail.partition_point(|t| before(&t.row));
                return Ok(state.tail.get(at).map(|t| t.row));
            }
            let at = state.segments.partition_point(&segment_before);
            match state.segments.get(at) {
                Some(segment) => segment.clone(),
                None => return Ok(None),
            }
        };
        let from = self.first_present(&segment);
        if segment.readable_rows() == 0 {
            // Nothing of it is in a file yet: what is looked for begins with the tail.
            return self.row_at_or_after(segment.file.base_index + from);
        }
        let (rows, ledger) = segment.readable()?;
        let at = ledger.partition_point(from.min(rows), &before)?;
        if at < rows {
            return ledger.row(at).map(Some);
        }
        // All that is in the files lies before: it is the first one in the tail, if that was not
        // copied since; then it is the next one in the files. What was purged may reach into the tail.
        self.row_at_or_after(segment.file.base_index + rows.max(from))
    }

    fn row_at_or_after(&self, index: u64) -> Result<Option<Row>, ReadError> {
        self.state.lock().row(index)
    }

    fn first_present(&self, segment: &Segment) -> u64 {
        let first = self.state.lock().first_index();
        first.saturating_sub(segment.file.base_index)
    }

    pub fn find_offset(&self, offset: i64) -> Result<Option<Row>, ReadError> {
        self.search(|s| s.next_offset <= offset, |r| r.end_offset() <= offset)
    }

    /// Adds what the tail has from `index` on.
    fn gather_tail(state: &State, index: u64, limit: &Limit, plan: &mut ReadPlan) {
        for entry in tail_from(state, index) {
            if !limit.takes(&entry.row, plan.bytes) {
                return;
            }
            plan.push(entry.head.clone());
            plan.push(entry.body.clone());
            plan.next_offset = entry.row.end_offset();
        }
    }

    /// Adds what one segment has from a row on; says which row it stopped at, if there may be more behind it.
    pub fn gather_segment(
        self: &Arc<Self>,
        segment: &Segment,
        from: u64,
        limit: &Limit,
        plan: &mut ReadPlan,
    ) -> Result<Option<u64>, ReadError> {
        let (rows, ledger) = segment.readable()?;
        let first = ledger.row(from)?;
        if !limit.takes(&first, plan.bytes) {
            return Ok(None);
        }
        let room = limit.bytes.saturating_sub(plan.bytes) as u64;
        let mut end_position = first
            .position
            .saturating_add(room.max(u64::from(first.length)));
        if limit.at_least_one && plan.bytes == 0 && first.length == 0 {
            // A control entry does not count as the one: it is the next that has bytes.
            let lead = ledger.partition_point(from, |r| r.end_position() == first.position)?;
            if lead < rows {
                end_position = end_position.max(ledger.row(lead)?.end_position());
            }
        }
        let to = ledger.partition_point(from + 1, |r| {
            r.base_offset < limit.offset && r.end_position() <= end_position
        })?;
        let last = ledger.row(to - 1)?;
        let range = first.position as usize..last.end_position() as usize;
        if !range.is_empty() {
            let map = segment.file.log(last.end_position())?;
            plan.push(map.slice(range.clone()));
            let piece = Piece {
                log: Log(self.clone()),
                file: segment.file.clone(),
                map,
                bytes: range,
                ordinals: from..to,
            };
            self.probe(piece, plan)?;
        }
        plan.next_offset = last.end_offset();
        Ok((to == rows).then_some(to))
    }

    /// What is in memory is checked at once, what is not waits for [`ReadPlan::warm`].
    fn probe(&self, piece: Piece, plan: &mut ReadPlan) -> Result<(), ReadError> {
        if !piece.map.resident(piece.bytes.clone()) {
            plan.resident = false;
            plan.cold.push(piece);
        } else if piece.file.is_unchecked(&piece.ordinals) {
            piece.file.check(&piece.ordinals)?;
        }
        Ok(())
    }

    fn gather(
        self: &Arc<Self>,
        from: u64,
        limit: &Limit,
        plan: &mut ReadPlan,
    ) -> Result<(), ReadError> {
        let mut next = Some(from);
        while let Some(index) = next {
            let segment = {
                let state = self.state.lock();
                match place_of(&state, index) {
                    Place::Nowhere => return Ok(()),
                    Place::Tail => {
                        Self::gather_tail(&state, index, limit, plan);
                        return Ok(());
                    }
                    Place::Segment(segment) => segment,
                }
            };
            let base_index = segment.file.base_index;
            let stopped = self.gather_segment(&segment, index - base_index, limit, plan)?;
            next = stopped.map(|row| base_index + row);
        }
        Ok(())
    }

    /// Entries of one segment from `index` on, with their payloads checked.
    fn entries_of(
        &self,
        segment: &Segment,
        range: Range<u64>,
        budget: &mut Budget,
        entries: &mut Vec<Entry>,
    ) -> Result<(), ReadError> {
        let base = segment.file.base_index;
        let (rows, ledger) = segment.readable()?;
        for ordinal in range.start - base..rows.min(range.end - base) {
            let row = ledger.row(ordinal)?;
            if !budget.takes(row.length as usize) {
                return Ok(());
            }
            let entry = match row.kind {
                Kind::Data => {
                    let log = segment.file.log(row.end_position())?;
                    segment.file.check_payload(&row, &log)?;
                    let body = log.slice(row.position as usize..row.end_position() as usize);
                    to_entry(&row, Bytes::new(), body)
                }
                Kind::Control(_) => match self.state.lock().control.get(&row.index) {
                    Some(body) => to_entry(&row, Bytes::new(), body.clone()),
                    // Purged or truncated since.
                    None => return Ok(()),
                },
            };
            entries.push(entry);
        }
        Ok(())
    }

    fn read_entries(
        &self,
        from: u64,
        to: u64,
        budget: &mut Budget,
    ) -> Result<Vec<Entry>, ReadError> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let next = from + entries.len() as u64;
            if next >= to || budget.spent {
                return Ok(entries);
            }
            let segment = {
                let state = self.state.lock();
                match place_of(&state, next) {
                    Place::Nowhere => return Ok(entries),
                    Place::Tail => {
                        tail_entries(&state, next, to, budget, &mut entries);
                        return Ok(entries);
                    }
                    Place::Segment(segment) => segment,
                }
            };
            let before = entries.len();
            self.entries_of(&segment, next..to, budget, &mut entries)?;
            if entries.len() == before {
                return Ok(entries);
            }
        }
    }
}

fn tail_entries(state: &State, from: u64, to: u64, budget: &mut Budget, entries: &mut Vec<Entry>) {
    for tail in tail_from(state, from).take_while(|t| t.row.index < to) {
        let entry = match tail.row.kind {
            Kind::Data => to_entry(&tail.row, tail.head.clone(), tail.body.clone()),
            Kind::Control(_) => {
                let body = state.control.get(&tail.row.index).cloned();
                to_entry(&tail.row, Bytes::new(), body.unwrap_or_default())
            }
        };
        if !budget.takes(entry.head.len() + entry.body.len()) {
            return;
        }
        entries.push(entry);
    }
}

/// Bytes that may still be returned; the first entry is always allowed.
struct Budget {
    left: usize,
    fresh: bool,
    spent: bool,
}

impl Budget {
    fn takes(&mut self, bytes: usize) -> bool {
        if !self.fresh && bytes > self.left {
            self.spent = true;
            return false;
        }
        self.fresh = false;
        self.left = self.left.saturating_sub(bytes);
        true
    }
}

impl Log {
    /// Entries `from..to`, at most `max_bytes` of payload but at least one if there is any.
    ///
    /// # Errors
    /// If they are purged, damaged or cannot be read.
    pub fn entries(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, ReadError> {
        self.0.refuse_fenced()?;
        self.0.read_steadily(|| {
            let first = self.0.state.lock().first_index();
            if from < first && from < to {
                return Err(ReadError::Purged { index: from, first });
            }
            let mut budget = Budget {
                left: max_bytes,
                fresh: true,
                spent: false,
            };
            self.0.read_entries(from, to, &mut budget)
        })
    }

    /// Plans a read of whole data entries from the one that contains `offset` up to `limit_offset`.
    ///
    /// # Errors
    /// If the offset is outside the log, or what is there is damaged or cannot be read.
    pub fn read(
        &self,
        offset: i64,
        limit_offset: i64,
        max_bytes: usize,
        at_least_one: bool,
    ) -> Result<ReadPlan, ReadError> {
        self.0.refuse_fenced()?;
        let limit = Limit {
            offset: limit_offset,
            bytes: max_bytes,
            at_least_one,
        };
        self.0.read_steadily(|| self.plan(offset, &limit))
    }

    fn plan(&self, offset: i64, limit: &Limit) -> Result<ReadPlan, ReadError> {
        let bounds = self.bounds();
        if offset < bounds.start_offset || offset > bounds.end_offset {
            return Err(ReadError::OutOfRange {
                offset,
                start: bounds.start_offset,
                end: bounds.end_offset,
            });
        }
        let mut plan = ReadPlan::new(offset);
        if offset >= limit.offset {
            return Ok(plan);
        }
        let mut offset = offset;
        loop {
            match self.0.gather_base(offset, limit, &mut plan)? {
                None => return Ok(plan),
                Some(above) => offset = above,
            }
            if let Ok(found) = self.0.find_above(offset)? {
                if let Some(row) = found {
                    self.0.gather(row.index, limit, &mut plan)?;
                }
                return Ok(plan);
            }
        }
    }

    /// The entry that contains an offset; the one behind it where there is a hole.
    pub fn row_at_offset(&self, offset: i64) -> Option<Row> {
        let start = self.0.state.lock().first_offset();
        if offset < start {
            return None;
        }
        let found = self.0.read_steadily(|| self.0.find(offset));
        found.ok().flatten()
    }

    /// The first entry that ends behind `from_offset` and has a record of `timestamp` or later.
    pub fn row_at_time(&self, timestamp: i64, from_offset: i64) -> Option<Row> {
        let may = |s: &Segment| s.max_timestamp >= timestamp;
        let found = self.0.read_steadily(|| {
            self.0.scan(from_offset, i64::MAX, may, |row, _| {
                row.max_timestamp >= timestamp
            })
        });
        found.ok().flatten()
    }

    /// Of the entries between two offsets, the first one with the largest timestamp.
    pub fn row_max_time(&self, from_offset: i64, limit_offset: i64) -> Option<Row> {
        let best = self.0.read_steadily(|| {
            let mut best: Option<Row> = None;
            let newest = |row: &Row, _| {
                if best.is_none_or(|b| row.max_timestamp > b.max_timestamp) {
                    best = Some(*row);
                }
                false
            };
            self.0.scan(from_offset, limit_offset, |_| true, newest)?;
            Ok(best)
        });
        best.ok().flatten()
    }
}

impl LogInner {
    /// The first entry with records in a range of offsets that `wanted` says yes to; segments that
    /// `may` says no to are skipped.
    fn scan(
        &self,
        from_offset: i64,
        limit_offset: i64,
        may: impl Fn(&Segment) -> bool,
        mut wanted: impl FnMut(&Row, i64) -> bool,
    ) -> Result<Option<Row>, ReadError> {
        let (base, segments, tail, first) = {
            let state = self.state.lock();
            let tail: Vec<Row> = state.tail.iter().map(|t| t.row).collect();
            let base = state.base.clone();
            (base, state.segments.clone(), tail, state.first_index())
        };
        let mut hit = |row: &Row| {
            let inside = row.end_offset() > from_offset && row.base_offset < limit_offset;
            let holds = row.records > 0 && row.length > 0;
            holds && inside && wanted(row, from_offset)
        };
        for segment in base {
            let between =
                segment.next_offset > from_offset && segment.file.base_offset < limit_offset;
            if between && may(&segment) {
                let (rows, ledger) = segment.whole()?;
                for ordinal in 0..rows {
                    let row = ledger.row(ordinal)?;
                    if hit(&row) {
                        return Ok(Some(row));
                    }
                }
            }
        }
        let mut hit = |row: &Row| row.index >= first && hit(row);
        let tail_first = tail.first().map_or(u64::MAX, |r| r.index);
        for segment in segments {
            let wanted = segment.next_offset > from_offset
                && segment.file.base_offset < limit_offset
                && segment.file.base_index < tail_first
                && may(&segment);
            // What was purged before it was copied leaves a segment that has no file yet.
            if wanted && segment.readable_rows() > 0 {
                let (rows, ledger) = segment.readable()?;
                let end = rows.min(tail_first - segment.file.base_index);
                for ordinal in 0..end {
                    let row = ledger.row(ordinal)?;
                    if hit(&row) {
                        return Ok(Some(row));
                    }
                }
            }
        }
        Ok(tail.into_iter().find(|row| hit(row)))
    }
}
