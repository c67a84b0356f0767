//! The door to `__consumer_offsets` over this broker's real partitions.
//!
//! Not here: which topic that is; the composition root looks it up in the metadata.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use logd_proto::Uuid;
use logd_proto::record_batch::BatchHeader;
use tokio::sync::watch;

use super::log::{AppendError, OffsetsLog, OffsetsTopic, ReadError};
use crate::partition::{self, Partition, ReadFrom, ReadRequest, Registry, ValidBatch};

/// One read while loading: large enough that a log of some megabytes takes a few of them.
const READ_BYTES_MAX: usize = 1 << 20;

/// How long a load waits for what may still be in flight.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);

/// Finds the topic's id and number of partitions, if it exists.
pub type FindTopic = Box<dyn Fn() -> Option<(Uuid, usize)> + Send + Sync>;

/// The topic as replicated by this cluster.
pub struct ReplicatedOffsets {
    find: FindTopic,
    registry: Arc<Registry>,
}

impl ReplicatedOffsets {
    /// Looks partitions up in `registry`.
    pub fn new(registry: Arc<Registry>, find: FindTopic) -> ReplicatedOffsets {
        ReplicatedOffsets { find, registry }
    }
}

impl std::fmt::Debug for ReplicatedOffsets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReplicatedOffsets")
    }
}

impl OffsetsTopic for ReplicatedOffsets {
    fn partitions(&self) -> i32 {
        let partitions = (self.find)().map_or(0, |(_, partitions)| partitions);
        i32::try_from(partitions).unwrap_or(i32::MAX)
    }

    fn partition(&self, index: i32) -> Option<Arc<dyn OffsetsLog>> {
        let (topic, _) = (self.find)()?;
        let partition = self.registry.get(&topic, index)?;
        Some(Arc::new(ReplicatedLog(partition)))
    }
}

struct ReplicatedLog(Arc<Partition>);

impl OffsetsLog for ReplicatedLog {
    fn leading(&self) -> Option<i32> {
        let leadership = self.0.leadership();
        leadership.serving.then_some(leadership.epoch)
    }

    fn leading_changes(&self) -> watch::Receiver<()> {
        self.0.leadership_changes()
    }

    fn settled(&self) -> BoxFuture<'static, bool> {
        let partition = self.0.clone();
        async move { partition.settled(SETTLE_PATIENCE).await }.boxed()
    }

    fn start(&self) -> i64 {
        self.0.offsets().log_start
    }

    fn append(&self, batch: Bytes) -> BoxFuture<'static, Result<(), AppendError>> {
        let partition = self.0.clone();
        async move {
            let header = BatchHeader::parse(&batch).map_err(|_| AppendError::TooLarge)?;
            let batch = ValidBatch {
                bytes: batch,
                header,
            };
            let appending = partition.append_internal(batch).await;
            let appended = appending.map_err(append_error)?.await;
            appended.map(drop).map_err(append_error)
        }
        .boxed()
    }

    fn read(&self, from: i64) -> BoxFuture<'static, Result<Vec<Bytes>, ReadError>> {
        let partition = self.0.clone();
        async move {
            let request = ReadRequest {
                offset: from,
                max_bytes: READ_BYTES_MAX,
                at_least_one: true,
                current_leader_epoch: -1,
                from: ReadFrom::Leader,
            };
            match partition.read(request).await {
                Ok(outcome) => Ok(outcome.slices),
                Err(partition::ReadError::NotLeader { .. }) => Err(ReadError::NotLeader),
                Err(why) => Err(ReadError::Storage(why.to_string())),
            }
        }
        .boxed()
    }
}

fn append_error(error: partition::AppendError) -> AppendError {
    match error {
        // Also after the proposal: then the entry may survive on another broker, and this broker
        // unloads its groups either way.
        partition::AppendError::NotLeader { .. } => AppendError::NotLeader,
        partition::AppendError::DiskFull | partition::AppendError::Overloaded => {
            AppendError::Unavailable
        }
        partition::AppendError::Unknown
        | partition::AppendError::Stopped(_)
        // Our batches carry no sequence.
        | partition::AppendError::OutOfOrderSequence { .. }
        | partition::AppendError::Behind { .. }
        | partition::AppendError::InvalidProducerEpoch { .. } => AppendError::Unknown,
    }
}
