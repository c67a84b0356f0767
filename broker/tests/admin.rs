//! What administrators' tools ask of a broker about partitions, records and groups.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::Broker;
use common::requests::*;
use logd_proto::ErrorCode;
use logd_proto::message;
use logd_proto::messages::*;
use tokio::net::TcpStream;

fn more(
    topic: &str,
    count: i32,
    assignments: Option<&[&[i32]]>,
) -> create_partitions_request::CreatePartitionsTopic {
    let assignment = |replicas: &&[i32]| {
        message!(create_partitions_request::CreatePartitionsAssignment {
            broker_ids: replicas.to_vec()
        })
    };
    message!(create_partitions_request::CreatePartitionsTopic {
        name: topic.into(),
        count,
        assignments: assignments.map(|all| all.iter().map(assignment).collect()),
    })
}

/// The codes, in the order of the topics.
async fn grow(
    socket: &mut TcpStream,
    topics: Vec<create_partitions_request::CreatePartitionsTopic>,
    validate_only: bool,
) -> Vec<i16> {
    let request = message!(CreatePartitionsRequest {
        topics,
        timeout_ms: 30_000,
        validate_only,
    });
    let answer = ask(socket, &request, 3).await;
    answer.results.iter().map(|r| r.error_code).collect()
}

async fn partitions(socket: &mut TcpStream, topic: &str) -> usize {
    let wanted = message!(metadata_request::MetadataRequestTopic {
        name: Some(topic.into())
    });
    let request = message!(MetadataRequest {
        topics: Some(vec![wanted])
    });
    ask(socket, &request, 7).await.topics[0].partitions.len()
}

#[tokio::test]
async fn trap_35_a_topic_grows_and_its_new_partitions_serve_when_the_answer_comes() {
    let mut broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "grows", 1, &[]).await;
    let wanted = vec![more("grows", 3, None)];
    assert_eq!(grow(&mut socket, wanted.clone(), true).await, [0]);
    assert_eq!(partitions(&mut socket, "grows").await, 1, "validated only");
    assert_eq!(grow(&mut socket, wanted, false).await, [0]);
    let request = produce("grows", -1, 30_000, vec![batch(1), batch(1), batch(1)]);
    let codes = produced(&mut socket, &request).await;
    assert!(codes.iter().all(|p| p.error_code == 0), "{codes:?}");

    broker.kill_and_restart();
    let mut socket = broker.connect().await;
    assert_eq!(partitions(&mut socket, "grows").await, 3);
    let again = produced(&mut socket, &request).await;
    assert!(again.iter().all(|p| p.base_offset == 1), "{again:?}");
}

#[tokio::test]
async fn trap_35_partitions_are_answered_topic_by_topic() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    for topic in ["a", "b", "c", "d", "e", "f", "g"] {
        create(&mut socket, topic, 2, &[]).await;
    }
    let wanted = vec![
        more("a", 3, Some(&[&[1]])),
        more("b", 2, None),
        more("c", 1, None),
        more("d", 4, Some(&[&[1]])),
        more("e", 3, Some(&[&[9]])),
        more("f", 3, Some(&[&[1, 1]])),
        more("g", 3, None),
        more("g", 4, None),
        more("nobody", 3, None),
    ];
    let codes = grow(&mut socket, wanted, false).await;
    let expected = [
        ErrorCode::None,
        ErrorCode::InvalidPartitions,
        ErrorCode::InvalidPartitions,
        ErrorCode::InvalidReplicaAssignment,
        ErrorCode::InvalidReplicaAssignment,
        ErrorCode::InvalidReplicaAssignment,
        ErrorCode::InvalidRequest,
        ErrorCode::InvalidRequest,
        ErrorCode::UnknownTopicOrPartition,
    ];
    assert_eq!(codes, expected.map(ErrorCode::code));
    assert_eq!(partitions(&mut socket, "a").await, 3);
    assert_eq!(partitions(&mut socket, "g").await, 2);
}
