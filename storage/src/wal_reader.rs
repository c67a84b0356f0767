//! The write-ahead log read back: which groups there are, where they end, what is damage.
//!
//! Promise: nothing is written. The rule for what does not validate: one group is in flight at a time, so
//! a bad group is a torn tail if and only if no valid group has a higher number. Anything else is damage to
//! what may have been acknowledged, and is not guessed at.
//! Not here: what the operations do (see `recovery`), how groups are written (see `wal`).

use crate::LogKey;
use crate::error::OpenError;
use crate::group::{BLOCK_BYTES, GroupHeader, HEADER_BYTES, Operation};
use crate::vfs::{Open, Vfs, VfsFile};
use crate::wal::{Position, WalHead, decode_header, file_name, file_number, file_seed};
use bytes::Bytes;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::warn;

const FIRST_GROUP_AT: u64 = BLOCK_BYTES as u64;

/// A group whose head validates, and where it lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub file: u64,
    pub at: u64,
    pub header: GroupHeader,
}

/// The groups to replay.
#[derive(Debug)]
pub(crate) struct Chain {
    pub groups: Vec<Found>,
    pub end: Position,
    /// The last group was torn by a crash, never acknowledged, and is not among the groups.
    pub torn: Option<Found>,
}

/// The files as they lie on the disk.
pub(crate) struct WalFiles {
    fs: Arc<dyn Vfs>,
    dir: PathBuf,
    disk: u128,
    /// Numbered files with a valid head, in order.
    pub numbers: Vec<u64>,
    /// Numbered files without one: they were being made ready when the power went, see [`Self::check`].
    pub headless: Vec<u64>,
    pub spares: Vec<PathBuf>,
    pub highest: u64,
}

pub(crate) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { what, path, source }
}

impl WalFiles {
    pub fn list(fs: &Arc<dyn Vfs>, root: &Path, disk: u128) -> Result<Self, OpenError> {
        let dir = root.join("wal");
        let mut files = Self {
            fs: fs.clone(),
            dir: dir.clone(),
            disk,
            numbers: Vec::new(),
            headless: Vec::new(),
            spares: Vec::new(),
            highest: 0,
        };
        for name in fs.read_dir(&dir).map_err(io_error("list", &dir))? {
            if let Some(number) = file_number(&name).filter(|n| file_name(*n) == name) {
                files.highest = files.highest.max(number);
                match files.head(number)? {
                    Some(head) if head.number == number => files.numbers.push(number),
                    _ => files.headless.push(number),
                }
            } else if name.ends_with(".spare") {
                files.spares.push(dir.join(&name));
            }
        }
        files.numbers.sort_unstable();
        Ok(files)
    }

    pub fn path(&self, number: u64) -> PathBuf {
        self.dir.join(file_name(number))
    }

    /// Files that hold nothing that is needed.
    pub fn reusable(&self) -> Vec<PathBuf> {
        let headless = self.headless.iter().map(|n| self.path(*n));
        self.spares.iter().cloned().chain(headless).collect()
    }

    pub fn open(&self, number: u64) -> Result<Arc<dyn VfsFile>, OpenError> {
        let path = self.path(number);
        let how = Open {
            read: true,
            ..Open::default()
        };
        self.fs.open(&path, how).map_err(io_error("open", &path))
    }

    pub fn len(&self, number: u64) -> Result<u64, OpenError> {
        let path = self.path(number);
        self.fs.file_len(&path).map_err(io_error("measure", &path))
    }

    fn head(&self, number: u64) -> Result<Option<WalHead>, OpenError> {
        let head = self.read(&*self.open(number)?, number, 0, BLOCK_BYTES)?;
        Ok(decode_header(&head, self.disk))
    }

    /// Up to `len` bytes; fewer at the end of the file.
    pub fn read(
        &self,
        file: &dyn VfsFile,
        number: u64,
        at: u64,
        len: usize,
    ) -> Result<Bytes, OpenError> {
        let path = self.path(number);
        let there = file
            .len()
            .map_err(io_error("measure", &path))?
            .saturating_sub(at);
        let mut bytes = vec![0; len.min(usize::try_from(there).unwrap_or(usize::MAX))];
        file.read_exact_at(&mut bytes, at)
            .map_err(io_error("read", &path))?;
        Ok(Bytes::from(bytes))
    }

    fn header_at(
        &self,
        file: &dyn VfsFile,
        number: u64,
        at: u64,
        seed: u32,
    ) -> Result<Option<GroupHeader>, OpenError> {
        let bytes = self.read(file, number, at, HEADER_BYTES)?;
        Ok(GroupHeader::decode(&bytes, seed))
    }

    /// The group at a place, if its head validates.
    pub fn group_at(&self, number: u64, at: u64) -> Result<Option<Found>, OpenError> {
        let seed = file_seed(self.disk, number);
        let header = self.header_at(&*self.open(number)?, number, at, seed)?;
        Ok(header.map(|header| Found {
            file: number,
            at,
            header,
        }))
    }

    /// A group's operations; `None` if it does not validate as a whole.
    pub fn operations(&self, found: &Found) -> Result<Option<Vec<(LogKey, Operation)>>, OpenError> {
        let Some(group) = self.bytes(found)? else {
            return Ok(None);
        };
        Ok(found
            .header
            .operations(&group, file_seed(self.disk, found.file)))
    }

    /// A group as it lies there; `None` if its head cannot be.
    pub fn bytes(&self, found: &Found) -> Result<Option<Bytes>, OpenError> {
        let Some(len) = found.header.group_bytes() else {
            return Ok(None);
        };
        self.read(&*self.open(found.file)?, found.file, found.at, len)
            .map(Some)
    }

    /// The groups from a position on, by their heads; stops where the next number does not follow.
    fn chain(&self, from: Position) -> Result<Vec<Found>, OpenError> {
        let mut chain: Vec<Found> = Vec::new();
        for number in self.numbers.iter().copied().filter(|n| *n >= from.file) {
            let file = self.open(number)?;
            let seed = file_seed(self.disk, number);
            let mut at = first_at(number, from);
            while let Some(header) = self.header_at(&*file, number, at, seed)? {
                let next = from.sequence + chain.len() as u64;
                if header.sequence != next && !self.replaces_torn(&chain, number, &header)? {
                    break;
                }
                let Some(len) = header.group_bytes() else {
                    break;
                };
                chain.truncate((header.sequence - from.sequence) as usize);
                chain.push(Found {
                    file: number,
                    at,
                    header,
                });
                at += len as u64;
            }
        }
        Ok(chain)
    }

    /// A start after a crash gives the number of the torn group to its own first one, in a new file: the
    /// torn one must not count a second time just because its head is whole.
    fn replaces_torn(
        &self,
        chain: &[Found],
        number: u64,
        header: &GroupHeader,
    ) -> Result<bool, OpenError> {
        match chain.last() {
            Some(last) if last.file < number && last.header.sequence == header.sequence => {
                Ok(self.operations(last)?.is_none())
            }
            _ => Ok(false),
        }
    }

    /// A valid group that `wanted` says yes to, in one file from a place on, by the seed of any file's number.
    fn scan(
        &self,
        number: u64,
        mut at: u64,
        seed: u32,
        wanted: impl Fn(&GroupHeader) -> bool,
    ) -> Result<Option<Found>, OpenError> {
        let file = self.open(number)?;
        let len = self.len(number)?;
        while at < len {
            if let Some(header) = self
                .header_at(&*file, number, at, seed)?
                .filter(|h| wanted(h))
            {
                return Ok(Some(Found {
                    file: number,
                    at,
                    header,
                }));
            }
            at += BLOCK_BYTES as u64;
        }
        Ok(None)
    }

    /// A valid group with a higher number than the chain's end, anywhere behind it.
    fn beyond(&self, end: Position) -> Result<Option<Found>, OpenError> {
        for number in self.numbers.iter().copied().filter(|n| *n >= end.file) {
            let seed = file_seed(self.disk, number);
            let later = |h: &GroupHeader| h.sequence > end.sequence;
            if let Some(found) = self.scan(number, first_at(number, end), seed, later)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The groups from a checkpoint's position on, without a torn last one.
    ///
    /// # Errors
    /// If a group or a file is damaged that may have been acknowledged.
    pub fn sound_chain(&self, from: Position) -> Result<Chain, OpenError> {
        self.check(from)?;
        let mut groups = self.chain(from)?;
        let mut torn = None;
        if let Some(last) = groups.last().copied()
            && self.operations(&last)?.is_none()
        {
            warn!(file = %self.path(last.file).display(), position = last.at, "the last group was never acknowledged and is cut off");
            torn = groups.pop();
        }
        let end = match groups.last() {
            Some(last) => Position {
                sequence: last.header.sequence + 1,
                file: last.file,
                at: last.at + last.header.group_bytes().unwrap_or(0) as u64,
            },
            None => from,
        };
        match self.beyond(end)? {
            None => Ok(Chain { groups, end, torn }),
            Some(later) => {
                let (file, at) = self.place_of_missing(end, &later);
                let what = format!(
                    "group {} is missing or torn, but group {} behind it is whole",
                    end.sequence, later.header.sequence
                );
                Err(self.corrupt(file, at, what))
            }
        }
    }

    /// Where the group should be that a later one shows to be missing.
    fn place_of_missing(&self, end: Position, later: &Found) -> (u64, u64) {
        let in_later_file = later.file != end.file
            && (later.at > FIRST_GROUP_AT || !self.numbers.contains(&end.file));
        if in_later_file {
            (later.file, FIRST_GROUP_AT)
        } else {
            (end.file, end.at)
        }
    }

    /// Refuses files whose heads or lengths say that groups went missing with them: a crash leaves neither,
    /// because a file has its head and its whole length before its first group is written.
    fn check(&self, from: Position) -> Result<(), OpenError> {
        let needed = from.at > FIRST_GROUP_AT;
        if needed && !self.numbers.contains(&from.file) {
            let what = "the file is missing or its head damaged, and the checkpoint points into it";
            return Err(self.corrupt(from.file, 0, what.into()));
        }
        for number in self.headless.iter().copied() {
            self.check_headless(number, from)?;
        }
        for number in self.numbers.iter().copied().filter(|n| *n >= from.file) {
            self.check_length(number, from)?;
        }
        Ok(())
    }

    fn check_headless(&self, number: u64, from: Position) -> Result<(), OpenError> {
        let other = self.head(number)?.map(|h| h.number);
        for as_number in [Some(number), other].into_iter().flatten() {
            let seed = file_seed(self.disk, as_number);
            let needed = |h: &GroupHeader| h.sequence >= from.sequence;
            if let Some(found) = self.scan(number, FIRST_GROUP_AT, seed, needed)? {
                let what = format!(
                    "the head is not that of this file, but group {} in it is needed",
                    found.header.sequence
                );
                return Err(self.corrupt(number, 0, what));
            }
        }
        Ok(())
    }

    fn check_length(&self, number: u64, from: Position) -> Result<(), OpenError> {
        let (len, head) = (self.len(number)?, self.head(number)?);
        let Some(head) = head.filter(|h| len < h.file_bytes) else {
            return Ok(());
        };
        let file = self.open(number)?;
        let seed = file_seed(self.disk, number);
        let first = self.header_at(&*file, number, FIRST_GROUP_AT, seed)?;
        let written = first.is_some() || (number == from.file && from.at > FIRST_GROUP_AT);
        if written {
            let what = format!("the file ends here, it was {} bytes long", head.file_bytes);
            return Err(self.corrupt(number, len, what));
        }
        Ok(())
    }

    fn corrupt(&self, number: u64, position: u64, what: String) -> OpenError {
        OpenError::Corrupt {
            path: self.path(number),
            position,
            what,
        }
    }
}

/// Where the first group of a file lies that is not before a position.
fn first_at(number: u64, position: Position) -> u64 {
    if number == position.file {
        position.at.max(FIRST_GROUP_AT)
    } else {
        FIRST_GROUP_AT
    }
}
