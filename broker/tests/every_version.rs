//! Every API in every version we announce is answered by a real broker with bytes that decode.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::versions::{TOPIC, in_every_version, topic};
use common::{Broker, exchange};
use logd_proto::api::{ApiKey, encode_request};
use logd_proto::messages::*;
use logd_proto::record_batch::BatchBuilder;
use logd_proto::{StrBytes, Uuid, message};

fn batch() -> bytes::Bytes {
    let mut batch = BatchBuilder::new();
    batch
        .push(1_700_000_000_000, Some(b"k"), Some(b"v"), &[])
        .expect("it fits");
    batch.build().expect("it builds")
}

#[tokio::test]
async fn trap_34_records_and_offsets() {
    let broker = Broker::start();
    let id = topic(&broker).await;

    let produced = in_every_version(&broker, ApiKey::Produce, |version| {
        let data = message!(produce_request::PartitionProduceData {
            index: 0,
            records: Some(batch())
        });
        let by_id = version >= 13;
        let topic = message!(produce_request::TopicProduceData {
            name: if by_id {
                StrBytes::default()
            } else {
                TOPIC.into()
            },
            topic_id: if by_id { id } else { Uuid::ZERO },
            partition_data: vec![data],
        });
        message!(ProduceRequest {
            acks: -1,
            timeout_ms: 30_000,
            topic_data: vec![topic]
        })
    })
    .await;
    for (n, response) in produced.iter().enumerate() {
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!((partition.error_code, partition.base_offset), (0, n as i64));
    }

    let fetched = in_every_version(&broker, ApiKey::Fetch, |version| {
        let partition = message!(fetch_request::FetchPartition {
            partition: 0,
            fetch_offset: 0,
            partition_max_bytes: 1 << 20
        });
        let by_id = version >= 13;
        let topic = message!(fetch_request::FetchTopic {
            topic: if by_id {
                StrBytes::default()
            } else {
                TOPIC.into()
            },
            topic_id: if by_id { id } else { Uuid::ZERO },
            partitions: vec![partition],
        });
        message!(FetchRequest {
            replica_id: -1,
            max_wait_ms: 100,
            min_bytes: 1,
            max_bytes: 1 << 20,
            topics: vec![topic]
        })
    })
    .await;
    for response in fetched {
        let partition = &response.responses[0].partitions[0];
        assert_eq!(partition.error_code, 0);
        assert_eq!(partition.high_watermark, produced.len() as i64);
        assert!(partition.records.as_ref().is_some_and(|r| !r.is_empty()));
    }

    for (timestamp, offset) in [
        (-1, produced.len() as i64),
        (-2, 0),
        (1_700_000_000_000, 0),
        (1_700_000_000_001, -1),
    ] {
        let listed = in_every_version(&broker, ApiKey::ListOffsets, |_| {
            let partition = message!(list_offsets_request::ListOffsetsPartition {
                partition_index: 0,
                timestamp
            });
            let topic = message!(list_offsets_request::ListOffsetsTopic {
                name: TOPIC.into(),
                partitions: vec![partition]
            });
            message!(ListOffsetsRequest {
                replica_id: -1,
                topics: vec![topic]
            })
        })
        .await;
        for response in listed {
            let partition = &response.topics[0].partitions[0];
            assert_eq!(
                (partition.error_code, partition.offset),
                (0, offset),
                "timestamp {timestamp}"
            );
        }
    }

    let cut = in_every_version(&broker, ApiKey::DeleteRecords, |_| {
        let partition = message!(delete_records_request::DeleteRecordsPartition {
            partition_index: 0,
            offset: 1
        });
        let topic = message!(delete_records_request::DeleteRecordsTopic {
            name: TOPIC.into(),
            partitions: vec![partition]
        });
        message!(DeleteRecordsRequest {
            topics: vec![topic],
            timeout_ms: 30_000
        })
    })
    .await;
    for response in cut {
        let partition = &response.topics[0].partitions[0];
        assert_eq!((partition.error_code, partition.low_watermark), (0, 1));
    }

    let epochs = in_every_version(&broker, ApiKey::OffsetForLeaderEpoch, |_| {
        let partition = message!(offset_for_leader_epoch_request::OffsetForLeaderPartition {
            partition: 0,
            current_leader_epoch: -1,
            leader_epoch: 1
        });
        let topic = message!(offset_for_leader_epoch_request::OffsetForLeaderTopic {
            topic: TOPIC.into(),
            partitions: vec![partition]
        });
        message!(OffsetForLeaderEpochRequest {
            topics: vec![topic]
        })
    })
    .await;
    assert!(
        epochs
            .iter()
            .all(|r| r.topics[0].partitions[0].end_offset == produced.len() as i64)
    );
}

#[tokio::test]
async fn topics_and_metadata() {
    let broker = Broker::start();
    topic(&broker).await;

    let described = in_every_version(&broker, ApiKey::Metadata, |_| {
        let topic = message!(metadata_request::MetadataRequestTopic {
            name: Some(TOPIC.into())
        });
        message!(MetadataRequest {
            topics: Some(vec![topic]),
            allow_auto_topic_creation: true
        })
    })
    .await;
    for (version, response) in described.iter().enumerate() {
        assert_eq!(response.topics[0].partitions.len(), 2, "version {version}");
        assert_eq!(response.brokers.len(), 1);
        assert_eq!(
            response.topics[0].topic_id.is_zero(),
            version < 10,
            "ids come with version 10"
        );
    }

    let created = in_every_version(&broker, ApiKey::CreateTopics, |version| {
        let name = format!("made-by-{version}");
        let topic = message!(create_topics_request::CreatableTopic {
            name: name.into(),
            num_partitions: 1,
            replication_factor: 1
        });
        message!(CreateTopicsRequest {
            topics: vec![topic],
            timeout_ms: 30_000
        })
    })
    .await;
    assert!(created.iter().all(|r| r.topics[0].error_code == 0));

    let deleted = in_every_version(&broker, ApiKey::DeleteTopics, |version| {
        let name = StrBytes::from(if version < 2 {
            format!("made-by-{}", version + 6)
        } else {
            format!("made-by-{version}")
        });
        if version >= 6 {
            let topic = message!(delete_topics_request::DeleteTopicState {
                name: Some("made-by-2".into())
            });
            return message!(DeleteTopicsRequest {
                topics: vec![topic],
                timeout_ms: 30_000
            });
        }
        message!(DeleteTopicsRequest {
            topic_names: vec![name],
            timeout_ms: 30_000
        })
    })
    .await;
    let codes: Vec<i16> = deleted.iter().map(|r| r.responses[0].error_code).collect();
    assert_eq!(codes.iter().filter(|c| **c == 0).count(), 5, "{codes:?}");

    let grown = in_every_version(&broker, ApiKey::CreatePartitions, |version| {
        let topic = message!(create_partitions_request::CreatePartitionsTopic {
            name: TOPIC.into(),
            count: 3 + i32::from(version),
            assignments: None
        });
        message!(CreatePartitionsRequest {
            topics: vec![topic],
            timeout_ms: 30_000
        })
    })
    .await;
    assert!(grown.iter().all(|r| r.results[0].error_code == 0));
}

#[tokio::test]
async fn clusters_and_moves() {
    let broker = Broker::start();
    topic(&broker).await;

    let described = in_every_version(&broker, ApiKey::DescribeCluster, |_| {
        message!(DescribeClusterRequest { endpoint_type: 1 })
    })
    .await;
    for response in described {
        assert_eq!((response.error_code, response.controller_id), (0, 1));
        assert_eq!(response.brokers.len(), 1);
    }

    let quorums = in_every_version(&broker, ApiKey::DescribeQuorum, |_| {
        let partition = message!(describe_quorum_request::PartitionData { partition_index: 0 });
        let topic = message!(describe_quorum_request::TopicData {
            topic_name: "__cluster_metadata".into(),
            partitions: vec![partition]
        });
        message!(DescribeQuorumRequest {
            topics: vec![topic]
        })
    })
    .await;
    for response in quorums {
        let partition = &response.topics[0].partitions[0];
        assert_eq!((partition.error_code, partition.leader_id), (0, 1));
        assert_eq!(partition.current_voters.len(), 1);
        // Kafka's own tool refuses an endpoint whose name is not in capitals.
        let listeners = response.nodes.iter().flat_map(|node| &node.listeners);
        for listener in listeners {
            assert_eq!(listener.name.as_str(), "DEFAULT");
        }
    }

    let altered = in_every_version(&broker, ApiKey::AlterPartitionReassignments, |_| {
        let partition = message!(
            alter_partition_reassignments_request::ReassignablePartition {
                partition_index: 0,
                replicas: Some(vec![9])
            }
        );
        let topic = message!(alter_partition_reassignments_request::ReassignableTopic {
            name: TOPIC.into(),
            partitions: vec![partition]
        });
        message!(AlterPartitionReassignmentsRequest {
            timeout_ms: 30_000,
            topics: vec![topic]
        })
    })
    .await;
    for response in altered {
        assert_eq!(response.responses[0].partitions[0].error_code, 39);
    }

    let listed = in_every_version(&broker, ApiKey::ListPartitionReassignments, |_| {
        message!(ListPartitionReassignmentsRequest {
            timeout_ms: 30_000,
            topics: None
        })
    })
    .await;
    assert!(
        listed
            .iter()
            .all(|r| r.error_code == 0 && r.topics.is_empty())
    );

    let elected = in_every_version(&broker, ApiKey::ElectLeaders, |_| {
        let partitions = message!(elect_leaders_request::TopicPartitions {
            topic: TOPIC.into(),
            partitions: vec![0, 7]
        });
        message!(ElectLeadersRequest {
            topic_partitions: Some(vec![partitions]),
            timeout_ms: 30_000
        })
    })
    .await;
    for response in elected {
        let mut results = response.replica_election_results[0]
            .partition_result
            .clone();
        results.sort_by_key(|r| r.partition_id);
        let codes: Vec<i16> = results.iter().map(|r| r.error_code).collect();
        assert_eq!(codes, [84, 3], "not needed, and unknown");
    }
}

#[tokio::test]
async fn versions_producers_and_groups() {
    let broker = Broker::start();
    topic(&broker).await;

    let announced = in_every_version(&broker, ApiKey::ApiVersions, |_| {
        message!(ApiVersionsRequest {
            client_software_name: "tests".into(),
            client_software_version: "1".into()
        })
    })
    .await;
    assert!(
        announced
            .iter()
            .all(|r| r.api_keys.len() == ApiKey::ALL.len())
    );

    let ids = in_every_version(&broker, ApiKey::InitProducerId, |_| {
        message!(InitProducerIdRequest {
            transactional_id: None,
            transaction_timeout_ms: 60_000,
            producer_id: -1,
            producer_epoch: -1
        })
    })
    .await;
    let distinct: std::collections::BTreeSet<i64> = ids.iter().map(|r| r.producer_id).collect();
    assert_eq!(distinct.len(), ids.len());

    let found = in_every_version(&broker, ApiKey::FindCoordinator, |version| {
        if version >= 4 {
            return message!(FindCoordinatorRequest {
                coordinator_keys: vec!["g".into()]
            });
        }
        message!(FindCoordinatorRequest { key: "g".into() })
    })
    .await;
    for (version, response) in found.iter().enumerate() {
        let node = if version >= 4 {
            response.coordinators[0].node_id
        } else {
            response.node_id
        };
        assert_eq!(node, 1, "version {version}");
    }

    in_every_version(&broker, ApiKey::JoinGroup, |_| {
        let protocol = message!(join_group_request::JoinGroupRequestProtocol {
            name: "range".into()
        });
        message!(JoinGroupRequest {
            group_id: "every".into(),
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 1_000,
            member_id: "nobody".into(),
            protocol_type: "consumer".into(),
            protocols: vec![protocol],
        })
    })
    .await;
    in_every_version(&broker, ApiKey::SyncGroup, |_| {
        message!(SyncGroupRequest {
            group_id: "every".into(),
            generation_id: 1,
            member_id: "nobody".into()
        })
    })
    .await;
    in_every_version(&broker, ApiKey::Heartbeat, |_| {
        message!(HeartbeatRequest {
            group_id: "every".into(),
            generation_id: 1,
            member_id: "nobody".into()
        })
    })
    .await;
    in_every_version(&broker, ApiKey::LeaveGroup, |version| {
        if version >= 3 {
            let member = message!(leave_group_request::MemberIdentity {
                member_id: "nobody".into()
            });
            return message!(LeaveGroupRequest {
                group_id: "every".into(),
                members: vec![member]
            });
        }
        message!(LeaveGroupRequest {
            group_id: "every".into(),
            member_id: "nobody".into()
        })
    })
    .await;
    in_every_version(&broker, ApiKey::ListGroups, |_| {
        ListGroupsRequest::default()
    })
    .await;
    in_every_version(&broker, ApiKey::DescribeGroups, |_| {
        message!(DescribeGroupsRequest {
            groups: vec!["every".into()]
        })
    })
    .await;
}

#[tokio::test]
async fn committed_offsets() {
    let broker = Broker::start();
    let id = topic(&broker).await;
    let mut socket = broker.connect().await;
    let find = encode_request(
        &message!(FindCoordinatorRequest { key: "g".into() }),
        0,
        1,
        None,
    )
    .expect("it encodes")
    .to_bytes();
    exchange(&mut socket, &find).await.expect("an answer");

    let committed = in_every_version(&broker, ApiKey::OffsetCommit, |version| {
        let partition = message!(offset_commit_request::OffsetCommitRequestPartition {
            partition_index: 0,
            committed_offset: i64::from(version),
            committed_metadata: Some("m".into())
        });
        let by_id = version >= 10;
        let topic = message!(offset_commit_request::OffsetCommitRequestTopic {
            name: if by_id {
                StrBytes::default()
            } else {
                TOPIC.into()
            },
            topic_id: if by_id { id } else { Uuid::ZERO },
            partitions: vec![partition],
        });
        message!(OffsetCommitRequest {
            group_id: "g".into(),
            generation_id_or_member_epoch: -1,
            topics: vec![topic]
        })
    })
    .await;
    assert!(
        committed
            .iter()
            .all(|r| r.topics[0].partitions[0].error_code == 0),
        "{committed:?}"
    );

    let fetched = in_every_version(&broker, ApiKey::OffsetFetch, |version| {
        if version >= 8 {
            let by_id = version >= 10;
            let topic = message!(offset_fetch_request::OffsetFetchRequestTopics {
                name: if by_id {
                    StrBytes::default()
                } else {
                    TOPIC.into()
                },
                topic_id: if by_id { id } else { Uuid::ZERO },
                partition_indexes: vec![0],
            });
            let group = message!(offset_fetch_request::OffsetFetchRequestGroup {
                group_id: "g".into(),
                topics: Some(vec![topic])
            });
            return message!(OffsetFetchRequest {
                groups: vec![group]
            });
        }
        let topic = message!(offset_fetch_request::OffsetFetchRequestTopic {
            name: TOPIC.into(),
            partition_indexes: vec![0]
        });
        message!(OffsetFetchRequest {
            group_id: "g".into(),
            topics: Some(vec![topic])
        })
    })
    .await;
    for response in fetched {
        let offset = match response.groups.first() {
            Some(group) => group.topics[0].partitions[0].committed_offset,
            None => response.topics[0].partitions[0].committed_offset,
        };
        assert_eq!(offset, 10, "what the last version committed");
    }

    let deleted = in_every_version(&broker, ApiKey::OffsetDelete, |_| {
        let partition =
            message!(offset_delete_request::OffsetDeleteRequestPartition { partition_index: 0 });
        let topic = message!(offset_delete_request::OffsetDeleteRequestTopic {
            name: TOPIC.into(),
            partitions: vec![partition]
        });
        message!(OffsetDeleteRequest {
            group_id: "g".into(),
            topics: vec![topic]
        })
    })
    .await;
    assert!(
        deleted
            .iter()
            .all(|r| r.topics[0].partitions[0].error_code == 0)
    );

    let absent = in_every_version(&broker, ApiKey::DeleteGroups, |_| {
        message!(DeleteGroupsRequest {
            groups_names: vec!["absent".into()]
        })
    })
    .await;
    assert!(absent.iter().all(|r| r.results[0].error_code == 69));
}
