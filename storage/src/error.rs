//! One error per operation: what failed, where, and what to do.

use crate::EntryId;
use crate::files::Want;
use crate::new_files::NewFilesError;
use std::io;
use std::path::PathBuf;

/// Damage in a file: bytes that were durable once do not read back as they were written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{path} is damaged at byte {position}: {what}. Run `logctl debug verify` on the data directory; \
     fetch this log from another replica, or delete it"
)]
pub struct Damage {
    pub path: PathBuf,
    pub position: u64,
    pub what: String,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot {what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path} is in use by another process: stop it, or choose another data directory")]
    Locked { path: PathBuf },
    #[error(
        "{path} holds format version {found}, this program reads version {known}: start the version that wrote it"
    )]
    Version {
        path: PathBuf,
        found: String,
        known: u32,
    },
    #[error("{path} is not a data directory of ours ({what}): choose an empty one")]
    Foreign { path: PathBuf, what: String },
    #[error(
        "{path} is damaged at byte {position}: {what}. Data that was acknowledged may be missing, so \
         nothing is served. Run `logctl debug verify` on the data directory; restore it or start from an empty one"
    )]
    Corrupt {
        path: PathBuf,
        position: u64,
        what: String,
    },
}

/// Why a log takes no change of any kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("the disk failed and takes nothing any more: {0}")]
    Poisoned(String),
    #[error("the disk is closed")]
    Closed,
    #[error("no space left to make it durable: it is written as soon as there is some")]
    NoSpace,
    #[error("the log is deleted")]
    Deleted,
    #[error("the log is fenced: {0}")]
    Fenced(Damage),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{bytes} bytes in one piece, the write-ahead log takes at most {limit}")]
    TooLarge { bytes: usize, limit: usize },
}

/// Why entries are not appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    #[error(transparent)]
    Refused(#[from] WriteError),
    #[error("entry {found} does not follow {last:?}")]
    Gap { last: Option<EntryId>, found: u64 },
    #[error("entry {index} starts at offset {found}, the log ends at {expected}")]
    Offset {
        index: u64,
        found: i64,
        expected: i64,
    },
    #[error("entry {index} has {bytes} bytes, a log of this disk takes at most {limit}")]
    TooLarge {
        index: u64,
        bytes: usize,
        limit: usize,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("offset {offset} is outside {start}..={end}")]
    OutOfRange { offset: i64, start: i64, end: i64 },
    #[error("entry {index} is below {first}, the first one held")]
    Purged { index: u64, first: u64 },
    #[error("the log is fenced: {0}")]
    Damaged(#[from] Damage),
    #[error("cannot read {path}: {what}")]
    Io { path: PathBuf, what: String },
    #[error("{path} was rewritten or dropped meanwhile: read again")]
    Moved { path: PathBuf },
}

/// Why files do not go to another disk, or do not arrive here.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("no segment ends at offset {next_offset} any more: a newer snapshot is needed")]
    Outdated { next_offset: i64 },
    #[error("what is offered is refused: {0}")]
    Offer(&'static str),
    #[error("nothing is offered at {0:?}")]
    NoSuchPlace(Want),
    #[error("no space left for another disk's files")]
    NoSpace,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Refused(#[from] WriteError),
    #[error("cannot {what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Why segments were not rewritten: they are as they were.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    #[error("the segments to be rewritten changed meanwhile: look at them again")]
    Changed,
    #[error(
        "entry {found} was given for a segment that wants data with an index of {expected:?} next"
    )]
    Order {
        expected: std::ops::RangeInclusive<u64>,
        found: u64,
    },
    #[error("no space left for what is rewritten")]
    NoSpace,
    #[error(transparent)]
    Refused(#[from] WriteError),
    #[error("cannot {what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum OpenLogError {
    #[error("the disk is closed")]
    Closed,
    #[error("the disk failed and takes nothing any more: {0}")]
    Poisoned(String),
    #[error("the log is fenced: {0}")]
    Fenced(Damage),
}

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("the disk failed and takes nothing any more: {0}")]
    Poisoned(String),
    #[error("the disk is closed")]
    Closed,
    #[error("not everything could be copied to the segments: no space left on the device")]
    Stalled,
    #[error("a log's state moved on too fast to be captured: the next checkpoint tries again")]
    Restless,
    #[error("cannot {what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl From<NewFilesError> for FilesError {
    fn from(error: NewFilesError) -> Self {
        match error {
            NewFilesError::NoSpace => FilesError::NoSpace,
            NewFilesError::Deleted => WriteError::Deleted.into(),
            NewFilesError::Io { what, path, source } => FilesError::Io { what, path, source },
        }
    }
}

impl From<NewFilesError> for RewriteError {
    fn from(error: NewFilesError) -> Self {
        match error {
            NewFilesError::NoSpace => RewriteError::NoSpace,
            NewFilesError::Deleted => RewriteError::Changed,
            NewFilesError::Io { what, path, source } => RewriteError::Io { what, path, source },
        }
    }
}
