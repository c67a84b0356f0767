//! Looks up offsets: the start, the end, or the first record of a time.
//!
//! Promise: one request per leader however many partitions; a partition whose leader moved is asked
//! for again.
//!
//! Not here: committed offsets of groups.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use logd_proto::messages::ListOffsetsRequest;
use logd_proto::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use logd_proto::{ErrorCode, message};

use crate::cluster::{Cluster, Purpose, cap};
use crate::error::{ConsumeError, MetadataError};

/// A point in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetAt {
    /// The first record that is still there.
    Start,
    /// Behind the last record that consumers may see.
    End,
    /// The first record whose timestamp, in milliseconds since 1970, is not earlier.
    Timestamp(i64),
}

impl OffsetAt {
    /// How the protocol says it.
    const fn timestamp(self) -> i64 {
        match self {
            OffsetAt::Start => -2,
            OffsetAt::End => -1,
            OffsetAt::Timestamp(at) => at,
        }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetFound {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset; none when no record is as late as was asked for.
    pub offset: Option<i64>,
}

type Wanted = (String, i32, OffsetAt);

/// Looks up all of `wanted`; answers in no particular order.
pub(crate) async fn look_up(
    cluster: &Cluster,
    wanted: &[Wanted],
) -> Result<Vec<OffsetFound>, ConsumeError> {
    // Metadata is refreshed on a second attempt only: the first mostly knows the leaders.
    let stale = std::cell::Cell::new(false);
    let attempt = || async {
        let result = look_up_once(cluster, wanted, stale.get()).await;
        stale.set(true);
        result
    };
    cluster.retrying(attempt).await
}

async fn look_up_once(
    cluster: &Cluster,
    wanted: &[Wanted],
    refresh: bool,
) -> Result<Vec<OffsetFound>, ConsumeError> {
    let mut by_leader: BTreeMap<i32, BTreeMap<&str, Vec<ListOffsetsPartition>>> = BTreeMap::new();
    let mut seen = BTreeMap::new();
    for (topic, partition, at) in wanted {
        let info = match seen.entry(topic.as_str()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) if refresh => new.insert(cluster.refresh(topic).await?),
            Entry::Vacant(new) => new.insert(cluster.topic(topic).await?),
        };
        let place = info.partitions.iter().find(|p| p.index == *partition);
        let (topic_name, partition) = (topic.clone(), *partition);
        let Some(place) = place else {
            let topic = topic_name;
            return Err(MetadataError::UnknownPartition { topic, partition }.into());
        };
        let Some(leader) = place.leader else {
            let topic = topic_name;
            return Err(MetadataError::NoLeader { topic, partition }.into());
        };
        let question = message!(ListOffsetsPartition {
            partition_index: partition,
            current_leader_epoch: -1,
            timestamp: at.timestamp(),
        });
        let topics = by_leader.entry(leader).or_default();
        topics.entry(topic.as_str()).or_default().push(question);
    }
    let mut found = Vec::with_capacity(wanted.len());
    for (leader, topics) in by_leader {
        ask(cluster, leader, topics, &mut found).await?;
    }
    Ok(found)
}

async fn ask(
    cluster: &Cluster,
    leader: i32,
    topics: BTreeMap<&str, Vec<ListOffsetsPartition>>,
    found: &mut Vec<OffsetFound>,
) -> Result<(), ConsumeError> {
    let topics = topics.into_iter().map(|(name, partitions)| {
        message!(ListOffsetsTopic {
            name: name.into(),
            partitions: partitions,
        })
    });
    let request = message!(ListOffsetsRequest {
        replica_id: -1,
        topics: topics.collect(),
    });
    let connection = cluster.connection(leader, Purpose::General).await?;
    let timeout = cluster.settings.request_timeout;
    let response = connection.call(&request, cap::NEWEST, timeout).await?;
    for topic in response.topics {
        for answer in topic.partitions {
            let partition = answer.partition_index;
            match ErrorCode::from_code(answer.error_code) {
                ErrorCode::None => found.push(OffsetFound {
                    topic: topic.name.to_string(),
                    partition,
                    offset: (answer.offset >= 0).then_some(answer.offset),
                }),
                code => {
                    let topic = topic.name.as_str().into();
                    return Err(ConsumeError::Refused {
                        topic,
                        partition,
                        code,
                    });
                }
            }
        }
    }
    Ok(())
}
