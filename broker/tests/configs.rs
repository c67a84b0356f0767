//! Configurations of topics and brokers as stock tools show and change them.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::Broker;
use common::requests::*;
use describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult};
use logd_proto::message;
use logd_proto::messages::*;
use logd_proto::{ErrorCode, StrBytes};
use std::collections::BTreeMap;
use tokio::net::TcpStream;

const TOPIC: i8 = 2;
const BROKER: i8 = 4;

/// Kafka's numbers for where a value comes from.
const OF_THE_TOPIC: i8 = 1;
const OF_THE_BROKER: i8 = 4;
const DEFAULT: i8 = 5;

fn by_name(result: DescribeConfigsResult) -> BTreeMap<String, DescribeConfigsResourceResult> {
    assert_eq!(result.error_code, 0, "{:?}", result.error_message);
    let configs = result.configs.into_iter();
    configs.map(|c| (c.name.to_string(), c)).collect()
}

fn value(config: &DescribeConfigsResourceResult) -> &str {
    config.value.as_ref().expect("a value")
}

#[tokio::test]
async fn trap_35_every_configuration_is_shown_with_what_would_hold_without_it() {
    let broker = Broker::start_with(&[("LOGD_TOPICS__RETENTION_MS", "86400000")]);
    let mut socket = broker.connect().await;
    create(&mut socket, "shown", 1, &[("retention.ms", "5000")]).await;
    let all = by_name(described(&mut socket, TOPIC, "shown").await);
    assert!(all.len() > 30, "{:?}", all.keys());

    let retention = &all["retention.ms"];
    assert_eq!(
        (value(retention), retention.config_source),
        ("5000", OF_THE_TOPIC)
    );
    let synonyms: Vec<_> = retention
        .synonyms
        .iter()
        .map(|s| (s.name.as_str(), s.value.as_deref(), s.source))
        .collect();
    assert_eq!(
        synonyms,
        [
            ("retention.ms", Some("5000"), OF_THE_TOPIC),
            ("log.retention.ms", Some("86400000"), OF_THE_BROKER),
            ("log.retention.ms", Some("604800000"), DEFAULT),
        ]
    );
    assert_eq!(retention.config_type, 5, "a long");
    assert!(
        retention
            .documentation
            .as_ref()
            .is_some_and(|d| d.len() > 10)
    );
    assert!(!retention.read_only && all["preallocate"].read_only);
    assert_eq!(all["segment.bytes"].config_source, DEFAULT);

    // Read, changed and written back as a whole, as AlterConfigs asks of its callers: all of it is taken.
    let again: Vec<(&str, &str)> = all.iter().map(|(k, c)| (k.as_str(), value(c))).collect();
    create(&mut socket, "again", 1, &again).await;
}

#[tokio::test]
async fn who_names_configurations_gets_those_and_who_wants_less_gets_less() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "some", 1, &[]).await;
    let resource = message!(describe_configs_request::DescribeConfigsResource {
        resource_type: TOPIC,
        resource_name: "some".into(),
        configuration_keys: Some(vec!["retention.ms".into(), "no.such".into()]),
    });
    let request = message!(DescribeConfigsRequest {
        resources: vec![resource]
    });
    let answer = ask(&mut socket, &request, 4).await.results.remove(0);
    let names: Vec<&str> = answer.configs.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["retention.ms"]);
    let only = &answer.configs[0];
    assert!(only.synonyms.is_empty() && only.documentation.is_none());
}

#[tokio::test]
async fn a_broker_shows_its_own_settings_and_refuses_to_speak_for_others() {
    let broker = Broker::start_with(&[("LOGD_TOPICS__DEFAULT_PARTITIONS", "7")]);
    let mut socket = broker.connect().await;
    let all = by_name(described(&mut socket, BROKER, "1").await);
    let partitions = &all["num.partitions"];
    assert_eq!(
        (value(partitions), partitions.config_source),
        ("7", OF_THE_BROKER)
    );
    assert_eq!(value(&all["broker.id"]), "1");
    assert!(value(&all["advertised.listeners"]).contains(&broker.bootstrap()));
    assert!(!partitions.read_only && all["broker.id"].read_only);

    let everybody = by_name(described(&mut socket, BROKER, "").await);
    assert!(
        everybody.is_empty(),
        "nothing is set for all while they run"
    );
    for wrong in ["2", "one"] {
        let refused = described(&mut socket, BROKER, wrong).await;
        assert_eq!(refused.error_code, ErrorCode::InvalidRequest.code());
    }
}

#[tokio::test]
async fn what_does_not_exist_is_said_one_by_one() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    for (kind, name, code) in [
        (TOPIC, "nobody", ErrorCode::UnknownTopicOrPartition),
        (TOPIC, "no/body", ErrorCode::InvalidTopic),
        (77, "x", ErrorCode::InvalidRequest),
    ] {
        let refused = described(&mut socket, kind, name).await;
        assert_eq!(refused.error_code, code.code(), "{name}");
        let echoed: (i8, StrBytes) = (refused.resource_type, refused.resource_name);
        assert_eq!(echoed, (kind, name.into()));
    }
}

/// Changes a topic; the code and the reason.
async fn alter(socket: &mut TcpStream, topic: &str, changes: &[Change<'_>]) -> (i16, String) {
    alter_or_try(socket, (TOPIC, topic), changes, false).await
}

async fn shown(socket: &mut TcpStream, topic: &str, key: &str) -> (String, i8) {
    let all = by_name(described(socket, TOPIC, topic).await);
    (value(&all[key]).to_owned(), all[key].config_source)
}

#[tokio::test]
async fn trap_35_single_keys_are_set_deleted_appended_to_and_subtracted_from() {
    let mut broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "one", 1, &[("retention.ms", "5000")]).await;
    let done = (0, String::new());
    let policy = "cleanup.policy";
    assert_eq!(
        alter(&mut socket, "one", &[("segment.ms", SET, Some("7000"))]).await,
        done
    );
    assert_eq!(
        alter(&mut socket, "one", &[("retention.ms", DELETE, None)]).await,
        done
    );
    assert_eq!(
        alter(&mut socket, "one", &[(policy, APPEND, Some("compact"))]).await,
        done
    );
    let now = shown(&mut socket, "one", policy).await;
    assert_eq!(now, ("delete,compact".into(), OF_THE_TOPIC));
    assert_eq!(
        alter(&mut socket, "one", &[(policy, SUBTRACT, Some("delete"))]).await,
        done
    );

    // What was acknowledged survives the process.
    broker.kill_and_restart();
    let mut socket = broker.connect().await;
    for (key, value, source) in [
        (policy, "compact", OF_THE_TOPIC),
        ("segment.ms", "7000", OF_THE_TOPIC),
        ("retention.ms", "604800000", DEFAULT),
    ] {
        let now = shown(&mut socket, "one", key).await;
        assert_eq!(now, (value.into(), source), "{key}");
    }
    let (code, why) = alter(&mut socket, "one", &[("segment.ms", APPEND, Some("1"))]).await;
    assert_eq!(code, ErrorCode::InvalidConfig.code());
    assert!(why.contains("segment.ms"), "{why}");
}

#[tokio::test]
async fn trap_35_what_is_only_validated_or_refused_changes_nothing() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "same", 1, &[]).await;
    let tried = [("retention.ms", SET, Some("5"))];
    let (code, _) = alter_or_try(&mut socket, (TOPIC, "same"), &tried, true).await;
    assert_eq!(code, 0);
    for (key, value) in [
        ("segment.ms", "soon"),
        ("no.such.key", "1"),
        ("min.insync.replicas", "2"),
        ("compression.type", "lzma"),
    ] {
        let half_wrong = [("retention.ms", SET, Some("5")), (key, SET, Some(value))];
        let (code, why) = alter(&mut socket, "same", &half_wrong).await;
        assert_eq!(code, ErrorCode::InvalidConfig.code(), "{key}");
        assert!(why.contains(key), "{why}");
    }
    let (code, _) = alter(&mut socket, "nobody", &tried).await;
    assert_eq!(code, ErrorCode::UnknownTopicOrPartition.code());
    assert_eq!(shown(&mut socket, "same", "retention.ms").await.1, DEFAULT);
}

#[tokio::test]
async fn trap_35_what_is_named_twice_is_refused_and_the_rest_is_done() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    for topic in ["twice", "once", "keys"] {
        create(&mut socket, topic, 1, &[]).await;
    }
    let change = [("retention.ms", SET, Some("5"))];
    let both = [change[0], ("retention.ms", DELETE, None)];
    let request = message!(IncrementalAlterConfigsRequest {
        resources: vec![
            changed(TOPIC, "twice", &change),
            changed(TOPIC, "once", &change),
            changed(TOPIC, "twice", &change),
            changed(TOPIC, "keys", &both),
            changed(TOPIC, "keys2", &[("retention.ms", SET, None)]),
            changed(77, "other", &change),
        ]
    });
    let answer = ask(&mut socket, &request, 1).await;
    let codes: Vec<i16> = answer.responses.iter().map(|r| r.error_code).collect();
    let refused = ErrorCode::InvalidRequest.code();
    assert_eq!(codes, [refused, 0, refused, refused, refused, refused]);
    assert_eq!(shown(&mut socket, "once", "retention.ms").await.0, "5");
    assert_eq!(shown(&mut socket, "twice", "retention.ms").await.1, DEFAULT);
}

#[tokio::test]
async fn the_older_call_replaces_everything_that_a_topic_says() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "old", 1, &[("retention.ms", "5000")]).await;
    let replace = |value: Option<&str>, validate_only| {
        let config = message!(alter_configs_request::AlterableConfig {
            name: "segment.ms".into(),
            value: value.map(StrBytes::from),
        });
        let resource = message!(alter_configs_request::AlterConfigsResource {
            resource_type: TOPIC,
            resource_name: "old".into(),
            configs: vec![config],
        });
        message!(AlterConfigsRequest {
            resources: vec![resource],
            validate_only,
        })
    };
    for (request, code) in [
        (replace(Some("9000"), true), ErrorCode::None),
        (replace(Some("never"), false), ErrorCode::InvalidConfig),
        (replace(None, false), ErrorCode::InvalidRequest),
    ] {
        let answer = ask(&mut socket, &request, 2).await;
        assert_eq!(answer.responses[0].error_code, code.code());
        assert_eq!(shown(&mut socket, "old", "retention.ms").await.0, "5000");
    }
    let answer = ask(&mut socket, &replace(Some("9000"), false), 2).await;
    assert_eq!(answer.responses[0].error_code, 0);
    assert_eq!(shown(&mut socket, "old", "segment.ms").await.0, "9000");
    assert_eq!(shown(&mut socket, "old", "retention.ms").await.1, DEFAULT);
}

#[tokio::test]
async fn open_partitions_go_by_a_change_from_its_answer_on() {
    let fast = [("LOGD_STORAGE__RETENTION_CHECK_INTERVAL_MS", "100")];
    let broker = Broker::start_with(&fast);
    let mut socket = broker.connect().await;
    create(&mut socket, "live", 1, &[("retention.ms", "-1")]).await;
    let large = || produce("live", -1, 30_000, vec![batch_of(1, 5_000)]);
    assert_eq!(produced(&mut socket, &large()).await[0].error_code, 0);

    let smaller = [("max.message.bytes", SET, Some("2000"))];
    assert_eq!(alter(&mut socket, "live", &smaller).await.0, 0);
    let refused = produced(&mut socket, &large()).await[0].error_code;
    assert_eq!(refused, ErrorCode::MessageTooLarge.code());
    let back = [("max.message.bytes", DELETE, None)];
    assert_eq!(alter(&mut socket, "live", &back).await.0, 0);
    assert_eq!(produced(&mut socket, &large()).await[0].error_code, 0);

    // Both records are of 1970.
    let shorter = [("retention.ms", SET, Some("60000"))];
    assert_eq!(alter(&mut socket, "live", &shorter).await.0, 0);
    let begun = std::time::Instant::now();
    loop {
        let fetched = ask(&mut socket, &fetch("live", 2, 0, 0), FETCH_VERSION).await;
        let start = fetched.responses[0].partitions[0].log_start_offset;
        if start == 2 {
            break;
        }
        assert!(begun.elapsed() < common::PATIENCE, "log start {start}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
