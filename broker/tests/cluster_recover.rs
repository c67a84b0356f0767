//! Partitions that have lost their majority, and an operator who has them go on with what one replica has.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::members::{Member, consume_all, produce_all, until_seen};
use common::metric;
use logd_proto::rpc::admin::*;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;
use tonic::{Code, Status};

/// Groups without a leader are looked at several times a second.
const TIME_TO_ELECT: Duration = Duration::from_secs(3);

const FORCED: &str = "logd_partition_forced_recoveries_total";

/// Four brokers, three of which vote on metadata, and a partition on two of those and the fourth.
struct Loss {
    members: Vec<Member>,
    /// Its replica goes on.
    survivor: i32,
    /// They go away with what they have.
    lost: [i32; 2],
    /// It has no replica.
    bystander: i32,
}

impl Loss {
    async fn prepare(topic: &str) -> Loss {
        let members = Member::found(4).await;
        let (voters, learners) = until_seen(
            "three vote on metadata",
            || members[0].quorum(),
            |(voters, learners)| voters.len() == 3 && learners.len() == 1,
        )
        .await;
        let loss = Loss {
            members,
            survivor: voters[0],
            lost: [voters[1], learners[0]],
            bystander: voters[2],
        };
        let replicas = [loss.lost[0], loss.lost[1], loss.survivor];
        loss.at(loss.bystander).create(topic, &[&replicas]).await;
        loss
    }

    fn at(&self, node: i32) -> &Member {
        &self.members[node as usize - 1]
    }

    fn member(&mut self, node: i32) -> &mut Member {
        &mut self.members[node as usize - 1]
    }

    fn all(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|m| m.kafka).collect()
    }

    /// As the bystander sees it.
    async fn partition(&self, topic: &str) -> Partition {
        let request = ListPartitionsRequest {
            topic: topic.into(),
            led_here: false,
        };
        let mut operator = self.at(self.bystander).operator().await;
        let listed = operator.list_partitions(request).await;
        listed.expect("an answer").into_inner().partitions.remove(0)
    }

    async fn all_have(&self, topic: &str, count: i64) {
        until_seen(
            "every replica has everything",
            || self.partition(topic),
            |p| {
                let level = p.lags.iter().all(|lag| lag.entries == 0);
                p.high_watermark == Some(count) && p.lags.len() == 3 && level
            },
        )
        .await;
    }

    async fn recover(
        &self,
        topic: &str,
        dry_run: bool,
    ) -> Result<RecoverPartitionResponse, Status> {
        let wanted = RecoverPartitionRequest {
            topic: topic.into(),
            accept_data_loss: !dry_run,
            dry_run,
            ..RecoverPartitionRequest::default()
        };
        let mut operator = self.at(self.bystander).operator().await;
        let answer = operator.recover_partition(wanted).await;
        answer.map(tonic::Response::into_inner)
    }

    async fn see(&self, others: &[i32]) {
        let mut expected = others.to_vec();
        expected.sort_unstable();
        until_seen(
            "the others are seen to be there or away",
            || self.at(self.bystander).brokers(),
            |brokers| *brokers == expected,
        )
        .await;
    }

    /// What is there is levelled over three brokers again.
    async fn heal(&self, topic: &str) -> Partition {
        let healed = async || {
            let mut operator = self.at(self.bystander).operator().await;
            let run = operator.run_rebalance(RebalanceRequest {}).await;
            run.expect("an answer");
            self.partition(topic).await
        };
        until_seen("three replicas keep up", healed, |p| {
            p.in_sync.len() == 3 && p.voters.len() == 3 && p.before.is_empty()
        })
        .await
    }
}

fn numbers(first: Range<usize>, then: Range<usize>) -> Vec<usize> {
    first.chain(then).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_goes_on_and_what_the_others_had_comes_never_back() {
    let mut loss = Loss::prepare("lost").await;
    let (survivor, lost, bystander) = (loss.survivor, loss.lost, loss.bystander);
    let topic_id = loss.at(bystander).topic_id("lost").await;
    produce_all(&loss.all(), "lost", 0..300);
    loss.all_have("lost", 300).await;
    let healthy = loss.recover("lost", false).await.expect_err("it is led");
    assert_eq!(healthy.code(), Code::FailedPrecondition, "{healthy}");

    // The other two go on, and acknowledge what the third will never have.
    loss.member(survivor).kill();
    produce_all(&loss.all(), "lost", 300..400);
    lost.iter().for_each(|node| loss.member(*node).kill());
    loss.see(&[bystander]).await;
    let alone = loss.recover("lost", true).await.expect_err("no metadata");
    assert_eq!(alone.code(), Code::Unavailable, "{alone}");
    assert!(alone.message().contains("metadata group"), "{alone}");
    loss.member(survivor).restart();
    loss.see(&[survivor, bystander]).await;

    let planned = until_seen(
        "the survivor is found",
        || async { loss.recover("lost", true).await.ok() },
        Option::is_some,
    )
    .await;
    let planned = planned.expect("a plan");
    let ends = planned.replicas.iter().map(|r| (r.node_id, r.end_offset));
    assert!(ends.eq([(survivor, 300)]), "{planned:?}");
    assert_eq!((planned.survivor, planned.generation), (survivor, 0));
    assert_eq!(planned.target, [survivor, bystander]);
    assert_eq!(loss.partition("lost").await.forced_recoveries, 0);
    let before = loss.partition("lost").await.epoch;

    let done = loss.recover("lost", false).await.expect("it is recovered");
    assert_eq!((done.generation, done.led), (1, true), "{done:?}");
    assert_eq!(metric(loss.at(survivor).admin, FORCED), 1.0);
    let after = loss.partition("lost").await;
    assert!(after.epoch > before + 900, "{before} {after:?}");
    assert_eq!((after.leader, after.forced_recoveries), (Some(survivor), 1));
    assert_eq!(consume_all(&loss.all(), "lost"), numbers(0..300, 0..0));
    produce_all(&loss.all(), "lost", 400..450);

    // Those that had more come back, and are a majority of what the group was; nobody tells them otherwise
    // but the metadata.
    until_seen(
        "another has it too",
        || loss.partition("lost"),
        |p| p.in_sync.len() == 2 && p.before.is_empty(),
    )
    .await;
    loss.member(survivor).kill();
    lost.iter()
        .for_each(|node| loss.member(*node).begin_again());
    loss.see(&[lost[0], lost[1], bystander]).await;
    lost.iter().for_each(|node| loss.at(*node).wait());
    tokio::time::sleep(TIME_TO_ELECT).await;
    for node in lost {
        let leader = loss.at(node).describe("lost").await[0].0;
        assert!(!lost.contains(&leader), "{leader} leads what is no more");
    }
    let planned = loss.recover("lost", true).await.expect("a plan");
    let old = planned.replicas.iter().filter(|r| r.generation == 0);
    assert!(old.map(|r| r.end_offset).eq([400, 400]), "{planned:?}");
    assert_eq!(planned.survivor, bystander, "it is of the later generation");
    loss.member(survivor).restart();
    loss.see(&[1, 2, 3, 4]).await;
    let healed = loss.heal("lost").await;
    assert_eq!(healed.high_watermark, Some(350));
    produce_all(&loss.all(), "lost", 450..460);
    let expected = numbers(0..300, 400..460);
    assert_eq!(consume_all(&loss.all(), "lost"), expected);
    for node in lost.iter().filter(|n| !healed.target.contains(n)) {
        let holds = async || loss.at(*node).holds(&topic_id);
        until_seen("its replica is thrown away", holds, |holds| !holds).await;
    }
    // The new three are a group like any other: the survivor may go.
    loss.member(survivor).kill();
    produce_all(&loss.all(), "lost", 460..470);
    let expected = numbers(0..300, 400..470);
    assert_eq!(consume_all(&loss.all(), "lost"), expected);
    loss.member(survivor).restart();
    assert_eq!(
        metric(loss.at(survivor).admin, FORCED),
        0.0,
        "once is enough"
    );
    loss.heal("lost").await;
    assert_eq!(consume_all(&loss.all(), "lost"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_were_only_stopped_for_a_while_are_not_believed_either() {
    let mut loss = Loss::prepare("stopped").await;
    let (survivor, lost, bystander) = (loss.survivor, loss.lost, loss.bystander);
    produce_all(&loss.all(), "stopped", 0..100);
    loss.all_have("stopped", 100).await;
    loss.member(survivor).kill();
    produce_all(&loss.all(), "stopped", 100..150);
    lost.iter().for_each(|node| loss.at(*node).signal("STOP"));
    loss.member(survivor).begin_again();
    loss.see(&[survivor, bystander]).await;
    let recovered = async || loss.recover("stopped", false).await.map(|r| r.led).ok();
    until_seen("it is recovered", recovered, Option::is_some).await;
    produce_all(&[loss.at(bystander).kafka], "stopped", 200..250);
    // Their groups are open, they lead in their eyes, and they are two of three.
    lost.iter().for_each(|node| loss.at(*node).signal("CONT"));
    loss.see(&[1, 2, 3, 4]).await;
    let healed = loss.heal("stopped").await;
    assert_eq!(healed.high_watermark, Some(150));
    let expected = numbers(0..100, 200..250);
    assert_eq!(consume_all(&loss.all(), "stopped"), expected);
}
