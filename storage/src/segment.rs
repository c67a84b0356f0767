//! One segment's two files: the `.log`, byte for byte what a fetch sends, and its ledger, the `.idx`.
//!
//! Promise: what is below `written_rows` can be read, by any thread, while the writer goes on.
//! Invariant: a place in a segment is written with one content only. A truncation ends the segment and
//! a successor takes the tail, so a copy that is late can never overwrite its replacement; file names
//! carry a number that no other segment of this disk ever has.
//! Not here: which rows are present (see `state`), when to write or sync (see `copier`, `checkpoint`).

use crate::error::{Damage, ReadError};
use crate::ledger::{Layout, LedgerHeader, ROW_BYTES, Row, row_seed};
use crate::open_files::OpenFiles;
use crate::vfs::{Mapped, Open, Vfs, VfsFile};
use crate::{EntryId, LogKey};
use bytes::Bytes;
use parking_lot::Mutex;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Space is taken in doubling steps: an almost idle log holds little, a busy one asks rarely.
const LOG_STEP_BYTES: Range<u64> = 64 << 10..16 << 20;
const LEDGER_STEP_BYTES: Range<u64> = 4 << 10..1 << 20;

/// A segment as retention and its owner see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInfo {
    pub base_offset: i64,
    pub last: EntryId,
    pub next_offset: i64,
    pub bytes: u64,
    pub max_timestamp: i64,
    /// Of the first record that has a time; -1 if none has.
    pub first_timestamp: i64,
    pub sealed: bool,
    /// It was rewritten, and its rewriter called it clean.
    pub clean: bool,
}

/// What is to be written for one entry.
#[derive(Debug)]
pub(crate) struct Copy {
    pub segment: Arc<SegmentFile>,
    pub row: Row,
    pub head: Bytes,
    pub body: Bytes,
}

/// What a write left to be synced.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Written {
    /// The files are new: their folder too.
    pub created: bool,
    /// The segment was clean before.
    pub newly_dirty: bool,
}

type File = Arc<dyn VfsFile>;

#[derive(Debug, Default)]
struct Handles {
    log: Option<Arc<dyn VfsFile>>,
    ledger: Option<Arc<dyn VfsFile>>,
    writable: bool,
    log_allocated: u64,
    ledger_allocated: u64,
    log_map: Option<Mapped>,
    ledger_map: Option<Mapped>,
}

#[derive(Debug)]
pub(crate) struct SegmentFile {
    pub id: u64,
    pub key: LogKey,
    pub base_offset: i64,
    pub base_index: u64,
    pub log_path: PathBuf,
    pub ledger_path: PathBuf,
    fs: Arc<dyn Vfs>,
    open_files: Arc<OpenFiles>,
    /// Rows that are in the files, with their bytes. Published with Release after both are written.
    written_rows: AtomicU64,
    written_bytes: AtomicU64,
    /// Rows found when the disk was opened: their bytes are checked when they are first read.
    inherited_rows: u64,
    inherited_bytes: u64,
    checked: Mutex<Vec<u64>>,
    /// Rows it will have when it is complete; `u64::MAX` while it grows.
    final_rows: AtomicU64,
    dropped: AtomicBool,
    dirty: AtomicBool,
    /// A write is under way that will make it dirty: its files must stay open. Changed under `handles`.
    writing: AtomicBool,
    trimmed: AtomicBool,
    pub(crate) used: AtomicBool,
    handles: Mutex<Handles>,
}

/// How a segment came to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    pub id: u64,
    pub base_offset: i64,
    pub base_index: u64,
    /// Rows and bytes that are in its files already.
    pub rows: u64,
    pub bytes: u64,
}

impl SegmentFile {
    pub fn new(
        fs: Arc<dyn Vfs>,
        open_files: Arc<OpenFiles>,
        dir: &Path,
        key: LogKey,
        origin: Origin,
    ) -> Arc<Self> {
        // Kafka's own tools take the first offset from the name up to the first dot.
        let stem = format!("{:020}.{:016x}", origin.base_offset, origin.id);
        Arc::new(Self {
            id: origin.id,
            key,
            base_offset: origin.base_offset,
            base_index: origin.base_index,
            log_path: dir.join(format!("{stem}.log")),
            ledger_path: dir.join(format!("{stem}.idx")),
            fs,
            open_files,
            written_rows: AtomicU64::new(origin.rows),
            written_bytes: AtomicU64::new(origin.bytes),
            inherited_rows: origin.rows,
            inherited_bytes: origin.bytes,
            checked: Mutex::default(),
            final_rows: AtomicU64::new(u64::MAX),
            dropped: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            writing: AtomicBool::new(false),
            trimmed: AtomicBool::new(false),
            used: AtomicBool::new(false),
            handles: Mutex::default(),
        })
    }

    /// Rows and bytes that were in the files when the disk was opened.
    pub fn inherited(&self) -> (u64, u64) {
        (self.inherited_rows, self.inherited_bytes)
    }

    pub fn written_rows(&self) -> u64 {
        self.written_rows.load(Ordering::Acquire)
    }

    pub fn holds(&self, row: &Row) -> bool {
        row.index - self.base_index < self.written_rows()
    }

    pub fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    /// From now on nothing is written to it, and its files may go.
    pub fn drop_files_later(&self) {
        self.dropped.store(true, Ordering::Release);
    }

    /// Nothing is staged for it after `rows`.
    pub fn seal(&self, rows: u64) {
        // The first seal counts: a later cut takes rows away, but those were staged and will be written.
        let _ =
            self.final_rows
                .compare_exchange(u64::MAX, rows, Ordering::AcqRel, Ordering::Acquire);
    }

    fn is_complete(&self) -> bool {
        self.written_rows() >= self.final_rows.load(Ordering::Acquire)
    }

    pub fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Writes consecutive entries of this segment. Only the copier calls it.
    ///
    /// # Errors
    /// As the file system's; on a full disk the same entries can be tried again.
    pub fn write(self: &Arc<Self>, copies: &[Copy]) -> io::Result<Written> {
        let outcome = self.write_pinned(copies);
        self.writing.store(false, Ordering::Release);
        outcome
    }

    fn write_pinned(self: &Arc<Self>, copies: &[Copy]) -> io::Result<Written> {
        let (Some(first), Some(last)) = (copies.first(), copies.last()) else {
            return Ok(Written::default());
        };
        let ordinal = first.row.index - self.base_index;
        assert_eq!(
            ordinal,
            self.written_rows(),
            "copies of a segment come in the order of their entries"
        );
        let rows = ordinal + copies.len() as u64;
        let (log, ledger, created) = self.make_room(last.row.end_position(), rows)?;
        let parts: Vec<IoSlice<'_>> = copies
            .iter()
            .filter(|c| c.row.length > 0)
            .flat_map(|c| [IoSlice::new(&c.head), IoSlice::new(&c.body)])
            .filter(|part| !part.is_empty())
            .collect();
        if !parts.is_empty() {
            log.write_all_at(&parts, first.row.position)?;
        }
        ledger.write_all_at(&[IoSlice::new(&self.ledger_bytes(copies, ordinal))], {
            if ordinal == 0 { 0 } else { row_at(ordinal) }
        })?;
        // After the bytes are written: a sync that clears the mark before has covered less.
        let newly_dirty = !self.dirty.swap(true, Ordering::AcqRel);
        self.written_bytes
            .store(last.row.end_position(), Ordering::Release);
        self.written_rows.store(rows, Ordering::Release);
        Ok(Written {
            created,
            newly_dirty,
        })
    }

    fn ledger_bytes(&self, copies: &[Copy], ordinal: u64) -> Vec<u8> {
        let seed = row_seed(self.key);
        let mut bytes = Vec::with_capacity((copies.len() + 1) * ROW_BYTES);
        if ordinal == 0 {
            let header = LedgerHeader {
                layout: Layout::Dense,
                key: self.key,
                base_offset: self.base_offset,
                base_index: self.base_index,
            };
            bytes.extend_from_slice(&header.encode());
        }
        for copy in copies {
            bytes.extend_from_slice(&copy.row.encode(seed));
        }
        bytes
    }

    fn make_room(self: &Arc<Self>, log_bytes: u64, rows: u64) -> io::Result<(File, File, bool)> {
        let mut handles = self.handles.lock();
        self.writing.store(true, Ordering::Release);
        let opened = !handles.writable;
        // Until the first row is in: an attempt that found no space may have left the files behind.
        let created = self.written_rows() == 0;
        if opened {
            if created && let Some(dir) = self.log_path.parent() {
                self.fs.create_dir_all(dir)?;
            }
            let how = Open {
                read: true,
                write: true,
                create: created,
                ..Open::default()
            };
            let log = self.fs.open(&self.log_path, how)?;
            let ledger = self.fs.open(&self.ledger_path, how)?;
            handles.log_allocated = log.len()?;
            handles.ledger_allocated = ledger.len()?;
            handles.log = Some(log);
            handles.ledger = Some(ledger);
            handles.writable = true;
        }
        let (Some(log), Some(ledger)) = (handles.log.clone(), handles.ledger.clone()) else {
            return Err(io::Error::other("a writable segment has both files open"));
        };
        grow(
            &*log,
            &mut handles.log_allocated,
            log_bytes,
            &LOG_STEP_BYTES,
        )?;
        let ledger_bytes = row_at(rows);
        grow(
            &*ledger,
            &mut handles.ledger_allocated,
            ledger_bytes,
            &LEDGER_STEP_BYTES,
        )?;
        drop(handles);
        if opened {
            self.open_files.opened(self);
        }
        Ok((log, ledger, created))
    }

    /// Gives back the space behind the last entry of a complete segment: no map reaches behind it,
    /// see [`Self::map`]. True if there is something to sync that was not before.
    pub fn trim(&self) -> io::Result<bool> {
        if !self.is_complete() || self.is_dropped() {
            return Ok(false);
        }
        let mut handles = self.handles.lock();
        let mut fresh = false;
        let bytes = self.written_bytes.load(Ordering::Acquire);
        let rows = self.written_rows();
        if handles.writable {
            let Handles {
                log,
                ledger,
                log_allocated,
                ledger_allocated,
                ..
            } = &mut *handles;
            for (file, allocated, len) in [
                (log, log_allocated, bytes),
                (ledger, ledger_allocated, row_at(rows)),
            ] {
                if let Some(file) = file
                    && *allocated > len
                {
                    file.set_len(len)?;
                    *allocated = len;
                    fresh |= !self.dirty.swap(true, Ordering::AcqRel);
                }
            }
        }
        self.trimmed.store(true, Ordering::Release);
        Ok(fresh)
    }

    /// Makes what was written durable. An error is final: see the head of `checkpoint`.
    pub fn sync(&self) -> io::Result<()> {
        if self.is_dropped() || !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let (log, ledger) = {
            let handles = self.handles.lock();
            (handles.log.clone(), handles.ledger.clone())
        };
        let (Some(log), Some(ledger)) = (log, ledger) else {
            // A new descriptor would say success and know nothing of a write that was lost.
            return Err(io::Error::other(
                "a written segment was closed before its sync",
            ));
        };
        log.sync_data()?;
        ledger.sync_data()?;
        if self.trimmed.load(Ordering::Acquire) {
            self.let_go();
        }
        Ok(())
    }

    /// A complete, synced segment needs no descriptor: its maps live without.
    fn let_go(&self) {
        let mut handles = self.handles.lock();
        if !self.is_dirty() {
            handles.log = None;
            handles.ledger = None;
            handles.writable = false;
        }
    }

    /// Closes everything if nothing is waiting to be synced: a later error would go unseen otherwise.
    pub fn close_idle(&self) -> bool {
        let mut handles = self.handles.lock();
        if self.is_dirty() || self.writing.load(Ordering::Acquire) {
            return false;
        }
        *handles = Handles::default();
        true
    }

    pub fn remove(&self) -> io::Result<()> {
        *self.handles.lock() = Handles::default();
        for path in [&self.log_path, &self.ledger_path] {
            match self.fs.remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Says what is wrong if the files are shorter than what is known to be in them.
    pub fn check_lengths(&self, rows: u64, bytes: u64) -> Result<(), ReadError> {
        for (path, want) in [(&self.log_path, bytes), (&self.ledger_path, row_at(rows))] {
            let len = match self.fs.file_len(path) {
                Ok(len) => len,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(damage(path, 0, "the file is missing").into());
                }
                Err(e) => return Err(unreadable(path, &e)),
            };
            if len < want {
                let what = format!("the file ends here, {want} bytes were made durable");
                return Err(damage(path, len, &what).into());
            }
        }
        Ok(())
    }

    /// The `.idx` up to a row, which must be written.
    pub fn ledger_map(self: &Arc<Self>, rows: u64) -> Result<Mapped, ReadError> {
        let want = row_at(rows);
        let written = row_at(self.written_rows());
        self.map(&self.ledger_path, want, written, |h| {
            (&mut h.ledger, &mut h.ledger_map)
        })
    }

    /// Its rows up to `rows`, which must be written.
    pub fn ledger(self: &Arc<Self>, rows: u64) -> Result<Ledger, ReadError> {
        let map = self.ledger_map(rows)?;
        let ours = |h: &LedgerHeader| {
            (h.key, h.base_offset, h.base_index) == (self.key, self.base_offset, self.base_index)
        };
        let Some(header) = LedgerHeader::decode(&map).filter(ours) else {
            let what = "the header is not that of this log's ledger";
            return Err(damage(&self.ledger_path, 0, what).into());
        };
        Ok(Ledger {
            layout: header.layout,
            map,
            seed: row_seed(self.key),
            rows,
            base_index: self.base_index,
            path: self.ledger_path.clone(),
        })
    }

    /// The `.log` up to `bytes`, which must be written.
    pub fn log(self: &Arc<Self>, bytes: u64) -> Result<Mapped, ReadError> {
        let written = self.written_bytes.load(Ordering::Acquire);
        self.map(&self.log_path, bytes, written, |h| {
            (&mut h.log, &mut h.log_map)
        })
    }

    /// A map covers what is written and nothing behind it: the file is only ever cut there.
    fn map(
        self: &Arc<Self>,
        path: &Path,
        want: u64,
        written: u64,
        of: impl for<'a> Fn(
            &'a mut Handles,
        ) -> (&'a mut Option<Arc<dyn VfsFile>>, &'a mut Option<Mapped>),
    ) -> Result<Mapped, ReadError> {
        self.used.store(true, Ordering::Relaxed);
        let mut handles = self.handles.lock();
        let fresh = handles.log.is_none() && handles.log_map.is_none();
        let fresh = fresh && handles.ledger.is_none() && handles.ledger_map.is_none();
        let (file, map) = of(&mut handles);
        if let Some(map) = map.as_ref()
            && map.len() as u64 >= want
        {
            return Ok(map.clone());
        }
        let opened = match file.as_ref() {
            Some(file) => file.clone(),
            None => self.open_to_read(path)?,
        };
        let len = opened.len().map_err(|e| unreadable(path, &e))?;
        if len < written {
            let what = format!("the file ends here, {written} bytes were written");
            return Err(damage(path, len, &what).into());
        }
        let mapped = opened.map(written).map_err(|e| unreadable(path, &e))?;
        *map = Some(mapped.clone());
        drop(handles);
        if fresh {
            self.open_files.opened(self);
        }
        Ok(mapped)
    }

    fn open_to_read(&self, path: &Path) -> Result<Arc<dyn VfsFile>, ReadError> {
        let how = Open {
            read: true,
            ..Open::default()
        };
        match self.fs.open(path, how) {
            Ok(file) => Ok(file),
            // Its mark is set before its files go.
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.is_dropped() => {
                Err(ReadError::Moved {
                    path: path.to_owned(),
                })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(damage(path, 0, "the file is missing").into())
            }
            Err(e) => Err(unreadable(path, &e)),
        }
    }

    /// True if the payloads of these rows come from before this start and were not read since.
    pub fn is_unchecked(&self, ordinals: &Range<u64>) -> bool {
        if ordinals.start >= self.inherited_rows {
            return false;
        }
        let checked = self.checked.lock();
        let end = ordinals.end.min(self.inherited_rows);
        (ordinals.start..end).any(|o| !is_set(&checked, o))
    }

    /// Compares payloads with the checksums in their rows, once per row and start.
    pub fn check(self: &Arc<Self>, ordinals: &Range<u64>) -> Result<(), ReadError> {
        let end = ordinals.end.min(self.inherited_rows);
        let ledger = self.ledger(end)?;
        for ordinal in ordinals.start..end {
            if is_set(&self.checked.lock(), ordinal) {
                continue;
            }
            let row = ledger.row(ordinal)?;
            let log = self.log(row.end_position())?;
            self.check_payload(&row, &log)?;
            set(&mut self.checked.lock(), ordinal);
        }
        Ok(())
    }

    pub fn check_payload(&self, row: &Row, log: &[u8]) -> Result<(), ReadError> {
        let range = row.position as usize..row.end_position() as usize;
        let sound = log
            .get(range)
            .is_some_and(|bytes| row.length == 0 || crc32fast::hash(bytes) == row.payload_crc);
        if sound {
            Ok(())
        } else {
            let what = format!(
                "entry {} (offset {}) does not match its checksum",
                row.index, row.base_offset
            );
            Err(damage(&self.log_path, row.position, &what).into())
        }
    }
}

/// Rows of a segment, over a map.
#[derive(Debug)]
pub(crate) struct Ledger {
    layout: Layout,
    map: Mapped,
    seed: u32,
    rows: u64,
    base_index: u64,
    path: PathBuf,
}

impl Ledger {
    pub fn row(&self, ordinal: u64) -> Result<Row, ReadError> {
        let at = row_at(ordinal) as usize;
        self.map
            .get(at..at + ROW_BYTES)
            .and_then(|b| Row::decode(b, self.seed))
            .filter(|row| self.layout.allows(self.base_index, ordinal, row.index))
            .ok_or_else(|| {
                damage(&self.path, at as u64, "the row does not match its checksum").into()
            })
    }

    /// The first row of `from..` for which `before` is false; the number of rows if there is none.
    pub fn partition_point(
        &self,
        from: u64,
        before: impl Fn(&Row) -> bool,
    ) -> Result<u64, ReadError> {
        let (mut low, mut high) = (from, self.rows);
        while low < high {
            let middle = low + (high - low) / 2;
            if before(&self.row(middle)?) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

fn row_at(ordinal: u64) -> u64 {
    (ordinal + 1) * ROW_BYTES as u64
}

fn is_set(bits: &[u64], at: u64) -> bool {
    bits.get((at / 64) as usize)
        .is_some_and(|word| word & (1 << (at % 64)) != 0)
}

fn set(bits: &mut Vec<u64>, at: u64) {
    let word = (at / 64) as usize;
    if bits.len() <= word {
        bits.resize(word + 1, 0);
    }
    bits[word] |= 1 << (at % 64);
}

fn grow(file: &dyn VfsFile, allocated: &mut u64, need: u64, steps: &Range<u64>) -> io::Result<()> {
    if need > *allocated {
        let step = (*allocated).clamp(steps.start, steps.end);
        let to = (*allocated + step).max(need.next_multiple_of(steps.start));
        // The file itself stays as long as its content: anybody's tool may read it at any time.
        file.reserve(to)?;
        *allocated = to;
    }
    Ok(())
}

pub(crate) fn damage(path: &Path, position: u64, what: &str) -> Damage {
    Damage {
        path: path.to_owned(),
        position,
        what: what.to_owned(),
    }
}

fn unreadable(path: &Path, e: &io::Error) -> ReadError {
    ReadError::Io {
        path: path.to_owned(),
        what: e.to_string(),
    }
}
