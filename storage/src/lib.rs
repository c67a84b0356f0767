//! One disk: a shared write-ahead log and many append-only logs of opaque payloads.
//!
//! Promise: when a [`Done`] is called with `Ok`, what it stands for survives a power cut; what was
//! never acknowledged may vanish, but is never served torn. It counts indexes, terms and records.
//! Not here: Kafka's requests, Raft's rules, an async runtime, a clock.
//!
//! (contract of the door; the on-disk layout is drawn in bytes below by the owner of this crate)

use bytes::Bytes;
use std::io;

/// Which log: a topic's id and a partition's number. Directories are named by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogKey {
    pub topic: [u8; 16],
    pub partition: u32,
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

mod mmap;
mod thin;
pub mod vfs;
pub use thin::*;
