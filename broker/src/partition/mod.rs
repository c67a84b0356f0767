//! A partition as its users see it: append, read, look up, wait.
//!
//! Promise: an append resolves with an offset only when its batch is durable on a majority and
//! applied; a read never returns what is not committed. Appends by one caller keep their order.
//! Not here: topics' names in requests, error codes, and how entries become durable.

mod append;
mod compaction;
mod delete_records;
mod line;
mod lookup;
mod producers;
mod read;
mod registry;
mod replica;
mod retention;
mod scrub;
mod sent_back;
#[cfg(test)]
mod tests;

pub use append::{AppendError, Appended, Appending, ValidBatch};
pub use compaction::{Settings as CompactionSettings, keep as keep_compacted};
pub use delete_records::DeleteRecordsError;
pub use lookup::{TimeOffset, TimeQuery};
pub use producers::ActiveProducer;
pub use read::{ReadError, ReadFrom, ReadOutcome, ReadRequest, ServedBy};
pub use registry::Registry;
pub use replica::{Clock, Expiration};
pub use retention::keep as keep_retention;
pub use scrub::keep as keep_scrubbed;

use crate::metrics::{self, TopicTraffic};
use crate::raft::{
    Group, GroupSpec, Links, Members, OnRole, OpenError, Outlook, ProposeError, ReplicaId, Role,
    Timers,
};
use crate::topic_config::{TopicConfig, TopicDefaults};
use append::Queue;
use bytes::Bytes;
use line::Lines;
use logd_proto::Uuid;
use logd_proto::record_batch::{HEADER_BYTES, patched_header};
use logd_storage::{Disk, Log, LogKey};
use parking_lot::RwLock;
use replica::{Progress, Replica};
use sent_back::SentBack;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Mutex, watch};

/// Who leads, in Kafka's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    /// The leader's node id, if known.
    pub leader: Option<i32>,
    /// Who will lead next, as far as can be foreseen.
    pub expected: Option<i32>,
    /// The leader epoch, which is the Raft term.
    pub epoch: i32,
    /// We lead, and everything committed before us is applied.
    pub serving: bool,
}

/// How long a leader that hands over waits for what is in flight.
const SETTLE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

/// How long a majority may take to say that it has elected nobody else.
const CONFIRM_PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

/// The offsets that clients see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offsets {
    pub log_start: i64,
    /// First offset that is not committed.
    pub high_watermark: i64,
    /// First offset of an open transaction, or the high watermark.
    pub last_stable: i64,
    pub log_end: i64,
}

/// Where an epoch ends (KIP-101).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochEnd {
    pub epoch: i32,
    pub end_offset: i64,
}

/// Rises whenever a voter may have turned to somebody else without our knowing.
pub type Lapses = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Which broker a disk belongs to, if any.
pub type NodeOf = Arc<dyn Fn(ReplicaId) -> Option<i32> + Send + Sync>;

/// Whether a disk's broker has heard this one a moment ago, so that it votes for nobody against it.
pub type HeardBy = Arc<dyn Fn(ReplicaId) -> bool + Send + Sync>;

/// What opening a partition needs.
pub struct Spec {
    pub topic_id: Uuid,
    pub topic: String,
    pub index: i32,
    pub replica: ReplicaId,
    /// Which broker a disk belongs to.
    pub node_of: NodeOf,
    /// The group's first voters.
    pub founders: BTreeSet<ReplicaId>,
    /// Whether it is this replica that founds the group.
    pub founds: bool,
    /// The replica votes once it holds this index again: it acknowledged it before it was damaged. 0 for none.
    pub floor: u64,
    /// How often the partition was recovered by force.
    pub generation: u32,
    /// The term in which that began; 0 if it never was.
    pub begins: u64,
    /// The broker's own records, which a full disk must still take.
    pub internal: bool,
    /// Whether a voter has heard this broker a moment ago.
    pub heard_by: HeardBy,
    pub lapses: Lapses,
    pub timers: Timers,
    pub links: Links,
    pub on_role: OnRole,
    pub config: Arc<TopicConfig>,
    /// How long a silent producer is remembered, now.
    pub producer_expiration_ms: Expiration,
    pub clock: Clock,
}

pub struct Partition {
    topic_id: Uuid,
    topic: String,
    index: i32,
    replica: ReplicaId,
    founders: BTreeSet<ReplicaId>,
    floor: AtomicU64,
    generation: u32,
    node_of: NodeOf,
    heard_by: HeardBy,
    lapses: Lapses,
    /// The term and the lapse in which a majority was last made sure of.
    confirmed: parking_lot::Mutex<Option<(i32, u64)>>,
    config: RwLock<Arc<TopicConfig>>,
    disk: Disk,
    log: Log,
    group: Group<Replica>,
    progress: Arc<Progress>,
    queue: Mutex<Queue>,
    lines: Arc<Lines>,
    sent_back: SentBack,
    traffic: Arc<TopicTraffic>,
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partition")
            .field("topic", &self.topic)
            .field("index", &self.index)
            .field("leadership", &self.leadership())
            .finish()
    }
}

impl Partition {
    /// Opens the replica on this broker's disk, creating it if it is new.
    ///
    /// # Errors
    /// If its files are fenced, or its group does not start.
    pub async fn open(spec: Spec, disk: Disk, log: Log) -> Result<Arc<Self>, OpenError> {
        log.set_options(spec.config.log_options());
        let lines = Lines::new();
        let progress = Progress::new(lines.clone());
        let (woken, told) = (lines.clone(), spec.on_role);
        let replica = Replica::new(
            log.clone(),
            progress.clone(),
            spec.clock,
            spec.producer_expiration_ms,
        );
        let group = GroupSpec {
            name: format!("{}-{}", spec.topic, spec.index),
            replica: spec.replica,
            founders: (spec.founds && spec.floor == 0).then(|| spec.founders.clone()),
            stamp: stamp_batch,
            timers: spec.timers,
            floor: spec.floor,
            generation: spec.generation,
            begins: spec.begins,
            client_data: !spec.internal,
            links: spec.links,
            on_role: Arc::new(move |role| {
                told(role);
                woken.wake();
            }),
        };
        let group = Group::open(group, log.clone(), replica).await?;
        Ok(Arc::new(Self {
            traffic: metrics::topic_traffic(&spec.topic),
            topic_id: spec.topic_id,
            topic: spec.topic,
            index: spec.index,
            replica: spec.replica,
            founders: spec.founders,
            floor: AtomicU64::new(spec.floor),
            generation: spec.generation,
            node_of: spec.node_of,
            heard_by: spec.heard_by,
            lapses: spec.lapses,
            confirmed: parking_lot::Mutex::new(None),
            config: RwLock::new(spec.config),
            disk,
            log,
            group,
            progress,
            queue: Mutex::new(Queue::default()),
            lines,
            sent_back: SentBack::default(),
        }))
    }

    pub fn topic_id(&self) -> Uuid {
        self.topic_id
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    pub fn index(&self) -> i32 {
        self.index
    }

    pub fn config(&self) -> Arc<TopicConfig> {
        self.config.read().clone()
    }

    /// Goes by what the topic says for itself now, and by what the broker gives where it says nothing; false if
    /// it does already. What was written stays as it is.
    pub fn reconfigure(&self, wanted: &TopicConfig, defaults: &TopicDefaults) -> bool {
        let now = self.config();
        let other = !now.asks_as(wanted) || now.defaults() != defaults;
        if other {
            let next = Arc::new(wanted.over(defaults));
            self.log.set_options(next.log_options());
            *self.config.write() = next;
        }
        other
    }

    pub fn leadership(&self) -> Leadership {
        let Role {
            term,
            leader,
            expected,
            serving,
        } = self.group.role();
        Leadership {
            leader: leader.and_then(|l| (self.node_of)(l)),
            expected: expected.and_then(|l| (self.node_of)(l)),
            epoch: epoch_of(term),
            serving,
        }
    }

    /// The group's members, and how far followers are if this replica leads.
    pub fn members(&self) -> Members {
        self.group.members()
    }

    /// Begins to write to a disk that does not vote.
    ///
    /// # Errors
    /// If this replica does not lead, or another change is under way.
    pub async fn add_learner(&self, disk: ReplicaId) -> Result<(), ProposeError> {
        self.group.add_learner(disk).await
    }

    /// Makes these disks the voters.
    ///
    /// # Errors
    /// As [`Partition::add_learner`].
    pub async fn set_voters(&self, voters: BTreeSet<ReplicaId>) -> Result<(), ProposeError> {
        // Who votes decides whose word the lease is: a proposal between the change and their first word
        // would be refused, and leave a hole among a producer's batches behind it.
        let mut queue = self.queue.lock().await;
        queue.forget_lease();
        self.group.set_voters(voters).await
    }

    /// Stops writing to a disk that does not vote.
    ///
    /// # Errors
    /// As [`Partition::add_learner`].
    pub async fn remove_learner(&self, disk: ReplicaId) -> Result<(), ProposeError> {
        self.group.remove_learner(disk).await
    }

    /// What this replica can say about the group's leadership.
    pub fn outlook(&self) -> Outlook {
        self.group.outlook()
    }

    /// A disk has restarted, or says itself that it does not lead.
    pub fn abandoned_by(&self, leader: ReplicaId) {
        self.group.abandoned_by(leader);
    }

    /// A disk says itself that it leads a term: it has restarted, and was elected before we noticed either.
    pub fn leads_after_all(&self, leader: ReplicaId, term: u64) {
        self.group.leads_after_all(leader, term);
    }

    /// True if this replica is the group's only voter.
    pub fn is_alone(&self) -> bool {
        self.group.is_alone()
    }

    /// True if this disk is one that the group was to be born with, and nobody has written to it yet.
    pub fn may_found(&self) -> bool {
        let bounds = self.log.bounds();
        self.floor.load(Ordering::Acquire) == 0
            && self.founders.contains(&self.replica)
            && bounds.last.is_none()
            && bounds.purged.is_none()
    }

    /// Files of this replica do not hold what they should.
    pub fn is_damaged(&self) -> bool {
        self.log.fenced().is_some()
    }

    /// True if it was written again after damage, and holds everything that it had acknowledged.
    pub fn is_whole_again(&self) -> bool {
        self.floor.load(Ordering::Acquire) > 0 && self.group.may_vote()
    }

    /// It votes only while it holds this index: it has acknowledged it.
    pub fn raise_floor(&self, index: u64) {
        self.floor.fetch_max(index, Ordering::AcqRel);
        self.group.raise_floor(index);
    }

    /// True while it lacks what it had acknowledged before it was damaged.
    pub fn misses_entries(&self) -> bool {
        self.floor.load(Ordering::Acquire) > 0 && !self.group.may_vote()
    }

    /// Lets every member hear from this leader.
    ///
    /// # Errors
    /// If the group has stopped.
    pub async fn hail(&self) -> Result<(), ProposeError> {
        self.group.hail().await
    }

    /// How often the partition had been recovered by force when this replica was opened.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The voters, of both halves while they change: an election takes a majority of each.
    pub fn electorates(&self) -> Vec<BTreeSet<ReplicaId>> {
        self.group.electorates()
    }

    pub fn key(&self) -> LogKey {
        self.log.key()
    }

    /// Founds the group in place of its founder, which is gone.
    ///
    /// # Errors
    /// If it is founded already, or the group has stopped.
    pub async fn found_late(&self) -> Result<(), ProposeError> {
        self.group.found_late(self.founders.clone()).await
    }

    /// Asks for the votes of a group that has no leader any more.
    ///
    /// # Errors
    /// If somebody was elected meanwhile, or the group has stopped.
    pub async fn take_over(&self) -> Result<(), ProposeError> {
        self.group.take_over().await
    }

    /// Lets `to` be elected at once.
    ///
    /// # Errors
    /// If the group has stopped.
    pub async fn make_way(&self, to: ReplicaId) -> Result<(), ProposeError> {
        self.group.make_way(to).await
    }

    /// Hands leadership to the voter that is furthest on, of those that pass. What is in flight is
    /// committed first, and what comes meanwhile waits, so no client sees a failure of either.
    ///
    /// # Errors
    /// If there is none, or it does not take over.
    pub async fn hand_over(&self, passes: impl Fn(ReplicaId) -> bool) -> Result<(), ProposeError> {
        let _nobody_appends = self.queue.lock().await;
        self.settled(SETTLE_PATIENCE).await;
        let members = self.group.members();
        let others = members.voters.iter().filter(|v| **v != self.replica);
        let heir = others
            .filter(|v| passes(**v))
            .min_by_key(|v| members.lag(**v));
        match heir {
            Some(heir) => self.group.hand_over(*heir).await,
            None => Err(ProposeError::ChangeRefused(
                "no other voter is there".into(),
            )),
        }
    }

    /// True if we lead as far as we know, and a majority has heard us a moment ago.
    pub fn is_heard(&self) -> bool {
        let heard = |voter| voter == self.replica || (self.heard_by)(voter);
        self.leadership().serving && self.group.has_majority(heard)
    }

    /// True if we lead and nobody else can have been elected: a majority was asked in this term, and has
    /// heard us without a break since.
    pub async fn is_current(&self) -> bool {
        if self.is_alone() {
            return self.leadership().serving;
        }
        // Read before a majority is asked: a lapse during the question makes the next caller ask again.
        let now = (self.leadership().epoch, (self.lapses)());
        if !self.is_heard() {
            return false;
        }
        if *self.confirmed.lock() == Some(now) {
            return true;
        }
        if self.group.renew_lease(CONFIRM_PATIENCE).await.is_err() {
            return false;
        }
        *self.confirmed.lock() = Some(now);
        self.is_heard() && self.leadership().epoch == now.0
    }

    /// Waits until everything that the log holds now is committed; false if that takes longer.
    pub async fn settled(&self, patience: std::time::Duration) -> bool {
        let end = self.offsets().log_end;
        let mut progress = self.progress();
        let there = progress.wait_for(|high_watermark| *high_watermark >= end);
        matches!(tokio::time::timeout(patience, there).await, Ok(Ok(_)))
    }

    /// Waits until somebody leads, as far as is known here.
    pub async fn led(&self) {
        let mut changes = self.leadership_changes();
        loop {
            changes.mark_unchanged();
            if self.outlook().leader.is_some() || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Wakes whenever [`Partition::leadership`] may have changed.
    pub fn leadership_changes(&self) -> watch::Receiver<()> {
        self.group.role_changes()
    }

    pub fn offsets(&self) -> Offsets {
        // Read in this order: none of them can then be seen ahead of the next.
        let log_start = self.progress.log_start();
        let high_watermark = self.progress.high_watermark();
        let log_end = self.log.bounds().end_offset.max(high_watermark);
        Offsets {
            log_start,
            high_watermark,
            last_stable: high_watermark,
            log_end,
        }
    }

    /// The high watermark, to wait on: it is published by the commit itself.
    pub fn progress(&self) -> watch::Receiver<i64> {
        self.progress.watch()
    }

    /// Counts what clients move in and out of the topic.
    pub fn traffic(&self) -> Arc<TopicTraffic> {
        self.traffic.clone()
    }

    pub fn size_bytes(&self) -> u64 {
        self.log.size_bytes()
    }

    /// The idempotent producers that have written lately, by id.
    pub fn active_producers(&self) -> Vec<ActiveProducer> {
        self.group.with_owner(|r| r.producers().active())
    }

    pub fn producers(&self) -> usize {
        self.group.with_owner(|r| r.producers().len())
    }

    /// Why the partition stopped for good, if it did.
    pub fn failure(&self) -> Option<String> {
        self.group.failure()
    }

    /// Waits until this replica serves.
    ///
    /// # Errors
    /// When the deadline passes first.
    pub async fn serving(&self, deadline: std::time::Duration) -> Result<(), ProposeError> {
        self.group.serving(deadline).await.map(drop)
    }

    pub async fn close(&self) {
        self.group.close().await;
    }
}

/// Kafka's leader epoch is the Raft term. Terms grow by one per election: 2^31 of them do not happen.
fn epoch_of(term: u64) -> i32 {
    i32::try_from(term).unwrap_or(i32::MAX)
}

/// Patches base offset and leader epoch into a copy of the header; both lie outside the batch's CRC,
/// so the records behind it need no copy.
fn stamp_batch(batch: &Bytes, base_offset: i64, term: u64) -> (Bytes, Bytes) {
    match patched_header(batch, base_offset, epoch_of(term)) {
        Some(head) => (Bytes::copy_from_slice(&head), batch.slice(HEADER_BYTES..)),
        // Shorter than a header: validation lets none through, and applying it will stop the group.
        None => (Bytes::new(), batch.clone()),
    }
}
