//! Fetch: read what is committed; if that is too little, wait for the commit that makes it enough.
//!
//! Not here: what a session's client knows already (`sessions`), and which replica reads (`partition`).

mod cache;
mod session;
#[cfg(test)]
mod session_tests;
mod sessions;

pub use cache::CacheLimits;
pub use sessions::{SessionCounts, Sessions};

use super::{Context, Services, errors};
use crate::metrics::{self, TopicTraffic};
use crate::partition::{Partition, ReadError, ReadRequest};
use futures_util::stream::{FuturesUnordered, StreamExt};
use logd_proto::api::ApiKey;
use logd_proto::fetch::{FetchPartition, FetchPartitionResponse, FetchRequest, FetchResponse};
use logd_proto::leader::CurrentLeader;
use logd_proto::{ErrorCode, Uuid};
use session::{Found, Naming, Topic, Wanted, by_topic};
use sessions::NO_SESSION;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// From here on topics are named by id (KIP-516).
const BY_TOPIC_ID: i16 = 13;

/// A client may not keep a request parked for longer than this, whatever it asks for.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// One pass over the request's partitions.
struct Pass {
    found: Vec<Found>,
    bytes: usize,
    failed: bool,
    /// To be counted if this pass is the one that is answered.
    traffic: Vec<(Arc<TopicTraffic>, u64)>,
}

pub async fn answer(
    services: Arc<Services>,
    context: Context,
    request: FetchRequest,
) -> FetchResponse {
    let begun = Instant::now();
    let mut parked = Duration::ZERO;
    let response = in_session(&services, &context, &request, &mut parked).await;
    let response = response.unwrap_or_else(|error| {
        metrics::error_answered(error);
        whole(error, NO_SESSION)
    });
    metrics::request_answered(ApiKey::Fetch, begun.elapsed().saturating_sub(parked));
    response
}

/// An answer without partitions.
fn whole(error: ErrorCode, session_id: i32) -> FetchResponse {
    FetchResponse {
        throttle_time_ms: 0,
        error,
        session_id,
        topics: Vec::new(),
        node_endpoints: Vec::new(),
    }
}

async fn in_session(
    services: &Services,
    context: &Context,
    request: &FetchRequest,
    parked: &mut Duration,
) -> Result<FetchResponse, ErrorCode> {
    let naming = if context.version >= BY_TOPIC_ID {
        Naming::Ids
    } else {
        Naming::Names
    };
    let sessions = &services.fetch_sessions;
    let asked = sessions.begin(std::time::Instant::now(), naming, request)?;
    let pass = read_or_wait(services, request, &asked.wanted, parked).await;
    for (traffic, bytes) in &pass.traffic {
        traffic.fetched(*bytes);
    }
    let (session_id, found) = sessions.finish(std::time::Instant::now(), asked, pass.found)?;
    Ok(respond(services, context, session_id, found))
}

async fn read_or_wait(
    services: &Services,
    request: &FetchRequest,
    wanted: &[Wanted],
    parked: &mut Duration,
) -> Pass {
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(WAIT_MAX);
    let deadline = Instant::now() + wait;
    let enough = usize::try_from(request.min_bytes).unwrap_or(0);
    let mut watching: Option<Vec<watch::Receiver<i64>>> = None;
    loop {
        let pass = read_all(services, request, wanted).await;
        if pass.bytes >= enough || pass.failed || wanted.is_empty() || Instant::now() >= deadline {
            return pass;
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
                    return pass;
                }
            }
            // Watch first, then read again: a commit between the two is not missed.
            None => watching = Some(watch_all(services, wanted)),
        }
    }
}

fn respond(
    services: &Services,
    context: &Context,
    session_id: i32,
    mut found: Vec<Found>,
) -> FetchResponse {
    let mut node_endpoints = Vec::new();
    let elsewhere = |found: &&mut Found| {
        matches!(
            found.partition.error,
            ErrorCode::NotLeaderOrFollower | ErrorCode::FencedLeaderEpoch
        )
    };
    for Found { topic, partition } in found.iter_mut().filter(elsewhere) {
        let named = match &*topic {
            Topic::Name(name) => (name.as_str(), &Uuid::ZERO),
            Topic::Id(id) => ("", id),
        };
        let (index, ends) = (partition.partition, &mut node_endpoints);
        let leader = services.redirect(context, named, index, ends);
        partition.current_leader = leader.or(partition.current_leader.take());
    }
    FetchResponse {
        topics: by_topic(found),
        node_endpoints,
        ..whole(ErrorCode::None, session_id)
    }
}

fn find(services: &Services, wanted: &Wanted) -> Result<Arc<Partition>, ErrorCode> {
    let index = wanted.partition.partition;
    match &wanted.topic {
        Topic::Name(name) => services.partition_by_name(name, index),
        Topic::Id(id) => services.partition_by_id(id, index),
    }
}

fn watch_all(services: &Services, wanted: &[Wanted]) -> Vec<watch::Receiver<i64>> {
    let partitions = wanted.iter().filter_map(|w| find(services, w).ok());
    partitions.map(|p| p.progress()).collect()
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

async fn read_all(services: &Services, request: &FetchRequest, wanted: &[Wanted]) -> Pass {
    let mut left = usize::try_from(request.max_bytes)
        .unwrap_or(0)
        .min(services.settings.fetch_bytes_max);
    let mut pass = Pass {
        found: Vec::with_capacity(wanted.len()),
        bytes: 0,
        failed: false,
        traffic: Vec::new(),
    };
    for want in wanted {
        // Only the first bytes of a response may exceed its limits, or nobody would ever get a large batch.
        let first = pass.bytes == 0;
        let response = match find(services, want) {
            Ok(partition) => {
                let response = read_one(&partition, &want.partition, left, first).await;
                let bytes = response.record_bytes() as u64;
                if bytes > 0 {
                    pass.traffic.push((partition.traffic(), bytes));
                }
                response
            }
            Err(code) => FetchPartitionResponse::failed(want.partition.partition, code),
        };
        let bytes = response.record_bytes();
        left = left.saturating_sub(bytes);
        pass.bytes += bytes;
        if !response.error.is_none() {
            metrics::error_answered(response.error);
            pass.failed = true;
        }
        pass.found.push(Found {
            topic: want.topic.clone(),
            partition: response,
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
