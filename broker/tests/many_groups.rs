//! Ten thousand groups at once: all are listed, described and read, survive SIGKILL, and are deleted.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use bytes::Bytes;
use common::requests::*;
use common::{Broker, PATIENCE};
use futures_util::future::join_all;
use logd_proto::ErrorCode;
use logd_proto::api::{decode_response, encode_request};
use logd_proto::message;
use logd_proto::messages::*;
use std::collections::BTreeMap;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TOPIC: &str = "many-groups";
const GROUPS: usize = 10_000;
/// The first of them have a member each; the others only keep offsets.
const WITH_MEMBER: usize = 300;
const CONNECTIONS: usize = 50;
const ASSIGNMENT: &[u8] = b"partition 0, to whom it may concern";

fn name(index: usize) -> String {
    format!("group-{index:05}")
}

/// Where its group has read to.
fn offset(index: usize) -> i64 {
    index as i64 + 1
}

/// Sends all requests without waiting for answers, and gives the answers, which come in order.
async fn ask_all<R: RequestResponsePair>(
    socket: &mut TcpStream,
    requests: impl IntoIterator<Item = R>,
    version: i16,
) -> Vec<R::Response> {
    let mut frames = Vec::new();
    let mut count = 0;
    for request in requests {
        let frame = encode_request(&request, version, 7, Some("many")).expect("it encodes");
        frames.extend_from_slice(&frame.to_bytes());
        count += 1;
    }
    let (mut reader, mut writer) = socket.split();
    let sending = async { writer.write_all(&frames).await.expect("sent") };
    let reading = async {
        let mut answers = Vec::with_capacity(count);
        for _ in 0..count {
            let size = reader.read_u32().await.expect("an answer");
            let mut answer = vec![0; size as usize];
            reader.read_exact(&mut answer).await.expect("all of it");
            let answer = decode_response::<R>(Bytes::from(answer), version);
            answers.push(answer.expect("it decodes").1);
        }
        answers
    };
    let both = async { tokio::join!(sending, reading).1 };
    let both = tokio::time::timeout(PATIENCE, both).await;
    both.expect("everything is answered in time")
}

fn commit(index: usize) -> OffsetCommitRequest {
    let partition = message!(offset_commit_request::OffsetCommitRequestPartition {
        committed_offset: offset(index),
        committed_metadata: Some("a note".into())
    });
    let topic = message!(offset_commit_request::OffsetCommitRequestTopic {
        name: TOPIC.into(),
        partitions: vec![partition]
    });
    message!(OffsetCommitRequest {
        group_id: name(index).as_str().into(),
        generation_id_or_member_epoch: -1,
        topics: vec![topic]
    })
}

fn join(index: usize) -> JoinGroupRequest {
    let protocol = message!(join_group_request::JoinGroupRequestProtocol {
        name: "range".into()
    });
    message!(JoinGroupRequest {
        group_id: name(index).as_str().into(),
        session_timeout_ms: 300_000,
        rebalance_timeout_ms: 300_000,
        protocol_type: "consumer".into(),
        protocols: vec![protocol]
    })
}

fn sync(index: usize, joined: &JoinGroupResponse) -> SyncGroupRequest {
    assert_eq!(joined.error_code, 0, "joining {}", name(index));
    let assignment = message!(sync_group_request::SyncGroupRequestAssignment {
        member_id: joined.member_id.clone(),
        assignment: Bytes::from_static(ASSIGNMENT)
    });
    message!(SyncGroupRequest {
        group_id: name(index).as_str().into(),
        generation_id: joined.generation_id,
        member_id: joined.member_id.clone(),
        assignments: vec![assignment]
    })
}

/// The commits of every group, by many connections at once: one may have only few requests in flight.
async fn commit_all(broker: &Broker) {
    let shares = (0..CONNECTIONS).map(async |first| {
        let mut socket = broker.connect().await;
        let share = (first..GROUPS).step_by(CONNECTIONS);
        ask_all(&mut socket, share.map(commit), 8).await
    });
    for answer in join_all(shares).await.into_iter().flatten() {
        assert_eq!(answer.topics[0].partitions[0].error_code, 0);
    }
}

/// Makes all groups, and gives the ids of those members that there are.
async fn make(broker: &Broker, socket: &mut TcpStream) -> Vec<JoinGroupResponse> {
    commit_all(broker).await;
    let joined = ask_all(socket, (0..WITH_MEMBER).map(join), 3).await;
    let syncs = joined.iter().enumerate().map(|(i, j)| sync(i, j));
    for synced in ask_all(socket, syncs, 2).await {
        assert_eq!((synced.error_code, &synced.assignment[..]), (0, ASSIGNMENT));
    }
    joined
}

/// Groups and their states; waits while they are loaded.
async fn list(socket: &mut TcpStream, states: &[&str], types: &[&str]) -> BTreeMap<String, String> {
    let request = message!(ListGroupsRequest {
        states_filter: states.iter().map(|s| (*s).into()).collect(),
        types_filter: types.iter().map(|t| (*t).into()).collect()
    });
    let begun = Instant::now();
    let listed = loop {
        let listed = ask(socket, &request, 5).await;
        if listed.error_code != ErrorCode::CoordinatorLoadInProgress.code() {
            break listed;
        }
        assert!(begun.elapsed() < PATIENCE, "groups are still loaded");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(listed.error_code, 0);
    let rows = listed.groups.iter();
    rows.map(|g| (g.group_id.to_string(), g.group_state.to_string()))
        .collect()
}

/// What the list must be.
fn everything() -> BTreeMap<String, String> {
    let state = |index| match index < WITH_MEMBER {
        true => "Stable",
        false => "Empty",
    };
    (0..GROUPS)
        .map(|index| (name(index), state(index).into()))
        .collect()
}

async fn is_all_there(socket: &mut TcpStream) {
    assert_eq!(list(socket, &[], &[]).await, everything());
    let names = || (0..GROUPS).map(name);
    let request = message!(DescribeGroupsRequest {
        groups: names().map(|n| n.as_str().into()).collect()
    });
    let described = ask(socket, &request, 5).await.groups;
    assert_eq!(described.len(), GROUPS);
    for (index, group) in described.iter().enumerate() {
        assert_eq!((group.error_code, &*group.group_id), (0, &*name(index)));
        let shares: Vec<_> = group
            .members
            .iter()
            .map(|m| &m.member_assignment[..])
            .collect();
        let expected: &[&[u8]] = if index < WITH_MEMBER {
            &[ASSIGNMENT]
        } else {
            &[]
        };
        assert_eq!(shares, expected, "the members of {}", name(index));
    }
    let wanted = names().map(|n| {
        message!(offset_fetch_request::OffsetFetchRequestGroup {
            group_id: n.as_str().into(),
            topics: None
        })
    });
    let request = message!(OffsetFetchRequest {
        groups: wanted.collect()
    });
    let fetched = ask(socket, &request, 8).await.groups;
    assert_eq!(fetched.len(), GROUPS);
    for (index, group) in fetched.iter().enumerate() {
        let kept = &group.topics[0].partitions[0];
        assert_eq!(
            (group.error_code, kept.committed_offset),
            (0, offset(index))
        );
        assert_eq!(kept.metadata.as_deref(), Some("a note"));
    }
}

/// Asks for the deletion of all; those that were not deleted, and why.
async fn delete_all(socket: &mut TcpStream) -> BTreeMap<String, i16> {
    let names = (0..GROUPS).map(|index| name(index).as_str().into());
    let request = message!(DeleteGroupsRequest {
        groups_names: names.collect()
    });
    let results = ask(socket, &request, 2).await.results;
    assert_eq!(results.len(), GROUPS);
    let kept = results.into_iter().filter(|r| r.error_code != 0);
    kept.map(|r| (r.group_id.to_string(), r.error_code))
        .collect()
}

#[tokio::test]
async fn ten_thousand_groups_are_listed_survive_a_crash_and_are_deleted() {
    let mut broker = Broker::start_with(&[("LOGD_GROUP__INITIAL_REBALANCE_DELAY_MS", "0")]);
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 1, &[]).await;
    let locate = message!(FindCoordinatorRequest { key: "g".into() });
    assert_eq!(ask(&mut socket, &locate, 3).await.error_code, 0);
    let members = make(&broker, &mut socket).await;
    is_all_there(&mut socket).await;
    let count = async |socket: &mut TcpStream, states: &[&str], types: &[&str]| {
        list(socket, states, types).await.len()
    };
    assert_eq!(count(&mut socket, &["stable"], &[]).await, WITH_MEMBER);
    assert_eq!(
        count(&mut socket, &["Empty"], &["classic"]).await,
        GROUPS - WITH_MEMBER
    );
    assert_eq!(count(&mut socket, &["Stable", "Empty"], &[]).await, GROUPS);
    assert_eq!(count(&mut socket, &["Dead"], &[]).await, 0);
    assert_eq!(count(&mut socket, &[], &["consumer"]).await, 0);

    broker.kill_and_restart();
    let mut socket = broker.connect().await;
    is_all_there(&mut socket).await;

    let kept = delete_all(&mut socket).await;
    let occupied: Vec<_> = (0..WITH_MEMBER).map(name).collect();
    assert!(
        kept.keys().eq(&occupied),
        "deleted, or not, in spite of members"
    );
    assert!(
        kept.values()
            .all(|code| *code == ErrorCode::NonEmptyGroup.code())
    );
    let leaves = members.iter().enumerate().map(|(index, joined)| {
        message!(LeaveGroupRequest {
            group_id: name(index).as_str().into(),
            member_id: joined.member_id.clone()
        })
    });
    let left = ask_all(&mut socket, leaves, 2).await;
    assert!(left.iter().all(|answer| answer.error_code == 0));
    let kept = delete_all(&mut socket).await;
    let gone = ErrorCode::GroupIdNotFound.code();
    assert!(
        kept.values().all(|code| *code == gone),
        "the others were gone"
    );
    assert_eq!(kept.len(), GROUPS - WITH_MEMBER);
    assert!(list(&mut socket, &[], &[]).await.is_empty());

    broker.kill_and_restart();
    let mut socket = broker.connect().await;
    assert!(
        list(&mut socket, &[], &[]).await.is_empty(),
        "deleted groups came back"
    );
}
