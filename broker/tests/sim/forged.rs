//! Compactions that are wrong: a broker's base segments, written anew with what must not be missing missing, or
//! elsewhere.
//!
//! They go through storage's own door, so every checksum is right: nothing but what a reader sees tells.

use crate::COMPACTED;
use crate::invariants::one_piece;
use crate::keyed::{Record, records};
use crate::lies::{LIAR, Lie};
use crate::watch::read;
use crate::world::World;
use bytes::Bytes;
use logd_proto::record_batch::{BatchHeader, patched_header, retain};
use logd_storage::{BaseSegment, Log, Row};
use std::collections::BTreeMap;

const EVERY_MS: u64 = 10;

/// The time that a batch with tombstones says, if it says none yet: they stay for good.
const NEVER: i64 = i64::MAX / 4;

/// What becomes of a segment: its entries, and whether any is other than it was.
type Forged = (Vec<(Row, Bytes)>, bool);

impl World {
    /// The liar's compaction, where the lie is one of those.
    ///
    /// # Errors
    /// If what is there cannot be read.
    pub fn forge(&mut self) -> Result<(), String> {
        let due = self.now.is_multiple_of(EVERY_MS) && self.lie.forges();
        let Some(log) = self.brokers[LIAR].log(COMPACTED).filter(|_| due) else {
            return Ok(());
        };
        let Some((_, all)) = read(&log, COMPACTED, 0, log.bounds().end_offset)? else {
            return Ok(());
        };
        let all = records(&all)?;
        for segment in log.base_segments() {
            let entries: Result<Vec<_>, _> = match segment.entries() {
                Ok(entries) => entries.collect(),
                Err(error) => Err(error),
            };
            let entries = entries.map_err(|e| e.to_string())?;
            let (forged, differs) = match self.lie {
                Lie::LosesLast => without(entries, |r| is_last_value(r, &all))?,
                Lie::BuriesEarly => without(entries, |r| is_needed(r, &all))?,
                _ => renumbered(entries),
            };
            if differs {
                let outcome = swap(&log, &segment, &forged);
                self.trace.say(format_args!(
                    "-- {LIAR} forges the segment at {}: {outcome:?}",
                    segment.info().base_offset
                ));
                return Ok(());
            }
        }
        Ok(())
    }
}

fn is_last_value(record: &Record, all: &[Record]) -> bool {
    let last = all.iter().rfind(|r| r.key == record.key);
    !record.is_tombstone() && last == Some(record)
}

/// A tombstone that still removes something.
fn is_needed(record: &Record, all: &[Record]) -> bool {
    let older = |r: &&Record| r.key == record.key && r.offset < record.offset;
    let newer = |r: &Record| r.key == record.key && r.offset > record.offset;
    let removes = all.iter().rfind(older).is_some_and(|r| !r.is_tombstone());
    record.is_tombstone() && removes && !all.iter().any(newer)
}

fn without(entries: Vec<(Row, Bytes)>, goes: impl Fn(&Record) -> bool) -> Result<Forged, String> {
    let (mut left, mut differs) = (Vec::new(), false);
    for (row, batch) in entries {
        let shown: BTreeMap<i64, Record> = match batch.is_empty() {
            true => BTreeMap::new(),
            false => records(&batch)?
                .into_iter()
                .map(|r| (r.offset, r))
                .collect(),
        };
        if !shown.values().any(&goes) {
            left.push((row, batch));
            continue;
        }
        differs = true;
        let mut stays = |r: &logd_proto::record_batch::Record<'_>| !goes(&shown[&r.offset]);
        let kept = retain(&batch, batch.len(), NEVER, &mut stays).map_err(|e| e.to_string())?;
        left.push((row, kept.batch));
    }
    Ok((left, differs))
}

/// The first batch with a gap behind it moves up by one.
fn renumbered(mut entries: Vec<(Row, Bytes)>) -> Forged {
    let has_gap = |pair: &[(Row, Bytes)]| {
        let [(row, batch), (next, _)] = pair else {
            return false;
        };
        !batch.is_empty() && row.end_offset() < next.base_offset
    };
    let at = entries.windows(2).position(has_gap);
    if let Some((row, batch)) = at.and_then(|at| entries.get_mut(at)) {
        row.base_offset += 1;
        let epoch = BatchHeader::parse(batch).map_or(-1, |h| h.partition_leader_epoch);
        if let Some(head) = patched_header(batch, row.base_offset, epoch) {
            let rest = batch.slice(head.len()..);
            *batch = one_piece(vec![Bytes::copy_from_slice(&head), rest]);
        }
    }
    (entries, at.is_some())
}

fn swap(log: &Log, segment: &BaseSegment, entries: &[(Row, Bytes)]) -> Result<(), String> {
    let mut rewriter = log
        .rewriter(std::slice::from_ref(segment))
        .map_err(|e| e.to_string())?;
    for (row, batch) in entries.iter().filter(|(_, batch)| !batch.is_empty()) {
        let pushed = rewriter.push(row, batch, row.max_timestamp);
        pushed.map_err(|e| e.to_string())?;
    }
    let clean = segment.info().clean;
    let swapped = rewriter.swap(clean, Box::new(|_| {}));
    swapped.map_err(|e| e.to_string())
}
