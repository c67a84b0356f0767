//! DescribeProducers: which idempotent producers a partition remembers, as its leader has it.

use super::{Services, errors};
use crate::partition::ActiveProducer;
use logd_proto::messages::describe_producers_response::{
    PartitionResponse, ProducerState, TopicResponse,
};
use logd_proto::messages::{DescribeProducersRequest, DescribeProducersResponse};
use logd_proto::{ErrorCode, message};
use std::sync::Arc;

/// No transaction coordinator has written here.
const NO_COORDINATOR: i32 = -1;

/// No transaction is open.
const NO_TRANSACTION: i64 = -1;

pub async fn describe(
    services: Arc<Services>,
    request: DescribeProducersRequest,
) -> DescribeProducersResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partition_indexes.len());
        for index in topic.partition_indexes {
            let found = active(&services, &topic.name, index).await;
            partitions.push(partition(index, found));
        }
        topics.push(message!(TopicResponse {
            name: topic.name,
            partitions
        }));
    }
    message!(DescribeProducersResponse { topics })
}

async fn active(
    services: &Services,
    topic: &str,
    index: i32,
) -> Result<Vec<ActiveProducer>, ErrorCode> {
    let partition = services.partition_by_name(topic, index)?;
    match partition.is_current().await {
        true => Ok(partition.active_producers()),
        false => Err(ErrorCode::NotLeaderOrFollower),
    }
}

fn partition(index: i32, found: Result<Vec<ActiveProducer>, ErrorCode>) -> PartitionResponse {
    let (code, active) = match found {
        Ok(active) => (ErrorCode::None, active),
        Err(code) => (code, Vec::new()),
    };
    let row = |p: ActiveProducer| {
        message!(ProducerState {
            producer_id: p.id,
            producer_epoch: i32::from(p.epoch),
            last_sequence: p.last_sequence,
            last_timestamp: p.last_timestamp,
            coordinator_epoch: NO_COORDINATOR,
            current_txn_start_offset: NO_TRANSACTION,
        })
    };
    message!(PartitionResponse {
        partition_index: index,
        error_code: errors::told(code),
        error_message: None,
        active_producers: active.into_iter().map(row).collect(),
    })
}
