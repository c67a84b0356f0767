//! DescribeTopicPartitions: topics partition by partition, in pages (KIP-966).
//!
//! Which page it is, is decided by a pure function of the topics' sizes; the rest is as in Metadata.

use super::metadata::{self, is_legal};
use super::{Services, errors, operations};
use crate::cluster::{ClusterState, Topic};
use logd_proto::messages::describe_topic_partitions_request::Cursor;
use logd_proto::messages::describe_topic_partitions_response::{
    Cursor as NextCursor, DescribeTopicPartitionsResponsePartition,
    DescribeTopicPartitionsResponseTopic,
};
use logd_proto::messages::{DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse};
use logd_proto::{ErrorCode, StrBytes, message};
use std::collections::BTreeSet;
use std::ops::Range;

/// Partitions in one answer, whatever is asked for; as Kafka's `max.request.partition.size.limit`.
const PARTITIONS_MAX: usize = 2_000;

/// A topic of the page: its name, how many partitions it has, which of them are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown<T> {
    topic: T,
    partitions: Range<usize>,
}

/// Where the next page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Next<T> {
    topic: T,
    partition: usize,
}

/// Takes topics in order until the page is full. A topic without partitions, or one that is not there, takes
/// no room, but needs some to be left.
fn page<T: Clone>(
    topics: impl Iterator<Item = (T, usize)>,
    first_partition: usize,
    room: usize,
) -> (Vec<Shown<T>>, Option<Next<T>>) {
    let (mut shown, mut room, mut first) = (Vec::new(), room, first_partition);
    for (topic, count) in topics {
        let partition = first.min(count);
        if room == 0 {
            return (shown, Some(Next { topic, partition }));
        }
        let end = count.min(partition + room);
        room -= end - partition;
        shown.push(Shown {
            topic: topic.clone(),
            partitions: partition..end,
        });
        if end < count {
            let partition = end;
            return (shown, Some(Next { topic, partition }));
        }
        first = 0;
    }
    (shown, None)
}

pub fn describe(
    services: &Services,
    request: &DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let view = services.cluster.view();
    let cursor = request.cursor.as_ref();
    let names = names(&view, request);
    let sized = names.iter().map(|name| {
        let partitions = view.topic(name).map_or(0, |t| t.partitions.len());
        (name.clone(), partitions)
    });
    let begins_there = |c: &&Cursor| names.first().is_some_and(|name| *name == c.topic_name);
    let first = cursor.filter(begins_there).map(|c| c.partition_index);
    let first = usize::try_from(first.unwrap_or(0)).unwrap_or(0);
    let room = usize::try_from(request.response_partition_limit).unwrap_or(0);
    let room = room.clamp(1, PARTITIONS_MAX);
    let (shown, next) = page(sized, first, room);
    let topics = shown.into_iter().map(|s| match view.topic(&s.topic) {
        Some(topic) => describe_topic(services, topic, s.partitions),
        None => missing(s.topic),
    });
    let next_cursor = next.map(|next| {
        message!(NextCursor {
            topic_name: next.topic,
            partition_index: next.partition as i32
        })
    });
    message!(DescribeTopicPartitionsResponse {
        topics: topics.collect(),
        next_cursor
    })
}

/// What is asked for from the cursor on, in order: the cursor's topic may be gone by now.
fn names(view: &ClusterState, request: &DescribeTopicPartitionsRequest) -> Vec<StrBytes> {
    let mut names: Vec<StrBytes> = if request.topics.is_empty() {
        let all = view.topics.values();
        all.map(|t| StrBytes::from(t.name.as_str())).collect()
    } else {
        request.topics.iter().map(|t| t.name.clone()).collect()
    };
    names.sort();
    names.dedup();
    if let Some(cursor) = &request.cursor {
        names.retain(|name| *name >= cursor.topic_name);
    }
    names
}

fn missing(name: StrBytes) -> DescribeTopicPartitionsResponseTopic {
    let code = match is_legal(&name) {
        true => ErrorCode::UnknownTopicOrPartition,
        false => ErrorCode::InvalidTopic,
    };
    message!(DescribeTopicPartitionsResponseTopic {
        error_code: errors::told(code),
        name: Some(name),
    })
}

fn describe_topic(
    services: &Services,
    topic: &Topic,
    indexes: Range<usize>,
) -> DescribeTopicPartitionsResponseTopic {
    let away = services.cluster.away();
    let partitions = indexes.map(|index| partition(services, topic, index as i32, &away));
    message!(DescribeTopicPartitionsResponseTopic {
        name: Some(topic.name.as_str().into()),
        topic_id: topic.id,
        topic_authorized_operations: operations::OF_TOPIC,
        is_internal: topic.internal,
        partitions: partitions.collect(),
    })
}

fn partition(
    services: &Services,
    topic: &Topic,
    index: i32,
    away: &BTreeSet<i32>,
) -> DescribeTopicPartitionsResponsePartition {
    let known = metadata::partition(services, topic, index, away);
    message!(DescribeTopicPartitionsResponsePartition {
        error_code: known.error_code,
        partition_index: index,
        leader_id: known.leader_id,
        leader_epoch: known.leader_epoch,
        offline_replicas: known.offline_replicas,
        replica_nodes: known.replica_nodes,
        isr_nodes: known.isr_nodes,
        // Whoever may lead is a matter of votes here: no replica waits to be eligible again.
        eligible_leader_replicas: Some(Vec::new()),
        last_known_elr: Some(Vec::new()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPICS: [(&str, usize); 3] = [("a", 3), ("b", 0), ("c", 2)];

    type Page = (
        Vec<(&'static str, Range<usize>)>,
        Option<(&'static str, usize)>,
    );

    fn of(topics: &[(&'static str, usize)], first: usize, room: usize) -> Page {
        let (shown, next) = page(topics.iter().copied(), first, room);
        let shown = shown.into_iter().map(|s| (s.topic, s.partitions));
        (shown.collect(), next.map(|n| (n.topic, n.partition)))
    }

    #[test]
    fn everything_fits_on_a_page_that_is_large_enough() {
        let all = vec![("a", 0..3), ("b", 0..0), ("c", 0..2)];
        assert_eq!(of(&TOPICS, 0, 5), (all, None));
    }

    #[test]
    fn pages_follow_one_another_without_a_gap_or_a_repetition() {
        for room in 1..6 {
            let (mut from, mut first, mut seen) = (0, 0, Vec::new());
            loop {
                let (shown, next) = of(&TOPICS[from..], first, room);
                seen.extend(shown.into_iter().flat_map(|(t, p)| p.map(move |p| (t, p))));
                let Some((topic, partition)) = next else {
                    break;
                };
                from = TOPICS.iter().position(|(t, _)| *t == topic).unwrap();
                first = partition;
            }
            let all = [("a", 0), ("a", 1), ("a", 2), ("c", 0), ("c", 1)];
            assert_eq!(seen, all, "room for {room}");
        }
    }

    #[test]
    fn a_cursor_behind_the_last_partition_shows_none_of_the_topic() {
        assert_eq!(of(&TOPICS[..1], 9, 5), (vec![("a", 3..3)], None));
    }
}
