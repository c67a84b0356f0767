//! FindCoordinator: which broker owns a group.

use super::{Context, Services, errors};
use crate::cluster::{CreateTopicError, NewTopic};
use crate::group::OFFSETS_TOPIC;
use logd_proto::messages::find_coordinator_response::Coordinator;
use logd_proto::messages::{FindCoordinatorRequest, FindCoordinatorResponse};
use logd_proto::{ErrorCode, StrBytes, message};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// From here on one request asks for several (KIP-699).
const SEVERAL: i16 = 4;

/// The only kind there is yet: groups. Transactions are 1, share groups 2.
const GROUP: i8 = 0;

/// Fifty groups are founded in less than this; a client asks again if they are not.
const CREATE_DEADLINE: Duration = Duration::from_secs(10);

pub async fn answer(
    services: Arc<Services>,
    context: Context,
    request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    let keys = if context.version >= SEVERAL {
        request.coordinator_keys
    } else {
        vec![request.key]
    };
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        found.push(one(&services, &context, request.key_type, key).await);
    }
    if context.version >= SEVERAL {
        return message!(FindCoordinatorResponse {
            coordinators: found
        });
    }
    let only = found.into_iter().next().unwrap_or_default();
    message!(FindCoordinatorResponse {
        error_code: only.error_code,
        error_message: only.error_message,
        node_id: only.node_id,
        host: only.host,
        port: only.port,
    })
}

async fn one(services: &Services, context: &Context, key_type: i8, key: StrBytes) -> Coordinator {
    match locate(services, context, key_type, &key).await {
        Ok((node_id, host, port)) => message!(Coordinator {
            key,
            node_id,
            host: host.into(),
            port: i32::from(port)
        }),
        Err((code, why)) => message!(Coordinator {
            key,
            node_id: -1,
            port: -1,
            error_code: errors::told(code),
            error_message: Some(why.into())
        }),
    }
}

async fn locate(
    services: &Services,
    context: &Context,
    key_type: i8,
    group: &str,
) -> Result<(i32, String, u16), (ErrorCode, String)> {
    if key_type != GROUP {
        return Err((
            ErrorCode::InvalidRequest,
            format!("there is no coordinator of type {key_type} yet"),
        ));
    }
    let topic = offsets_topic(services).await?;
    let partitions = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
    let index = logd_proto::offsets_topic::partition_of(group, partitions);
    let unavailable = || {
        (
            ErrorCode::CoordinatorNotAvailable,
            "the group's coordinator is not known yet".to_owned(),
        )
    };
    let leadership = services.leadership(&topic.id, index);
    let leader = leadership
        .and_then(|l| l.leader)
        .filter(|_| services.may_be_led(&topic.id, index, &services.cluster.away()))
        .ok_or_else(unavailable)?;
    let state = services.cluster.view();
    let broker = state.brokers.get(&leader).ok_or_else(unavailable)?;
    let (host, port) = broker
        .listeners
        .get(&*context.listener)
        .cloned()
        .ok_or_else(unavailable)?;
    Ok((leader, host, port))
}

/// What the offsets topic must be like, whoever has it created.
pub(super) fn new_offsets_topic(services: &Services) -> NewTopic {
    let now = services.settings.now();
    let topics = &now.config.topics;
    NewTopic {
        name: OFFSETS_TOPIC.into(),
        partitions: Some(topics.offsets_partitions),
        replication: Some(topics.default_replication_factor).filter(|r| *r > 0),
        config: BTreeMap::from([("cleanup.policy".to_owned(), Some("compact".to_owned()))]),
        ..NewTopic::default()
    }
}

/// The offsets topic, created when the first group asks for it.
async fn offsets_topic(
    services: &Services,
) -> Result<Arc<crate::cluster::Topic>, (ErrorCode, String)> {
    if let Some(topic) = services.cluster.view().topic(OFFSETS_TOPIC) {
        return Ok(topic.clone());
    }
    let new = new_offsets_topic(services);
    match services
        .cluster
        .create_topics(vec![new], false, CREATE_DEADLINE)
        .await
        .into_iter()
        .next()
    {
        Some(Ok(_) | Err(CreateTopicError::Exists(_))) | None => {}
        Some(Err(error)) => return Err((ErrorCode::CoordinatorNotAvailable, error.to_string())),
    }
    let state = services.cluster.view();
    let topic = state.topic(OFFSETS_TOPIC).cloned();
    topic.ok_or_else(|| {
        (
            ErrorCode::CoordinatorNotAvailable,
            "the offsets topic was just deleted".to_owned(),
        )
    })
}
