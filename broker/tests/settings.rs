//! Settings of brokers that change while they run, set with Kafka's calls.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::Broker;
use common::members::{Member, until_seen};
use common::requests::*;
use describe_configs_response::DescribeConfigsResourceResult;
use logd_proto::ErrorCode;
use logd_proto::api::encode_request;
use logd_proto::message;
use logd_proto::messages::*;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const BROKER: i8 = 4;
/// What all brokers are called.
const ALL: &str = "";

/// Kafka's numbers for where a value comes from.
const OF_ONE: i8 = 2;
const OF_ALL: i8 = 3;
const STATIC: i8 = 4;
const DEFAULT: i8 = 5;

async fn alter(socket: &mut TcpStream, broker: &str, changes: &[Change<'_>]) -> (i16, String) {
    alter_or_try(socket, (BROKER, broker), changes, false).await
}

async fn set(socket: &mut TcpStream, broker: &str, key: &str, value: &str) {
    let altered = alter(socket, broker, &[(key, SET, Some(value))]).await;
    assert_eq!(altered, (0, String::new()), "{key}={value}");
}

async fn described(
    socket: &mut TcpStream,
    kind: i8,
    name: &str,
) -> Vec<DescribeConfigsResourceResult> {
    let result = common::requests::described(socket, kind, name).await;
    assert_eq!(result.error_code, 0, "{:?}", result.error_message);
    result.configs
}

/// Value and source of each layer of one setting, what holds first.
async fn layers(socket: &mut TcpStream, kind: i8, name: &str, key: &str) -> Vec<(String, i8)> {
    let all = described(socket, kind, name).await;
    let one = all.iter().find(|c| c.name.as_str() == key);
    let one = one.unwrap_or_else(|| panic!("{key} is shown"));
    let layers = one.synonyms.iter();
    let layers: Vec<_> = layers
        .map(|s| (s.value.as_deref().unwrap_or_default().to_owned(), s.source))
        .collect();
    let first = (
        one.value.as_deref().unwrap_or_default().to_owned(),
        one.config_source,
    );
    assert_eq!(layers.first(), Some(&first));
    layers
}

fn as_text(layers: &[(String, i8)]) -> Vec<(&str, i8)> {
    layers.iter().map(|(v, s)| (v.as_str(), *s)).collect()
}

/// Partitions of a topic that is created by asking for its metadata; `None` if it is not.
async fn partitions_of_new(socket: &mut TcpStream, name: &str) -> Option<usize> {
    let topic = message!(metadata_request::MetadataRequestTopic {
        name: Some(name.into())
    });
    let request = message!(MetadataRequest {
        topics: Some(vec![topic]),
        allow_auto_topic_creation: true,
    });
    let answer = ask(socket, &request, 12).await.topics.remove(0);
    (answer.error_code == 0).then_some(answer.partitions.len())
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_millis() as i64
}

async fn produce_to(socket: &mut TcpStream, topic: &str, bytes: usize) -> i16 {
    let request = produce(topic, -1, 30_000, vec![batch_of(now_ms(), bytes)]);
    produced(socket, &request).await[0].error_code
}

/// What a member that asks for this session timeout is answered.
async fn join(socket: &mut TcpStream, group: &str, session_timeout_ms: i32) -> i16 {
    let protocol = message!(join_group_request::JoinGroupRequestProtocol {
        name: "range".into()
    });
    let request = message!(JoinGroupRequest {
        group_id: group.into(),
        session_timeout_ms,
        rebalance_timeout_ms: 1_000,
        protocol_type: "consumer".into(),
        protocols: vec![protocol],
    });
    ask(socket, &request, 9).await.error_code
}

#[tokio::test]
async fn topics_that_are_created_go_by_what_was_set_meanwhile() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    assert_eq!(partitions_of_new(&mut socket, "one").await, Some(1));
    set(&mut socket, ALL, "num.partitions", "3").await;
    assert_eq!(partitions_of_new(&mut socket, "three").await, Some(3));
    set(&mut socket, "1", "num.partitions", "2").await;
    assert_eq!(partitions_of_new(&mut socket, "two").await, Some(2));
    set(&mut socket, "1", "auto.create.topics.enable", "false").await;
    assert_eq!(partitions_of_new(&mut socket, "none").await, None);
    let back = [
        ("auto.create.topics.enable", DELETE, None),
        ("num.partitions", DELETE, None),
    ];
    assert_eq!(alter(&mut socket, "1", &back).await.0, 0);
    assert_eq!(partitions_of_new(&mut socket, "again").await, Some(3));
}

#[tokio::test]
async fn topics_that_say_nothing_go_by_the_brokers_default_from_its_answer_on() {
    let broker = Broker::start_with(&[("LOGD_TOPICS__MAX_MESSAGE_BYTES", "900000")]);
    let mut socket = broker.connect().await;
    create(&mut socket, "silent", 1, &[]).await;
    create(&mut socket, "own", 1, &[("max.message.bytes", "900000")]).await;
    assert_eq!(produce_to(&mut socket, "silent", 5_000).await, 0);

    let changes = [
        ("message.max.bytes", SET, Some("2000")),
        ("compression.type", SET, Some("zstd")),
        ("log.cleanup.policy", APPEND, Some("compact")),
    ];
    assert_eq!(alter(&mut socket, ALL, &changes).await.0, 0);
    let too_large = ErrorCode::MessageTooLarge.code();
    assert_eq!(produce_to(&mut socket, "silent", 5_000).await, too_large);
    assert_eq!(produce_to(&mut socket, "own", 5_000).await, 0);

    set(&mut socket, "1", "message.max.bytes", "3000").await;
    let shown = layers(&mut socket, 2, "silent", "max.message.bytes").await;
    let of_nobody = [
        ("3000", OF_ONE),
        ("2000", OF_ALL),
        ("900000", STATIC),
        ("1048588", DEFAULT),
    ];
    assert_eq!(as_text(&shown), of_nobody);
    let shown = layers(&mut socket, 2, "own", "max.message.bytes").await;
    assert_eq!(as_text(&shown)[1..], of_nobody);
    let policy = layers(&mut socket, 2, "silent", "cleanup.policy").await;
    assert_eq!(as_text(&policy)[0], ("delete,compact", OF_ALL));
}

#[tokio::test]
async fn old_segments_go_when_the_brokers_retention_gets_shorter_and_is_looked_at_more_often() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "old", 1, &[]).await;
    let long_ago = now_ms() - 3_600_000;
    let request = produce("old", -1, 30_000, vec![batch_of(long_ago, 100)]);
    assert_eq!(produced(&mut socket, &request).await[0].error_code, 0);
    let changes = [
        ("log.retention.ms", SET, Some("60000")),
        ("log.retention.check.interval.ms", SET, Some("100")),
    ];
    assert_eq!(alter(&mut socket, ALL, &changes).await, (0, String::new()));
    let begun = std::time::Instant::now();
    loop {
        let fetched = ask(&mut socket, &fetch("old", 1, 0, 0), FETCH_VERSION).await;
        if fetched.responses[0].partitions[0].log_start_offset == 1 {
            break;
        }
        assert!(begun.elapsed() < common::PATIENCE, "it stays");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn groups_and_connections_go_by_their_limits_from_the_next_request_on() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    assert_eq!(partitions_of_new(&mut socket, "t").await, Some(1));
    let find = message!(FindCoordinatorRequest {
        coordinator_keys: vec!["g".into()]
    });
    let found = ask(&mut socket, &find, 4).await;
    assert_eq!(found.coordinators[0].error_code, 0);
    let unknown = ErrorCode::MemberIdRequired.code();
    let until_loaded = async || join(&mut broker.connect().await, "g", 10_000).await;
    until_seen("the group is served", until_loaded, |code| *code == unknown).await;
    set(&mut socket, ALL, "group.max.session.timeout.ms", "9000").await;
    let refused = ErrorCode::InvalidSessionTimeout.code();
    assert_eq!(join(&mut socket, "g", 10_000).await, refused);
    assert_eq!(join(&mut socket, "g", 9_000).await, unknown);

    // A connection that is there already goes by the new size too.
    let mut other = broker.connect().await;
    assert_eq!(produce_to(&mut other, "t", 200_000).await, 0);
    set(&mut socket, ALL, "socket.request.max.bytes", "100000").await;
    let request = produce("t", -1, 30_000, vec![batch_of(now_ms(), 200_000)]);
    let frame = encode_request(&request, PRODUCE_VERSION, 7, None).expect("it encodes");
    let sent = common::exchange(&mut other, &frame.to_bytes()).await;
    assert!(
        sent.is_err(),
        "a frame that is too large ends its connection"
    );

    set(&mut socket, ALL, "max.connections", "10").await;
    let mut places = Vec::new();
    while places.len() < 9 {
        places.push(broker.connect().await);
    }
    let mut turned_away = broker.connect().await;
    let read = turned_away.read(&mut [0]).await.unwrap_or(0);
    assert_eq!(read, 0, "ten are there already");
    set(&mut socket, ALL, "max.connections", "11").await;
    let mut let_in = broker.connect().await;
    assert!(!described(&mut let_in, BROKER, "1").await.is_empty());
}

#[tokio::test]
async fn what_was_set_survives_a_kill_and_is_gone_by_from_the_start_on() {
    let mut broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "kept", 1, &[]).await;
    set(&mut socket, ALL, "message.max.bytes", "2000").await;
    set(&mut socket, "1", "num.partitions", "4").await;
    broker.kill_and_restart();
    let mut socket = broker.connect().await;
    let too_large = ErrorCode::MessageTooLarge.code();
    assert_eq!(produce_to(&mut socket, "kept", 5_000).await, too_large);
    assert_eq!(partitions_of_new(&mut socket, "four").await, Some(4));
    let shown = layers(&mut socket, BROKER, "1", "num.partitions").await;
    assert_eq!(as_text(&shown), [("4", OF_ONE), ("1", DEFAULT)]);
}

#[tokio::test]
async fn what_cannot_be_set_is_refused_with_the_reason_and_nothing_of_its_request_is_done() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "alone", 1, &[]).await;
    let refused = ErrorCode::InvalidRequest.code();
    for (broker, key, value, why) in [
        (ALL, "logd.storage.wal_budget_bytes", "1", "restart"),
        ("1", "broker.rack", "a", "`node.rack`"),
        ("1", "broker.id", "7", "not set"),
        (ALL, "num.partition", "3", "num.partitions"),
        (ALL, "leader.replication.throttled.rate", "1", "Unknown"),
        (ALL, "connections.max.idle.ms", "1", "at least 1000"),
        (ALL, "num.io.threads", "many", "a whole number from 1"),
        (ALL, "num.io.thread", "8", "Unknown"),
        (ALL, "max.connection.creation.rate", "8", "Unknown"),
        (ALL, "num.partitions", "many", "an integer"),
        (ALL, "message.max.bytes", "0", "from 1 to"),
        (ALL, "default.replication.factor", "33", "from 0 to 32"),
        (ALL, "min.insync.replicas", "2", "alone"),
        ("1", "min.insync.replicas", "1", "whole cluster"),
        ("9", "num.partitions", "3", "no broker 9"),
        ("one", "num.partitions", "3", "number"),
    ] {
        let changes = [("log.roll.ms", SET, Some("9")), (key, SET, Some(value))];
        let (answered, reason) = alter(&mut socket, broker, &changes).await;
        assert_eq!(answered, refused, "{key}: {reason}");
        assert!(reason.contains(why), "{key}: {reason}");
    }
    let number = [("num.partitions", APPEND, Some("3"))];
    assert_eq!(alter(&mut socket, ALL, &number).await.0, refused);
    let fine = [("num.partitions", SET, Some("3"))];
    let tried = alter_or_try(&mut socket, (BROKER, ALL), &fine, true).await;
    assert_eq!(tried, (0, String::new()));
    assert!(described(&mut socket, BROKER, ALL).await.is_empty());
    // Tools clean up what they may have set before.
    let deleted = [("leader.replication.throttled.rate", DELETE, None)];
    assert_eq!(alter(&mut socket, "1", &deleted).await.0, 0);
}

#[tokio::test]
async fn what_sizes_kafkas_own_machinery_is_kept_shown_and_said_to_be_without_effect() {
    let mut broker = Broker::start();
    let mut socket = broker.connect().await;
    let threads = "num.io.threads";
    let shown = described(&mut socket, BROKER, "1").await;
    assert!(!shown.iter().any(|c| c.name.as_str() == threads));
    set(&mut socket, ALL, threads, "16").await;
    set(&mut socket, "1", threads, "032").await;
    let append = alter(&mut socket, ALL, &[(threads, APPEND, Some("1"))]).await;
    assert!(append.1.contains("is no list"), "{append:?}");
    broker.kill_and_restart();
    let mut socket = broker.connect().await;
    let both = layers(&mut socket, BROKER, "1", threads).await;
    assert_eq!(as_text(&both), [("32", OF_ONE), ("16", OF_ALL)]);
    for name in ["1", ALL] {
        let all = described(&mut socket, BROKER, name).await;
        let shown = all.iter().find(|c| c.name.as_str() == threads);
        let shown = shown.unwrap_or_else(|| panic!("{threads} is shown"));
        let note = shown.documentation.as_deref().unwrap_or_default();
        assert!(
            !shown.read_only && note.ends_with("without effect in logd."),
            "{note}"
        );
    }
    for name in ["1", ALL] {
        let gone = alter(&mut socket, name, &[(threads, DELETE, None)]).await;
        assert_eq!(gone, (0, String::new()));
    }
    let shown = described(&mut socket, BROKER, "1").await;
    assert!(!shown.iter().any(|c| c.name.as_str() == threads));
}

#[tokio::test]
async fn the_older_call_replaces_what_was_set_and_our_own_names_are_taken_too() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    set(&mut socket, ALL, "num.partitions", "3").await;
    let config = message!(alter_configs_request::AlterableConfig {
        name: "topics.retention_ms".into(),
        value: Some("5000".into())
    });
    let resource = message!(alter_configs_request::AlterConfigsResource {
        resource_type: BROKER,
        resource_name: ALL.into(),
        configs: vec![config]
    });
    let request = message!(AlterConfigsRequest {
        resources: vec![resource]
    });
    let answer = ask(&mut socket, &request, 2).await;
    assert_eq!(answer.responses[0].error_code, 0);
    let all = described(&mut socket, BROKER, ALL).await;
    let all: Vec<_> = all
        .iter()
        .map(|c| (c.name.as_str(), c.value.as_deref(), c.config_source))
        .collect();
    assert_eq!(all, [("log.retention.ms", Some("5000"), OF_ALL)]);
}

#[tokio::test]
async fn each_setting_says_whether_it_needs_a_restart() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    let all = described(&mut socket, BROKER, "1").await;
    let of = |name: &str| {
        let one = all.iter().find(|c| c.name.as_str() == name);
        let one = one.unwrap_or_else(|| panic!("{name} is shown"));
        let note = one.documentation.as_deref().unwrap_or_default().to_owned();
        (one.read_only, note)
    };
    let (read_only, note) = of("num.partitions");
    assert!(!read_only && note.ends_with("Applies at once."), "{note}");
    let (read_only, note) = of("logd.storage.wal_budget_bytes");
    assert!(read_only && note.ends_with("Needs a restart."), "{note}");
    let (read_only, note) = of("log.retention.ms");
    assert!(!read_only && note.ends_with("Applies at once."), "{note}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_broker_was_told_holds_on_all_of_them_and_on_those_that_were_away() {
    let mut members = Member::found(3).await;
    let socket = async |member: &Member| {
        let socket = TcpStream::connect(member.kafka).await;
        socket.expect("it accepts")
    };
    members[2].kill();
    let mut second = socket(&members[1]).await;
    set(&mut second, ALL, "num.partitions", "6").await;
    // Of another broker than the one that is asked, and of one that is away.
    set(&mut second, "1", "num.partitions", "2").await;
    set(&mut second, "3", "message.max.bytes", "2000").await;
    members[2].restart();
    let expected = [
        vec![("2", OF_ONE), ("6", OF_ALL), ("1", DEFAULT)],
        vec![("6", OF_ALL), ("1", DEFAULT)],
        vec![("6", OF_ALL), ("1", DEFAULT)],
    ];
    for (member, (expected, partitions)) in members.iter().zip(expected.iter().zip([2, 6, 6])) {
        let name = (partitions + member.kafka.port() as usize).to_string();
        let id = match member.kafka {
            at if at == members[0].kafka => "1",
            at if at == members[1].kafka => "2",
            _ => "3",
        };
        let shown = async || {
            let mut socket = socket(member).await;
            layers(&mut socket, BROKER, id, "num.partitions").await
        };
        let is_so = |shown: &Vec<(String, i8)>| as_text(shown) == *expected;
        until_seen("it goes by what was set", shown, is_so).await;
        let created = async || partitions_of_new(&mut socket(member).await, &name).await;
        until_seen("so do its topics", created, |p| *p == Some(partitions)).await;
    }
    // The third alone takes small batches only.
    members[0].create("small", &[&[3, 1, 2], &[1, 2, 3]]).await;
    let too_large = ErrorCode::MessageTooLarge.code();
    for (member, index, code) in [(&members[2], 0, too_large), (&members[0], 1, 0)] {
        let answered = async || {
            let mut request = produce("small", -1, 30_000, vec![batch_of(now_ms(), 5_000)]);
            request.topic_data[0].partition_data[0].index = index;
            produced(&mut socket(member).await, &request).await[0].error_code
        };
        until_seen("its own setting counts", answered, |c| *c == code).await;
    }
}
