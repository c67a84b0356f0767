//! A partition's replicated state: high watermark, log start, committed producers.
//!
//! Promise: it is a function of the committed entries alone (and of the clock only in when a silent
//! producer is forgotten). The high watermark is published after the state holds the entry, so
//! whoever is woken by it finds what it was woken for.
//! Not here: leadership, proposals, bytes of records.

use super::line::Lines;
use super::producers::{Producers, Sequence};
use crate::raft::{Apply, Committed, ControlKind, EntryKind};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use logd_proto::record_batch::BatchHeader;
use logd_storage::{EntryId, Log};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::sync::watch;

/// The log start moves to the offset in the payload (`i64`, big endian).
pub const LOG_START: ControlKind = ControlKind::new(2);

/// How often silent producers are looked for while batches come, as in Kafka
/// (`producer.id.expiration.check.interval.ms`).
const EXPIRE_EVERY_MS: i64 = 600_000;

/// Layout version of a captured state.
const STATE_VERSION: u8 = 1;

/// Milliseconds since the epoch, from whoever owns the clock.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// How many milliseconds a silent producer is remembered, asked each time.
pub type Expiration = Arc<dyn Fn() -> i64 + Send + Sync>;

/// What readers may look at without the state's lock.
#[derive(Debug)]
pub struct Progress {
    high_watermark: watch::Sender<i64>,
    log_start: AtomicI64,
    /// What lies below is to be compacted, and goes below the snapshot for it.
    cleanable: AtomicI64,
    /// Batches that wait for others to be committed.
    lines: Arc<Lines>,
}

impl Progress {
    pub fn new(lines: Arc<Lines>) -> Arc<Self> {
        Arc::new(Self {
            lines,
            high_watermark: watch::channel(0).0,
            log_start: AtomicI64::new(0),
            cleanable: AtomicI64::new(0),
        })
    }

    pub fn high_watermark(&self) -> i64 {
        *self.high_watermark.borrow()
    }

    pub fn log_start(&self) -> i64 {
        self.log_start.load(Ordering::Acquire)
    }

    /// Lets the snapshot move up to an offset.
    pub fn clean_up_to(&self, offset: i64) {
        self.cleanable.fetch_max(offset, Ordering::AcqRel);
    }

    pub fn watch(&self) -> watch::Receiver<i64> {
        self.high_watermark.subscribe()
    }

    fn advance(&self, to: i64) {
        let moved = self.high_watermark.send_if_modified(|hw| {
            let forward = to > *hw;
            *hw = to.max(*hw);
            forward
        });
        if moved {
            self.lines.wake();
        }
    }
}

pub struct Replica {
    log: Log,
    progress: Arc<Progress>,
    producers: Producers,
    clock: Clock,
    producer_expiration_ms: Expiration,
    /// When silent producers are looked for next.
    expire_at_ms: i64,
}

impl Replica {
    pub fn new(
        log: Log,
        progress: Arc<Progress>,
        clock: Clock,
        producer_expiration_ms: Expiration,
    ) -> Self {
        // Whatever the log start does not forbid is worth keeping, entry or not.
        log.set_floor(0);
        Self {
            log,
            progress,
            producers: Producers::default(),
            clock,
            producer_expiration_ms,
            expire_at_ms: 0,
        }
    }

    pub fn producers(&self) -> &Producers {
        &self.producers
    }

    fn apply_batch(&mut self, entry: &Committed<'_>) -> io::Result<()> {
        let first = if entry.head.is_empty() {
            entry.body
        } else {
            entry.head
        };
        let header = BatchHeader::parse(first).map_err(|e| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("committed entry {} is not a record batch: {e}", entry.index),
            )
        })?;
        if header.producer_id >= 0 && header.base_sequence >= 0 {
            let sequence = Sequence::new(
                header.producer_id,
                header.producer_epoch,
                header.base_sequence,
                entry.records,
            );
            let now = (self.clock)();
            self.expire(now);
            let (offset, timestamp) = (entry.base_offset, header.max_timestamp);
            self.producers.record(sequence, offset, timestamp, now);
        }
        self.progress
            .advance(entry.base_offset + i64::from(entry.records));
        Ok(())
    }

    /// Where nobody produces nothing grows, so a batch's arrival is soon enough.
    fn expire(&mut self, now_ms: i64) {
        if now_ms >= self.expire_at_ms {
            let silence_ms = (self.producer_expiration_ms)();
            self.producers.expire(now_ms, silence_ms);
            let wait = silence_ms.min(EXPIRE_EVERY_MS);
            self.expire_at_ms = now_ms.saturating_add(wait);
        }
    }

    fn apply_log_start(&mut self, mut payload: &[u8]) -> io::Result<()> {
        let to = payload.try_get_i64().map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "a log-start command of less than 8 bytes",
            )
        })?;
        self.raise_log_start(to);
        self.producers
            .expire((self.clock)(), (self.producer_expiration_ms)());
        Ok(())
    }

    fn raise_log_start(&self, to: i64) {
        self.progress.log_start.fetch_max(to, Ordering::AcqRel);
        self.log.set_floor(self.progress.log_start());
    }
}

impl Apply for Replica {
    fn apply(&mut self, entry: Committed<'_>) -> io::Result<Bytes> {
        match entry.kind {
            EntryKind::Data => self.apply_batch(&entry)?,
            EntryKind::Control(LOG_START) => self.apply_log_start(entry.body)?,
            EntryKind::Control(other) => {
                let why = format!("control command {} is of a later version", other.number());
                return Err(io::Error::new(io::ErrorKind::Unsupported, why));
            }
        }
        Ok(Bytes::new())
    }

    fn term_began(&mut self, _term: u64, end_offset: i64) {
        self.progress.advance(end_offset);
    }

    fn capture(&self) -> Bytes {
        let mut kept = self.producers.clone();
        kept.expire((self.clock)(), (self.producer_expiration_ms)());
        encode(
            self.progress.high_watermark(),
            self.progress.log_start(),
            &kept,
        )
    }

    fn restore(&mut self, state: Bytes, _applied: Option<EntryId>) -> io::Result<()> {
        let (high_watermark, log_start, producers) = decode(state)?;
        self.producers = producers;
        self.raise_log_start(log_start);
        self.progress.advance(high_watermark);
        Ok(())
    }

    /// The end of the last segment that lies wholly below the log start, or is to be compacted.
    fn snapshot_point(&self) -> Option<EntryId> {
        let cleanable = self.progress.cleanable.load(Ordering::Acquire);
        let upto = self.progress.log_start().max(cleanable);
        self.log
            .segments()
            .iter()
            .take_while(|s| s.next_offset <= upto && s.sealed)
            .last()
            .map(|s| s.last)
    }

    fn snapshot_at(&self, point: EntryId) -> Bytes {
        let end = self
            .log
            .entry_row(point.index + 1)
            .map_or_else(|| self.log.bounds().end_offset, |row| row.base_offset);
        encode(end, self.progress.log_start(), &self.producers.as_of(end))
    }
}

/// `version u8 | high watermark i64 | log start i64 | producers`.
fn encode(high_watermark: i64, log_start: i64, producers: &Producers) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(STATE_VERSION);
    out.put_i64(high_watermark);
    out.put_i64(log_start);
    producers.encode(&mut out);
    out.freeze()
}

fn decode(mut state: Bytes) -> io::Result<(i64, i64, Producers)> {
    let damaged = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "a partition's captured state ends early",
        )
    };
    let version = state.try_get_u8().map_err(|_| damaged())?;
    if version != STATE_VERSION {
        let why = format!("captured state of version {version}, this broker reads {STATE_VERSION}");
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    let high_watermark = state.try_get_i64().map_err(|_| damaged())?;
    let log_start = state.try_get_i64().map_err(|_| damaged())?;
    let producers = Producers::decode(&mut state).ok_or_else(damaged)?;
    Ok((high_watermark, log_start, producers))
}
