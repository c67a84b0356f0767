//! Reads of the compacted partition from its start to its end: by a reader in pieces, and of every replica in
//! one.
//!
//! Not here: what they must show (`invariants/compacted`).

use crate::COMPACTED;
use crate::invariants::{Invariants, Scan, Scanner, Seen};
use crate::keyed::{Record, records};
use crate::net::BROKERS;
use crate::watch::read;
use crate::world::World;
use bytes::Bytes;

const LOOK_EVERY_MS: u64 = 1_000;

/// What a reader has seen since it was at the start.
#[derive(Default)]
pub struct Scanning {
    records: Vec<Record>,
    answers: u64,
}

impl Scanning {
    /// One more answer.
    ///
    /// # Errors
    /// If it is at the end, and what it saw is not what it must have.
    pub fn read(
        &mut self,
        reader: usize,
        bytes: &Bytes,
        at_end_of: Option<(i64, i64)>,
        invariants: &mut Invariants,
    ) -> Result<(), String> {
        self.records.extend(records(bytes)?);
        self.answers += 1;
        let news = !bytes.is_empty() || self.answers == 1;
        let Some((log_start, high_watermark)) = at_end_of.filter(|_| news) else {
            return Ok(());
        };
        invariants.see(&Seen::Scanned(Scan {
            who: Scanner::Reader(reader),
            log_start,
            high_watermark,
            records: &self.records,
            in_one_piece: self.answers == 1,
        }))
    }
}

impl World {
    /// All that every replica has of the compacted partition.
    ///
    /// # Errors
    /// What was seen that must not be.
    pub fn scan_replicas(&mut self) -> Result<(), String> {
        if !self.now.is_multiple_of(LOOK_EVERY_MS) {
            return Ok(());
        }
        (0..BROKERS).try_for_each(|broker| self.scan_replica(broker))
    }

    /// # Errors
    /// What was seen that must not be.
    pub fn scan_replica(&mut self, broker: usize) -> Result<(), String> {
        let (Some(replica), Some(log)) = (
            self.brokers[broker].partition(COMPACTED),
            self.brokers[broker].log(COMPACTED),
        ) else {
            return Ok(());
        };
        let offsets = replica.offsets();
        let there = read(&log, COMPACTED, offsets.log_start, offsets.high_watermark)
            .map_err(|why| format!("broker {broker}, p{COMPACTED}: {why}"))?;
        let Some((_, bytes)) = there else {
            return Ok(());
        };
        let records = records(&bytes)?;
        let base = log.base_segments();
        let clean = base.iter().map(|s| s.info()).take_while(|s| s.clean);
        self.trace.say(format_args!(
            "{broker} shows {} of {} records of p{COMPACTED}, {} of them tombstones, clean up to {}",
            records.len(),
            offsets.high_watermark,
            records.iter().filter(|r| r.is_tombstone()).count(),
            clean.last().map_or(0, |s| s.next_offset),
        ));
        self.invariants.see(&Seen::Scanned(Scan {
            who: Scanner::Replica(broker),
            log_start: offsets.log_start,
            high_watermark: offsets.high_watermark,
            records: &records,
            in_one_piece: true,
        }))
    }
}
