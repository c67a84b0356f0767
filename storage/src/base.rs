//! The base: what lies below a log's Raft log, found by offset alone.
//!
//! Promise: what moves here from the Raft log meanwhile is found here or there by a reader, never in neither.
//! Invariant: a segment of the base is in its files as a whole, and is replaced or dropped as a whole; its rows
//! may have holes.
//! Not here: writing one anew (see `rewrite`), giving it to another disk (see `files`).

use crate::EntryId;
use crate::error::ReadError;
use crate::ledger::Row;
use crate::log::LogInner;
use crate::read::{Limit, ReadPlan};
use crate::segment::Ledger;
use crate::state::{Dropped, Segment, State, TermStart};
use bytes::Bytes;
use std::sync::Arc;

/// What lies below a log's Raft log, and the terms it was written in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Base {
    pub segments: Vec<Segment>,
    pub terms: Vec<TermStart>,
}

impl State {
    /// The last entry that a purge may reach which is to leave a base: the end of a segment that is in its
    /// files as a whole.
    pub fn base_point(&self, upto: EntryId) -> Option<EntryId> {
        let whole = |s: &&Segment| {
            s.sealed && s.last.index <= upto.index && s.file.written_rows() >= s.rows
        };
        self.segments
            .iter()
            .take_while(whole)
            .last()
            .map(|s| s.last)
    }

    /// The entries up to `upto` of the segment of the Raft log that goes on behind it.
    pub fn first_part(&self, upto: EntryId) -> Result<Option<Segment>, ReadError> {
        let goes_on = |s: &&Segment| s.file.base_index <= upto.index && upto.index < s.last.index;
        let segment = self.segments.iter().find(goes_on);
        let Some((segment, row)) = segment.zip(self.row(upto.index)?) else {
            return Ok(None);
        };
        Ok(Some(Segment {
            rows: upto.index - segment.file.base_index + 1,
            bytes: row.end_position(),
            last: upto,
            next_offset: row.end_offset(),
            sealed: true,
            ..segment.clone()
        }))
    }

    /// Moves the segments up to `upto`, which is the last entry of one, into the base; of the base, what lies
    /// below `floor` goes.
    pub fn settle(&mut self, upto: Option<EntryId>, floor: i64) -> Dropped {
        if let Some(upto) = upto.filter(|u| self.purged.is_none_or(|p| p.index < u.index)) {
            let whole = self
                .segments
                .partition_point(|s| s.last.index <= upto.index);
            let next_offset = whole.checked_sub(1).map(|at| self.segments[at].next_offset);
            let mut moved: Vec<Segment> = self.segments.drain(..whole).collect();
            // In a replay nobody says that the last one was ended early.
            moved
                .iter_mut()
                .filter(|s| !s.sealed)
                .for_each(Segment::seal);
            self.base.extend(moved);
            while self.tail.front().is_some_and(|t| t.row.index <= upto.index) {
                self.tail.pop_front();
            }
            self.control = self.control.split_off(&(upto.index + 1));
            self.purged = Some(upto);
            if self.durable.is_none_or(|d| d.index < upto.index) {
                self.durable = Some(upto);
            }
            self.start_offset = next_offset.unwrap_or(self.start_offset);
        }
        let below = |s: &Segment| s.next_offset <= floor || s.next_offset == s.file.base_offset;
        let (dropped, kept) = self.base.drain(..).partition(|s| below(s));
        self.base = kept;
        self.forget_terms();
        let files = |dropped: Vec<Segment>| dropped.into_iter().map(|s| s.file).collect();
        files(dropped)
    }

    /// Puts a segment of the base in the place of those that hold the same entries; `None` if there are none.
    pub fn rewrite(&mut self, new: &Segment) -> Option<Dropped> {
        let begins = |s: &Segment| s.file.base_index == new.file.base_index;
        let from = self.base.iter().position(begins)?;
        let to = self.base.iter().position(|s| s.last == new.last)?;
        if to < from {
            return None;
        }
        let old = self.base.splice(from..=to, [new.clone()]);
        Some(old.map(|s| s.file).collect())
    }

    /// Puts a snapshot, with its files, in the place of the whole log, which goes on behind it at the offset
    /// given. A fence ends: what was damaged is gone.
    pub fn replace(
        &mut self,
        upto: EntryId,
        state: Bytes,
        next_offset: i64,
        base: Base,
    ) -> Dropped {
        self.fenced = None;
        let old = std::mem::take(&mut self.base);
        let mut dropped = self.clear(Some(upto), next_offset);
        dropped.extend(old.into_iter().map(|s| s.file));
        self.base = base.segments;
        self.terms = base.terms;
        self.capture(upto, state);
        dropped
    }
}

/// Where an offset is.
enum Below {
    /// In the base, in a row of this segment.
    At(Segment, u64),
    /// In the Raft log, from this offset on.
    No(i64),
}

impl Segment {
    /// All of its rows, which are in its files unless a full disk stopped recovery.
    pub fn whole(&self) -> Result<(u64, Ledger), ReadError> {
        // Asked first: a ledger of which nothing is written yet, not even its header, is not a damaged one.
        if self.file.written_rows() < self.rows {
            let path = self.file.ledger_path.clone();
            return Err(ReadError::Moved { path });
        }
        self.readable()
    }
}

impl LogInner {
    /// Where in the base the first offset from this one on is. What moves into the base meanwhile is found
    /// there or above, never in neither.
    fn seek_base(&self, offset: i64) -> Result<Below, ReadError> {
        let mut offset = offset;
        loop {
            let segment = {
                let state = self.state.lock();
                let at = state.base.partition_point(|s| s.next_offset <= offset);
                match state.base.get(at) {
                    Some(segment) => segment.clone(),
                    // Behind the last one there may be a hole.
                    None => return Ok(Below::No(offset.max(state.start_offset))),
                }
            };
            let (rows, ledger) = segment.whole()?;
            let row = ledger.partition_point(0, |r| r.end_offset() <= offset)?;
            if row < rows {
                return Ok(Below::At(segment, row));
            }
            offset = segment.next_offset;
        }
    }

    /// The first entry of the Raft log that ends behind an offset; `Err` if that lies in the base by now.
    pub fn find_above(&self, offset: i64) -> Result<Result<Option<Row>, ()>, ReadError> {
        let found = self.find_offset(offset)?;
        let moved = self.state.lock().start_offset > offset;
        Ok(if moved { Err(()) } else { Ok(found) })
    }

    pub fn find(&self, offset: i64) -> Result<Option<Row>, ReadError> {
        loop {
            match self.seek_base(offset)? {
                Below::At(segment, row) => return segment.whole()?.1.row(row).map(Some),
                Below::No(above) => {
                    if let Ok(found) = self.find_above(above)? {
                        return Ok(found);
                    }
                }
            }
        }
    }

    /// Adds what the base has from an offset on; says from which one to go on, if there may be more.
    pub fn gather_base(
        self: &Arc<Self>,
        offset: i64,
        limit: &Limit,
        plan: &mut ReadPlan,
    ) -> Result<Option<i64>, ReadError> {
        let mut offset = offset;
        loop {
            match self.seek_base(offset)? {
                Below::No(above) => return Ok(Some(above)),
                Below::At(segment, row) => {
                    if self.gather_segment(&segment, row, limit, plan)?.is_none() {
                        return Ok(None);
                    }
                    offset = segment.next_offset;
                }
            }
        }
    }
}
