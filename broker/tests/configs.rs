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

async fn described(socket: &mut TcpStream, kind: i8, name: &str) -> DescribeConfigsResult {
    let resource = message!(describe_configs_request::DescribeConfigsResource {
        resource_type: kind,
        resource_name: name.into(),
        configuration_keys: None,
    });
    let request = message!(DescribeConfigsRequest {
        resources: vec![resource],
        include_synonyms: true,
        include_documentation: true,
    });
    ask(socket, &request, 4).await.results.remove(0)
}

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
    assert!(!retention.read_only && all["compression.type"].read_only);
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
    assert!(all.values().all(|c| c.read_only));

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
