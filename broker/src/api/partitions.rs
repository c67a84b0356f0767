//! CreatePartitions: any broker takes it, as it does CreateTopics.

use super::{Services, errors};
use crate::cluster::{CreatePartitionsError, NewPartitions};
use logd_proto::messages::create_partitions_request::CreatePartitionsTopic;
use logd_proto::messages::create_partitions_response::CreatePartitionsTopicResult;
use logd_proto::messages::{CreatePartitionsRequest, CreatePartitionsResponse};
use logd_proto::{ErrorCode, StrBytes, message};
use std::sync::Arc;
use std::time::Duration;

pub async fn create(
    services: Arc<Services>,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let deadline = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let names: Vec<StrBytes> = request.topics.iter().map(|t| t.name.clone()).collect();
    let wanted = request.topics.into_iter().map(wish).collect();
    let created = services
        .cluster
        .create_partitions(wanted, request.validate_only, deadline)
        .await;
    let results = names.into_iter().zip(created).map(|(n, r)| result(n, r));
    message!(CreatePartitionsResponse {
        results: results.collect()
    })
}

fn wish(topic: CreatePartitionsTopic) -> NewPartitions {
    let assignments = topic.assignments;
    NewPartitions {
        topic: topic.name.to_string(),
        count: topic.count,
        assignments: assignments.map(|all| all.into_iter().map(|a| a.broker_ids).collect()),
    }
}

fn result(
    name: StrBytes,
    created: Result<(), CreatePartitionsError>,
) -> CreatePartitionsTopicResult {
    let (code, why) = match created {
        Ok(()) => (ErrorCode::None, None),
        Err(error) => (errors::create_partitions(&error), Some(error.to_string())),
    };
    message!(CreatePartitionsTopicResult {
        name,
        error_code: errors::told(code),
        error_message: why.map(StrBytes::from),
    })
}
