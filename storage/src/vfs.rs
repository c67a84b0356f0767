//! The file system as storage needs it: real, and one that loses power.
//!
//! Promise: nothing in this crate reaches a disk but through these two traits, so a simulated disk sees
//! every write and every sync.
//! Not here: what the bytes mean.

mod real;
mod sim;
#[cfg(test)]
mod sim_tests;

pub use crate::mmap::Mapped;
pub use real::RealFs;
pub use sim::{Fault, SimFs};

use std::any::Any;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

/// True if something ran short before anything was done, free space or file descriptors: it may be tried
/// again, and the disk has not failed. Never true of a sync or of a write under way that the kernel took.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    /// `ENFILE` and `EMFILE`: too many open files in the system, in the process.
    const DESCRIPTORS: [i32; 2] = [23, 24];
    error.kind() == io::ErrorKind::StorageFull
        || error
            .raw_os_error()
            .is_some_and(|code| DESCRIPTORS.contains(&code))
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Open {
    pub read: bool,
    pub write: bool,
    pub create: bool,
    pub create_new: bool,
    pub truncate: bool,
    /// Past the page cache, durable when the write returns (`O_DIRECT|O_DSYNC`). Where the file system
    /// refuses it, opening fails with `EINVAL`.
    pub direct: bool,
}

/// What one directory tree may ask of its file system.
pub trait Vfs: Send + Sync + Debug {
    /// # Errors
    /// As `open(2)`.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn VfsFile>>;
    /// # Errors
    /// As `mkdir(2)`.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in the directory durable.
    ///
    /// # Errors
    /// As `fsync(2)`.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// # Errors
    /// As `rename(2)`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// # Errors
    /// As `unlink(2)`.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// # Errors
    /// As `rmdir(2)` and `unlink(2)` of what is inside.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, in order.
    ///
    /// # Errors
    /// As `readdir(3)`.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>>;
    fn exists(&self, path: &Path) -> bool;
    /// A file's length, without opening it.
    ///
    /// # Errors
    /// As `stat(2)`.
    fn file_len(&self, path: &Path) -> io::Result<u64>;
    /// Free and total bytes of the file system under `path`.
    ///
    /// # Errors
    /// As `statvfs(3)`.
    fn free_space(&self, path: &Path) -> io::Result<(u64, u64)>;
    /// An exclusive lock on a file, held until the value is dropped. `WouldBlock` if somebody has it.
    ///
    /// # Errors
    /// As `flock(2)`.
    fn try_lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>>;
    /// Whether somebody has that lock. Changes nothing; false if there is no such file.
    ///
    /// # Errors
    /// As `open(2)` and `flock(2)`.
    fn is_locked(&self, path: &Path) -> io::Result<bool>;
}

/// An open file. All positions are absolute: there is no cursor to share.
pub trait VfsFile: Send + Sync + Debug {
    /// # Errors
    /// `UnexpectedEof` if the file ends first.
    fn read_exact_at(&self, buf: &mut [u8], pos: u64) -> io::Result<()>;
    /// # Errors
    /// As `pread(2)`.
    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize>;
    /// Writes all pieces one behind the other.
    ///
    /// # Errors
    /// As `pwritev(2)`; some of it may have been written.
    fn write_all_at(&self, bufs: &[IoSlice<'_>], pos: u64) -> io::Result<()>;
    /// Writes one aligned buffer at an aligned position; on a `direct` file it is durable on return.
    ///
    /// # Errors
    /// As `pwrite(2)`.
    fn write_aligned_at(&self, buf: &[u8], pos: u64) -> io::Result<()>;
    /// # Errors
    /// As `fdatasync(2)`. An error is final: see the crate's promise.
    fn sync_data(&self) -> io::Result<()>;
    /// Reserves space up to `len` and makes the file that long.
    ///
    /// # Errors
    /// As `fallocate(2)`; `StorageFull` above all.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Reserves space up to `len` and leaves the file as long as it is; `set_len` gives back what is behind.
    ///
    /// # Errors
    /// As `fallocate(2)`; `StorageFull` above all.
    fn reserve(&self, len: u64) -> io::Result<()>;
    /// # Errors
    /// As `fstat(2)`.
    fn len(&self) -> io::Result<u64>;
    /// # Errors
    /// As `fstat(2)`.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// # Errors
    /// As `ftruncate(2)`. Never on a mapped file: see [`VfsFile::map`].
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// A read-only view of the first `len` bytes. The file must be that long and must never be truncated.
    ///
    /// # Errors
    /// As `mmap(2)`.
    fn map(&self, len: u64) -> io::Result<Mapped>;
}
