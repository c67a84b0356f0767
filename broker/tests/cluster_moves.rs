//! Partitions that move between real brokers while clients use them.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::members::{Consuming, Member, Producing, log_start, place, until, until_seen};
use std::net::SocketAddr;
use std::time::Duration;

const NO_REASSIGNMENT_IN_PROGRESS: i16 = 85;
const ELECTION_NOT_NEEDED: i16 = 84;
const INVALID_REPLICA_ASSIGNMENT: i16 = 39;

/// After this long without a write a leader has to ask a majority before it proposes anything (`raft::group`).
const LEASE: Duration = Duration::from_secs(11);

/// Nothing moves, and every replica of the topic keeps up.
async fn settled(at: &Member, topic: &str) -> Vec<(i32, Vec<i32>, Vec<i32>)> {
    let looked = async || (at.moving().await, at.describe(topic).await);
    let (_, partitions) = until_seen("every replica keeps up", looked, |(moving, partitions)| {
        let whole = |(leader, replicas, in_sync): &(i32, Vec<i32>, Vec<i32>)| {
            *leader > 0 && replicas.len() == in_sync.len()
        };
        moving.is_empty() && partitions.iter().all(whole)
    })
    .await;
    partitions
}

#[tokio::test(flavor = "multi_thread")]
async fn one_broker_grows_into_three_while_a_producer_runs() {
    let places = [place(), place(), place()];
    // Clients know where all three will be, or they could not outlive the first.
    let brokers = places.map(|p| p[0]);
    let one = Member::start(places[0], &[]);
    one.create("grow", &[&[1], &[1], &[1]]).await;
    let consuming = Consuming::begin(&brokers, "grow", 3);
    let producing = Producing::begin(&brokers, "grow");
    let two = Member::start(places[1], &[one.rpc]);
    let three = Member::start(places[2], &[one.rpc]);
    until_seen(
        "three vote on metadata",
        || one.quorum(),
        |(voters, _)| *voters == [1, 2, 3],
    )
    .await;
    // Any broker takes it.
    assert_eq!(two.reassign("grow", 0, Some(&[1, 2, 3])).await, 0);
    assert_eq!(three.reassign("grow", 1, Some(&[2, 3, 1])).await, 0);
    assert_eq!(one.reassign("grow", 2, Some(&[3, 1, 2])).await, 0);
    settled(&one, "grow").await;
    let partitions = settled(&two, "grow").await;
    assert!(
        partitions.iter().all(|(_, r, _)| r.len() == 3),
        "{partitions:?}"
    );
    three.elect(None).await;
    until_seen(
        "preferred leaders lead",
        || two.describe("grow"),
        |all| all.iter().map(|p| p.0).eq([1, 2, 3]),
    )
    .await;
    assert_eq!(one.elect(Some(("grow", 1))).await, [ELECTION_NOT_NEEDED]);
    // What was acknowledged is on the others too.
    let mut one = one;
    one.kill();
    let count = producing.end();
    consuming.end(count);
    Consuming::begin(&brokers[1..], "grow", 3).end(count);
    drop(one);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_moves_while_clients_use_it_and_leaves_nothing_behind() {
    let members = Member::found(3).await;
    let all: Vec<SocketAddr> = members.iter().map(|m| m.kafka).collect();
    members[0].create("moving", &[&[1]]).await;
    let consuming = Consuming::begin(&all, "moving", 1);
    let producing = Producing::begin(&all, "moving");
    for target in [&[2][..], &[3], &[3, 1], &[1, 2, 3], &[2]] {
        assert_eq!(members[0].reassign("moving", 0, Some(target)).await, 0);
        let partitions = settled(&members[0], "moving").await;
        assert_eq!(partitions[0].1, target);
        assert!(target.contains(&partitions[0].0), "{partitions:?}");
    }
    let count = producing.end();
    consuming.end(count);
    let id = members[0].topic_id("moving").await;
    until("the replicas that were left are deleted", || {
        let held: Vec<bool> = members.iter().map(|m| m.holds(&id)).collect();
        held == [false, true, false]
    });
    Consuming::begin(&all, "moving", 1).end(count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_cannot_end_is_shown_and_cancelled() {
    let mut members = Member::found(3).await;
    members[0].create("stuck", &[&[1]]).await;
    members[2].kill();
    let at = &members[0];
    until_seen("one is away", || at.brokers(), |b| *b == [1, 2]).await;
    assert_eq!(at.reassign("stuck", 0, Some(&[3, 1])).await, 0);
    let moving = at.moving().await;
    assert_eq!(moving, [("stuck".to_owned(), 0, vec![3], vec![])]);
    assert_eq!(at.reassign("stuck", 0, None).await, 0);
    assert_eq!(at.moving().await, []);
    assert_eq!(at.describe("stuck").await[0].1, [1]);
    let again = at.reassign("stuck", 0, None).await;
    assert_eq!(again, NO_REASSIGNMENT_IN_PROGRESS);
    for bad in [&[1, 1][..], &[9], &[]] {
        let code = at.reassign("stuck", 0, Some(bad)).await;
        assert_eq!(code, INVALID_REPLICA_ASSIGNMENT, "{bad:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_goes_although_nobody_writes_any_more() {
    let members = Member::found(3).await;
    let configs = [("segment.bytes", "16384"), ("retention.ms", "15000")];
    members[0].create_with("old", &[&[1, 2, 3]], &configs).await;
    let brokers: Vec<SocketAddr> = members.iter().map(|m| m.kafka).collect();
    let producing = Producing::begin(&brokers, "old");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(producing.end() > 0);
    // The lease runs out before the records do.
    until("the log starts later", || log_start(&brokers, "old") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_comes_back_with_an_empty_disk_is_healed() {
    let mut members = Member::found(3).await;
    members[0]
        .create("healed", &[&[1, 2, 3], &[2, 3, 1], &[3, 1, 2]])
        .await;
    // Nobody writes to this one: its leader's lease runs out.
    members[0].create("idle", &[&[1, 2, 3], &[2, 1, 3]]).await;
    let producing = {
        let all: Vec<SocketAddr> = members.iter().map(|m| m.kafka).collect();
        Producing::begin(&all, "healed")
    };
    settled(&members[0], "healed").await;
    tokio::time::sleep(LEASE).await;
    members[2].kill();
    until_seen(
        "it is missed",
        || members[0].describe("healed"),
        |all| all.iter().all(|p| p.2.len() == 2),
    )
    .await;
    members[2].restart_wiped();
    settled(&members[0], "healed").await;
    settled(&members[0], "idle").await;
    until_seen(
        "three vote on metadata",
        || members[0].quorum(),
        |(v, o)| *v == [1, 2, 3] && o.is_empty(),
    )
    .await;
    // With the healed one and one of the others there is a majority, and nothing is lost.
    members[0].kill();
    let count = producing.end();
    Consuming::begin(&[members[1].kafka, members[2].kafka], "healed", 3).end(count);
}
