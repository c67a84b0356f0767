//! Reads partitions, alone or as a member of a group.
//!
//! Promise: records of a partition come in order and without holes from where it was told to start; at
//! most one answer per leader is read ahead.
//!
//! Not here: who reads what in a group ([`group`]); aborted transactions, which are not filtered out
//! (isolation "read uncommitted", Kafka's default).

mod fetch;
mod group;
mod membership;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use logd_proto::ErrorCode;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::error::{ConsumeError, MetadataError, RequestError};
use crate::offsets::{self, OffsetAt};
use crate::record::ConsumedRecord;
use fetch::{Fetched, Got, Taken, Trouble, Want, fetch};
pub use group::{GroupConsumer, GroupConsumerBuilder};

pub(crate) type PartitionKey = (Arc<str>, i32);

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// With the oldest record.
    Start,
    /// With what comes from now on.
    End,
    /// With this offset.
    Offset(i64),
    /// With the first record that is not older, in milliseconds since 1970; at the end if none is.
    Timestamp(i64),
}

/// Builds a [`Consumer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ConsumerBuilder {
    cluster: Arc<Cluster>,
    options: FetchOptions,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct FetchOptions {
    pub max_wait: Duration,
    pub min_bytes: i32,
    pub bytes_max: i32,
    pub partition_bytes_max: i32,
    pub reset: Option<OffsetAt>,
}

impl Default for FetchOptions {
    fn default() -> FetchOptions {
        FetchOptions {
            max_wait: Duration::from_millis(500),
            min_bytes: 1,
            bytes_max: 16 << 20,
            partition_bytes_max: 1 << 20,
            reset: None,
        }
    }
}

impl ConsumerBuilder {
    pub(crate) fn new(cluster: Arc<Cluster>) -> ConsumerBuilder {
        let options = FetchOptions::default();
        ConsumerBuilder { cluster, options }
    }

    /// How long a broker may wait for records. 500 ms.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.options.max_wait = wait;
        self
    }

    /// How many bytes are worth an answer before that. 1.
    pub fn min_bytes(mut self, bytes: i32) -> Self {
        self.options.min_bytes = bytes;
        self
    }

    /// How large one answer may be. 16 MiB.
    pub fn max_bytes(mut self, bytes: i32) -> Self {
        self.options.bytes_max = bytes;
        self
    }

    /// How much of one partition an answer may hold. 1 MiB.
    pub fn max_partition_bytes(mut self, bytes: i32) -> Self {
        self.options.partition_bytes_max = bytes;
        self
    }

    /// Where to go on when the position is no longer in the log. Unless said, that is an error: records
    /// were missed.
    pub fn on_out_of_range(mut self, reset: OffsetAt) -> Self {
        self.options.reset = Some(reset);
        self
    }

    /// A consumer that reads nothing yet.
    pub fn build(self) -> Consumer {
        Consumer {
            cluster: self.cluster,
            options: self.options,
            places: BTreeMap::new(),
            next_epoch: 0,
            ready: VecDeque::new(),
            fetches: JoinSet::new(),
            busy: HashSet::new(),
            stale: BTreeSet::new(),
        }
    }
}

/// Reads partitions that its owner chooses. Dropping it ends its fetches.
#[derive(Debug)]
pub struct Consumer {
    cluster: Arc<Cluster>,
    options: FetchOptions,
    places: BTreeMap<PartitionKey, Place>,
    next_epoch: u64,
    /// Fetched and not yet handed out.
    ready: VecDeque<(PartitionKey, u64, Taken)>,
    fetches: JoinSet<Fetched>,
    /// Leaders with a fetch under way.
    busy: HashSet<i32>,
    /// Topics whose metadata proved wrong.
    stale: BTreeSet<Arc<str>>,
}

#[derive(Debug)]
struct Place {
    /// Changes with every seek, so that answers to older questions are recognised.
    epoch: u64,
    /// What to fetch next, which runs ahead of what was handed out.
    position: Position,
    /// Where reading began, once that is known.
    began: Option<i64>,
    /// Behind the last record handed out.
    delivered: Option<i64>,
    high_watermark: Option<i64>,
    failing: Option<Failing>,
}

#[derive(Clone, Copy, Debug)]
enum Position {
    At(i64),
    Sought(OffsetAt),
}

#[derive(Clone, Copy, Debug)]
struct Failing {
    since: Instant,
    times: u32,
    rest_until: Instant,
}

impl Consumer {
    /// Reads a partition, beginning at `start`. One that is being read already is moved there.
    pub fn assign(&mut self, topic: &str, partition: i32, start: StartAt) {
        let position = match start {
            StartAt::Offset(offset) => Position::At(offset),
            StartAt::Start => Position::Sought(OffsetAt::Start),
            StartAt::End => Position::Sought(OffsetAt::End),
            StartAt::Timestamp(at) => Position::Sought(OffsetAt::Timestamp(at)),
        };
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        let place = Place {
            epoch,
            position,
            began: match position {
                Position::At(offset) => Some(offset),
                Position::Sought(_) => None,
            },
            delivered: None,
            high_watermark: None,
            failing: None,
        };
        self.places.insert((topic.into(), partition), place);
    }

    /// Reads all partitions a topic has now.
    ///
    /// # Cancel safety
    /// Safe: nothing is assigned until the partitions are known.
    ///
    /// # Errors
    /// When the topic is not there.
    pub async fn assign_topic(&mut self, topic: &str, start: StartAt) -> Result<(), ConsumeError> {
        let info = self.cluster.topic(topic).await?;
        for partition in &info.partitions {
            self.assign(topic, partition.index, start);
        }
        Ok(())
    }

    /// Goes on elsewhere; the same as assigning anew.
    pub fn seek(&mut self, topic: &str, partition: i32, to: StartAt) {
        self.assign(topic, partition, to);
    }

    /// Stops reading a partition.
    pub fn unassign(&mut self, topic: &str, partition: i32) {
        self.places.remove(&(topic.into(), partition));
    }

    /// Stops reading everything.
    pub fn unassign_all(&mut self) {
        self.places.clear();
        self.ready.clear();
    }

    /// What is being read.
    pub fn assignment(&self) -> Vec<(String, i32)> {
        self.places
            .keys()
            .map(|(topic, partition)| (topic.to_string(), *partition))
            .collect()
    }

    /// Behind the last record handed out, or where reading began if that is known.
    pub fn position(&self, topic: &str, partition: i32) -> Option<i64> {
        let place = self.places.get(&(topic.into(), partition))?;
        place.delivered.or(place.began)
    }

    /// The partition's end as of the last answer.
    pub fn high_watermark(&self, topic: &str, partition: i32) -> Option<i64> {
        self.places.get(&(topic.into(), partition))?.high_watermark
    }

    /// For every partition of which records were handed out: where a reader would go on.
    pub(crate) fn delivered(&self) -> BTreeMap<PartitionKey, i64> {
        let delivered = self.places.iter();
        delivered
            .filter_map(|(key, place)| Some((key.clone(), place.delivered?)))
            .collect()
    }

    /// The next records of some partition. Waits until there are any; for ever, if nothing is
    /// assigned.
    ///
    /// # Cancel safety
    /// Safe: records are handed out whole or kept for the next call.
    ///
    /// # Errors
    /// When a partition cannot be read and trying again did not help, or its position is outside of the
    /// log. The others go on with the next call.
    pub async fn next_batch(&mut self) -> Result<Vec<ConsumedRecord>, ConsumeError> {
        self.next_batch_of(usize::MAX).await
    }

    /// As [`next_batch`](Consumer::next_batch), but at most so many records (and at least one): the
    /// rest comes with the next call, and [`position`](Consumer::position) counts what was handed out.
    ///
    /// # Cancel safety
    /// Safe, as `next_batch`.
    ///
    /// # Errors
    /// As `next_batch`.
    pub async fn next_batch_of(
        &mut self,
        limit: usize,
    ) -> Result<Vec<ConsumedRecord>, ConsumeError> {
        loop {
            if let Some(records) = self.hand_out(limit) {
                // Fetch ahead while the caller works.
                self.launch();
                return Ok(records);
            }
            self.refresh_stale().await?;
            self.find_sought().await?;
            self.launch();
            let wake_at = self.next_attempt();
            tokio::select! {
                Some(done) = self.fetches.join_next() => match done {
                    Ok(fetched) => self.absorb(fetched)?,
                    // A fetch that panicked is a bug; its leader must not stay busy for ever.
                    Err(_) => self.busy.clear(),
                },
                () = tokio::time::sleep_until(wake_at) => {}
            }
        }
    }

    fn hand_out(&mut self, limit: usize) -> Option<Vec<ConsumedRecord>> {
        while let Some((key, epoch, mut taken)) = self.ready.pop_front() {
            let Some(place) = self
                .places
                .get_mut(&key)
                .filter(|place| place.epoch == epoch)
            else {
                continue;
            };
            let rest = taken.split_off(limit.max(1));
            place.delivered = Some(taken.next_offset);
            if let Some(rest) = rest {
                self.ready.push_front((key, epoch, rest));
            }
            if !taken.records.is_empty() {
                return Some(taken.records);
            }
        }
        None
    }

    /// Starts a fetch at every leader that has none.
    fn launch(&mut self) {
        let now = Instant::now();
        let mut by_leader: BTreeMap<i32, Vec<Want>> = BTreeMap::new();
        for (key, place) in &self.places {
            let Position::At(offset) = place.position else {
                continue;
            };
            if place
                .failing
                .is_some_and(|failing| failing.rest_until > now)
            {
                continue;
            }
            match self.cluster.leader(&key.0, key.1) {
                Some(leader) if self.busy.contains(&leader) => {}
                Some(leader) => {
                    let (key, epoch) = (key.clone(), place.epoch);
                    by_leader
                        .entry(leader)
                        .or_default()
                        .push(Want { key, offset, epoch });
                }
                None => drop(self.stale.insert(Arc::clone(&key.0))),
            }
        }
        for (leader, wants) in by_leader {
            self.busy.insert(leader);
            let cluster = Arc::clone(&self.cluster);
            self.fetches
                .spawn(fetch(cluster, leader, wants, self.options));
        }
    }

    /// When a resting partition may be tried again; otherwise some time later, to look after
    /// partitions without a leader.
    fn next_attempt(&self) -> Instant {
        let now = Instant::now();
        let rests = self.places.values().filter_map(|place| place.failing);
        let next = rests
            .map(|failing| failing.rest_until)
            .filter(|at| *at > now)
            .min();
        let idle = if self.stale.is_empty() {
            Duration::from_secs(5)
        } else {
            self.cluster.retry.backoff_min
        };
        next.unwrap_or(now + idle)
    }

    async fn refresh_stale(&mut self) -> Result<(), ConsumeError> {
        while let Some(topic) = self.stale.first().cloned() {
            let refreshed = self.cluster.refresh(&topic).await;
            self.stale.remove(&topic);
            match refreshed {
                Ok(_) => {}
                Err(error) if error.is_retriable() => {
                    let all = self.places.keys().filter(|key| key.0 == topic);
                    let all: Vec<PartitionKey> = all.cloned().collect();
                    for key in all {
                        self.fail(&key, || error.clone().into())?;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Turns positions such as "the start" into offsets.
    async fn find_sought(&mut self) -> Result<(), ConsumeError> {
        let sought = self
            .places
            .iter()
            .filter_map(|(key, place)| match place.position {
                Position::Sought(at) => Some((key.0.to_string(), key.1, at)),
                Position::At(_) => None,
            });
        let sought: Vec<(String, i32, OffsetAt)> = sought.collect();
        if sought.is_empty() {
            return Ok(());
        }
        let mut found = offsets::look_up(&self.cluster, &sought).await?;
        let late = found.iter().filter(|found| found.offset.is_none());
        let late: Vec<_> = late
            .map(|found| (found.topic.clone(), found.partition, OffsetAt::End))
            .collect();
        if !late.is_empty() {
            found.extend(offsets::look_up(&self.cluster, &late).await?);
        }
        for found in found {
            let Some(offset) = found.offset else { continue };
            if let Some(place) = self.places.get_mut(&(found.topic.into(), found.partition)) {
                place.position = Position::At(offset);
                place.began = Some(offset);
            }
        }
        Ok(())
    }

    fn absorb(&mut self, fetched: Fetched) -> Result<(), ConsumeError> {
        self.busy.remove(&fetched.leader);
        match fetched.result {
            Ok(all) => {
                let mut first_error = Ok(());
                for got in all {
                    first_error = first_error.and(self.absorb_one(got));
                }
                first_error
            }
            Err(error) => self.leader_failed(&fetched.wants, &error),
        }
    }

    fn leader_failed(&mut self, wants: &[Want], error: &RequestError) -> Result<(), ConsumeError> {
        let mut first_error = Ok(());
        for want in wants {
            self.stale.insert(Arc::clone(&want.key.0));
            first_error = first_error.and(self.fail(&want.key, || error.clone().into()));
        }
        if error.is_retriable() {
            first_error
        } else {
            Err(error.clone().into())
        }
    }

    fn absorb_one(&mut self, got: Got) -> Result<(), ConsumeError> {
        let Got {
            key,
            epoch,
            offset,
            result,
        } = got;
        let Some(place) = self
            .places
            .get_mut(&key)
            .filter(|place| place.epoch == epoch)
        else {
            return Ok(());
        };
        let (topic, partition) = (Arc::clone(&key.0), key.1);
        match result {
            Ok(taken) => {
                place.position = Position::At(taken.next_offset);
                place.high_watermark = Some(taken.high_watermark);
                place.failing = None;
                if taken.next_offset > offset {
                    self.ready.push_back((key, epoch, taken));
                }
                Ok(())
            }
            Err(Trouble::Refused(ErrorCode::OffsetOutOfRange)) => match self.options.reset {
                Some(at) => {
                    tracing::warn!(%topic, partition, offset, "offset out of range, moved on");
                    place.position = Position::Sought(at);
                    Ok(())
                }
                None => Err(ConsumeError::OutOfRange {
                    topic,
                    partition,
                    offset,
                }),
            },
            Err(Trouble::Refused(code)) => {
                self.stale.insert(Arc::clone(&topic));
                self.fail(&key, || ConsumeError::Refused {
                    topic,
                    partition,
                    code,
                })
            }
            Err(Trouble::Corrupt(source)) => {
                let source = Arc::new(source);
                self.fail(&key, || ConsumeError::Corrupt {
                    topic,
                    partition,
                    offset,
                    source,
                })
            }
        }
    }

    /// Lets a partition rest, or gives it up when it has failed for too long.
    fn fail(
        &mut self,
        key: &PartitionKey,
        error: impl FnOnce() -> ConsumeError,
    ) -> Result<(), ConsumeError> {
        let retry = self.cluster.retry;
        let Some(place) = self.places.get_mut(key) else {
            return Ok(());
        };
        let now = Instant::now();
        let failing = place.failing.get_or_insert(Failing {
            since: now,
            times: 0,
            rest_until: now,
        });
        failing.times = failing.times.saturating_add(1);
        failing.rest_until = now + retry.backoff(failing.times);
        let error = error();
        if error.is_retriable() && now.duration_since(failing.since) < retry.give_up_after {
            tracing::debug!(%error, "will try again");
            return Ok(());
        }
        // A later call begins afresh.
        place.failing = Some(Failing {
            since: now,
            times: 0,
            rest_until: failing.rest_until,
        });
        Err(error)
    }

    /// Checks that a topic exists, so that a misspelt one is an error and not a long silence.
    pub(crate) async fn require_topic(&self, topic: &str) -> Result<usize, MetadataError> {
        Ok(self.cluster.topic(topic).await?.partitions.len())
    }

    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }
}
