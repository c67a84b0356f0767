//! Appending: check leadership and sequence, propose in order, answer when applied.
//!
//! Invariant: between judging a producer's sequence and proposing its batch nobody else does either,
//! so the order in the log is the order in which the sequence was judged. The queue's lock is held
//! across the proposal for that reason, and is fair: callers append in the order they came. Being fair,
//! it goes to whoever is next whether or not that one is looked at; so nobody waits for it in a future
//! that its owner may stop polling (see [`Waiting`]).

use super::line::Place;
use super::producers::{Flights, Sequence, Verdict};
use super::{Leadership, Partition};
use crate::metrics;
use crate::raft::{Pending, Proposal, ProposeError};
use bytes::Bytes;
use logd_proto::record_batch::BatchHeader;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

/// How long a batch may wait for the flights before it, and an entry for its commit. Past it the
/// outcome is unknown, which clients meet with a retry.
const OUTCOME_DEADLINE: Duration = Duration::from_secs(30);

/// A batch that passed validation, with its header read once.
#[derive(Debug, Clone)]
pub struct ValidBatch {
    pub bytes: Bytes,
    pub header: BatchHeader,
}

impl ValidBatch {
    fn records(&self) -> u32 {
        // Validation has checked that the last delta is the count less one, and not negative.
        self.header.last_offset_delta as u32 + 1
    }

    fn sequence(&self) -> Option<Sequence> {
        let h = &self.header;
        (h.producer_id >= 0 && h.base_sequence >= 0).then(|| {
            Sequence::new(
                h.producer_id,
                h.producer_epoch,
                h.base_sequence,
                self.records(),
            )
        })
    }
}

/// Where a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub base_offset: i64,
    pub log_start: i64,
    /// Set if it was there already: its timestamp of the first time, as the offset is.
    pub duplicate_of: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    #[error("this broker does not lead the partition (leader: {leader:?}, epoch {epoch})")]
    NotLeader { leader: Option<i32>, epoch: i32 },
    #[error("producer {producer_id} sent sequence {found}, expected {expected}")]
    OutOfOrderSequence {
        producer_id: i64,
        found: i32,
        expected: i32,
    },
    #[error("producer {producer_id} sent epoch {found}, the current one is {current}")]
    InvalidProducerEpoch {
        producer_id: i64,
        found: i16,
        current: i16,
    },
    #[error(
        "producer {producer_id}: the batch of sequence {missing}, which comes before this one, was sent back; send both again"
    )]
    Behind { producer_id: i64, missing: i32 },
    #[error("the disk has no room for more data: free space or shorten retention")]
    DiskFull,
    #[error("the disk does not keep up; try again")]
    Overloaded,
    #[error("the batch may or may not be committed")]
    Unknown,
    #[error("the partition has stopped: {0}")]
    Stopped(String),
}

impl AppendError {
    /// The same batch may be taken when it is sent again.
    fn sends_back(&self) -> bool {
        match self {
            AppendError::NotLeader { .. }
            | AppendError::Behind { .. }
            | AppendError::DiskFull
            | AppendError::Overloaded
            | AppendError::Unknown
            | AppendError::Stopped(_) => true,
            AppendError::OutOfOrderSequence { .. } | AppendError::InvalidProducerEpoch { .. } => {
                false
            }
        }
    }
}

/// How long an append waits for a leader that is just taking over, before its client is sent to look for one.
const TAKEOVER_PATIENCE: Duration = Duration::from_millis(500);

/// After so long a silence openraft may want a majority's word before the leader proposes again. It
/// forgives ten seconds; asking costs one round trip.
const LEASE_KEPT: Duration = Duration::from_secs(2);

/// How long a majority may take to give it.
const LEASE_PATIENCE: Duration = Duration::from_secs(2);

/// Serialises judging and proposing.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) flights: Flights,
    /// The term and the time of the last proposal.
    proposed: Option<(i32, Instant)>,
}

impl Queue {
    /// The next proposal asks a majority first.
    pub(super) fn forget_lease(&mut self) {
        self.proposed = None;
    }
}

/// A batch on its way. Dropping it does not take the batch back.
pub struct Appending(State);

enum State {
    Ready(Option<Result<Appended, AppendError>>),
    Flying {
        partition: Arc<Partition>,
        sequence: Option<Sequence>,
        pending: Pending,
    },
    Waiting(Waiting),
}

/// A batch that waits for the flights before it, on a task of its own. The one who holds it may be a
/// connection that is just handing over its next request and polls nothing else: if that request
/// waited for the queue behind this batch, and this batch had its turn, neither would ever move.
struct Waiting(JoinHandle<Result<Appended, AppendError>>);

impl Drop for Waiting {
    fn drop(&mut self) {
        // Nobody is told any more; what is proposed already flies on.
        self.0.abort();
    }
}

impl std::fmt::Debug for Appending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Appending")
    }
}

impl Future for Appending {
    type Output = Result<Appended, AppendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Ready(result) => Poll::Ready(result.take().unwrap_or(Err(AppendError::Unknown))),
            // A task that ended badly was ended by a stop of the broker.
            State::Waiting(waiting) => Pin::new(&mut waiting.0)
                .poll(cx)
                .map(|ended| ended.unwrap_or(Err(AppendError::Unknown))),
            State::Flying {
                partition,
                sequence,
                pending,
            } => Pin::new(pending).poll(cx).map(|outcome| match outcome {
                Ok(outcome) => Ok(partition.appended(outcome.base_offset, None)),
                Err(error) => {
                    let error = partition.append_failed(error);
                    partition.note_refusal(*sequence, &error);
                    partition.lines.wake();
                    Err(error)
                }
            }),
        }
    }
}

impl Partition {
    /// Queues a batch. Calls made in order append in order; the answer comes from [`Appending`].
    ///
    /// # Errors
    /// What can be said before anything is proposed: leadership, room, and the producer's sequence.
    pub async fn append(self: &Arc<Self>, batch: ValidBatch) -> Result<Appending, AppendError> {
        let sequence = batch.sequence();
        let queued = self.queue_if_there_is_room(batch).await;
        if let Err(error) = &queued {
            self.note_refusal(sequence, error);
        }
        queued
    }

    async fn queue_if_there_is_room(
        self: &Arc<Self>,
        batch: ValidBatch,
    ) -> Result<Appending, AppendError> {
        if !self.disk.space().accepting {
            return Err(AppendError::DiskFull);
        }
        self.relieved().await?;
        self.queue_batch(batch).await
    }

    pub(super) fn note_refusal(&self, sequence: Option<Sequence>, error: &AppendError) {
        if let Some(sequence) = sequence.filter(|_| error.sends_back()) {
            self.sent_back.note(&sequence, Instant::now());
        }
    }

    /// As [`Partition::append`], also on a disk that takes no more client data: group offsets and
    /// other internal records must go on (storage keeps a reserve for them).
    ///
    /// # Errors
    /// As [`Partition::append`], except `DiskFull`.
    pub async fn append_internal(
        self: &Arc<Self>,
        batch: ValidBatch,
    ) -> Result<Appending, AppendError> {
        self.queue_batch(batch).await
    }

    /// Holds the caller back while more is staged than the disk keeps up with: its connection then reads no
    /// more requests, and the client feels it.
    async fn relieved(&self) -> Result<(), AppendError> {
        if !self.disk.is_saturated() {
            return Ok(());
        }
        let (tell, told) = tokio::sync::oneshot::channel();
        self.disk.when_relieved(Box::new(move || {
            // Whoever waited may have given up.
            let _ = tell.send(());
        }));
        // A dropped sender means that the disk is gone; the proposal will say so.
        match tokio::time::timeout(OUTCOME_DEADLINE, told).await {
            Ok(_) => Ok(()),
            Err(_) => Err(AppendError::Overloaded),
        }
    }

    async fn queue_batch(self: &Arc<Self>, batch: ValidBatch) -> Result<Appending, AppendError> {
        let mut queue = self.queue.lock().await;
        let leadership = self.lead().await?;
        self.keep_lease(&mut queue, leadership).await?;
        let Some(sequence) = batch.sequence() else {
            let pending = self.propose(batch).await?;
            return Ok(self.flying(pending, None));
        };
        let verdict = if self.lines.has(sequence.producer_id) {
            Verdict::Wait
        } else {
            self.judge(&mut queue, leadership, &sequence)
        };
        match verdict {
            Verdict::Append => self.take_off(&mut queue, batch, sequence).await,
            Verdict::Wait => {
                // Its client may give it up while it waits, and what stands behind it is judged then.
                self.sent_back.note(&sequence, Instant::now());
                let place = self.lines.join(sequence.producer_id);
                let waiting = tokio::spawn(self.clone().after_flights(batch, sequence, place));
                Ok(Appending(State::Waiting(Waiting(waiting))))
            }
            verdict => self.settle(verdict, &sequence),
        }
    }

    /// Who was elected a moment ago serves soon: no client need look for another leader.
    async fn lead(&self) -> Result<Leadership, AppendError> {
        let leadership = self.leadership();
        if self.is_heard() {
            return Ok(leadership);
        }
        // Whatever comes of it is looked at below.
        drop(tokio::time::timeout(TAKEOVER_PATIENCE, self.taken_over()).await);
        let leadership = self.leadership();
        if self.is_heard() {
            Ok(leadership)
        } else {
            Err(not_leader(leadership))
        }
    }

    /// Waits while this replica is to lead and does not serve yet.
    async fn taken_over(&self) {
        let mut changes = self.leadership_changes();
        loop {
            changes.mark_unchanged();
            let role = self.group.role();
            let is_next = role.expected == Some(self.replica);
            if role.serving || !is_next || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Renews the lease before the queue goes on, not after: a proposal that was refused for it would leave
    /// a hole among those behind it.
    async fn keep_lease(
        &self,
        queue: &mut Queue,
        leadership: Leadership,
    ) -> Result<(), AppendError> {
        let now = Instant::now();
        let kept = queue
            .proposed
            .is_some_and(|(term, at)| term == leadership.epoch && now - at < LEASE_KEPT);
        if self.group.is_alone() {
            queue.forget_lease();
            return Ok(());
        }
        queue.proposed = Some((leadership.epoch, now));
        if kept {
            return Ok(());
        }
        let renewed = self.group.renew_lease(LEASE_PATIENCE).await;
        renewed.map_err(|e| {
            queue.proposed = None;
            self.append_failed(e)
        })
    }

    pub(super) fn judge(
        &self,
        queue: &mut Queue,
        leadership: Leadership,
        sequence: &Sequence,
    ) -> Verdict {
        let verdict = self.group.with_owner(|replica| {
            queue
                .flights
                .judge(leadership.epoch as u64, replica.producers(), sequence)
        });
        self.sent_back.weigh(verdict, sequence, Instant::now())
    }

    /// Proposes, and only then counts the batch among the flights: whoever gives up before leaves no
    /// flight behind that never lands, which every later batch of the producer would wait for.
    async fn take_off(
        self: &Arc<Self>,
        queue: &mut Queue,
        batch: ValidBatch,
        sequence: Sequence,
    ) -> Result<Appending, AppendError> {
        let pending = self.propose(batch).await?;
        queue.flights.took_off(sequence, pending.refusal());
        self.sent_back.taken(&sequence);
        Ok(self.flying(pending, Some(sequence)))
    }

    async fn propose(&self, batch: ValidBatch) -> Result<Pending, AppendError> {
        let records = batch.records();
        let proposal = Proposal::data(batch.bytes, records, batch.header.max_timestamp);
        let proposed = self.group.propose(proposal).await;
        proposed.map_err(|e| self.append_failed(e))
    }

    fn flying(self: &Arc<Self>, pending: Pending, sequence: Option<Sequence>) -> Appending {
        Appending(State::Flying {
            partition: self.clone(),
            sequence,
            pending,
        })
    }

    /// Waits in the producer's line, takes off, and lands.
    async fn after_flights(
        self: Arc<Self>,
        batch: ValidBatch,
        sequence: Sequence,
        place: Place,
    ) -> Result<Appended, AppendError> {
        let deadline = Instant::now() + OUTCOME_DEADLINE;
        let flying = timeout_at(deadline, self.turn(batch, sequence, &place)).await;
        // It flies, or it never will: the next in line sees why.
        drop(place);
        let flying = flying.unwrap_or(Err(AppendError::Unknown))?;
        let landed = timeout_at(deadline, flying).await;
        landed.unwrap_or(Err(AppendError::Unknown))
    }

    /// Judges again whenever something was committed, until the flights before the batch have landed and
    /// it is the producer's first in line.
    async fn turn(
        self: &Arc<Self>,
        batch: ValidBatch,
        sequence: Sequence,
        place: &Place,
    ) -> Result<Appending, AppendError> {
        loop {
            let moved = place.moved();
            if place.is_first() {
                let mut queue = self.queue.lock().await;
                let leadership = self.leadership();
                if !leadership.serving {
                    return Err(not_leader(leadership));
                }
                match self.judge(&mut queue, leadership, &sequence) {
                    Verdict::Append => return self.take_off(&mut queue, batch, sequence).await,
                    Verdict::Wait => {}
                    verdict => return self.settle(verdict, &sequence),
                }
            }
            moved.await;
        }
    }

    /// What needs no flight.
    fn settle(&self, verdict: Verdict, sequence: &Sequence) -> Result<Appending, AppendError> {
        match verdict {
            Verdict::Duplicate(mark) => {
                self.sent_back.taken(sequence);
                let there = self.appended(mark.base_offset, Some(mark.timestamp));
                Ok(Appending(State::Ready(Some(Ok(there)))))
            }
            Verdict::OutOfOrder { expected } => {
                metrics::sequence_refused(sequence.is_before(expected));
                Err(AppendError::OutOfOrderSequence {
                    producer_id: sequence.producer_id,
                    found: sequence.first,
                    expected,
                })
            }
            Verdict::Behind { missing } => Err(AppendError::Behind {
                producer_id: sequence.producer_id,
                missing,
            }),
            Verdict::Fenced { current } => Err(AppendError::InvalidProducerEpoch {
                producer_id: sequence.producer_id,
                found: sequence.epoch,
                current,
            }),
            // For whoever holds the queue, or weighed already.
            Verdict::Append | Verdict::Midway | Verdict::Wait => Err(AppendError::Unknown),
        }
    }

    fn appended(&self, base_offset: i64, duplicate_of: Option<i64>) -> Appended {
        Appended {
            base_offset,
            log_start: self.progress.log_start(),
            duplicate_of,
        }
    }

    fn append_failed(&self, error: ProposeError) -> AppendError {
        match error {
            ProposeError::NotLeader { .. } => not_leader(self.leadership()),
            ProposeError::LeaseExpired | ProposeError::Unknown | ProposeError::ChangeRefused(_) => {
                AppendError::Unknown
            }
            ProposeError::Stopped(why) => AppendError::Stopped(why),
        }
    }
}

fn not_leader(leadership: Leadership) -> AppendError {
    AppendError::NotLeader {
        leader: leadership.leader,
        epoch: leadership.epoch,
    }
}
