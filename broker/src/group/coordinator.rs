//! The way in: which task owns a group, and how a request gets there.
//!
//! Promise: requests submitted one after the other reach their group in that order. Every wait for
//! room is bounded.
//! Invariant: one worker per partition of `__consumer_offsets`, started by the first request for
//! it; dropping the coordinator ends them all.
//!
//! Not here: what a worker does (`worker`), which broker a group belongs to (the metadata says).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use logd_proto::offsets_topic::partition_of;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::metrics;

use super::event::{Event, Millis, Name, Refusal, Ticket};
use super::lag::Looked;
use super::log::OffsetsTopic;
use super::record::TopicId;
use super::state::{Group, Limits};
use super::worker::{Listed, Message, Worker};

/// Requests that wait for one partition's groups. More than the connections that matter send at
/// once; beyond it, senders wait, and their connections with them.
const MAILBOX_MAX: usize = 1024;

/// How long a request waits for room before the client is asked to come again.
const ROOM_DEADLINE: Duration = Duration::from_secs(5);

/// How often groups are counted for metrics: their owners are tasks, which a scrape must not wait for.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// What the coordinator is told once, at the start.
#[derive(Clone)]
pub struct Settings {
    /// What groups live by, asked each time.
    pub limits: Arc<dyn Fn() -> Limits + Send + Sync>,
    /// `offsets.retention.check.interval.ms`
    pub expiry_interval_ms: Millis,
    /// The time, in milliseconds since the Unix epoch; must not go back.
    pub clock: Arc<dyn Fn() -> Millis + Send + Sync>,
    /// The random part of a member id.
    pub random_id: Arc<dyn Fn() -> String + Send + Sync>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("limits", &(self.limits)())
            .field("expiry_interval_ms", &self.expiry_interval_ms)
            .finish_non_exhaustive()
    }
}

impl Default for Settings {
    /// Kafka's defaults, this machine's clock and randomness.
    fn default() -> Settings {
        Settings {
            limits: Arc::new(Limits::default),
            expiry_interval_ms: 10 * 60 * 1000,
            clock: steady_clock(),
            random_id: Arc::new(|| uuid::Uuid::new_v4().to_string()),
        }
    }
}

/// The wall clock at the start and a monotonic one from there: sessions must not end because
/// somebody set the time.
fn steady_clock() -> Arc<dyn Fn() -> Millis + Send + Sync> {
    let since_epoch = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let started = tokio::time::Instant::now();
    Arc::new(move || {
        let now = since_epoch.saturating_add(started.elapsed());
        Millis::try_from(now.as_millis()).unwrap_or(Millis::MAX)
    })
}

/// The groups that this broker coordinates.
#[derive(Debug)]
pub struct Coordinator {
    settings: Settings,
    topic: Topic,
    mailboxes: Mutex<HashMap<i32, mpsc::Sender<Message>>>,
}

struct Topic(Arc<dyn OffsetsTopic>);

impl std::fmt::Debug for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Topic")
    }
}

impl Coordinator {
    /// Must be called, and used, within a tokio runtime: workers are its tasks.
    pub fn new(settings: Settings, topic: Arc<dyn OffsetsTopic>) -> Coordinator {
        Coordinator {
            settings,
            topic: Topic(topic),
            mailboxes: Mutex::default(),
        }
    }

    /// The partition of `__consumer_offsets` that a group belongs to; `None` before the topic
    /// exists.
    pub fn partition_of(&self, group: &str) -> Option<i32> {
        let partitions = self.topic.0.partitions();
        (partitions > 0).then(|| partition_of(group, partitions))
    }

    /// A member id for somebody who has none.
    pub fn fresh_member_id(&self, prefix: &str) -> Name {
        format!("{prefix}-{}", (self.settings.random_id)()).into()
    }

    /// Queues an event for a group. When this returns, whatever is submitted later comes later.
    ///
    /// # Errors
    /// [`Refusal::NotCoordinator`] and [`Refusal::NotAvailable`], when nobody here could take it.
    pub async fn submit<T: Send + 'static>(
        &self,
        group: &str,
        event: impl FnOnce(Ticket<T>) -> Event,
    ) -> Result<Answer<T>, Refusal> {
        let index = self.partition_of(group).ok_or(Refusal::NotAvailable)?;
        let mailbox = self.mailbox(index).ok_or(Refusal::NotCoordinator)?;
        let (ticket, answer) = Ticket::new();
        post(&mailbox, Message::Group(group.into(), event(ticket))).await?;
        Ok(Answer(answer))
    }

    /// The groups of all partitions that this broker leads.
    ///
    /// # Errors
    /// [`Refusal::Loading`] while one of them is still being read.
    pub async fn list(&self) -> Result<Vec<Listed>, Refusal> {
        let mut answers = Vec::new();
        for mailbox in self.led() {
            let (ticket, answer) = Ticket::new();
            post(&mailbox, Message::List(ticket)).await?;
            answers.push(Answer(answer));
        }
        let mut groups = Vec::new();
        for answer in answers {
            match answer.wait().await.and_then(|listed| listed) {
                Ok(listed) => groups.extend(listed),
                // It moved away since; its new coordinator lists them.
                Err(Refusal::NotCoordinator) => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(groups)
    }

    /// What the groups of all partitions that this broker leads have committed, up to so many offsets.
    ///
    /// # Errors
    /// As [`Coordinator::list`].
    pub(super) async fn committed(&self, at_most: usize) -> Result<Looked, Refusal> {
        let mut all = Looked::default();
        for mailbox in self.led() {
            let (ticket, answer) = Ticket::new();
            let room = at_most.saturating_sub(all.committed.len());
            post(&mailbox, Message::Committed(room, ticket)).await?;
            match Answer(answer).wait().await.and_then(|looked| looked) {
                Ok(looked) => {
                    all.committed.extend(looked.committed);
                    all.more += looked.more;
                }
                Err(Refusal::NotCoordinator) => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(all)
    }

    /// Forgets the offsets of deleted topics.
    pub async fn topics_deleted(&self, topics: BTreeSet<TopicId>) {
        for mailbox in self.led() {
            if post(&mailbox, Message::TopicsDeleted(topics.clone()))
                .await
                .is_err()
            {
                // Their ids no longer match, so they are not served; retention removes them.
                tracing::warn!("offsets of deleted topics stay until they expire");
            }
        }
    }

    /// Keeps the gauges of groups and members true to within ten seconds, until it is dropped.
    pub async fn keep_counted(self: Arc<Self>) {
        loop {
            tokio::time::sleep(COUNT_EVERY).await;
            // While groups are loaded, the last count stands.
            if let Ok(groups) = self.list().await {
                let of_state = |state| groups.iter().filter(|g| g.state == state).count();
                let by_state = Group::STATE_NAMES.map(|state| (state, of_state(state)));
                metrics::set_groups(&by_state, groups.iter().map(|g| g.members).sum());
            }
        }
    }

    fn led(&self) -> Vec<mpsc::Sender<Message>> {
        let leads = |index: &i32| {
            let log = self.topic.0.partition(*index);
            log.is_some_and(|log| log.leading().is_some())
        };
        (0..self.topic.0.partitions())
            .filter(leads)
            .filter_map(|index| self.mailbox(index))
            .collect()
    }

    fn mailbox(&self, index: i32) -> Option<mpsc::Sender<Message>> {
        let mut mailboxes = self.mailboxes.lock();
        let alive = mailboxes.get(&index).filter(|mailbox| !mailbox.is_closed());
        if let Some(mailbox) = alive {
            return Some(mailbox.clone());
        }
        self.topic.0.partition(index)?;
        let (mailbox, messages) = mpsc::channel(MAILBOX_MAX);
        let worker = Worker::new(index, self.topic.0.clone(), self.settings.clone(), messages);
        tokio::spawn(worker.run());
        mailboxes.insert(index, mailbox.clone());
        Some(mailbox)
    }
}

async fn post(mailbox: &mpsc::Sender<Message>, message: Message) -> Result<(), Refusal> {
    mailbox
        .send_timeout(message, ROOM_DEADLINE)
        .await
        .map_err(|_| Refusal::NotAvailable)
}

/// An answer to come.
#[derive(Debug)]
pub struct Answer<T>(oneshot::Receiver<T>);

impl<T> Answer<T> {
    /// Waits for it.
    ///
    /// # Errors
    /// [`Refusal::NotCoordinator`] when the group was unloaded meanwhile.
    pub async fn wait(self) -> Result<T, Refusal> {
        self.0.await.map_err(|_| Refusal::NotCoordinator)
    }
}
