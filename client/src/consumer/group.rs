//! A member of a consumer group, by the classic protocol with eager range assignment.
//!
//! Promise: a member reads only what it was assigned in the current generation, and begins where the
//! group committed. Heartbeats go on in the background while the caller works, so a caller that never
//! comes back keeps its partitions until the next rebalance.
//!
//! Not here: the requests ([`super::membership`]), the rule of assignment ([`crate::assignment`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use logd_proto::ErrorCode;
use logd_proto::messages::JoinGroupResponse;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::membership::{Coordinator, Member};
use super::{Consumer, ConsumerBuilder, PartitionKey, StartAt};
use crate::assignment;
use crate::cluster::Cluster;
use crate::error::ConsumeError;
use crate::offsets::OffsetAt;
use crate::record::ConsumedRecord;

/// A member beats this often within its session.
const BEATS_PER_SESSION: u32 = 5;

/// Builds a [`GroupConsumer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct GroupConsumerBuilder {
    cluster: Arc<Cluster>,
    group: String,
    topics: Vec<String>,
    start: OffsetAt,
    session_timeout: Duration,
    rebalance_timeout: Duration,
    commit_interval: Option<Duration>,
    max_wait: Option<Duration>,
}

impl GroupConsumerBuilder {
    pub(crate) fn new(cluster: Arc<Cluster>, group: String) -> GroupConsumerBuilder {
        GroupConsumerBuilder {
            cluster,
            group,
            topics: Vec::new(),
            start: OffsetAt::End,
            session_timeout: Duration::from_secs(30),
            rebalance_timeout: Duration::from_secs(60),
            commit_interval: None,
            max_wait: None,
        }
    }

    /// The topics to read.
    pub fn subscribe<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.topics = topics.into_iter().map(Into::into).collect();
        self
    }

    /// Where to begin in partitions of which the group has committed nothing, or something that is no
    /// longer there. At the end.
    pub fn start_at(mut self, start: OffsetAt) -> Self {
        self.start = start;
        self
    }

    /// How long the group waits for a member that fell silent. 30 s.
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.session_timeout = timeout;
        self
    }

    /// How long the group waits for a member that works on its last records. 60 s.
    pub fn rebalance_timeout(mut self, timeout: Duration) -> Self {
        self.rebalance_timeout = timeout;
        self
    }

    /// Commits in the background of [`next_batch`](GroupConsumer::next_batch), so often: what earlier
    /// calls returned counts as processed. Unless said, only
    /// [`commit`](GroupConsumer::commit) commits.
    pub fn auto_commit(mut self, every: Duration) -> Self {
        self.commit_interval = Some(every);
        self
    }

    /// How long a broker may hold an answer back for records. 500 ms.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = Some(wait);
        self
    }

    /// Checks that the topics exist. The group is joined by the first
    /// [`next_batch`](GroupConsumer::next_batch).
    ///
    /// # Errors
    /// When a topic is not there or no broker answers.
    pub async fn build(self) -> Result<GroupConsumer, ConsumeError> {
        let mut consumer =
            ConsumerBuilder::new(Arc::clone(&self.cluster)).on_out_of_range(self.start);
        if let Some(wait) = self.max_wait {
            consumer = consumer.max_wait(wait);
        }
        let consumer = consumer.build();
        for topic in &self.topics {
            consumer.require_topic(topic).await?;
        }
        let coordinator = Coordinator {
            cluster: self.cluster,
            group: self.group.into(),
            session_timeout: self.session_timeout,
            rebalance_timeout: self.rebalance_timeout,
        };
        Ok(GroupConsumer {
            consumer,
            coordinator,
            topics: self.topics,
            start: self.start,
            commit_interval: self.commit_interval,
            last_commit: Instant::now(),
            committed: BTreeMap::new(),
            member: Member {
                id: String::new(),
                generation: -1,
            },
            heartbeat: None,
        })
    }
}

/// A member of a consumer group.
///
/// Dropping it without [`close`](GroupConsumer::close) leaves the group waiting for the session to end.
#[derive(Debug)]
pub struct GroupConsumer {
    consumer: Consumer,
    coordinator: Coordinator,
    topics: Vec<String>,
    start: OffsetAt,
    commit_interval: Option<Duration>,
    last_commit: Instant,
    committed: BTreeMap<PartitionKey, i64>,
    member: Member,
    /// While we are in a generation.
    heartbeat: Option<Heartbeat>,
}

#[derive(Debug)]
struct Heartbeat {
    task: AbortHandle,
    /// Why the generation is over, once it is.
    over: watch::Receiver<Option<ErrorCode>>,
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Heartbeat {
    fn start(coordinator: Coordinator, member: Member) -> Heartbeat {
        let (end, over) = watch::channel(None);
        let task = tokio::spawn(beat(coordinator, member, end)).abort_handle();
        Heartbeat { task, over }
    }

    /// Resolves when the generation is over.
    async fn ended(&mut self) -> ErrorCode {
        match self.over.wait_for(Option::is_some).await {
            Ok(code) => code.unwrap_or(ErrorCode::UnknownMemberId),
            // The task ended, which it does when the membership is lost.
            Err(_) => ErrorCode::UnknownMemberId,
        }
    }
}

async fn beat(coordinator: Coordinator, member: Member, end: watch::Sender<Option<ErrorCode>>) {
    let interval = coordinator.session_timeout / BEATS_PER_SESSION;
    let interval = interval.min(Duration::from_secs(3));
    let mut last_success = Instant::now();
    loop {
        tokio::time::sleep(interval).await;
        match coordinator.beat(&member).await {
            Ok(()) => last_success = Instant::now(),
            Err(error) => match error.kafka_code() {
                // The others wait for us; the session must not end before the caller comes back.
                Some(ErrorCode::RebalanceInProgress) => {
                    last_success = Instant::now();
                    end.send_replace(Some(ErrorCode::RebalanceInProgress));
                }
                Some(code) if !code.is_retriable() => {
                    end.send_replace(Some(code));
                    return;
                }
                _ if last_success.elapsed() > coordinator.session_timeout => {
                    end.send_replace(Some(ErrorCode::UnknownMemberId));
                    return;
                }
                _ => tracing::debug!(%error, "heartbeat"),
            },
        }
    }
}

impl GroupConsumer {
    /// The next records of some assigned partition. Joins the group first where that is necessary.
    ///
    /// # Cancel safety
    /// Safe: records are handed out whole or kept; a join that was cut off is taken up again.
    ///
    /// # Errors
    /// When the group refuses this member, or a partition cannot be read.
    pub async fn next_batch(&mut self) -> Result<Vec<ConsumedRecord>, ConsumeError> {
        self.next_batch_of(usize::MAX).await
    }

    /// As [`next_batch`](GroupConsumer::next_batch), but at most so many records (and at least one):
    /// the rest comes with the next call, and a commit does not reach beyond what was handed out.
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
            self.commit_if_due().await?;
            self.join().await?;
            let Some(heartbeat) = &mut self.heartbeat else {
                continue;
            };
            tokio::select! {
                biased;
                code = heartbeat.ended() => self.generation_over(code).await,
                batch = self.consumer.next_batch_of(limit) => return batch,
            }
        }
    }

    /// Becomes a member, unless it is one. [`next_batch`](GroupConsumer::next_batch) does so by itself;
    /// this is for callers who want to know [`assignment`](GroupConsumer::assignment) first.
    ///
    /// # Cancel safety
    /// Safe: a join that was cut off is taken up again.
    ///
    /// # Errors
    /// When the group refuses this member.
    pub async fn join(&mut self) -> Result<(), ConsumeError> {
        match self.heartbeat {
            Some(_) => Ok(()),
            None => self.enter_generation().await,
        }
    }

    /// Commits behind everything that [`next_batch`](GroupConsumer::next_batch) has returned.
    ///
    /// # Cancel safety
    /// The commit may or may not have happened.
    ///
    /// # Errors
    /// When the generation is over: others may already read these partitions, from the last commit.
    pub async fn commit(&mut self) -> Result<(), ConsumeError> {
        self.last_commit = Instant::now();
        let mut offsets = self.consumer.delivered();
        offsets.retain(|key, offset| self.committed.get(key) != Some(offset));
        if offsets.is_empty() {
            return Ok(());
        }
        let (coordinator, member) = (&self.coordinator, &self.member);
        let cluster = &coordinator.cluster;
        cluster
            .retrying(|| coordinator.commit(member, &offsets))
            .await?;
        self.committed.extend(offsets);
        Ok(())
    }

    /// What this member reads at the moment.
    pub fn assignment(&self) -> Vec<(String, i32)> {
        self.consumer.assignment()
    }

    /// Behind the last record handed out of an assigned partition, or where reading began if that is
    /// known.
    pub fn position(&self, topic: &str, partition: i32) -> Option<i64> {
        self.consumer.position(topic, partition)
    }

    /// Commits if that is automatic, and leaves the group.
    ///
    /// # Cancel safety
    /// What was not done is not done; the session then ends by itself.
    ///
    /// # Errors
    /// When the commit or the farewell failed.
    pub async fn close(mut self) -> Result<(), ConsumeError> {
        let committed = match self.commit_interval {
            Some(_) if self.heartbeat.is_some() => self.commit().await,
            _ => Ok(()),
        };
        self.leave().await?;
        committed
    }

    /// Leaves without committing: what was handed out since the last commit comes again, to whoever
    /// reads on.
    ///
    /// # Cancel safety
    /// What was not done is not done; the session then ends by itself.
    ///
    /// # Errors
    /// When the farewell failed.
    pub async fn leave(mut self) -> Result<(), ConsumeError> {
        self.heartbeat = None;
        // Also between generations and in the middle of a join: once named, we are waited for.
        if self.member.id.is_empty() {
            return Ok(());
        }
        match self.coordinator.leave(&self.member.id).await {
            Err(error) if error.kafka_code() == Some(ErrorCode::UnknownMemberId) => Ok(()),
            result => result,
        }
    }

    async fn commit_if_due(&mut self) -> Result<(), ConsumeError> {
        let due = self
            .commit_interval
            .is_some_and(|every| self.last_commit.elapsed() >= every);
        if !due || self.heartbeat.is_none() {
            return Ok(());
        }
        match self.commit().await {
            // The next lines of the caller find out about the rebalance by themselves.
            Err(error) if is_generation_over(&error) => Ok(()),
            result => result,
        }
    }

    /// Gives the partitions up; commits first while the group still lets us.
    async fn generation_over(&mut self, code: ErrorCode) {
        tracing::debug!(group = %self.coordinator.group, code = code.name(), "rebalance");
        if code == ErrorCode::RebalanceInProgress && self.commit_interval.is_some() {
            if let Err(error) = self.commit().await {
                tracing::warn!(%error, "not committed before the rebalance; records will repeat");
            }
        } else if code != ErrorCode::RebalanceInProgress {
            self.member = Member {
                id: String::new(),
                generation: -1,
            };
        }
        self.heartbeat = None;
        self.consumer.unassign_all();
        self.committed.clear();
    }

    async fn enter_generation(&mut self) -> Result<(), ConsumeError> {
        let deadline = Instant::now() + self.coordinator.rebalance_timeout * 2;
        let retry = self.consumer.cluster().retry;
        let mut silent_since = None;
        let mut failures = 0;
        loop {
            let error = match self.join_once().await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match error.kafka_code() {
                Some(ErrorCode::UnknownMemberId) => self.member.id.clear(),
                // A newer generation begins already, or the coordinator has just named us.
                Some(
                    ErrorCode::IllegalGeneration
                    | ErrorCode::RebalanceInProgress
                    | ErrorCode::MemberIdRequired,
                ) => {}
                _ if error.is_retriable() => {}
                _ => return Err(error),
            }
            // A group may take long to come together; a coordinator that does not answer at all gets
            // the time that every question gets.
            let silent = error.kafka_code().is_none();
            silent_since = silent.then(|| silent_since.unwrap_or_else(Instant::now));
            failures += 1;
            let wait = retry.backoff(failures);
            let given_up = silent_since.map_or(deadline, |since| since + retry.give_up_after);
            if Instant::now() + wait >= given_up.min(deadline) {
                return Err(error);
            }
            if error.kafka_code() != Some(ErrorCode::MemberIdRequired) {
                tokio::time::sleep(wait).await;
            }
        }
    }

    async fn join_once(&mut self) -> Result<(), ConsumeError> {
        let subscription = assignment::encode_subscription(&self.topics);
        let subscription = subscription.map_err(|what| self.protocol_error(what))?;
        let joined = self.coordinator.join(&self.member.id, subscription).await?;
        // Also in a refusal: it names us, and wants us to come back with that name.
        if !joined.member_id.is_empty() {
            self.member.id = joined.member_id.to_string();
        }
        match ErrorCode::from_code(joined.error_code) {
            ErrorCode::None => {}
            code => {
                let group = Arc::clone(&self.coordinator.group);
                return Err(ConsumeError::Group { group, code });
            }
        }
        self.member.generation = joined.generation_id;
        let leads = *joined.leader == *self.member.id.as_str();
        let assignments = if leads {
            self.assign(joined).await?
        } else {
            BTreeMap::new()
        };
        let mine = self.coordinator.sync(&self.member, assignments).await?;
        let mine =
            assignment::decode_assignment(&mine).map_err(|what| self.protocol_error(what))?;
        let committed = match mine.as_slice() {
            [] => BTreeMap::new(),
            partitions => {
                let cluster = &self.coordinator.cluster;
                cluster
                    .retrying(|| self.coordinator.committed(partitions))
                    .await?
            }
        };
        self.begin(mine, &committed);
        Ok(())
    }

    /// The leader's work: everybody's partitions.
    async fn assign(
        &self,
        joined: JoinGroupResponse,
    ) -> Result<BTreeMap<String, bytes::Bytes>, ConsumeError> {
        let mut members = BTreeMap::new();
        for member in joined.members {
            let topics = assignment::decode_subscription(&member.metadata);
            let topics = topics.map_err(|what| self.protocol_error(what))?;
            members.insert(member.member_id.into_string(), topics);
        }
        let mut partitions = BTreeMap::new();
        for topic in members.values().flatten() {
            if !partitions.contains_key(topic) {
                // A topic that only some other member believes in shall not stop the group.
                let known = self.coordinator.cluster.topic_now(topic).await;
                partitions.insert(topic.clone(), known.map_or(0, |info| info.partitions.len()));
            }
        }
        let assignments = assignment::range(&members, &partitions).into_iter();
        assignments
            .map(|(member, mine)| {
                let encoded = assignment::encode_assignment(&mine);
                Ok((member, encoded.map_err(|what| self.protocol_error(what))?))
            })
            .collect()
    }

    /// Begins to read in the new generation.
    fn begin(&mut self, mine: Vec<(String, i32)>, committed: &BTreeMap<(String, i32), i64>) {
        self.consumer.unassign_all();
        self.committed.clear();
        for key in mine {
            let start = match (committed.get(&key), self.start) {
                (Some(offset), _) => StartAt::Offset(*offset),
                (None, OffsetAt::Start) => StartAt::Start,
                (None, OffsetAt::End) => StartAt::End,
                (None, OffsetAt::Timestamp(at)) => StartAt::Timestamp(at),
            };
            self.consumer.assign(&key.0, key.1, start);
        }
        self.last_commit = Instant::now();
        self.heartbeat = Some(Heartbeat::start(
            self.coordinator.clone(),
            self.member.clone(),
        ));
    }

    fn protocol_error(&self, what: String) -> ConsumeError {
        let group = Arc::clone(&self.coordinator.group);
        ConsumeError::GroupProtocol { group, what }
    }
}

fn is_generation_over(error: &ConsumeError) -> bool {
    matches!(
        error.kafka_code(),
        Some(
            ErrorCode::RebalanceInProgress
                | ErrorCode::IllegalGeneration
                | ErrorCode::UnknownMemberId
                | ErrorCode::FencedInstanceId
        )
    )
}
