//! The door to the cluster: look at the picture, ask for changes, wait until they are true here.
//!
//! Every change is a command in the metadata group's log. An answer to a client is given when the
//! command is applied, and for a new topic when its partitions serve.

use super::metadata::{Metadata, View, encode};
use super::plan::{CreateTopicError, CreatedTopic, NewTopic, plan};
use super::state::{
    Answer, BrokerInfo, ClusterState, Command, PRODUCER_ID_BLOCK, Refusal, Topic, TopicId,
};
use crate::partition::Registry;
use crate::raft::{Group, GroupSpec, OpenError, Proposal, ProposeError, ReplicaId, unstamped};
use logd_proto::Uuid;
use logd_storage::{Disk, LogKey, LogOptions};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

/// The metadata log's directory name: Kafka reserves the id 1 for it.
const METADATA_TOPIC: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// How long a start waits for the metadata group, and a proposal for its answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// How often the metadata group's log is cut behind its snapshot.
const COMPACT_EVERY: Duration = Duration::from_secs(60);

/// Partitions that one request may create, as in Kafka: each is a group with its tasks and files.
const PARTITIONS_PER_REQUEST_MAX: i32 = 10_000;

/// What this broker says of itself.
#[derive(Debug, Clone)]
pub struct BrokerSpec {
    pub replica: ReplicaId,
    pub start: u64,
    pub rack: Option<String>,
    /// Where other brokers reach its Raft groups.
    pub rpc_addr: String,
    pub listeners: BTreeMap<String, (String, u16)>,
    pub default_partitions: i32,
    pub default_replication: i16,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Group(#[from] OpenError),
    #[error("the metadata log cannot be opened: {0}")]
    Log(String),
    #[error("the metadata group does not answer: {0}")]
    Metadata(#[from] ProposeError),
    #[error("the metadata group refused: {0}")]
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeleteTopicError {
    #[error("there is no such topic")]
    Unknown,
    #[error("{0}")]
    Unavailable(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no producer id can be handed out now: {0}")]
pub struct ProducerIdError(String);

pub struct Cluster {
    node_id: i32,
    cluster_id: String,
    group: Group<Metadata>,
    view: View,
    registry: Arc<Registry>,
    defaults: (i32, i16),
    /// Next id and end of the block this broker was given.
    producer_ids: Mutex<std::ops::Range<i64>>,
    /// Serialises those who find the block empty: one of them asks for the next.
    refill: tokio::sync::Mutex<()>,
    /// Counts the reconciler's rounds.
    reconciled: watch::Receiver<u64>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.cluster_id)
            .field("node", &self.node_id)
            .finish()
    }
}

impl Cluster {
    /// Opens the metadata group; founds the cluster on an empty disk; registers this broker.
    ///
    /// # Errors
    /// If the log is damaged, or the group does not answer in time.
    pub async fn start(
        disk: &Disk,
        spec: BrokerSpec,
        registry: Arc<Registry>,
        reconciled: watch::Receiver<u64>,
    ) -> Result<Arc<Self>, StartError> {
        let key = LogKey {
            topic: METADATA_TOPIC,
            partition: 0,
        };
        let log = disk
            .open_log(key, LogOptions::default())
            .map_err(|e| StartError::Log(e.to_string()))?;
        let (metadata, view) = Metadata::new();
        let group = GroupSpec {
            name: "metadata".into(),
            replica: spec.replica,
            founders: BTreeMap::from([(spec.replica, spec.rpc_addr.clone())]),
            stamp: unstamped,
            ticks: true,
        };
        let group = Group::open(group, log, metadata).await?;
        group.serving(ANSWER_DEADLINE).await?;
        let state = view.borrow().clone();
        let cluster_id = found(&group, &state).await?;
        let node_id = node_id(&state, spec.replica);
        let me = BrokerInfo {
            id: node_id,
            replica: spec.replica,
            start: spec.start,
            rack: spec.rack,
            listeners: spec.listeners,
        };
        ask(&group, &Command::RegisterBroker(me)).await?;
        info!(
            cluster_id,
            node_id,
            topics = state.topics.len(),
            partitions = state.partitions(),
            "metadata loaded"
        );
        Ok(Arc::new(Self {
            node_id,
            cluster_id,
            group,
            view,
            registry,
            defaults: (spec.default_partitions, spec.default_replication),
            producer_ids: Mutex::new(0..0),
            refill: tokio::sync::Mutex::new(()),
            reconciled,
        }))
    }

    pub fn node_id(&self) -> i32 {
        self.node_id
    }

    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// The picture now.
    pub fn view(&self) -> Arc<ClusterState> {
        self.view.borrow().clone()
    }

    /// The picture, to wait on.
    pub fn watch(&self) -> View {
        self.view.clone()
    }

    /// Puts a command in the metadata log and waits until it is applied.
    ///
    /// # Errors
    /// If the group does not lead here, or does not answer in time.
    pub async fn propose(&self, command: Command) -> Result<Answer, ProposeError> {
        ask(&self.group, &command).await
    }

    /// Creates topics; an answer comes once the partitions serve, or at the deadline.
    pub async fn create_topics(
        &self,
        topics: Vec<NewTopic>,
        validate_only: bool,
        deadline: Duration,
    ) -> Vec<Result<CreatedTopic, CreateTopicError>> {
        let mut names = HashSet::new();
        let twice: HashSet<String> = topics
            .iter()
            .filter(|t| !names.insert(t.name.clone()))
            .map(|t| t.name.clone())
            .collect();
        let mut answers = Vec::with_capacity(topics.len());
        let mut room = PARTITIONS_PER_REQUEST_MAX;
        for topic in topics {
            answers.push(if twice.contains(&topic.name) {
                Err(CreateTopicError::InvalidRequest(format!(
                    "Topic '{}' is named twice in the request.",
                    topic.name
                )))
            } else {
                self.create_topic(topic, validate_only, &mut room).await
            });
        }
        if !validate_only {
            self.wait_until_serving(&mut answers, deadline).await;
        }
        answers
    }

    async fn create_topic(
        &self,
        topic: NewTopic,
        validate_only: bool,
        room: &mut i32,
    ) -> Result<CreatedTopic, CreateTopicError> {
        let state = self.view();
        let (record, created) = plan(&state, topic, self.defaults)?;
        if created.partitions > *room {
            return Err(CreateTopicError::TooMuchAtOnce(PARTITIONS_PER_REQUEST_MAX));
        }
        *room -= created.partitions;
        if validate_only {
            return Ok(created);
        }
        let name = record.name.clone();
        match self.propose(Command::CreateTopic(record)).await {
            Ok(Answer::Refused(Refusal::TopicExists)) => Err(CreateTopicError::Exists(name)),
            Ok(Answer::Refused(other)) => Err(CreateTopicError::InvalidConfig(other.to_string())),
            Ok(_) => {
                info!(topic = name, topic_id = %TopicId(created.id), partitions = created.partitions, "topic created");
                Ok(created)
            }
            Err(error) => Err(CreateTopicError::Unavailable(error.to_string())),
        }
    }

    async fn wait_until_serving(
        &self,
        answers: &mut [Result<CreatedTopic, CreateTopicError>],
        deadline: Duration,
    ) {
        let all = async {
            for created in answers.iter().flatten() {
                self.topic_serves(created).await;
            }
        };
        if tokio::time::timeout(deadline, all).await.is_err() {
            for answer in answers.iter_mut() {
                if answer
                    .as_ref()
                    .is_ok_and(|created| !self.serves_now(created))
                {
                    *answer = Err(CreateTopicError::TimedOut);
                }
            }
        }
    }

    async fn topic_serves(&self, created: &CreatedTopic) {
        let mut rounds = self.reconciled.clone();
        for index in 0..created.partitions {
            let partition = loop {
                rounds.mark_unchanged();
                if let Some(partition) = self.registry.get(&created.id, index) {
                    break partition;
                }
                if rounds.changed().await.is_err() {
                    return;
                }
            };
            // A failure here is seen by `serves_now` at the deadline.
            if partition.serving(ANSWER_DEADLINE).await.is_err() {
                return;
            }
        }
    }

    fn serves_now(&self, created: &CreatedTopic) -> bool {
        (0..created.partitions).all(|i| {
            self.registry
                .get(&created.id, i)
                .is_some_and(|p| p.leadership().serving)
        })
    }

    /// Deletes topics by id.
    pub async fn delete_topics(&self, ids: Vec<Uuid>) -> Vec<Result<(), DeleteTopicError>> {
        let mut answers = Vec::with_capacity(ids.len());
        for id in ids {
            answers.push(
                match self.propose(Command::DeleteTopic { id: TopicId(id) }).await {
                    Ok(Answer::Refused(_)) => Err(DeleteTopicError::Unknown),
                    Ok(_) => {
                        info!(topic_id = %TopicId(id), "topic deleted");
                        Ok(())
                    }
                    Err(error) => Err(DeleteTopicError::Unavailable(error.to_string())),
                },
            );
        }
        answers
    }

    /// A producer id nobody else was given.
    ///
    /// # Errors
    /// If the metadata group does not answer.
    pub async fn next_producer_id(&self) -> Result<i64, ProducerIdError> {
        loop {
            if let Some(id) = self.producer_ids.lock().next() {
                return Ok(id);
            }
            let _one = self.refill.lock().await;
            if !self.producer_ids.lock().is_empty() {
                continue;
            }
            let command = Command::AllocateProducerIds { node: self.node_id };
            match self
                .propose(command)
                .await
                .map_err(|e| ProducerIdError(e.to_string()))?
            {
                Answer::ProducerIds { first } => {
                    *self.producer_ids.lock() = first..first + PRODUCER_ID_BLOCK
                }
                other => return Err(ProducerIdError(format!("unexpected answer {other:?}"))),
            }
        }
    }

    /// Moves the metadata snapshot forward when enough commands lie behind it.
    ///
    /// # Errors
    /// If the group has stopped.
    pub async fn compact(&self) -> Result<(), ProposeError> {
        self.group.compact().await
    }

    /// Keeps the metadata group's log short until it is dropped.
    pub async fn keep_compact(self: Arc<Self>) {
        loop {
            tokio::time::sleep(COMPACT_EVERY).await;
            if let Err(error) = self.compact().await {
                warn!(%error, "compacting the metadata put off");
            }
        }
    }

    /// Why the metadata group stopped for good, if it did.
    pub fn failure(&self) -> Option<String> {
        self.group.failure()
    }

    pub async fn close(&self) {
        self.group.close().await;
    }
}

async fn ask(group: &Group<Metadata>, command: &Command) -> Result<Answer, ProposeError> {
    let stopped = |e: serde_json::Error| ProposeError::Stopped(e.to_string());
    let payload = encode(command).map_err(stopped)?;
    let pending = group.propose(Proposal::data(payload, 1, -1)).await?;
    let outcome = tokio::time::timeout(ANSWER_DEADLINE, pending)
        .await
        .map_err(|_| ProposeError::Unknown)??;
    serde_json::from_slice(&outcome.answer).map_err(stopped)
}

async fn found(group: &Group<Metadata>, state: &ClusterState) -> Result<String, StartError> {
    if let Some(id) = &state.cluster {
        return Ok(id.clone());
    }
    let id = base64_url(uuid::Uuid::new_v4().as_bytes());
    match ask(
        group,
        &Command::Found {
            cluster: id.clone(),
        },
    )
    .await?
    {
        Answer::Refused(Refusal::Founded(born)) => Ok(born),
        Answer::Refused(other) => Err(StartError::Refused(other)),
        _ => {
            info!(cluster_id = id, "cluster founded");
            Ok(id)
        }
    }
}

/// A disk keeps the node id it was given; a new one gets the next.
fn node_id(state: &ClusterState, replica: ReplicaId) -> i32 {
    let known = state
        .brokers
        .values()
        .find(|b| b.replica == replica)
        .map(|b| b.id);
    known.unwrap_or_else(|| state.brokers.keys().max().map_or(1, |max| max + 1))
}

/// Kafka prints ids as base64 with the URL alphabet, unpadded.
pub(crate) fn base64_url(bytes: &[u8; 16]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits = u128::from_be_bytes(*bytes);
    // 22 digits of 6 bits are 132 bits: the last digit holds two bits of data and four of padding.
    (0..22)
        .map(|digit| {
            let shift = 122 - 6 * digit;
            let value = if shift >= 0 {
                bits >> shift
            } else {
                bits << -shift
            };
            char::from(ALPHABET[(value & 63) as usize])
        })
        .collect()
}

impl Topic {
    /// The founders of a partition's group: replicas by disk, with where they are reached.
    pub fn founders(
        &self,
        state: &ClusterState,
        index: i32,
        rpc: &str,
    ) -> BTreeMap<ReplicaId, String> {
        let replicas = usize::try_from(index)
            .ok()
            .and_then(|i| self.partitions.get(i));
        replicas
            .into_iter()
            .flatten()
            .filter_map(|id| state.brokers.get(id))
            .map(|b| (b.replica, rpc.to_owned()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_keeps_its_node_id_and_a_new_one_gets_the_next() {
        let mut s = ClusterState::default();
        s.apply(Command::RegisterBroker(BrokerInfo {
            id: 1,
            replica: 7,
            start: 1,
            rack: None,
            listeners: BTreeMap::new(),
        }));
        assert_eq!(node_id(&s, 7), 1);
        assert_eq!(node_id(&s, 8), 2);
    }

    #[test]
    fn ids_print_as_kafka_prints_them() {
        assert_eq!(base64_url(&METADATA_TOPIC), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(base64_url(&[255; 16]), "_____________________w");
    }
}
