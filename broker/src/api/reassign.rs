//! AlterPartitionReassignments and ListPartitionReassignments (KIP-455).
//!
//! Any broker takes them: a move is a command of the metadata, and so is its cancellation.

use super::{Context, Services, errors};
use crate::cluster::{Move, MoveError, MoveRefusal, Topic, TopicId};
use logd_proto::messages::alter_partition_reassignments_request::ReassignableTopic;
use logd_proto::messages::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use logd_proto::messages::list_partition_reassignments_response::{
    OngoingPartitionReassignment, OngoingTopicReassignment,
};
use logd_proto::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse,
    ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
};
use logd_proto::{ErrorCode, StrBytes, Uuid, message};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The request says from here on whether the number of replicas may change.
const SAYS_WIDTH: i16 = 1;

type Results = BTreeMap<(Uuid, i32), Result<(), MoveError>>;

pub async fn alter(
    services: Arc<Services>,
    context: Context,
    request: AlterPartitionReassignmentsRequest,
) -> AlterPartitionReassignmentsResponse {
    let other_width = context.version < SAYS_WIDTH || request.allow_replication_factor_change;
    let state = services.cluster.view();
    let id = |name: &str| state.topic(name).map(|t| t.id);
    let wanted = request
        .topics
        .iter()
        .filter_map(|t| Some((id(&t.name)?, t)));
    let moves: Vec<Move> = wanted
        .flat_map(|(id, topic)| topic.partitions.iter().map(move |p| (id, p)))
        .map(|(id, partition)| Move {
            topic: TopicId(id),
            partition: partition.partition_index,
            target: partition.replicas.clone(),
        })
        .collect();
    let keys: Vec<_> = moves.iter().map(|m| (m.topic.0, m.partition)).collect();
    let results = services.cluster.move_partitions(moves, other_width).await;
    let results: Results = keys.into_iter().zip(results).collect();
    let responses = request.topics.iter().map(|topic| {
        let id = id(&topic.name);
        answer(topic, id, &results)
    });
    message!(AlterPartitionReassignmentsResponse {
        allow_replication_factor_change: other_width,
        error_message: None,
        responses: responses.collect(),
    })
}

fn answer(
    topic: &ReassignableTopic,
    id: Option<Uuid>,
    results: &Results,
) -> ReassignableTopicResponse {
    let unknown = Err(MoveError::Refused(MoveRefusal::UnknownPartition));
    let partitions = topic.partitions.iter().map(|p| {
        let index = p.partition_index;
        let result = id.and_then(|id| results.get(&(id, index)));
        let (code, why) = match result.unwrap_or(&unknown) {
            Ok(()) => (ErrorCode::None, None),
            Err(error) => (errors::reassign(error), Some(error.to_string())),
        };
        message!(ReassignablePartitionResponse {
            partition_index: index,
            error_code: errors::told(code),
            error_message: why.map(StrBytes::from),
        })
    });
    message!(ReassignableTopicResponse {
        name: topic.name.clone(),
        partitions: partitions.collect(),
    })
}

pub fn list(
    services: &Services,
    request: ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    let state = services.cluster.view();
    let mut topics: Vec<OngoingTopicReassignment> = match request.topics {
        None => state
            .topics
            .values()
            .map(|t| under_way(t, t.moves.keys().copied()))
            .collect(),
        Some(wanted) => wanted
            .into_iter()
            .filter_map(|w| Some((state.topic(&w.name)?, w.partition_indexes)))
            .map(|(t, indexes)| under_way(t, indexes.into_iter()))
            .collect(),
    };
    topics.retain(|t| !t.partitions.is_empty());
    message!(ListPartitionReassignmentsResponse {
        error_message: None,
        topics
    })
}

fn under_way(topic: &Topic, indexes: impl Iterator<Item = i32>) -> OngoingTopicReassignment {
    let moving = indexes.filter_map(|index| Some((index, topic.moving(index)?)));
    let partitions = moving.map(|(partition_index, moving)| {
        message!(OngoingPartitionReassignment {
            partition_index,
            replicas: moving.replicas,
            adding_replicas: moving.adding,
            removing_replicas: moving.removing,
        })
    });
    message!(OngoingTopicReassignment {
        name: topic.name.as_str().into(),
        partitions: partitions.collect(),
    })
}
