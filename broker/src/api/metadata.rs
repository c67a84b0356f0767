//! Metadata: brokers, topics and leaders, as the listener that was asked advertises them.

use super::find_coordinator::new_offsets_topic;
use super::{Context, Services, errors, operations};
use crate::cluster::{ClusterState, CreateTopicError, NewTopic, Topic};
use crate::group::OFFSETS_TOPIC;
use logd_proto::messages::metadata_request::MetadataRequestTopic;
use logd_proto::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use logd_proto::messages::{MetadataRequest, MetadataResponse};
use logd_proto::{ErrorCode, StrBytes, Uuid, message};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// In version 0 an empty list means all topics; later that is null.
const NULL_MEANS_ALL: i16 = 1;

/// Creating on demand must not hold a Metadata request for long; the client asks again anyway.
const AUTO_CREATE_DEADLINE: Duration = Duration::from_secs(5);

pub async fn answer(
    services: Arc<Services>,
    context: Context,
    request: MetadataRequest,
) -> MetadataResponse {
    let all = match &request.topics {
        None => true,
        Some(topics) => topics.is_empty() && context.version < NULL_MEANS_ALL,
    };
    let away = services.cluster.away();
    let mut topics = Vec::new();
    if all {
        let state = services.cluster.view();
        topics.extend(state.topics.values().map(|t| describe(&services, t, &away)));
    } else {
        for wanted in request.topics.iter().flatten() {
            topics.push(one(&services, wanted, request.allow_auto_topic_creation, &away).await);
        }
    }
    let asked = request.include_topic_authorized_operations;
    for topic in topics.iter_mut().filter(|topic| topic.error_code == 0) {
        topic.topic_authorized_operations = operations::told(asked, operations::OF_TOPIC);
    }
    let state = services.cluster.view();
    message!(MetadataResponse {
        brokers: told_of(brokers(&state, &context.listener), &away, &topics),
        cluster_id: Some(services.cluster.cluster_id().into()),
        // Any broker forwards admin requests, so the one that was asked is as good a controller as any.
        controller_id: services.cluster.node_id(),
        topics,
        cluster_authorized_operations: operations::told(
            request.include_cluster_authorized_operations,
            operations::OF_CLUSTER,
        ),
    })
}

/// Brokers as clients of that listener reach them; one without such a listener is left out, as in Kafka.
pub fn brokers(state: &ClusterState, listener: &str) -> Vec<MetadataResponseBroker> {
    let reach = |b: &crate::cluster::BrokerInfo| b.listeners.get(listener).cloned();
    let brokers = state.brokers.values().filter_map(|b| Some((b, reach(b)?)));
    brokers
        .map(|(b, (host, port))| {
            message!(MetadataResponseBroker {
                node_id: b.id,
                host: host.into(),
                port: i32::from(port),
                rack: b.rack.clone().map(StrBytes::from)
            })
        })
        .collect()
}

/// Those that are there, and those that lead something in this answer although they seem to be away:
/// whoever is told of a leader must be able to reach it.
fn told_of(
    mut brokers: Vec<MetadataResponseBroker>,
    away: &BTreeSet<i32>,
    topics: &[MetadataResponseTopic],
) -> Vec<MetadataResponseBroker> {
    if !away.is_empty() {
        let partitions = topics.iter().flat_map(|t| &t.partitions);
        let leaders: BTreeSet<i32> = partitions.map(|p| p.leader_id).collect();
        brokers.retain(|b| !away.contains(&b.node_id) || leaders.contains(&b.node_id));
    }
    brokers
}

async fn one(
    services: &Services,
    wanted: &MetadataRequestTopic,
    allow_create: bool,
    away: &BTreeSet<i32>,
) -> MetadataResponseTopic {
    let Some(name) = &wanted.name else {
        return by_id(services, wanted.topic_id, away);
    };
    let state = services.cluster.view();
    if let Some(topic) = state.topic(name) {
        return describe(services, topic, away);
    }
    if !(allow_create && services.settings.now().config.topics.auto_create) {
        let code = if is_legal(name) {
            ErrorCode::UnknownTopicOrPartition
        } else {
            ErrorCode::InvalidTopic
        };
        return failed(Some(name.clone()), Uuid::ZERO, code);
    }
    // Somebody who is curious about the groups' topic must not give it another shape.
    let new = if name.as_str() == OFFSETS_TOPIC {
        new_offsets_topic(services)
    } else {
        NewTopic {
            name: name.to_string(),
            ..NewTopic::default()
        }
    };
    let created = services
        .cluster
        .create_topics(vec![new], false, AUTO_CREATE_DEADLINE)
        .await;
    match created.into_iter().next() {
        // Two clients may ask at once; whoever lost the race finds the winner's topic.
        Some(Ok(_) | Err(CreateTopicError::Exists(_))) => match services.cluster.view().topic(name)
        {
            Some(topic) => describe(services, topic, away),
            None => failed(
                Some(name.clone()),
                Uuid::ZERO,
                ErrorCode::LeaderNotAvailable,
            ),
        },
        Some(Err(CreateTopicError::TimedOut)) | None => failed(
            Some(name.clone()),
            Uuid::ZERO,
            ErrorCode::LeaderNotAvailable,
        ),
        Some(Err(error)) => failed(Some(name.clone()), Uuid::ZERO, errors::create_topic(&error)),
    }
}

pub(super) fn is_legal(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= 249 && name != "." && name != ".." && name.chars().all(legal)
}

fn by_id(services: &Services, id: Uuid, away: &BTreeSet<i32>) -> MetadataResponseTopic {
    match services.cluster.view().topic_by_id(&id) {
        Some(topic) => describe(services, topic, away),
        None => failed(None, id, ErrorCode::UnknownTopicId),
    }
}

fn failed(name: Option<StrBytes>, topic_id: Uuid, code: ErrorCode) -> MetadataResponseTopic {
    message!(MetadataResponseTopic {
        error_code: errors::told(code),
        name,
        topic_id,
        topic_authorized_operations: operations::UNKNOWN
    })
}

fn describe(services: &Services, topic: &Topic, away: &BTreeSet<i32>) -> MetadataResponseTopic {
    let partitions = (0..topic.partitions.len() as i32)
        .map(|i| partition(services, topic, i, away))
        .collect();
    message!(MetadataResponseTopic {
        name: Some(topic.name.as_str().into()),
        topic_id: topic.id,
        is_internal: topic.internal,
        partitions,
        topic_authorized_operations: operations::UNKNOWN,
    })
}

pub(super) fn partition(
    services: &Services,
    topic: &Topic,
    index: i32,
    away: &BTreeSet<i32>,
) -> MetadataResponsePartition {
    let replicas = topic.replicas(index);
    // A leader is named once it serves: a topic can be used the instant it is announced.
    let leadership = services.leadership(&topic.id, index);
    // Between two leaders the next is named: a client that is told of none looks again a second later.
    let leader = leadership
        .and_then(|l| l.expected.or(l.leader))
        .filter(|_| services.may_be_led(&topic.id, index, away));
    let code = if leader.is_some() {
        ErrorCode::None
    } else {
        ErrorCode::LeaderNotAvailable
    };
    message!(MetadataResponsePartition {
        error_code: errors::told(code),
        partition_index: index,
        leader_id: leader.unwrap_or(-1),
        leader_epoch: leadership.map_or(-1, |l| l.epoch),
        isr_nodes: services.in_sync(&topic.id, index, &replicas),
        offline_replicas: replicas
            .iter()
            .copied()
            .filter(|n| away.contains(n))
            .collect(),
        replica_nodes: replicas,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::BrokerInfo;
    use std::collections::BTreeMap;

    #[test]
    fn trap_33_clients_are_told_the_addresses_of_the_listener_they_came_by() {
        let listener = |name: &str, host: &str, port| (name.to_owned(), (host.to_owned(), port));
        let mut state = ClusterState::default();
        for (id, listeners) in [
            (
                1,
                vec![listener("in", "a", 1), listener("out", "a.example.org", 2)],
            ),
            (2, vec![listener("in", "b", 3)]),
        ] {
            let broker = BrokerInfo {
                id,
                replica: 7,
                start: 1,
                rack: None,
                listeners: BTreeMap::from_iter(listeners),
                rpc: "a:9".into(),
                features: crate::cluster::FeatureLevel::FIRST,
            };
            state.brokers.insert(id, broker);
        }
        let seen = |listener| {
            let brokers = brokers(&state, listener).into_iter();
            let ends = brokers.map(|b| (b.node_id, b.host.to_string(), b.port));
            ends.collect::<Vec<_>>()
        };
        assert_eq!(seen("in"), [(1, "a".into(), 1), (2, "b".into(), 3)]);
        assert_eq!(seen("out"), [(1, "a.example.org".into(), 2)]);
    }

    #[test]
    fn a_broker_that_is_away_is_told_of_only_where_it_is_named_as_a_leader() {
        let brokers = || {
            (1..=3)
                .map(|node_id| message!(MetadataResponseBroker { node_id }))
                .collect()
        };
        let topic = |leader_id| {
            let partitions = vec![message!(MetadataResponsePartition { leader_id })];
            message!(MetadataResponseTopic { partitions })
        };
        let told = |away: &[i32], topics: &[MetadataResponseTopic]| {
            let told = told_of(brokers(), &away.iter().copied().collect(), topics);
            told.iter().map(|b| b.node_id).collect::<Vec<_>>()
        };
        assert_eq!(told(&[], &[topic(1)]), [1, 2, 3]);
        assert_eq!(told(&[3], &[]), [1, 2]);
        assert_eq!(told(&[2, 3], &[topic(1), topic(-1)]), [1]);
        assert_eq!(told(&[2, 3], &[topic(1), topic(3)]), [1, 3]);
    }
}
