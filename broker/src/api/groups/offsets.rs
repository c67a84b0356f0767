//! OffsetCommit and OffsetFetch.
//!
//! Offsets are kept by topic name, as Kafka keeps them, with the id the topic had. An offset of a
//! topic that was deleted and created again is not the new topic's offset, so it is not served.

use super::super::Context;
use super::super::errors::told;
use super::{code, instance, name, outcome, verdict, wire};
use crate::cluster::ClusterState;
use crate::group::{
    Answer, Commit, CommittedOffset, Coordinator, Event, FetchedOffset, Name, OffsetToCommit,
    Refusal, Verdicts, Wanted,
};
use futures_util::future::join_all;
use logd_proto::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use logd_proto::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use logd_proto::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use logd_proto::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use logd_proto::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse,
};
use logd_proto::{ErrorCode, StrBytes, Uuid, message};
use std::future::Future;
use std::sync::Arc;

/// From here on topics are named by their ids (KIP-848).
const TOPIC_IDS_SINCE: i16 = 10;
/// From here on one fetch asks for several groups (KIP-709).
const SEVERAL_GROUPS_SINCE: i16 = 8;
/// From here on a fetch that fails as a whole has a place to say so.
const FETCH_ERROR_SINCE: i16 = 2;

/// Topics by name and by id: what offsets need of the metadata.
pub(super) trait Topics {
    fn id_of(&self, name: &str) -> Option<Uuid>;
    fn name_of(&self, id: &Uuid) -> Option<Name>;
}

/// Whether this broker still coordinates a group: asked after its state was read, so that one that was cut
/// off for a while tells nobody offsets that its successor has moved on from.
pub(super) trait Coordinates {
    fn is_current(&self, group: &str) -> impl Future<Output = bool> + Send;
}

impl Topics for ClusterState {
    fn id_of(&self, name: &str) -> Option<Uuid> {
        self.topic(name).map(|topic| topic.id)
    }

    fn name_of(&self, id: &Uuid) -> Option<Name> {
        self.topic_by_id(id).map(|topic| topic.name.as_str().into())
    }
}

pub(super) async fn commit<T: Topics + 'static>(
    groups: &Coordinator,
    topics: &T,
    context: &Context,
    request: OffsetCommitRequest,
) -> impl Future<Output = OffsetCommitResponse> + use<T> {
    let by_id = context.version >= TOPIC_IDS_SINCE;
    let known: Vec<Result<(Name, Uuid), ErrorCode>> = request
        .topics
        .iter()
        .map(|topic| resolve(topics, &topic.name, &topic.topic_id, by_id))
        .collect();
    let commit = commit_event(&request, &known);
    let submitted = if commit.offsets.is_empty() {
        None
    } else {
        let event = |ticket| Event::Commit(ticket, commit);
        Some(groups.submit(&request.group_id, event).await)
    };
    let asked = places(request.topics, known);
    async move {
        let verdicts = match submitted {
            Some(submitted) => outcome(submitted).await,
            None => Ok(Vec::new()),
        };
        committed(asked, verdicts)
    }
}

fn resolve(
    topics: &impl Topics,
    by_name: &StrBytes,
    id: &Uuid,
    by_id: bool,
) -> Result<(Name, Uuid), ErrorCode> {
    if by_id {
        let name = topics.name_of(id).ok_or(ErrorCode::UnknownTopicId)?;
        Ok((name, *id))
    } else {
        let id = topics.id_of(by_name);
        let id = id.ok_or(ErrorCode::UnknownTopicOrPartition)?;
        Ok((name(by_name), id))
    }
}

fn commit_event(
    request: &OffsetCommitRequest,
    known: &[Result<(Name, Uuid), ErrorCode>],
) -> Commit {
    let mut offsets = Vec::new();
    for (topic, known) in request.topics.iter().zip(known) {
        let Ok((name, id)) = known else { continue };
        offsets.extend(topic.partitions.iter().map(|at| offset(name, id, at)));
    }
    Commit {
        member_id: name(&request.member_id),
        generation: request.generation_id_or_member_epoch,
        instance_id: instance(request.group_instance_id.as_ref()),
        retention: (request.retention_time_ms >= 0).then_some(request.retention_time_ms),
        offsets,
    }
}

fn offset(topic: &Name, id: &Uuid, at: &OffsetCommitRequestPartition) -> OffsetToCommit {
    OffsetToCommit {
        topic: topic.clone(),
        topic_id: id.to_bytes(),
        partition: at.partition_index,
        offset: at.committed_offset,
        leader_epoch: at.committed_leader_epoch,
        metadata: at.committed_metadata.as_ref().map(name).unwrap_or_default(),
    }
}

/// A topic of the request as it is to be answered: its name, its id, its partitions, and the error
/// that all of them share if it is unknown.
type Asked = (StrBytes, Uuid, Vec<i32>, Option<ErrorCode>);

fn places(
    topics: Vec<OffsetCommitRequestTopic>,
    known: Vec<Result<(Name, Uuid), ErrorCode>>,
) -> Vec<Asked> {
    let indexes = |topic: &OffsetCommitRequestTopic| {
        topic
            .partitions
            .iter()
            .map(|at| at.partition_index)
            .collect()
    };
    topics
        .into_iter()
        .zip(known)
        .map(|(topic, known)| {
            let indexes = indexes(&topic);
            (topic.name, topic.topic_id, indexes, known.err())
        })
        .collect()
}

fn committed(asked: Vec<Asked>, verdicts: Verdicts) -> OffsetCommitResponse {
    let (mut verdicts, otherwise) = match verdicts {
        Ok(verdicts) => (verdicts.into_iter(), Ok(())),
        Err(refusal) => (Vec::new().into_iter(), Err(refusal)),
    };
    let mut partition = |partition_index, unknown: Option<ErrorCode>| {
        let error_code = match unknown {
            Some(code) => told(code),
            None => verdict(verdicts.next().unwrap_or(otherwise)),
        };
        message!(OffsetCommitResponsePartition {
            partition_index,
            error_code,
        })
    };
    let topics = asked
        .into_iter()
        .map(|(name, topic_id, indexes, unknown)| {
            let partitions = indexes
                .into_iter()
                .map(|index| partition(index, unknown))
                .collect();
            message!(OffsetCommitResponseTopic {
                name,
                topic_id,
                partitions,
            })
        })
        .collect();
    message!(OffsetCommitResponse { topics })
}

/// One group's part of a fetch, underway.
struct Underway {
    group: StrBytes,
    /// Topics that the request names by ids nobody knows.
    unknown: Vec<(Uuid, Vec<i32>)>,
    /// What was asked for, to be answered also when the group cannot be.
    asked: Vec<(Name, i32)>,
    submitted: Result<Answer<Result<Vec<FetchedOffset>, Refusal>>, Refusal>,
}

/// A transaction's offsets would be unstable until it ends (`require_stable`); no offset here
/// belongs to a transaction, so all are stable.
pub(super) async fn fetch<T: Topics + Send + Sync + 'static, C: Coordinates + 'static>(
    groups: &Coordinator,
    topics: Arc<T>,
    coordinates: Arc<C>,
    context: &Context,
    request: OffsetFetchRequest,
) -> impl Future<Output = OffsetFetchResponse> + use<T, C> {
    let version = context.version;
    let mut underway = Vec::new();
    for group in requested(version, request) {
        underway.push(begin(groups, &*topics, version, group).await);
    }
    async move {
        let finish = |group| finish(&*topics, &*coordinates, version, group);
        let groups = join_all(underway.into_iter().map(finish)).await;
        if version >= SEVERAL_GROUPS_SINCE {
            message!(OffsetFetchResponse { groups })
        } else {
            one_group(version, groups.into_iter().next().unwrap_or_default())
        }
    }
}

/// Older versions ask for one group in fields of its own.
fn requested(version: i16, request: OffsetFetchRequest) -> Vec<OffsetFetchRequestGroup> {
    if version >= SEVERAL_GROUPS_SINCE {
        return request.groups;
    }
    let topics = request.topics.map(|topics| {
        let newer = |topic: logd_proto::messages::offset_fetch_request::OffsetFetchRequestTopic| {
            message!(OffsetFetchRequestTopics {
                name: topic.name,
                partition_indexes: topic.partition_indexes,
            })
        };
        topics.into_iter().map(newer).collect()
    });
    vec![message!(OffsetFetchRequestGroup {
        group_id: request.group_id,
        topics,
    })]
}

async fn begin(
    groups: &Coordinator,
    topics: &impl Topics,
    version: i16,
    request: OffsetFetchRequestGroup,
) -> Underway {
    let mut unknown = Vec::new();
    let mut asked = Vec::new();
    let all = request.topics.is_none();
    for topic in request.topics.unwrap_or_default() {
        let known = if version >= TOPIC_IDS_SINCE {
            topics.name_of(&topic.topic_id)
        } else {
            Some(name(&topic.name))
        };
        match known {
            Some(name) => {
                asked.extend(
                    topic
                        .partition_indexes
                        .iter()
                        .map(|index| (name.clone(), *index)),
                );
            }
            None => unknown.push((topic.topic_id, topic.partition_indexes)),
        }
    }
    let wanted = if all {
        Wanted::All
    } else {
        Wanted::These(asked.clone())
    };
    let event = |ticket| Event::FetchOffsets(ticket, wanted);
    Underway {
        submitted: groups.submit(&request.group_id, event).await,
        group: request.group_id,
        unknown,
        asked,
    }
}

async fn finish(
    topics: &impl Topics,
    coordinates: &impl Coordinates,
    version: i16,
    fetch: Underway,
) -> OffsetFetchResponseGroup {
    let mut read = outcome(fetch.submitted).await;
    if read.is_ok() && !coordinates.is_current(&fetch.group).await {
        read = Err(Refusal::NotCoordinator);
    }
    let (rows, refused) = match read {
        Ok(rows) => (rows, None),
        // Version 1 has no place for the error but the partitions that were asked for.
        Err(refusal) if version < FETCH_ERROR_SINCE => {
            let nothing = |(topic, index)| (topic, index, None);
            (
                fetch.asked.into_iter().map(nothing).collect(),
                Some(refusal),
            )
        }
        Err(refusal) => (Vec::new(), Some(refusal)),
    };
    let mut answer = gather(topics, version, rows);
    if refused.is_none() {
        answer.extend(fetch.unknown.into_iter().map(unknown_topic));
    }
    message!(OffsetFetchResponseGroup {
        group_id: fetch.group,
        topics: answer,
        error_code: told(refused.map_or(ErrorCode::None, code)),
    })
}

fn unknown_topic((topic_id, indexes): (Uuid, Vec<i32>)) -> OffsetFetchResponseTopics {
    let code = ErrorCode::UnknownTopicId;
    let partitions = indexes
        .into_iter()
        .map(|index| partition(index, None, code))
        .collect();
    message!(OffsetFetchResponseTopics {
        topic_id,
        partitions,
    })
}

/// Rows of one topic follow each other, in the order asked or of the alphabet.
fn gather(
    topics: &impl Topics,
    version: i16,
    rows: Vec<FetchedOffset>,
) -> Vec<OffsetFetchResponseTopics> {
    let mut answer: Vec<OffsetFetchResponseTopics> = Vec::new();
    for (topic, index, offset) in rows {
        let id = topics.id_of(&topic);
        if version >= TOPIC_IDS_SINCE && id.is_none() {
            // Deleted since; by id it cannot even be named.
            continue;
        }
        let offset = offset.filter(|offset| is_of(offset, id));
        let row = partition(index, offset, ErrorCode::None);
        match answer
            .last_mut()
            .filter(|last| last.name.as_str() == &*topic)
        {
            Some(last) => last.partitions.push(row),
            None => answer.push(message!(OffsetFetchResponseTopics {
                name: wire(&topic),
                topic_id: id.unwrap_or_default(),
                partitions: vec![row],
            })),
        }
    }
    answer
}

/// Whether the offset was committed for the topic that has the name now. Where either id is not
/// known there is nothing to compare.
fn is_of(offset: &CommittedOffset, id: Option<Uuid>) -> bool {
    let committed = Uuid::from_bytes(offset.topic_id);
    committed.is_zero() || id.is_none_or(|id| id == committed)
}

fn partition(
    partition_index: i32,
    offset: Option<CommittedOffset>,
    error: ErrorCode,
) -> OffsetFetchResponsePartitions {
    let error_code = told(error);
    match offset {
        Some(offset) => message!(OffsetFetchResponsePartitions {
            partition_index,
            committed_offset: offset.offset,
            committed_leader_epoch: offset.leader_epoch,
            metadata: Some(wire(&offset.metadata)),
            error_code,
        }),
        None => message!(OffsetFetchResponsePartitions {
            partition_index,
            committed_offset: -1,
            committed_leader_epoch: -1,
            metadata: Some(StrBytes::default()),
            error_code,
        }),
    }
}

/// The same answer in the words of older versions.
fn one_group(version: i16, group: OffsetFetchResponseGroup) -> OffsetFetchResponse {
    let whole = group.error_code;
    let older = |topic: OffsetFetchResponseTopics| {
        let partitions = topic
            .partitions
            .into_iter()
            .map(|at| {
                message!(OffsetFetchResponsePartition {
                    partition_index: at.partition_index,
                    committed_offset: at.committed_offset,
                    committed_leader_epoch: at.committed_leader_epoch,
                    metadata: at.metadata,
                    error_code: if version < FETCH_ERROR_SINCE {
                        whole
                    } else {
                        at.error_code
                    },
                })
            })
            .collect();
        message!(OffsetFetchResponseTopic {
            name: topic.name,
            partitions,
        })
    };
    message!(OffsetFetchResponse {
        topics: group.topics.into_iter().map(older).collect(),
        error_code: whole,
    })
}
