//! What re-implementations of Fetch and its relatives get wrong, asked of a real broker. The numbers are
//! those of the table in `trap_table.rs`.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use bytes::Bytes;
use common::Broker;
use common::members::{Member, until_seen};
use common::requests::*;
use logd_proto::messages::*;
use logd_proto::record_batch::BatchBuilder;
use logd_proto::{ErrorCode, Uuid, message};
use std::time::Instant;
use tokio::net::TcpStream;

const TOPIC: &str = "traps";
const LONG_MS: i32 = 20_000;

/// One batch of so many records, of which each has so many bytes.
fn records(count: usize, bytes: usize) -> Bytes {
    let mut batch = BatchBuilder::new();
    let value = vec![b'x'; bytes];
    for n in 0..count {
        batch
            .push(1_000 + n as i64, None, Some(&value), &[])
            .expect("it fits");
    }
    batch.build().expect("it builds")
}

async fn fill(socket: &mut TcpStream, batches: Vec<Bytes>) {
    for answer in produced(socket, &produce(TOPIC, -1, 30_000, batches)).await {
        assert_eq!(answer.error_code, 0, "{:?}", answer.error_message);
    }
}

/// A broker with a topic of two partitions that hold these batches each.
async fn with(batches: Vec<Bytes>) -> (Broker, TcpStream) {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 2, &[]).await;
    for batch in batches {
        fill(&mut socket, vec![batch.clone(), batch]).await;
    }
    (broker, socket)
}

struct Want {
    offset: i64,
    epoch: i32,
    max_bytes: i32,
}

const START: Want = Want {
    offset: 0,
    epoch: -1,
    max_bytes: 1 << 20,
};

/// A fetch of as many partitions, from the first on.
fn wanting(wants: &[Want], max_bytes: i32) -> FetchRequest {
    let partitions = wants.iter().zip(0..).map(|(want, partition)| {
        message!(fetch_request::FetchPartition {
            partition,
            fetch_offset: want.offset,
            current_leader_epoch: want.epoch,
            partition_max_bytes: want.max_bytes
        })
    });
    let topic = message!(fetch_request::FetchTopic {
        topic: TOPIC.into(),
        partitions: partitions.collect()
    });
    message!(FetchRequest {
        replica_id: -1,
        min_bytes: 1,
        max_bytes,
        session_epoch: -1,
        topics: vec![topic]
    })
}

async fn fetched(
    socket: &mut TcpStream,
    request: &FetchRequest,
) -> Vec<fetch_response::PartitionData> {
    let mut answer = ask(socket, request, FETCH_VERSION).await;
    assert_eq!(answer.error_code, 0);
    answer.responses.remove(0).partitions
}

async fn fetch_one(socket: &mut TcpStream, want: Want) -> fetch_response::PartitionData {
    fetched(socket, &wanting(&[want], 1 << 20)).await.remove(0)
}

fn bytes(p: &fetch_response::PartitionData) -> usize {
    p.records.as_ref().map_or(0, Bytes::len)
}

fn base_offset(p: &fetch_response::PartitionData) -> i64 {
    let records = p.records.as_ref().expect("records");
    i64::from_be_bytes(records[..8].try_into().expect("a header"))
}

#[tokio::test]
async fn trap_08_a_fetch_gives_the_whole_batch_that_holds_the_offset() {
    let (_broker, mut socket) = with(vec![records(10, 5), records(10, 5)]).await;
    for (offset, base) in [(0, 0), (7, 0), (9, 0), (10, 10), (19, 10)] {
        let answer = fetch_one(&mut socket, Want { offset, ..START }).await;
        assert_eq!(
            (answer.error_code, base_offset(&answer)),
            (0, base),
            "at {offset}"
        );
    }
    let end = fetch_one(
        &mut socket,
        Want {
            offset: 20,
            ..START
        },
    )
    .await;
    assert_eq!(
        (end.error_code, bytes(&end), end.high_watermark),
        (0, 0, 20)
    );
    for offset in [-1, 21, i64::MAX] {
        let outside = fetch_one(&mut socket, Want { offset, ..START }).await;
        assert_eq!(
            outside.error_code,
            ErrorCode::OffsetOutOfRange.code(),
            "at {offset}"
        );
    }
}

#[tokio::test]
async fn trap_09_only_the_first_batch_of_an_answer_may_exceed_its_limits() {
    let (_broker, mut socket) = with(vec![records(1, 10_000)]).await;
    let small = || Want {
        max_bytes: 100,
        ..START
    };
    // By the partition's limit: the first comes whole, or nobody would ever get it; the second does not.
    let answers = fetched(&mut socket, &wanting(&[small(), small()], 1 << 20)).await;
    assert!(bytes(&answers[0]) > 10_000);
    assert_eq!(bytes(&answers[1]), 0);
    assert_eq!(
        answers[1].high_watermark, 1,
        "what it could not send it tells of"
    );
    // By the answer's limit.
    let answers = fetched(&mut socket, &wanting(&[START, START], 100)).await;
    assert_eq!((bytes(&answers[0]) > 10_000, bytes(&answers[1])), (true, 0));
    let answers = fetched(&mut socket, &wanting(&[START, START], 1 << 20)).await;
    assert!(answers.iter().all(|a| bytes(a) > 10_000));
    // Partitions come in the order of the request, and the first that has something is the first.
    let past = Want { offset: 1, ..START };
    let answers = fetched(&mut socket, &wanting(&[past, small()], 100)).await;
    assert_eq!((bytes(&answers[0]), bytes(&answers[1]) > 10_000), (0, true));
}

/// Whether a request that may wait for a long time was answered at once.
async fn at_once(socket: &mut TcpStream, mut request: FetchRequest) -> bool {
    // An order of magnitude between the two: no clock decides, only whether the broker waited.
    request.max_wait_ms = LONG_MS;
    let begun = Instant::now();
    ask(socket, &request, FETCH_VERSION).await;
    begun.elapsed().as_millis() < LONG_MS as u128 / 2
}

#[tokio::test]
async fn trap_10_a_fetch_is_answered_at_once_if_waiting_would_bring_nothing() {
    let (broker, mut socket) = with(vec![records(1, 100)]).await;
    let end = || Want { offset: 1, ..START };
    assert!(
        at_once(&mut socket, wanting(&[START], 1 << 20)).await,
        "enough"
    );
    assert!(
        at_once(&mut socket, wanting(&[], 1 << 20)).await,
        "no partition"
    );
    let outside = Want {
        offset: 99,
        ..START
    };
    assert!(
        at_once(&mut socket, wanting(&[end(), outside], 1 << 20)).await,
        "an error"
    );
    let mut patient = wanting(&[end()], 1 << 20);
    patient.max_wait_ms = 0;
    let answers = fetched(&mut socket, &patient).await;
    assert_eq!(
        (answers[0].error_code, bytes(&answers[0])),
        (0, 0),
        "no wait"
    );
    // Too little: it waits for what is committed later, and counts what it waited.
    patient.max_wait_ms = LONG_MS;
    let mut reader = broker.connect().await;
    let reading = tokio::spawn(async move { fetched(&mut reader, &patient).await });
    until_seen(
        "the fetch has come",
        async || broker.metric("logd_kafka_connections "),
        |open| *open >= 2.0,
    )
    .await;
    fill(&mut socket, vec![records(1, 100)]).await;
    let answers = reading.await.expect("an answer");
    assert_eq!(base_offset(&answers[0]), 1);
}

#[tokio::test]
async fn trap_11_a_session_is_opened_goes_on_and_is_closed_by_a_real_broker() {
    let (_broker, mut socket) = with(vec![records(1, 10)]).await;
    let in_session = |mut request: FetchRequest, id, epoch| {
        (request.session_id, request.session_epoch) = (id, epoch);
        request
    };
    let both = || wanting(&[START, START], 1 << 20);
    let opened = ask(&mut socket, &in_session(both(), 0, 0), FETCH_VERSION).await;
    let id = opened.session_id;
    assert!(id > 0);
    assert_eq!(opened.responses[0].partitions.len(), 2);
    // Both go on behind what they got: nothing is new.
    let past = || Want { offset: 1, ..START };
    let mut behind = wanting(&[past(), past()], 1 << 20);
    behind.max_wait_ms = 1;
    let nothing = ask(&mut socket, &in_session(behind, id, 1), FETCH_VERSION).await;
    assert_eq!((nothing.error_code, nothing.session_id), (0, id));
    assert!(nothing.responses.is_empty());
    fill(&mut socket, vec![records(1, 10)]).await;
    let mut none = wanting(&[], 1 << 20);
    none.topics.clear();
    let news = ask(&mut socket, &in_session(none.clone(), id, 2), FETCH_VERSION).await;
    assert_eq!(news.responses.len(), 1);
    assert_eq!(
        news.responses[0].partitions.len(),
        1,
        "the other has nothing new"
    );
    for (epoch, version, code) in [
        (9, FETCH_VERSION, ErrorCode::InvalidFetchSessionEpoch),
        (3, 13, ErrorCode::FetchSessionTopicIdError),
    ] {
        let refused = ask(&mut socket, &in_session(none.clone(), id, epoch), version).await;
        assert_eq!((refused.error_code, refused.session_id), (code.code(), 0));
    }
    let closed = ask(&mut socket, &in_session(both(), id, -1), FETCH_VERSION).await;
    assert_eq!(
        (closed.session_id, closed.responses[0].partitions.len()),
        (0, 2)
    );
    let after = ask(&mut socket, &in_session(none, id, 3), FETCH_VERSION).await;
    assert_eq!(after.error_code, ErrorCode::FetchSessionIdNotFound.code());
    // A client from before sessions has none.
    let old = ask(&mut socket, &wanting(&[START], 1 << 20), 6).await;
    assert_eq!(old.responses[0].partitions.len(), 1);
}

async fn epoch_of(socket: &mut TcpStream) -> i32 {
    listed(socket, TOPIC, -1, 7).await.leader_epoch
}

#[tokio::test]
async fn trap_14_a_leader_epoch_of_the_past_is_fenced_and_one_of_the_future_unknown() {
    let (mut broker, socket) = with(vec![records(1, 10)]).await;
    // A restarted leader begins a new epoch.
    drop(socket);
    broker.kill_and_restart();
    let mut socket = broker.connect().await;
    let current = epoch_of(&mut socket).await;
    assert!(current > 1);
    for (epoch, code) in [
        (-1, ErrorCode::None),
        (current, ErrorCode::None),
        (current - 1, ErrorCode::FencedLeaderEpoch),
        (current + 1, ErrorCode::UnknownLeaderEpoch),
    ] {
        let answer = fetch_one(&mut socket, Want { epoch, ..START }).await;
        assert_eq!(answer.error_code, code.code(), "epoch {epoch}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_14_whoever_asks_a_broker_that_does_not_lead_is_told_who_does_and_where() {
    let members = Member::found(3).await;
    members[0].create(TOPIC, &[&[1, 2, 3]]).await;
    until_seen(
        "the first leads, and all keep up",
        || members[2].describe(TOPIC),
        |all| all[0].0 == 1 && all[0].2.len() == 3,
    )
    .await;
    let not_leader = ErrorCode::NotLeaderOrFollower.code();
    let leads_at = i32::from(members[0].kafka.port());
    let mut socket = TcpStream::connect(members[2].kafka)
        .await
        .expect("it accepts");
    let answer = ask(&mut socket, &produce(TOPIC, -1, 30_000, vec![batch(1)]), 10).await;
    let partition = &answer.responses[0].partition_responses[0];
    assert_eq!(partition.error_code, not_leader);
    assert_eq!(partition.current_leader.leader_id, 1);
    let ends = answer.node_endpoints.iter().map(|e| (e.node_id, e.port));
    assert_eq!(ends.collect::<Vec<_>>(), [(1, leads_at)]);

    let mut by_id = wanting(&[START], 1 << 20);
    let id = members[0].topic_id(TOPIC).await;
    let id = u128::from_str_radix(&id, 16).expect("an id").to_be_bytes();
    by_id.topics[0].topic = "".into();
    by_id.topics[0].topic_id = Uuid::from_bytes(id);
    let answer = ask(&mut socket, &by_id, 16).await;
    let partition = &answer.responses[0].partitions[0];
    assert_eq!(partition.error_code, not_leader);
    assert_eq!(partition.current_leader.leader_id, 1);
    assert!(partition.current_leader.leader_epoch >= 1);
    let ends = answer.node_endpoints.iter().map(|e| (e.node_id, e.port));
    assert_eq!(ends.collect::<Vec<_>>(), [(1, leads_at)]);
}

#[tokio::test]
async fn trap_15_an_epoch_ends_where_the_next_begins() {
    let (mut broker, mut socket) = with(vec![records(3, 10)]).await;
    let first = epoch_of(&mut socket).await;
    // An epoch without a record, and one with two.
    broker.kill_and_restart();
    let empty = epoch_of(&mut broker.connect().await).await;
    broker.kill_and_restart();
    let mut socket = broker.connect().await;
    let last = epoch_of(&mut socket).await;
    assert!(first < empty && empty < last);
    fill(&mut socket, vec![records(2, 10)]).await;
    let asked = async |socket: &mut TcpStream, leader_epoch, current_leader_epoch| {
        let partition = message!(offset_for_leader_epoch_request::OffsetForLeaderPartition {
            partition: 0,
            current_leader_epoch,
            leader_epoch
        });
        let topic = message!(offset_for_leader_epoch_request::OffsetForLeaderTopic {
            topic: TOPIC.into(),
            partitions: vec![partition]
        });
        let request = message!(OffsetForLeaderEpochRequest {
            replica_id: -1,
            topics: vec![topic]
        });
        let answer = ask(socket, &request, 4).await;
        let end = &answer.topics[0].partitions[0];
        (end.error_code, end.leader_epoch, end.end_offset)
    };
    assert_eq!(
        asked(&mut socket, last, -1).await,
        (0, last, 5),
        "up to the end"
    );
    assert_eq!(
        asked(&mut socket, last + 1, -1).await,
        (0, -1, -1),
        "newer than all"
    );
    let (_, floor, end) = asked(&mut socket, first, -1).await;
    assert_eq!((floor, end), (first, 3), "up to the next");
    let (_, floor, end) = asked(&mut socket, empty, -1).await;
    assert_eq!((floor <= empty, end), (true, 3), "one without a record");
    let before = first - 1;
    let (_, floor, end) = asked(&mut socket, before, -1).await;
    assert_eq!((floor, end), (before, 0), "older than all");
    let fenced = asked(&mut socket, first, first).await;
    assert_eq!(fenced, (ErrorCode::FencedLeaderEpoch.code(), -1, -1));
}

#[tokio::test]
async fn trap_16_times_are_looked_up_by_record_and_special_times_by_version() {
    // Timestamps 1000 to 1009 in one batch.
    let (_broker, mut socket) = with(vec![records(10, 5)]).await;
    let unsupported = ErrorCode::UnsupportedVersion.code();
    for (time, version, wanted) in [
        (-1, 1, (0, 10)),
        (-2, 1, (0, 0)),
        (-3, 7, (0, 9)),
        (-3, 6, (unsupported, -1)),
        (-4, 8, (0, 0)),
        (-4, 7, (unsupported, -1)),
        (-5, 9, (0, -1)),
        (-5, 8, (unsupported, -1)),
        (-6, 11, (0, -1)),
        (-6, 10, (unsupported, -1)),
        (0, 7, (0, 0)),
        (1_004, 7, (0, 4)),
        (1_009, 7, (0, 9)),
        (1_010, 7, (0, -1)),
    ] {
        let found = listed(&mut socket, TOPIC, time, version).await;
        assert_eq!(
            (found.error_code, found.offset),
            wanted,
            "time {time} in version {version}"
        );
        let of_record = time >= 0 && found.offset >= 0 || time == -3 && found.error_code == 0;
        let timestamp = if of_record { 1_000 + found.offset } else { -1 };
        assert_eq!(found.timestamp, timestamp, "time {time}");
    }
}

#[tokio::test]
async fn trap_18_the_producers_bytes_come_back_but_for_base_offset_and_epoch() {
    let sent = records(3, 50);
    let (_broker, mut socket) = with(vec![records(2, 5), sent.clone()]).await;
    let answer = fetch_one(&mut socket, Want { offset: 2, ..START }).await;
    let read = answer.records.expect("records");
    assert_eq!(read.len(), sent.len());
    assert_eq!(read[..8], 2i64.to_be_bytes());
    assert_eq!(read[8..12], sent[8..12]);
    assert!(i32::from_be_bytes(read[12..16].try_into().expect("an epoch")) >= 1);
    assert_eq!(read[16..], sent[16..]);
}

#[tokio::test]
async fn trap_06_a_topic_made_again_is_another_topic_by_id() {
    let (_broker, mut socket) = with(vec![records(1, 5)]).await;
    let id_of = async |socket: &mut TcpStream| {
        let name = Some(TOPIC.into());
        let topic = message!(metadata_request::MetadataRequestTopic { name });
        let request = message!(MetadataRequest {
            topics: Some(vec![topic])
        });
        ask(socket, &request, 12).await.topics.remove(0).topic_id
    };
    let first = id_of(&mut socket).await;
    assert!(!first.is_zero());
    let by_id = |id| {
        let mut request = wanting(&[START], 1 << 20);
        request.topics[0].topic = "".into();
        request.topics[0].topic_id = id;
        request
    };
    let code = async |socket: &mut TcpStream, id| {
        let answer = ask(socket, &by_id(id), 13).await;
        assert_eq!(answer.responses[0].topic_id, id);
        answer.responses[0].partitions[0].error_code
    };
    assert_eq!(code(&mut socket, first).await, 0);
    delete(&mut socket, TOPIC).await;
    create(&mut socket, TOPIC, 1, &[]).await;
    let second = id_of(&mut socket).await;
    assert_ne!(first, second);
    let unknown = ErrorCode::UnknownTopicId.code();
    assert_eq!(code(&mut socket, first).await, unknown);
    assert_eq!(code(&mut socket, second).await, 0);
}

#[tokio::test]
async fn trap_17_a_batch_that_contradicts_itself_is_refused_with_the_code_for_it() {
    let (_broker, mut socket) = with(vec![]).await;
    let good = records(2, 5);
    let mut spoiled = good.to_vec();
    *spoiled.last_mut().expect("bytes") ^= 1;
    let twice = [&good[..], &good[..]].concat();
    for (batch, code) in [
        (Bytes::from(spoiled), ErrorCode::CorruptMessage),
        (Bytes::from(twice), ErrorCode::InvalidRecord),
        (Bytes::new(), ErrorCode::InvalidRecord),
        (good, ErrorCode::None),
    ] {
        let answers = produced(&mut socket, &produce(TOPIC, -1, 30_000, vec![batch])).await;
        assert_eq!(answers[0].error_code, code.code());
    }
}
