//! The task that owns the groups of one partition of `__consumer_offsets`.
//!
//! Promise: requests are taken in the order they were sent; many that wait together share one
//! append. When leadership ends, or an append's outcome is unknown, every group is dropped (their
//! parked requests learn that this coordinator is gone) and read again from the log.
//! Invariant: one append is on its way at a time, so its outcome is known before the next.
//!
//! Not here: what the groups decide.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use logd_proto::record_batch::{BatchBuilder, BuildError};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::metrics;

use super::codec::{self, Encoded};
use super::coordinator::Settings;
use super::event::{Effect, Event, Millis, Name, Refusal, Ticket, Token, WriteError};
use super::lag::{Committed, Looked};
use super::load::{Groups, load};
use super::log::{AppendError, OffsetsLog, OffsetsTopic};
use super::record::TopicId;
use super::state::Group;

/// Writes share a batch up to this size, so that one append stays quick.
const BATCH_BYTES_MAX: usize = 512 << 10;

/// The largest batch for a single write: just below the default `max.message.bytes`.
const WRITE_BYTES_MAX: usize = 1_000_000;

/// Lengths, deltas and flags around a record's key and value, at most.
const RECORD_OVERHEAD: usize = 32;

/// Messages taken before the log is looked after again.
const BURST: usize = 256;

/// A load shorter than this is not worth sending clients into their back-off.
const LOAD_GRACE: Duration = Duration::from_millis(200);

/// Between attempts to load, and between looks for a partition that has moved.
const RETRY: Duration = Duration::from_secs(1);

/// An append that takes longer has an unknown outcome.
const APPEND_DEADLINE: Duration = Duration::from_secs(35);

/// One row of a list of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The group.
    pub id: Name,
    /// Empty for a group that only stores offsets.
    pub protocol_type: Name,
    /// One of Kafka's state names.
    pub state: &'static str,
    /// How many members it has.
    pub members: usize,
}

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Message {
    /// For one group.
    Group(Name, Event),
    /// Which groups are there?
    List(Ticket<Result<Vec<Listed>, Refusal>>),
    /// What have they committed, up to so many offsets?
    Committed(usize, Ticket<Result<Looked, Refusal>>),
    /// These topics are gone.
    TopicsDeleted(BTreeSet<TopicId>),
}

/// Why a worker stopped serving.
enum End {
    /// Somebody else leads, or the outcome of an append is unknown.
    Unload(&'static str),
    /// Nobody can send any more.
    Closed,
}

struct Write {
    group: Name,
    token: Token,
    records: Vec<Encoded>,
}

impl Write {
    /// About its size in a batch.
    fn bytes(&self) -> usize {
        let lengths = self
            .records
            .iter()
            .map(|(key, value)| RECORD_OVERHEAD + key.len() + value.as_ref().map_or(0, Bytes::len));
        lengths.sum()
    }
}

fn pack(now: Millis, writes: &[Write]) -> Result<Bytes, BuildError> {
    let mut batch = BatchBuilder::new();
    for (key, value) in writes.iter().flat_map(|write| &write.records) {
        batch.push(now, Some(key), value.as_deref(), &[])?;
    }
    let bytes = batch.build()?;
    if bytes.len() <= WRITE_BYTES_MAX {
        Ok(bytes)
    } else {
        Err(BuildError::TooLarge)
    }
}

type Flight = BoxFuture<'static, (Vec<(Name, Token)>, Result<(), AppendError>)>;

pub(super) struct Worker {
    pub(super) index: i32,
    pub(super) topic: Arc<dyn OffsetsTopic>,
    pub(super) settings: Settings,
    pub(super) mailbox: mpsc::Receiver<Message>,
    /// Topics deleted while the groups were not here to hear it.
    gone: BTreeSet<TopicId>,
}

impl Worker {
    pub(super) fn new(
        index: i32,
        topic: Arc<dyn OffsetsTopic>,
        settings: Settings,
        mailbox: mpsc::Receiver<Message>,
    ) -> Worker {
        Worker {
            index,
            topic,
            settings,
            mailbox,
            gone: BTreeSet::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let mut end = End::Unload("start");
        while let End::Unload(_) = end {
            end = match self.leading() {
                Some((log, epoch)) => self.lead(log, epoch).await,
                None => self.follow().await,
            };
            if let End::Unload(why) = end {
                tracing::debug!(partition = self.index, why, "groups are not served here");
            }
        }
    }

    fn leading(&self) -> Option<(Arc<dyn OffsetsLog>, i32)> {
        let log = self.topic.partition(self.index)?;
        let epoch = log.leading()?;
        Some((log, epoch))
    }

    /// Refuses what comes until this broker may lead.
    async fn follow(&mut self) -> End {
        let changes = self
            .topic
            .partition(self.index)
            .map(|log| log.leading_changes());
        let until = async {
            match changes {
                // A log that is closed or replaced never tells; so look again.
                Some(changes) => drop(timeout(RETRY, changed(changes)).await),
                None => sleep(RETRY).await,
            }
        };
        match self.refuse_until(Refusal::NotCoordinator, until).await {
            Some(()) => End::Unload("another broker leads"),
            None => End::Closed,
        }
    }

    /// Loads, then serves for as long as the epoch lasts.
    async fn lead(&mut self, log: Arc<dyn OffsetsLog>, epoch: i32) -> End {
        let now = (self.settings.clock)();
        let mut loading = Box::pin(load(log.clone(), (self.settings.limits)(), now));
        let early = timeout(LOAD_GRACE, &mut loading).await;
        let loaded = match early {
            Ok(loaded) => Some(loaded),
            Err(_) => self.refuse_until(Refusal::Loading, loading).await,
        };
        match loaded {
            None => End::Closed,
            Some(Ok(groups)) => {
                // Most partitions of the offsets topic hold no group: fifty lines at each start say nothing.
                if groups.is_empty() {
                    tracing::debug!(partition = self.index, epoch, "no groups to load");
                } else {
                    tracing::info!(
                        partition = self.index,
                        groups = groups.len(),
                        epoch,
                        "groups loaded"
                    );
                }
                Desk::new(self, log, epoch, groups).serve().await
            }
            Some(Err(why)) => {
                tracing::warn!(partition = self.index, %why, "groups could not be loaded");
                match self.refuse_until(Refusal::Loading, sleep(RETRY)).await {
                    Some(()) => End::Unload("loading failed"),
                    None => End::Closed,
                }
            }
        }
    }

    /// `None` when nobody can send any more.
    async fn refuse_until<F: Future>(&mut self, refusal: Refusal, until: F) -> Option<F::Output> {
        let mut until = std::pin::pin!(until);
        loop {
            tokio::select! {
                biased;
                done = &mut until => return Some(done),
                message = self.mailbox.recv() => self.refuse(message?, refusal),
            }
        }
    }

    fn refuse(&mut self, message: Message, refusal: Refusal) {
        let reply = match message {
            Message::Group(_, event) => event.refuse(refusal),
            Message::List(ticket) => Some(ticket.accept(Err(refusal))),
            Message::Committed(_, ticket) => Some(ticket.accept(Err(refusal))),
            Message::TopicsDeleted(topics) => {
                self.gone.extend(topics);
                None
            }
        };
        if let Some(reply) = reply {
            reply.send();
        }
    }
}

async fn changed(mut changes: watch::Receiver<()>) {
    if changes.changed().await.is_err() {
        // The sender is gone for good; the caller's deadline ends the wait.
        std::future::pending::<()>().await;
    }
}

/// The groups while they are served.
struct Desk<'a> {
    worker: &'a mut Worker,
    log: Arc<dyn OffsetsLog>,
    epoch: i32,
    groups: Groups,
    /// Deadlines, soonest first. An entry may be early (the deadline has moved on); never late.
    timers: BinaryHeap<Reverse<(Millis, Name)>>,
    /// The entry of each group that counts.
    scheduled: HashMap<Name, Millis>,
    waiting: Vec<Write>,
    flight: Option<Flight>,
    next_expiry: Millis,
}

impl<'a> Desk<'a> {
    fn new(worker: &'a mut Worker, log: Arc<dyn OffsetsLog>, epoch: i32, groups: Groups) -> Self {
        let now = (worker.settings.clock)();
        let next_expiry = now.saturating_add(worker.settings.expiry_interval_ms);
        Desk {
            worker,
            log,
            epoch,
            groups,
            timers: BinaryHeap::new(),
            scheduled: HashMap::new(),
            waiting: Vec::new(),
            flight: None,
            next_expiry,
        }
    }

    async fn serve(mut self) -> End {
        let ids: Vec<Name> = self.groups.keys().cloned().collect();
        ids.iter().for_each(|id| self.schedule(id));
        let gone = std::mem::take(&mut self.worker.gone);
        self.for_all(|| Event::TopicsDeleted(gone.clone()));
        let mut changes = self.log.leading_changes();
        loop {
            // Looked at each time round: a change may have come before we began to listen.
            if self.log.leading() != Some(self.epoch) {
                return End::Unload("leadership ended");
            }
            self.take_off();
            let wake = self.until_next_deadline();
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                (tokens, outcome) = landing(&mut self.flight) => {
                    self.flight = None;
                    if let Some(why) = self.landed(tokens, outcome) {
                        return End::Unload(why);
                    }
                }
                message = self.worker.mailbox.recv() => match message {
                    Some(message) => self.take_burst(message),
                    None => return End::Closed,
                },
                () = sleep(wake) => self.on_time(),
            }
        }
    }

    fn now(&self) -> Millis {
        (self.worker.settings.clock)()
    }

    fn take_burst(&mut self, first: Message) {
        self.take(first);
        for _ in 1..BURST {
            match self.worker.mailbox.try_recv() {
                Ok(message) => self.take(message),
                Err(_) => break,
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Group(id, event) => self.step(&id, event),
            Message::List(ticket) => ticket.accept(Ok(self.list())).send(),
            Message::Committed(at_most, ticket) => {
                ticket.accept(Ok(self.committed(at_most))).send();
            }
            Message::TopicsDeleted(topics) => {
                self.for_all(|| Event::TopicsDeleted(topics.clone()));
            }
        }
    }

    fn for_all(&mut self, event: impl Fn() -> Event) {
        let ids: Vec<Name> = self.groups.keys().cloned().collect();
        for id in ids {
            self.step(&id, event());
        }
    }

    fn committed(&self, at_most: usize) -> Looked {
        let groups = self.groups.values();
        let mut all = groups.flat_map(|group| {
            let offsets = group.offsets.committed();
            offsets.map(|((topic, partition), offset)| Committed {
                group: group.id().clone(),
                topic: topic.clone(),
                partition: *partition,
                offset: offset.offset,
            })
        });
        let committed = all.by_ref().take(at_most).collect();
        let more = all.count();
        Looked { committed, more }
    }

    fn list(&self) -> Vec<Listed> {
        self.groups
            .values()
            .map(|group| Listed {
                id: group.id().clone(),
                protocol_type: group.protocol_type().cloned().unwrap_or_default(),
                state: group.state_name(),
                members: group.members_count(),
            })
            .collect()
    }

    /// Asks the group, and does what it says.
    fn step(&mut self, id: &Name, event: Event) {
        let now = self.now();
        let limits = (self.worker.settings.limits)();
        let group = self
            .groups
            .entry(id.clone())
            .or_insert_with(|| Group::new(id.clone(), limits));
        group.lives_by(limits);
        let generation = group.generation();
        let effects = group.step(now, event);
        if group.generation() > generation {
            metrics::group_rebalanced();
        }
        for effect in effects {
            match effect {
                Effect::Reply(reply) => reply.send(),
                Effect::Persist { token, records } => self.waiting.push(Write {
                    group: id.clone(),
                    token,
                    records: records
                        .iter()
                        .map(|record| codec::encode(id, record))
                        .collect(),
                }),
                Effect::Log(line) => {
                    tracing::info!(group = %id, partition = self.worker.index, "{line}")
                }
            }
        }
        if group.is_vacant() {
            self.groups.remove(id);
        } else {
            self.schedule(id);
        }
    }

    /// Sees to it that the group is woken in time. A deadline that moved on, as every heartbeat's
    /// does, costs nothing: the earlier entry fires, finds nothing due and schedules the next.
    fn schedule(&mut self, id: &Name) {
        let due = self.groups.get(id).and_then(Group::next_deadline);
        let Some(due) = due else { return };
        let soon_enough = self.scheduled.get(id).is_some_and(|at| *at <= due);
        if !soon_enough {
            self.scheduled.insert(id.clone(), due);
            self.timers.push(Reverse((due, id.clone())));
        }
    }

    fn until_next_deadline(&self) -> Duration {
        let next = self.timers.peek().map(|Reverse((due, _))| *due);
        let next = next.unwrap_or(Millis::MAX).min(self.next_expiry);
        let span = next.saturating_sub(self.now()).max(0);
        // One more, as the clock's milliseconds and the timer's need not begin together.
        Duration::from_millis(span.unsigned_abs().saturating_add(1))
    }

    fn on_time(&mut self) {
        let now = self.now();
        while let Some(Reverse((due, _))) = self.timers.peek()
            && *due <= now
            && let Some(Reverse((due, id))) = self.timers.pop()
        {
            if self.scheduled.get(&id) == Some(&due) {
                self.scheduled.remove(&id);
                if self.groups.contains_key(&id) {
                    self.step(&id, Event::Tick);
                }
            }
        }
        if self.next_expiry <= now {
            self.next_expiry = now.saturating_add(self.worker.settings.expiry_interval_ms);
            self.for_all(|| Event::Expire);
        }
    }

    /// Sends what waits to the log, if nothing is on its way.
    fn take_off(&mut self) {
        while self.flight.is_none() && !self.waiting.is_empty() {
            let (aboard, batch) = self.board();
            match batch {
                Ok(bytes) => {
                    let append = timeout(APPEND_DEADLINE, self.log.append(bytes));
                    self.flight = Some(Box::pin(async move {
                        let outcome = append.await.unwrap_or(Err(AppendError::Unknown));
                        (aboard, outcome)
                    }));
                }
                Err(why) => {
                    tracing::warn!(%why, "a batch of group records could not be built");
                    self.fail(aboard, WriteError::TooLarge);
                }
            }
        }
    }

    /// As many of the waiting writes as fit into one batch, in order; one at least.
    fn board(&mut self) -> (Vec<(Name, Token)>, Result<Bytes, BuildError>) {
        let mut bytes = 0;
        let mut fits = |write: &Write| {
            let first = bytes == 0;
            bytes += write.bytes();
            first || bytes <= BATCH_BYTES_MAX
        };
        let count = self
            .waiting
            .iter()
            .map_while(|write| fits(write).then_some(()))
            .count();
        let aboard: Vec<Write> = self.waiting.drain(..count).collect();
        let batch = pack(self.now(), &aboard);
        let names = aboard
            .into_iter()
            .map(|write| (write.group, write.token))
            .collect();
        (names, batch)
    }

    fn fail(&mut self, writes: Vec<(Name, Token)>, why: WriteError) {
        for (group, token) in writes {
            self.step(&group, Event::PersistFailed(token, why));
        }
    }

    /// Tells the groups what became of their writes. Returns why serving must end, if it must.
    fn landed(
        &mut self,
        writes: Vec<(Name, Token)>,
        outcome: Result<(), AppendError>,
    ) -> Option<&'static str> {
        match outcome {
            // In another epoch somebody else may have written in between.
            Ok(()) if self.log.leading() != Some(self.epoch) => Some("leadership ended"),
            Ok(()) => {
                for (group, token) in writes {
                    self.step(&group, Event::Persisted(token));
                }
                None
            }
            Err(AppendError::Unavailable) => {
                self.fail(writes, WriteError::Unavailable);
                None
            }
            Err(AppendError::TooLarge) => {
                self.fail(writes, WriteError::TooLarge);
                None
            }
            Err(AppendError::NotLeader) => Some("another broker leads"),
            Err(AppendError::Unknown) => Some("an append's outcome is unknown"),
        }
    }
}

async fn landing(flight: &mut Option<Flight>) -> (Vec<(Name, Token)>, Result<(), AppendError>) {
    match flight {
        Some(flight) => flight.await,
        None => std::future::pending().await,
    }
}
