//! Which brokers should hold a partition: asked for, cancelled, reached. Pure, part of the state.
//!
//! Promise: the replicas that a partition had before a move are remembered until the move is over, so it
//! can be cancelled and shown; a partition whose replicas were ever changed is never founded again.
//! Not here: who is a member of a group (its own log says so), and how it gets there (moves).

use super::duty::Duty;
use super::state::{Answer, ClusterState, Topic, TopicId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Replicas that a partition should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub topic: TopicId,
    pub partition: i32,
    /// Node ids, the preferred leader first; absent to go back to those before the move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Vec<i32>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum MoveRefusal {
    #[error("there is no such partition")]
    UnknownPartition,
    #[error("no reassignment of this partition is in progress")]
    NotMoving,
    #[error("{0}")]
    Invalid(String),
}

/// A move that is under way, as Kafka shows it (KIP-455).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moving {
    /// The target, and those still leaving behind it.
    pub replicas: Vec<i32>,
    pub adding: Vec<i32>,
    pub removing: Vec<i32>,
}

fn set(replicas: &[i32]) -> BTreeSet<i32> {
    replicas.iter().copied().collect()
}

impl Topic {
    /// The replicas that a partition should have.
    pub fn target(&self, index: i32) -> Option<&Vec<i32>> {
        self.partitions.get(usize::try_from(index).ok()?)
    }

    /// The move of a partition, if there is one.
    pub fn moving(&self, index: i32) -> Option<Moving> {
        let (target, before) = (self.target(index)?, self.moves.get(&index)?);
        let but = |these: &[i32], those: &[i32]| -> Vec<i32> {
            let kept = these.iter().filter(|r| !those.contains(r));
            kept.copied().collect()
        };
        let removing = but(before, target);
        Some(Moving {
            replicas: target.iter().chain(&removing).copied().collect(),
            adding: but(target, before),
            removing,
        })
    }

    /// What clients are told are a partition's replicas: those it should have, and those still leaving.
    pub fn replicas(&self, index: i32) -> Vec<i32> {
        let moving = self.moving(index).map(|m| m.replicas);
        moving
            .or_else(|| self.target(index).cloned())
            .unwrap_or_default()
    }
}

impl ClusterState {
    /// Everything that moves: topic, partition.
    pub fn moving(&self) -> impl Iterator<Item = (&Arc<Topic>, i32)> {
        let topics = self.topics.values();
        topics.flat_map(|t| t.moves.keys().map(move |index| (t, *index)))
    }

    pub(super) fn set_targets(&mut self, moves: Vec<Move>) -> Answer {
        let refused = moves.into_iter().map(|m| self.set_target(m).err());
        Answer::Moves {
            refused: refused.collect(),
        }
    }

    fn set_target(&mut self, wanted: Move) -> Result<(), MoveRefusal> {
        let index = wanted.partition;
        let topic = self.topics.get(&wanted.topic.0);
        let topic = topic.ok_or(MoveRefusal::UnknownPartition)?;
        let now = topic
            .target(index)
            .ok_or(MoveRefusal::UnknownPartition)?
            .clone();
        let before = topic.moves.get(&index).cloned();
        let (target, cancelled) = match (wanted.target, &before) {
            (None, None) => return Err(MoveRefusal::NotMoving),
            (None, Some(before)) => (before.clone(), true),
            (Some(target), _) => {
                self.check_target(&target, &now)?;
                let cancelled = before.as_ref().is_some_and(|b| set(b) == set(&target));
                (target, cancelled)
            }
        };
        let Some(topic) = self.topics.get_mut(&wanted.topic.0).map(Arc::make_mut) else {
            return Err(MoveRefusal::UnknownPartition);
        };
        if target.len() != now.len() && !cancelled {
            // From now on that is what somebody wants of it.
            topic.replication = i16::try_from(target.len()).ok();
        }
        if cancelled {
            topic.moves.remove(&index);
        } else if set(&target) != set(&now) {
            topic.moves.entry(index).or_insert(now);
            topic.moved.insert(index);
        }
        if let Some(slot) = topic.partitions.get_mut(index as usize) {
            *slot = target;
        }
        Ok(())
    }

    fn check_target(&self, target: &[i32], now: &[i32]) -> Result<(), MoveRefusal> {
        let invalid = |why: String| Err(MoveRefusal::Invalid(why));
        if target.is_empty() {
            return invalid("a partition needs at least one replica".into());
        }
        if set(target).len() != target.len() {
            return invalid(format!("{target:?} names a broker twice"));
        }
        let unknown = target.iter().find(|n| !self.brokers.contains_key(n));
        if let Some(unknown) = unknown {
            return invalid(format!("broker {unknown} is not registered"));
        }
        let new = target.iter().filter(|n| !now.contains(n));
        if let Some(leaving) = new.copied().find(|n| self.duty(*n) == Duty::Leaving) {
            return invalid(format!("broker {leaving} is being decommissioned"));
        }
        Ok(())
    }

    pub(super) fn moves_over(&mut self, over: Vec<Move>) -> Answer {
        for reached in over {
            let topic = self.topics.get_mut(&reached.topic.0);
            let Some(topic) =
                topic.filter(|t| t.target(reached.partition) == reached.target.as_ref())
            else {
                // It is to go somewhere else by now.
                continue;
            };
            if topic.moves.contains_key(&reached.partition) {
                Arc::make_mut(topic).moves.remove(&reached.partition);
            }
        }
        Answer::Done
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cluster::state::{BrokerInfo, Command, TopicRecord, UNASSIGNED};
    use logd_proto::Uuid;
    use std::collections::BTreeMap;

    fn id() -> TopicId {
        TopicId(Uuid::from_bytes([1; 16]))
    }

    pub fn cluster(replicas: &[i32]) -> ClusterState {
        let mut s = ClusterState::default();
        for n in 1..=4u64 {
            s.apply(Command::RegisterBroker(BrokerInfo {
                id: UNASSIGNED,
                replica: n * 10,
                start: 1,
                rack: None,
                listeners: BTreeMap::new(),
                rpc: format!("b{n}:1"),
                features: crate::cluster::FeatureLevel::FIRST,
            }));
        }
        s.apply(Command::CreateTopic(TopicRecord {
            id: id(),
            name: "t".into(),
            internal: false,
            partitions: vec![replicas.to_vec()],
            replication: None,
            disks: BTreeMap::from([(1, 10)]),
            moves: BTreeMap::new(),
            moved: BTreeSet::new(),
            grown: BTreeMap::new(),
            recoveries: BTreeMap::new(),
            overrides: BTreeMap::new(),
        }));
        s
    }

    pub fn ask(s: &mut ClusterState, target: Option<&[i32]>) -> Option<MoveRefusal> {
        let moves = vec![Move {
            topic: id(),
            partition: 0,
            target: target.map(<[i32]>::to_vec),
        }];
        match s.apply(Command::SetTargets { moves }) {
            Answer::Moves { mut refused } => refused.remove(0),
            other => panic!("{other:?}"),
        }
    }

    pub fn over(s: &mut ClusterState, target: &[i32]) {
        let over = vec![Move {
            topic: id(),
            partition: 0,
            target: Some(target.to_vec()),
        }];
        s.apply(Command::MovesOver { over });
    }

    fn topic(s: &ClusterState) -> &Topic {
        s.topic("t").unwrap()
    }

    #[test]
    fn a_move_shows_who_comes_and_who_goes_until_it_is_over() {
        let mut s = cluster(&[1, 2, 3]);
        assert_eq!(ask(&mut s, Some(&[4, 2, 1])), None);
        let moving = topic(&s).moving(0).unwrap();
        assert_eq!(
            (moving.adding, moving.removing, moving.replicas),
            (vec![4], vec![3], vec![4, 2, 1, 3])
        );
        over(&mut s, &[1, 2, 3]);
        assert!(topic(&s).moving(0).is_some(), "another target's end");
        over(&mut s, &[4, 2, 1]);
        assert_eq!(topic(&s).moving(0), None);
        assert_eq!(topic(&s).replicas(0), [4, 2, 1]);
    }

    #[test]
    fn cancelling_goes_back_to_where_it_was_before_the_first_of_several_moves() {
        let mut s = cluster(&[1]);
        assert_eq!(ask(&mut s, None), Some(MoveRefusal::NotMoving));
        ask(&mut s, Some(&[2]));
        ask(&mut s, Some(&[3]));
        assert_eq!(topic(&s).moving(0).unwrap().removing, [1]);
        assert_eq!(ask(&mut s, None), None);
        assert_eq!(
            (topic(&s).replicas(0), topic(&s).moving(0)),
            (vec![1], None)
        );
        assert_eq!(ask(&mut s, None), Some(MoveRefusal::NotMoving));
    }

    #[test]
    fn another_order_of_the_same_brokers_is_no_move() {
        let mut s = cluster(&[1, 2]);
        assert_eq!(ask(&mut s, Some(&[2, 1])), None);
        assert_eq!(
            (topic(&s).replicas(0), topic(&s).moving(0)),
            (vec![2, 1], None)
        );
    }

    #[test]
    fn impossible_targets_are_refused() {
        let mut s = cluster(&[1]);
        for bad in [&[][..], &[1, 1], &[9]] {
            let refused = ask(&mut s, Some(bad));
            assert!(matches!(refused, Some(MoveRefusal::Invalid(_))), "{bad:?}");
        }
    }

    #[test]
    fn what_has_moved_is_never_founded_again() {
        let mut s = cluster(&[1]);
        assert_eq!(topic(&s).founder(&s, 0), Some(10));
        ask(&mut s, Some(&[2]));
        over(&mut s, &[2]);
        ask(&mut s, Some(&[1]));
        assert_eq!(topic(&s).founder(&s, 0), None);
        assert!(topic(&s).founders(&s, 0).is_empty());
    }

    #[test]
    fn moves_survive_the_states_encoding() {
        let mut s = cluster(&[1]);
        ask(&mut s, Some(&[2, 3]));
        assert_eq!(ClusterState::decode(&s.encode().unwrap()).unwrap(), s);
    }
}
