//! Topics, groups and offsets: what an operator asks for.
//!
//! Promise: every answer is checked per topic or group; a code keeps the broker's own words.
//! Retriable failures are repeated until the client's retry policy gives up.
//!
//! Not here: how answers are shown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use logd_proto::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use logd_proto::messages::{
    CreateTopicsRequest, DeleteTopicsRequest, DescribeGroupsRequest, ListGroupsRequest,
    OffsetFetchRequest,
};
use logd_proto::{ErrorCode, message};

use crate::assignment;
use crate::cluster::{BrokerInfo, Cluster, Purpose, TopicInfo, cap, topic_info};
use crate::error::{AdminError, ConsumeError, MetadataError};
use crate::offsets::{self, OffsetAt, OffsetFound};

/// Asks for and changes what the cluster holds. Cheap to clone.
///
/// # Cancel safety
/// Dropping a future of [`create_topic`](Admin::create_topic) or
/// [`delete_topic`](Admin::delete_topic) leaves open whether it happened; everything else only reads.
#[derive(Clone, Debug)]
pub struct Admin {
    pub(crate) cluster: Arc<Cluster>,
}

/// The cluster at a glance.
#[derive(Clone, Debug)]
pub struct ClusterInfo {
    /// Its id.
    pub id: Option<String>,
    /// Its brokers.
    pub brokers: Vec<BrokerInfo>,
}

/// A topic to be made; what is not said is the broker's default.
#[derive(Clone, Debug, Default)]
pub struct NewTopic {
    name: String,
    partitions: Option<i32>,
    replicas: Option<i16>,
    configs: BTreeMap<String, String>,
    validate_only: bool,
}

impl NewTopic {
    /// A topic with the broker's defaults.
    pub fn new(name: impl Into<String>) -> NewTopic {
        let name = name.into();
        NewTopic {
            name,
            ..NewTopic::default()
        }
    }

    /// How many partitions.
    #[must_use]
    pub fn partitions(mut self, partitions: i32) -> Self {
        self.partitions = Some(partitions);
        self
    }

    /// On how many brokers each.
    #[must_use]
    pub fn replicas(mut self, replicas: i16) -> Self {
        self.replicas = Some(replicas);
        self
    }

    /// A configuration under Kafka's own name, such as `retention.ms`.
    #[must_use]
    pub fn config(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.configs.insert(name.into(), value.into());
        self
    }

    /// Only asks whether it could be made.
    #[must_use]
    pub fn validate_only(mut self, only: bool) -> Self {
        self.validate_only = only;
        self
    }
}

/// A topic as made.
#[derive(Clone, Debug)]
pub struct CreatedTopic {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: [u8; 16],
    /// How many partitions it got; -1 from brokers that do not say.
    pub partitions: i32,
    /// How many replicas; -1 from brokers that do not say.
    pub replicas: i16,
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupListing {
    /// Its id.
    pub id: String,
    /// `Stable`, `Empty` and so on; empty from brokers that do not say.
    pub state: String,
    /// `consumer` for consumers.
    pub protocol_type: String,
    /// The broker that coordinates it.
    pub coordinator: String,
}

/// A group and its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// Its id.
    pub id: String,
    /// `Stable`, `Empty`, `PreparingRebalance`, `CompletingRebalance` or `Dead`.
    pub state: String,
    /// `consumer` for consumers.
    pub protocol_type: String,
    /// How partitions are assigned.
    pub protocol: String,
    /// The broker that coordinates it.
    pub coordinator: String,
    /// Who is in it.
    pub members: Vec<GroupMember>,
}

/// One member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Its id.
    pub id: String,
    /// What its client calls itself.
    pub client_id: String,
    /// Where it connects from.
    pub host: String,
    /// What it was given.
    pub assigned: Vec<(String, i32)>,
}

/// An offset a group has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Where the group goes on.
    pub offset: i64,
    /// What it noted beside it.
    pub metadata: String,
}

impl Admin {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Admin {
        Admin { cluster }
    }

    /// Who is there.
    ///
    /// # Errors
    /// When no broker answers.
    pub async fn describe_cluster(&self) -> Result<ClusterInfo, AdminError> {
        let ask = || async { Ok::<_, AdminError>(self.cluster.metadata(Some(&[])).await?) };
        let response = self.cluster.retrying(ask).await?;
        Ok(ClusterInfo {
            id: response.cluster_id.map(|id| id.into_string()),
            brokers: self.cluster.brokers(),
        })
    }

    /// All topics, by name.
    ///
    /// # Errors
    /// When no broker answers.
    pub async fn list_topics(&self) -> Result<Vec<TopicInfo>, AdminError> {
        let ask = || async { Ok::<_, AdminError>(self.cluster.metadata(None).await?) };
        let response = self.cluster.retrying(ask).await?;
        let mut topics: Vec<TopicInfo> = response.topics.iter().map(topic_info).collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// One topic; never creates it.
    ///
    /// # Errors
    /// [`MetadataError::UnknownTopic`] when there is none of that name.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicInfo, AdminError> {
        let describe = || async {
            match self.cluster.topic_now(name).await {
                // An operator who mistyped a name wants to know at once, not after the retries.
                Err(MetadataError::UnknownTopic { topic }) => Ok(Err(topic)),
                Err(error) => Err(AdminError::from(error)),
                Ok(info) => Ok(Ok(TopicInfo::clone(&info))),
            }
        };
        let found = self.cluster.retrying(describe).await?;
        found.map_err(|topic| MetadataError::UnknownTopic { topic }.into())
    }

    /// Makes a topic; the answer comes when its partitions have leaders.
    ///
    /// # Errors
    /// With the broker's code and reason.
    pub async fn create_topic(&self, topic: &NewTopic) -> Result<CreatedTopic, AdminError> {
        self.cluster.retrying(|| self.create_once(topic)).await
    }

    async fn create_once(&self, topic: &NewTopic) -> Result<CreatedTopic, AdminError> {
        let configs = topic.configs.iter().map(|(name, value)| {
            message!(CreatableTopicConfig {
                name: name.as_str().into(),
                value: Some(value.as_str().into()),
            })
        });
        let creatable = message!(CreatableTopic {
            name: topic.name.as_str().into(),
            num_partitions: topic.partitions.unwrap_or(-1),
            replication_factor: topic.replicas.unwrap_or(-1),
            configs: configs.collect(),
        });
        let request = message!(CreateTopicsRequest {
            topics: vec![creatable],
            timeout_ms: self.timeout_ms(),
            validate_only: topic.validate_only,
        });
        let response = self.cluster.ask_any(&request, cap::NEWEST).await?;
        let subject = format!("topic {:?}", topic.name);
        let Some(result) = response.topics.first() else {
            return Err(AdminError::Missing { subject });
        };
        AdminError::check(&subject, result.error_code, result.error_message.as_deref())?;
        Ok(CreatedTopic {
            name: topic.name.clone(),
            id: result.topic_id.to_bytes(),
            partitions: result.num_partitions,
            replicas: result.replication_factor,
        })
    }

    /// Deletes a topic and all its records.
    ///
    /// # Errors
    /// With the broker's code and reason.
    pub async fn delete_topic(&self, name: &str) -> Result<(), AdminError> {
        let request = message!(DeleteTopicsRequest {
            topic_names: vec![name.into()],
            timeout_ms: self.timeout_ms(),
        });
        let delete = || async {
            let response = self.cluster.ask_any(&request, cap::DELETE_TOPICS).await?;
            let subject = format!("topic {name:?}");
            let Some(result) = response.responses.first() else {
                return Err(AdminError::Missing { subject });
            };
            if result.error_code == ErrorCode::UnknownTopicOrPartition.code() {
                return Ok(false);
            }
            AdminError::check(&subject, result.error_code, result.error_message.as_deref())?;
            Ok(true)
        };
        if self.cluster.retrying(delete).await? {
            return Ok(());
        }
        let topic = name.to_owned();
        Err(MetadataError::UnknownTopic { topic }.into())
    }

    /// The offset of one point in each of the partitions named.
    ///
    /// # Errors
    /// When a partition or its leader is not there.
    pub async fn offsets(
        &self,
        partitions: &[(String, i32)],
        at: OffsetAt,
    ) -> Result<Vec<OffsetFound>, ConsumeError> {
        let wanted: Vec<(String, i32, OffsetAt)> = partitions
            .iter()
            .map(|(topic, partition)| (topic.clone(), *partition, at))
            .collect();
        offsets::look_up(&self.cluster, &wanted).await
    }

    /// All groups of all brokers, by id.
    ///
    /// # Errors
    /// When a broker does not answer: a list with holes would be a lie.
    pub async fn list_groups(&self) -> Result<Vec<GroupListing>, AdminError> {
        self.describe_cluster().await?;
        let mut groups = Vec::new();
        for broker in self.cluster.brokers() {
            let list = || self.list_groups_of(&broker);
            groups.extend(self.cluster.retrying(list).await?);
        }
        groups.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(groups)
    }

    async fn list_groups_of(&self, broker: &BrokerInfo) -> Result<Vec<GroupListing>, AdminError> {
        let connection = self.cluster.connection(broker.id, Purpose::General).await?;
        let timeout = self.cluster.settings.request_timeout;
        let request = ListGroupsRequest::default();
        let response = connection.call(&request, cap::NEWEST, timeout).await?;
        AdminError::check(&broker.addr, response.error_code, None)?;
        let groups = response.groups.into_iter().map(|group| GroupListing {
            id: group.group_id.into_string(),
            state: group.group_state.into_string(),
            protocol_type: group.protocol_type.into_string(),
            coordinator: broker.addr.clone(),
        });
        Ok(groups.collect())
    }

    /// One group. A group nobody has heard of is `Dead` and empty, as Kafka has it.
    ///
    /// # Errors
    /// When its coordinator does not answer, or says no.
    pub async fn describe_group(&self, id: &str) -> Result<GroupDescription, AdminError> {
        self.cluster.retrying(|| self.describe_group_once(id)).await
    }

    async fn describe_group_once(&self, id: &str) -> Result<GroupDescription, AdminError> {
        let coordinator = self.cluster.coordinator(id).await?;
        let connection = self
            .cluster
            .connection_to(&coordinator, Purpose::General)
            .await?;
        let request = message!(DescribeGroupsRequest {
            groups: vec![id.into()]
        });
        let timeout = self.cluster.settings.request_timeout;
        let response = connection.call(&request, cap::NEWEST, timeout).await?;
        let subject = format!("group {id:?}");
        let Some(group) = response.groups.into_iter().next() else {
            return Err(AdminError::Missing { subject });
        };
        let dead = |state: &str| GroupDescription {
            id: id.to_owned(),
            state: state.to_owned(),
            protocol_type: String::new(),
            protocol: String::new(),
            coordinator: coordinator.clone(),
            members: Vec::new(),
        };
        if group.error_code == ErrorCode::GroupIdNotFound.code() {
            return Ok(dead("Dead"));
        }
        AdminError::check(&subject, group.error_code, group.error_message.as_deref())?;
        let members = group.members.into_iter().map(|member| GroupMember {
            id: member.member_id.into_string(),
            client_id: member.client_id.into_string(),
            host: member.client_host.into_string(),
            // Members of other kinds of groups assign what they like; that is not ours to read.
            assigned: assignment::decode_assignment(&member.member_assignment).unwrap_or_default(),
        });
        Ok(GroupDescription {
            members: members.collect(),
            protocol_type: group.protocol_type.into_string(),
            protocol: group.protocol_data.into_string(),
            ..dead(&group.group_state)
        })
    }

    /// Where a group has got to, for every partition it has committed.
    ///
    /// # Errors
    /// When its coordinator does not answer, or says no.
    pub async fn group_offsets(&self, id: &str) -> Result<Vec<CommittedOffset>, AdminError> {
        self.cluster.retrying(|| self.group_offsets_once(id)).await
    }

    async fn group_offsets_once(&self, id: &str) -> Result<Vec<CommittedOffset>, AdminError> {
        let coordinator = self.cluster.coordinator(id).await?;
        let connection = self
            .cluster
            .connection_to(&coordinator, Purpose::General)
            .await?;
        let request = message!(OffsetFetchRequest {
            group_id: id.into(),
            topics: None,
        });
        let timeout = self.cluster.settings.request_timeout;
        let response = connection
            .call(&request, cap::OFFSET_FETCH, timeout)
            .await?;
        let subject = format!("group {id:?}");
        AdminError::check(&subject, response.error_code, None)?;
        let mut offsets = Vec::new();
        for topic in response.topics {
            for partition in topic.partitions {
                AdminError::check(&subject, partition.error_code, None)?;
                if partition.committed_offset < 0 {
                    continue;
                }
                offsets.push(CommittedOffset {
                    topic: topic.name.to_string(),
                    partition: partition.partition_index,
                    offset: partition.committed_offset,
                    metadata: partition
                        .metadata
                        .map(|m| m.into_string())
                        .unwrap_or_default(),
                });
            }
        }
        offsets.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        Ok(offsets)
    }

    /// How long the broker may take; less than we are ready to wait for its answer.
    fn timeout_ms(&self) -> i32 {
        let wait = self.cluster.settings.request_timeout;
        let ours = wait
            .saturating_sub(Duration::from_millis(500))
            .max(wait / 2);
        i32::try_from(ours.as_millis()).unwrap_or(i32::MAX)
    }
}
