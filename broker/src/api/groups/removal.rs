//! DeleteGroups and OffsetDelete.

use super::super::errors::told;
use super::{code, name, outcome, verdict};
use crate::cluster::ClusterState;
use crate::group::{Coordinator, Event, Name, Refusal, Verdicts};
use futures_util::future::join_all;
use logd_proto::messages::delete_groups_response::DeletableGroupResult;
use logd_proto::messages::offset_delete_request::OffsetDeleteRequestTopic;
use logd_proto::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use logd_proto::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, OffsetDeleteRequest, OffsetDeleteResponse,
};
use logd_proto::{ErrorCode, message};
use std::future::Future;

pub(super) async fn delete_groups(
    groups: &Coordinator,
    request: DeleteGroupsRequest,
) -> impl Future<Output = DeleteGroupsResponse> + use<> {
    let mut underway = Vec::with_capacity(request.groups_names.len());
    for group in request.groups_names {
        let submitted = groups.submit(&group, Event::Delete).await;
        underway.push(async move { (group, outcome(submitted).await) });
    }
    async move {
        let deleted = join_all(underway).await.into_iter();
        let results = deleted.map(|(group_id, deleted)| {
            message!(DeletableGroupResult {
                group_id,
                error_code: verdict(deleted)
            })
        });
        message!(DeleteGroupsResponse {
            results: results.collect()
        })
    }
}

pub(super) async fn delete_offsets(
    groups: &Coordinator,
    topics: &ClusterState,
    request: OffsetDeleteRequest,
) -> impl Future<Output = OffsetDeleteResponse> + use<> {
    let known = request.topics.iter().map(|t| topics.topic(&t.name));
    let known: Vec<bool> = known.map(|topic| topic.is_some()).collect();
    let asked: Vec<_> = request.topics.into_iter().zip(known).collect();
    let there = asked.iter().filter(|(_, known)| *known);
    let places: Vec<(Name, i32)> = there.flat_map(|(topic, _)| places(topic)).collect();
    let event = |ticket| Event::DeleteOffsets(ticket, places);
    let submitted = groups.submit(&request.group_id, event).await;
    async move { deleted(asked, outcome(submitted).await) }
}

fn places(topic: &OffsetDeleteRequestTopic) -> impl Iterator<Item = (Name, i32)> {
    let of = name(&topic.name);
    let partitions = topic.partitions.iter();
    partitions.map(move |at| (of.clone(), at.partition_index))
}

/// Each topic that was asked for, and whether there is such a topic.
type Asked = Vec<(OffsetDeleteRequestTopic, bool)>;

fn deleted(asked: Asked, verdicts: Verdicts) -> OffsetDeleteResponse {
    let verdicts = match verdicts {
        Ok(verdicts) => verdicts,
        Err(refusal) => {
            return message!(OffsetDeleteResponse {
                error_code: told(code(refusal))
            });
        }
    };
    let mut verdicts = verdicts.into_iter();
    let topics = asked.into_iter().map(|(topic, known)| {
        let partitions = topic.partitions.iter().map(|at| {
            let error_code = match known {
                // As many verdicts as places were named.
                true => verdict(verdicts.next().unwrap_or(Err(Refusal::NotAvailable))),
                false => told(ErrorCode::UnknownTopicOrPartition),
            };
            message!(OffsetDeleteResponsePartition {
                partition_index: at.partition_index,
                error_code
            })
        });
        message!(OffsetDeleteResponseTopic {
            partitions: partitions.collect(),
            name: topic.name,
        })
    });
    message!(OffsetDeleteResponse {
        topics: topics.collect()
    })
}
