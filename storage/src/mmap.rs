//! Read-only maps and aligned memory: the one file with `unsafe`.
//!
//! Invariant: a map covers bytes that exist and its file is never truncated (only unlinked), so reading it
//! cannot raise SIGBUS but for a medium error; nobody writes through a map.
//! Not here: which files are mapped, and for how long: an [`Arc`] in every slice keeps a map alive.
#![allow(unsafe_code)]

use bytes::Bytes;
use memmap2::{Advice, Mmap, MmapOptions};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of direct I/O: the largest logical block size of common disks.
pub const ALIGNMENT: usize = 4096;

#[derive(Debug, Clone)]
enum View {
    Map(Arc<Mmap>),
    Memory(Bytes),
}

/// A read-only view of a file's first bytes. Clones and slices share it.
#[derive(Debug, Clone)]
pub struct Mapped(View);

/// Keeps the map alive for as long as a slice of it is.
struct Shared(Arc<Mmap>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Mapped {
    /// Maps the first `len` bytes of a file.
    ///
    /// # Errors
    /// As `mmap(2)`; `InvalidInput` if the file is shorter than `len`.
    pub fn file(file: &File, len: u64) -> io::Result<Self> {
        if len == 0 {
            return Ok(Self::memory(Bytes::new()));
        }
        if file.metadata()?.len() < len {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a map must not reach past the file's end",
            ));
        }
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the map is read-only and private to this process's view; the file is at least `len`
        // bytes long, and this crate never truncates a file that was mapped. Bytes past the committed
        // length may change while mapped, but nobody reads them: readers slice below a length that was
        // published with Release after the write.
        let map = unsafe { MmapOptions::new().len(len).map(file)? };
        Ok(Self(View::Map(Arc::new(map))))
    }

    /// A view of bytes in memory, for a file system that has no maps.
    pub fn memory(bytes: Bytes) -> Self {
        Self(View::Memory(bytes))
    }

    /// A slice that keeps the view alive.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        match &self.0 {
            View::Map(map) => Bytes::from_owner(Shared(map.clone())).slice(range),
            View::Memory(bytes) => bytes.slice(range),
        }
    }

    /// Whether the range is in memory, as far as the kernel says. "Yes" when it will not say.
    pub fn resident(&self, range: Range<usize>) -> bool {
        let View::Map(map) = &self.0 else { return true };
        let Some((start, len)) = pages(map, &range) else {
            return true;
        };
        let mut states = vec![0u8; len.div_ceil(ALIGNMENT)];
        // SAFETY: `start..start + len` lies within the live map (see `pages`), `start` is a multiple of the page
        // size, and `states` has one byte for each page.
        let answer = unsafe { mincore(start.cast(), len, states.as_mut_ptr()) };
        answer != 0 || states.iter().all(|s| s & 1 == 1)
    }

    /// Asks the kernel to read the range ahead.
    pub fn prefetch(&self, range: Range<usize>) {
        if let View::Map(map) = &self.0
            && let Err(error) = map.advise_range(Advice::WillNeed, range.start, range.len())
        {
            tracing::debug!(%error, "read-ahead refused");
        }
    }
}

unsafe extern "C" {
    fn mincore(addr: *mut core::ffi::c_void, length: usize, vec: *mut u8) -> i32;
}

/// The whole pages around a range of a map.
fn pages(map: &Mmap, range: &Range<usize>) -> Option<(*mut u8, usize)> {
    if range.is_empty() || range.end > map.len() {
        return None;
    }
    let first = range.start / ALIGNMENT * ALIGNMENT;
    // A map begins at a page, and its last page is whole in memory even where the file ends inside it.
    Some((
        map.as_ptr().wrapping_add(first).cast_mut(),
        range.end - first,
    ))
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            View::Map(map) => map,
            View::Memory(bytes) => bytes,
        }
    }
}

/// Memory whose address and capacity are multiples of [`ALIGNMENT`], zeroed at birth, as direct I/O wants it.
#[derive(Debug)]
pub struct AlignedBuf {
    memory: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the buffer owns its memory alone; sharing or sending it is as sound as for a `Box<[u8]>`.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above; `&AlignedBuf` gives out only `&[u8]`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// At least `bytes` of memory, rounded up to the alignment; at least one block.
    pub fn new(bytes: usize) -> Self {
        let capacity = bytes.max(1).next_multiple_of(ALIGNMENT);
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else {
            handle_alloc_error(layout)
        };
        Self { memory, capacity }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGNMENT)
            .unwrap_or_else(|_| unreachable!("a buffer of {capacity} bytes"))
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is ours, `capacity` bytes long, and was initialised by `alloc_zeroed`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.capacity) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.capacity) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout, and freed once.
        unsafe { dealloc(self.memory.as_ptr(), Self::layout(self.capacity)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn written(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_slice_outlives_the_view_and_the_file() {
        let slice = {
            let file = written(b"hello, world");
            Mapped::file(&file, 12).unwrap().slice(7..12)
        };
        assert_eq!(&slice[..], b"world");
    }

    #[test]
    fn a_map_past_the_end_is_refused() {
        assert!(Mapped::file(&written(b"abc"), 4).is_err());
    }

    #[test]
    fn what_was_just_written_is_resident() {
        let map = Mapped::file(&written(&[7; 10_000]), 10_000).unwrap();
        assert!(map.resident(0..10_000));
        assert!(map.resident(9_000..9_001));
        map.prefetch(0..10_000);
    }

    #[test]
    fn aligned_memory_is_aligned_zeroed_and_writable() {
        let mut buf = AlignedBuf::new(5_000);
        assert_eq!(buf.len(), 8_192);
        assert_eq!(buf.as_ptr().addr() % ALIGNMENT, 0);
        assert!(buf.iter().all(|b| *b == 0));
        buf[8_191] = 1;
        assert_eq!(buf[8_191], 1);
    }
}
