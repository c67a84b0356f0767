//! A broker says where it is: which number its disk gets or keeps. Pure, part of the state.
//!
//! Promise: a disk keeps its number; an older copy of one, one whose broker was decommissioned, and a build that
//! does not understand the cluster's feature level are refused.
//! Not here: how a broker comes to ask (`start`), and who lets it (`door`).

use super::state::{Answer, BrokerInfo, ClusterState, Refusal, UNASSIGNED};

impl ClusterState {
    /// A disk keeps the node id it was given. A new disk at the address of a known broker replaces that
    /// broker's, and takes its id; any other gets the next one.
    pub(super) fn register(&mut self, info: BrokerInfo) -> Answer {
        if self.removed.contains(&info.replica) {
            return Answer::Refused(Refusal::Removed);
        }
        if info.features < self.features {
            return Answer::Refused(Refusal::NewerBuildNeeded {
                build: info.features,
                level: self.features,
            });
        }
        let same_disk = self.brokers.values().find(|b| b.replica == info.replica);
        if let Some(known) = same_disk
            && info.start <= known.start
            && *known
                != (BrokerInfo {
                    id: known.id,
                    // A state that came by an older build may not have it.
                    features: known.features,
                    ..info.clone()
                })
        {
            return Answer::Refused(Refusal::OldDisk {
                start: info.start,
                known: known.start,
            });
        }
        let same_place = self
            .brokers
            .values()
            .find(|b| !info.rpc.is_empty() && b.rpc == info.rpc);
        let node = match same_disk.or(same_place) {
            Some(known) => known.id,
            None if info.id != UNASSIGNED => info.id,
            None => self.last_node_id + 1,
        };
        self.last_node_id = self.last_node_id.max(node);
        self.brokers.insert(node, BrokerInfo { id: node, ..info });
        Answer::Registered { node }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::cluster::FeatureLevel;
    use crate::cluster::state::Command;
    use std::collections::BTreeMap;

    pub fn broker(replica: u64, start: u64, rpc: &str) -> BrokerInfo {
        BrokerInfo {
            id: UNASSIGNED,
            replica,
            start,
            rack: None,
            listeners: BTreeMap::new(),
            rpc: rpc.into(),
            features: FeatureLevel::FIRST,
        }
    }

    fn register(s: &mut ClusterState, info: BrokerInfo) -> Answer {
        s.apply(Command::RegisterBroker(info))
    }

    #[test]
    fn a_disk_keeps_its_node_id_and_a_new_one_gets_the_next() {
        let mut s = ClusterState::default();
        assert_eq!(
            register(&mut s, broker(7, 1, "a:1")),
            Answer::Registered { node: 1 }
        );
        assert_eq!(
            register(&mut s, broker(8, 1, "b:1")),
            Answer::Registered { node: 2 }
        );
        assert_eq!(
            register(&mut s, broker(7, 2, "c:1")),
            Answer::Registered { node: 1 }
        );
    }

    #[test]
    fn a_new_disk_at_a_known_address_takes_over_the_node_id() {
        let mut s = ClusterState::default();
        register(&mut s, broker(7, 5, "a:1"));
        assert_eq!(
            register(&mut s, broker(9, 1, "a:1")),
            Answer::Registered { node: 1 }
        );
        assert_eq!(s.brokers[&1].replica, 9);
    }

    #[test]
    fn an_older_copy_of_a_disk_is_refused_and_a_repeated_registration_is_not() {
        let mut s = ClusterState::default();
        register(&mut s, broker(7, 5, "a:1"));
        assert_eq!(
            register(&mut s, broker(7, 5, "a:1")),
            Answer::Registered { node: 1 }
        );
        for start in [4, 5] {
            let old = register(&mut s, broker(7, start, "elsewhere:1"));
            assert_eq!(old, Answer::Refused(Refusal::OldDisk { start, known: 5 }));
        }
    }
}
