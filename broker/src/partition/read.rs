//! Reading: below the high watermark, whole batches, as slices of the maps. Never enters `raft`.

use super::{EpochEnd, Offsets, Partition, epoch_of};
use crate::raft::off_the_loop;
use bytes::Bytes;

/// Who may serve a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    Leader,
    /// Also a follower, up to what it knows to be committed (KIP-392).
    AnyReplica,
}

/// Who has served a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedBy {
    Leader,
    Follower,
}

/// What a fetch wants of one partition.
#[derive(Debug, Clone, Copy)]
pub struct ReadRequest {
    pub offset: i64,
    pub max_bytes: usize,
    /// Return the first batch even if it is larger than `max_bytes`.
    pub at_least_one: bool,
    /// The leader epoch the client knows, -1 for none (KIP-320).
    pub current_leader_epoch: i32,
    pub from: ReadFrom,
}

/// Whole batches in order of offset; the first one contains the offset asked for.
#[derive(Debug, Clone)]
pub struct ReadOutcome {
    pub slices: Vec<Bytes>,
    pub bytes: usize,
    pub offsets: Offsets,
    pub by: ServedBy,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("this broker does not lead the partition (leader: {leader:?}, epoch {epoch})")]
    NotLeader { leader: Option<i32>, epoch: i32 },
    #[error("offset {offset} is outside {log_start}..={log_end}")]
    OffsetOutOfRange {
        offset: i64,
        log_start: i64,
        log_end: i64,
    },
    #[error("the client's leader epoch {found} is older than {current}")]
    FencedLeaderEpoch { found: i32, current: i32 },
    #[error("the client's leader epoch {found} is newer than {current}")]
    UnknownLeaderEpoch { found: i32, current: i32 },
    #[error("reading the log: {0}")]
    Storage(String),
}

impl Partition {
    /// Checks that we lead, in the epoch the client knows, and that nobody else can have been elected: a
    /// leader that was stopped or cut off for a while knows less than its successor has acknowledged.
    ///
    /// # Errors
    /// Fencing and leadership errors (KIP-320).
    pub async fn check_epoch(&self, found: i32) -> Result<(), ReadError> {
        let leadership = self.leadership();
        let current = leadership.epoch;
        fence(found, current)?;
        if !self.is_current().await {
            return Err(ReadError::NotLeader {
                leader: leadership.leader,
                epoch: current,
            });
        }
        Ok(())
    }

    /// Checks that this replica may serve a consumer that was sent to it: it knows the client's epoch, hears a
    /// leader, and lacks nothing that it once had. One that is cut off sends its clients back to the leader.
    fn check_follower(&self, found: i32) -> Result<(), ReadError> {
        let leadership = self.leadership();
        fence(found, leadership.epoch)?;
        let heard = self.outlook().leader.is_some_and(|l| (self.heard_by)(l));
        if !heard || self.misses_entries() {
            return Err(ReadError::NotLeader {
                leader: leadership.leader,
                epoch: leadership.epoch,
            });
        }
        Ok(())
    }

    /// The end of an entry of the log.
    pub fn end_of_entry(&self, index: u64) -> Option<i64> {
        let row = self.log.entry_row(index)?;
        Some(row.end_offset())
    }

    /// Reads committed batches. An offset between the high watermark and the log's end reads nothing.
    ///
    /// # Errors
    /// Leadership and fencing, an offset outside the log, or a damaged or unreadable file.
    pub async fn read(&self, request: ReadRequest) -> Result<ReadOutcome, ReadError> {
        let by = match request.from {
            ReadFrom::AnyReplica if !self.outlook().leads => ServedBy::Follower,
            _ => ServedBy::Leader,
        };
        match by {
            ServedBy::Follower => self.check_follower(request.current_leader_epoch)?,
            ServedBy::Leader => self.check_epoch(request.current_leader_epoch).await?,
        }
        let offsets = self.offsets();
        if request.offset < offsets.log_start || request.offset > offsets.log_end {
            return Err(ReadError::OffsetOutOfRange {
                offset: request.offset,
                log_start: offsets.log_start,
                log_end: offsets.log_end,
            });
        }
        let slices = self
            .slices(
                request.offset,
                offsets.high_watermark,
                request.max_bytes,
                request.at_least_one,
            )
            .await?;
        let bytes = slices.iter().map(Bytes::len).sum();
        Ok(ReadOutcome {
            slices,
            bytes,
            offsets,
            by,
        })
    }

    /// Slices below `limit`; a range that is not in memory is read ahead on a blocking thread first.
    pub(super) async fn slices(
        &self,
        offset: i64,
        limit: i64,
        max_bytes: usize,
        at_least_one: bool,
    ) -> Result<Vec<Bytes>, ReadError> {
        if offset >= limit {
            return Ok(Vec::new());
        }
        let storage = |why: String| ReadError::Storage(why);
        let mut again = true;
        loop {
            let plan = self.log.read(offset, limit, max_bytes, at_least_one);
            let plan = plan.map_err(|e| storage(e.to_string()))?;
            if plan.resident {
                return Ok(plan.slices);
            }
            let warm = move || plan.warm().map(|()| plan.slices);
            let warmed = off_the_loop(warm).await;
            match warmed.map_err(|e| storage(e.to_string()))? {
                // Its segment was compacted between the plan and the look at it: once, if ever.
                Err(logd_storage::ReadError::Moved { .. }) if again => again = false,
                other => return other.map_err(|e| storage(e.to_string())),
            }
        }
    }

    /// Where an epoch ends, for a client that looks for where its log and ours part (KIP-101, KIP-320).
    pub fn epoch_end(&self, requested: i32) -> EpochEnd {
        let none = EpochEnd {
            epoch: -1,
            end_offset: -1,
        };
        let current = self.leadership().epoch;
        if requested < 0 || requested > current {
            return none;
        }
        if requested == current {
            return EpochEnd {
                epoch: current,
                end_offset: self.offsets().high_watermark,
            };
        }
        let starts: Vec<(i32, i64)> = self
            .log
            .terms()
            .iter()
            .map(|t| (epoch_of(t.term), t.offset))
            .collect();
        let Some(&(_, end_offset)) = starts.iter().find(|(epoch, _)| *epoch > requested) else {
            return EpochEnd {
                epoch: requested,
                end_offset: self.offsets().high_watermark,
            };
        };
        let floor = starts.iter().rev().find(|(epoch, _)| *epoch <= requested);
        EpochEnd {
            epoch: floor.map_or(requested, |(epoch, _)| *epoch),
            end_offset,
        }
    }
}

/// Compares the leader epoch that a client knows with ours (KIP-320).
fn fence(found: i32, current: i32) -> Result<(), ReadError> {
    if found >= 0 && found < current {
        Err(ReadError::FencedLeaderEpoch { found, current })
    } else if found > current {
        Err(ReadError::UnknownLeaderEpoch { found, current })
    } else {
        Ok(())
    }
}
