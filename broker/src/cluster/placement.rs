//! Where replicas go. Pure: the same state and request give the same placement.
//!
//! Brokers that are there and whose disks keep up first, then racks, then the least loaded, ties by node id; one that is being
//! drained or leaves gets nothing; leaders (the first of each
//! partition's list) are spread by the same rule.

use super::state::ClusterState;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    #[error("replication factor {wanted} is larger than the number of brokers, {brokers}")]
    TooFewBrokers { wanted: usize, brokers: usize },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Load {
    leaders: usize,
    replicas: usize,
}

/// Places `partitions` times `replication` replicas of a new topic.
///
/// # Errors
/// If there are fewer brokers than replicas of one partition.
pub fn place(
    state: &ClusterState,
    partitions: usize,
    replication: usize,
    alive: &dyn Fn(i32) -> bool,
) -> Result<Vec<Vec<i32>>, PlacementError> {
    let mut load = current_load(state);
    load.retain(|node, _| state.takes_more(*node));
    if replication > load.len() {
        return Err(PlacementError::TooFewBrokers {
            wanted: replication,
            brokers: load.len(),
        });
    }
    Ok((0..partitions)
        .map(|_| place_one(state, &mut load, replication, alive))
        .collect())
}

fn current_load(state: &ClusterState) -> BTreeMap<i32, Load> {
    let mut load: BTreeMap<i32, Load> = state
        .brokers
        .keys()
        .map(|id| (*id, Load::default()))
        .collect();
    for replicas in state.topics.values().flat_map(|t| &t.partitions) {
        count(&mut load, replicas);
    }
    load
}

fn count(load: &mut BTreeMap<i32, Load>, replicas: &[i32]) {
    for (n, id) in replicas.iter().enumerate() {
        if let Some(l) = load.get_mut(id) {
            l.replicas += 1;
            l.leaders += usize::from(n == 0);
        }
    }
}

fn place_one(
    state: &ClusterState,
    load: &mut BTreeMap<i32, Load>,
    replication: usize,
    alive: &dyn Fn(i32) -> bool,
) -> Vec<i32> {
    let mut chosen: Vec<i32> = Vec::with_capacity(replication);
    let mut racks: BTreeSet<&str> = BTreeSet::new();
    while chosen.len() < replication {
        let rack_of = |id: &i32| state.brokers.get(id).and_then(|b| b.rack.as_deref());
        let best = load
            .iter()
            .filter(|(id, _)| !chosen.contains(id))
            .min_by_key(|(id, l)| {
                let rack_taken = rack_of(id).is_some_and(|r| racks.contains(r));
                let first = if chosen.is_empty() { l.leaders } else { 0 };
                (!alive(**id), rack_taken, first, l.replicas, **id)
            })
            .map(|(id, _)| *id);
        let Some(best) = best else { break };
        racks.extend(rack_of(&best));
        chosen.push(best);
    }
    count(load, &chosen);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::{BrokerInfo, Command};

    fn place(
        state: &ClusterState,
        partitions: usize,
        replication: usize,
    ) -> Result<Vec<Vec<i32>>, PlacementError> {
        super::place(state, partitions, replication, &|_| true)
    }

    fn brokers(racks: &[Option<&str>]) -> ClusterState {
        let mut s = ClusterState::default();
        for (n, rack) in racks.iter().enumerate() {
            let id = n as i32 + 1;
            s.apply(Command::RegisterBroker(BrokerInfo {
                id,
                replica: n as u64 + 1,
                start: 1,
                rack: rack.map(Into::into),
                listeners: BTreeMap::new(),
                rpc: String::new(),
                features: crate::cluster::FeatureLevel::FIRST,
            }));
        }
        s
    }

    #[test]
    fn one_broker_takes_everything() {
        assert_eq!(place(&brokers(&[None]), 3, 1).unwrap(), vec![vec![1]; 3]);
    }

    #[test]
    fn leaders_are_spread() {
        let placed = place(&brokers(&[None, None, None]), 6, 3).unwrap();
        for id in 1..=3 {
            assert_eq!(
                placed.iter().filter(|p| p[0] == id).count(),
                2,
                "{placed:?}"
            );
        }
    }

    #[test]
    fn replicas_of_one_partition_lie_in_different_racks_where_there_are_enough() {
        let state = brokers(&[Some("a"), Some("a"), Some("b"), Some("b")]);
        for p in place(&state, 8, 2).unwrap() {
            let racks: BTreeSet<_> = p.iter().map(|id| state.brokers[id].rack.clone()).collect();
            assert_eq!(racks.len(), 2, "{p:?}");
        }
    }

    #[test]
    fn one_that_is_away_is_taken_last_and_one_that_is_drained_not_at_all() {
        let mut state = brokers(&[None, None, None, None]);
        let away = super::place(&state, 4, 3, &|n| n != 2).unwrap();
        assert!(away.iter().all(|p| !p.contains(&2)), "{away:?}");
        let needed = super::place(&state, 4, 4, &|n| n != 2).unwrap();
        assert!(needed.iter().all(|p| p[0] != 2), "{needed:?}");
        let (node, duty) = (2, crate::cluster::duty::Duty::Draining);
        state.apply(Command::SetDuty { node, duty });
        assert!(place(&state, 1, 4).is_err());
        let placed = place(&state, 4, 3).unwrap();
        assert!(placed.iter().all(|p| !p.contains(&2)), "{placed:?}");
    }

    #[test]
    fn more_replicas_than_brokers_is_refused() {
        assert_eq!(
            place(&brokers(&[None]), 1, 3),
            Err(PlacementError::TooFewBrokers {
                wanted: 3,
                brokers: 1
            })
        );
    }
}
