//! The metadata group's state: brokers, topics, tombstones, producer-id blocks. Pure.
//!
//! Promise: a function of the committed commands alone, so every broker has the same and answers
//! Metadata from its own. A command that cannot be carried out changes nothing and says why.
//! Not here: who proposes (controller), where replicas go (placement), what runs on this broker (reconcile).

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
    pub id: i32,
    /// The disk that votes for it.
    pub replica: u64,
    /// Raised at each start of that disk.
    pub start: u64,
    pub rack: Option<String>,
    pub listeners: BTreeMap<String, (String, u16)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    pub id: Uuid,
    pub name: String,
    pub internal: bool,
    /// Node ids per partition, the preferred leader first.
    pub partitions: Vec<Vec<i32>>,
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
    /// The replicas on this broker of a deleted topic are gone.
    Reaped {
        ids: Vec<TopicId>,
    },
    AllocateProducerIds {
        node: i32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Done,
    /// First id of a block of [`PRODUCER_ID_BLOCK`].
    ProducerIds {
        first: i64,
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
    #[error("the cluster has been founded already, as {0}")]
    Founded(String),
    #[error("the topic's configuration is not one this version understands: {0}")]
    Config(String),
}

/// An immutable picture; the controller swaps in the next one after each command.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClusterState {
    pub cluster: Option<String>,
    pub brokers: BTreeMap<i32, BrokerInfo>,
    pub topics: BTreeMap<Uuid, Arc<Topic>>,
    names: HashMap<String, Uuid>,
    /// Deleted topics whose replicas may still lie on a disk.
    pub tombstones: BTreeSet<Uuid>,
    next_producer_id: i64,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    cluster: Option<String>,
    brokers: Vec<BrokerInfo>,
    topics: Vec<TopicRecord>,
    tombstones: Vec<TopicId>,
    next_producer_id: i64,
}

impl ClusterState {
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(self.names.get(name)?)
    }

    pub fn topic_by_id(&self, id: &Uuid) -> Option<&Arc<Topic>> {
        self.topics.get(id)
    }

    pub fn partitions(&self) -> usize {
        self.topics.values().map(|t| t.partitions.len()).sum()
    }

    /// Carries out one committed command.
    pub fn apply(&mut self, command: Command) -> Answer {
        match command {
            Command::Found { cluster } => self.found(cluster),
            Command::RegisterBroker(info) => {
                self.brokers.insert(info.id, info);
                Answer::Done
            }
            Command::CreateTopic(record) => self.create(record),
            Command::DeleteTopic { id } => self.delete(id.0),
            Command::Reaped { ids } => {
                ids.iter().for_each(|id| {
                    self.tombstones.remove(&id.0);
                });
                Answer::Done
            }
            Command::AllocateProducerIds { .. } => {
                let first = self.next_producer_id;
                self.next_producer_id += PRODUCER_ID_BLOCK;
                Answer::ProducerIds { first }
            }
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

    fn create(&mut self, record: TopicRecord) -> Answer {
        if self.names.contains_key(&record.name) || self.topics.contains_key(&record.id.0) {
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
        self.tombstones.insert(id);
        Answer::Done
    }

    /// # Errors
    /// Never in practice: every field encodes.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Saved {
            cluster: self.cluster.clone(),
            brokers: self.brokers.values().cloned().collect(),
            topics: self.topics.values().map(|t| to_record(t)).collect(),
            tombstones: self.tombstones.iter().copied().map(TopicId).collect(),
            next_producer_id: self.next_producer_id,
        })
    }

    /// # Errors
    /// If the bytes are not an encoded state.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let saved: Saved = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let mut state = Self {
            cluster: saved.cluster,
            brokers: saved.brokers.into_iter().map(|b| (b.id, b)).collect(),
            tombstones: saved.tombstones.into_iter().map(|t| t.0).collect(),
            next_producer_id: saved.next_producer_id,
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
        overrides: topic.overrides.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, id: u8) -> TopicRecord {
        TopicRecord {
            id: TopicId(Uuid::from_bytes([id; 16])),
            name: name.into(),
            internal: false,
            partitions: vec![vec![1]; 2],
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
    fn a_deleted_topic_leaves_a_tombstone_until_its_replicas_are_reaped() {
        let mut s = ClusterState::default();
        let id = record("a", 1).id;
        s.apply(Command::CreateTopic(record("a", 1)));
        s.apply(Command::DeleteTopic { id });
        assert!(s.tombstones.contains(&id.0));
        s.apply(Command::Reaped { ids: vec![id] });
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
