//! Administration of a cluster: any broker is asked, all go by it.

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
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;

async fn connect(member: &Member) -> TcpStream {
    TcpStream::connect(member.kafka).await.expect("it accepts")
}

/// A request to produce one record of now, of so many bytes, to one partition.
fn produce_to(topic: &str, index: i32, bytes: usize) -> ProduceRequest {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("after 1970").as_millis() as i64;
    let mut request = produce(topic, -1, 30_000, vec![batch_of(now, bytes)]);
    request.topic_data[0].partition_data[0].index = index;
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_35_a_change_that_one_broker_took_holds_on_all_of_them() {
    let members = Member::found(3).await;
    let replicas: [&[i32]; 3] = [&[1, 2, 3], &[2, 3, 1], &[3, 1, 2]];
    members[0].create("all", &replicas).await;
    let led = |all: &Vec<(i32, Vec<i32>, Vec<i32>)>| all.iter().map(|p| p.0).eq([1, 2, 3]);
    until_seen("each leads one", || members[0].describe("all"), led).await;

    let config = message!(incremental_alter_configs_request::AlterableConfig {
        name: "max.message.bytes".into(),
        value: Some("2000".into())
    });
    let resource = message!(incremental_alter_configs_request::AlterConfigsResource {
        resource_type: 2,
        resource_name: "all".into(),
        configs: vec![config]
    });
    let request = message!(IncrementalAlterConfigsRequest {
        resources: vec![resource]
    });
    let altered = ask(&mut connect(&members[1]).await, &request, 1).await;
    assert_eq!(altered.responses[0].error_code, 0);
    for (index, member) in (0..).zip(&members) {
        let too_large = async || {
            let mut socket = connect(member).await;
            produced(&mut socket, &produce_to("all", index, 5_000)).await[0].error_code
        };
        let refused = ErrorCode::MessageTooLarge.code();
        until_seen("each leader goes by it", too_large, |code| *code == refused).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_grows_over_the_brokers_and_its_new_partitions_outlive_any_one() {
    let mut members = Member::found(3).await;
    members[0].create("grown", &[&[1, 2, 3]]).await;
    let topic = message!(create_partitions_request::CreatePartitionsTopic {
        name: "grown".into(),
        count: 6,
        assignments: None
    });
    let request = message!(CreatePartitionsRequest {
        topics: vec![topic],
        timeout_ms: 30_000
    });
    let grown = ask(&mut connect(&members[2]).await, &request, 3).await;
    assert_eq!(grown.results[0].error_code, 0, "{grown:?}");
    let partitions = members[2].describe("grown").await;
    assert_eq!(partitions.len(), 6);
    for node in 1..=3 {
        let first = partitions.iter().filter(|p| p.1[0] == node).count();
        assert_eq!(first, 2, "{partitions:?}");
    }
    let written = async |member: &Member, index| {
        let mut socket = connect(member).await;
        produced(&mut socket, &produce_to("grown", index, 10)).await[0].error_code
    };
    for (index, partition) in (0..).zip(&partitions) {
        let leader = &members[partition.0 as usize - 1];
        assert_eq!(written(leader, index).await, 0, "partition {index}");
    }
    members[2].kill();
    let taken_over =
        |all: &Vec<(i32, Vec<i32>, Vec<i32>)>| all.iter().all(|p| [1, 2].contains(&p.0));
    let after = until_seen("others lead", || members[0].describe("grown"), taken_over).await;
    for (index, partition) in (0..).zip(&after) {
        let leader = &members[partition.0 as usize - 1];
        let taken = async || written(leader, index).await;
        until_seen("it is written to", taken, |code| *code == 0).await;
    }
}

fn cut(topic: &str, offset: i64) -> DeleteRecordsRequest {
    let partition = message!(delete_records_request::DeleteRecordsPartition {
        partition_index: 0,
        offset
    });
    let topic = message!(delete_records_request::DeleteRecordsTopic {
        name: topic.into(),
        partitions: vec![partition]
    });
    message!(DeleteRecordsRequest {
        topics: vec![topic],
        timeout_ms: 30_000
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_30_the_next_leader_knows_what_was_deleted() {
    let mut members = Member::found(3).await;
    members[0].create("cut", &[&[1, 2, 3]]).await;
    for _ in 0..4 {
        let request = produce_to("cut", 0, 10);
        let answer = produced(&mut connect(&members[0]).await, &request).await;
        assert_eq!(answer[0].error_code, 0);
    }
    let elsewhere = ask(&mut connect(&members[1]).await, &cut("cut", 3), 2).await;
    let refused = elsewhere.topics[0].partitions[0].error_code;
    assert_eq!(refused, ErrorCode::NotLeaderOrFollower.code());
    let done = ask(&mut connect(&members[0]).await, &cut("cut", 3), 2).await;
    let done = &done.topics[0].partitions[0];
    assert_eq!((done.error_code, done.low_watermark), (0, 3));

    members[0].kill();
    // Who is named first need not be who is elected.
    let start = async || {
        let leader = members[1].describe("cut").await[0].0;
        let at = members
            .iter()
            .zip(1..)
            .find(|(_, id)| *id == leader && leader != 1)?;
        let mut socket = connect(at.0).await;
        let fetched = ask(&mut socket, &fetch("cut", 4, 0, 0), FETCH_VERSION).await;
        let partition = &fetched.responses[0].partitions[0];
        Some((partition.error_code, partition.log_start_offset))
    };
    until_seen("it begins there", start, |seen| *seen == Some((0, 3))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_holds_nothing_is_unregistered() {
    let members = Member::found(4).await;
    members[0].create("held", &[&[1, 2, 3]]).await;
    let unregister = |id| message!(UnregisterBrokerRequest { broker_id: id });
    let needed = ask(&mut connect(&members[0]).await, &unregister(3), 0).await;
    assert_eq!(needed.error_code, ErrorCode::PolicyViolation.code());
    let done = async || {
        let mut socket = connect(&members[0]).await;
        ask(&mut socket, &unregister(4), 0).await.error_code
    };
    let gone = [ErrorCode::None, ErrorCode::BrokerIdNotRegistered].map(ErrorCode::code);
    until_seen("it is forgotten", done, |code| gone.contains(code)).await;
    assert_eq!(members[0].brokers().await, [1, 2, 3]);
}

/// Found by reading: a replica that did not lead kept its files until it did.
#[tokio::test(flavor = "multi_thread")]
async fn old_segments_go_from_every_replica_not_from_the_leaders_alone() {
    let members = Member::found(3).await;
    let configs = [("segment.bytes", "16384"), ("retention.bytes", "40000")];
    members[0]
        .create_with("short", &[&[1, 2, 3]], &configs)
        .await;
    let id = members[0].topic_id("short").await;
    let mut socket = connect(&members[0]).await;
    for _ in 0..30 {
        let answers = produced(&mut socket, &produce_to("short", 0, 12_000)).await;
        assert_eq!(answers[0].error_code, 0, "{:?}", answers[0].error_message);
    }
    for member in &members {
        let segments = async || member.segments_of(&id);
        until_seen("few segments are left", segments, |n| (1..10).contains(n)).await;
    }
}
