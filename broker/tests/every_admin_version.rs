//! The calls of administrators' tools in every version we announce, answered by a real broker.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::Broker;
use common::versions::{TOPIC, in_every_version, topic};
use logd_proto::api::ApiKey;
use logd_proto::message;
use logd_proto::messages::*;

#[tokio::test]
async fn configurations() {
    let broker = Broker::start();
    topic(&broker).await;

    let described = in_every_version(&broker, ApiKey::DescribeConfigs, |version| {
        let resource = message!(describe_configs_request::DescribeConfigsResource {
            resource_type: 2,
            resource_name: TOPIC.into(),
            configuration_keys: None
        });
        message!(DescribeConfigsRequest {
            resources: vec![resource],
            include_synonyms: true,
            include_documentation: version >= 3
        })
    })
    .await;
    for response in described {
        let result = &response.results[0];
        assert_eq!(result.error_code, 0);
        assert!(result.configs.iter().all(|c| !c.synonyms.is_empty()));
    }

    let altered = in_every_version(&broker, ApiKey::IncrementalAlterConfigs, |version| {
        let config = message!(incremental_alter_configs_request::AlterableConfig {
            name: "retention.ms".into(),
            value: Some(version.to_string().into())
        });
        let resource = message!(incremental_alter_configs_request::AlterConfigsResource {
            resource_type: 2,
            resource_name: TOPIC.into(),
            configs: vec![config]
        });
        message!(IncrementalAlterConfigsRequest {
            resources: vec![resource]
        })
    })
    .await;
    assert!(altered.iter().all(|r| r.responses[0].error_code == 0));

    let replaced = in_every_version(&broker, ApiKey::AlterConfigs, |version| {
        let config = message!(alter_configs_request::AlterableConfig {
            name: "retention.ms".into(),
            value: Some(version.to_string().into())
        });
        let resource = message!(alter_configs_request::AlterConfigsResource {
            resource_type: 2,
            resource_name: TOPIC.into(),
            configs: vec![config]
        });
        message!(AlterConfigsRequest {
            resources: vec![resource]
        })
    })
    .await;
    assert!(replaced.iter().all(|r| r.responses[0].error_code == 0));
}

#[tokio::test]
async fn descriptions() {
    let broker = Broker::start();
    topic(&broker).await;

    let pages = in_every_version(&broker, ApiKey::DescribeTopicPartitions, |_| {
        let topic =
            message!(describe_topic_partitions_request::TopicRequest { name: TOPIC.into() });
        message!(DescribeTopicPartitionsRequest {
            topics: vec![topic],
            response_partition_limit: 1
        })
    })
    .await;
    for response in pages {
        assert_eq!(response.topics[0].partitions.len(), 1);
        assert_eq!(response.next_cursor.map(|c| c.partition_index), Some(1));
    }

    let dirs = in_every_version(&broker, ApiKey::DescribeLogDirs, |_| {
        message!(DescribeLogDirsRequest { topics: None })
    })
    .await;
    for response in dirs {
        assert_eq!(response.results[0].topics[0].partitions.len(), 2);
    }

    let producers = in_every_version(&broker, ApiKey::DescribeProducers, |_| {
        let topic = message!(describe_producers_request::TopicRequest {
            name: TOPIC.into(),
            partition_indexes: vec![0]
        });
        message!(DescribeProducersRequest {
            topics: vec![topic]
        })
    })
    .await;
    assert!(
        producers
            .iter()
            .all(|r| r.topics[0].partitions[0].error_code == 0)
    );

    let listed = in_every_version(&broker, ApiKey::ListConfigResources, |_| {
        ListConfigResourcesRequest::default()
    })
    .await;
    let counts: Vec<usize> = listed.iter().map(|r| r.config_resources.len()).collect();
    assert_eq!(counts, [0, 2]);

    let acls = in_every_version(&broker, ApiKey::DescribeAcls, |_| {
        DescribeAclsRequest::default()
    })
    .await;
    assert!(acls.iter().all(|r| r.error_code == 54));
    let created = in_every_version(&broker, ApiKey::CreateAcls, |_| {
        CreateAclsRequest::default()
    })
    .await;
    assert!(created.iter().all(|r| r.results.is_empty()));
    let deleted = in_every_version(&broker, ApiKey::DeleteAcls, |_| {
        DeleteAclsRequest::default()
    })
    .await;
    assert!(deleted.iter().all(|r| r.filter_results.is_empty()));
    let quotas = in_every_version(&broker, ApiKey::DescribeClientQuotas, |_| {
        DescribeClientQuotasRequest::default()
    })
    .await;
    assert!(quotas.iter().all(|r| r.error_code == 0));
    let users = in_every_version(&broker, ApiKey::DescribeUserScramCredentials, |_| {
        DescribeUserScramCredentialsRequest::default()
    })
    .await;
    assert!(users.iter().all(|r| r.error_code == 0));

    let refused = in_every_version(&broker, ApiKey::UnregisterBroker, |_| {
        message!(UnregisterBrokerRequest { broker_id: 9 })
    })
    .await;
    assert!(refused.iter().all(|r| r.error_code == 102));
}
