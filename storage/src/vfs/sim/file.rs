//! An open file of the simulated disk. Not here: what survives when the power goes (`sim`).

use super::Disk;
use crate::vfs::{Mapped, VfsFile};
use bytes::Bytes;
use parking_lot::Mutex;
use std::io::{self, IoSlice};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct SimFile {
    pub disk: Arc<Mutex<Disk>>,
    pub inode: u64,
    pub boot: u64,
    pub direct: bool,
}

impl SimFile {
    fn with<T>(&self, f: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk.lock();
        disk.alive(self.boot)?;
        f(&mut disk)
    }

    fn read(&self, f: impl FnOnce(&[u8]) -> usize) -> io::Result<usize> {
        self.with(|disk| {
            disk.inodes
                .get(&self.inode)
                .map(|i| f(&i.live))
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }
}

impl VfsFile for SimFile {
    fn read_exact_at(&self, buf: &mut [u8], pos: u64) -> io::Result<()> {
        if self.read_at(buf, pos)? == buf.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        self.read(|live| {
            let from = live.get(pos as usize..).unwrap_or_default();
            let n = from.len().min(buf.len());
            buf[..n].copy_from_slice(&from[..n]);
            n
        })
    }

    fn write_all_at(&self, bufs: &[IoSlice<'_>], pos: u64) -> io::Result<()> {
        let bytes: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        self.with(|disk| disk.write(self.inode, pos as usize, &bytes, self.direct))
    }

    fn write_aligned_at(&self, buf: &[u8], pos: u64) -> io::Result<()> {
        self.with(|disk| disk.write(self.inode, pos as usize, buf, self.direct))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|disk| disk.sync(self.inode))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.with(|disk| disk.set_len(self.inode, len as usize, false))
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.with(|disk| disk.reserve(self.inode, len as usize))
    }

    fn len(&self) -> io::Result<u64> {
        self.read(<[u8]>::len).map(|n| n as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|disk| disk.set_len(self.inode, len as usize, true))
    }

    fn map(&self, len: u64) -> io::Result<Mapped> {
        let mut image = vec![0; len as usize];
        self.read_exact_at(&mut image, 0)?;
        Ok(Mapped::memory(Bytes::from(image)))
    }
}
