//! Brokers that are drained, decommissioned and levelled while clients use them, through the operator's door.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::members::{Consuming, Member, Producing, place, until, until_seen};
use common::metric;
use logd_proto::rpc::admin::*;
use std::net::SocketAddr;
use tonic::Code;

async fn health(at: &Member) -> HealthResponse {
    let asked = at.operator().await.health(HealthRequest {}).await;
    asked.expect("an answer").into_inner()
}

async fn cluster(at: &Member) -> DescribeClusterResponse {
    let mut operator = at.operator().await;
    let asked = operator.describe_cluster(DescribeClusterRequest {}).await;
    asked.expect("an answer").into_inner()
}

async fn plan(at: &Member) -> Vec<PlannedMove> {
    let asked = at
        .operator()
        .await
        .plan_rebalance(RebalanceRequest {})
        .await;
    asked.expect("an answer").into_inner().moves
}

async fn partitions(at: &Member, topic: &str) -> Vec<Partition> {
    let request = ListPartitionsRequest {
        topic: topic.into(),
        led_here: false,
    };
    match at.operator().await.list_partitions(request).await {
        Ok(answer) => answer.into_inner().partitions,
        Err(unknown) if unknown.code() == Code::NotFound => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}

async fn well(at: &Member) {
    until_seen(
        "the cluster is healthy",
        || health(at),
        |h| h.healthy && h.moving == 0,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_broker_held_is_levelled_over_three() {
    let places = [place(), place(), place()];
    let brokers = places.map(|p| p[0]);
    let one = Member::start(places[0], &[]);
    one.create("level", &[&[1], &[1], &[1], &[1], &[1], &[1]])
        .await;
    let producing = Producing::begin(&brokers, "level");
    let consuming = Consuming::begin(&brokers, "level", 6);
    // Made for the consumer, by the broker that is alone.
    until_seen(
        "the topic of offsets is led",
        || partitions(&one, "__consumer_offsets"),
        |p| !p.is_empty() && p.iter().all(|p| p.leader == Some(1)),
    )
    .await;
    let two = Member::start(places[1], &[one.rpc]);
    let three = Member::start(places[2], &[one.rpc]);
    until_seen("all meet", || three.brokers(), |b| *b == [1, 2, 3]).await;
    until_seen("all meet", || two.brokers(), |b| *b == [1, 2, 3]).await;
    let planned = plan(&two).await;
    assert!(planned.iter().any(|m| m.topic == "level"), "{planned:?}");
    assert!(planned.iter().all(|m| m.from == [1] && m.to.len() == 3));
    let run = two
        .operator()
        .await
        .run_rebalance(RebalanceRequest {})
        .await;
    let run = run.expect("an answer").into_inner();
    assert!(run.moves.iter().all(|m| m.refused.is_empty()), "{run:?}");
    until_seen(
        "it has begun",
        || health(&two),
        |h| !h.healthy || h.moving == 0,
    )
    .await;
    well(&two).await;
    assert_eq!(plan(&two).await, []);
    three.elect(None).await;
    let led = until_seen(
        "leaders are levelled",
        || cluster(&three),
        |c| {
            let level = c.brokers.iter().map(|b| b.leaders);
            level.clone().max().unwrap_or(0) <= level.min().unwrap_or(0) + 1
        },
    )
    .await;
    assert!(led.brokers.iter().all(|b| !b.version.is_empty() && b.alive));
    assert!(led.brokers.iter().any(|b| b.metadata_role == "leader"));
    let listed = partitions(&one, "level").await;
    assert_eq!(listed.len(), 6);
    for p in &listed {
        assert_eq!((p.voters.len(), p.lags.len()), (3, 3), "{p:?}");
    }
    let none = one
        .operator()
        .await
        .cancel_rebalance(RebalanceRequest {})
        .await;
    assert_eq!(none.expect("an answer").into_inner().moves, []);
    consuming.end(producing.end());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_is_drained_resumed_and_decommissioned() {
    let mut members = Member::found(4).await;
    let replicas: [&[i32]; 4] = [&[1, 2, 3], &[2, 3, 4], &[3, 4, 1], &[1, 4, 2]];
    members[1].create("kept", &replicas).await;
    let producing = {
        let all: Vec<SocketAddr> = members.iter().map(|m| m.kafka).collect();
        Producing::begin(&all, "kept")
    };
    let node = |node_id| NodeRequest { node_id };
    let at = &members[1];
    at.operator().await.drain(node(1)).await.expect("drained");
    until_seen(
        "it leads nothing",
        || at.describe("kept"),
        |all| all.iter().all(|p| p.0 > 1),
    )
    .await;
    let drained = cluster(at).await;
    assert_eq!(
        (
            drained.brokers[0].duty.as_str(),
            drained.brokers[0].replicas
        ),
        ("draining", 3)
    );
    let resumed = members[2].operator().await.resume(node(1)).await;
    resumed.expect("resumed");
    let to = TransferLeaderRequest {
        topic: "kept".into(),
        partition: 0,
        to: Some(1),
    };
    members[3]
        .operator()
        .await
        .transfer_leader(to)
        .await
        .expect("it leads");
    // It leads, and votes on metadata perhaps; all that ends.
    let left = members[3].operator().await.decommission(node(1)).await;
    left.expect("decommissioned");
    until_seen("it is forgotten", || cluster(at), |c| c.brokers.len() == 3).await;
    well(at).await;
    for p in partitions(at, "kept").await {
        assert!(p.target.len() == 3 && !p.voters.contains(&1), "{p:?}");
    }
    until("its process ends", || !members[0].is_running());
    // Its disk is not taken back.
    members[0].begin_again();
    until("it refuses to start", || !members[0].is_running());
    let at = &members[1];
    until_seen(
        "three vote on metadata",
        || at.quorum(),
        |(voters, _)| *voters == [2, 3, 4],
    )
    .await;
    let full = at.operator().await.decommission(node(2)).await;
    assert_eq!(full.expect_err("no room").code(), Code::FailedPrecondition);
    let unknown = at.operator().await.drain(node(1)).await;
    assert_eq!(unknown.expect_err("forgotten").code(), Code::NotFound);
    let count = producing.end();
    let rest: Vec<SocketAddr> = members[1..].iter().map(|m| m.kafka).collect();
    Consuming::begin(&rest, "kept", 4).end(count);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ails_a_cluster_is_said_and_nothing_is_forced() {
    let mut members = Member::found(3).await;
    members[0].create("lost", &[&[3, 2], &[3, 1]]).await;
    members[0].create("kept", &[&[1, 2, 3]]).await;
    well(&members[0]).await;
    members[2].kill();
    let at = &members[0];
    let ill = until_seen(
        "it is missed",
        || health(at),
        |h| {
            let lacking = h.under_replicated.iter().map(|p| &p.topic);
            h.dead_brokers == [3] && h.leaderless.len() == 2 && lacking.eq(["kept"])
        },
    )
    .await;
    until("its leader counts what it lacks", || {
        let lacking = |m: &Member| metric(m.admin, "logd_partitions_under_replicated");
        members[..2].iter().map(lacking).sum::<f64>() == 1.0
    });
    assert!(!ill.healthy && !ill.metadata_leaderless);
    let recover = |topic: &str, accept_data_loss, from| RecoverPartitionRequest {
        topic: topic.into(),
        accept_data_loss,
        from,
        ..RecoverPartitionRequest::default()
    };
    for (wanted, code, why) in [
        (
            recover("lost", false, None),
            Code::InvalidArgument,
            "accepted",
        ),
        (recover("lost", true, Some(1)), Code::NotFound, "no replica"),
        (recover("lost", true, Some(3)), Code::NotFound, "no replica"),
        (
            recover("kept", true, None),
            Code::FailedPrecondition,
            "a leader",
        ),
    ] {
        let refused = at.operator().await.recover_partition(wanted).await;
        let refused = refused.expect_err("it is refused");
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(why), "{refused}");
    }
    members[2].restart();
    well(&members[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_that_cannot_end_are_cancelled_with_the_rebalance() {
    let mut members = Member::found(3).await;
    members[0].create("pair", &[&[1, 2]]).await;
    members[2].kill();
    let at = &members[0];
    until_seen("one is away", || at.brokers(), |b| *b == [1, 2]).await;
    assert_eq!(at.reassign("pair", 0, Some(&[1, 3])).await, 0);
    let cancelled = at
        .operator()
        .await
        .cancel_rebalance(RebalanceRequest {})
        .await;
    let cancelled = cancelled.expect("an answer").into_inner().moves;
    let named = |m: &PlannedMove| (m.topic.clone(), m.partition, m.refused.clone());
    assert_eq!(
        cancelled.iter().map(named).collect::<Vec<_>>(),
        [("pair".into(), 0, String::new())]
    );
    let back = partitions(at, "pair").await;
    assert_eq!(back[0].target, [1, 2]);
    assert_eq!(at.moving().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preferred_leader_that_has_been_away_leads_again() {
    let mut members = Member::found(3).await;
    members[1].create("led", &[&[1, 2, 3]]).await;
    members[0].kill();
    let leader = async || members[1].describe("led").await[0].0;
    until_seen("another leads", leader, |leader| *leader > 1).await;
    members[0].restart();
    // It must have stayed for a while first.
    let leader = async || members[1].describe("led").await[0].0;
    until_seen("it leads again", leader, |leader| *leader == 1).await;
}
