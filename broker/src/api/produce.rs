//! Produce: every partition's batch is checked and queued in the request's order before the next request
//! is looked at; the answers are awaited beside it.

use super::{Answer, Answering, Context, Services, errors};
use crate::metrics::{self, Stage, TopicTraffic};
use crate::partition::{AppendError, Appended, Appending, Partition, ValidBatch};
use bytes::Bytes;
use futures_util::future::join_all;
use logd_proto::produce::{
    ProducePartition, ProducePartitionResponse, ProduceRequest, ProduceResponse, ProduceTopic,
    ProduceTopicResponse, RecordError,
};
use logd_proto::record_batch::{
    BatchError, BatchHeader, BatchLimits, RecordsError, recompressed, validate, validate_records,
    with_log_append_time, with_max_timestamp,
};
use logd_proto::{ErrorCode, StrBytes};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// From here on topics are named by id (KIP-516).
const BY_TOPIC_ID: i16 = 13;

/// From here on zstd may be used (KIP-110).
const ZSTD: i16 = 7;

/// What a client that waits for the leader alone gets: Kafka looks at no time limit there.
const LEADER_DEADLINE: Duration = Duration::from_secs(30);

/// Kafka's leader has written its own copy before it looks at a client's time limit. Here that takes
/// a sync, so no limit is taken to be shorter.
const DEADLINE_MIN: Duration = Duration::from_secs(1);

const ACKS_NONE: i16 = 0;
const ACKS_LEADER: i16 = 1;
const ACKS_ALL: i16 = -1;

/// A batch that was queued, or why it was not.
enum Queued {
    Flying {
        index: i32,
        append_time: i64,
        queued_at: Instant,
        records: u64,
        bytes: u64,
        traffic: Arc<TopicTraffic>,
        appending: Appending,
    },
    Refused(ProducePartitionResponse),
}

pub async fn take(services: Arc<Services>, context: Context, request: ProduceRequest) -> Answering {
    let acks = request.acks;
    if !matches!(acks, ACKS_NONE | ACKS_LEADER | ACKS_ALL) {
        let refuse = |p: &ProducePartition| {
            ProducePartitionResponse::failed(p.index, ErrorCode::InvalidRequiredAcks)
        };
        let topics = request
            .topics
            .iter()
            .map(|t| topic_response(t, t.partitions.iter().map(refuse).collect()))
            .collect();
        return super::ready(response(&services, &context, topics));
    }
    let deadline = Instant::now() + patience(&request);
    let mut queued = Vec::with_capacity(request.topics.len());
    for mut topic in request.topics {
        let partitions = std::mem::take(&mut topic.partitions);
        let mut parts = Vec::with_capacity(partitions.len());
        for partition in partitions {
            parts.push(
                queue(
                    &services,
                    &context,
                    &topic,
                    partition,
                    request.transactional_id.is_some(),
                )
                .await,
            );
        }
        queued.push((topic, parts));
    }
    Box::pin(async move {
        // All at once: none of them waits for another's commit, and time is up for all together.
        let settled = join_all(queued.into_iter().map(|(topic, parts)| async move {
            let parts = parts.into_iter().map(|part| settle(part, deadline));
            topic_response(&topic, join_all(parts).await)
        }));
        let topics = settled.await;
        let errors = topics
            .iter()
            .flat_map(|t| &t.partitions)
            .filter(|p| !p.error.is_none());
        let failed = errors.inspect(|p| metrics::error_answered(p.error)).count() > 0;
        match (acks, failed) {
            (ACKS_NONE, false) => Answer::Nothing,
            // The only way to tell a client that listens to nothing.
            (ACKS_NONE, true) => Answer::Close,
            _ => Answer::Respond(response(&services, &context, topics).into()),
        }
    })
}

/// How long the batches' fate is waited for.
fn patience(request: &ProduceRequest) -> Duration {
    if request.acks == ACKS_ALL {
        Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0)).max(DEADLINE_MIN)
    } else {
        LEADER_DEADLINE
    }
}

fn response(
    services: &Services,
    context: &Context,
    mut topics: Vec<ProduceTopicResponse>,
) -> ProduceResponse {
    let mut node_endpoints = Vec::new();
    for topic in &mut topics {
        let named = (topic.name.as_str(), &topic.topic_id);
        let lost = |p: &&mut ProducePartitionResponse| p.error == ErrorCode::NotLeaderOrFollower;
        for partition in topic.partitions.iter_mut().filter(lost) {
            let (index, ends) = (partition.index, &mut node_endpoints);
            partition.current_leader = services.redirect(context, named, index, ends);
        }
    }
    ProduceResponse {
        topics,
        throttle_time_ms: 0,
        node_endpoints,
    }
}

fn topic_response(
    topic: &ProduceTopic,
    partitions: Vec<ProducePartitionResponse>,
) -> ProduceTopicResponse {
    ProduceTopicResponse {
        name: topic.name.clone(),
        topic_id: topic.topic_id,
        partitions,
    }
}

/// Phase one for one partition.
async fn queue(
    services: &Services,
    context: &Context,
    topic: &ProduceTopic,
    part: ProducePartition,
    transactional: bool,
) -> Queued {
    let index = part.index;
    let refused = |code| Queued::Refused(ProducePartitionResponse::failed(index, code));
    let found = if context.version >= BY_TOPIC_ID {
        services.partition_by_id(&topic.topic_id, index)
    } else {
        services.partition_by_name(&topic.name, index)
    };
    let partition = match found {
        Ok(partition) => partition,
        Err(code) => return refused(code),
    };
    if services.is_internal(&partition.topic_id()) {
        return Queued::Refused(explained(
            index,
            ErrorCode::InvalidTopic,
            "the topic is the broker's own: its records come from group requests alone",
        ));
    }
    if transactional {
        return Queued::Refused(explained(
            index,
            ErrorCode::UnsupportedVersion,
            "transactions are not supported yet",
        ));
    }
    let now = (services.now_ms)();
    let begun = Instant::now();
    let (batch, append_time) = match check(
        &partition,
        part.records.unwrap_or_default(),
        context.version,
        now,
    ) {
        Ok(checked) => checked,
        Err(refusal) => return Queued::Refused(ProducePartitionResponse { index, ..refusal }),
    };
    let batch = match stored(services, &partition, batch).await {
        Ok(batch) => batch,
        Err(refusal) => return Queued::Refused(ProducePartitionResponse { index, ..refusal }),
    };
    let checked = Instant::now();
    metrics::produce_stage(Stage::Validate, checked - begun);
    let (records, bytes) = (batch.header.record_count as u64, batch.bytes.len() as u64);
    match partition.append(batch).await {
        Ok(appending) => {
            let queued_at = Instant::now();
            metrics::produce_stage(Stage::Queue, queued_at - checked);
            let traffic = partition.traffic();
            Queued::Flying {
                index,
                append_time,
                queued_at,
                records,
                bytes,
                traffic,
                appending,
            }
        }
        Err(error) => Queued::Refused(append_failed(index, &error)),
    }
}

/// Validates a batch; where the topic says so gives it the broker's time, and where its header is wrong
/// about the records' the right one. The second value is what the response calls the append time.
fn check(
    partition: &Partition,
    records: Bytes,
    version: i16,
    now: i64,
) -> Result<(ValidBatch, i64), ProducePartitionResponse> {
    let config = partition.config();
    let limits = BatchLimits {
        size_bytes_max: config.max_message_bytes(),
        timestamp_max: config.timestamp_max(now),
        timestamp_min: config.timestamp_min(now),
        zstd: version >= ZSTD,
    };
    let refused = |e: logd_proto::record_batch::BatchError| explained(0, e.code(), &e.to_string());
    let header = validate(&records, &limits).map_err(refused)?;
    if header.attributes.is_transactional() {
        return Err(explained(
            0,
            ErrorCode::InvalidTxnState,
            "transactions are not supported yet",
        ));
    }
    let found = validate_records(&records, &config.record_rules(now)).map_err(|e| unfit(&e))?;
    let (bytes, append_time) = if config.log_append_time() {
        (with_log_append_time(&records, now), now)
    } else if found.max_timestamp != header.max_timestamp {
        (with_max_timestamp(&records, found.max_timestamp), -1)
    } else {
        return Ok((
            ValidBatch {
                bytes: records,
                header,
            },
            -1,
        ));
    };
    let header = BatchHeader::parse(&bytes).map_err(refused)?;
    Ok((ValidBatch { bytes, header }, append_time))
}

/// The batch as the topic stores it: most topics, as it was sent.
async fn stored(
    services: &Services,
    partition: &Partition,
    batch: ValidBatch,
) -> Result<ValidBatch, ProducePartitionResponse> {
    let config = partition.config();
    let (from, to) = (batch.header.attributes.compression(), config.stored_as());
    let (Some(from), Some(to)) = (from, to) else {
        return Ok(batch);
    };
    if from == to.compression {
        return Ok(batch);
    }
    let output_bytes_max = config.record_rules(0).output_bytes_max;
    let work = move || recompressed(&batch.bytes, from, to, output_bytes_max);
    let done = services.repacking.work(work).await;
    let done = done.map_err(|e| explained(0, ErrorCode::UnknownServerError, &e.to_string()))?;
    let bytes = done.map_err(|e| unfit(&e.into()))?;
    let (size, limit) = (bytes.len(), config.max_message_bytes());
    let refused = |e: BatchError| explained(0, e.code(), &e.to_string());
    if size > limit {
        return Err(refused(BatchError::TooLarge { size, limit }));
    }
    let header = BatchHeader::parse(&bytes).map_err(refused)?;
    Ok(ValidBatch { bytes, header })
}

/// Phase two: the fate of a queued batch. When time runs out the batch may still be committed.
async fn settle(queued: Queued, deadline: Instant) -> ProducePartitionResponse {
    match queued {
        Queued::Refused(response) => response,
        Queued::Flying {
            index,
            append_time,
            queued_at,
            records,
            bytes,
            traffic,
            appending,
        } => {
            let outcome = tokio::time::timeout_at(deadline.into(), appending).await;
            metrics::produce_stage(Stage::Commit, queued_at.elapsed());
            match outcome {
                Ok(Ok(Appended {
                    base_offset,
                    log_start,
                    duplicate_of,
                })) => {
                    if duplicate_of.is_none() {
                        traffic.produced(records, bytes);
                    }
                    let stamped = append_time >= 0;
                    ProducePartitionResponse {
                        log_append_time_ms: duplicate_of.filter(|_| stamped).unwrap_or(append_time),
                        ..ProducePartitionResponse::appended(index, base_offset, log_start)
                    }
                }
                Ok(Err(error)) => append_failed(index, &error),
                Err(_) => ProducePartitionResponse::failed(index, ErrorCode::RequestTimedOut),
            }
        }
    }
}

fn append_failed(index: i32, error: &AppendError) -> ProducePartitionResponse {
    explained(index, errors::append(error), &error.to_string())
}

/// Names every record that has no key, as Kafka does for compacted topics (KIP-467).
fn unfit(error: &RecordsError) -> ProducePartitionResponse {
    let record_errors = match error {
        RecordsError::Keyless { indexes } => indexes
            .iter()
            .map(|index| RecordError {
                batch_index: *index,
                message: Some("a compacted topic takes no record without a key".into()),
            })
            .collect(),
        _ => Vec::new(),
    };
    ProducePartitionResponse {
        record_errors,
        ..explained(0, error.code(), &error.to_string())
    }
}

fn explained(index: i32, code: ErrorCode, why: &str) -> ProducePartitionResponse {
    ProducePartitionResponse {
        error_message: Some(StrBytes::from(why)),
        ..ProducePartitionResponse::failed(index, code)
    }
}
