//! Who of a group gets which partitions: the range rule, and the bytes members exchange about it.
//!
//! Promise: the same members and partitions give the same assignment whoever computes it; every
//! partition has exactly one owner among those who subscribed to its topic. Pure.
//!
//! Not here: joining and syncing ([`crate::consumer`]).

use std::collections::BTreeMap;

use bytes::Bytes;
use logd_proto::consumer_protocol;
use logd_proto::message;
use logd_proto::messages::consumer_protocol_assignment::TopicPartition;
use logd_proto::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription};

/// The name under which members agree on the rule.
pub(crate) const RANGE: &str = "range";

/// Understood by every client; we have no use for what later versions add.
const PROTOCOL_VERSION: i16 = 0;

/// By member: its topics and partitions.
pub(crate) type Assignments = BTreeMap<String, Vec<(String, i32)>>;

/// Gives each topic's subscribers, in the order of their ids, equal ranges of its partitions; the
/// first ones get one more where it does not divide.
///
/// `members` names each member's topics, `partitions` each topic's number of partitions; a topic
/// that is not there has none.
pub(crate) fn range(
    members: &BTreeMap<String, Vec<String>>,
    partitions: &BTreeMap<String, usize>,
) -> Assignments {
    let mut assigned: Assignments = members
        .keys()
        .map(|member| (member.clone(), Vec::new()))
        .collect();
    for (topic, &count) in partitions {
        let subscribers: Vec<&String> = members
            .iter()
            .filter(|(_, topics)| topics.contains(topic))
            .map(|(member, _)| member)
            .collect();
        let (Some(each), Some(more)) = (
            count.checked_div(subscribers.len()),
            count.checked_rem(subscribers.len()),
        ) else {
            continue;
        };
        let mut next = 0..count;
        for (rank, member) in subscribers.into_iter().enumerate() {
            let share = each + usize::from(rank < more);
            let mine = next
                .by_ref()
                .take(share)
                .map(|index| (topic.clone(), index as i32));
            assigned.entry(member.clone()).or_default().extend(mine);
        }
    }
    assigned
}

/// What a member says on joining.
pub(crate) fn encode_subscription(topics: &[String]) -> Result<Bytes, String> {
    let subscription = message!(ConsumerProtocolSubscription {
        topics: topics.iter().map(|topic| topic.as_str().into()).collect(),
    });
    consumer_protocol::encode_subscription(&subscription, PROTOCOL_VERSION)
        .map_err(|error| error.to_string())
}

/// The topics a member subscribes to.
pub(crate) fn decode_subscription(payload: &Bytes) -> Result<Vec<String>, String> {
    let decoded = consumer_protocol::decode_subscription(payload.clone());
    let (_, subscription) = decoded.map_err(|error| error.to_string())?;
    Ok(subscription
        .topics
        .into_iter()
        .map(|topic| topic.into_string())
        .collect())
}

/// What the leader sends a member; partitions come ordered by topic.
pub(crate) fn encode_assignment(partitions: &[(String, i32)]) -> Result<Bytes, String> {
    let mut topics: Vec<TopicPartition> = Vec::new();
    for (topic, partition) in partitions {
        match topics
            .last_mut()
            .filter(|last| *last.topic == *topic.as_str())
        {
            Some(last) => last.partitions.push(*partition),
            None => topics.push(message!(TopicPartition {
                topic: topic.as_str().into(),
                partitions: vec![*partition],
            })),
        }
    }
    let assignment = message!(ConsumerProtocolAssignment {
        assigned_partitions: topics
    });
    consumer_protocol::encode_assignment(&assignment, PROTOCOL_VERSION)
        .map_err(|error| error.to_string())
}

/// What a member was given.
pub(crate) fn decode_assignment(payload: &Bytes) -> Result<Vec<(String, i32)>, String> {
    let decoded = consumer_protocol::decode_assignment(payload.clone());
    let (_, assignment) = decoded.map_err(|error| error.to_string())?;
    let mut partitions = Vec::new();
    for topic in assignment.assigned_partitions {
        let name = topic.topic.into_string();
        partitions.extend(
            topic
                .partitions
                .into_iter()
                .map(|index| (name.clone(), index)),
        );
    }
    Ok(partitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(subscriptions: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
        let owned = |topics: &[&str]| topics.iter().map(|t| (*t).to_owned()).collect();
        subscriptions
            .iter()
            .map(|(m, topics)| ((*m).to_owned(), owned(topics)))
            .collect()
    }

    fn counts(partitions: &[(&str, usize)]) -> BTreeMap<String, usize> {
        partitions
            .iter()
            .map(|(t, n)| ((*t).to_owned(), *n))
            .collect()
    }

    fn indexes(assignments: &Assignments, member: &str) -> Vec<i32> {
        assignments[member]
            .iter()
            .map(|(_, index)| *index)
            .collect()
    }

    #[test]
    fn the_first_members_get_what_does_not_divide() {
        let everyone = members(&[("a", &["t"]), ("b", &["t"]), ("c", &["t"])]);
        let assigned = range(&everyone, &counts(&[("t", 8)]));
        assert_eq!(indexes(&assigned, "a"), [0, 1, 2]);
        assert_eq!(indexes(&assigned, "b"), [3, 4, 5]);
        assert_eq!(indexes(&assigned, "c"), [6, 7]);
    }

    #[test]
    fn only_subscribers_of_a_topic_share_it() {
        let everyone = members(&[("a", &["x"]), ("b", &["x", "y"])]);
        let assigned = range(&everyone, &counts(&[("x", 2), ("y", 2)]));
        assert_eq!(assigned["a"], [("x".to_owned(), 0)]);
        assert_eq!(assigned["b"].len(), 3);
    }

    #[test]
    fn more_members_than_partitions_leave_some_idle_and_unsubscribed_topics_alone() {
        let everyone = members(&[("a", &["t"]), ("b", &["t"])]);
        let assigned = range(&everyone, &counts(&[("t", 1), ("nobody", 4)]));
        assert_eq!(indexes(&assigned, "a"), [0]);
        assert!(assigned["b"].is_empty());
    }

    #[test]
    fn what_is_said_is_understood() {
        let topics = vec!["orders".to_owned(), "bills".to_owned()];
        let said = encode_subscription(&topics).unwrap();
        assert_eq!(decode_subscription(&said).unwrap(), topics);
        let given = vec![
            ("bills".to_owned(), 1),
            ("orders".to_owned(), 0),
            ("orders".to_owned(), 3),
        ];
        let said = encode_assignment(&given).unwrap();
        assert_eq!(decode_assignment(&said).unwrap(), given);
        assert!(decode_assignment(&Bytes::new()).unwrap().is_empty());
        assert!(decode_subscription(&Bytes::from_static(b"?")).is_err());
    }
}
