//! ElectLeaders: leadership goes to the first of a partition's replicas.
//!
//! An election here is a hand-over by the leader, whichever broker that is; a group without a leader
//! finds one by itself. Unclean elections do not exist: they are refused with the reason.

use super::{Context, Services, errors};
use crate::cluster::ElectError;
use futures_util::StreamExt;
use logd_proto::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use logd_proto::messages::{ElectLeadersRequest, ElectLeadersResponse};
use logd_proto::{ErrorCode, StrBytes, message};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Hand-overs that one request has under way.
const AT_ONCE: usize = 16;

/// The election's type is in the request from here on.
const SAYS_TYPE: i16 = 1;
const PREFERRED: i8 = 0;
const UNCLEAN: i8 = 1;

pub async fn elect(
    services: Arc<Services>,
    context: Context,
    request: ElectLeadersRequest,
) -> ElectLeadersResponse {
    let kind = match context.version < SAYS_TYPE {
        true => PREFERRED,
        false => request.election_type,
    };
    let patience = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let everything = request.topic_partitions.is_none();
    let wanted: Vec<(StrBytes, i32)> = match request.topic_partitions {
        Some(topics) => topics
            .into_iter()
            .flat_map(|t| t.partitions.into_iter().map(move |p| (t.topic.clone(), p)))
            .collect(),
        None => all(&services),
    };
    let (services, deadline) = (&services, tokio::time::Instant::now() + patience);
    let mut results = futures_util::stream::iter(wanted)
        .map(|(topic, index)| async move {
            let done = one(services, kind, &topic, index);
            let done = match tokio::time::timeout_at(deadline, done).await {
                Ok(done) => done.map_err(|e| (errors::elect(&e), e.to_string())),
                Err(_) => Err((ErrorCode::RequestTimedOut, "it takes longer".to_owned())),
            };
            (topic, index, done)
        })
        .buffer_unordered(AT_ONCE);
    let mut topics: BTreeMap<StrBytes, Vec<PartitionResult>> = BTreeMap::new();
    while let Some((topic, partition_id, done)) = results.next().await {
        let (code, why) = match done {
            Ok(()) => (ErrorCode::None, None),
            // Whoever asks for everything wants to hear of what there was to do.
            Err((ErrorCode::ElectionNotNeeded, _)) if everything => continue,
            Err((code, why)) => (code, Some(why)),
        };
        let result = message!(PartitionResult {
            partition_id,
            error_code: errors::told(code),
            error_message: why.map(StrBytes::from),
        });
        topics.entry(topic).or_default().push(result);
    }
    let replica_election_results = topics.into_iter().map(|(topic, partition_result)| {
        message!(ReplicaElectionResult {
            topic,
            partition_result
        })
    });
    message!(ElectLeadersResponse {
        replica_election_results: replica_election_results.collect(),
    })
}

fn all(services: &Services) -> Vec<(StrBytes, i32)> {
    let state = services.cluster.view();
    let partitions = state.topics.values().flat_map(|t| {
        let name = StrBytes::from(t.name.as_str());
        (0..t.partitions.len() as i32).map(move |index| (name.clone(), index))
    });
    partitions.collect()
}

async fn one(services: &Services, kind: i8, topic: &str, index: i32) -> Result<(), ElectError> {
    let state = services.cluster.view();
    let known = state.topic(topic).ok_or(ElectError::UnknownPartition)?;
    known.target(index).ok_or(ElectError::UnknownPartition)?;
    match kind {
        PREFERRED => services.cluster.elect_preferred(&known.id, index).await,
        UNCLEAN if services.leadership(&known.id, index).is_some() => Err(ElectError::NotNeeded),
        UNCLEAN => Err(ElectError::Unclean),
        other => Err(ElectError::UnknownType(other)),
    }
}
