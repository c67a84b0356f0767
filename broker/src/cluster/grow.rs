//! More partitions for a topic that exists: where they go is pure, a function of the state and the wish.
//!
//! Promise: partitions that exist stay as they are. Each new one is founded by the disk that its preferred
//! leader has when it is added, whatever that broker's disk was when the topic was created.
//! Not here: the rule by which replicas are spread (`placement`).

use super::controller::{Cluster, PARTITIONS_PER_REQUEST_MAX};
use super::duty::Duty;
use super::placement::{PlacementError, place};
use super::plan::{PARTITIONS_PER_TOPIC_MAX, disks};
use super::state::{Answer, ClusterState, Command, Refusal, Topic, TopicId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tracing::info;

/// A wish for more partitions.
#[derive(Debug, Clone, Default)]
pub struct NewPartitions {
    pub topic: String,
    /// How many there are to be in all.
    pub count: i32,
    /// Replicas of each new one; `None`: wherever there is room.
    pub assignments: Option<Vec<Vec<i32>>>,
}

/// Partitions to be added, as the log has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addition {
    pub topic: TopicId,
    /// The number of the first: as many as there were when it was asked for.
    pub first: i32,
    /// Node ids of each, the preferred leader first.
    pub partitions: Vec<Vec<i32>>,
    /// The disks that those brokers have: they found the new groups.
    pub disks: BTreeMap<i32, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreatePartitionsError {
    #[error("there is no such topic")]
    UnknownTopic,
    #[error("{0}")]
    InvalidPartitions(String),
    #[error("{0}")]
    InvalidAssignment(String),
    #[error("{0}")]
    InvalidReplication(String),
    #[error("topic '{0}' is named twice in the request")]
    Twice(String),
    #[error("Excessively large number of partitions per request: at most {0}. Ask in several.")]
    TooMuchAtOnce(i32),
    #[error("the partitions are added, but do not serve yet")]
    TimedOut,
    #[error("{0}")]
    Unavailable(String),
}

impl Addition {
    fn end(&self) -> i32 {
        self.first + self.partitions.len() as i32
    }
}

fn plan(
    state: &ClusterState,
    wanted: &NewPartitions,
    alive: &dyn Fn(i32) -> bool,
) -> Result<Addition, CreatePartitionsError> {
    let topic = state.topic(&wanted.topic);
    let topic = topic.ok_or(CreatePartitionsError::UnknownTopic)?;
    let more = check_count(topic, wanted.count)?;
    let width = topic.partitions.first().map_or(1, Vec::len);
    let partitions = match &wanted.assignments {
        Some(assignments) => assigned(state, assignments, more, width)?,
        None => place(state, more, width, alive).map_err(
            |PlacementError::TooFewBrokers { wanted, brokers }| {
                CreatePartitionsError::InvalidReplication(format!(
                    "The topic's replication factor, {wanted}, is larger than the number of brokers that take \
                     replicas, {brokers}."
                ))
            },
        )?,
    };
    Ok(Addition {
        topic: TopicId(topic.id),
        first: topic.partitions.len() as i32,
        disks: disks(state, &partitions),
        partitions,
    })
}

/// How many are to be added.
fn check_count(topic: &Topic, count: i32) -> Result<usize, CreatePartitionsError> {
    let invalid = |why: String| Err(CreatePartitionsError::InvalidPartitions(why));
    let now = topic.partitions.len();
    if topic.internal {
        return invalid(format!(
            "Topic {} is the brokers' own: what is found by its number of partitions would be looked for elsewhere.",
            topic.name
        ));
    }
    if count > PARTITIONS_PER_TOPIC_MAX {
        return invalid(format!(
            "A topic has at most {PARTITIONS_PER_TOPIC_MAX} partitions, {count} are asked for."
        ));
    }
    match usize::try_from(count).unwrap_or(0).checked_sub(now) {
        Some(more) if more > 0 => Ok(more),
        Some(_) => invalid(format!("The topic has {now} partitions already.")),
        None => invalid(format!(
            "The topic has {now} partitions, which cannot become {count}: partitions are never taken away."
        )),
    }
}

fn assigned(
    state: &ClusterState,
    assignments: &[Vec<i32>],
    more: usize,
    width: usize,
) -> Result<Vec<Vec<i32>>, CreatePartitionsError> {
    let wrong = |why: String| Err(CreatePartitionsError::InvalidAssignment(why));
    if assignments.len() != more {
        return wrong(format!(
            "{more} partitions are to be added, and {} are assigned.",
            assignments.len()
        ));
    }
    for replicas in assignments {
        if replicas.len() != width {
            return wrong(format!(
                "{replicas:?} are {} replicas, the topic's partitions have {width}.",
                replicas.len()
            ));
        }
        if let Some(node) = replicas.iter().find(|n| !takes(state, **n)) {
            return wrong(format!(
                "Broker {node} is not registered, or is being decommissioned."
            ));
        }
        if replicas.iter().collect::<BTreeSet<_>>().len() != width {
            return wrong(format!("{replicas:?} names a broker twice."));
        }
    }
    Ok(assignments.to_vec())
}

/// A broker that is drained takes what somebody gives it by hand; one that leaves, nothing.
fn takes(state: &ClusterState, node: i32) -> bool {
    state.brokers.contains_key(&node) && state.duty(node) != Duty::Leaving
}

impl Topic {
    /// The disk that a broker had when this partition was created, where that is recorded.
    pub(super) fn born_on(&self, index: i32, node: i32) -> Option<u64> {
        let added = self.grown.range(..=index).next_back();
        let disks = added.map_or(&self.disks, |(_, disks)| disks);
        disks.get(&node).copied()
    }
}

impl ClusterState {
    pub(super) fn add_partitions(&mut self, added: Addition) -> Answer {
        let nodes = added.partitions.iter().flatten();
        let gone = nodes.copied().find(|node| !takes(self, *node));
        let Some(topic) = self.topics.get_mut(&added.topic.0) else {
            return Answer::Refused(Refusal::UnknownTopic);
        };
        let now = topic.partitions.len() as i32;
        if now == added.end() && topic.partitions.ends_with(&added.partitions) {
            // Asked for twice because nobody heard the answer.
            return Answer::Done;
        }
        if now != added.first {
            return Answer::Refused(Refusal::OtherPartitions { now });
        }
        if let Some(node) = gone {
            return Answer::Refused(Refusal::UnknownBroker(node));
        }
        let topic = Arc::make_mut(topic);
        topic.grown.insert(added.first, added.disks);
        topic.partitions.extend(added.partitions);
        Answer::Done
    }
}

impl Cluster {
    /// Adds partitions to topics; an answer comes once they serve, or at the deadline.
    pub async fn create_partitions(
        &self,
        wanted: Vec<NewPartitions>,
        validate_only: bool,
        deadline: Duration,
    ) -> Vec<Result<(), CreatePartitionsError>> {
        let mut seen = BTreeSet::new();
        let twice: BTreeSet<String> = wanted
            .iter()
            .filter(|w| !seen.insert(&w.topic))
            .map(|w| w.topic.clone())
            .collect();
        let deadline = tokio::time::Instant::now() + deadline;
        let mut room = PARTITIONS_PER_REQUEST_MAX;
        let mut answers = Vec::with_capacity(wanted.len());
        for one in wanted {
            answers.push(if twice.contains(&one.topic) {
                Err(CreatePartitionsError::Twice(one.topic))
            } else {
                self.grow(&one, validate_only, &mut room).await
            });
        }
        let mut served = Vec::with_capacity(answers.len());
        for answer in answers {
            served.push(match answer {
                Ok(Some(added)) => self.grown(&added, deadline).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            });
        }
        served
    }

    /// What was added; nothing if it was only to be validated.
    async fn grow(
        &self,
        wanted: &NewPartitions,
        validate_only: bool,
        room: &mut i32,
    ) -> Result<Option<Addition>, CreatePartitionsError> {
        let state = self.view();
        let added = plan(&state, wanted, &|node| self.is_fit(node))?;
        let more = added.end() - added.first;
        if more > *room {
            return Err(CreatePartitionsError::TooMuchAtOnce(
                PARTITIONS_PER_REQUEST_MAX,
            ));
        }
        *room -= more;
        if validate_only {
            return Ok(None);
        }
        match self.propose(Command::AddPartitions(added.clone())).await {
            Ok(Answer::Done) => {
                info!(
                    topic = wanted.topic,
                    partitions = wanted.count,
                    "partitions added"
                );
                Ok(Some(added))
            }
            Ok(Answer::Refused(Refusal::UnknownTopic)) => Err(CreatePartitionsError::UnknownTopic),
            Ok(Answer::Refused(why @ Refusal::UnknownBroker(_))) => {
                Err(CreatePartitionsError::InvalidAssignment(why.to_string()))
            }
            Ok(Answer::Refused(why)) => {
                Err(CreatePartitionsError::InvalidPartitions(why.to_string()))
            }
            Ok(other) => Err(CreatePartitionsError::Unavailable(format!(
                "unexpected answer {other:?}"
            ))),
            Err(error) => Err(CreatePartitionsError::Unavailable(error.to_string())),
        }
    }

    async fn grown(
        &self,
        added: &Addition,
        deadline: tokio::time::Instant,
    ) -> Result<(), CreatePartitionsError> {
        let serving = self.partitions_serve(&added.topic.0, added.first..added.end());
        match tokio::time::timeout_at(deadline, serving).await {
            Ok(()) => Ok(()),
            Err(_) => Err(CreatePartitionsError::TimedOut),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::BrokerInfo;
    use crate::cluster::targets::tests::{ask, cluster};

    fn wish(count: i32, assignments: Option<&[&[i32]]>) -> NewPartitions {
        NewPartitions {
            topic: "t".into(),
            count,
            assignments: assignments.map(|a| a.iter().map(|r| r.to_vec()).collect()),
        }
    }

    fn planned(s: &ClusterState, wish: &NewPartitions) -> Result<Addition, CreatePartitionsError> {
        plan(s, wish, &|_| true)
    }

    fn grow(s: &mut ClusterState, wish: &NewPartitions) -> Answer {
        let added = planned(s, wish).unwrap();
        s.apply(Command::AddPartitions(added))
    }

    fn topic(s: &ClusterState) -> &Topic {
        s.topic("t").unwrap()
    }

    #[test]
    fn new_partitions_are_as_wide_as_the_first_and_go_where_there_is_room() {
        let mut s = cluster(&[1, 2]);
        assert_eq!(grow(&mut s, &wish(3, None)), Answer::Done);
        assert_eq!(topic(&s).partitions[0], [1, 2], "stays as it is");
        assert!(topic(&s).partitions[1..].iter().all(|p| p.len() == 2));
        assert_eq!(topic(&s).partitions[1], [3, 4], "the emptiest");
        assert_eq!(ClusterState::decode(&s.encode().unwrap()).unwrap(), s);
    }

    #[test]
    fn partitions_are_never_taken_away() {
        let s = cluster(&[1]);
        for count in [-1, 0, 1, 10_001] {
            let refused = planned(&s, &wish(count, None));
            assert!(
                matches!(refused, Err(CreatePartitionsError::InvalidPartitions(_))),
                "{count}: {refused:?}"
            );
        }
        let unknown = NewPartitions {
            topic: "other".into(),
            ..wish(2, None)
        };
        let unknown = planned(&s, &unknown);
        assert_eq!(unknown, Err(CreatePartitionsError::UnknownTopic));
    }

    #[test]
    fn an_assignment_must_be_whole_and_possible() {
        let mut s = cluster(&[1, 2]);
        assert!(planned(&s, &wish(3, Some(&[&[3, 4], &[4, 3]]))).is_ok());
        let (node, duty) = (4, Duty::Leaving);
        s.apply(Command::SetDuty { node, duty });
        for bad in [
            &[][..],
            &[&[3, 1][..]],
            &[&[3, 1], &[3]],
            &[&[3, 1], &[3, 3]],
            &[&[3, 1], &[3, 9]],
            &[&[3, 1], &[3, 4]],
        ] {
            let refused = planned(&s, &wish(3, Some(bad)));
            assert!(
                matches!(refused, Err(CreatePartitionsError::InvalidAssignment(_))),
                "{bad:?}: {refused:?}"
            );
        }
    }

    #[test]
    fn more_replicas_than_brokers_take_cannot_be_placed() {
        let mut s = cluster(&[1, 2, 3, 4]);
        let (node, duty) = (4, Duty::Draining);
        s.apply(Command::SetDuty { node, duty });
        let refused = planned(&s, &wish(2, None));
        assert!(
            matches!(refused, Err(CreatePartitionsError::InvalidReplication(_))),
            "{refused:?}"
        );
    }

    #[test]
    fn who_loses_a_race_is_told_and_a_repeated_command_is_no_race() {
        let mut s = cluster(&[1]);
        let added = planned(&s, &wish(2, Some(&[&[1]]))).unwrap();
        let other = planned(&s, &wish(3, None)).unwrap();
        for _ in 0..2 {
            let done = s.apply(Command::AddPartitions(added.clone()));
            assert_eq!(done, Answer::Done);
        }
        let refused = s.apply(Command::AddPartitions(other));
        let raced = Refusal::OtherPartitions { now: 2 };
        assert_eq!(refused, Answer::Refused(raced));
        assert_eq!(topic(&s).partitions.len(), 2);
    }

    #[test]
    fn a_broker_with_another_disk_founds_what_is_new_and_not_what_was_before() {
        let mut s = cluster(&[1]);
        let wiped = BrokerInfo {
            replica: 11,
            start: 1,
            ..s.brokers[&1].clone()
        };
        s.apply(Command::RegisterBroker(wiped));
        grow(&mut s, &wish(2, Some(&[&[1]])));
        let t = topic(&s);
        assert_eq!((t.founder(&s, 0), t.founder(&s, 1)), (Some(10), Some(11)));
        assert_eq!(t.founders(&s, 1), BTreeSet::from([11]));
        // Another disk later changes nothing about either.
        let wiped = BrokerInfo {
            replica: 12,
            ..s.brokers[&1].clone()
        };
        s.apply(Command::RegisterBroker(wiped));
        grow(&mut s, &wish(3, Some(&[&[1]])));
        let t = topic(&s);
        let founders: Vec<_> = (0..3).map(|i| t.founder(&s, i)).collect();
        assert_eq!(founders, [Some(10), Some(11), Some(12)]);
    }

    #[test]
    fn a_topic_grows_while_its_first_partition_moves() {
        let mut s = cluster(&[1]);
        ask(&mut s, Some(&[2]));
        assert_eq!(grow(&mut s, &wish(2, None)), Answer::Done);
        assert!(topic(&s).moving(0).is_some() && topic(&s).moving(1).is_none());
    }

    #[test]
    fn states_of_before_there_were_additions_are_read() {
        let mut s = cluster(&[1]);
        let before = s.encode().unwrap();
        let text = String::from_utf8(before.clone()).unwrap();
        assert!(
            !text.contains("grown"),
            "nothing is written where nothing grew"
        );
        assert_eq!(ClusterState::decode(&before).unwrap(), s);
        grow(&mut s, &wish(2, None));
        assert_eq!(ClusterState::decode(&s.encode().unwrap()).unwrap(), s);
    }
}
