//! What is looked at when Prometheus scrapes.

use crate::api::Services;
use crate::cluster::{Cluster, ClusterState};
use crate::metrics;
use crate::partition::Partition;
use crate::server::Limits;
use logd_storage::Disk;
use std::sync::Arc;
use tracing::warn;

/// As far as this broker, which leads the partition, has looked.
fn lacks_replicas(cluster: &Cluster, view: &ClusterState, partition: &Partition) -> bool {
    let (id, index) = (partition.topic_id(), partition.index());
    let topic = view.topic_by_id(&id);
    let wanted = topic.and_then(|t| t.partitions.get(usize::try_from(index).ok()?));
    let claim = cluster.leaders().get(&id, index);
    wanted
        .zip(claim)
        .is_some_and(|(wanted, claim)| !claim.is_kept_by(view, wanted))
}

pub(super) fn sample(services: &Arc<Services>, limits: &Limits, disk: &Disk) -> metrics::Sampling {
    let (services, limits, disk) = (services.clone(), limits.clone(), disk.clone());
    metrics::on_scrape(move || {
        let (cluster, registry) = (&services.cluster, &services.partitions);
        let view = cluster.view();
        let mut now = metrics::Partitions {
            topics: view.topics.len(),
            ..metrics::Partitions::default()
        };
        for partition in registry.all() {
            let leadership = partition.leadership();
            now.held += 1;
            now.leading += usize::from(leadership.serving);
            now.leaderless += usize::from(leadership.leader.is_none());
            if leadership.serving && lacks_replicas(cluster, &view, &partition) {
                now.under_replicated += 1;
            }
            now.failed += usize::from(partition.failure().is_some());
            now.producers += partition.producers();
            now.log_bytes += partition.size_bytes();
        }
        now.failed += registry.failures();
        metrics::set_partitions(now);
        let sessions = services.fetch_sessions.counts();
        metrics::set_fetch_sessions(sessions.sessions, sessions.partitions, sessions.evictions);
        metrics::set_request_bytes(limits.bytes_held(), limits.bytes_max());
        let space = disk.space();
        metrics::set_disk(
            space.free_bytes,
            space.total_bytes,
            space.accepting,
            space.poisoned.is_some(),
        );
        if let Some(why) = cluster.failure() {
            warn!(why, "the metadata group has stopped");
        }
    })
}
