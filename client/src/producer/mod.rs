//! Sends records in batches, exactly once per delivery.
//!
//! Promise: [`Producer::send`] waits for buffer room only; the [`Delivery`] it returns resolves when
//! the record is durable or given up. Records of one partition are stored in the order they were sent.
//! With idempotence, the default, a repeated batch is stored once.
//!
//! Not here: transactions; acknowledgements other than "all", since a record is durable or it is not.

mod lane;
mod partitioner;
mod queues;
mod sender;
mod wire;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use logd_proto::record_batch::Compression;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::cluster::{Cluster, RetryPolicy, TopicInfo};
use crate::error::{DeliveryError, MetadataError, SendError};
use crate::record::Record;
use partitioner::Sticky;
use queues::{LaneKey, Limits, Queues};
use sender::{Command, Sender};

pub(crate) type DeliveryResult = Result<RecordMetadata, DeliveryError>;

/// Where a record was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordMetadata {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// Its offset; none when the broker recognised a repeated batch and no longer knew its place.
    pub offset: Option<i64>,
    /// The broker's timestamp, where the topic uses it.
    pub append_timestamp: Option<i64>,
}

/// The fate of one record. Dropping it does not cancel the record.
#[derive(Debug)]
#[must_use = "a record whose delivery nobody awaits may be lost unnoticed"]
pub struct Delivery {
    receiver: oneshot::Receiver<DeliveryResult>,
}

impl Future for Delivery {
    type Output = DeliveryResult;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<DeliveryResult> {
        let answer = Pin::new(&mut self.receiver).poll(context);
        answer.map(|result| result.unwrap_or(Err(DeliveryError::Closed)))
    }
}

/// Builds a [`Producer`]; the defaults suit most uses.
#[derive(Clone, Debug)]
#[must_use]
pub struct ProducerBuilder {
    cluster: Arc<Cluster>,
    options: Options,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    linger: Duration,
    batch_bytes: usize,
    record_bytes_max: usize,
    compression: Compression,
    buffered_bytes_max: usize,
    idempotence: bool,
    retry: RetryPolicy,
}

impl ProducerBuilder {
    pub(crate) fn new(cluster: Arc<Cluster>) -> ProducerBuilder {
        let options = Options {
            linger: Duration::from_millis(5),
            batch_bytes: 128 << 10,
            // What a topic takes by default (max.message.bytes), less the header of its batch.
            record_bytes_max: 1 << 20,
            compression: Compression::None,
            buffered_bytes_max: 32 << 20,
            idempotence: true,
            retry: RetryPolicy::until(Duration::from_secs(120)),
        };
        ProducerBuilder { cluster, options }
    }

    /// How long a batch that is not full waits for more records. 5 ms.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.options.linger = linger;
        self
    }

    /// The size at which a batch is full, before compression. 128 KiB.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.options.batch_bytes = bytes;
        self
    }

    /// The largest record taken. 1 MiB, as topics have it by default.
    pub fn max_record_bytes(mut self, bytes: usize) -> Self {
        self.options.record_bytes_max = bytes;
        self
    }

    /// How batches are compressed. Not at all.
    pub fn compression(mut self, codec: Compression) -> Self {
        self.options.compression = codec;
        self
    }

    /// How much may wait to be acknowledged before [`Producer::send`] waits. 32 MiB.
    pub fn max_buffered_bytes(mut self, bytes: usize) -> Self {
        self.options.buffered_bytes_max = bytes;
        self
    }

    /// Whether the broker shall recognise repeated batches. It shall; without, one batch per partition
    /// is under way at a time, and a repeated one may be stored twice.
    pub fn idempotence(mut self, on: bool) -> Self {
        self.options.idempotence = on;
        self
    }

    /// How often a batch is tried, and how long after its first record it is given up. 2 minutes.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.options.retry = policy;
        self
    }

    /// Starts the producer; must be called within a tokio runtime. Brokers are asked on the first send.
    pub fn build(self) -> Producer {
        let options = Options {
            // A record must fit into the buffer, or its send would wait for ever.
            buffered_bytes_max: self
                .options
                .buffered_bytes_max
                .max(self.options.record_bytes_max)
                .min(Semaphore::MAX_PERMITS),
            ..self.options
        };
        let limits = Limits {
            batch_bytes: options.batch_bytes,
            linger: options.linger,
        };
        let shared = Arc::new(Shared {
            queues: Mutex::new(Queues::new(limits)),
            wake: Notify::new(),
            buffer: Semaphore::new(options.buffered_bytes_max),
            undelivered: AtomicU64::new(0),
        });
        let (commands, queue) = mpsc::unbounded_channel();
        let cluster = Arc::clone(&self.cluster);
        tokio::spawn(Sender::new(cluster, Arc::clone(&shared), options, queue).run());
        let inner = Inner {
            cluster: self.cluster,
            shared,
            commands,
            options,
            topics: Mutex::default(),
        };
        Producer {
            inner: Arc::new(inner),
        }
    }
}

/// What callers and the sending task have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    queues: Mutex<Queues>,
    wake: Notify,
    /// One permit per byte that may still be buffered.
    buffer: Semaphore,
    undelivered: AtomicU64,
}

impl Shared {
    fn queues(&self) -> std::sync::MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What [`Producer::close`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Closed {
    /// Records that were taken over during the producer's life and not acknowledged.
    pub undelivered: u64,
}

/// Sends records. Cheap to clone; clones share buffer and order.
///
/// When the last clone is dropped without [`close`](Producer::close), what is buffered is still sent
/// in the background for as long as the runtime lives.
#[derive(Clone, Debug)]
pub struct Producer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cluster: Arc<Cluster>,
    shared: Arc<Shared>,
    /// Bounded by the callers: each waits for the answer to its one command.
    commands: mpsc::UnboundedSender<Command>,
    options: Options,
    topics: Mutex<HashMap<String, (Arc<str>, Sticky)>>,
}

impl Producer {
    /// Takes a record over. Waits while the buffer is full, and for the topic's metadata the first
    /// time.
    ///
    /// # Cancel safety
    /// Safe: a dropped future has not taken the record.
    ///
    /// # Errors
    /// When the topic is not there, the record is too large, or the producer is closed.
    pub async fn send(&self, topic: &str, record: Record) -> Result<Delivery, SendError> {
        let inner = &*self.inner;
        let bytes = record.encoded_bytes_max();
        let limit = inner.options.record_bytes_max;
        if bytes > limit {
            return Err(SendError::TooLarge { bytes, limit });
        }
        let info = inner.cluster.topic(topic).await?;
        let key = inner.place(&info, &record, bytes)?;
        inner.reserve(bytes).await?;
        let timestamp = record.timestamp.unwrap_or_else(now_ms);
        let pushed = {
            let mut queues = inner.shared.queues();
            if queues.closed {
                inner.shared.buffer.add_permits(bytes);
                return Err(SendError::Closed);
            }
            queues.push(&key, &record, timestamp, bytes, Instant::now())
        };
        match pushed {
            Ok(pushed) => {
                if pushed.wake {
                    inner.shared.wake.notify_one();
                }
                Ok(Delivery {
                    receiver: pushed.delivery,
                })
            }
            Err(error) => {
                inner.shared.buffer.add_permits(bytes);
                Err(SendError::Encode(Arc::new(error)))
            }
        }
    }

    /// Waits until everything sent so far is stored or given up, without lingering.
    ///
    /// # Cancel safety
    /// Safe: the flush goes on.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.inner.commands.send(Command::Flush(done)).is_ok() {
            // The task ends only when there is nothing left to wait for.
            wait.await.ok();
        }
    }

    /// Flushes, then refuses further records. Takes no longer than the retry policy gives a batch.
    ///
    /// # Cancel safety
    /// Safe: the producer refuses records from the first poll on; the count is then lost.
    pub async fn close(&self) -> Closed {
        self.inner.shared.queues().closed = true;
        self.flush().await;
        let undelivered = self.inner.shared.undelivered.load(Ordering::Acquire);
        Closed { undelivered }
    }
}

impl Inner {
    fn place(&self, info: &TopicInfo, record: &Record, bytes: usize) -> Result<LaneKey, SendError> {
        let count = info.partitions.len();
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if !topics.contains_key(&info.name) {
            let name = Arc::from(info.name.as_str());
            topics.insert(info.name.clone(), (name, Sticky::default()));
        }
        let Some((topic, sticky)) = topics.get_mut(&info.name) else {
            return Err(SendError::Closed);
        };
        let at = match (record.partition, &record.key) {
            (Some(chosen), _) => info.partitions.iter().position(|p| p.index == chosen),
            (None, Some(key)) => Some(partitioner::for_key(key, count)),
            (None, None) => Some(sticky.next(bytes, self.options.batch_bytes, count)),
        };
        match at.and_then(|at| info.partitions.get(at)) {
            Some(place) => Ok(LaneKey {
                topic: Arc::clone(topic),
                partition: place.index,
            }),
            None => Err(SendError::Metadata(MetadataError::UnknownPartition {
                topic: info.name.clone(),
                partition: record.partition.unwrap_or(-1),
            })),
        }
    }

    /// Takes room out of the buffer. Whoever has to wait sends what lingers on its way first.
    async fn reserve(&self, bytes: usize) -> Result<(), SendError> {
        let permits = u32::try_from(bytes).map_err(|_| SendError::TooLarge {
            bytes,
            limit: self.options.record_bytes_max,
        })?;
        if let Ok(room) = self.shared.buffer.try_acquire_many(permits) {
            room.forget();
            return Ok(());
        }
        self.shared.queues().flush();
        self.shared.wake.notify_one();
        let room = self.shared.buffer.acquire_many(permits).await;
        room.map_err(|_| SendError::Closed)?.forget();
        Ok(())
    }
}

/// The clock of this machine, as records carry it.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}
