//! What clients are told while a broker is down: nobody is sent to it who need not be.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::members::{Member, until_seen};
use common::requests::*;
use logd_proto::ErrorCode;
use logd_proto::message;
use logd_proto::messages::*;
use logd_proto::rpc::admin::{HealthRequest, HealthResponse};

/// The brokers that an answer names, and its topic's only partition: error code, leader, replicas that are away.
type Told = (Vec<i32>, Option<(i16, i32, Vec<i32>)>);

/// Metadata of one topic, or of none.
async fn told(by: &Member, topic: Option<&str>) -> Told {
    let wanted = topic.map(|name| {
        message!(metadata_request::MetadataRequestTopic {
            name: Some(name.into())
        })
    });
    let request = message!(MetadataRequest {
        topics: Some(wanted.into_iter().collect())
    });
    let answer = ask(&mut by.connect().await, &request, 12).await;
    let mut brokers: Vec<i32> = answer.brokers.iter().map(|b| b.node_id).collect();
    brokers.sort_unstable();
    let partition = answer.topics.first().map(|t| {
        let p = &t.partitions[0];
        (p.error_code, p.leader_id, p.offline_replicas.clone())
    });
    (brokers, partition)
}

async fn health(at: &Member) -> HealthResponse {
    let asked = at.operator().await.health(HealthRequest {}).await;
    asked.expect("an answer").into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_down_is_not_named_to_clients_until_it_is_back() {
    let mut members = Member::found(3).await;
    members[0].create("everywhere", &[&[3, 1, 2]]).await;
    members[0].create("there", &[&[3]]).await;
    let led = |leader| (vec![1, 2, 3], Some((0, leader, vec![])));
    for topic in ["everywhere", "there"] {
        until_seen(topic, || told(&members[1], Some(topic)), |t| *t == led(3)).await;
    }

    members[2].kill();
    for at in [0, 1] {
        until_seen(
            "who asks every broker asks those that are there",
            || told(&members[at], None),
            |t| *t == (vec![1, 2], None),
        )
        .await;
    }
    let none = ErrorCode::LeaderNotAvailable.code();
    until_seen(
        "nobody leads what was there only",
        || told(&members[0], Some("there")),
        |t| *t == (vec![1, 2], Some((none, -1, vec![3]))),
    )
    .await;
    until_seen(
        "another leads what is elsewhere too",
        || told(&members[0], Some("everywhere")),
        |(brokers, partition)| {
            let (code, leader, away) = partition.as_ref().expect("a partition");
            *brokers == [1, 2] && *code == 0 && [1, 2].contains(leader) && *away == [3]
        },
    )
    .await;

    // One that is left alone may be the one that is cut off.
    members[1].kill();
    until_seen(
        "who hears nobody names all",
        || told(&members[0], None),
        |t| *t == (vec![1, 2, 3], None),
    )
    .await;

    until_seen(
        "it says that it can do nothing alone",
        || health(&members[0]),
        |h| {
            let led = |topic: &str| !h.leaderless.iter().any(|p| p.topic == topic);
            h.metadata_leaderless && !led("everywhere") && !led("there")
        },
    )
    .await;

    members[1].begin_again();
    members[2].begin_again();
    for topic in ["everywhere", "there"] {
        until_seen(
            "all is as it was",
            || told(&members[0], Some(topic)),
            |(brokers, partition)| {
                let (code, _, away) = partition.as_ref().expect("a partition");
                *brokers == [1, 2, 3] && *code == 0 && away.is_empty()
            },
        )
        .await;
    }
}
