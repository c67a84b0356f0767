//! Fetch: read what is committed; if that is too little, wait for the commit that makes it enough.
//!
//! Not here: what a session's client knows already (`sessions`), and which replica reads (`partition`).

mod cache;
mod nearby;
mod session;
#[cfg(test)]
mod session_tests;
mod sessions;

pub use cache::CacheLimits;
pub use sessions::{SessionCounts, Sessions};

use super::{Context, Services, errors};
use crate::metrics::{self, TopicTraffic};
use crate::partition::{Partition, ReadError, ReadFrom, ReadRequest, ServedBy};
use crate::settings::ReplicaSelector;
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

/// From here on a consumer says where it is, and understands to be sent to another replica (KIP-392).
const RACK_SINCE: i16 = 11;

/// A client may not keep a request parked for longer than this, whatever it asks for.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// Who reads.
struct Reader<'a> {
    services: &'a Services,
    context: &'a Context,
    /// Where it is, if other replicas than the leader may serve it.
    rack: Option<&'a str>,
    max_bytes: i32,
}

impl<'a> Reader<'a> {
    fn of(services: &'a Services, context: &'a Context, request: &'a FetchRequest) -> Self {
        // A client that names no rack was never sent to a follower: what it knows of leaders is old.
        let selector = services.settings.now().config.kafka.replica_selector;
        let near = selector == ReplicaSelector::Rack
            && context.version >= RACK_SINCE
            && request.replica_id < 0;
        let rack = Some(request.rack_id.as_str()).filter(|rack| near && !rack.is_empty());
        Self {
            services,
            context,
            rack,
            max_bytes: request.max_bytes,
        }
    }
}

/// One pass over the request's partitions.
struct Pass {
    found: Vec<Found>,
    bytes: usize,
    /// A partition has what its client should know at once: an error, or a better replica.
    urgent: bool,
    /// To be counted if this pass is the one that is answered.
    served: Vec<Served>,
}

/// Records for one partition.
struct Served {
    traffic: Arc<TopicTraffic>,
    bytes: u64,
    by: ServedBy,
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
    let pass = read_or_wait(services, context, request, &asked.wanted, parked).await;
    for served in &pass.served {
        served.traffic.fetched(served.bytes);
        if served.by == ServedBy::Follower {
            metrics::follower_served(served.bytes);
        }
    }
    let (session_id, found) = sessions.finish(std::time::Instant::now(), asked, pass.found)?;
    Ok(respond(services, context, session_id, found))
}

async fn read_or_wait(
    services: &Services,
    context: &Context,
    request: &FetchRequest,
    wanted: &[Wanted],
    parked: &mut Duration,
) -> Pass {
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(WAIT_MAX);
    let deadline = Instant::now() + wait;
    let enough = usize::try_from(request.min_bytes).unwrap_or(0);
    let reader = Reader::of(services, context, request);
    let mut watching: Option<Vec<watch::Receiver<i64>>> = None;
    loop {
        let pass = read_all(&reader, wanted).await;
        if pass.bytes >= enough || pass.urgent || wanted.is_empty() || Instant::now() >= deadline {
            return pass;
        }
        match &mut watching {
            Some(receivers) => {
                let since = Instant::now();
                let woken = tokio::select! {
                    woken = any_progress(receivers, deadline) => woken,
                    () = services.stop() => Woken::InVain,
                };
                metrics::fetch_waited(since.elapsed());
                *parked += since.elapsed();
                match woken {
                    Woken::ByProgress => {}
                    // Another may have the name: whoever watched on would be woken by the old one for ever.
                    Woken::ByAnEnd => watching = None,
                    Woken::InVain => return pass,
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

/// Why a parked fetch looks up.
enum Woken {
    /// A high watermark has moved.
    ByProgress,
    /// A partition is not served here any more.
    ByAnEnd,
    /// Its time is over.
    InVain,
}

/// Waits until one partition's high watermark has moved.
async fn any_progress(receivers: &mut [watch::Receiver<i64>], deadline: Instant) -> Woken {
    let mut changes: FuturesUnordered<_> =
        receivers.iter_mut().map(watch::Receiver::changed).collect();
    match tokio::time::timeout_at(deadline, changes.next()).await {
        Ok(Some(Ok(()))) => Woken::ByProgress,
        Ok(Some(Err(_))) => Woken::ByAnEnd,
        Ok(None) | Err(_) => Woken::InVain,
    }
}

async fn read_all(reader: &Reader<'_>, wanted: &[Wanted]) -> Pass {
    let mut left = usize::try_from(reader.max_bytes)
        .unwrap_or(0)
        .min(reader.services.settings.now().config.kafka.fetch_max_bytes);
    let mut pass = Pass {
        found: Vec::with_capacity(wanted.len()),
        bytes: 0,
        urgent: false,
        served: Vec::new(),
    };
    for want in wanted {
        let response = match find(reader.services, want) {
            Ok(partition) => read_one(reader, &partition, &want.partition, left, &mut pass).await,
            Err(code) => FetchPartitionResponse::failed(want.partition.partition, code),
        };
        let bytes = response.record_bytes();
        left = left.saturating_sub(bytes);
        pass.bytes += bytes;
        if !response.error.is_none() {
            metrics::error_answered(response.error);
        }
        pass.urgent |= !response.error.is_none() || response.preferred_read_replica >= 0;
        pass.found.push(Found {
            topic: want.topic.clone(),
            partition: response,
        });
    }
    pass
}

async fn read_one(
    reader: &Reader<'_>,
    partition: &Partition,
    wanted: &FetchPartition,
    left: usize,
    pass: &mut Pass,
) -> FetchPartitionResponse {
    let nearer = reader.rack.and_then(|rack| {
        let listener = &*reader.context.listener;
        let services = reader.services;
        services.nearer_replica(partition, rack, listener, wanted.fetch_offset)
    });
    let max_bytes = usize::try_from(wanted.partition_max_bytes).unwrap_or(0);
    let request = ReadRequest {
        offset: wanted.fetch_offset,
        // Whoever is sent elsewhere reads there.
        max_bytes: nearer.map_or(max_bytes.min(left), |_| 0),
        // Only the first bytes of a response may exceed its limits, or nobody would ever get a large batch.
        at_least_one: pass.bytes == 0 && nearer.is_none(),
        current_leader_epoch: wanted.current_leader_epoch,
        from: reader
            .rack
            .map_or(ReadFrom::Leader, |_| ReadFrom::AnyReplica),
    };
    let outcome = match partition.read(request).await {
        Ok(outcome) => outcome,
        Err(error) => return read_failed(wanted.partition, &error),
    };
    if outcome.bytes > 0 {
        pass.served.push(Served {
            traffic: partition.traffic(),
            bytes: outcome.bytes as u64,
            by: outcome.by,
        });
    }
    if nearer.is_some() {
        metrics::fetch_sent_nearer();
    }
    FetchPartitionResponse {
        high_watermark: outcome.offsets.high_watermark,
        last_stable_offset: outcome.offsets.last_stable,
        log_start_offset: outcome.offsets.log_start,
        preferred_read_replica: nearer.unwrap_or(-1),
        records: outcome.slices,
        ..FetchPartitionResponse::failed(wanted.partition, ErrorCode::None)
    }
}

impl Services {
    /// A follower that this leader's consumer in `rack` is better served by.
    fn nearer_replica(
        &self,
        partition: &Partition,
        rack: &str,
        listener: &str,
        offset: i64,
    ) -> Option<i32> {
        if !partition.leadership().serving || offset < partition.offsets().log_start {
            return None;
        }
        let view = self.cluster.view();
        let own = view.brokers.get(&self.cluster.node_id());
        let (topic, index) = (partition.topic_id(), partition.index());
        let claim = self.cluster.leaders().get(&topic, index)?;
        let members = partition.members();
        let followers = members.matched.iter().filter_map(|(disk, matched)| {
            let node = view.node_of(*disk)?;
            let broker = view.brokers.get(&node)?;
            // Where the client came in it must be able to go on.
            broker.listeners.get(listener)?;
            let heard = self.cluster.hearing().is_heard_by(*disk);
            Some(nearby::Follower {
                node,
                rack: broker.rack.as_deref(),
                in_sync: heard && claim.in_sync.contains(disk),
                end_offset: partition.end_of_entry(*matched)?,
                lag: members.lag(*disk),
            })
        });
        let own_rack = own.and_then(|broker| broker.rack.as_deref());
        nearby::choose(rack, own_rack, offset, followers)
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
