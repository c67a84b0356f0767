//! Keeps the page cache full, as it is on a machine that has been up for a while.
//!
//! The host of a virtual machine may take freed memory back; the first touch of a page then costs about a
//! second per GB, whoever writes, and a comparison of brokers measures the host. Pages that the kernel takes
//! from a full cache were touched before. Not here: when to fill it.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Seek};

/// A sparse file whose holes fill memory when they are read, without a disk.
pub(crate) struct PageCache {
    file: File,
}

impl PageCache {
    /// Nothing is filled yet; none if `gigabytes` is 0.
    pub fn new(gigabytes: u64) -> Result<Option<PageCache>> {
        if gigabytes == 0 {
            return Ok(None);
        }
        let file = tempfile::tempfile().context("a file to fill the page cache with")?;
        file.set_len(gigabytes << 30)
            .context("a sparse file to fill the page cache with")?;
        Ok(Some(PageCache { file }))
    }

    /// Reads the file to its end; what is still cached costs little.
    pub fn fill(&self) -> Result<()> {
        let mut reader = &self.file;
        reader.rewind()?;
        let mut piece = vec![0; 1 << 20];
        while reader.read(&mut piece).context("filling the page cache")? > 0 {}
        Ok(())
    }
}
