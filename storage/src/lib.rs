//! One disk: a shared write-ahead log and many append-only logs of opaque payloads.
//!
//! Promise: when a [`Done`] is called with `Ok`, what it stands for survives a power cut; what was
//! never acknowledged may vanish, but is never served torn. It counts indexes, terms and records.
//! Not here: Kafka's requests, Raft's rules, an async runtime, a clock of its own.
//!
//! ```text
//! DIR/
//!   LOCK                     held while the directory is open
//!   format                   "logd data directory, format 1"
//!   disk                     who the disk is: id, starts, whether it was closed cleanly   (see `identity`)
//!   checkpoint               all logs, and where in the write-ahead log to go on from     (see `checkpoint`)
//!   wal/NUMBER.wal           groups of operations, 64 MiB each                            (see `wal`, `group`)
//!   wal/NUMBER.spare         files to be used again
//!   logs/TOPIC-PARTITION/    one log
//!     OFFSET.ID.log          payloads, byte for byte what a fetch sends
//!     OFFSET.ID.idx          one 64-byte row per entry                                    (see `ledger`)
//!   trash/                   logs deleted, on their way out
//! ```
//! An entry is acknowledged when its group is in `wal/`; it is copied to its segment afterwards, and the
//! group's file is used again when a checkpoint has synced the segment. Sealed segments may be written anew, with less
//! in them (see `rewrite`). All numbers are little-endian.

mod base;
mod checkpoint;
mod codec;
mod commit;
mod copier;
mod disk;
mod engine;
mod error;
mod files;
mod group;
mod identity;
pub mod inspect;
mod ledger;
mod log;
mod mmap;
mod new_files;
mod open_files;
mod read;
mod recovery;
pub mod retention;
mod rewrite;
mod segment;
mod state;
mod stats;
pub mod vfs;
mod wal;
mod wal_reader;

pub use disk::{Disk, DiskOptions, Pump, RecoveryProgress, Space};
pub use error::{
    AppendError, CheckpointError, Damage, FilesError, OpenError, OpenLogError, ReadError,
    RewriteError, WriteError,
};
pub use files::{Incoming, Outgoing, Part, Want};
pub use identity::DiskIdentity;
pub use ledger::Row;
pub use log::{Log, StateSource};
pub use read::ReadPlan;
pub use rewrite::{BaseEntries, BaseSegment, Rewriter};
pub use segment::SegmentInfo;
pub use state::{Bounds, Captured, LogOptions, TermStart};
pub use stats::DiskStats;

use bytes::Bytes;
use std::fmt;
use std::io;
use std::str::FromStr;

/// Which log: a topic's id and a partition's number. Directories are named by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogKey {
    pub topic: [u8; 16],
    pub partition: u32,
}

impl fmt::Display for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.topic.iter().try_for_each(|b| write!(f, "{b:02x}"))?;
        write!(f, "-{}", self.partition)
    }
}

/// A folder's name is not that of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a log is named by 32 hexadecimal digits, a dash and a partition, such as 0102030405060708090a0b0c0d0e0f10-0"
)]
pub struct NotALogKey;

impl FromStr for LogKey {
    type Err = NotALogKey;

    /// Reads what `Display` writes.
    fn from_str(name: &str) -> Result<Self, NotALogKey> {
        let (digits, partition) = name.split_once('-').ok_or(NotALogKey)?;
        let topic = u128::from_str_radix(digits, 16).map_err(|_| NotALogKey)?;
        let key = LogKey {
            topic: topic.to_be_bytes(),
            partition: partition.parse().map_err(|_| NotALogKey)?,
        };
        // One name per log: no signs, no capitals, no zeros in front.
        if key.to_string() == name {
            Ok(key)
        } else {
            Err(NotALogKey)
        }
    }
}

/// Where an entry stands in its log's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    pub term: u64,
    pub index: u64,
}

/// What an entry is to its owner. Data lies in the `.log`, byte for byte; control payloads are
/// small, consume no offset and no byte of the `.log`, and live in the write-ahead log and the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Data,
    /// The number means something to the owner alone.
    Control(u8),
}

/// One entry. `head` and `body` are contiguous on disk; two parts so that a patched header
/// needs no copy of the records behind it.
#[derive(Debug, Clone)]
pub struct Entry {
    pub id: EntryId,
    pub kind: Kind,
    /// Offset of the first record; must equal the log's `end_offset` when appended.
    pub base_offset: i64,
    /// How far this entry advances the offset; 0 for control.
    pub records: u32,
    /// Milliseconds since the epoch, -1 if none.
    pub max_timestamp: i64,
    pub head: Bytes,
    pub body: Bytes,
}

/// Called once, in order per log, from the committer's thread: keep it short.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send + 'static>;
