//! ListOffsets: from a time, or one of Kafka's special times, to an offset.

use super::{Context, Services, errors};
use crate::partition::{ReadError, TimeOffset, TimeQuery};
use logd_proto::messages::list_offsets_request::ListOffsetsPartition;
use logd_proto::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use logd_proto::messages::{ListOffsetsRequest, ListOffsetsResponse};
use logd_proto::{ErrorCode, message};
use std::collections::HashSet;
use std::sync::Arc;

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
/// KIP-734.
const MAX_TIMESTAMP: i64 = -3;
/// KIP-405: without tiering the earliest local offset is the earliest.
const EARLIEST_LOCAL: i64 = -4;
/// KIP-1005: without tiering there is none.
const LATEST_TIERED: i64 = -5;
/// KIP-1023: without tiering there is none.
const EARLIEST_PENDING_UPLOAD: i64 = -6;

/// Versions from which the special times exist.
const MAX_TIMESTAMP_SINCE: i16 = 7;
const EARLIEST_LOCAL_SINCE: i16 = 8;
const LATEST_TIERED_SINCE: i16 = 9;
const EARLIEST_PENDING_UPLOAD_SINCE: i16 = 11;

/// Versions from which an answer has a leader epoch.
const LEADER_EPOCH_SINCE: i16 = 4;

const NOTHING: TimeOffset = TimeOffset {
    offset: -1,
    timestamp: -1,
    leader_epoch: -1,
};

pub async fn answer(
    services: Arc<Services>,
    context: Context,
    request: ListOffsetsRequest,
) -> ListOffsetsResponse {
    let mut seen = HashSet::new();
    let wanted = request.topics.iter().flat_map(|t| {
        t.partitions
            .iter()
            .map(|p| (t.name.clone(), p.partition_index))
    });
    let twice: HashSet<_> = wanted.filter(|key| !seen.insert(key.clone())).collect();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in &topic.partitions {
            let found = if twice.contains(&(topic.name.clone(), wanted.partition_index)) {
                Err(ErrorCode::InvalidRequest)
            } else {
                look_up(&services, &context, &topic.name, wanted).await
            };
            partitions.push(respond(wanted.partition_index, found, context.version));
        }
        topics.push(message!(ListOffsetsTopicResponse {
            name: topic.name.clone(),
            partitions
        }));
    }
    message!(ListOffsetsResponse { topics })
}

fn respond(
    partition_index: i32,
    found: Result<TimeOffset, ErrorCode>,
    version: i16,
) -> ListOffsetsPartitionResponse {
    let (code, at) = match found {
        Ok(at) => (ErrorCode::None, at),
        Err(code) => (code, NOTHING),
    };
    message!(ListOffsetsPartitionResponse {
        partition_index,
        error_code: errors::told(code),
        timestamp: at.timestamp,
        offset: at.offset,
        leader_epoch: if version >= LEADER_EPOCH_SINCE {
            at.leader_epoch
        } else {
            -1
        },
    })
}

async fn look_up(
    services: &Services,
    context: &Context,
    topic: &str,
    wanted: &ListOffsetsPartition,
) -> Result<TimeOffset, ErrorCode> {
    let partition = services.partition_by_name(topic, wanted.partition_index)?;
    let code = |e: ReadError| errors::read(&e);
    partition
        .check_epoch(wanted.current_leader_epoch)
        .await
        .map_err(|error| match error {
            // Elected, but what was committed before is not known yet: the client asks again, here.
            ReadError::NotLeader { .. } if partition.outlook().leads => {
                ErrorCode::OffsetNotAvailable
            }
            other => errors::read(&other),
        })?;
    let leader_epoch = partition.leadership().epoch;
    let offsets = partition.offsets();
    let at = |offset| {
        Ok(TimeOffset {
            offset,
            timestamp: -1,
            leader_epoch,
        })
    };
    let since = |version| {
        if context.version >= version {
            Ok(())
        } else {
            Err(ErrorCode::UnsupportedVersion)
        }
    };
    let query = match wanted.timestamp {
        // Without transactions the last stable offset is the high watermark, for either isolation level.
        LATEST => return at(offsets.last_stable),
        EARLIEST => return at(offsets.log_start),
        EARLIEST_LOCAL => return since(EARLIEST_LOCAL_SINCE).and_then(|()| at(offsets.log_start)),
        LATEST_TIERED => return since(LATEST_TIERED_SINCE).map(|()| NOTHING),
        EARLIEST_PENDING_UPLOAD => return since(EARLIEST_PENDING_UPLOAD_SINCE).map(|()| NOTHING),
        MAX_TIMESTAMP => {
            since(MAX_TIMESTAMP_SINCE)?;
            TimeQuery::MaxTimestamp
        }
        ms if ms >= 0 => TimeQuery::At(ms),
        _ => return Err(ErrorCode::UnsupportedVersion),
    };
    Ok(partition
        .offset_for_time(query)
        .await
        .map_err(code)?
        .unwrap_or(NOTHING))
}
