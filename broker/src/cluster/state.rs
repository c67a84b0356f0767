//! The metadata group's state: brokers, topics, tombstones, producer-id blocks. Pure.
//!
//! Promise: a function of the committed commands alone, so every broker has the same and answers
//! Metadata from its own. A command that cannot be carried out changes nothing and says why.
//! Not here: who proposes (controller), where replicas go (placement), what runs on this broker (reconcile).

use super::alter::Alteration;
use super::duty::Duty;
use super::features::{AboveLevel, FeatureLevel};
use super::group_settings::{GroupAlteration, GroupSettings};
use super::grow::Addition;
use super::recovery::{Forced, Recovery};
use super::settings::BrokerAlteration;
use super::targets::{Move, MoveRefusal};
use crate::settings::Said;
use crate::topic_config::TopicConfig;
use logd_proto::Uuid;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

/// Ids handed to one broker at a time, as in Kafka: a block lost in a crash is no matter.
pub const PRODUCER_ID_BLOCK: i64 = 1_000;

/// A topic id on the wire is 16 bytes; in the metadata log it is 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(pub Uuid);

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", uuid::Uuid::from_bytes(self.0.to_bytes()).simple())
    }
}

impl Serialize for TopicId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TopicId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let id = uuid::Uuid::try_parse(&text).map_err(serde::de::Error::custom)?;
        Ok(Self(Uuid::from_bytes(*id.as_bytes())))
    }
}

/// Where clients reach a broker, per listener name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerInfo {
    /// Assigned when it registers first; `UNASSIGNED` asks for that.
    pub id: i32,
    /// The disk that votes for it.
    pub replica: u64,
    /// Raised at each start of that disk.
    pub start: u64,
    pub rack: Option<String>,
    pub listeners: BTreeMap<String, (String, u16)>,
    /// `host:port` of its broker-to-broker port.
    #[serde(default)]
    pub rpc: String,
    /// What its build understands.
    #[serde(default)]
    pub features: FeatureLevel,
}

/// The node id of a broker that has none yet.
pub const UNASSIGNED: i32 = 0;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    pub id: Uuid,
    pub name: String,
    pub internal: bool,
    /// Node ids per partition, the preferred leader first.
    pub partitions: Vec<Vec<i32>>,
    /// How many replicas somebody wanted when there was a choice; absent: as many as is usual.
    pub replication: Option<i16>,
    /// The disks that those brokers had when the topic was created: they found its groups. A disk that
    /// comes later, also under an old node id, is taken in by a group's leader.
    pub disks: BTreeMap<i32, u64>,
    /// Partitions that are on their way to their replicas, with the replicas they had before.
    pub moves: BTreeMap<i32, Vec<i32>>,
    /// Partitions whose replicas have ever been changed: their groups exist, so nobody founds them again,
    /// whatever a disk has forgotten.
    pub moved: BTreeSet<i32>,
    /// As `disks`, for the partitions from this number on, which were added later.
    pub grown: BTreeMap<i32, BTreeMap<i32, u64>>,
    /// Partitions that were recovered by force, and the last time of each.
    pub recoveries: BTreeMap<i32, Recovery>,
    pub config: Arc<TopicConfig>,
    pub overrides: BTreeMap<String, String>,
}

/// A topic as the log has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicRecord {
    pub id: TopicId,
    pub name: String,
    #[serde(default)]
    pub internal: bool,
    pub partitions: Vec<Vec<i32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<i16>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub disks: BTreeMap<i32, u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub moves: BTreeMap<i32, Vec<i32>>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub moved: BTreeSet<i32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub grown: BTreeMap<i32, BTreeMap<i32, u64>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub recoveries: BTreeMap<i32, Recovery>,
    #[serde(default)]
    pub overrides: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The first command of a cluster's life.
    Found {
        cluster: String,
    },
    RegisterBroker(BrokerInfo),
    CreateTopic(TopicRecord),
    DeleteTopic {
        id: TopicId,
    },
    AlterConfig {
        topic: TopicId,
        alteration: Alteration,
    },
    /// Settings of brokers, while they run.
    AlterBrokers(BrokerAlteration),
    /// Settings of a group.
    AlterGroup(GroupAlteration),
    AddPartitions(Addition),
    /// The replicas on a broker of deleted topics are gone.
    Reaped {
        ids: Vec<TopicId>,
        /// Absent in logs of brokers that were alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<i32>,
    },
    AllocateProducerIds {
        node: i32,
    },
    /// Partitions are to have other replicas, or to stay where they were.
    SetTargets {
        moves: Vec<Move>,
    },
    /// The members of these partitions' groups are their targets.
    MovesOver {
        over: Vec<Move>,
    },
    /// A partition that has lost its majority goes on with what one replica has.
    Recover(Forced),
    SetDuty {
        node: i32,
        duty: Duty,
    },
    /// A broker that was to leave holds nothing any more.
    RemoveBroker {
        node: i32,
    },
    /// The metadata goes on from what one disk had of it, for so often by now.
    MetadataRecovered {
        generation: u32,
    },
    /// Every broker understands a higher level, as of these starts of their disks.
    RaiseFeatureLevel {
        level: FeatureLevel,
        starts: BTreeMap<u64, u64>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Done,
    Registered {
        node: i32,
    },
    /// First id of a block of [`PRODUCER_ID_BLOCK`].
    ProducerIds {
        first: i64,
    },
    /// For each of the moves asked for, why it is not made.
    Moves {
        refused: Vec<Option<MoveRefusal>>,
    },
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    #[error("a topic of that name exists")]
    TopicExists,
    #[error("there is no such topic")]
    UnknownTopic,
    #[error("the topic has {now} partitions by now")]
    OtherPartitions { now: i32 },
    #[error("the cluster has been founded already, as {0}")]
    Founded(String),
    #[error(
        "start {start} of this disk is over, start {known} has been seen: its data directory is an older copy \
         (yesterday's files put back?) and must not vote with what it has forgotten; move it away and let the \
         broker join as a new one"
    )]
    OldDisk { start: u64, known: u64 },
    #[error("there is no broker {0}")]
    UnknownBroker(i32),
    #[error(
        "broker {node} is still needed: it was not told to leave, or is to hold {partitions} partitions"
    )]
    StillNeeded { node: i32, partitions: usize },
    #[error(
        "this disk's broker was decommissioned; move its data directory away and let the broker join as a new one"
    )]
    Removed,
    #[error("too many groups have settings")]
    TooManyGroups,
    #[error("it was recovered meanwhile: {now} times by now")]
    Recovered { now: u32 },
    #[error("the topic's configuration is not one this version understands: {0}")]
    Config(String),
    /// The leader's word: the command is not in the log.
    #[error(transparent)]
    AboveLevel(AboveLevel),
    #[error(
        "its build understands feature level {build}, the cluster is at level {level}: a downgrade is not possible;          start the newer binary"
    )]
    NewerBuildNeeded {
        build: FeatureLevel,
        level: FeatureLevel,
    },
    #[error("a broker has started since that was decided")]
    OtherBrokers,
}

/// An immutable picture; the controller swaps in the next one after each command.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClusterState {
    pub cluster: Option<String>,
    pub brokers: BTreeMap<i32, BrokerInfo>,
    /// Of brokers that are not simply active.
    pub duties: BTreeMap<i32, Duty>,
    /// Disks of brokers that were decommissioned.
    pub removed: BTreeSet<u64>,
    pub topics: BTreeMap<Uuid, Arc<Topic>>,
    /// What was set for brokers while they ran.
    pub settings: Arc<Said>,
    /// What was set for groups.
    pub groups: Arc<GroupSettings>,
    /// What every broker understands, for good.
    pub features: FeatureLevel,
    names: HashMap<String, Uuid>,
    /// Deleted topics, with the brokers on whose disks replicas may still lie.
    pub tombstones: BTreeMap<Uuid, BTreeSet<i32>>,
    pub(super) next_producer_id: i64,
    pub(super) last_node_id: i32,
    /// How often the metadata itself was recovered by force.
    pub(super) generation: u32,
    /// The last entry of the metadata log that is in here. Not part of the state itself.
    pub applied: u64,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    cluster: Option<String>,
    brokers: Vec<BrokerInfo>,
    topics: Vec<TopicRecord>,
    tombstones: Vec<TopicId>,
    /// For each tombstone, the brokers that still have something.
    #[serde(default)]
    unreaped: Vec<BTreeSet<i32>>,
    next_producer_id: i64,
    #[serde(default)]
    last_node_id: i32,
    #[serde(default)]
    duties: BTreeMap<i32, Duty>,
    #[serde(default)]
    removed: BTreeSet<u64>,
    #[serde(default, skip_serializing_if = "Said::is_empty")]
    settings: Said,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    groups: GroupSettings,
    #[serde(default)]
    features: FeatureLevel,
    #[serde(default)]
    generation: u32,
}

impl Topic {
    /// The disks that a partition's group was born with; none where it is known to exist.
    pub fn founders(&self, state: &ClusterState, index: i32) -> BTreeSet<u64> {
        let replicas = self.target(index).filter(|_| !self.moved.contains(&index));
        let disk = |node: &i32| {
            // Topics of brokers that were alone do not say it: it is the disk that has them.
            let recorded = self.born_on(index, *node);
            recorded.or_else(|| Some(state.brokers.get(node)?.replica))
        };
        replicas.into_iter().flatten().filter_map(disk).collect()
    }

    /// The disk that founds a partition's group: the preferred leader's.
    pub fn founder(&self, state: &ClusterState, index: i32) -> Option<u64> {
        let replicas = self.target(index).filter(|_| !self.moved.contains(&index));
        let first = replicas?.first()?;
        let recorded = self.born_on(index, *first);
        recorded.or_else(|| Some(state.brokers.get(first)?.replica))
    }
}

impl ClusterState {
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(self.names.get(name)?)
    }

    pub fn topic_by_id(&self, id: &Uuid) -> Option<&Arc<Topic>> {
        self.topics.get(id)
    }

    /// Which broker a disk belongs to.
    pub fn node_of(&self, disk: u64) -> Option<i32> {
        self.brokers
            .values()
            .find(|b| b.replica == disk)
            .map(|b| b.id)
    }

    pub fn partitions(&self) -> usize {
        self.topics.values().map(|t| t.partitions.len()).sum()
    }

    /// Carries out one committed command.
    pub fn apply(&mut self, command: Command) -> Answer {
        match command {
            Command::Found { cluster } => self.found(cluster),
            Command::RegisterBroker(info) => self.register(info),
            Command::CreateTopic(record) => self.create(record),
            Command::DeleteTopic { id } => self.delete(id.0),
            Command::AlterConfig { topic, alteration } => self.alter_config(topic.0, &alteration),
            Command::AlterBrokers(wanted) => self.alter_brokers(&wanted),
            Command::AlterGroup(wanted) => self.alter_group(wanted),
            Command::AddPartitions(added) => self.add_partitions(added),
            Command::Reaped { ids, node } => self.reaped(&ids, node),
            Command::AllocateProducerIds { .. } => {
                let first = self.next_producer_id;
                self.next_producer_id += PRODUCER_ID_BLOCK;
                Answer::ProducerIds { first }
            }
            Command::SetTargets { moves } => self.set_targets(moves),
            Command::MovesOver { over } => self.moves_over(over),
            Command::Recover(forced) => self.recover(forced),
            Command::MetadataRecovered { generation } => self.metadata_recovered(generation),
            Command::SetDuty { node, duty } => self.set_duty(node, duty),
            Command::RemoveBroker { node } => self.remove_broker(node),
            Command::RaiseFeatureLevel { level, starts } => self.raise(level, &starts),
        }
    }

    fn found(&mut self, cluster: String) -> Answer {
        match &self.cluster {
            Some(born) => Answer::Refused(Refusal::Founded(born.clone())),
            None => {
                self.cluster = Some(cluster);
                Answer::Done
            }
        }
    }

    fn reaped(&mut self, ids: &[TopicId], node: Option<i32>) -> Answer {
        for id in ids {
            let left = self.tombstones.get_mut(&id.0);
            let gone = left.is_some_and(|left| match node {
                Some(node) => {
                    left.remove(&node);
                    left.is_empty()
                }
                None => true,
            });
            if gone {
                self.tombstones.remove(&id.0);
            }
        }
        Answer::Done
    }

    fn create(&mut self, record: TopicRecord) -> Answer {
        // Asked for twice because nobody heard the answer.
        if self.topics.contains_key(&record.id.0) {
            return Answer::Done;
        }
        if self.names.contains_key(&record.name) {
            return Answer::Refused(Refusal::TopicExists);
        }
        match to_topic(record) {
            Ok(topic) => {
                self.names.insert(topic.name.clone(), topic.id);
                self.topics.insert(topic.id, Arc::new(topic));
                Answer::Done
            }
            Err(why) => Answer::Refused(Refusal::Config(why)),
        }
    }

    fn delete(&mut self, id: Uuid) -> Answer {
        let Some(topic) = self.topics.remove(&id) else {
            return Answer::Refused(Refusal::UnknownTopic);
        };
        self.names.remove(&topic.name);
        // Any broker may have held a replica before it was moved.
        self.tombstones
            .insert(id, self.brokers.keys().copied().collect());
        Answer::Done
    }

    /// # Errors
    /// Never in practice: every field encodes.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Saved {
            cluster: self.cluster.clone(),
            brokers: self.brokers.values().cloned().collect(),
            topics: self.topics.values().map(|t| to_record(t)).collect(),
            tombstones: self.tombstones.keys().copied().map(TopicId).collect(),
            unreaped: self.tombstones.values().cloned().collect(),
            next_producer_id: self.next_producer_id,
            last_node_id: self.last_node_id,
            duties: self.duties.clone(),
            removed: self.removed.clone(),
            settings: (*self.settings).clone(),
            groups: (*self.groups).clone(),
            features: self.features,
            generation: self.generation,
        })
    }

    /// # Errors
    /// If the bytes are not an encoded state.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let saved: Saved = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let brokers: BTreeMap<i32, BrokerInfo> =
            saved.brokers.into_iter().map(|b| (b.id, b)).collect();
        let everybody: BTreeSet<i32> = brokers.keys().copied().collect();
        let mut unreaped = saved.unreaped.into_iter();
        let tombstones = saved.tombstones.into_iter().map(|t| {
            let left = unreaped.next().unwrap_or_else(|| everybody.clone());
            (t.0, left)
        });
        let mut state = Self {
            cluster: saved.cluster,
            tombstones: tombstones.collect(),
            next_producer_id: saved.next_producer_id,
            last_node_id: saved
                .last_node_id
                .max(everybody.last().copied().unwrap_or(UNASSIGNED)),
            brokers,
            duties: saved.duties,
            removed: saved.removed,
            settings: Arc::new(saved.settings),
            groups: Arc::new(saved.groups),
            features: saved.features,
            generation: saved.generation,
            ..Self::default()
        };
        for record in saved.topics {
            let topic = to_topic(record)?;
            state.names.insert(topic.name.clone(), topic.id);
            state.topics.insert(topic.id, Arc::new(topic));
        }
        Ok(state)
    }
}

fn to_topic(record: TopicRecord) -> Result<Topic, String> {
    let config = TopicConfig::parse(&record.overrides).map_err(|e| e.to_string())?;
    Ok(Topic {
        id: record.id.0,
        name: record.name,
        internal: record.internal,
        partitions: record.partitions,
        replication: record.replication,
        disks: record.disks,
        moves: record.moves,
        moved: record.moved,
        grown: record.grown,
        recoveries: record.recoveries,
        config: Arc::new(config),
        overrides: record.overrides,
    })
}

fn to_record(topic: &Topic) -> TopicRecord {
    TopicRecord {
        id: TopicId(topic.id),
        name: topic.name.clone(),
        internal: topic.internal,
        partitions: topic.partitions.clone(),
        replication: topic.replication,
        disks: topic.disks.clone(),
        moves: topic.moves.clone(),
        moved: topic.moved.clone(),
        grown: topic.grown.clone(),
        recoveries: topic.recoveries.clone(),
        overrides: topic.overrides.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::register::tests::broker;

    fn record(name: &str, id: u8) -> TopicRecord {
        TopicRecord {
            id: TopicId(Uuid::from_bytes([id; 16])),
            name: name.into(),
            internal: false,
            partitions: vec![vec![1]; 2],
            replication: None,
            disks: BTreeMap::new(),
            moves: BTreeMap::new(),
            moved: BTreeSet::new(),
            grown: BTreeMap::new(),
            recoveries: BTreeMap::new(),
            overrides: BTreeMap::new(),
        }
    }

    #[test]
    fn a_name_belongs_to_one_topic_until_it_is_deleted() {
        let mut s = ClusterState::default();
        assert_eq!(s.apply(Command::CreateTopic(record("a", 1))), Answer::Done);
        assert_eq!(
            s.apply(Command::CreateTopic(record("a", 2))),
            Answer::Refused(Refusal::TopicExists)
        );
        assert_eq!(
            s.apply(Command::DeleteTopic {
                id: record("a", 1).id
            }),
            Answer::Done
        );
        assert_eq!(s.apply(Command::CreateTopic(record("a", 2))), Answer::Done);
        assert_eq!(s.topic("a").unwrap().id, Uuid::from_bytes([2; 16]));
    }

    #[test]
    fn a_tombstone_stays_until_every_broker_has_reaped() {
        let mut s = ClusterState::default();
        for (replica, rpc) in [(7, "a:1"), (8, "b:1")] {
            s.apply(Command::RegisterBroker(broker(replica, 1, rpc)));
        }
        let ids = vec![record("a", 1).id];
        s.apply(Command::CreateTopic(record("a", 1)));
        s.apply(Command::DeleteTopic { id: ids[0] });
        s.apply(Command::Reaped {
            ids: ids.clone(),
            node: Some(1),
        });
        assert_eq!(s.tombstones[&ids[0].0], BTreeSet::from([2]));
        assert_eq!(ClusterState::decode(&s.encode().unwrap()).unwrap(), s);
        s.apply(Command::Reaped { ids, node: Some(2) });
        assert!(s.tombstones.is_empty());
    }

    #[test]
    fn a_deleted_topic_leaves_a_tombstone_until_its_replicas_are_reaped() {
        let mut s = ClusterState::default();
        let id = record("a", 1).id;
        s.apply(Command::CreateTopic(record("a", 1)));
        s.apply(Command::DeleteTopic { id });
        assert!(s.tombstones.contains_key(&id.0));
        s.apply(Command::Reaped {
            ids: vec![id],
            node: None,
        });
        assert!(s.tombstones.is_empty());
    }

    #[test]
    fn producer_id_blocks_never_overlap() {
        let mut s = ClusterState::default();
        let firsts: Vec<_> = (0..3)
            .map(|_| s.apply(Command::AllocateProducerIds { node: 1 }))
            .collect();
        assert_eq!(
            firsts,
            [0, 1_000, 2_000].map(|first| Answer::ProducerIds { first })
        );
    }

    #[test]
    fn a_cluster_is_founded_once() {
        let mut s = ClusterState::default();
        assert_eq!(
            s.apply(Command::Found {
                cluster: "x".into()
            }),
            Answer::Done
        );
        assert_eq!(
            s.apply(Command::Found {
                cluster: "y".into()
            }),
            Answer::Refused(Refusal::Founded("x".into()))
        );
    }

    #[test]
    fn the_state_survives_its_encoding() {
        let mut s = ClusterState::default();
        s.apply(Command::Found {
            cluster: "x".into(),
        });
        s.apply(Command::CreateTopic(record("a", 1)));
        s.apply(Command::CreateTopic(record("b", 2)));
        s.apply(Command::DeleteTopic {
            id: record("b", 2).id,
        });
        s.apply(Command::AllocateProducerIds { node: 1 });
        assert_eq!(ClusterState::decode(&s.encode().unwrap()).unwrap(), s);
    }

    #[test]
    fn commands_keep_their_written_form() {
        let text = serde_json::to_string(&Command::CreateTopic(record("a", 1))).unwrap();
        assert_eq!(
            text,
            r#"{"create_topic":{"id":"01010101010101010101010101010101","name":"a","internal":false,"partitions":[[1],[1]],"overrides":{}}}"#
        );
    }
}
