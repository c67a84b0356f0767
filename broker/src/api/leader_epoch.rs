//! OffsetForLeaderEpoch: where an epoch ends, so that a client can tell whether its position was cut off.

use super::{Services, errors};
use logd_proto::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use logd_proto::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use logd_proto::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};
use logd_proto::{ErrorCode, message};

pub fn answer(
    services: &Services,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic
            .partitions
            .iter()
            .map(|p| one(services, &topic.topic, p))
            .collect();
        message!(OffsetForLeaderTopicResult {
            topic: topic.topic.clone(),
            partitions
        })
    });
    message!(OffsetForLeaderEpochResponse {
        topics: topics.collect()
    })
}

fn one(services: &Services, topic: &str, wanted: &OffsetForLeaderPartition) -> EpochEndOffset {
    let found = services
        .partition_by_name(topic, wanted.partition)
        .and_then(|p| {
            p.check_epoch(wanted.current_leader_epoch)
                .map_err(|e| errors::read(&e))?;
            Ok(p.epoch_end(wanted.leader_epoch))
        });
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
