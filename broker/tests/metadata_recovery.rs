//! A cluster that has lost most of the voters on its metadata, and an operator who has it go on with what one of
//! them has. The lost ones come back all the same.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::members::{Member, consume_all, place, produce_all, until, until_seen};
use logd_proto::rpc::admin::*;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::process::Output;

const TOPIC: &str = "t";

/// Their node ids are one more than their places here.
struct Brokers(Vec<Member>);

impl Brokers {
    async fn found(count: usize) -> Self {
        let members = Member::found(count).await;
        until_seen(
            "three vote on metadata",
            || members[0].quorum(),
            |(voters, learners)| voters.len() == 3 && learners.len() == count - 3,
        )
        .await;
        Self(members)
    }

    fn all(&self) -> Vec<SocketAddr> {
        self.0.iter().map(|m| m.kafka).collect()
    }

    fn kill(&mut self, nodes: &[i32]) {
        nodes.iter().for_each(|node| self.member(*node).kill());
    }

    /// Together: none of them waits for another one to serve.
    fn restart(&mut self, nodes: &[i32]) {
        nodes.iter().for_each(|n| self.member(*n).begin_again());
        nodes.iter().for_each(|n| self.at(*n).wait());
    }

    fn at(&self, node: i32) -> &Member {
        &self.0[node as usize - 1]
    }

    fn member(&mut self, node: i32) -> &mut Member {
        &mut self.0[node as usize - 1]
    }

    async fn partition(&self, seen_by: i32) -> Partition {
        let request = ListPartitionsRequest {
            topic: TOPIC.into(),
            led_here: false,
        };
        let mut operator = self.at(seen_by).operator().await;
        let listed = operator.list_partitions(request).await;
        listed.expect("an answer").into_inner().partitions.remove(0)
    }

    /// The topics that a broker knows of; asking for one by name would make it.
    async fn topics(&self, seen_by: i32) -> BTreeSet<String> {
        let mut operator = self.at(seen_by).operator().await;
        let listed = operator.list_partitions(ListPartitionsRequest::default());
        let listed = listed.await.expect("an answer").into_inner();
        listed.partitions.into_iter().map(|p| p.topic).collect()
    }

    async fn all_have(&self, seen_by: i32, count: i64, replicas: usize) {
        until_seen(
            "every replica has everything",
            || self.partition(seen_by),
            |p| {
                let level = p.lags.iter().all(|lag| lag.entries == 0);
                p.high_watermark == Some(count) && p.lags.len() == replicas && level
            },
        )
        .await;
    }

    /// As an operator who has accepted the loss.
    async fn recover_partition(&self, by: i32) -> RecoverPartitionResponse {
        let recovered = async || {
            let wanted = RecoverPartitionRequest {
                topic: TOPIC.into(),
                accept_data_loss: true,
                ..RecoverPartitionRequest::default()
            };
            let mut operator = self.at(by).operator().await;
            let answer = operator.recover_partition(wanted).await;
            answer.map(tonic::Response::into_inner)
        };
        let done = until_seen("it is recovered", recovered, |r| {
            r.as_ref().is_ok_and(|r| r.led)
        });
        done.await.expect("an answer")
    }

    /// Three replicas of the topic keep up, on whichever brokers.
    async fn heal(&self, by: i32) -> Partition {
        let healed = async || {
            let mut operator = self.at(by).operator().await;
            let run = operator.run_rebalance(RebalanceRequest {}).await;
            run.expect("an answer");
            self.partition(by).await
        };
        until_seen("three replicas keep up", healed, |p| {
            p.in_sync.len() == 3 && p.voters.len() == 3 && p.before.is_empty()
        })
        .await
    }

    async fn voters(&self, seen_by: i32, count: usize) -> Vec<i32> {
        let quorum = until_seen(
            "so many vote on metadata",
            || self.at(seen_by).quorum(),
            |(voters, _)| voters.len() == count,
        );
        quorum.await.0
    }

    /// Node 3's metadata goes on; it serves.
    fn rescue(&mut self) {
        let done = self.at(3).recover_metadata(true);
        ended(&done, 0, &["generation 1"]);
        self.member(3).restart();
    }
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn numbers(range: Range<usize>) -> Vec<usize> {
    range.collect()
}

/// That it ended so, and names all of these.
fn ended(output: &Output, code: i32, names: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for name in names {
        assert!(said.contains(name), "{name} in {said}");
    }
}

/// As a crash in the middle of a recovery leaves the card.
fn interrupted(card: &str) -> String {
    let mut card: serde_json::Value = serde_json::from_str(card).expect("a card");
    let lost = card["peers"].as_object().expect("its peers").keys();
    let lost: Vec<u64> = lost.map(|disk| disk.parse().expect("a disk")).collect();
    card["unfinished"] = serde_json::json!({ "recovery": { "voters": [lost] } });
    serde_json::json!({ "recovered": card }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_are_lost_and_the_third_goes_on() {
    let mut brokers = Brokers::found(3).await;
    brokers.at(3).create(TOPIC, &[&[1, 2, 3]]).await;
    produce_all(&brokers.all(), TOPIC, 0..200);
    brokers.all_have(1, 200, 3).await;

    ended(&brokers.at(3).recover_metadata(true), 1, &["still running"]);
    brokers.kill(&[3]);
    let card = brokers.at(3).card();
    let others = [1, 2].map(|node| brokers.at(node).rpc.to_string());
    let refused = brokers.at(3).recover_metadata(true);
    ended(&refused, 1, &["nothing was changed"]);
    brokers.kill(&[1]);
    let refused = brokers.at(3).recover_metadata(true);
    ended(&refused, 1, &["nothing was changed", &others[1]]);
    let refused = brokers.at(3).recover_metadata(false);
    ended(&refused, 1, &["nothing was changed", &others[1]]);
    brokers.kill(&[2]);

    let shown = brokers.at(3).recover_metadata(false);
    let names = ["last entry: term", "does not answer", "--accept-data-loss"];
    ended(&shown, 2, &names);
    ended(&shown, 2, &[&others[0], &others[1], "broker 3"]);
    assert_eq!(brokers.at(3).card(), card, "it is only shown");
    brokers.at(3).put_card(&interrupted(&card));
    let member = brokers.member(3);
    member.begin_again();
    until("it does not start", || !member.is_running());
    ended(&brokers.at(3).recover_metadata(true), 0, &["generation 1"]);
    let again = brokers.at(3).recover_metadata(true);
    ended(&again, 1, &["only voter"]);

    brokers.member(3).restart();
    assert_eq!(brokers.voters(3, 1).await, [3]);
    let done = brokers.recover_partition(3).await;
    assert_eq!((done.survivor, done.led), (3, true), "{done:?}");
    let survivor = [brokers.at(3).kafka];
    assert_eq!(consume_all(&survivor, TOPIC), numbers(0..200));
    produce_all(&survivor, TOPIC, 200..300);
    brokers.at(3).create("later", &[&[3]]).await;

    let fourth = Member::start(place(), &[brokers.at(3).rpc]);
    brokers.0.push(fourth);
    until_seen(
        "an empty broker is taken in",
        || brokers.at(3).brokers(),
        |nodes| *nodes == [3, 4],
    )
    .await;

    // With the metadata they had, as a majority of what the group was.
    brokers.restart(&[1, 2]);
    until_seen(
        "all are there",
        || brokers.at(1).brokers(),
        |nodes| *nodes == [1, 2, 3, 4],
    )
    .await;
    assert!(brokers.at(1).card().contains("\"generation\": 1"));
    brokers.voters(1, 3).await;
    brokers.heal(1).await;
    produce_all(&brokers.all(), TOPIC, 300..320);
    assert_eq!(consume_all(&brokers.all(), TOPIC), numbers(0..320));
    assert!(brokers.topics(2).await.contains("later"));
    // The metadata is a group like any other: it does without the survivor.
    brokers.kill(&[3]);
    brokers.at(1).create("last", &[&[1]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_majority_of_the_past_ends_when_it_meets_the_survivor() {
    let mut brokers = Brokers::found(3).await;
    brokers.at(3).create(TOPIC, &[&[1, 2, 3]]).await;
    produce_all(&brokers.all(), TOPIC, 0..100);
    brokers.all_have(1, 100, 3).await;
    brokers.kill(&[3]);
    produce_all(&brokers.all(), TOPIC, 100..150);
    brokers.kill(&[1, 2]);
    brokers.rescue();
    brokers.recover_partition(3).await;
    produce_all(&[brokers.at(3).kafka], TOPIC, 200..250);
    brokers.at(3).create("later", &[&[3]]).await;
    brokers.kill(&[3]);

    // Nobody tells them: they go on as what they were.
    brokers.restart(&[1, 2]);
    brokers.at(1).create("never", &[&[1]]).await;
    brokers.member(3).restart();
    for node in [1, 2] {
        let member = brokers.member(node);
        until("what is of the past ends", || !member.is_running());
    }
    let survivor = [brokers.at(3).kafka];
    let kept = [numbers(0..100), numbers(200..250)].concat();
    assert_eq!(consume_all(&survivor, TOPIC), kept);

    brokers.restart(&[1, 2]);
    brokers.voters(1, 3).await;
    brokers.heal(1).await;
    assert_eq!(consume_all(&brokers.all(), TOPIC), kept);
    for node in [1, 2, 3] {
        let topics = brokers.topics(node).await;
        assert!(topics.contains("later") && !topics.contains("never"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_survived_beside_it_follows_after_a_restart() {
    let mut brokers = Brokers::found(4).await;
    let (voters, learners) = brokers.at(1).quorum().await;
    let (chosen, lost, beside) = (voters[0], [voters[1], voters[2]], learners[0]);
    brokers
        .at(chosen)
        .create(TOPIC, &[&[chosen, beside, lost[0]]])
        .await;
    produce_all(&brokers.all(), TOPIC, 0..100);
    brokers.all_have(chosen, 100, 3).await;
    brokers.kill(&lost);
    brokers.kill(&[chosen]);
    until("the metadata is recovered", || {
        let done = brokers.at(chosen).recover_metadata(true);
        done.status.success()
    });
    brokers.member(chosen).restart();
    let member = brokers.member(beside);
    until("it hears of the recovery", || !member.is_running());
    brokers.member(beside).restart();
    let mut both = [chosen, beside];
    both.sort_unstable();
    until_seen(
        "both are there",
        || brokers.at(beside).brokers(),
        |nodes| *nodes == both,
    )
    .await;
    // Its replica of the partition was kept, so there is a majority without force.
    let kafka = [brokers.at(beside).kafka];
    assert_eq!(consume_all(&kafka, TOPIC), numbers(0..100));
    produce_all(&kafka, TOPIC, 100..120);
    brokers.at(beside).create("later", &[&[beside]]).await;
    assert_eq!(consume_all(&kafka, TOPIC), numbers(0..120));
}
