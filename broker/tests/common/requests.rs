//! Requests by hand, for what no client library would send.

use super::exchange;
use bytes::Bytes;
use logd_proto::StrBytes;
use logd_proto::api::{decode_response, encode_request};
use logd_proto::message;
use logd_proto::messages::*;
use logd_proto::record_batch::BatchBuilder;
use produce_response::PartitionProduceResponse;
use tokio::net::TcpStream;

/// Before topics are named by id.
pub const PRODUCE_VERSION: i16 = 9;
pub const FETCH_VERSION: i16 = 12;

pub async fn ask<R: RequestResponsePair>(
    socket: &mut TcpStream,
    request: &R,
    version: i16,
) -> R::Response {
    let frame = encode_request(request, version, 7, Some("by-hand")).expect("it encodes");
    let answer = exchange(socket, &frame.to_bytes())
        .await
        .expect("an answer");
    decode_response::<R>(answer, version).expect("it decodes").1
}

pub async fn create(socket: &mut TcpStream, topic: &str, partitions: i32, config: &[(&str, &str)]) {
    let configs = config.iter().map(|(name, value)| {
        message!(create_topics_request::CreatableTopicConfig {
            name: (*name).into(),
            value: Some((*value).into())
        })
    });
    let wanted = message!(create_topics_request::CreatableTopic {
        name: topic.into(),
        num_partitions: partitions,
        replication_factor: 1,
        configs: configs.collect()
    });
    let request = message!(CreateTopicsRequest {
        topics: vec![wanted],
        timeout_ms: 30_000
    });
    let created = ask(socket, &request, 5).await;
    let created = &created.topics[0];
    assert_eq!(created.error_code, 0, "{:?}", created.error_message);
}

pub async fn delete(socket: &mut TcpStream, topic: &str) {
    let request = message!(DeleteTopicsRequest {
        topic_names: vec![topic.into()],
        timeout_ms: 30_000
    });
    assert_eq!(ask(socket, &request, 5).await.responses[0].error_code, 0);
}

/// One batch for each of a topic's first partitions.
pub fn produce(topic: &str, acks: i16, timeout_ms: i32, batches: Vec<Bytes>) -> ProduceRequest {
    let partition_data = batches
        .into_iter()
        .zip(0..)
        .map(|(batch, index)| {
            message!(produce_request::PartitionProduceData {
                index,
                records: Some(batch)
            })
        })
        .collect();
    let topic = message!(produce_request::TopicProduceData {
        name: topic.into(),
        partition_data
    });
    message!(ProduceRequest {
        acks,
        timeout_ms,
        topic_data: vec![topic]
    })
}

pub async fn produced(
    socket: &mut TcpStream,
    request: &ProduceRequest,
) -> Vec<PartitionProduceResponse> {
    let mut response = ask(socket, request, PRODUCE_VERSION).await;
    response.responses.remove(0).partition_responses
}

/// A fetch of a topic's first partition.
pub fn fetch(topic: &str, offset: i64, min_bytes: i32, max_wait_ms: i32) -> FetchRequest {
    let partition = message!(fetch_request::FetchPartition {
        partition: 0,
        fetch_offset: offset,
        partition_max_bytes: 8 << 20
    });
    let topic = message!(fetch_request::FetchTopic {
        topic: topic.into(),
        partitions: vec![partition]
    });
    message!(FetchRequest {
        replica_id: -1,
        max_wait_ms,
        min_bytes,
        max_bytes: 8 << 20,
        topics: vec![topic]
    })
}

/// What a topic's first partition answers for a time.
pub async fn listed(
    socket: &mut TcpStream,
    topic: &str,
    timestamp: i64,
    version: i16,
) -> list_offsets_response::ListOffsetsPartitionResponse {
    let partition = message!(list_offsets_request::ListOffsetsPartition {
        partition_index: 0,
        current_leader_epoch: -1,
        timestamp
    });
    let topic = message!(list_offsets_request::ListOffsetsTopic {
        name: topic.into(),
        partitions: vec![partition]
    });
    let request = message!(ListOffsetsRequest {
        replica_id: -1,
        topics: vec![topic]
    });
    let mut answer = ask(socket, &request, version).await;
    answer.topics.remove(0).partitions.remove(0)
}

pub fn batch(timestamp: i64) -> Bytes {
    batch_of(timestamp, 5)
}

/// One record of so many bytes.
pub fn batch_of(timestamp: i64, bytes: usize) -> Bytes {
    let mut batch = BatchBuilder::new();
    let value = vec![b'x'; bytes];
    batch
        .push(timestamp, Some(b"k"), Some(&value), &[])
        .expect("it fits");
    batch.build().expect("it builds")
}

/// All configurations of a resource, with synonyms and documentation.
pub async fn described(
    socket: &mut TcpStream,
    kind: i8,
    name: &str,
) -> describe_configs_response::DescribeConfigsResult {
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

/// What is done to a configuration.
pub const SET: i8 = 0;
pub const DELETE: i8 = 1;
pub const APPEND: i8 = 2;
pub const SUBTRACT: i8 = 3;

/// A configuration's key, the operation on it, and the value.
pub type Change<'a> = (&'a str, i8, Option<&'a str>);

/// Changes of a resource's configurations.
pub fn changed(
    kind: i8,
    name: &str,
    changes: &[Change<'_>],
) -> incremental_alter_configs_request::AlterConfigsResource {
    let configs = changes.iter().map(|(key, operation, value)| {
        message!(incremental_alter_configs_request::AlterableConfig {
            name: (*key).into(),
            config_operation: *operation,
            value: value.map(StrBytes::from),
        })
    });
    message!(incremental_alter_configs_request::AlterConfigsResource {
        resource_type: kind,
        resource_name: name.into(),
        configs: configs.collect(),
    })
}

/// Makes changes, or only asks whether they could be made; the code and the reason.
pub async fn alter_or_try(
    socket: &mut TcpStream,
    (kind, name): (i8, &str),
    changes: &[Change<'_>],
    validate_only: bool,
) -> (i16, String) {
    let request = message!(IncrementalAlterConfigsRequest {
        resources: vec![changed(kind, name, changes)],
        validate_only,
    });
    let answer = ask(socket, &request, 1).await.responses.remove(0);
    let echoed = (answer.resource_type, answer.resource_name.as_str());
    assert_eq!(echoed, (kind, name));
    let why = answer.error_message.map(|m| m.to_string());
    (answer.error_code, why.unwrap_or_default())
}
