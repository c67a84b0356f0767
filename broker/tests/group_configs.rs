//! Configurations of groups (KIP-848's, which have no effect on classic members), set and shown with Kafka's calls.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::Broker;
use common::members::{Member, until_seen};
use common::requests::*;
use logd_proto::message;
use logd_proto::messages::*;
use logd_proto::{ErrorCode, StrBytes};
use tokio::net::TcpStream;

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const GROUP: i8 = 32;

/// Kafka's numbers for where a value comes from.
const OF_THE_GROUP: i8 = 8;
const DEFAULT: i8 = 5;

const SESSION: &str = "consumer.session.timeout.ms";
const HEARTBEAT: &str = "consumer.heartbeat.interval.ms";

/// Changes a group's settings; the code and the reason.
async fn alter(socket: &mut TcpStream, group: &str, changes: &[Change<'_>]) -> (i16, String) {
    alter_or_try(socket, (GROUP, group), changes, false).await
}

async fn set(socket: &mut TcpStream, group: &str, key: &str, value: &str) {
    let altered = alter(socket, group, &[(key, SET, Some(value))]).await;
    assert_eq!(altered, (0, String::new()), "{key}={value}");
}

async fn one(
    socket: &mut TcpStream,
    group: &str,
    key: &str,
) -> describe_configs_response::DescribeConfigsResourceResult {
    let result = described(socket, GROUP, group).await;
    assert_eq!(result.error_code, 0, "{:?}", result.error_message);
    let mut all = result.configs.into_iter();
    all.find(|c| c.name.as_str() == key)
        .unwrap_or_else(|| panic!("{key} is shown"))
}

/// Name, value and source of each layer of one setting, what holds first.
async fn layers(socket: &mut TcpStream, group: &str, key: &str) -> Vec<(String, String, i8)> {
    let one = one(socket, group, key).await;
    let text = |value: &Option<StrBytes>| value.as_deref().unwrap_or_default().to_owned();
    let layers = one.synonyms.iter();
    let layers: Vec<_> = layers
        .map(|s| (s.name.to_string(), text(&s.value), s.source))
        .collect();
    let first = layers.first().map(|(_, value, source)| (value, *source));
    assert_eq!(first, Some((&text(&one.value), one.config_source)));
    layers
}

async fn value(socket: &mut TcpStream, group: &str, key: &str) -> (String, i8) {
    let (_, value, source) = layers(socket, group, key).await.remove(0);
    (value, source)
}

/// The resources that have a configuration, of these types.
async fn listed(socket: &mut TcpStream, types: Vec<i8>) -> Vec<(String, i8)> {
    let request = message!(ListConfigResourcesRequest {
        resource_types: types
    });
    let answer = ask(socket, &request, 1).await;
    assert_eq!(answer.error_code, 0);
    let listed = answer.config_resources.iter();
    listed
        .map(|r| (r.resource_name.to_string(), r.resource_type))
        .collect()
}

#[tokio::test]
async fn a_group_that_says_nothing_shows_the_defaults_and_whom_they_are_for() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    let all = described(&mut socket, GROUP, "nobody").await.configs;
    let names: Vec<&str> = all.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(
        names,
        ["consumer.assignment.interval.ms", HEARTBEAT, SESSION]
    );
    for (key, value) in [(SESSION, "45000"), (HEARTBEAT, "5000")] {
        let usual = layers(&mut socket, "nobody", key).await;
        let broker_name = format!("group.{key}");
        assert_eq!(usual, [(broker_name, value.to_owned(), DEFAULT)]);
    }
    for shown in &all {
        assert!(!shown.read_only && shown.config_type == 3, "an int");
        let note = shown.documentation.as_deref().unwrap_or_default();
        assert!(note.contains("without effect on classic members"), "{note}");
    }
    let refused = described(&mut socket, GROUP, "").await;
    assert_eq!(refused.error_code, ErrorCode::InvalidRequest.code());
    assert_eq!(listed(&mut socket, vec![GROUP]).await, []);
}

#[tokio::test]
async fn what_is_set_is_shown_listed_and_survives_a_kill_until_it_is_deleted() {
    let mut broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "beside", 1, &[]).await;
    set(&mut socket, "g", SESSION, "50000").await;
    set(&mut socket, "g", HEARTBEAT, " 06000 ").await;
    set(&mut socket, "a b/ü", SESSION, "60000").await;

    broker.kill_and_restart();
    let mut socket = broker.connect().await;
    let own = |value: &str| (SESSION.to_owned(), value.to_owned(), OF_THE_GROUP);
    let usual = (format!("group.{SESSION}"), "45000".to_owned(), DEFAULT);
    let of_g = layers(&mut socket, "g", SESSION).await;
    assert_eq!(of_g, [own("50000"), usual.clone()]);
    let of_other = layers(&mut socket, "a b/ü", SESSION).await;
    assert_eq!(of_other, [own("60000"), usual.clone()]);
    let beat = value(&mut socket, "g", HEARTBEAT).await;
    assert_eq!(beat, ("6000".into(), OF_THE_GROUP));

    let groups = [("a b/ü".to_owned(), GROUP), ("g".to_owned(), GROUP)];
    assert_eq!(listed(&mut socket, vec![GROUP]).await, groups);
    let all = listed(&mut socket, vec![]).await;
    let others = [("beside".to_owned(), TOPIC), ("1".to_owned(), BROKER)];
    assert_eq!(all, [others, groups.clone()].concat());
    assert_eq!(listed(&mut socket, vec![TOPIC, BROKER]).await.len(), 2);

    let gone = [(SESSION, DELETE, None), ("no.such", DELETE, None)];
    assert_eq!(alter(&mut socket, "g", &gone).await, (0, String::new()));
    assert_eq!(layers(&mut socket, "g", SESSION).await, [usual]);
    assert_eq!(listed(&mut socket, vec![GROUP]).await, groups);
    let gone = [(HEARTBEAT, DELETE, None)];
    assert_eq!(alter(&mut socket, "g", &gone).await, (0, String::new()));
    assert_eq!(listed(&mut socket, vec![GROUP]).await, groups[..1]);
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_the_reason_and_nothing_of_its_request_is_done() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    for (key, operation, value, part) in [
        (SESSION, SET, "44999", "from 45000 to 60000"),
        (SESSION, SET, "60001", "from 45000 to 60000"),
        (SESSION, SET, "soon", "a whole number"),
        (SESSION, APPEND, "1", "is no list"),
        (SESSION, SUBTRACT, "1", "is no list"),
        ("session.timeout.ms", SET, "50000", SESSION),
        ("no.such", APPEND, "1", "Unknown group config name: no.such"),
        (
            "share.session.timeout.ms",
            SET,
            "50000",
            "there are no share groups",
        ),
        (
            "streams.num.standby.replicas",
            SET,
            "1",
            "there are no streams groups",
        ),
    ] {
        let half_wrong = [
            (HEARTBEAT, SET, Some("6000")),
            (key, operation, Some(value)),
        ];
        for validate_only in [true, false] {
            let (code, why) =
                alter_or_try(&mut socket, (GROUP, "g"), &half_wrong, validate_only).await;
            assert_eq!(code, ErrorCode::InvalidConfig.code(), "{key}: {why}");
            assert!(why.contains(part), "{why}");
        }
    }
    let fine = [(HEARTBEAT, SET, Some("6000"))];
    let (code, why) = alter(&mut socket, "", &fine).await;
    assert_eq!(code, ErrorCode::InvalidRequest.code(), "{why}");
    let (code, why) = alter(&mut socket, &"x".repeat(256), &fine).await;
    assert_eq!(code, ErrorCode::PolicyViolation.code(), "{why}");
    let tried = alter_or_try(&mut socket, (GROUP, "g"), &fine, true).await;
    assert_eq!(tried, (0, String::new()));
    assert_eq!(value(&mut socket, "g", HEARTBEAT).await.1, DEFAULT);
    assert_eq!(listed(&mut socket, vec![GROUP]).await, []);
}

#[tokio::test]
async fn the_older_call_replaces_what_was_set() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    set(&mut socket, "g", SESSION, "50000").await;
    let replace = |configs: Vec<alter_configs_request::AlterableConfig>| {
        let resource = message!(alter_configs_request::AlterConfigsResource {
            resource_type: GROUP,
            resource_name: "g".into(),
            configs
        });
        message!(AlterConfigsRequest {
            resources: vec![resource]
        })
    };
    let heartbeat = message!(alter_configs_request::AlterableConfig {
        name: HEARTBEAT.into(),
        value: Some("7000".into())
    });
    let answer = ask(&mut socket, &replace(vec![heartbeat]), 2).await;
    assert_eq!(answer.responses[0].error_code, 0);
    assert_eq!(value(&mut socket, "g", SESSION).await.1, DEFAULT);
    let beat = value(&mut socket, "g", HEARTBEAT).await;
    assert_eq!(beat, ("7000".into(), OF_THE_GROUP));
    let answer = ask(&mut socket, &replace(Vec::new()), 2).await;
    assert_eq!(answer.responses[0].error_code, 0);
    assert_eq!(listed(&mut socket, vec![GROUP]).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_broker_was_told_all_of_them_show_and_those_that_were_away() {
    let mut members = Member::found(3).await;
    members[2].kill();
    let mut first = TcpStream::connect(members[0].kafka).await.expect("accepts");
    let mut second = TcpStream::connect(members[1].kafka).await.expect("accepts");
    set(&mut first, "g", SESSION, "50000").await;
    set(&mut second, "g", HEARTBEAT, "6000").await;
    members[2].restart();
    for member in &members {
        let shown = async || {
            let mut socket = TcpStream::connect(member.kafka).await.expect("accepts");
            let session = value(&mut socket, "g", SESSION).await.0;
            (session, value(&mut socket, "g", HEARTBEAT).await.0)
        };
        let both = |shown: &(String, String)| *shown == ("50000".into(), "6000".into());
        until_seen("it shows what was set", shown, both).await;
    }
}
