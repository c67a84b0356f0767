//! A compacted log: whoever reads it from the start sees of every key at least the last value, each record at
//! the offset that it was given, and nothing that is dead come back.
//!
//! What is known to be committed (acknowledged, or shown by anybody below a high watermark) stays known, when
//! compaction has long removed it. So what a reader saw as a key's last record no later reader may see undone.
//! A key whose last record is a tombstone may show it or nothing; an older value only to somebody who reads in
//! pieces: the tombstone's time may be over between two of them, or they come from two replicas.

use super::{Batch, Invariant, Seen};
use crate::keyed::{Record, written};
use crate::tally::Tally;
use crate::{COMPACTED, invariants::Scan};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Write {
    producer: i64,
    sequence: i64,
}

#[derive(Default)]
pub struct Compacted {
    /// Which write has an offset.
    committed: BTreeMap<i64, Write>,
    offsets: BTreeMap<Write, i64>,
    /// Where a key was written, and whether there is a tombstone.
    keys: BTreeMap<String, BTreeMap<i64, bool>>,
    tally: Tally,
}

impl Compacted {
    fn note(&mut self, batch: &Batch) -> Result<(), String> {
        for n in 0..batch.records {
            let write = Write {
                producer: batch.producer,
                sequence: i64::from(batch.first) + n,
            };
            self.note_one(batch.base_offset + n, write)?;
        }
        Ok(())
    }

    fn note_one(&mut self, offset: i64, write: Write) -> Result<(), String> {
        let known = *self.committed.entry(offset).or_insert(write);
        if known != write {
            return Err(format!("{write:?} is at {offset}, where {known:?} was"));
        }
        let place = *self.offsets.entry(write).or_insert(offset);
        if place != offset {
            return Err(format!("{write:?} is at {offset}, and was at {place}"));
        }
        let (key, value) = written(write.producer, write.sequence);
        let places = self.keys.entry(key).or_default();
        places.insert(offset, value.is_none());
        Ok(())
    }

    fn scanned(&mut self, scan: &Scan<'_>) -> Result<(), String> {
        let who = scan.who;
        if scan.log_start != 0 {
            return Err(format!("{who} begins at {}", scan.log_start));
        }
        let mut last: BTreeMap<&str, &Record> = BTreeMap::new();
        let mut next = 0;
        for record in scan.records {
            if record.offset < next {
                return Err(format!("{who} shows {} behind {next}", record.offset));
            }
            next = record.offset + 1;
            if !record.is_whole() {
                return Err(format!("{who} shows what nobody wrote: {record:?}"));
            }
            let write = Write {
                producer: record.producer,
                sequence: record.sequence,
            };
            let noted = self.note_one(record.offset, write);
            noted.map_err(|why| format!("{who}: {why}"))?;
            last.insert(&record.key, record);
        }
        let mut buried = 0;
        for (key, places) in &self.keys {
            let Some((&offset, &tombstone)) = places.range(..scan.high_watermark).next_back()
            else {
                continue;
            };
            let shown = last.get(key.as_str()).map(|r| r.offset);
            let is_gone = tombstone && (shown.is_none() || !scan.in_one_piece);
            buried += u64::from(tombstone && shown.is_none());
            if shown != Some(offset) && !is_gone {
                let what = if tombstone { "removed" } else { "written" };
                return Err(format!(
                    "{who} shows {key} last at {shown:?}, and below {} it was last {what} at {offset}",
                    scan.high_watermark
                ));
            }
        }
        self.tally.buried = self.tally.buried.max(buried);
        let lacks = scan.high_watermark - scan.records.len() as i64;
        self.tally.removed = self.tally.removed.max(lacks.unsigned_abs());
        self.tally.scans += u64::from(who.is_client());
        Ok(())
    }
}

impl Invariant for Compacted {
    fn name(&self) -> &'static str {
        "of a compacted log every key's last record stays"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Acked {
                partition: COMPACTED,
                batch,
                ..
            } => self.note(batch),
            Seen::Read {
                partition: COMPACTED,
                batches,
                ..
            }
            | Seen::Held {
                partition: COMPACTED,
                batches,
                ..
            } => batches.iter().try_for_each(|b| self.note(b)),
            Seen::Scanned(scan) => self.scanned(scan),
            _ => Ok(()),
        }
    }

    fn count(&self, tally: &mut Tally) {
        tally.add(&self.tally);
    }
}
