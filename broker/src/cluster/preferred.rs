//! Gives leadership back to preferred leaders, slowly, after they have returned.
//!
//! A broker that was away leads nothing when it comes back, and the others lead more than their share.
//! Nothing waits for this: a few hand-overs at a time, and only to brokers that have stayed for a while and
//! have caught up everywhere.
//! Not here: which broker is preferred (the first of a partition's replicas), and asking for it at once.

use super::controller::Cluster;
use super::moves::wanted_disks;
use super::state::ClusterState;
use super::voters::LAG_MAX;
use crate::partition::{Partition, Registry};
use crate::peers::Standing;
use crate::raft::ReplicaId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, info};

/// How often leaderships are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A broker that has been there for this long will stay.
const STAYED: Duration = Duration::from_secs(15);

/// Hand-overs of one look.
const AT_ONCE: usize = 16;

/// Looks after what this broker leads and others should, until the metadata group is gone.
pub async fn keep_preferred_leaders(cluster: Arc<Cluster>, registry: Arc<Registry>) {
    // Peers that are there: which connection, and since when.
    let mut there: BTreeMap<ReplicaId, (u64, Instant)> = BTreeMap::new();
    loop {
        tokio::time::sleep(registry.pause(LOOK_EVERY)).await;
        let view = cluster.watch();
        if view.has_changed().is_err() {
            return;
        }
        let standings = cluster.peers.standings().borrow().clone();
        there.retain(|disk, _| standings.contains_key(disk));
        for (disk, standing) in standings {
            match standing {
                Standing::Alive { connection, .. } => {
                    let known = there.entry(disk).or_insert((connection, Instant::now()));
                    if known.0 != connection {
                        *known = (connection, Instant::now());
                    }
                }
                _ => drop(there.remove(&disk)),
            }
        }
        // A disk that is being filled has enough to do: whoever it led would wait.
        let filling = cluster.leaders().learners();
        let stayed = |disk| {
            let since = there.get(&disk).map(|(_, since)| since.elapsed());
            since.is_some_and(|since| since >= STAYED) && !filling.contains(&disk)
        };
        let state = cluster.view();
        let all = registry.all().into_iter();
        let due = all.filter_map(|p| Some((heir(&state, &p, stayed)?, p)));
        for (heir, partition) in due.take(AT_ONCE).collect::<Vec<_>>() {
            let (topic, index) = (partition.topic(), partition.index());
            match partition.hand_over(|disk| disk == heir).await {
                Ok(()) => info!(
                    topic,
                    partition = index,
                    "led by its preferred leader again"
                ),
                Err(error) => debug!(topic, partition = index, %error, "not handed over"),
            }
        }
    }
}

/// The preferred leader of a partition that this broker leads instead, if it can take it.
fn heir(
    state: &ClusterState,
    partition: &Partition,
    stayed: impl Fn(ReplicaId) -> bool,
) -> Option<ReplicaId> {
    let topic = state.topics.get(&partition.topic_id());
    let target = topic.filter(|_| partition.leadership().serving)?;
    let target = target.target(partition.index())?;
    let preferred = *target.first()?;
    let disk = *wanted_disks(state, &[preferred])?.first()?;
    if !state.takes_more(preferred) || !stayed(disk) {
        return None;
    }
    let now = partition.members();
    (now.voters.contains(&disk) && !now.changing && now.lag(disk) <= LAG_MAX).then_some(disk)
}
