//! One segment read row by row, by its files alone.
//!
//! Promise: a row or a payload that is returned matches its checksum. Reads with `pread` in small pieces.
//! Not here: which rows are present; without a checkpoint a file's rows end where they validate no more.

use super::Finding;
use crate::LogKey;
use crate::ledger::{Layout, LedgerHeader, ROW_BYTES, Row, row_seed};
use crate::vfs::{Open, Vfs, VfsFile};
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows read at once.
const ROWS_AT_ONCE: usize = 1024;

/// A segment that is only read.
#[derive(Debug)]
pub struct SegmentReader {
    pub key: LogKey,
    pub base_offset: i64,
    pub base_index: u64,
    pub(super) layout: Layout,
    pub log_path: PathBuf,
    pub ledger_path: PathBuf,
    /// Lengths of the files: space taken ahead included.
    pub log_bytes: u64,
    pub ledger_bytes: u64,
    log: Option<Arc<dyn VfsFile>>,
    ledger: Arc<dyn VfsFile>,
}

/// A row and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRow {
    pub row: Row,
    /// In the ledger.
    pub at: u64,
}

impl SegmentReader {
    /// Opens the segment that a `.log` or an `.idx` file belongs to.
    ///
    /// # Errors
    /// If there is no ledger, or its header is damaged.
    pub fn open(fs: &Arc<dyn Vfs>, path: &Path) -> Result<SegmentReader, Finding> {
        let (log_path, ledger_path) = (path.with_extension("log"), path.with_extension("idx"));
        let how = Open {
            read: true,
            ..Open::default()
        };
        let open = |path: &Path| {
            fs.open(path, how)
                .map_err(|e| Finding::unreadable(path, &e))
        };
        let length = |path: &Path, file: &Arc<dyn VfsFile>| {
            file.len().map_err(|e| Finding::unreadable(path, &e))
        };
        let ledger = open(&ledger_path)?;
        let ledger_bytes = length(&ledger_path, &ledger)?;
        // Damage in one file must not hide the other.
        let log = open(&log_path).ok();
        let log_bytes = match &log {
            Some(log) => length(&log_path, log)?,
            None => 0,
        };
        let mut header = [0; ROW_BYTES];
        let header = match ledger.read_exact_at(&mut header, 0) {
            Ok(()) => LedgerHeader::decode(&header),
            Err(_) => None,
        };
        let header = header.ok_or_else(|| {
            Finding::damage(&ledger_path, 0, "the header is not that of a ledger")
        })?;
        Ok(Self {
            key: header.key,
            base_offset: header.base_offset,
            base_index: header.base_index,
            layout: header.layout,
            log_path,
            ledger_path,
            log_bytes,
            ledger_bytes,
            log,
            ledger,
        })
    }

    /// Rows the file has room for.
    pub fn rows_max(&self) -> u64 {
        (self.ledger_bytes / ROW_BYTES as u64).saturating_sub(1)
    }

    /// The first `count` rows, one by one, each as it validates or not.
    pub fn rows(&self, count: u64) -> impl Iterator<Item = Result<SegmentRow, Finding>> + '_ {
        let seed = row_seed(self.key);
        let mut piece = Vec::new();
        let mut piece_from = 0;
        (0..count).map(move |ordinal| {
            let at = (ordinal + 1) * ROW_BYTES as u64;
            let mut inside = (ordinal - piece_from) as usize * ROW_BYTES;
            if piece.get(inside..inside + ROW_BYTES).is_none() {
                piece = self.piece(at, count - ordinal)?;
                piece_from = ordinal;
                inside = 0;
            }
            piece
                .get(inside..inside + ROW_BYTES)
                .and_then(|bytes| Row::decode(bytes, seed))
                .filter(|row| self.layout.allows(self.base_index, ordinal, row.index))
                .map(|row| SegmentRow { row, at })
                .ok_or_else(|| {
                    let what = format!(
                        "row {ordinal} of the segment that begins with entry {} does not match its checksum",
                        self.base_index
                    );
                    Finding::damage(&self.ledger_path, at, what)
                })
        })
    }

    fn piece(&self, at: u64, rows: u64) -> Result<Vec<u8>, Finding> {
        let rows = usize::try_from(rows).unwrap_or(ROWS_AT_ONCE);
        let mut bytes = vec![0; rows.min(ROWS_AT_ONCE) * ROW_BYTES];
        let mut filled = 0;
        while filled < bytes.len() {
            match self
                .ledger
                .read_at(&mut bytes[filled..], at + filled as u64)
            {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) => return Err(Finding::unreadable(&self.ledger_path, &e)),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// The rows up to the first one that does not validate: all that a file tells by itself.
    pub fn valid_rows(&self) -> impl Iterator<Item = SegmentRow> + '_ {
        self.rows(self.rows_max()).map_while(Result::ok)
    }

    /// An entry's bytes in the `.log`; empty for a control entry.
    ///
    /// # Errors
    /// If they do not match their checksum.
    pub fn payload(&self, row: &Row) -> Result<Bytes, Finding> {
        if row.length == 0 {
            return Ok(Bytes::new());
        }
        let Some(log) = &self.log else {
            return Err(Finding::damage(&self.log_path, 0, "the file is missing"));
        };
        if row.end_position() > self.log_bytes {
            let what = format!("the file ends before entry {} does", row.index);
            return Err(Finding::damage(&self.log_path, self.log_bytes, what));
        }
        let mut bytes = vec![0; row.length as usize];
        log.read_exact_at(&mut bytes, row.position)
            .map_err(|e| Finding::unreadable(&self.log_path, &e))?;
        if crc32fast::hash(&bytes) != row.payload_crc {
            let what = format!(
                "entry {} (offset {}) does not match its checksum",
                row.index, row.base_offset
            );
            return Err(Finding::damage(&self.log_path, row.position, what));
        }
        Ok(bytes.into())
    }
}
