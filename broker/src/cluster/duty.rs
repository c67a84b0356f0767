//! What a broker is there for: everything, everything but leading, or nothing any more. Pure, part of the state.
//!
//! Promise: a broker is forgotten only when it was told to leave and no partition is to be on it; its
//! number is never given again, and its disk is never taken back with what it remembers.
//! Not here: moving what it holds (`retire`, `rebalance`).

use super::state::{Answer, ClusterState, Refusal};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// It holds replicas and leads.
    #[default]
    Active,
    /// It leads nothing and gets nothing new: about to be stopped for a while.
    Draining,
    /// Everything on it goes elsewhere, then it is forgotten.
    Leaving,
}

impl Duty {
    pub fn name(self) -> &'static str {
        match self {
            Duty::Active => "active",
            Duty::Draining => "draining",
            Duty::Leaving => "decommissioning",
        }
    }
}

impl ClusterState {
    pub fn duty(&self, node: i32) -> Duty {
        self.duties.get(&node).copied().unwrap_or_default()
    }

    /// Whether new replicas and leaderships may go to a broker.
    pub fn takes_more(&self, node: i32) -> bool {
        self.brokers.contains_key(&node) && self.duty(node) == Duty::Active
    }

    /// Partitions that are, or were before a move that is not over, to be on a broker.
    pub fn partitions_on(&self, node: i32) -> usize {
        let on = |replicas: &&Vec<i32>| replicas.contains(&node);
        let each = self.topics.values().map(|topic| {
            let before = topic.moves.values().filter(on).count();
            before + topic.partitions.iter().filter(on).count()
        });
        each.sum()
    }

    pub(super) fn set_duty(&mut self, node: i32, duty: Duty) -> Answer {
        if !self.brokers.contains_key(&node) {
            return Answer::Refused(Refusal::UnknownBroker(node));
        }
        match duty {
            Duty::Active => drop(self.duties.remove(&node)),
            other => drop(self.duties.insert(node, other)),
        }
        Answer::Done
    }

    pub(super) fn remove_broker(&mut self, node: i32) -> Answer {
        let partitions = self.partitions_on(node);
        if self.duty(node) != Duty::Leaving || partitions > 0 {
            return Answer::Refused(Refusal::StillNeeded { node, partitions });
        }
        if let Some(broker) = self.brokers.remove(&node) {
            self.removed.insert(broker.replica);
        }
        self.duties.remove(&node);
        if self.settings.each.contains_key(&node) {
            Arc::make_mut(&mut self.settings).each.remove(&node);
        }
        // What it still has of deleted topics goes with its disk.
        self.tombstones.retain(|_, left| {
            left.remove(&node);
            !left.is_empty()
        });
        Answer::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::{BrokerInfo, Command, UNASSIGNED};
    use crate::cluster::targets::tests::{ask, cluster, over};
    use std::collections::BTreeMap;

    fn set(s: &mut ClusterState, node: i32, duty: Duty) -> Answer {
        s.apply(Command::SetDuty { node, duty })
    }

    #[test]
    fn a_broker_is_forgotten_when_nothing_is_on_it_and_its_number_is_never_given_again() {
        let mut s = cluster(&[4, 1]);
        let remove = Command::RemoveBroker { node: 4 };
        assert!(matches!(s.apply(remove.clone()), Answer::Refused(_)));
        set(&mut s, 4, Duty::Leaving);
        assert!(matches!(s.apply(remove.clone()), Answer::Refused(_)));
        ask(&mut s, Some(&[2, 1]));
        let on_its_way = s.apply(remove.clone());
        assert!(matches!(on_its_way, Answer::Refused(_)), "not over yet");
        over(&mut s, &[2, 1]);
        assert_eq!(s.apply(remove), Answer::Done);
        assert_eq!(ClusterState::decode(&s.encode().unwrap()).unwrap(), s);
        let broker = |replica| BrokerInfo {
            id: UNASSIGNED,
            replica,
            start: 9,
            rack: None,
            listeners: BTreeMap::new(),
            rpc: "b4:1".into(),
            features: crate::cluster::FeatureLevel::FIRST,
        };
        let same = s.apply(Command::RegisterBroker(broker(40)));
        assert!(matches!(same, Answer::Refused(Refusal::Removed)));
        let new = s.apply(Command::RegisterBroker(broker(41)));
        assert_eq!(new, Answer::Registered { node: 5 });
    }

    #[test]
    fn a_duty_stays_through_a_restart_of_the_broker() {
        let mut s = cluster(&[1]);
        set(&mut s, 2, Duty::Draining);
        let restarted = BrokerInfo {
            start: 2,
            ..s.brokers[&2].clone()
        };
        s.apply(Command::RegisterBroker(restarted));
        assert_eq!(s.duty(2), Duty::Draining);
        set(&mut s, 2, Duty::Active);
        assert!(s.duties.is_empty());
        let unknown = set(&mut s, 9, Duty::Draining);
        assert_eq!(unknown, Answer::Refused(Refusal::UnknownBroker(9)));
    }

    #[test]
    fn nothing_moves_to_a_broker_that_leaves() {
        let mut s = cluster(&[1]);
        set(&mut s, 2, Duty::Leaving);
        assert!(ask(&mut s, Some(&[1, 2])).is_some());
        set(&mut s, 2, Duty::Draining);
        assert!(
            ask(&mut s, Some(&[1, 2])).is_none(),
            "whoever asks knows why"
        );
    }
}
