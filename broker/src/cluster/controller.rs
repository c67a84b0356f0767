//! The door to the cluster: look at the picture, ask for changes, wait until they are true here.
//!
//! Every change is a command in the metadata group's log. An answer to a client is given when the
//! command is applied, and for a new topic when its partitions serve.

use super::door::Door;
use super::features::FeatureLevel;
use super::leaders::Leaders;
use super::lineage::{Lineage, Surpassed};
use super::metadata::{Metadata, Outgrown, View, encode};
use super::plan::{CreateTopicError, CreatedTopic, NewTopic, plan};
use super::start::Surroundings;
use super::state::{
    Answer, ClusterState, Command, PRODUCER_ID_BLOCK, Refusal, TopicId, UNASSIGNED,
};
use super::vetting::Vetting;
use crate::partition::Registry;
use crate::peers::{Address, Client, Hearing, Peers, RpcError};
use crate::raft::{Group, Proposal, ProposeError, ReplicaId};
use crate::settings::Live;
use bytes::Bytes;
use logd_proto::Uuid;
use logd_proto::rpc::v1::{ProposeRequest, ProposeResponse};
use logd_storage::Disk;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

/// How long a start waits for the metadata group, and a proposal for its answer.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// A proposal that found no leader is made again after this.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// How often the metadata group's log is cut behind its snapshot.
const COMPACT_EVERY: Duration = Duration::from_secs(60);

/// Partitions that one request may create, as in Kafka: each is a group with its tasks and files.
pub(super) const PARTITIONS_PER_REQUEST_MAX: i32 = 10_000;

/// What this broker says of itself.
#[derive(Debug, Clone)]
pub struct BrokerSpec {
    pub start: u64,
    pub rack: Option<String>,
    /// Where other brokers reach this one.
    pub rpc_addr: String,
    /// Broker-to-broker addresses of the cluster's first members.
    pub seeds: Vec<String>,
    pub listeners: BTreeMap<String, (String, u16)>,
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
    node_id: AtomicI32,
    cluster_id: String,
    me: ReplicaId,
    /// What this build understands.
    pub(super) build: FeatureLevel,
    pub(super) group: Group<Metadata>,
    view: View,
    pub(super) peers: Peers,
    leaders: Arc<Leaders>,
    pub(super) vetting: Arc<Vetting>,
    door: Arc<Door>,
    pub(super) registry: Arc<Registry>,
    pub(super) storage: Disk,
    pub(super) data_dir: PathBuf,
    pub(super) settings: Live,
    /// Next id and end of the block this broker was given.
    producer_ids: Mutex<std::ops::Range<i64>>,
    /// Serialises those who find the block empty: one of them asks for the next.
    refill: tokio::sync::Mutex<()>,
    /// A peer has said that this broker was decommissioned.
    pub(super) dismissed: watch::Sender<bool>,
    /// Counts the reconciler's rounds.
    pub(super) reconciled: watch::Receiver<u64>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.cluster_id)
            .field("node", &self.node_id())
            .finish()
    }
}

impl Cluster {
    pub(super) fn new(
        cluster_id: String,
        group: Group<Metadata>,
        view: View,
        around: &Surroundings,
    ) -> Self {
        Self {
            node_id: AtomicI32::new(UNASSIGNED),
            cluster_id,
            me: around.door.disk(),
            build: around.door.build(),
            group,
            view,
            peers: around.peers.clone(),
            leaders: around.door.leaders(),
            vetting: around.door.vetting(),
            door: around.door.clone(),
            registry: around.registry.clone(),
            storage: around.disk.clone(),
            data_dir: around.data_dir.clone(),
            settings: around.settings.clone(),
            producer_ids: Mutex::new(0..0),
            refill: tokio::sync::Mutex::new(()),
            dismissed: watch::channel(false).0,
            reconciled: around.reconciled.clone(),
        }
    }

    /// Where this broker's metadata comes from.
    pub fn lineage(&self) -> Lineage {
        self.door.lineage()
    }

    /// Resolves when somebody has metadata of a later generation: what this broker does is of the past.
    pub async fn surpassed(&self) -> Surpassed {
        self.door.surpassed().await
    }

    /// Partitions and replicas of topics that do not say.
    pub(super) fn defaults(&self) -> (i32, i16) {
        let now = self.settings.now();
        let topics = &now.config.topics;
        (topics.default_partitions, topics.default_replication_factor)
    }

    /// This broker is registered.
    pub(super) fn settle(&self, node_id: i32) {
        self.node_id.store(node_id, Ordering::Release);
    }

    pub fn node_id(&self) -> i32 {
        self.node_id.load(Ordering::Acquire)
    }

    /// The disk that votes for this broker.
    pub fn disk(&self) -> ReplicaId {
        self.me
    }

    pub fn leaders(&self) -> &Arc<Leaders> {
        &self.leaders
    }

    /// Who has been heard, and has heard us, a moment ago.
    pub fn hearing(&self) -> &Hearing {
        self.peers.hearing()
    }

    /// Where the other brokers are, as the state has it.
    pub(super) fn peer_addresses(&self) -> BTreeMap<ReplicaId, Address> {
        let view = self.view();
        let others = view.brokers.values().filter(|b| b.replica != self.me);
        others
            .filter(|b| !b.rpc.is_empty())
            .map(|b| {
                let (node_id, rpc) = (b.id, b.rpc.clone());
                (b.replica, Address { node_id, rpc })
            })
            .collect()
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

    /// Puts a command in the metadata log, whoever leads it, and waits until it is applied here.
    ///
    /// # Errors
    /// If no leader takes it in time, or its fate is unknown.
    pub async fn propose(&self, command: Command) -> Result<Answer, ProposeError> {
        let (answer, index) = self.propose_indexed(&command).await?;
        let mut view = self.view.clone();
        let here = view.wait_for(|state| state.applied >= index);
        match tokio::time::timeout(ANSWER_DEADLINE, here).await {
            Ok(_) => Ok(answer),
            // It is true in the cluster and will be here; whoever asks here now sees the older state.
            Err(_) => Err(ProposeError::Unknown),
        }
    }

    /// As [`Cluster::propose`], with the entry's index and without waiting for it here.
    pub(super) async fn propose_indexed(
        &self,
        command: &Command,
    ) -> Result<(Answer, u64), ProposeError> {
        let mut roles = self.group.role_changes();
        let tries = async {
            loop {
                roles.mark_unchanged();
                match self.propose_once(command).await {
                    Err(ProposeError::NotLeader { .. } | ProposeError::LeaseExpired) => {}
                    answer => return answer,
                }
                // There may be an election under way.
                let _ = tokio::time::timeout(TRY_AGAIN, roles.changed()).await;
            }
        };
        tokio::time::timeout(ANSWER_DEADLINE, tries)
            .await
            .unwrap_or(Err(ProposeError::NotLeader { leader: None }))
    }

    async fn propose_once(&self, command: &Command) -> Result<(Answer, u64), ProposeError> {
        let role = self.group.role();
        let leader = role.leader.filter(|l| *l != self.me);
        let stopped = |e: serde_json::Error| ProposeError::Stopped(e.to_string());
        let Some(leader) = leader else {
            return self
                .ask_here(command, encode(command).map_err(stopped)?)
                .await;
        };
        let state = self.view();
        if let Some(why) = state.unreadable_at(leader, command) {
            return Ok((Answer::Refused(Refusal::AboveLevel(why)), state.applied));
        }
        let not_leader = ProposeError::NotLeader {
            leader: Some(leader),
        };
        let address = self.peer_addresses().remove(&leader);
        let address = address.ok_or(not_leader.clone())?;
        let Ok(client) = Client::connect(&address.rpc).await else {
            return Err(not_leader);
        };
        let command = encode(command).map_err(stopped)?;
        let lineage = self.lineage().said();
        let request = ProposeRequest { command, lineage };
        match client.propose(request, ANSWER_DEADLINE).await {
            Ok(response) if response.failed.is_empty() => {
                let answer = serde_json::from_slice(&response.answer).map_err(stopped)?;
                Ok((answer, response.index))
            }
            Ok(response) if response.retriable => Err(not_leader),
            Err(
                RpcError::Unreachable { .. } | RpcError::NobodyThere { .. } | RpcError::Address(_),
            ) => Err(not_leader),
            Ok(_) | Err(RpcError::TimedOut { .. } | RpcError::Refused { .. }) => {
                Err(ProposeError::Unknown)
            }
        }
    }

    /// Proposes to our own replica what every broker understands; the rest is refused and not written.
    async fn ask_here(
        &self,
        command: &Command,
        payload: Bytes,
    ) -> Result<(Answer, u64), ProposeError> {
        // The role first: once it says that we lead, the picture is as new as the log.
        let role = self.group.role();
        let state = self.view();
        match state.admits(command) {
            Ok(()) => put(&self.group, payload).await,
            Err(why) if role.serving => {
                Ok((Answer::Refused(Refusal::AboveLevel(why)), state.applied))
            }
            Err(_) => Err(ProposeError::NotLeader {
                leader: role.leader,
            }),
        }
    }

    /// A proposal that another broker passes on: only the leader takes it.
    pub(super) async fn propose_for_peer(&self, payload: Bytes) -> ProposeResponse {
        let failed = |why: String, retriable: bool| ProposeResponse {
            failed: why,
            retriable,
            ..ProposeResponse::default()
        };
        let command: Command = match serde_json::from_slice(&payload) {
            Ok(command) => command,
            Err(e) => return failed(format!("the command does not decode: {e}"), false),
        };
        // Written as it came: a newer build may have said more than this one reads.
        match self.ask_here(&command, payload).await {
            Ok((answer, index)) => match serde_json::to_vec(&answer) {
                Ok(answer) => ProposeResponse {
                    answer: answer.into(),
                    index,
                    ..ProposeResponse::default()
                },
                Err(e) => failed(e.to_string(), false),
            },
            Err(error) => {
                let retriable = matches!(
                    error,
                    ProposeError::NotLeader { .. } | ProposeError::LeaseExpired
                );
                failed(error.to_string(), retriable)
            }
        }
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
        let (record, created) = plan(&state, topic, self.defaults(), &|node| self.is_fit(node))?;
        self.over_defaults(&created.config)
            .check_replicas(created.replication)
            .map_err(|e| CreateTopicError::InvalidConfig(e.to_string()))?;
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
            Ok(Answer::Refused(Refusal::AboveLevel(why))) => Err(why.into()),
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
                let all = 0..created.partitions;
                self.partitions_serve(&created.id, all).await;
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

    /// Comes back when each of these partitions has a leader that serves, whichever broker that is.
    pub(super) async fn partitions_serve(&self, topic: &Uuid, indexes: std::ops::Range<i32>) {
        let mut rounds = self.reconciled.clone();
        let mut leaders = self.leaders.watch();
        for index in indexes {
            // Wherever it is led: its leader says so to everybody.
            loop {
                rounds.mark_unchanged();
                leaders.mark_unchanged();
                if self.serves(topic, index) {
                    break;
                }
                let gone = tokio::select! {
                    changed = rounds.changed() => changed.is_err(),
                    changed = leaders.changed() => changed.is_err(),
                };
                if gone {
                    return;
                }
            }
        }
    }

    fn serves_now(&self, created: &CreatedTopic) -> bool {
        (0..created.partitions).all(|i| self.serves(&created.id, i))
    }

    fn serves(&self, topic: &Uuid, index: i32) -> bool {
        let here = self.registry.get(topic, index);
        here.is_some_and(|p| p.leadership().serving) || self.leaders.get(topic, index).is_some()
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
            let command = Command::AllocateProducerIds {
                node: self.node_id(),
            };
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

    /// Resolves when the cluster is at a feature level that this build does not understand.
    pub async fn outgrown(&self) -> Outgrown {
        let (mut view, build) = (self.view.clone(), self.build);
        match view.wait_for(|state| state.features > build).await {
            Ok(state) => Outgrown {
                build,
                level: state.features,
            },
            Err(_) => std::future::pending().await,
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

/// Proposes to our own replica of the group; the answer comes with the entry's index.
pub(super) async fn ask(
    group: &Group<Metadata>,
    command: &Command,
) -> Result<(Answer, u64), ProposeError> {
    let payload = encode(command).map_err(|e| ProposeError::Stopped(e.to_string()))?;
    put(group, payload).await
}

async fn put(group: &Group<Metadata>, payload: Bytes) -> Result<(Answer, u64), ProposeError> {
    let pending = group.propose(Proposal::data(payload, 1, -1)).await?;
    let outcome = tokio::time::timeout(ANSWER_DEADLINE, pending)
        .await
        .map_err(|_| ProposeError::Unknown)??;
    let answer = serde_json::from_slice(&outcome.answer);
    let answer = answer.map_err(|e| ProposeError::Stopped(e.to_string()))?;
    Ok((answer, outcome.index))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::metadata::METADATA_TOPIC;

    #[test]
    fn ids_print_as_kafka_prints_them() {
        assert_eq!(base64_url(&METADATA_TOPIC), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(base64_url(&[255; 16]), "_____________________w");
    }
}
