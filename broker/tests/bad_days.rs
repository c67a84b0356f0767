//! Days on which clients and operators do what hurts: the broker lives, and others do not notice.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::requests::*;
use common::{Broker, OPEN_FILES, PATIENCE};
use logd_proto::ErrorCode;
use logd_proto::api::encode_request;
use logd_proto::message;
use logd_proto::messages::*;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

const TOPIC: &str = "bad-days";

#[tokio::test]
async fn stopping_does_not_wait_for_what_is_parked() {
    let mut broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 1, &[]).await;
    let parked = tokio::spawn(async move {
        let request = fetch(TOPIC, 0, 1, 120_000);
        ask(&mut socket, &request, FETCH_VERSION).await
    });
    let mut member = broker.connect().await;
    let locate = message!(FindCoordinatorRequest { key: "g".into() });
    assert_eq!(ask(&mut member, &locate, 3).await.error_code, 0);
    let joining = tokio::spawn(async move {
        let protocol = message!(join_group_request::JoinGroupRequestProtocol {
            name: "range".into()
        });
        let join = message!(JoinGroupRequest {
            group_id: "g".into(),
            session_timeout_ms: 300_000,
            rebalance_timeout_ms: 300_000,
            protocol_type: "consumer".into(),
            protocols: vec![protocol]
        });
        ask(&mut member, &join, 3).await
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let stopped = tokio::task::spawn_blocking(move || broker.terminate());
    let (status, took) = stopped.await.expect("it stops");
    assert!(status.success(), "{status}");
    assert!(took < PATIENCE, "it took {took:?}");
    let fetched = parked.await.expect("it was answered");
    assert_eq!(fetched.responses[0].partitions[0].error_code, 0);
    let joined = joining.await.expect("it was answered");
    assert_eq!(joined.error_code, ErrorCode::NotCoordinator.code());
}

#[tokio::test]
async fn answers_given_at_a_stop_arrive_although_more_requests_lie_unread() {
    let mut broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 1, &[]).await;
    let request = produce(TOPIC, -1, 30_000, vec![batch_of(1, 1_000_000)]);
    assert_eq!(produced(&mut socket, &request).await[0].error_code, 0);
    // A client that is slow to read has most of an answer still in the broker's socket.
    let slow = tokio::net::TcpSocket::new_v4().expect("a socket");
    slow.set_recv_buffer_size(16 << 10).expect("a small buffer");
    let mut socket = slow
        .connect(broker.kafka)
        .await
        .expect("the broker accepts");
    // It waits for more than there is.
    let parked = encode_request(&fetch(TOPIC, 0, 8 << 20, 120_000), FETCH_VERSION, 1, None);
    let parked = parked.expect("it encodes").to_bytes();
    socket.write_all(&parked).await.expect("sent");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stopped = tokio::task::spawn_blocking(move || broker.terminate());
    tokio::time::sleep(Duration::from_millis(100)).await;
    socket.write_all(&parked).await.expect("sent");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut answers = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut answers)
        .await
        .expect("an end, not a reset");
    assert!(answers.len() > 1_000_000, "{} bytes came", answers.len());
    drop(socket);
    let (status, took) = stopped.await.expect("it stops");
    assert!(
        status.success() && took < PATIENCE,
        "{status} after {took:?}"
    );
}

#[tokio::test]
async fn announcements_of_a_hundred_megabytes_cost_nothing_and_stop_nobody() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 1, &[]).await;
    let before = broker.metric("logd_process_anonymous_memory_bytes");
    let mut announcers = Vec::new();
    for _ in 0..25 {
        let mut announcer = broker.connect().await;
        announcer
            .write_all(&(100i32 << 20).to_be_bytes())
            .await
            .expect("sent");
        announcers.push(announcer);
    }
    let begun = Instant::now();
    for _ in 0..10 {
        let request = produce(TOPIC, -1, 30_000, vec![batch_of(1, 900_000)]);
        assert_eq!(produced(&mut socket, &request).await[0].error_code, 0);
    }
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    let grown = broker.metric("logd_process_anonymous_memory_bytes") - before;
    assert!(grown < 100e6, "{grown} bytes more");
}

#[tokio::test]
async fn a_client_that_never_reads_takes_no_memory_and_stops_nobody() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 1, &[]).await;
    for _ in 0..20 {
        let request = produce(TOPIC, -1, 30_000, vec![batch_of(1, 1_000_000)]);
        assert_eq!(produced(&mut socket, &request).await[0].error_code, 0);
    }
    let before = broker.metric("logd_process_anonymous_memory_bytes");
    let request = encode_request(&fetch(TOPIC, 0, 1, 0), FETCH_VERSION, 1, None);
    let request = request.expect("it encodes").to_bytes();
    let mut deaf = Vec::new();
    for _ in 0..10 {
        let mut client = broker.connect().await;
        for _ in 0..100 {
            client.write_all(&request).await.expect("sent");
        }
        deaf.push(client);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let grown = broker.metric("logd_process_anonymous_memory_bytes") - before;
    assert!(grown < 100e6, "{grown} bytes more");
    let read = ask(&mut socket, &fetch(TOPIC, 19, 1, 0), FETCH_VERSION).await;
    assert!(
        read.responses[0].partitions[0]
            .records
            .as_ref()
            .is_some_and(|r| r.len() > 900_000)
    );
}

#[tokio::test]
async fn connections_do_not_take_the_descriptors_that_the_disk_needs() {
    let often = ("LOGD_STORAGE__CHECKPOINT_INTERVAL_MS", "200");
    let mut broker = Broker::start_with(&[(OPEN_FILES, "400"), often]);
    let mut socket = broker.connect().await;
    let mut idle = Vec::new();
    for _ in 0..500 {
        idle.push(broker.connect().await);
    }
    // Folders and segments are made, and checkpoints taken, while nobody else gets in.
    create(&mut socket, TOPIC, 20, &[("segment.bytes", "16384")]).await;
    for _ in 0..20 {
        let batches = (0..20).map(|_| batch_of(1, 20_000)).collect();
        for answer in produced(&mut socket, &produce(TOPIC, -1, 30_000, batches)).await {
            assert_eq!(answer.error_code, 0, "{:?}", answer.error_message);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(broker.is_alive());
    drop(idle);
    let begun = Instant::now();
    loop {
        let mut late = broker.connect().await;
        let frame = encode_request(&fetch(TOPIC, 0, 1, 0), FETCH_VERSION, 1, None);
        let frame = frame.expect("it encodes").to_bytes();
        if common::exchange(&mut late, &frame).await.is_ok() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "others get in again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn trap_22_a_batch_may_be_larger_than_a_segment() {
    let mut broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 1, &[("segment.bytes", "16384")]).await;
    for offset in 0..3 {
        let request = produce(TOPIC, -1, 30_000, vec![batch_of(1, 200_000)]);
        let answer = &produced(&mut socket, &request).await[0];
        assert_eq!((answer.error_code, answer.base_offset), (0, offset));
    }
    broker.kill_and_restart();
    let mut socket = broker.connect().await;
    for offset in 0..3 {
        let read = ask(&mut socket, &fetch(TOPIC, offset, 1, 0), FETCH_VERSION).await;
        let partition = &read.responses[0].partitions[0];
        assert_eq!((partition.error_code, partition.high_watermark), (0, 3));
        assert!(
            partition
                .records
                .as_ref()
                .is_some_and(|r| r.len() > 200_000)
        );
    }
}

#[tokio::test]
async fn a_topic_that_is_deleted_and_made_again_under_its_users_is_another_topic() {
    let broker = Broker::start();
    let mut admin = broker.connect().await;
    create(&mut admin, TOPIC, 1, &[]).await;
    let mut socket = broker.connect().await;
    let producing = tokio::spawn(async move {
        let (mut codes, begun) = (std::collections::BTreeSet::new(), Instant::now());
        while begun.elapsed() < Duration::from_secs(2) {
            let request = produce(TOPIC, -1, 1_000, vec![batch(1)]);
            codes.insert(produced(&mut socket, &request).await[0].error_code);
        }
        codes
    });
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        delete(&mut admin, TOPIC).await;
        create(&mut admin, TOPIC, 1, &[]).await;
        // Announced, so usable.
        let request = produce(TOPIC, -1, 30_000, vec![batch(1)]);
        assert_eq!(produced(&mut admin, &request).await[0].error_code, 0);
    }
    let retriable = [
        ErrorCode::None,
        ErrorCode::UnknownTopicOrPartition,
        ErrorCode::NotLeaderOrFollower,
        ErrorCode::RequestTimedOut,
        ErrorCode::KafkaStorageError,
    ];
    let seen = producing.await.expect("the connection lives");
    assert!(
        seen.iter()
            .all(|code| retriable.iter().any(|r| r.code() == *code)),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_deleted_topic_gives_its_space_back() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 4, &[]).await;
    let request = produce(TOPIC, -1, 30_000, vec![batch_of(1, 500_000)]);
    assert_eq!(produced(&mut socket, &request).await[0].error_code, 0);
    let read = ask(&mut socket, &fetch(TOPIC, 0, 1, 0), FETCH_VERSION).await;
    assert_eq!(read.responses[0].partitions[0].error_code, 0);
    delete(&mut socket, TOPIC).await;
    // An unlinked file that is still open or mapped takes its space until the process ends.
    let begun = Instant::now();
    loop {
        let (named, held) = (broker.logs_and_trash(), broker.deleted_files());
        // The metadata log stays.
        if named.len() == 1 && held.is_empty() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{named:?} {held:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_request_for_a_flood_of_partitions_is_refused_where_it_becomes_one() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    let wanted = |name: &str| {
        message!(create_topics_request::CreatableTopic {
            name: name.into(),
            num_partitions: 6_000,
            replication_factor: 1
        })
    };
    let request = message!(CreateTopicsRequest {
        topics: vec![wanted("a"), wanted("b")],
        timeout_ms: 1_000,
        validate_only: true
    });
    let answers = ask(&mut socket, &request, 5).await.topics;
    let codes = [answers[0].error_code, answers[1].error_code];
    assert_eq!(codes, [0, ErrorCode::PolicyViolation.code()]);
    let counted = broker.metric("logd_kafka_errors_total{code=\"POLICY_VIOLATION\"}");
    assert_eq!(counted, 1.0);
}

#[tokio::test]
async fn the_offsets_of_a_deleted_topic_are_forgotten() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 1, &[]).await;
    let locate = message!(FindCoordinatorRequest { key: "g".into() });
    assert_eq!(ask(&mut socket, &locate, 3).await.error_code, 0);
    let partition = message!(offset_commit_request::OffsetCommitRequestPartition {
        partition_index: 0,
        committed_offset: 3
    });
    let topic = message!(offset_commit_request::OffsetCommitRequestTopic {
        name: TOPIC.into(),
        partitions: vec![partition]
    });
    let commit = message!(OffsetCommitRequest {
        group_id: "g".into(),
        generation_id_or_member_epoch: -1,
        topics: vec![topic]
    });
    let committed = ask(&mut socket, &commit, 8).await;
    assert_eq!(committed.topics[0].partitions[0].error_code, 0);
    let everything = message!(OffsetFetchRequest {
        group_id: "g".into(),
        topics: None
    });
    assert_eq!(ask(&mut socket, &everything, 5).await.topics.len(), 1);
    delete(&mut socket, TOPIC).await;
    let begun = Instant::now();
    while !ask(&mut socket, &everything, 5).await.topics.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "they are still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_fetch_that_waits_for_more_counts_what_it_read_once() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, TOPIC, 1, &[]).await;
    let mut reader = broker.connect().await;
    let reading = tokio::spawn(async move {
        let request = fetch(TOPIC, 0, 4_500, 30_000);
        ask(&mut reader, &request, FETCH_VERSION).await
    });
    for _ in 0..5 {
        let request = produce(TOPIC, -1, 30_000, vec![batch_of(1, 1_000)]);
        assert_eq!(produced(&mut socket, &request).await[0].error_code, 0);
    }
    let read = reading.await.expect("an answer");
    let records = read.responses[0].partitions[0].records.as_ref();
    let counted = broker.metric("logd_topic_bytes_total{topic=\"bad-days\",direction=\"out\"}");
    assert_eq!(records.map(|r| r.len() as f64), Some(counted));
}
