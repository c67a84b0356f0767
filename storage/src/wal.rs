//! The files of the shared write-ahead log: numbered, of one size, written in order, recycled.
//!
//! Promise: what [`Wal::write`] was given is durable when it returns `Ok`. An error is final: the
//! same bytes are never written twice, because a disk that failed once may say success the next time.
//! Invariant: a file's number is never used again; one group is in flight at a time; a group lies in
//! one file.
//! Not here: what groups say (see `group`), who waits for them (see `commit`).

use crate::codec::{Put, crc, u32_at, u64_at};
use crate::group::BLOCK_BYTES;
use crate::mmap::AlignedBuf;
use crate::vfs::{Open, Vfs, VfsFile};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::warn;

const MAGIC: [u8; 8] = *b"logd.wal";
const VERSION: u32 = 1;
const HEADER_CRC_AT: usize = 60;
/// Zeroes a new file in pieces of this size.
const ZERO_BYTES: usize = 1 << 20;

/// Where the next group goes: a checkpoint says from where to replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    pub sequence: u64,
    pub file: u64,
    pub at: u64,
}

/// A buffer for direct writes that grows as it must.
#[derive(Debug, Default)]
pub(crate) struct Aligned(Option<AlignedBuf>);

impl Aligned {
    /// `len` bytes, with whatever they held before.
    pub fn get(&mut self, len: usize) -> &mut [u8] {
        if self.0.as_ref().is_none_or(|b| b.len() < len) {
            self.0 = None;
        }
        &mut self
            .0
            .get_or_insert_with(|| AlignedBuf::new(len.next_power_of_two()))[..len]
    }

    /// Gives memory back after an unusually large group.
    pub fn shrink(&mut self, keep: usize) {
        if self.0.as_ref().is_some_and(|b| b.len() > keep) {
            self.0 = None;
        }
    }
}

/// The seed of every checksum in a file of this number on this disk.
pub(crate) fn file_seed(disk: u128, number: u64) -> u32 {
    let mut put = Put::default();
    put.u128(disk);
    put.u64(number);
    crc(0, &put.0)
}

pub(crate) fn encode_header(out: &mut [u8], disk: u128, number: u64, file_bytes: u64) {
    out.fill(0);
    out[0..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
    out[16..32].copy_from_slice(&disk.to_le_bytes());
    out[32..40].copy_from_slice(&number.to_le_bytes());
    out[40..48].copy_from_slice(&file_bytes.to_le_bytes());
    let sum = crc(0, &out[..HEADER_CRC_AT]);
    out[HEADER_CRC_AT..HEADER_CRC_AT + 4].copy_from_slice(&sum.to_le_bytes());
}

/// What a file's first bytes say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WalHead {
    pub number: u64,
    /// How long the file was made before anything was written to it.
    pub file_bytes: u64,
}

/// `None` if these are not the first bytes of a file of this disk.
pub(crate) fn decode_header(b: &[u8], disk: u128) -> Option<WalHead> {
    let sound = b.len() >= HEADER_CRC_AT + 4
        && b[..8] == MAGIC
        && u32_at(b, 8) == VERSION
        && b[16..32] == disk.to_le_bytes()
        && crc(0, &b[..HEADER_CRC_AT]) == u32_at(b, HEADER_CRC_AT);
    sound.then(|| WalHead {
        number: u64_at(b, 32),
        file_bytes: u64_at(b, 40),
    })
}

pub(crate) fn file_name(number: u64) -> String {
    format!("{number:020}.wal")
}

/// The number in a file's name; spare files have none.
pub(crate) fn file_number(name: &str) -> Option<u64> {
    name.strip_suffix(".wal")?.parse().ok()
}

/// An open file and whether its writes are durable when they return.
#[derive(Debug, Clone)]
struct WalFile {
    number: u64,
    file: Arc<dyn VfsFile>,
    direct: bool,
}

/// What both the committer and whoever prepares files need.
#[derive(Debug)]
pub(crate) struct WalFolder {
    pub fs: Arc<dyn Vfs>,
    pub dir: PathBuf,
    pub disk: u128,
    pub file_bytes: u64,
}

impl WalFolder {
    pub fn path(&self, number: u64) -> PathBuf {
        self.dir.join(file_name(number))
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<(Arc<dyn VfsFile>, bool)> {
        let how = Open {
            read: true,
            write: true,
            create,
            direct: true,
            ..Open::default()
        };
        match self.fs.open(path, how) {
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                let how = Open {
                    direct: false,
                    ..how
                };
                Ok((self.fs.open(path, how)?, false))
            }
            other => Ok((other?, true)),
        }
    }

    /// Writes what was read back from a file once more to where it lies; durable on return.
    pub fn write_again(&self, number: u64, at: u64, bytes: &[u8]) -> io::Result<()> {
        let (file, direct) = self.open(&self.path(number), false)?;
        let wal_file = WalFile {
            number,
            file,
            direct,
        };
        let mut buffer = Aligned::default();
        let aligned = buffer.get(bytes.len());
        aligned.copy_from_slice(bytes);
        wal_file.write(aligned, at)
    }

    /// Makes a file of this number: a spare one if there is one, else a new one, zeroed if there is time.
    fn prepare(&self, number: u64, spare: Option<&Path>, zero: bool) -> io::Result<WalFile> {
        let path = self.path(number);
        let recycled = match spare.map(|spare| self.fs.rename(spare, &path)) {
            // An earlier attempt got this far and failed later.
            Some(Err(e)) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Some(Ok(())) => true,
            _ => false,
        };
        let (file, direct) = self.open(&path, !recycled)?;
        if file.len()? < self.file_bytes {
            file.allocate(self.file_bytes)?;
        }
        let wal_file = WalFile {
            number,
            file,
            direct,
        };
        if zero && !recycled {
            self.zero(&wal_file)?;
        }
        let mut block = Aligned::default();
        let header = block.get(BLOCK_BYTES);
        encode_header(header, self.disk, number, self.file_bytes);
        wal_file.write(header, 0)?;
        wal_file.file.sync_data()?;
        self.fs.sync_dir(&self.dir)?;
        Ok(wal_file)
    }

    /// A write into allocated but never written blocks costs a second one for the file system's books.
    fn zero(&self, file: &WalFile) -> io::Result<()> {
        let mut zeroes = Aligned::default();
        let mut at = 0;
        while at < self.file_bytes {
            let len = ZERO_BYTES.min((self.file_bytes - at) as usize);
            let piece = zeroes.get(len);
            piece.fill(0);
            if file.direct {
                file.file.write_aligned_at(piece, at)?;
            } else {
                file.file.write_all_at(&[IoSlice::new(piece)], at)?;
            }
            at += len as u64;
        }
        Ok(())
    }
}

impl WalFile {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        if self.direct {
            self.file.write_aligned_at(bytes, at)
        } else {
            self.file.write_all_at(&[IoSlice::new(bytes)], at)?;
            self.file.sync_data()
        }
    }
}

/// Files beside the one that is written: those still needed, one prepared, spares.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    /// Numbers of files that a recovery would read, the one being written last.
    used: VecDeque<u64>,
    prepared: Option<WalFile>,
    spares: Vec<PathBuf>,
    next_number: u64,
    next_spare: u64,
}

impl Shelf {
    pub fn new(next_number: u64, used: Vec<u64>, spares: Vec<PathBuf>) -> Self {
        Self {
            used: used.into(),
            prepared: None,
            spares,
            next_number,
            // Spares of earlier starts have names already; ours count from the number nothing had yet.
            next_spare: next_number,
        }
    }

    pub fn used_files(&self) -> usize {
        self.used.len()
    }

    pub fn wants_preparing(&self) -> bool {
        self.prepared.is_none()
    }
}

/// What is written to.
#[derive(Debug)]
pub(crate) struct Wal {
    pub folder: Arc<WalFolder>,
    current: Option<WalFile>,
    at: u64,
    pub sequence: u64,
    told_fallback: bool,
}

impl Wal {
    pub fn new(folder: Arc<WalFolder>, sequence: u64) -> Self {
        Self {
            folder,
            current: None,
            at: 0,
            sequence,
            told_fallback: false,
        }
    }

    pub fn position(&self) -> Position {
        Position {
            sequence: self.sequence,
            file: self.current.as_ref().map_or(0, |f| f.number),
            at: self.at,
        }
    }

    /// The seed for a group written next.
    pub fn seed(&self) -> u32 {
        file_seed(
            self.folder.disk,
            self.current.as_ref().map_or(0, |f| f.number),
        )
    }

    /// Makes sure that a group of `len` bytes fits into the current file.
    ///
    /// # Errors
    /// Nothing was written: a full disk can be tried again.
    pub fn make_room(&mut self, len: usize, shelf: &parking_lot::Mutex<Shelf>) -> io::Result<()> {
        let fits = self.current.is_some() && self.at + len as u64 <= self.folder.file_bytes;
        if fits {
            return Ok(());
        }
        let file = self.take_file(&mut shelf.lock())?;
        if !file.direct && !self.told_fallback {
            self.told_fallback = true;
            warn!(
                dir = %self.folder.dir.display(),
                "the file system refuses direct writes: the write-ahead log uses pwrite and fdatasync"
            );
        }
        self.current = Some(file);
        self.at = BLOCK_BYTES as u64;
        Ok(())
    }

    fn take_file(&self, shelf: &mut Shelf) -> io::Result<WalFile> {
        let file = match shelf.prepared.take() {
            Some(file) => file,
            None => prepare_next(&self.folder, shelf, false)?,
        };
        shelf.used.push_back(file.number);
        Ok(file)
    }

    /// Writes a group at the current position; it is durable on return.
    pub fn write(&mut self, group: &[u8]) -> io::Result<()> {
        let Some(file) = self.current.as_ref() else {
            return Err(io::Error::other("no write-ahead log file is open"));
        };
        file.write(group, self.at)?;
        self.at += group.len() as u64;
        self.sequence += 1;
        Ok(())
    }
}

fn prepare_next(folder: &WalFolder, shelf: &mut Shelf, zero: bool) -> io::Result<WalFile> {
    let number = shelf.next_number;
    let spare = shelf.spares.last().cloned();
    let file = folder.prepare(number, spare.as_deref(), zero)?;
    shelf.spares.pop();
    shelf.next_number += 1;
    Ok(file)
}

/// Gets the next file ready, so that the committer need not.
pub(crate) fn prepare_ahead(
    folder: &WalFolder,
    shelf: &parking_lot::Mutex<Shelf>,
    zero: bool,
) -> io::Result<()> {
    let (number, spare) = {
        let mut shelf = shelf.lock();
        if !shelf.wants_preparing() {
            return Ok(());
        }
        // The number is taken before the work, outside the lock: the committer may need one meanwhile.
        shelf.next_number += 1;
        (shelf.next_number - 1, shelf.spares.pop())
    };
    let prepared = folder.prepare(number, spare.as_deref(), zero);
    let mut shelf = shelf.lock();
    match prepared {
        // The committer went past it: a lower number behind a higher one would be read out of order.
        Ok(_) if shelf.used.back().is_some_and(|last| *last > number) => {
            retire(folder, &mut shelf, number)
        }
        Ok(file) => {
            shelf.prepared = Some(file);
            Ok(())
        }
        Err(e) => {
            shelf.spares.extend(spare);
            Err(e)
        }
    }
}

/// Files below `first_needed` become spares, at most `spares_max`; the rest is removed.
pub(crate) fn recycle(
    folder: &WalFolder,
    shelf: &parking_lot::Mutex<Shelf>,
    first_needed: u64,
    spares_max: usize,
) -> io::Result<()> {
    let mut shelf = shelf.lock();
    while shelf.used.front().is_some_and(|n| *n < first_needed) {
        if let Some(number) = shelf.used.front().copied() {
            if shelf.spares.len() < spares_max {
                retire(folder, &mut shelf, number)?;
            } else {
                folder.fs.remove_file(&folder.path(number))?;
            }
            shelf.used.pop_front();
        }
    }
    Ok(())
}

fn retire(folder: &WalFolder, shelf: &mut Shelf, number: u64) -> io::Result<()> {
    let spare = folder.dir.join(format!("{:020}.spare", shelf.next_spare));
    shelf.next_spare += 1;
    folder.fs.rename(&folder.path(number), &spare)?;
    shelf.spares.push(spare);
    Ok(())
}
