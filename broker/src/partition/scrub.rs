//! Reads what nobody reads, slowly, so that damage is found while other replicas can mend it.
//!
//! Reading an entry compares it with its checksum; one that differs fences the log, and whoever looks
//! after damaged replicas goes on from there. Not here: mending.

use super::{Partition, Registry};
use logd_storage::{BaseSegment, ReadError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::warn;

/// Bytes read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// A pause between two rounds over all partitions.
const REST: Duration = Duration::from_secs(60);

/// Reads every partition round after round, at most so many bytes per second, until it is dropped; 0: not at all.
pub async fn keep(registry: Arc<Registry>, mut bytes_per_second: watch::Receiver<u64>) {
    loop {
        pause(0, &mut bytes_per_second).await;
        for partition in registry.all() {
            scrub(&partition, &mut bytes_per_second).await;
        }
        tokio::time::sleep(REST).await;
    }
}

async fn scrub(partition: &Arc<Partition>, rate: &mut watch::Receiver<u64>) {
    for segment in partition.log.base_segments() {
        let mut from = Some(0);
        while let Some(row) = from {
            let reading = segment.clone();
            let read = tokio::task::spawn_blocking(move || read_below(&reading, row)).await;
            let Ok(read) = read else { return };
            match read {
                Ok((after, bytes)) => {
                    from = after;
                    pause(bytes, rate).await;
                }
                // It was compacted or dropped since.
                Err(ReadError::Moved { .. }) => from = None,
                Err(error) => return tell(partition, &error),
            }
        }
    }
    let mut next = partition.log.bounds().first_index;
    loop {
        let reading = partition.clone();
        let read = tokio::task::spawn_blocking(move || read_piece(&reading, next)).await;
        let Ok(Some((after, bytes))) = read else {
            return;
        };
        next = after;
        pause(bytes, rate).await;
    }
}

/// Rests as long as what was read may take, and for as long as nothing is to be read at all.
async fn pause(bytes: usize, rate: &mut watch::Receiver<u64>) {
    let bytes_per_second = *rate.borrow_and_update();
    if bytes_per_second > 0 {
        let rest = Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            // A pause at the old rate may be long.
            Ok(()) = rate.changed() => {}
        }
    }
    // An error means that the node is gone, and this task with it.
    drop(rate.wait_for(|rate| *rate > 0).await);
}

fn tell(partition: &Partition, error: &ReadError) {
    warn!(topic = partition.topic(), partition = partition.index(), %error, "scrubbing found what cannot be read");
}

/// Reads one piece of a segment that is no part of the Raft log any more: the row behind it, if there is one,
/// and its size.
fn read_below(segment: &BaseSegment, from: u64) -> Result<(Option<u64>, usize), ReadError> {
    let mut bytes = 0;
    for (row, entry) in (from..).zip(segment.entries_from(from)?) {
        if bytes >= PIECE_BYTES {
            return Ok((Some(row), bytes));
        }
        bytes += entry?.1.len();
    }
    Ok((None, bytes))
}

/// Reads one piece of sealed entries; the index behind it, and its size. `None` at the end, or at damage.
fn read_piece(partition: &Partition, from: u64) -> Option<(u64, usize)> {
    let log = &partition.log;
    let from = from.max(log.bounds().first_index);
    let end = log.bounds().last?.index + 1;
    if from >= end || log.is_in_memory(from) {
        return None;
    }
    match log.entries(from, end, PIECE_BYTES) {
        Ok(entries) => {
            let bytes = entries.iter().map(|e| e.head.len() + e.body.len()).sum();
            Some((entries.last()?.id.index + 1, bytes))
        }
        // Retention may have taken it meanwhile.
        Err(ReadError::Purged { first, .. }) => Some((first, 0)),
        Err(error) => {
            tell(partition, &error);
            None
        }
    }
}
