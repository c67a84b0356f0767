//! The operating system's file system.

use super::{Mapped, Open, Vfs, VfsFile};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock, statvfs};
use std::any::Any;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

#[derive(Debug, Default, Clone, Copy)]
pub struct RealFs;

#[derive(Debug)]
struct RealFile(File);

/// A sync may find that there is no space, where it was not reserved. What was written may be gone then, and
/// the next sync would say success: it must not pass for a shortage, which may be tried again.
fn of_sync(error: io::Error) -> io::Error {
    io::Error::other(format!("a sync failed: {error}"))
}

impl Vfs for RealFs {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn VfsFile>> {
        let mut options = OpenOptions::new();
        options
            .read(how.read)
            .write(how.write)
            .create(how.create)
            .create_new(how.create_new)
            .truncate(how.truncate);
        if how.direct {
            options.custom_flags((OFlags::DIRECT | OFlags::DSYNC).bits() as i32);
        }
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all().map_err(of_sync)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn file_len(&self, path: &Path) -> io::Result<u64> {
        fs::metadata(path).map(|m| m.len())
    }

    fn free_space(&self, path: &Path) -> io::Result<(u64, u64)> {
        let stat = statvfs(path)?;
        // What an unprivileged process may use: root's reserve is not ours to spend.
        Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
    }

    fn try_lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(file))
    }

    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        // A shared lock needs no permission to write; it goes with the file.
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            other => Ok(other.map(|()| false)?),
        }
    }
}

impl VfsFile for RealFile {
    fn read_exact_at(&self, buf: &mut [u8], pos: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, pos)
    }

    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        self.0.read_at(buf, pos)
    }

    fn write_all_at(&self, bufs: &[IoSlice<'_>], mut pos: u64) -> io::Result<()> {
        /// The kernel takes no more pieces in one call (`IOV_MAX`).
        const PIECES_MAX: usize = 1024;
        let mut owned: Vec<IoSlice<'_>> = bufs
            .iter()
            .filter(|b| !b.is_empty())
            .map(|b| IoSlice::new(b))
            .collect();
        let mut left = &mut owned[..];
        while !left.is_empty() {
            let pieces = left.len().min(PIECES_MAX);
            let written = match rustix::io::pwritev(&self.0, &left[..pieces], pos) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            pos += written as u64;
            IoSlice::advance_slices(&mut left, written);
        }
        Ok(())
    }

    fn write_aligned_at(&self, buf: &[u8], pos: u64) -> io::Result<()> {
        self.0.write_all_at(buf, pos)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data().map_err(of_sync)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            // Some file systems have no fallocate; a sparse file is never mapped past what was written.
            Err(rustix::io::Errno::OPNOTSUPP) if self.len()? < len => self.0.set_len(len),
            other => Ok(other?),
        }
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        match fallocate(&self.0, FallocateFlags::KEEP_SIZE, 0, len) {
            // Then a full disk is met by the write itself, which waits for space as well.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    fn len(&self) -> io::Result<u64> {
        self.0.metadata().map(|m| m.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn map(&self, len: u64) -> io::Result<Mapped> {
        Mapped::file(&self.0, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::is_shortage;

    #[test]
    fn a_sync_that_finds_no_space_is_final_and_still_says_why() {
        const NO_SPACE: i32 = 28;
        let error = io::Error::from_raw_os_error(NO_SPACE);
        assert!(is_shortage(&error));
        let why = error.to_string();
        let of_sync = of_sync(error);
        assert!(!is_shortage(&of_sync));
        assert!(of_sync.to_string().contains(&why), "{of_sync}");
    }
}
