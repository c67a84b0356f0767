//! Fetch: read what is committed; if that is too little, wait for the commit that makes it enough.
//!
//! Sessions (KIP-227) are declined by answering session id 0, which every client understands: it then
//! sends whole requests.

use super::{Context, Services, errors};
use crate::metrics::{self, TopicTraffic};
use crate::partition::{Partition, ReadError, ReadRequest};
use futures_util::stream::{FuturesUnordered, StreamExt};
use logd_proto::ErrorCode;
use logd_proto::api::ApiKey;
use logd_proto::fetch::{
    FetchPartition, FetchPartitionResponse, FetchRequest, FetchResponse, FetchTopicResponse,
};
use logd_proto::leader::CurrentLeader;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// From here on topics are named by id (KIP-516).
const BY_TOPIC_ID: i16 = 13;

/// An epoch of a session that this broker never opened.
const FINAL_EPOCH: i32 = -1;
const INITIAL_EPOCH: i32 = 0;

/// A client may not keep a request parked for longer than this, whatever it asks for.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// One pass over the request's partitions.
struct Pass {
    topics: Vec<FetchTopicResponse>,
    bytes: usize,
    failed: bool,
    /// To be counted if this pass is the one that is answered.
    traffic: Vec<(Arc<TopicTraffic>, u64)>,
}

impl Pass {
    fn answer(self, services: &Services, context: &Context) -> FetchResponse {
        for (traffic, bytes) in self.traffic {
            traffic.fetched(bytes);
        }
        respond(services, context, self.topics)
    }
}

pub async fn answer(
    services: Arc<Services>,
    context: Context,
    request: FetchRequest,
) -> FetchResponse {
    let begun = Instant::now();
    let mut parked = Duration::ZERO;
    let response = read_or_wait(&services, &context, &request, &mut parked).await;
    metrics::request_answered(ApiKey::Fetch, begun.elapsed().saturating_sub(parked));
    response
}

async fn read_or_wait(
    services: &Services,
    context: &Context,
    request: &FetchRequest,
    parked: &mut Duration,
) -> FetchResponse {
    if let Some(error) = session_error(request) {
        return FetchResponse {
            throttle_time_ms: 0,
            error,
            session_id: 0,
            topics: Vec::new(),
            node_endpoints: Vec::new(),
        };
    }
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(WAIT_MAX);
    let deadline = Instant::now() + wait;
    let enough = usize::try_from(request.min_bytes).unwrap_or(0);
    let mut watching: Option<Vec<watch::Receiver<i64>>> = None;
    loop {
        let pass = read_all(services, context, request).await;
        let empty = request.topics.iter().all(|t| t.partitions.is_empty());
        if pass.bytes >= enough || pass.failed || empty || Instant::now() >= deadline {
            return pass.answer(services, context);
        }
        match &mut watching {
            Some(receivers) => {
                let since = Instant::now();
                let progress = tokio::select! {
                    progress = any_progress(receivers, deadline) => progress,
                    () = services.stop() => false,
                };
                metrics::fetch_waited(since.elapsed());
                *parked += since.elapsed();
                if !progress {
                    return pass.answer(services, context);
                }
            }
            // Watch first, then read again: a commit between the two is not missed.
            None => watching = Some(watch_all(services, context, request)),
        }
    }
}

fn respond(
    services: &Services,
    context: &Context,
    mut topics: Vec<FetchTopicResponse>,
) -> FetchResponse {
    let mut node_endpoints = Vec::new();
    for topic in &mut topics {
        let named = (topic.name.as_str(), &topic.topic_id);
        let elsewhere = |p: &&mut FetchPartitionResponse| {
            matches!(
                p.error,
                ErrorCode::NotLeaderOrFollower | ErrorCode::FencedLeaderEpoch
            )
        };
        for partition in topic.partitions.iter_mut().filter(elsewhere) {
            let (index, ends) = (partition.partition, &mut node_endpoints);
            let leader = services.redirect(context, named, index, ends);
            partition.current_leader = leader.or(partition.current_leader.take());
        }
    }
    FetchResponse {
        throttle_time_ms: 0,
        error: ErrorCode::None,
        session_id: 0,
        topics,
        node_endpoints,
    }
}

/// Asking for the next part of a session that does not exist.
fn session_error(request: &FetchRequest) -> Option<ErrorCode> {
    let incremental =
        request.session_epoch != INITIAL_EPOCH && request.session_epoch != FINAL_EPOCH;
    (incremental && request.session_id != 0).then_some(ErrorCode::FetchSessionIdNotFound)
}

fn find(
    services: &Services,
    context: &Context,
    topic: &logd_proto::fetch::FetchTopic,
    index: i32,
) -> Result<Arc<Partition>, ErrorCode> {
    if context.version >= BY_TOPIC_ID {
        services.partition_by_id(&topic.topic_id, index)
    } else {
        services.partition_by_name(&topic.name, index)
    }
}

fn watch_all(
    services: &Services,
    context: &Context,
    request: &FetchRequest,
) -> Vec<watch::Receiver<i64>> {
    let wanted = request
        .topics
        .iter()
        .flat_map(|t| t.partitions.iter().map(move |p| (t, p.partition)));
    wanted
        .filter_map(|(topic, index)| find(services, context, topic, index).ok())
        .map(|p| p.progress())
        .collect()
}

/// Waits until one partition's high watermark has moved. False when the deadline comes first.
async fn any_progress(receivers: &mut [watch::Receiver<i64>], deadline: Instant) -> bool {
    let mut changes: FuturesUnordered<_> =
        receivers.iter_mut().map(watch::Receiver::changed).collect();
    matches!(
        tokio::time::timeout_at(deadline, changes.next()).await,
        Ok(Some(_))
    )
}

async fn read_all(services: &Services, context: &Context, request: &FetchRequest) -> Pass {
    let mut left = usize::try_from(request.max_bytes)
        .unwrap_or(0)
        .min(services.settings.fetch_bytes_max);
    let mut pass = Pass {
        topics: Vec::with_capacity(request.topics.len()),
        bytes: 0,
        failed: false,
        traffic: Vec::new(),
    };
    for topic in &request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in &topic.partitions {
            // Only the first bytes of a response may exceed its limits, or nobody would ever get a large batch.
            let first = pass.bytes == 0;
            let response = match find(services, context, topic, wanted.partition) {
                Ok(partition) => {
                    let response = read_one(&partition, wanted, left, first).await;
                    let bytes = response.record_bytes() as u64;
                    if bytes > 0 {
                        pass.traffic.push((partition.traffic(), bytes));
                    }
                    response
                }
                Err(code) => FetchPartitionResponse::failed(wanted.partition, code),
            };
            let bytes = response.record_bytes();
            left = left.saturating_sub(bytes);
            pass.bytes += bytes;
            if !response.error.is_none() {
                metrics::error_answered(response.error);
                pass.failed = true;
            }
            partitions.push(response);
        }
        pass.topics.push(FetchTopicResponse {
            name: topic.name.clone(),
            topic_id: topic.topic_id,
            partitions,
        });
    }
    pass
}

async fn read_one(
    partition: &Partition,
    wanted: &FetchPartition,
    left: usize,
    first: bool,
) -> FetchPartitionResponse {
    let max_bytes = usize::try_from(wanted.partition_max_bytes)
        .unwrap_or(0)
        .min(left);
    let request = ReadRequest {
        offset: wanted.fetch_offset,
        max_bytes,
        at_least_one: first,
        current_leader_epoch: wanted.current_leader_epoch,
    };
    match partition.read(request).await {
        Ok(outcome) => FetchPartitionResponse {
            high_watermark: outcome.offsets.high_watermark,
            last_stable_offset: outcome.offsets.last_stable,
            log_start_offset: outcome.offsets.log_start,
            records: outcome.slices,
            ..FetchPartitionResponse::failed(wanted.partition, ErrorCode::None)
        },
        Err(error) => read_failed(wanted.partition, &error),
    }
}

fn read_failed(index: i32, error: &ReadError) -> FetchPartitionResponse {
    let current_leader = match error {
        ReadError::FencedLeaderEpoch { current, .. } => Some(CurrentLeader {
            leader_id: -1,
            leader_epoch: *current,
        }),
        _ => None,
    };
    FetchPartitionResponse {
        current_leader,
        ..FetchPartitionResponse::failed(index, errors::read(error))
    }
}
