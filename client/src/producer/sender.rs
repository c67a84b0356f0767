//! The producer's task: takes due batches, sends them to their leaders, settles their fate.
//!
//! Promise: this task alone owns what is on the wire; every batch it takes ends in exactly one
//! delivery result, at the latest when its time is over.
//!
//! Not here: the rules of order and numbering ([`super::lane`]), when a batch is due
//! ([`super::queues`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use logd_proto::messages::InitProducerIdRequest;
use logd_proto::{ErrorCode, message};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::lane::{Flight, IN_FLIGHT_MAX, Identity, Lane, Verdict};
use super::queues::{Batch, LaneKey};
use super::wire::{Answer, Answered, Item, Outcome, serve};
use super::{DeliveryResult, Options, RecordMetadata, Shared};
use crate::cluster::{Cluster, cap};
use crate::error::{DeliveryError, RequestError};

/// A request grows no further; well below any broker's limit, and enough to be efficient.
const REQUEST_BYTES_MAX: usize = 8 << 20;

#[derive(Debug)]
pub(super) enum Command {
    /// Answered when everything sent before is settled.
    Flush(oneshot::Sender<()>),
}

/// What the task's helpers report.
#[derive(Debug)]
enum Report {
    Identity(Result<Identity, RequestError>),
    Refreshed(Arc<str>),
}

#[derive(Debug)]
struct Node {
    outstanding: usize,
    jobs: mpsc::UnboundedSender<Vec<Item>>,
}

/// The producer id all lanes share.
#[derive(Debug, PartialEq)]
enum Identification {
    Unknown,
    Asked { instead_of: Option<Identity> },
    Known(Identity),
}

#[derive(Debug)]
pub(super) struct Sender {
    cluster: Arc<Cluster>,
    shared: Arc<Shared>,
    options: Options,
    commands: mpsc::UnboundedReceiver<Command>,
    lanes: BTreeMap<LaneKey, Lane>,
    nodes: HashMap<i32, Node>,
    identification: Identification,
    refreshing: HashSet<Arc<str>>,
    flushes: Vec<(u64, oneshot::Sender<()>)>,
    // Bounded by what is outstanding: one answer per request, one report per helper.
    answers: (
        mpsc::UnboundedSender<Answered>,
        mpsc::UnboundedReceiver<Answered>,
    ),
    reports: (
        mpsc::UnboundedSender<Report>,
        mpsc::UnboundedReceiver<Report>,
    ),
}

impl Sender {
    pub fn new(
        cluster: Arc<Cluster>,
        shared: Arc<Shared>,
        options: Options,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Sender {
        Sender {
            cluster,
            shared,
            options,
            commands,
            lanes: BTreeMap::new(),
            nodes: HashMap::new(),
            identification: Identification::Unknown,
            refreshing: HashSet::new(),
            flushes: Vec::new(),
            answers: mpsc::unbounded_channel(),
            reports: mpsc::unbounded_channel(),
        }
    }

    /// Runs until the producer is dropped and everything is settled.
    pub async fn run(mut self) {
        let mut abandoned = false;
        loop {
            let now = Instant::now();
            self.expire(now);
            self.dispatch(now);
            self.answer_flushes();
            if abandoned && self.oldest().is_none() {
                return;
            }
            let wake_at = self.next_deadline(now);
            tokio::select! {
                Some(answered) = self.answers.1.recv() => self.settle(answered),
                Some(report) = self.reports.1.recv() => self.note(report),
                command = self.commands.recv(), if !abandoned => match command {
                    Some(Command::Flush(done)) => self.flush(done),
                    None => abandoned = self.abandon(),
                },
                () = self.shared.wake.notified() => {}
                () = sleep_until(wake_at) => {}
            }
        }
    }

    fn flush(&mut self, done: oneshot::Sender<()>) {
        let bound = self.shared.queues().flush();
        self.flushes.push((bound, done));
    }

    fn abandon(&mut self) -> bool {
        self.shared.queues().flush();
        if self.oldest().is_some() {
            tracing::warn!("producer dropped with records under way; close it to learn their fate");
        }
        true
    }

    /// The id of the oldest batch that is not settled.
    fn oldest(&self) -> Option<u64> {
        let waiting = self.shared.queues().oldest();
        let flying = self.lanes.values().filter_map(Lane::oldest).min();
        waiting.into_iter().chain(flying).min()
    }

    fn answer_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let oldest = self.oldest().unwrap_or(u64::MAX);
        let (done, waiting): (Vec<_>, Vec<_>) = self
            .flushes
            .drain(..)
            .partition(|(bound, _)| *bound <= oldest);
        self.flushes = waiting;
        for (_, done) in done {
            // Whoever flushed may have gone.
            done.send(()).ok();
        }
    }

    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let give_up_after = self.options.retry.give_up_after;
        let queues = self.shared.queues();
        let queued = queues.oldest_born().map(|born| born + give_up_after);
        let due = queues.next_due(now);
        drop(queues);
        let lanes = self.lanes.values().flat_map(|lane| {
            let expires = lane.waiting_since().map(|born| born + give_up_after);
            [lane.rests_until(now), expires]
        });
        lanes.chain([queued, due]).flatten().min()
    }

    /// Sends whatever may be sent.
    fn dispatch(&mut self, now: Instant) {
        loop {
            let mut keys: BTreeSet<LaneKey> = self.shared.queues().due(now).into_iter().collect();
            let repeats = self
                .lanes
                .iter()
                .filter(|(_, lane)| lane.waiting_since().is_some());
            keys.extend(repeats.map(|(key, _)| key.clone()));
            let mut jobs: BTreeMap<i32, (usize, Vec<Item>)> = BTreeMap::new();
            for key in keys {
                let Some(leader) = self.leader(&key) else {
                    continue;
                };
                if self
                    .nodes
                    .get(&leader)
                    .is_some_and(|node| node.outstanding >= IN_FLIGHT_MAX)
                {
                    continue;
                }
                let (bytes, items) = jobs.entry(leader).or_default();
                if *bytes < REQUEST_BYTES_MAX
                    && let Some(item) = self.next_of(key, now)
                {
                    *bytes += item.bytes.len();
                    items.push(item);
                }
            }
            jobs.retain(|_, (_, items)| !items.is_empty());
            if jobs.is_empty() {
                return;
            }
            for (leader, (_, items)) in jobs {
                self.submit(leader, items);
            }
        }
    }

    fn leader(&mut self, key: &LaneKey) -> Option<i32> {
        let leader = self.cluster.leader(&key.topic, key.partition);
        if leader.is_none() {
            self.refresh(&key.topic);
        }
        leader
    }

    fn submit(&mut self, leader: i32, items: Vec<Item>) {
        let node = self.nodes.entry(leader).or_insert_with(|| {
            let (jobs, queue) = mpsc::unbounded_channel();
            let cluster = Arc::clone(&self.cluster);
            tokio::spawn(serve(cluster, leader, queue, self.answers.0.clone()));
            Node {
                outstanding: 0,
                jobs,
            }
        });
        node.outstanding += 1;
        // The task on the other end lives as long as this sender does.
        node.jobs.send(items).ok();
    }

    /// The batch a lane may send next: a repeated one first.
    fn next_of(&mut self, key: LaneKey, now: Instant) -> Option<Item> {
        let idempotent = self.options.idempotence;
        let lane = self
            .lanes
            .entry(key.clone())
            .or_insert_with(|| Lane::new(idempotent));
        if let Some(flight) = lane.relaunch(now) {
            let (flight, bytes) = (flight.id, flight.bytes.clone());
            return Some(Item {
                lane: key,
                flight,
                bytes,
            });
        }
        if !lane.has_room() || lane.rests_until(now).is_some() {
            return None;
        }
        let identity = if idempotent {
            Some(self.identity_for(&key)?)
        } else {
            None
        };
        let lane = self.lanes.get_mut(&key)?;
        let (batch, numbers) = {
            let mut queues = self.shared.queues();
            let count = queues.due_len(&key, now)?;
            let numbers = match identity {
                Some(identity) => Some((identity, lane.number(identity, count)?)),
                None => None,
            };
            (queues.take(&key, now)?, numbers)
        };
        let mut builder = batch.builder.compression(self.options.compression);
        if let Some((identity, first)) = numbers {
            builder = builder.producer(identity.id, identity.epoch, first);
        }
        match builder.build() {
            Ok(bytes) => {
                let flight = batch.id;
                lane.launch(Flight {
                    id: flight,
                    bytes: bytes.clone(),
                    deliveries: batch.deliveries,
                    permits: batch.permits,
                    born: batch.born,
                    sent: true,
                });
                Some(Item {
                    lane: key,
                    flight,
                    bytes,
                })
            }
            Err(error) => {
                lane.spend();
                let error = DeliveryError::Encode(error.to_string().into());
                self.fail(batch.deliveries, batch.permits, &error);
                None
            }
        }
    }

    /// The identity for a lane's next batch; asks a broker for one if there is none it can use.
    fn identity_for(&mut self, key: &LaneKey) -> Option<Identity> {
        let instead_of = match &self.identification {
            Identification::Asked { .. } => return None,
            Identification::Unknown => None,
            Identification::Known(known) => {
                if !self.lanes.get(key)?.needs_other_than(*known) {
                    return Some(*known);
                }
                Some(*known)
            }
        };
        self.identification = Identification::Asked { instead_of };
        let (cluster, reports) = (Arc::clone(&self.cluster), self.reports.0.clone());
        tokio::spawn(async move {
            let identity = cluster.retrying(|| new_identity(&cluster)).await;
            reports.send(Report::Identity(identity)).ok();
        });
        None
    }

    fn note(&mut self, report: Report) {
        match report {
            Report::Refreshed(topic) => drop(self.refreshing.remove(&topic)),
            Report::Identity(Ok(identity)) => {
                self.identification = Identification::Known(identity);
            }
            Report::Identity(Err(error)) => {
                let before = match self.identification {
                    Identification::Asked {
                        instead_of: Some(known),
                    } => Some(known),
                    _ => None,
                };
                self.identification = before.map_or(Identification::Unknown, Identification::Known);
                let waiting = self.shared.queues().take_all();
                let error = DeliveryError::NoProducerId(error);
                for (_, batch) in waiting {
                    self.fail(batch.deliveries, batch.permits, &error);
                }
            }
        }
    }

    /// Asks for a topic's metadata in the background, once at a time.
    fn refresh(&mut self, topic: &Arc<str>) {
        if !self.refreshing.insert(Arc::clone(topic)) {
            return;
        }
        let (cluster, reports) = (Arc::clone(&self.cluster), self.reports.0.clone());
        let (topic, pause) = (Arc::clone(topic), self.options.retry.backoff_min);
        tokio::spawn(async move {
            if let Err(error) = cluster.refresh(&topic).await {
                tracing::debug!(%topic, %error, "no metadata");
            }
            // While there is no leader, asking again at once would only keep everybody busy.
            tokio::time::sleep(pause).await;
            reports.send(Report::Refreshed(topic)).ok();
        });
    }

    fn settle(&mut self, answered: Answered) {
        if let Some(node) = self.nodes.get_mut(&answered.node) {
            node.outstanding = node.outstanding.saturating_sub(1);
        }
        for outcome in answered.outcomes {
            self.settle_one(outcome);
        }
    }

    fn settle_one(&mut self, outcome: Outcome) {
        let Outcome {
            lane: key,
            flight: id,
            result,
        } = outcome;
        let Some(lane) = self.lanes.get_mut(&key) else {
            return;
        };
        let answer = match result {
            Ok(answer) => answer,
            // Never written, and never will be.
            Err(error @ (RequestError::Encode(_) | RequestError::Unsupported { .. })) => {
                let error = DeliveryError::Encode(error.to_string().into());
                return self.refuse(&key, id, error);
            }
            Err(error) => return self.again(&key, id, error.to_string()),
        };
        match lane.judge(id, answer.code) {
            Verdict::Stored => {
                if let Some(flight) = lane.stored(id) {
                    self.deliver(&key, flight, &answer);
                }
            }
            Verdict::Again => {
                let why = answer
                    .message
                    .unwrap_or_else(|| crate::error::name(answer.code));
                self.again(&key, id, why);
            }
            Verdict::Refused => {
                let error = DeliveryError::Refused {
                    topic: Arc::clone(&key.topic),
                    partition: key.partition,
                    code: answer.code,
                    message: answer.message,
                };
                self.refuse(&key, id, error);
            }
        }
    }

    fn again(&mut self, key: &LaneKey, id: u64, why: String) {
        let retry = self.options.retry;
        let Some(lane) = self.lanes.get_mut(key) else {
            return;
        };
        tracing::debug!(topic = %key.topic, partition = key.partition, %why, "batch will be repeated");
        if let Some(failures) = lane.again(id, why) {
            lane.rest(Instant::now(), retry.backoff(failures));
            self.refresh(&key.topic);
        }
    }

    fn refuse(&mut self, key: &LaneKey, id: u64, error: DeliveryError) {
        let Some((first, behind)) = self.lanes.get_mut(key).and_then(|lane| lane.refused(id))
        else {
            return;
        };
        self.fail(first.deliveries, first.permits, &error);
        let error = DeliveryError::Behind {
            topic: Arc::clone(&key.topic),
            partition: key.partition,
            cause: error.to_string().into(),
        };
        for flight in behind {
            self.fail(flight.deliveries, flight.permits, &error);
        }
    }

    /// Gives up what is older than the retry policy allows.
    fn expire(&mut self, now: Instant) {
        let after = self.options.retry.give_up_after;
        let Some(oldest) = now.checked_sub(after) else {
            return;
        };
        let mut expired = Vec::new();
        for (key, lane) in &mut self.lanes {
            for flight in lane.expire(oldest) {
                expired.push((
                    key.clone(),
                    lane.last_error.clone(),
                    flight.deliveries,
                    flight.permits,
                ));
            }
        }
        for (
            key,
            Batch {
                deliveries,
                permits,
                ..
            },
        ) in self.shared.queues().take_expired(oldest)
        {
            let last = self.lanes.get(&key).map(|lane| lane.last_error.clone());
            let last = last.unwrap_or_else(|| "no leader is known".to_owned());
            expired.push((key, last, deliveries, permits));
        }
        for (key, last, deliveries, permits) in expired {
            let LaneKey { topic, partition } = key;
            let last = last.into();
            let error = DeliveryError::Expired {
                topic,
                partition,
                after,
                last,
            };
            self.fail(deliveries, permits, &error);
        }
    }

    fn deliver(&self, key: &LaneKey, flight: Flight, answer: &Answer) {
        self.shared.buffer.add_permits(flight.permits);
        // A duplicate that the broker no longer remembers in full has no offset.
        let base = (answer.base_offset >= 0 && answer.code == ErrorCode::None)
            .then_some(answer.base_offset);
        for (delivery, place) in flight.deliveries.into_iter().zip(0i64..) {
            let metadata = RecordMetadata {
                topic: Arc::clone(&key.topic),
                partition: key.partition,
                offset: base.map(|base| base + place),
                append_timestamp: (answer.append_timestamp >= 0).then_some(answer.append_timestamp),
            };
            // Nobody has to wait for a delivery.
            delivery.send(Ok(metadata)).ok();
        }
    }

    fn fail(
        &self,
        deliveries: Vec<oneshot::Sender<DeliveryResult>>,
        permits: usize,
        error: &DeliveryError,
    ) {
        self.shared.buffer.add_permits(permits);
        let lost = deliveries.len() as u64;
        self.shared.undelivered.fetch_add(lost, Ordering::AcqRel);
        for delivery in deliveries {
            delivery.send(Err(error.clone())).ok();
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn new_identity(cluster: &Cluster) -> Result<Identity, RequestError> {
    let request = message!(InitProducerIdRequest {
        transactional_id: None,
        transaction_timeout_ms: i32::MAX,
        producer_id: -1,
        producer_epoch: -1,
    });
    let connection = cluster.any_connection().await?;
    let timeout = cluster.settings.request_timeout;
    let response = connection.call(&request, cap::NEWEST, timeout).await?;
    match ErrorCode::from_code(response.error_code) {
        ErrorCode::None => Ok(Identity {
            id: response.producer_id,
            epoch: response.producer_epoch,
        }),
        code => Err(connection.refused("InitProducerId", code)),
    }
}
