//! One compaction of one log: map the keys of what is dirty, write everything below anew without what they
//! supersede, go on where the map was full.
//!
//! Promise: every segment is replaced as a whole or not at all, oldest first, and marked when it is clean; a
//! run that is stopped or fails leaves what it has done, and the next one goes on from there.
//! Blocks on the disk, and waits for the rate and for what it wrote to be durable: runs on a thread of its own.
//! Not here: when it is time (`plan`), what of a batch stays (`filter`), files (storage).

use super::filter::{Judge, Left, is_open};
use super::keys::{Full, KeyHasher, KeyMap};
use super::plan;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use logd_proto::record_batch::{BatchHeader, Records, RecordsError, RetainError};
use logd_storage::{BaseSegment, Kind, Log, ReadError, RewriteError, Row, SegmentInfo};
use std::collections::HashSet;
use std::io;
use std::time::Duration;

/// How long a swap may take to become durable: a group commit, unless the disk is full.
const SWAP_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("reading a segment: {0}")]
    Read(#[from] ReadError),
    #[error("the batch at offset {offset}: {source}")]
    Batch { offset: i64, source: RetainError },
    #[error("writing a segment: {0}")]
    Rewrite(#[from] RewriteError),
    #[error("making a segment durable: {0}")]
    Swap(io::Error),
    #[error("nothing at offset {0} fits into the map of keys")]
    NoRoom(i64),
    #[error("the snapshot does not move below it: {0}")]
    Unsettled(String),
    #[error("it was stopped")]
    Stopped,
}

/// What a run is given.
pub struct Task<'a> {
    pub log: &'a Log,
    /// Where what is dirty begins and ends.
    pub from: i64,
    pub to: i64,
    pub segment_bytes: u64,
    pub map_bytes: usize,
    pub hasher: KeyHasher,
    /// See [`Judge`].
    pub now_ms: i64,
    pub horizon_ms: i64,
    pub remembered: &'a (dyn Fn() -> HashSet<i64> + Send + Sync),
    /// Told of bytes before they are read or written: waits as long as the rate says. False: stop.
    pub pace: &'a (dyn Fn(u64) -> BoxFuture<'a, bool> + Send + Sync),
}

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub kept: u64,
    pub removed: u64,
    pub segments: u64,
    /// How often the map was filled.
    pub passes: u64,
}

impl Task<'_> {
    /// Runs to the end, or until it is told to stop; `done` counts what was done either way.
    ///
    /// # Errors
    /// What stopped it.
    pub async fn run(&self, done: &mut Done) -> Result<(), RunError> {
        let mut from = self.from;
        while from < self.to {
            let segments = self.segments();
            let (keys, mapped_to) = self.map(&segments, from, done).await?;
            if mapped_to <= from {
                return Err(RunError::NoRoom(from));
            }
            done.passes += 1;
            self.rewrite_all(&segments, &keys, mapped_to, done).await?;
            from = mapped_to;
        }
        Ok(())
    }

    fn segments(&self) -> Vec<BaseSegment> {
        let mut segments = self.log.base_segments();
        segments.retain(|s| s.info().next_offset <= self.to);
        segments
    }

    async fn pace(&self, bytes: u64) -> Result<(), RunError> {
        if (self.pace)(bytes).await {
            Ok(())
        } else {
            Err(RunError::Stopped)
        }
    }

    /// Takes up keys from an offset on until they are all in or the map is full; says up to where.
    async fn map(
        &self,
        segments: &[BaseSegment],
        from: i64,
        done: &mut Done,
    ) -> Result<(KeyMap, i64), RunError> {
        let dirty = || segments.iter().filter(|s| s.info().next_offset > from);
        let mut records = 0u64;
        for segment in dirty() {
            // No batch has more records than offsets.
            let info = segment.info();
            records += info.next_offset.abs_diff(info.base_offset);
        }
        let room = usize::try_from(records).unwrap_or(usize::MAX);
        let mut keys = KeyMap::new(self.map_bytes, room, self.hasher);
        for segment in dirty() {
            for entry in segment.entries()? {
                let (row, batch) = entry?;
                if row.end_offset() <= from || batch.is_empty() {
                    continue;
                }
                self.pace(batch.len() as u64).await?;
                done.bytes_read += batch.len() as u64;
                let full = take_keys(&mut keys, &batch, from);
                match full.map_err(|e| broken(&row, e.into()))? {
                    None => {}
                    Some(at) => return Ok((keys, at)),
                }
            }
        }
        Ok((keys, self.to))
    }

    async fn rewrite_all(
        &self,
        segments: &[BaseSegment],
        keys: &KeyMap,
        mapped_to: i64,
        done: &mut Done,
    ) -> Result<(), RunError> {
        let below: Vec<&BaseSegment> = segments
            .iter()
            .filter(|s| s.info().base_offset < mapped_to)
            .collect();
        let infos: Vec<SegmentInfo> = below.iter().map(|s| s.info()).collect();
        for group in plan::groups(&infos, self.segment_bytes) {
            let group: Vec<BaseSegment> = below
                .get(group)
                .unwrap_or_default()
                .iter()
                .map(|s| (*s).clone())
                .collect();
            self.rewrite(&group, keys, mapped_to, done).await?;
        }
        Ok(())
    }

    /// Writes some segments anew as one.
    async fn rewrite(
        &self,
        group: &[BaseSegment],
        keys: &KeyMap,
        mapped_to: i64,
        done: &mut Done,
    ) -> Result<(), RunError> {
        let remembered = (self.remembered)();
        let judge = Judge {
            keys,
            mapped_to,
            remembered: &remembered,
            now_ms: self.now_ms,
            horizon_ms: self.horizon_ms,
        };
        let mut rewriter = self.log.rewriter(group)?;
        let mut changed = group.len() > 1;
        let (mut kept, mut removed) = (0, 0);
        for segment in group {
            for entry in segment.entries()? {
                let (row, batch) = entry?;
                self.pace(2 * batch.len() as u64).await?;
                done.bytes_read += batch.len() as u64;
                let left = left_of(&judge, &row, &batch)?;
                // A row without bytes goes, too: a control entry's, or one that an older version left.
                changed |= left.bytes != batch || left.bytes.is_empty();
                kept += left.kept;
                removed += left.removed;
                if !left.bytes.is_empty() {
                    rewriter.push(&row, &left.bytes, left.max_timestamp)?;
                }
            }
        }
        let last = group.last().map(BaseSegment::info);
        let clean = last.as_ref().is_some_and(|s| s.next_offset <= mapped_to);
        let same_mark = last.is_some_and(|s| s.clean == clean);
        done.kept += kept;
        if !changed && same_mark {
            return Ok(());
        }
        done.bytes_written += rewriter.bytes();
        let (durable, waits) = tokio::sync::oneshot::channel();
        let tell = move |result| {
            // Whoever waited may have lost patience.
            let _ = durable.send(result);
        };
        rewriter.swap(clean, Box::new(tell))?;
        done.removed += removed;
        done.segments += group.len() as u64;
        let patient = tokio::time::timeout(SWAP_PATIENCE, waits).await;
        let told = patient.map_err(|_| io::ErrorKind::TimedOut.into());
        let told = told.and_then(|told| told.map_err(io::Error::other));
        told.and_then(|result| result).map_err(RunError::Swap)
    }
}

fn left_of(judge: &Judge<'_>, row: &Row, batch: &Bytes) -> Result<Left, RunError> {
    match row.kind {
        Kind::Data => {
            let left = judge.judge(batch, row.max_timestamp);
            left.map_err(|e| broken(row, e))
        }
        Kind::Control(_) => Ok(Left {
            bytes: Bytes::new(),
            max_timestamp: row.max_timestamp,
            kept: 0,
            removed: 0,
        }),
    }
}

fn broken(row: &Row, source: RetainError) -> RunError {
    RunError::Batch {
        offset: row.base_offset,
        source,
    }
}

/// Takes up the keys of a batch; the offset of the first record that has no room.
fn take_keys(keys: &mut KeyMap, batch: &Bytes, from: i64) -> Result<Option<i64>, RecordsError> {
    let header = BatchHeader::parse(batch)?;
    if !is_open(&header) {
        return Ok(None);
    }
    for record in &Records::open(batch, super::filter::INFLATED_BYTES_MAX)? {
        let record = record?;
        if record.offset >= from
            && let Some(key) = record.key
            && keys.put(key, record.offset) == Err(Full)
        {
            return Ok(Some(record.offset));
        }
    }
    Ok(None)
}
