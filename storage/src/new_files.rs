//! A segment's two files while they are written by somebody other than the copier: whole, then durable, then
//! named by an operation.
//!
//! Invariant: both files, their names and their folder are synced before anybody is told of them. A failed
//! sync is final: the disk is poisoned. Whoever gives up leaves nothing behind.
//! Not here: what is in them (`rewrite`, `files`).

use crate::engine::Engine;
use crate::log::Log;
use crate::segment::{Origin, SegmentFile};
use crate::vfs::{Open, VfsFile, is_shortage};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why files are not there.
#[derive(Debug)]
pub(crate) enum NewFilesError {
    NoSpace,
    /// The log was deleted, and its folder with it.
    Deleted,
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

#[derive(Debug)]
pub(crate) struct NewFiles {
    log_of: Log,
    pub segment: Arc<SegmentFile>,
    pub log: Arc<dyn VfsFile>,
    pub ledger: Arc<dyn VfsFile>,
}

impl NewFiles {
    /// Creates both, under a number that no other segment has.
    pub fn create(of: &Log, base_offset: i64, base_index: u64) -> Result<Self, NewFilesError> {
        let engine = &of.0.engine;
        let origin = Origin {
            id: engine.next_segment_id(),
            base_offset,
            base_index,
            rows: 0,
            bytes: 0,
        };
        let segment = engine.segment(of.key(), origin);
        let how = Open {
            read: true,
            write: true,
            create: true,
            ..Open::default()
        };
        let open = |path: &Path| {
            let opened = engine.fs.open(path, how);
            opened.map_err(|e| failed(of, "create", path, e))
        };
        let log = open(&segment.log_path)?;
        let ledger = open(&segment.ledger_path).inspect_err(|_| discard(&segment))?;
        Ok(Self {
            log_of: of.clone(),
            segment,
            log,
            ledger,
        })
    }

    /// Makes what was written durable, and the names.
    pub fn sync(&self) -> Result<(), NewFilesError> {
        let engine: &Engine = &self.log_of.0.engine;
        let dir = engine.log_dir(self.log_of.key());
        let logs = engine.root.join("logs");
        let synced = (self.log.sync_data())
            .and_then(|()| self.ledger.sync_data())
            .map_err(|e| (self.segment.log_path.clone(), e))
            .and_then(|()| engine.fs.sync_dir(&dir).map_err(|e| (dir, e)))
            // The log's folder may itself be new.
            .and_then(|()| engine.fs.sync_dir(&logs).map_err(|e| (logs, e)));
        synced.map_err(|(path, source)| {
            if !is_shortage(&source) && !is_gone(&self.log_of, &source) {
                // As everywhere: never again, and nothing that came after it is believed.
                engine.poison(format!("syncing {}: {source}", path.display()));
            }
            failed(&self.log_of, "sync", &path, source)
        })
    }

    pub fn discard(&self) {
        discard(&self.segment);
    }

    /// What became of a write to one of them.
    pub fn failed(&self, source: io::Error) -> NewFilesError {
        failed(&self.log_of, "write", &self.segment.log_path, source)
    }
}

/// Removes the files of a segment that is nobody's.
pub(crate) fn discard(segment: &SegmentFile) {
    segment.drop_files_later();
    if let Err(error) = segment.remove() {
        tracing::warn!(path = %segment.log_path.display(), %error, "files of a segment that is not used stay until the next start");
    }
}

fn is_gone(of: &Log, source: &io::Error) -> bool {
    source.kind() == io::ErrorKind::NotFound && of.0.state.lock().deleted
}

fn failed(of: &Log, what: &'static str, path: &Path, source: io::Error) -> NewFilesError {
    if is_shortage(&source) {
        NewFilesError::NoSpace
    } else if is_gone(of, &source) {
        NewFilesError::Deleted
    } else {
        let path = path.to_owned();
        NewFilesError::Io { what, path, source }
    }
}
