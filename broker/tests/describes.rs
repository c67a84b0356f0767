//! What tools show of topics, disks and producers.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::Broker;
use common::requests::*;
use describe_topic_partitions_request::{Cursor, TopicRequest};
use logd_proto::ErrorCode;
use logd_proto::message;
use logd_proto::messages::*;
use logd_proto::record_batch::BatchBuilder;
use tokio::net::TcpStream;

async fn page(
    socket: &mut TcpStream,
    topics: &[&str],
    limit: i32,
    cursor: Option<(&str, i32)>,
) -> DescribeTopicPartitionsResponse {
    let topics = topics
        .iter()
        .map(|t| message!(TopicRequest { name: (*t).into() }));
    let cursor = cursor.map(|(topic, partition_index)| {
        message!(Cursor {
            topic_name: topic.into(),
            partition_index
        })
    });
    let request = message!(DescribeTopicPartitionsRequest {
        topics: topics.collect(),
        response_partition_limit: limit,
        cursor
    });
    ask(socket, &request, 0).await
}

/// librdkafka's 0081 counts them: eight of a topic, seven of a cluster.
#[tokio::test]
async fn who_asks_what_may_be_done_with_topics_and_the_cluster_is_told() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "a", 1, &[]).await;
    for asked in [false, true] {
        let count = |bits: i32| (bits != i32::MIN).then(|| bits.count_ones());
        let of = |kinds: u32| asked.then_some(kinds);
        let names = [Some("a"), Some("nobody")];
        let topics = names.map(|name| {
            message!(metadata_request::MetadataRequestTopic {
                name: name.map(Into::into)
            })
        });
        let request = message!(MetadataRequest {
            topics: Some(topics.to_vec()),
            allow_auto_topic_creation: false,
            include_topic_authorized_operations: asked,
            include_cluster_authorized_operations: asked
        });
        let told = ask(&mut socket, &request, 10).await;
        assert_eq!(count(told.cluster_authorized_operations), of(7));
        let topics = told.topics.iter();
        let topics: Vec<_> = topics
            .map(|t| count(t.topic_authorized_operations))
            .collect();
        assert_eq!(
            topics,
            [of(8), None],
            "nothing of a topic that is not there"
        );
        let request = message!(DescribeClusterRequest {
            endpoint_type: 1,
            include_cluster_authorized_operations: asked
        });
        let told = ask(&mut socket, &request, 1).await;
        assert_eq!(count(told.cluster_authorized_operations), of(7));
    }
    let pages = page(&mut socket, &["a"], 2, None).await;
    assert_eq!(pages.topics[0].topic_authorized_operations.count_ones(), 8);
}

#[tokio::test]
async fn topics_are_described_in_pages_that_follow_one_another() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    for (topic, partitions) in [("b", 3), ("a", 2)] {
        create(&mut socket, topic, partitions, &[]).await;
    }
    for asked in [&["a", "b"][..], &[]] {
        let mut seen = Vec::new();
        let mut cursor: Option<(String, i32)> = None;
        for _ in 0..3 {
            let from = cursor.as_ref().map(|(t, p)| (t.as_str(), *p));
            let answer = page(&mut socket, asked, 2, from).await;
            for topic in &answer.topics {
                assert_eq!(topic.error_code, 0);
                let name = topic.name.as_ref().expect("a name").to_string();
                let row = |p: &describe_topic_partitions_response::DescribeTopicPartitionsResponsePartition| {
                    assert_eq!((p.leader_id, p.replica_nodes.as_slice()), (1, &[1][..]));
                    assert!(p.offline_replicas.is_empty());
                    (name.clone(), p.partition_index)
                };
                seen.extend(topic.partitions.iter().map(row));
            }
            let next = answer.next_cursor;
            cursor = next.map(|c| (c.topic_name.to_string(), c.partition_index));
        }
        assert_eq!(cursor, None, "three pages of two are enough");
        let rows: Vec<(&str, i32)> = seen.iter().map(|(t, p)| (t.as_str(), *p)).collect();
        assert_eq!(rows, [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)]);
    }
}

#[tokio::test]
async fn topics_that_are_not_there_are_described_as_such() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    let answer = page(&mut socket, &["nobody", "no/body"], 10, None).await;
    let codes: Vec<i16> = answer.topics.iter().map(|t| t.error_code).collect();
    let expected = [ErrorCode::InvalidTopic, ErrorCode::UnknownTopicOrPartition];
    assert_eq!(
        codes,
        expected.map(ErrorCode::code),
        "in order of the names"
    );
}

#[tokio::test]
async fn a_disk_shows_its_space_and_what_each_partition_takes() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "sized", 2, &[]).await;
    let large = batch_of(1, 10_000);
    let request = produce("sized", -1, 30_000, vec![large]);
    assert_eq!(produced(&mut socket, &request).await[0].error_code, 0);

    let everything = message!(DescribeLogDirsRequest { topics: None });
    let answer = ask(&mut socket, &everything, 5).await;
    let [dir] = answer.results.as_slice() else {
        panic!("one disk: {answer:?}")
    };
    assert_eq!(dir.error_code, 0);
    assert_eq!(dir.log_dir.as_str(), broker.data.path().to_string_lossy());
    assert!(dir.total_bytes >= dir.usable_bytes && dir.usable_bytes > 0);
    let sizes: Vec<i64> = dir.topics[0]
        .partitions
        .iter()
        .map(|p| p.partition_size)
        .collect();
    assert!(sizes[0] > 10_000 && sizes[1] < 10_000, "{sizes:?}");

    let topic = message!(describe_log_dirs_request::DescribableLogDirTopic {
        topic: "sized".into(),
        partitions: vec![1, 7]
    });
    let some = message!(DescribeLogDirsRequest {
        topics: Some(vec![topic])
    });
    let answer = ask(&mut socket, &some, 4).await;
    let rows = &answer.results[0].topics[0].partitions;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].partition_index, 1);
}

#[tokio::test]
async fn a_partition_shows_the_producers_it_remembers() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "written", 1, &[]).await;
    for (producer, first) in [(9, 0), (9, 1), (4, 0)] {
        let mut batch = BatchBuilder::new().producer(producer, 2, first);
        batch.push(77, None, Some(b"v"), &[]).expect("it fits");
        let batch = batch.build().expect("it builds");
        let request = produce("written", -1, 30_000, vec![batch]);
        assert_eq!(produced(&mut socket, &request).await[0].error_code, 0);
    }
    let topic = |name: &str, indexes: &[i32]| {
        message!(describe_producers_request::TopicRequest {
            name: name.into(),
            partition_indexes: indexes.to_vec()
        })
    };
    let request = message!(DescribeProducersRequest {
        topics: vec![topic("written", &[0, 5]), topic("nobody", &[0])]
    });
    let answer = ask(&mut socket, &request, 0).await;
    let partitions: Vec<_> = answer.topics.iter().flat_map(|t| &t.partitions).collect();
    let codes: Vec<i16> = partitions.iter().map(|p| p.error_code).collect();
    let unknown = ErrorCode::UnknownTopicOrPartition.code();
    assert_eq!(codes, [0, unknown, unknown]);
    let rows: Vec<_> = partitions[0]
        .active_producers
        .iter()
        .map(|p| (p.producer_id, p.producer_epoch, p.last_sequence))
        .collect();
    assert_eq!(rows, [(4, 2, 0), (9, 2, 1)]);
    let first = &partitions[0].active_producers[0];
    assert_eq!((first.last_timestamp, first.coordinator_epoch), (77, -1));
    assert_eq!(first.current_txn_start_offset, -1);
}

#[tokio::test]
async fn what_has_a_configuration_is_listed_by_type() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    create(&mut socket, "listed", 1, &[]).await;
    for (types, expected) in [
        (vec![], vec![("listed", 2), ("1", 4)]),
        (vec![2], vec![("listed", 2)]),
        (vec![4, 32], vec![("1", 4)]),
        (vec![16], vec![]),
    ] {
        let request = message!(ListConfigResourcesRequest {
            resource_types: types
        });
        let answer = ask(&mut socket, &request, 1).await;
        assert_eq!(answer.error_code, 0);
        let listed: Vec<_> = answer
            .config_resources
            .iter()
            .map(|r| (r.resource_name.as_str(), r.resource_type))
            .collect();
        assert_eq!(listed, expected);
    }
    let unknown = message!(ListConfigResourcesRequest {
        resource_types: vec![77]
    });
    let refused = ask(&mut socket, &unknown, 1).await;
    assert_eq!(refused.error_code, ErrorCode::UnsupportedVersion.code());
    // Once it was about client metrics only, of which there are none.
    let once = ask(&mut socket, &ListConfigResourcesRequest::default(), 0).await;
    assert!(once.config_resources.is_empty());
}

#[tokio::test]
async fn there_is_no_authorizer_no_quota_and_no_user_and_that_is_said() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    let disabled = ErrorCode::SecurityDisabled.code();
    let acls = ask(&mut socket, &DescribeAclsRequest::default(), 3).await;
    assert_eq!((acls.error_code, acls.resources.len()), (disabled, 0));
    assert!(acls.error_message.expect("why").contains("no authorizer"));
    let wanted = create_acls_request::AclCreation::default();
    let creating = message!(CreateAclsRequest {
        creations: vec![wanted.clone(), wanted]
    });
    let created = ask(&mut socket, &creating, 3).await;
    let codes: Vec<i16> = created.results.iter().map(|r| r.error_code).collect();
    assert_eq!(codes, [disabled, disabled]);
    let deleting = message!(DeleteAclsRequest {
        filters: vec![delete_acls_request::DeleteAclsFilter::default()]
    });
    let deleted = ask(&mut socket, &deleting, 3).await;
    assert_eq!(deleted.filter_results[0].error_code, disabled);

    let quotas = ask(&mut socket, &DescribeClientQuotasRequest::default(), 1).await;
    assert_eq!((quotas.error_code, quotas.entries), (0, Some(vec![])));

    let all = message!(DescribeUserScramCredentialsRequest { users: None });
    let users = ask(&mut socket, &all, 0).await;
    assert_eq!((users.error_code, users.results.len()), (0, 0));
    let named = message!(DescribeUserScramCredentialsRequest {
        users: Some(vec![message!(
            describe_user_scram_credentials_request::UserName { name: "ann".into() }
        )])
    });
    let users = ask(&mut socket, &named, 0).await;
    let [ann] = &users.results[..] else {
        panic!("one answer: {users:?}");
    };
    let unknown = ErrorCode::ResourceNotFound.code();
    assert_eq!((ann.user.as_str(), ann.error_code), ("ann", unknown));
}

#[tokio::test]
async fn a_broker_that_is_unknown_or_needed_is_not_unregistered() {
    let broker = Broker::start();
    let mut socket = broker.connect().await;
    let unregister = |id| message!(UnregisterBrokerRequest { broker_id: id });
    let unknown = ask(&mut socket, &unregister(9), 0).await;
    assert_eq!(unknown.error_code, ErrorCode::BrokerIdNotRegistered.code());
    let last = ask(&mut socket, &unregister(1), 0).await;
    assert_eq!(last.error_code, ErrorCode::PolicyViolation.code());
    create(&mut socket, "held", 1, &[]).await;
    let needed = ask(&mut socket, &unregister(1), 0).await;
    assert_eq!(needed.error_code, ErrorCode::PolicyViolation.code());
    let why = needed.error_message.expect("a reason");
    assert!(why.contains("decommission"), "{why}");
}
