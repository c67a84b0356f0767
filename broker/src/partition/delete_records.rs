//! Deleting records: a client says where the log is to begin.
//!
//! Promise: when it is answered, a majority has it: no leader will ever serve what lies below.
//! The files go with the next round of retention, whole segments at a time.

use super::Partition;
use crate::raft::ProposeError;
use tracing::debug;

/// "Everything that is committed."
const HIGH_WATERMARK: i64 = -1;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeleteRecordsError {
    #[error("this broker does not lead the partition (leader: {leader:?})")]
    NotLeader { leader: Option<i32> },
    #[error("offset {offset} is not within 0..={high_watermark}, which is what is committed")]
    OffsetOutOfRange { offset: i64, high_watermark: i64 },
    #[error("the topic's cleanup.policy does not have `delete`")]
    KeptByPolicy,
    #[error("the records may or may not be deleted")]
    Unknown,
    #[error("the partition has stopped: {0}")]
    Stopped(String),
}

impl Partition {
    /// Lets the log begin at an offset, or where it begins already if that is behind it; -1 stands for the
    /// high watermark. Says where it begins now.
    ///
    /// # Errors
    /// If this replica does not lead, the offset is not committed, the topic keeps its records for good, or
    /// nobody knows what became of it.
    pub async fn delete_records(&self, offset: i64) -> Result<i64, DeleteRecordsError> {
        if !self.is_current().await {
            return Err(self.leads_not());
        }
        if !self.config().deletes() {
            return Err(DeleteRecordsError::KeptByPolicy);
        }
        let now = self.offsets();
        let high_watermark = now.high_watermark;
        let start = match offset {
            HIGH_WATERMARK => high_watermark,
            given => given,
        };
        if !(0..=high_watermark).contains(&start) {
            return Err(DeleteRecordsError::OffsetOutOfRange {
                offset,
                high_watermark,
            });
        }
        if start > now.log_start {
            let moved = self.move_log_start(start).await;
            moved.map_err(|e| self.not_deleted(e))?;
            // Applications that clean up behind themselves ask every few seconds.
            debug!(
                topic = self.topic,
                partition = self.index,
                log_start = start,
                "records deleted"
            );
        }
        Ok(self.offsets().log_start)
    }

    fn leads_not(&self) -> DeleteRecordsError {
        DeleteRecordsError::NotLeader {
            leader: self.leadership().leader,
        }
    }

    fn not_deleted(&self, error: ProposeError) -> DeleteRecordsError {
        match error {
            ProposeError::NotLeader { .. } => self.leads_not(),
            ProposeError::LeaseExpired | ProposeError::Unknown | ProposeError::ChangeRefused(_) => {
                DeleteRecordsError::Unknown
            }
            ProposeError::Stopped(why) => DeleteRecordsError::Stopped(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::tests::{open, valid};
    use crate::partition::{ReadError, ReadFrom, ReadRequest};
    use crate::topic_config::{TopicConfig, TopicDefaults};
    use logd_proto::record_batch::BatchBuilder;
    use std::collections::BTreeMap;

    async fn with_records(count: usize) -> (tempfile::TempDir, std::sync::Arc<Partition>) {
        let (dir, partition) = open().await;
        for _ in 0..count {
            let mut batch = BatchBuilder::new();
            batch.push(5, None, Some(b"value"), &[]).unwrap();
            let batch = valid(batch.build().unwrap());
            partition.append(batch).await.unwrap().await.unwrap();
        }
        (dir, partition)
    }

    fn at(offset: i64) -> ReadRequest {
        ReadRequest {
            offset,
            max_bytes: 1 << 20,
            at_least_one: true,
            current_leader_epoch: -1,
            from: ReadFrom::Leader,
        }
    }

    #[tokio::test]
    async fn trap_30_the_log_begins_where_it_was_told_and_never_earlier_again() {
        let (_dir, partition) = with_records(5).await;
        assert_eq!(partition.delete_records(3).await, Ok(3));
        let below = partition.read(at(2)).await.unwrap_err();
        assert!(
            matches!(below, ReadError::OffsetOutOfRange { .. }),
            "{below}"
        );
        assert!(partition.read(at(3)).await.is_ok());
        assert_eq!(partition.delete_records(1).await, Ok(3), "gone already");
        assert_eq!(partition.delete_records(-1).await, Ok(5));
        assert_eq!(partition.read(at(5)).await.unwrap().bytes, 0);
    }

    #[tokio::test]
    async fn trap_30_what_is_not_committed_cannot_be_deleted() {
        let (_dir, partition) = with_records(2).await;
        for offset in [-2, 3, i64::MAX] {
            let refused = partition.delete_records(offset).await;
            let high_watermark = 2;
            assert_eq!(
                refused,
                Err(DeleteRecordsError::OffsetOutOfRange {
                    offset,
                    high_watermark
                })
            );
        }
    }

    #[tokio::test]
    async fn trap_30_a_topic_that_is_only_compacted_keeps_its_records() {
        let (_dir, partition) = with_records(2).await;
        let compacted = BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]);
        let compacted = TopicConfig::parse(&compacted).unwrap();
        partition.reconfigure(&compacted, &TopicDefaults::default());
        let refused = partition.delete_records(1).await;
        assert_eq!(refused, Err(DeleteRecordsError::KeptByPolicy));
    }
}
