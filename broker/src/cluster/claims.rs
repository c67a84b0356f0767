//! From what this broker's replicas know to what everybody is told: who leads, who votes, who keeps up.
//!
//! Invariant: a claim is made only for a group that serves here. Roles are told at once; members and
//! who keeps up are looked at every now and then, as nothing depends on them but what tools show.

use super::controller::Cluster;
use super::leaders::Claim;
use crate::partition::{Partition, Registry};
use crate::peers::{Standing, Standings};
use logd_proto::Uuid;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How often followers are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// A follower keeps up if it is at most so many entries behind.
const LAG_MAX: u64 = 1_000;

/// Partitions whose role may have changed.
#[derive(Debug, Default)]
pub struct Claims {
    due: Mutex<BTreeSet<(Uuid, i32)>>,
    poke: Notify,
}

impl Claims {
    /// Looks at a partition soon. May be called with any lock held.
    pub fn due(&self, topic: Uuid, index: i32) {
        self.due.lock().insert((topic, index));
        self.poke.notify_one();
    }

    /// Makes claims until it is dropped.
    pub async fn keep(self: Arc<Self>, cluster: Arc<Cluster>, registry: Arc<Registry>) {
        let mut standings = cluster.peers.standings();
        loop {
            let looked = tokio::select! {
                () = self.poke.notified() => false,
                gone = standings.changed() => if gone.is_err() { return } else { true },
                () = tokio::time::sleep(registry.pause(LOOK_EVERY)) => true,
            };
            let now = standings.borrow_and_update().clone();
            let due = std::mem::take(&mut *self.due.lock());
            if looked {
                registry.all().iter().for_each(|p| claim(&cluster, &now, p));
            } else {
                let found = due.iter().filter_map(|(topic, i)| registry.get(topic, *i));
                found.for_each(|p| claim(&cluster, &now, &p));
            }
        }
    }
}

fn claim(cluster: &Cluster, standings: &Standings, partition: &Partition) {
    let leadership = partition.leadership();
    if !leadership.serving {
        return;
    }
    let me = cluster.disk();
    let members = partition.members();
    let keeps_up = |r: &u64| {
        let alive = standings.get(r).is_some_and(Standing::is_alive);
        *r == me || (alive && members.lag(*r) <= LAG_MAX)
    };
    let claim = Claim {
        generation: partition.generation(),
        term: leadership.epoch as u64,
        node: cluster.node_id(),
        voters: members.voters.iter().copied().collect(),
        in_sync: members.voters.iter().copied().filter(keeps_up).collect(),
        learners: members.learners.iter().copied().collect(),
        settled_at: members.settled_at(),
    };
    cluster
        .leaders()
        .claim(partition.topic_id(), partition.index(), claim);
}
