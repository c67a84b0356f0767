//! OffsetForLeaderEpoch: where an epoch ends, so that a client can tell whether its position was cut off.

use super::{Services, errors};
use logd_proto::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use logd_proto::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use logd_proto::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};
use logd_proto::{ErrorCode, message};
use std::sync::Arc;

pub async fn answer(
    services: Arc<Services>,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in &topic.partitions {
            partitions.push(one(&services, &topic.topic, wanted).await);
        }
        topics.push(message!(OffsetForLeaderTopicResult {
            topic: topic.topic.clone(),
            partitions
        }));
    }
    message!(OffsetForLeaderEpochResponse { topics })
}

async fn one(
    services: &Services,
    topic: &str,
    wanted: &OffsetForLeaderPartition,
) -> EpochEndOffset {
    let found = match services.partition_by_name(topic, wanted.partition) {
        Ok(p) => match p.check_epoch(wanted.current_leader_epoch).await {
            Ok(()) => Ok(p.epoch_end(wanted.leader_epoch)),
            Err(error) => Err(errors::read(&error)),
        },
        Err(code) => Err(code),
    };
    let (code, epoch, end_offset) = match found {
        Ok(end) => (ErrorCode::None, end.epoch, end.end_offset),
        Err(code) => (code, -1, -1),
    };
    message!(EpochEndOffset {
        error_code: errors::told(code),
        partition: wanted.partition,
        leader_epoch: epoch,
        end_offset
    })
}
