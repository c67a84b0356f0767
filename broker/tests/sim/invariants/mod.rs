//! What must hold, whatever happens: one file each.
//!
//! The world tells what it sees, both as a client (answers) and as nobody but a simulation can (what
//! every replica holds below its high watermark). An invariant remembers what it needs and objects.
//! Timeouts prove nothing: a batch without an answer may be there or not.

mod compacted;
mod duplicates;
mod durable;
mod features;
mod kept;
mod leaders;
mod metadata;
mod offsets;
mod order;
mod replicas;
mod stale;
mod watermarks;

use crate::keyed::Record;
use crate::may_lack_records;
use crate::tally::Tally;
use bytes::{Bytes, BytesMut};
use logd::cluster::FeatureLevel;
use logd_proto::record_batch::{batches, verify_checksum};
use std::fmt;

/// A batch as it lies in a log, or as an acknowledgement says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    pub base_offset: i64,
    pub records: i64,
    pub producer: i64,
    pub first: i32,
    pub crc: u32,
    pub epoch: i32,
}

impl Batch {
    pub fn end(&self) -> i64 {
        self.base_offset + self.records
    }

    /// Who sent it, and which of his it is.
    pub fn identity(&self) -> (i64, i32, i64) {
        (self.producer, self.first, self.records)
    }
}

/// A replica after everything has healed.
#[derive(Debug)]
pub struct Settled {
    pub broker: usize,
    pub log_start: i64,
    pub high_watermark: i64,
    /// From the log start to the high watermark.
    pub bytes: Bytes,
    pub batches: Vec<Batch>,
}

/// Who has read a log from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanner {
    Reader(usize),
    /// Nobody but a simulation can: what a replica holds below its high watermark.
    Replica(usize),
}

impl Scanner {
    pub fn is_client(self) -> bool {
        matches!(self, Scanner::Reader(_))
    }
}

impl fmt::Display for Scanner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scanner::Reader(n) => write!(f, "reader {n}"),
            Scanner::Replica(n) => write!(f, "broker {n}"),
        }
    }
}

/// All that the compacted partition has shown from its start to its high watermark.
pub struct Scan<'a> {
    pub who: Scanner,
    pub log_start: i64,
    pub high_watermark: i64,
    pub records: &'a [Record],
    /// By one replica at one time.
    pub in_one_piece: bool,
}

pub enum Seen<'a> {
    /// A broker acknowledged a batch, whether or not the client heard it.
    Acked {
        broker: usize,
        partition: u32,
        batch: Batch,
        /// The broker's term.
        term: i64,
        /// The broker has heard nobody since before it was asked.
        cut_off: bool,
    },
    /// A reader was answered.
    Read {
        reader: usize,
        partition: u32,
        log_start: i64,
        high_watermark: i64,
        from: i64,
        batches: &'a [Batch],
    },
    /// What a replica holds below its high watermark, from some offset on.
    Held {
        broker: usize,
        /// The broker's how manieth start.
        start: u64,
        partition: u32,
        log_start: i64,
        high_watermark: i64,
        from: i64,
        batches: &'a [Batch],
    },
    /// A replica says that it leads and serves. `None`: the metadata group.
    Serves {
        broker: usize,
        partition: Option<u32>,
        term: i64,
        high_watermark: i64,
    },
    /// Up to which offset each replica that is up has synced, and its high watermark.
    Synced {
        partition: u32,
        replicas: [Option<(i64, i64)>; crate::net::BROKERS],
    },
    /// A broker's picture of the cluster.
    Metadata {
        broker: usize,
        applied: u64,
        state: &'a [u8],
        /// The cluster's feature level, and the lowest that a registered broker's build understands.
        level: FeatureLevel,
        oldest: Option<FeatureLevel>,
    },
    Scanned(Scan<'a>),
    /// The end: all replicas of a partition, at rest.
    Settled {
        partition: u32,
        replicas: &'a [Settled],
    },
}

pub trait Invariant {
    fn name(&self) -> &'static str;

    /// # Errors
    /// What was seen that must not be.
    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String>;

    /// Adds what happened.
    fn count(&self, _tally: &mut Tally) {}
}

/// All of them.
pub struct Invariants(Vec<Box<dyn Invariant>>);

impl Default for Invariants {
    fn default() -> Self {
        Self(vec![
            Box::<kept::Kept>::default(),
            Box::<offsets::Offsets>::default(),
            Box::<duplicates::Duplicates>::default(),
            Box::<durable::Durable>::default(),
            Box::<order::Order>::default(),
            Box::<watermarks::Watermarks>::default(),
            Box::<leaders::Leaders>::default(),
            Box::<stale::Stale>::default(),
            Box::<replicas::Replicas>::default(),
            Box::<metadata::Metadata>::default(),
            Box::<features::Features>::default(),
            Box::<compacted::Compacted>::default(),
        ])
    }
}

impl Invariants {
    pub fn count(&self, tally: &mut Tally) {
        self.0.iter().for_each(|i| i.count(tally));
    }

    /// # Errors
    /// The first objection.
    pub fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        self.0
            .iter_mut()
            .try_for_each(|i| i.see(seen).map_err(|why| format!("{}: {why}", i.name())))
    }
}

pub fn one_piece(slices: Vec<Bytes>) -> Bytes {
    let mut whole = BytesMut::new();
    slices.iter().for_each(|s| whole.extend_from_slice(s));
    whole.freeze()
}

/// Whole batches of a partition, checked.
///
/// # Errors
/// If they are not whole, or not what their checksums say, or do not follow each other.
pub fn parse(partition: u32, bytes: &Bytes) -> Result<Vec<Batch>, String> {
    let mut found: Vec<Batch> = Vec::new();
    let mut length = 0;
    for batch in batches(bytes.clone()) {
        let (header, payload) = batch.map_err(|e| e.to_string())?;
        verify_checksum(&payload, &header).map_err(|e| e.to_string())?;
        let batch = Batch {
            base_offset: header.base_offset,
            records: i64::from(header.last_offset_delta) + 1,
            producer: header.producer_id,
            first: header.base_sequence,
            crc: header.crc,
            epoch: header.partition_leader_epoch,
        };
        if let Some(before) = found.last()
            && !(before.end() == batch.base_offset
                || may_lack_records(partition) && before.end() < batch.base_offset)
        {
            return Err(format!("{batch:?} does not follow {before:?}"));
        }
        length += payload.len();
        found.push(batch);
    }
    if length == bytes.len() {
        Ok(found)
    } else {
        let stray = bytes.len() - length;
        Err(format!("{stray} bytes behind the last whole batch"))
    }
}
