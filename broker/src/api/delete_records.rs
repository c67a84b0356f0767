//! DeleteRecords: asked of each partition's leader, which moves the log's start in the whole group.

use super::{Services, errors};
use futures_util::StreamExt;
use logd_proto::messages::delete_records_request::DeleteRecordsPartition;
use logd_proto::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use logd_proto::messages::{DeleteRecordsRequest, DeleteRecordsResponse};
use logd_proto::{ErrorCode, StrBytes, message};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Partitions of one request that are worked on at once: their commands then share syncs.
const AT_ONCE: usize = 64;

/// To move a log's start takes a sync here, where Kafka only notes it: 0 from a client means that nobody should wait
/// for followers, not that nothing should be done.
const PATIENCE_MIN: Duration = Duration::from_millis(500);

/// Where the log begins is not known.
const NO_OFFSET: i64 = -1;

pub async fn delete(
    services: Arc<Services>,
    request: DeleteRecordsRequest,
) -> DeleteRecordsResponse {
    let patience = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let deadline = Instant::now() + patience.max(PATIENCE_MIN);
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let name = &topic.name;
        let each = futures_util::stream::iter(topic.partitions)
            .map(|wanted| delete_one(&services, name, wanted, deadline))
            .buffered(AT_ONCE);
        let partitions = each.collect().await;
        topics.push(message!(DeleteRecordsTopicResult {
            name: topic.name,
            partitions
        }));
    }
    message!(DeleteRecordsResponse { topics })
}

async fn delete_one(
    services: &Services,
    topic: &StrBytes,
    wanted: DeleteRecordsPartition,
    deadline: Instant,
) -> DeleteRecordsPartitionResult {
    let moved = move_start(services, topic, &wanted);
    let moved = match tokio::time::timeout_at(deadline, moved).await {
        Ok(moved) => moved,
        Err(_) => Err(ErrorCode::RequestTimedOut),
    };
    let (code, low_watermark) = match moved {
        Ok(start) => (ErrorCode::None, start),
        Err(code) => (code, NO_OFFSET),
    };
    message!(DeleteRecordsPartitionResult {
        partition_index: wanted.partition_index,
        low_watermark,
        error_code: errors::told(code),
    })
}

async fn move_start(
    services: &Services,
    topic: &str,
    wanted: &DeleteRecordsPartition,
) -> Result<i64, ErrorCode> {
    let partition = services.partition_by_name(topic, wanted.partition_index)?;
    // What groups remember is theirs: it goes when it expires, or with DeleteGroups and OffsetDelete.
    if services.is_internal(&partition.topic_id()) {
        return Err(ErrorCode::InvalidTopic);
    }
    let deleted = partition.delete_records(wanted.offset).await;
    deleted.map_err(|e| errors::delete_records(&e))
}
