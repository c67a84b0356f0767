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

async fn delete_records(
    socket: &mut TcpStream,
    topic: &str,
    wanted: &[(i32, i64)],
) -> Vec<(i16, i64)> {
    delete_records_within(socket, topic, wanted, 30_000).await
}

async fn delete_records_within(
    socket: &mut TcpStream,
    topic: &str,
    wanted: &[(i32, i64)],
    timeout_ms: i32,
) -> Vec<(i16, i64)> {
    let partition = |(index, offset): &(i32, i64)| {
        message!(delete_records_request::DeleteRecordsPartition {
            partition_index: *index,
            offset: *offset
        })
    };
    let topic = message!(delete_records_request::DeleteRecordsTopic {
        name: topic.into(),
        partitions: wanted.iter().map(partition).collect()
    });
    let request = message!(DeleteRecordsRequest {
        topics: vec![topic],
        timeout_ms
    });
    let mut answer = ask(socket, &request, 2).await;
    let partitions = answer.topics.remove(0).partitions.into_iter();
    partitions
        .map(|p| (p.error_code, p.low_watermark))
        .collect()
}

async fn earliest(socket: &mut TcpStream, topic: &str) -> i64 {
    listed(socket, topic, -2, 5).await.offset
}

#[tokio::test]
async fn trap_30_deleted_records_are_gone_for_every_client_and_after_a_restart() {
    let mut broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "cut", 1, &[]).await;
    for _ in 0..5 {
        let request = produce("cut", -1, 30_000, vec![batch(1)]);
        assert_eq!(produced(&mut socket, &request).await[0].error_code, 0);
    }
    assert_eq!(
        delete_records(&mut socket, "cut", &[(0, 3)]).await,
        [(0, 3)]
    );
    // Further back is gone already, which is what was wanted.
    assert_eq!(
        delete_records(&mut socket, "cut", &[(0, 2)]).await,
        [(0, 3)]
    );
    for _ in 0..2 {
        assert_eq!(earliest(&mut socket, "cut").await, 3);
        for (offset, code) in [(2, ErrorCode::OffsetOutOfRange), (3, ErrorCode::None)] {
            let fetched = ask(&mut socket, &fetch("cut", offset, 0, 0), FETCH_VERSION).await;
            let partition = &fetched.responses[0].partitions[0];
            assert_eq!(partition.error_code, code.code(), "offset {offset}");
        }
        broker.kill_and_restart();
        socket = broker.connect().await;
    }
    assert_eq!(
        delete_records(&mut socket, "cut", &[(0, -1)]).await,
        [(0, 5)]
    );
    assert_eq!(earliest(&mut socket, "cut").await, 5);
}

/// librdkafka's 0081 asks with a timeout of 0, and Kafka obliges.
#[tokio::test]
async fn records_are_deleted_for_a_client_that_has_no_time() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "cut", 1, &[]).await;
    let request = produce("cut", -1, 30_000, vec![batch(1)]);
    assert_eq!(produced(&mut socket, &request).await[0].error_code, 0);
    let deleted = delete_records_within(&mut socket, "cut", &[(0, 1)], 0).await;
    assert_eq!(deleted, [(0, 1)]);
    assert_eq!(earliest(&mut socket, "cut").await, 1);
}

#[tokio::test]
async fn trap_30_what_cannot_be_deleted_is_said_partition_by_partition() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "kept", 1, &[]).await;
    create(
        &mut socket,
        "compacted",
        1,
        &[("cleanup.policy", "compact")],
    )
    .await;
    let wanted = [(0, 0), (0, 1), (0, -2), (7, 0)];
    let codes = delete_records(&mut socket, "kept", &wanted).await;
    let out_of_range = (ErrorCode::OffsetOutOfRange.code(), -1);
    let unknown = (ErrorCode::UnknownTopicOrPartition.code(), -1);
    assert_eq!(codes, [(0, 0), out_of_range, out_of_range, unknown]);
    let compacted = delete_records(&mut socket, "compacted", &[(0, -1)]).await;
    assert_eq!(compacted, [(ErrorCode::PolicyViolation.code(), -1)]);
    assert_eq!(
        delete_records(&mut socket, "nobody", &[(0, 0)]).await,
        [unknown]
    );

    let find = message!(FindCoordinatorRequest { key: "g".into() });
    ask(&mut socket, &find, 3).await;
    let own = delete_records(&mut socket, "__consumer_offsets", &[(0, -1)]).await;
    assert_eq!(own, [(ErrorCode::InvalidTopic.code(), -1)]);
}

/// Commits an offset of a group without members, once its coordinator is there.
async fn commit(socket: &mut TcpStream, group: &str, topic: &str) {
    let find = message!(FindCoordinatorRequest { key: group.into() });
    assert_eq!(ask(socket, &find, 3).await.error_code, 0);
    let partition = message!(offset_commit_request::OffsetCommitRequestPartition {
        partition_index: 0,
        committed_offset: 3
    });
    let topic = message!(offset_commit_request::OffsetCommitRequestTopic {
        name: topic.into(),
        partitions: vec![partition]
    });
    let request = message!(OffsetCommitRequest {
        group_id: group.into(),
        generation_id_or_member_epoch: -1,
        topics: vec![topic]
    });
    let answer = ask(socket, &request, 8).await;
    assert_eq!(answer.topics[0].partitions[0].error_code, 0);
}

async fn committed(socket: &mut TcpStream, group: &str) -> Vec<String> {
    let request = message!(OffsetFetchRequest {
        group_id: group.into(),
        topics: None
    });
    let answer = ask(socket, &request, 7).await;
    answer.topics.iter().map(|t| t.name.to_string()).collect()
}

/// A member that has joined and stays for as long as its session lasts.
async fn join(socket: &mut TcpStream, group: &str, topics: &[&str]) {
    let subscription = {
        // Version 0, topics, no user data.
        let mut bytes = vec![0, 0];
        bytes.extend((topics.len() as u32).to_be_bytes());
        for topic in topics {
            bytes.extend((topic.len() as u16).to_be_bytes());
            bytes.extend(topic.as_bytes());
        }
        bytes.extend((-1i32).to_be_bytes());
        bytes
    };
    let protocol = message!(join_group_request::JoinGroupRequestProtocol {
        name: "range".into(),
        metadata: subscription.into()
    });
    let join = message!(JoinGroupRequest {
        group_id: group.into(),
        session_timeout_ms: 60_000,
        rebalance_timeout_ms: 60_000,
        protocol_type: "consumer".into(),
        protocols: vec![protocol]
    });
    let joined = ask(socket, &join, 3).await;
    assert_eq!(joined.error_code, 0);
    let sync = message!(SyncGroupRequest {
        group_id: group.into(),
        generation_id: joined.generation_id,
        member_id: joined.member_id.clone(),
        assignments: vec![message!(sync_group_request::SyncGroupRequestAssignment {
            member_id: joined.member_id,
            assignment: vec![0, 0].into()
        })]
    });
    assert_eq!(ask(socket, &sync, 3).await.error_code, 0);
}

const QUICK_GROUPS: &[(&str, &str)] = &[("LOGD_GROUP__INITIAL_REBALANCE_DELAY_MS", "0")];

async fn delete_groups(socket: &mut TcpStream, groups: &[&str]) -> Vec<i16> {
    let request = message!(DeleteGroupsRequest {
        groups_names: groups.iter().map(|g| (*g).into()).collect()
    });
    let answer = ask(socket, &request, 2).await;
    answer.results.iter().map(|r| r.error_code).collect()
}

async fn delete_offsets(socket: &mut TcpStream, group: &str, topics: &[&str]) -> (i16, Vec<i16>) {
    let topic = |name: &&str| {
        message!(offset_delete_request::OffsetDeleteRequestTopic {
            name: (*name).into(),
            partitions: vec![message!(
                offset_delete_request::OffsetDeleteRequestPartition { partition_index: 0 }
            )]
        })
    };
    let request = message!(OffsetDeleteRequest {
        group_id: group.into(),
        topics: topics.iter().map(topic).collect()
    });
    let answer = ask(socket, &request, 0).await;
    let partitions = answer.topics.iter().flat_map(|t| &t.partitions);
    let codes = partitions.map(|p| p.error_code).collect();
    (answer.error_code, codes)
}

#[tokio::test]
async fn groups_without_members_are_deleted_for_good_and_others_are_not() {
    let mut broker = Broker::start_with(QUICK_GROUPS);
    let mut socket = broker.connect().await;
    create(&mut socket, "read", 1, &[]).await;
    commit(&mut socket, "gone", "read").await;
    commit(&mut socket, "busy", "read").await;
    join(&mut socket, "busy", &["read"]).await;
    let codes = delete_groups(&mut socket, &["gone", "busy", "nobody"]).await;
    let expected = [
        ErrorCode::None,
        ErrorCode::NonEmptyGroup,
        ErrorCode::GroupIdNotFound,
    ];
    assert_eq!(codes, expected.map(ErrorCode::code));
    broker.kill_and_restart();
    let mut socket = broker.connect().await;
    assert_eq!(committed(&mut socket, "gone").await, [""; 0]);
    assert_eq!(committed(&mut socket, "busy").await, ["read"]);
}

#[tokio::test]
async fn offsets_are_deleted_unless_the_group_reads_the_topic() {
    let broker = Broker::start_with(QUICK_GROUPS);
    let mut socket = broker.connect().await;
    for topic in ["read", "left"] {
        create(&mut socket, topic, 1, &[]).await;
        commit(&mut socket, "g", topic).await;
    }
    join(&mut socket, "g", &["read"]).await;
    let deleted = delete_offsets(&mut socket, "g", &["nobody", "read", "left"]).await;
    let codes = [
        ErrorCode::UnknownTopicOrPartition,
        ErrorCode::GroupSubscribedToTopic,
        ErrorCode::None,
    ];
    assert_eq!(deleted, (0, codes.map(ErrorCode::code).to_vec()));
    assert_eq!(committed(&mut socket, "g").await, ["read"]);
    let absent = delete_offsets(&mut socket, "absent", &["read"]).await;
    assert_eq!(absent, (ErrorCode::GroupIdNotFound.code(), vec![]));
}

#[tokio::test]
async fn groups_are_listed_by_state_and_by_type() {
    let broker = Broker::start_with(QUICK_GROUPS);
    let mut socket = broker.connect().await;
    create(&mut socket, "read", 1, &[]).await;
    commit(&mut socket, "empty", "read").await;
    commit(&mut socket, "busy", "read").await;
    join(&mut socket, "busy", &["read"]).await;
    for (states, types, expected) in [
        (vec![], vec![], vec!["busy", "empty"]),
        (vec!["Stable"], vec![], vec!["busy"]),
        (vec!["empty", "Stable"], vec![], vec!["busy", "empty"]),
        (vec!["Dead"], vec![], vec![]),
        (vec![], vec!["Classic"], vec!["busy", "empty"]),
        (vec!["Empty"], vec!["classic"], vec!["empty"]),
        (vec![], vec!["consumer"], vec![]),
    ] {
        let request = message!(ListGroupsRequest {
            states_filter: states.iter().map(|s| (*s).into()).collect(),
            types_filter: types.iter().map(|t| (*t).into()).collect()
        });
        let listed = ask(&mut socket, &request, 5).await;
        let ids: Vec<&str> = listed.groups.iter().map(|g| g.group_id.as_str()).collect();
        assert_eq!(ids, expected, "{states:?} {types:?}");
    }
}
