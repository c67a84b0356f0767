//! Records waiting to be sent, in batches per partition.
//!
//! Promise: batches of a partition leave in the order they were begun; a batch is due when it is full,
//! has lingered long enough, or somebody flushes. Pure: the time is an argument.
//!
//! Not here: what is on the wire ([`super::lane`]), and how much may wait in all (the producer's
//! semaphore).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use logd_proto::record_batch::{BatchBuilder, BuildError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::DeliveryResult;
use crate::record::Record;

/// A partition by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LaneKey {
    pub topic: Arc<str>,
    pub partition: i32,
}

/// Records that will be sent together.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Ascending in the order batches were begun.
    pub id: u64,
    pub builder: BatchBuilder,
    pub deliveries: Vec<oneshot::Sender<DeliveryResult>>,
    /// What it holds of the producer's buffer.
    pub permits: usize,
    pub born: Instant,
    full: bool,
}

/// When a batch is full, and how long one that is not may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub batch_bytes: usize,
    pub linger: Duration,
}

#[derive(Debug)]
pub(crate) struct Queues {
    limits: Limits,
    lanes: BTreeMap<LaneKey, VecDeque<Batch>>,
    next_id: u64,
    /// Batches older than this do not linger.
    flush_below: u64,
    pub closed: bool,
}

/// What a caller of [`Queues::push`] gets.
#[derive(Debug)]
pub(crate) struct Pushed {
    pub delivery: oneshot::Receiver<DeliveryResult>,
    /// Whether the sender should look: a batch was begun or filled.
    pub wake: bool,
}

impl Queues {
    pub fn new(limits: Limits) -> Queues {
        Queues {
            limits,
            lanes: BTreeMap::new(),
            next_id: 0,
            flush_below: 0,
            closed: false,
        }
    }

    /// Adds a record to its partition's youngest batch, or begins one.
    pub fn push(
        &mut self,
        key: &LaneKey,
        record: &Record,
        timestamp: i64,
        permits: usize,
        now: Instant,
    ) -> Result<Pushed, BuildError> {
        let batch_bytes = self.limits.batch_bytes;
        if !self.lanes.contains_key(key) {
            self.lanes.insert(key.clone(), VecDeque::new());
        }
        let Some(lane) = self.lanes.get_mut(key) else {
            return Err(BuildError::Empty);
        };
        if let Some(last) = lane.back_mut()
            && last.builder.bytes().saturating_add(permits) > batch_bytes
        {
            last.full = true;
        }
        let mut fresh = None;
        let batch = match lane.back_mut().filter(|batch| !batch.full) {
            Some(batch) => batch,
            None => fresh.insert(Batch {
                id: self.next_id,
                builder: BatchBuilder::new(),
                deliveries: Vec::new(),
                permits: 0,
                born: now,
                full: false,
            }),
        };
        push_into(&mut batch.builder, record, timestamp)?;
        let (sender, delivery) = oneshot::channel();
        batch.deliveries.push(sender);
        batch.permits += permits;
        batch.full = batch.builder.bytes() >= batch_bytes;
        let wake = batch.full || fresh.is_some();
        if let Some(batch) = fresh {
            self.next_id += 1;
            lane.push_back(batch);
        }
        Ok(Pushed { delivery, wake })
    }

    /// Lanes whose oldest batch is due.
    pub fn due(&self, now: Instant) -> Vec<LaneKey> {
        let due = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.front().is_some_and(|batch| self.due_at(batch) <= now));
        due.map(|(key, _)| key.clone()).collect()
    }

    /// When the next batch that is not due yet will be.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        let fronts = self.lanes.values().filter_map(VecDeque::front);
        fronts
            .map(|batch| self.due_at(batch))
            .filter(|at| *at > now)
            .min()
    }

    fn due_at(&self, batch: &Batch) -> Instant {
        if batch.full || batch.id < self.flush_below {
            batch.born
        } else {
            batch.born + self.limits.linger
        }
    }

    /// Takes a lane's oldest batch if it is due.
    pub fn take(&mut self, key: &LaneKey, now: Instant) -> Option<Batch> {
        let due = self
            .lanes
            .get(key)?
            .front()
            .is_some_and(|batch| self.due_at(batch) <= now);
        if due {
            self.lanes.get_mut(key)?.pop_front()
        } else {
            None
        }
    }

    /// How many records a lane's oldest batch holds, if it is due.
    pub fn due_len(&self, key: &LaneKey, now: Instant) -> Option<usize> {
        let front = self.lanes.get(key)?.front()?;
        (self.due_at(front) <= now).then(|| front.builder.len())
    }

    /// Takes everything, due or not.
    pub fn take_all(&mut self) -> Vec<(LaneKey, Batch)> {
        let lanes = self.lanes.iter_mut();
        let all = lanes.flat_map(|(key, lane)| lane.drain(..).map(|batch| (key.clone(), batch)));
        all.collect()
    }

    /// Takes every batch that was begun at `oldest` or before, due or not.
    pub fn take_expired(&mut self, oldest: Instant) -> Vec<(LaneKey, Batch)> {
        let mut expired = Vec::new();
        for (key, lane) in &mut self.lanes {
            while lane.front().is_some_and(|batch| batch.born <= oldest) {
                expired.extend(lane.pop_front().map(|batch| (key.clone(), batch)));
            }
        }
        expired
    }

    /// Ends the lingering of all batches begun so far; returns the id that bounds them.
    pub fn flush(&mut self) -> u64 {
        self.flush_below = self.next_id;
        self.next_id
    }

    /// The id of the oldest batch that waits here.
    pub fn oldest(&self) -> Option<u64> {
        self.lanes
            .values()
            .filter_map(|lane| lane.front())
            .map(|batch| batch.id)
            .min()
    }

    /// When the oldest batch was begun.
    pub fn oldest_born(&self) -> Option<Instant> {
        self.lanes
            .values()
            .filter_map(|lane| lane.front())
            .map(|batch| batch.born)
            .min()
    }
}

fn push_into(
    builder: &mut BatchBuilder,
    record: &Record,
    timestamp: i64,
) -> Result<(), BuildError> {
    let headers: Vec<(&str, Option<&[u8]>)> = record
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_deref()))
        .collect();
    builder.push(
        timestamp,
        record.key.as_deref(),
        record.value.as_deref(),
        &headers,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINGER: Duration = Duration::from_millis(10);

    fn queues() -> Queues {
        Queues::new(Limits {
            batch_bytes: 300,
            linger: LINGER,
        })
    }

    fn lane(partition: i32) -> LaneKey {
        LaneKey {
            topic: "orders".into(),
            partition,
        }
    }

    fn push(queues: &mut Queues, partition: i32, bytes: usize, now: Instant) -> bool {
        let record = Record::value(vec![0; bytes]);
        let permits = record.encoded_bytes_max();
        queues
            .push(&lane(partition), &record, 0, permits, now)
            .unwrap()
            .wake
    }

    #[test]
    fn a_lonely_record_lingers_and_then_goes() {
        let (mut queues, now) = (queues(), Instant::now());
        assert!(
            push(&mut queues, 0, 10, now),
            "the sender has to set its timer"
        );
        assert!(!push(&mut queues, 0, 10, now), "the timer is set already");
        assert!(queues.take(&lane(0), now).is_none());
        assert_eq!(queues.next_due(now), Some(now + LINGER));
        let batch = queues.take(&lane(0), now + LINGER).unwrap();
        assert_eq!((batch.builder.len(), batch.deliveries.len()), (2, 2));
        assert_eq!(queues.oldest(), None);
    }

    #[test]
    fn a_full_batch_goes_at_once_and_the_next_one_waits() {
        let (mut queues, now) = (queues(), Instant::now());
        for _ in 0..2 {
            push(&mut queues, 0, 150, now);
        }
        assert_eq!(queues.due(now), [lane(0)]);
        assert_eq!(queues.take(&lane(0), now).unwrap().id, 0);
        assert!(queues.take(&lane(0), now).is_none());
        assert_eq!(queues.oldest(), Some(1));
    }

    #[test]
    fn a_record_larger_than_a_batch_travels_alone() {
        let (mut queues, now) = (queues(), Instant::now());
        push(&mut queues, 0, 10, now);
        push(&mut queues, 0, 5_000, now);
        push(&mut queues, 0, 10, now);
        let batches = std::iter::from_fn(|| queues.take(&lane(0), now + LINGER));
        assert_eq!(
            batches.map(|b| b.builder.len()).collect::<Vec<_>>(),
            [1, 1, 1]
        );
    }

    #[test]
    fn a_flush_ends_the_lingering_of_what_is_there_only() {
        let (mut queues, now) = (queues(), Instant::now());
        push(&mut queues, 0, 10, now);
        push(&mut queues, 1, 10, now);
        assert_eq!(queues.flush(), 2);
        push(&mut queues, 2, 10, now);
        assert_eq!(queues.due(now), [lane(0), lane(1)]);
    }

    #[test]
    fn what_waited_too_long_is_taken_out_in_order() {
        let (mut queues, now) = (queues(), Instant::now());
        push(&mut queues, 0, 250, now);
        push(&mut queues, 0, 250, now + LINGER);
        let expired = queues.take_expired(now);
        assert_eq!(expired.iter().map(|(_, b)| b.id).collect::<Vec<_>>(), [0]);
        assert_eq!(queues.oldest_born(), Some(now + LINGER));
    }
}
