//! Every version of an API that we announce, asked of a real broker.

use super::{Broker, exchange};
use logd_proto::api::{ApiKey, decode_response, encode_request};
use logd_proto::messages::*;
use logd_proto::{Uuid, message};

pub const TOPIC: &str = "every-version";

/// Sends a request in each of its versions; the answer must decode and repeat the correlation id.
pub async fn in_every_version<R: RequestResponsePair>(
    broker: &Broker,
    api: ApiKey,
    build: impl Fn(i16) -> R,
) -> Vec<R::Response> {
    let mut answers = Vec::new();
    for version in api.versions() {
        let when = format!("{} version {version}", api.name());
        let frame = encode_request(&build(version), version, 7, Some("every-version"))
            .unwrap_or_else(|e| panic!("{when}: {e}"));
        let mut socket = broker.connect().await;
        let answer = exchange(&mut socket, &frame.to_bytes())
            .await
            .unwrap_or_else(|e| panic!("{when}: {e}"));
        let (correlation_id, response) =
            decode_response::<R>(answer, version).unwrap_or_else(|e| panic!("{when}: {e}"));
        assert_eq!(correlation_id, 7, "{when}");
        answers.push(response);
    }
    answers
}

/// The topic's id, and the topic created on the way.
pub async fn topic(broker: &Broker) -> Uuid {
    let wanted = message!(create_topics_request::CreatableTopic {
        name: TOPIC.into(),
        num_partitions: 2,
        replication_factor: 1
    });
    let request = message!(CreateTopicsRequest {
        topics: vec![wanted],
        timeout_ms: 30_000
    });
    let mut socket = broker.connect().await;
    let frame = encode_request(&request, 7, 1, None)
        .expect("it encodes")
        .to_bytes();
    let answer = exchange(&mut socket, &frame).await.expect("an answer");
    let (_, response) = decode_response::<CreateTopicsRequest>(answer, 7).expect("it decodes");
    assert_eq!(
        response.topics[0].error_code, 0,
        "{:?}",
        response.topics[0].error_message
    );
    response.topics[0].topic_id
}
