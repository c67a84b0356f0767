//! How many segments are open at once: maps and descriptors are finite, partitions are many.
//!
//! Promise: beyond the limit, the segment that was not used for longest is closed, unless it still has
//! something to sync. Not here: opening, which segments do themselves when they are read or written.

use crate::segment::SegmentFile;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// Two maps each; the kernel refuses the 65,530th map of a process.
pub(crate) const OPEN_SEGMENTS_MAX: usize = 10_000;
/// Looks at so many segments for one to close: an open must not walk the whole list.
const TRIES: usize = 8;

#[derive(Debug)]
pub(crate) struct OpenFiles {
    limit: usize,
    queue: Mutex<VecDeque<Weak<SegmentFile>>>,
}

impl OpenFiles {
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            queue: Mutex::default(),
        }
    }

    /// Call it without holding any segment's lock: it takes that of the one it closes.
    pub fn opened(&self, segment: &Arc<SegmentFile>) {
        let mut queue = self.queue.lock();
        queue.push_back(Arc::downgrade(segment));
        if queue.len() <= self.limit {
            return;
        }
        for _ in 0..TRIES {
            let Some(oldest) = queue.pop_front() else {
                return;
            };
            let Some(found) = oldest.upgrade() else {
                return;
            };
            let stays = Arc::ptr_eq(&found, segment) || found.used.swap(false, Ordering::Relaxed);
            if !stays && found.close_idle() {
                return;
            }
            queue.push_back(oldest);
        }
    }
}
