//! Produce requests: several partitions' batches to one broker, and the answers taken apart.
//!
//! Promise: one task per broker starts requests in the order they were handed to it, so a partition's
//! batches reach its leader in order; every batch handed over is answered for.
//!
//! Not here: what an answer means for a batch ([`super::lane`]).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use logd_proto::messages::produce_request::{PartitionProduceData, TopicProduceData};
use logd_proto::messages::{ProduceRequest, ProduceResponse};
use logd_proto::{ErrorCode, message};
use tokio::sync::mpsc;

use super::queues::LaneKey;
use crate::cluster::{Cluster, Purpose, cap};
use crate::connection::Reply;
use crate::error::RequestError;

/// One partition's batch in a request.
#[derive(Debug)]
pub(super) struct Item {
    pub lane: LaneKey,
    pub flight: u64,
    pub bytes: Bytes,
}

/// What a broker said about one batch.
#[derive(Debug)]
pub(super) struct Answer {
    pub code: ErrorCode,
    pub base_offset: i64,
    pub append_timestamp: i64,
    pub message: Option<String>,
}

/// All that is known about one batch after its request.
#[derive(Debug)]
pub(super) struct Outcome {
    pub lane: LaneKey,
    pub flight: u64,
    pub result: Result<Answer, RequestError>,
}

/// A request is done.
#[derive(Debug)]
pub(super) struct Answered {
    pub node: i32,
    pub outcomes: Vec<Outcome>,
}

/// Sends jobs to one broker until the sender of jobs is dropped.
///
/// `jobs` is bounded by its owner, which counts what is outstanding.
pub(super) async fn serve(
    cluster: Arc<Cluster>,
    node: i32,
    mut jobs: mpsc::UnboundedReceiver<Vec<Item>>,
    answers: mpsc::UnboundedSender<Answered>,
) {
    while let Some(items) = jobs.recv().await {
        let started = start(&cluster, node, &items).await;
        let answers = answers.clone();
        tokio::spawn(async move {
            let response = match started {
                Ok(reply) => reply.wait().await,
                Err(error) => Err(error),
            };
            let outcomes = take_apart(items, response);
            // The producer may have ended; its deliveries then say so.
            answers.send(Answered { node, outcomes }).ok();
        });
    }
}

async fn start(
    cluster: &Cluster,
    node: i32,
    items: &[Item],
) -> Result<Reply<ProduceRequest>, RequestError> {
    let timeout = cluster.settings.request_timeout;
    let connection = cluster.connection(node, Purpose::Produce).await?;
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let request = message!(ProduceRequest {
        acks: -1,
        timeout_ms: timeout_ms,
        topic_data: by_topic(items),
    });
    connection.start(&request, cap::PRODUCE, timeout).await
}

fn by_topic(items: &[Item]) -> Vec<TopicProduceData> {
    let mut topics: Vec<TopicProduceData> = Vec::new();
    for item in items {
        let data = message!(PartitionProduceData {
            index: item.lane.partition,
            records: Some(item.bytes.clone()),
        });
        // Items come ordered by topic.
        match topics
            .last_mut()
            .filter(|last| *last.name == *item.lane.topic)
        {
            Some(last) => last.partition_data.push(data),
            None => topics.push(message!(TopicProduceData {
                name: (&*item.lane.topic).into(),
                partition_data: vec![data],
            })),
        }
    }
    topics
}

fn take_apart(items: Vec<Item>, response: Result<ProduceResponse, RequestError>) -> Vec<Outcome> {
    let mut answers = HashMap::new();
    let failed = match response {
        Ok(response) => {
            for topic in response.responses {
                let name = topic.name;
                for partition in topic.partition_responses {
                    let answer = Answer {
                        code: ErrorCode::from_code(partition.error_code),
                        base_offset: partition.base_offset,
                        append_timestamp: partition.log_append_time_ms,
                        message: partition.error_message.map(|text| text.into_string()),
                    };
                    answers.insert((name.clone(), partition.index), answer);
                }
            }
            None
        }
        Err(error) => Some(error),
    };
    let outcome = |item: Item| {
        let result = match &failed {
            Some(error) => Err(error.clone()),
            // An answer without the partition: as good as none.
            None => answers
                .remove(&((&*item.lane.topic).into(), item.lane.partition))
                .ok_or_else(|| RequestError::Closed {
                    addr: Arc::clone(&item.lane.topic),
                    reason: "the answer left the partition out".into(),
                }),
        };
        let Item { lane, flight, .. } = item;
        Outcome {
            lane,
            flight,
            result,
        }
    };
    items.into_iter().map(outcome).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(topic: &str, partition: i32) -> Item {
        let lane = LaneKey {
            topic: topic.into(),
            partition,
        };
        Item {
            lane,
            flight: 0,
            bytes: Bytes::new(),
        }
    }

    #[test]
    fn a_topic_is_named_once() {
        let topics = by_topic(&[item("a", 0), item("a", 1), item("b", 0)]);
        let shape: Vec<_> = topics
            .iter()
            .map(|t| (t.name.as_str(), t.partition_data.len()))
            .collect();
        assert_eq!(shape, [("a", 2), ("b", 1)]);
    }

    #[test]
    fn a_batch_left_out_of_the_answer_may_be_repeated() {
        let outcomes = take_apart(vec![item("a", 0)], Ok(ProduceResponse::default()));
        let error = outcomes[0].result.as_ref().unwrap_err();
        assert!(error.is_retriable(), "{error}");
    }
}
