//! From generated Produce and Fetch responses to those written by hand, and what gets lost on the way:
//! fields that are not in the schema, and those that only Kafka's controllers use.

use kafka_wire_core::TaggedFields;
use logd_proto::api::Response;
use logd_proto::{ErrorCode, fetch, leader, messages, produce};

/// A generated response as what a broker encodes; `None` if it says what ours cannot.
pub fn generated<R: Into<Response>>(response: R) -> Option<Response> {
    Some(response.into())
}

pub fn by_hand_produce(response: messages::ProduceResponse) -> Option<Response> {
    let stripped = strip_produce(response.clone());
    // What is not in the schema is not kept by hand-written code, nor would a broker send it.
    (stripped == response).then(|| produce_response(response).into())
}

pub fn by_hand_fetch(response: messages::FetchResponse) -> Option<Response> {
    let stripped = strip_fetch(response.clone());
    (stripped == response).then(|| fetch_response(response).into())
}

pub fn strip_produce(mut response: messages::ProduceResponse) -> messages::ProduceResponse {
    let none = TaggedFields::default;
    response.unknown_tagged_fields = none();
    response
        .node_endpoints
        .iter_mut()
        .for_each(|e| e.unknown_tagged_fields = none());
    for topic in &mut response.responses {
        topic.unknown_tagged_fields = none();
        for partition in &mut topic.partition_responses {
            partition.unknown_tagged_fields = none();
            partition.current_leader.unknown_tagged_fields = none();
            partition
                .record_errors
                .iter_mut()
                .for_each(|e| e.unknown_tagged_fields = none());
            partition.error_code = ErrorCode::from_code(partition.error_code).code();
        }
    }
    response
}

pub fn strip_fetch(mut response: messages::FetchResponse) -> messages::FetchResponse {
    let none = TaggedFields::default;
    response.unknown_tagged_fields = none();
    response.error_code = ErrorCode::from_code(response.error_code).code();
    response
        .node_endpoints
        .iter_mut()
        .for_each(|e| e.unknown_tagged_fields = none());
    for topic in &mut response.responses {
        topic.unknown_tagged_fields = none();
        for partition in &mut topic.partitions {
            partition.unknown_tagged_fields = none();
            partition.error_code = ErrorCode::from_code(partition.error_code).code();
            partition.current_leader.unknown_tagged_fields = none();
            partition.diverging_epoch.unknown_tagged_fields = none();
            // Snapshots belong to Kafka's controllers.
            partition.snapshot_id = Default::default();
            for aborted in partition.aborted_transactions.iter_mut().flatten() {
                aborted.unknown_tagged_fields = none();
            }
            // A broker sends no records as an empty set, not as null.
            partition.records.get_or_insert_default();
        }
    }
    response
}

pub fn produce_response(response: messages::ProduceResponse) -> produce::ProduceResponse {
    let partition = |p: messages::produce_response::PartitionProduceResponse| {
        let error = |e: messages::produce_response::BatchIndexAndErrorMessage| {
            let (batch_index, message) = (e.batch_index, e.batch_index_error_message);
            produce::RecordError {
                batch_index,
                message,
            }
        };
        let (leader_id, leader_epoch) = (p.current_leader.leader_id, p.current_leader.leader_epoch);
        produce::ProducePartitionResponse {
            index: p.index,
            error: ErrorCode::from_code(p.error_code),
            base_offset: p.base_offset,
            log_append_time_ms: p.log_append_time_ms,
            log_start_offset: p.log_start_offset,
            record_errors: p.record_errors.into_iter().map(error).collect(),
            error_message: p.error_message,
            current_leader: (p.current_leader != Default::default()).then_some(
                leader::CurrentLeader {
                    leader_id,
                    leader_epoch,
                },
            ),
        }
    };
    let topic = |t: messages::produce_response::TopicProduceResponse| {
        let partitions = t.partition_responses.into_iter().map(partition).collect();
        produce::ProduceTopicResponse {
            name: t.name,
            topic_id: t.topic_id,
            partitions,
        }
    };
    let endpoint = |e: messages::produce_response::NodeEndpoint| leader::NodeEndpoint {
        node_id: e.node_id,
        host: e.host,
        port: e.port,
        rack: e.rack,
    };
    produce::ProduceResponse {
        topics: response.responses.into_iter().map(topic).collect(),
        throttle_time_ms: response.throttle_time_ms,
        node_endpoints: response.node_endpoints.into_iter().map(endpoint).collect(),
    }
}

pub fn fetch_response(response: messages::FetchResponse) -> fetch::FetchResponse {
    let topic = |t: messages::fetch_response::FetchableTopicResponse| {
        let partitions = t.partitions.into_iter().map(fetch_partition).collect();
        fetch::FetchTopicResponse {
            name: t.topic,
            topic_id: t.topic_id,
            partitions,
        }
    };
    let endpoint = |e: messages::fetch_response::NodeEndpoint| leader::NodeEndpoint {
        node_id: e.node_id,
        host: e.host,
        port: e.port,
        rack: e.rack,
    };
    fetch::FetchResponse {
        throttle_time_ms: response.throttle_time_ms,
        error: ErrorCode::from_code(response.error_code),
        session_id: response.session_id,
        topics: response.responses.into_iter().map(topic).collect(),
        node_endpoints: response.node_endpoints.into_iter().map(endpoint).collect(),
    }
}

pub fn fetch_partition(
    p: messages::fetch_response::PartitionData,
) -> fetch::FetchPartitionResponse {
    let aborted = |a: messages::fetch_response::AbortedTransaction| {
        let (producer_id, first_offset) = (a.producer_id, a.first_offset);
        fetch::AbortedTransaction {
            producer_id,
            first_offset,
        }
    };
    let (leader_id, leader_epoch) = (p.current_leader.leader_id, p.current_leader.leader_epoch);
    let (epoch, end_offset) = (p.diverging_epoch.epoch, p.diverging_epoch.end_offset);
    fetch::FetchPartitionResponse {
        partition: p.partition_index,
        error: ErrorCode::from_code(p.error_code),
        high_watermark: p.high_watermark,
        last_stable_offset: p.last_stable_offset,
        log_start_offset: p.log_start_offset,
        diverging_epoch: (p.diverging_epoch != Default::default())
            .then_some(fetch::EpochEnd { epoch, end_offset }),
        current_leader: (p.current_leader != Default::default()).then_some(leader::CurrentLeader {
            leader_id,
            leader_epoch,
        }),
        aborted_transactions: p
            .aborted_transactions
            .map(|aborts| aborts.into_iter().map(aborted).collect()),
        preferred_read_replica: p.preferred_read_replica,
        records: p.records.into_iter().collect(),
    }
}
