//! The door to `__consumer_offsets`: what the coordinator needs of a partition, and no more.
//!
//! Promise asked of an implementation: an append that succeeds is committed and applied; one that
//! fails with anything but [`AppendError::Unknown`] will never appear; appends keep their order.
//!
//! Not here: an implementation. The composition root has one over the real partitions; tests have
//! one over a list.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

/// Why a batch was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Another broker leads, or nobody.
    #[error("this broker does not lead the offsets partition")]
    NotLeader,
    /// Not now: no room, overload.
    #[error("the offsets partition took no append")]
    Unavailable,
    /// Larger than the partition accepts.
    #[error("the batch is larger than the offsets partition accepts")]
    TooLarge,
    /// It may be there or may yet appear.
    #[error("the append's outcome is unknown")]
    Unknown,
}

/// Why the partition could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Another broker leads, or nobody.
    #[error("this broker does not lead the offsets partition")]
    NotLeader,
    /// The disk, or what is on it.
    #[error("the offsets partition cannot be read: {0}")]
    Storage(String),
}

/// One partition of `__consumer_offsets`, on this broker.
pub trait OffsetsLog: Send + Sync + 'static {
    /// The epoch in which this broker leads the partition and has applied everything committed
    /// before it; `None` while it does not.
    fn leading(&self) -> Option<i32>;

    /// Wakes whenever [`OffsetsLog::leading`] may have changed.
    fn leading_changes(&self) -> watch::Receiver<()>;

    /// Waits until everything that was appended is committed, whatever became of who waited for it. False
    /// if that takes too long.
    fn settled(&self) -> BoxFuture<'static, bool>;

    /// The first offset.
    fn start(&self) -> i64;

    /// Appends one record batch.
    fn append(&self, batch: Bytes) -> BoxFuture<'static, Result<(), AppendError>>;

    /// Committed batches from the one that holds `from` on, as slices of whole batches; empty at
    /// the end.
    fn read(&self, from: i64) -> BoxFuture<'static, Result<Vec<Bytes>, ReadError>>;
}

/// The topic, as this broker sees it.
pub trait OffsetsTopic: Send + Sync + 'static {
    /// How many partitions it has; 0 before it exists.
    fn partitions(&self) -> i32;

    /// One that this broker holds a replica of.
    fn partition(&self, index: i32) -> Option<Arc<dyn OffsetsLog>>;
}
