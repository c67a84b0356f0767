//! CreateTopics and DeleteTopics.

use super::{Context, Services, configs, errors};
use crate::cluster::{CreateTopicError, CreatedTopic, NewTopic};
use crate::topic_config::TopicDefaults;
use logd_proto::messages::create_topics_request::CreatableTopic;
use logd_proto::messages::create_topics_response::CreatableTopicResult;
use logd_proto::messages::delete_topics_request::DeleteTopicState;
use logd_proto::messages::delete_topics_response::DeletableTopicResult;
use logd_proto::messages::{
    CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest, DeleteTopicsResponse,
};
use logd_proto::{ErrorCode, StrBytes, Uuid, message};
use std::sync::Arc;
use std::time::Duration;

/// "Use the broker's default", for a number of partitions or a replication factor.
const DEFAULT: i32 = -1;

/// DeleteTopics names topics by id or name from here on.
const BY_STATE: i16 = 6;

pub async fn create(services: Arc<Services>, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let deadline = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let names: Vec<StrBytes> = request.topics.iter().map(|t| t.name.clone()).collect();
    let wanted = request.topics.into_iter().map(new_topic).collect();
    let created = services
        .cluster
        .create_topics(wanted, request.validate_only, deadline)
        .await;
    let defaults = services.settings.now().topics.clone();
    let topics = names
        .into_iter()
        .zip(created)
        .map(|(name, result)| create_result(name, result, &defaults))
        .collect();
    message!(CreateTopicsResponse { topics })
}

fn new_topic(topic: CreatableTopic) -> NewTopic {
    NewTopic {
        name: topic.name.to_string(),
        partitions: (topic.num_partitions != DEFAULT).then_some(topic.num_partitions),
        replication: (i32::from(topic.replication_factor) != DEFAULT)
            .then_some(topic.replication_factor),
        assignments: topic
            .assignments
            .into_iter()
            .map(|a| (a.partition_index, a.broker_ids))
            .collect(),
        config: topic
            .configs
            .into_iter()
            .map(|c| (c.name.to_string(), c.value.map(|v| v.to_string())))
            .collect(),
    }
}

fn create_result(
    name: StrBytes,
    result: Result<CreatedTopic, CreateTopicError>,
    defaults: &TopicDefaults,
) -> CreatableTopicResult {
    match result {
        Ok(created) => {
            let described = created.config.over(defaults).described();
            let configs = described.iter().map(configs::created);
            message!(CreatableTopicResult {
                name,
                topic_id: created.id,
                num_partitions: created.partitions,
                replication_factor: created.replication,
                configs: Some(configs.collect()),
            })
        }
        Err(error) => message!(CreatableTopicResult {
            name,
            error_code: errors::told(errors::create_topic(&error)),
            error_message: Some(error.to_string().into()),
            num_partitions: -1,
            replication_factor: -1,
        }),
    }
}

pub async fn delete(
    services: Arc<Services>,
    context: Context,
    request: DeleteTopicsRequest,
) -> DeleteTopicsResponse {
    let wanted: Vec<DeleteTopicState> = if context.version >= BY_STATE {
        request.topics
    } else {
        request
            .topic_names
            .into_iter()
            .map(|name| message!(DeleteTopicState { name: Some(name) }))
            .collect()
    };
    let mut responses = Vec::with_capacity(wanted.len());
    for topic in wanted {
        responses.push(delete_one(&services, topic).await);
    }
    message!(DeleteTopicsResponse { responses })
}

async fn delete_one(services: &Services, wanted: DeleteTopicState) -> DeletableTopicResult {
    let state = services.cluster.view();
    let found = match (&wanted.name, wanted.topic_id) {
        (Some(_), id) if id != Uuid::ZERO => Err((
            ErrorCode::InvalidRequest,
            "a topic is named by name or by id, not both",
        )),
        (Some(name), _) => state
            .topic(name)
            .ok_or((ErrorCode::UnknownTopicOrPartition, "there is no such topic")),
        (None, id) => state
            .topic_by_id(&id)
            .ok_or((ErrorCode::UnknownTopicId, "there is no topic of this id")),
    };
    let topic = match found {
        Ok(topic) => topic.clone(),
        Err((code, why)) => {
            return message!(DeletableTopicResult {
                name: wanted.name,
                topic_id: wanted.topic_id,
                error_code: errors::told(code),
                error_message: Some(why.into()),
            });
        }
    };
    let result = services
        .cluster
        .delete_topics(vec![topic.id])
        .await
        .into_iter()
        .next();
    let (code, message) = match result {
        Some(Ok(())) => (ErrorCode::None, None),
        Some(Err(error)) => (
            errors::delete_topic(&error),
            Some(StrBytes::from(error.to_string())),
        ),
        None => (ErrorCode::UnknownServerError, None),
    };
    message!(DeletableTopicResult {
        name: Some(topic.name.as_str().into()),
        topic_id: topic.id,
        error_code: errors::told(code),
        error_message: message
    })
}
