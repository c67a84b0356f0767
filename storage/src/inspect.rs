//! A data directory read offline, for the curious and the worried.
//!
//! Promise: nothing is written, not even the lock; damage is a [`Finding`] and never an error or a panic; one
//! group, one row and one payload are in memory at a time, and the checkpoint.
//! Invariant: a directory that a running process has locked is refused unless the caller insists, because
//! its files change while they are read.
//! Not here: what payloads mean. [`Directory::verify`] hands each to its caller, who may know.

mod segment;
mod verify;

pub use crate::checkpoint::{LogImage, SegmentImage};
pub use segment::{SegmentReader, SegmentRow};
pub use verify::{Payload, Place, Verified};

use crate::checkpoint::{self, Head};
use crate::error::OpenError;
use crate::group::{BLOCK_BYTES, Operation};
use crate::identity::{self, SMALL_FILE_BYTES_MAX, read_file};
use crate::ledger::Row;
use crate::vfs::Vfs;
use crate::wal_reader::WalFiles;
use crate::{DiskIdentity, EntryId, LogKey};
use bytes::Bytes;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As a crash leaves it, or of no use any more: nothing is lost.
    Note,
    /// Bytes that were durable once are not what they were.
    Damage,
}

/// Something that is not as it should be, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub path: PathBuf,
    pub position: u64,
    pub what: String,
}

impl Finding {
    pub fn damage(path: &Path, position: u64, what: impl Into<String>) -> Self {
        Self {
            severity: Severity::Damage,
            path: path.to_owned(),
            position,
            what: what.into(),
        }
    }

    pub fn note(path: &Path, position: u64, what: impl Into<String>) -> Self {
        Self {
            severity: Severity::Note,
            ..Self::damage(path, position, what)
        }
    }

    fn unreadable(path: &Path, e: &io::Error) -> Self {
        Self::damage(path, 0, format!("cannot be read: {e}"))
    }
}

impl From<OpenError> for Finding {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Corrupt {
                path,
                position,
                what,
            } => Self::damage(&path, position, what),
            OpenError::Io { what, path, source } => {
                Self::damage(&path, 0, format!("cannot {what} it: {source}"))
            }
            OpenError::Locked { ref path }
            | OpenError::Version { ref path, .. }
            | OpenError::Foreign { ref path, .. } => Self::damage(path, 0, error.to_string()),
        }
    }
}

/// What to do about a process that has the directory open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfRunning {
    Refuse,
    /// What is read may change meanwhile: findings may be false.
    ReadAnyway,
}

/// Where a checkpoint lets the write-ahead log begin, and the logs in it.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub sequence: u64,
    pub file: u64,
    pub position: u64,
    pub last_op: u64,
    pub bytes: u64,
    head: Head,
    path: PathBuf,
}

impl Checkpoint {
    /// The logs as they were, one by one.
    pub fn logs(&self) -> impl Iterator<Item = Result<LogImage, Finding>> + '_ {
        self.head.images().map(|image| {
            image.ok_or_else(|| Finding::damage(&self.path, 0, "a log does not decode"))
        })
    }
}

/// A group of the write-ahead log.
#[derive(Debug, Clone)]
pub struct Group {
    pub path: PathBuf,
    pub position: u64,
    pub bytes: u64,
    pub sequence: u64,
    /// Recovery would replay it.
    pub needed: bool,
    /// `None` if they do not match their checksums.
    pub operations: Option<Vec<WalOperation>>,
}

/// One operation in the write-ahead log.
#[derive(Debug, Clone)]
pub struct WalOperation {
    pub number: u64,
    pub key: LogKey,
    pub change: Change,
}

/// What an operation does to its log.
#[derive(Debug, Clone)]
pub enum Change {
    /// The row's position is not known before it is copied.
    Entry {
        row: Row,
        payload: Bytes,
        new_segment: bool,
    },
    Vote(Bytes),
    Truncate {
        keep: Option<u64>,
        end_offset: Option<i64>,
    },
    Purge {
        upto: EntryId,
        start_offset: Option<i64>,
    },
    Delete,
    Snapshot {
        upto: EntryId,
        next_offset: i64,
        bytes: usize,
        replaces: Option<bool>,
    },
    /// A segment that takes the place of those with the same entries; `None` if it does not decode.
    Rewrite(Option<SegmentImage>),
    /// Segments up to an entry move into the base; of the base, what lies below an offset goes.
    Settle {
        upto: Option<EntryId>,
        floor: i64,
    },
    Capture {
        applied: EntryId,
        bytes: usize,
    },
    /// A snapshot that takes the place of the log, with its base; `None` if that does not decode.
    Replace {
        upto: EntryId,
        next_offset: i64,
        bytes: usize,
        base: Option<Vec<SegmentImage>>,
    },
}

impl From<Operation> for Change {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Entry {
                row,
                body,
                new_segment,
                ..
            } => Change::Entry {
                row,
                payload: body,
                new_segment,
            },
            Operation::Vote(vote) => Change::Vote(vote),
            Operation::Truncate { keep, end_offset } => Change::Truncate { keep, end_offset },
            Operation::Purge { upto, start_offset } => Change::Purge { upto, start_offset },
            Operation::Delete => Change::Delete,
            Operation::Rewrite(bytes) => Change::Rewrite(checkpoint::decode_segment(&bytes)),
            Operation::Settle { upto, floor } => Change::Settle { upto, floor },
            Operation::Capture { applied, state } => Change::Capture {
                applied,
                bytes: state.len(),
            },
            Operation::Replace {
                upto,
                next_offset,
                state,
                base,
            } => Change::Replace {
                upto,
                next_offset,
                bytes: state.len(),
                base: checkpoint::decode_base(&base).map(|(segments, _)| segments),
            },
            Operation::Snapshot {
                upto,
                next_offset,
                state,
                replaces,
            } => Change::Snapshot {
                upto,
                next_offset,
                bytes: state.len(),
                replaces,
            },
        }
    }
}

/// A data directory that is only read.
#[derive(Debug, Clone)]
pub struct Directory {
    fs: Arc<dyn Vfs>,
    root: PathBuf,
    running: bool,
}

impl Directory {
    /// # Errors
    /// If it is not there, or another process has it open and the caller does not insist.
    pub fn open(
        fs: Arc<dyn Vfs>,
        root: &Path,
        if_running: IfRunning,
    ) -> Result<Directory, OpenError> {
        let failed = |what| {
            move |source| OpenError::Io {
                what,
                path: root.to_owned(),
                source,
            }
        };
        fs.read_dir(root).map_err(failed("list"))?;
        let locked = fs.is_locked(&root.join("LOCK"));
        let running = locked.map_err(failed("see who has the lock of"))?;
        if running && if_running == IfRunning::Refuse {
            return Err(OpenError::Locked {
                path: root.to_owned(),
            });
        }
        Ok(Self {
            fs,
            root: root.to_owned(),
            running,
        })
    }

    /// A process has it open: what is read here may change meanwhile.
    pub fn is_running(&self) -> bool {
        self.running
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// # Errors
    /// If the file is missing, damaged, or of a version not known.
    pub fn format(&self) -> Result<u32, Finding> {
        let path = self.root.join(identity::FORMAT_FILE);
        let bytes = self.small_file(&path)?;
        let text = String::from_utf8_lossy(&bytes);
        let version = text.strip_prefix(identity::FORMAT).map(str::trim);
        match version.and_then(|v| v.parse().ok()) {
            Some(identity::FORMAT_VERSION) => Ok(identity::FORMAT_VERSION),
            Some(other) => Err(Finding::damage(
                &path,
                0,
                format!("format {other} is not one that this program reads"),
            )),
            None => Err(Finding::damage(&path, 0, "it is not a format of ours")),
        }
    }

    /// Who the disk is; its `clean_shutdown` says how the last run ended.
    ///
    /// # Errors
    /// If the file is missing or damaged.
    pub fn identity(&self) -> Result<DiskIdentity, Finding> {
        let path = self.root.join(identity::FILE);
        let bytes = self.small_file(&path)?;
        identity::decode(&bytes)
            .ok_or_else(|| Finding::damage(&path, 0, "it does not match its checksum"))
    }

    fn small_file(&self, path: &Path) -> Result<Bytes, Finding> {
        match read_file(&self.fs, path, SMALL_FILE_BYTES_MAX) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(Finding::damage(path, 0, "the file is missing")),
            Err(e) => Err(Finding::unreadable(path, &e)),
        }
    }

    /// `None` if none was ever taken.
    ///
    /// # Errors
    /// If it, or the identity it is checked by, is damaged.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>, Finding> {
        let path = self.root.join(checkpoint::FILE);
        let bytes = read_file(&self.fs, &path, checkpoint::BYTES_MAX)
            .map_err(|e| Finding::unreadable(&path, &e))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let head = Head::decode(&bytes, self.identity()?.id)
            .ok_or_else(|| Finding::damage(&path, 0, "it does not match its checksum"))?;
        Ok(Some(Checkpoint {
            sequence: head.position.sequence,
            file: head.position.file,
            position: head.position.at,
            last_op: head.last_op,
            bytes: bytes.len() as u64,
            head,
            path,
        }))
    }

    fn wal(&self) -> Result<WalFiles, Finding> {
        Ok(WalFiles::list(&self.fs, &self.root, self.identity()?.id)?)
    }

    /// Tells every group whose head validates, in order, those that recovery needs no more included.
    ///
    /// # Errors
    /// If the write-ahead log cannot be read at all. What is damaged inside is [`Self::verify`]'s.
    pub fn groups(&self, tell: &mut dyn FnMut(Group)) -> Result<(), Finding> {
        let from = self.checkpoint().ok().flatten().map_or(1, |c| c.sequence);
        let files = self.wal()?;
        for number in files.numbers.iter().copied() {
            let mut at = BLOCK_BYTES as u64;
            while let Some(found) = files.group_at(number, at)? {
                let bytes = found.header.group_bytes().unwrap_or(BLOCK_BYTES) as u64;
                let first_op = found.header.first_op;
                let operations = files.operations(&found)?.map(|operations| {
                    (first_op..)
                        .zip(operations)
                        .map(|(number, (key, operation))| WalOperation {
                            number,
                            key,
                            change: operation.into(),
                        })
                        .collect()
                });
                tell(Group {
                    path: files.path(number),
                    position: at,
                    bytes,
                    sequence: found.header.sequence,
                    needed: found.header.sequence >= from,
                    operations,
                });
                at += bytes;
            }
        }
        Ok(())
    }

    /// The logs that have a folder, by key.
    ///
    /// # Errors
    /// If `logs` cannot be listed.
    pub fn log_folders(&self) -> Result<Vec<LogKey>, Finding> {
        let dir = self.root.join("logs");
        let names = self.fs.read_dir(&dir);
        let names = names.map_err(|e| Finding::unreadable(&dir, &e))?;
        Ok(names.iter().filter_map(|n| n.parse().ok()).collect())
    }

    /// The ledgers in a log's folder, in order of their first offset.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn segments(&self, key: LogKey) -> Result<Vec<PathBuf>, Finding> {
        let dir = self.root.join("logs").join(key.to_string());
        let names = self.fs.read_dir(&dir);
        let names = names.map_err(|e| Finding::unreadable(&dir, &e))?;
        let ledgers = names.iter().filter(|n| n.ends_with(".idx"));
        Ok(ledgers.map(|n| dir.join(n)).collect())
    }

    /// Reads one segment of this directory, see [`SegmentReader::open`].
    ///
    /// # Errors
    /// If there is no ledger, or its header is damaged.
    pub fn segment(&self, path: &Path) -> Result<SegmentReader, Finding> {
        SegmentReader::open(&self.fs, path)
    }
}
