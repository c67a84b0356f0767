//! A disk that has come back proves that it still has what it acknowledged, before it votes.
//!
//! The start counter tells an older copy of a disk only if it was taken in an earlier run. So leaders tell
//! whoever connects how far it had acknowledged their groups; where its log ends before that, yesterday's
//! files were put back. Such a replica is written to like any other, and votes again when it is as far as
//! it had been.
//! Invariant: until every peer that is there has said so, this broker gives no vote, and asks for none in
//! partitions. Who says nothing for [`PATIENCE`] is not waited for: it may know nothing.
//! Not here: damaged files (`heal`), and what nobody who is alive remembers.

use super::controller::Cluster;
use super::heal;
use super::metadata::METADATA_TOPIC;
use crate::partition::Registry;
use crate::peers::{Peers, Standing, Standings};
use crate::raft::ReplicaId;
use bytes::Bytes;
use logd_proto::Uuid;
use logd_proto::rpc::v1 as rpc;
use logd_storage::{Disk, LogKey};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, warn};

/// How long a start waits for what peers remember of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Groups in one message.
const GROUPS_MAX: usize = 4_096;

/// How long a peer may take to look.
const ANSWER: Duration = Duration::from_secs(5);

/// Whether this disk may vote.
pub struct Vetting {
    disk: Disk,
    data_dir: PathBuf,
    since: Instant,
    standings: Mutex<Option<watch::Receiver<Standings>>>,
    heard: Mutex<BTreeSet<ReplicaId>>,
    done: AtomicBool,
}

impl std::fmt::Debug for Vetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Vetting").field(&self.done).finish()
    }
}

impl Vetting {
    pub fn new(disk: Disk, data_dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            disk,
            data_dir,
            since: Instant::now(),
            standings: Mutex::default(),
            heard: Mutex::default(),
            done: AtomicBool::new(false),
        })
    }

    /// From here on it is known who the peers are.
    pub(super) fn among(&self, peers: &Peers) {
        *self.standings.lock() = Some(peers.standings());
    }

    /// True once every peer that is there has said what it remembers, or had the time to.
    pub fn is_done(&self) -> bool {
        if self.done.load(Ordering::Acquire) {
            return true;
        }
        let heard = self.heard.lock();
        let waiting = match &*self.standings.lock() {
            None => true,
            Some(standings) => standings.borrow().iter().any(|(disk, standing)| {
                !matches!(standing, Standing::Dead { .. }) && !heard.contains(disk)
            }),
        };
        let done = !waiting || self.since.elapsed() >= PATIENCE;
        if done {
            self.done.store(true, Ordering::Release);
        }
        done
    }

    /// What a peer remembers: where our log is shorter, the replica votes later. Blocks.
    pub(super) fn remembered(
        &self,
        from: ReplicaId,
        said: &rpc::Acknowledged,
        cluster: Option<&Cluster>,
    ) {
        for group in &said.groups {
            if let Some(key) = key_of(group.group.as_ref()) {
                self.compare(key, group.index, cluster);
            }
        }
        if said.complete {
            self.heard.lock().insert(from);
        }
    }

    fn compare(&self, key: LogKey, acknowledged: u64, cluster: Option<&Cluster>) {
        let last = self.disk.log(key).and_then(|log| log.bounds().last);
        let last = last.map_or(0, |id| id.index);
        if last >= acknowledged || self.done.load(Ordering::Acquire) {
            return;
        }
        warn!(log = %key, last, acknowledged, "this log ends before what it had acknowledged: an older copy of the disk? it votes again when it has caught up");
        if let Err(error) = heal::set_floor(&self.data_dir, key, acknowledged) {
            warn!(%error, "a restart will not remember that");
        }
        let Some(cluster) = cluster else {
            return;
        };
        if key.topic == METADATA_TOPIC {
            cluster.group.raise_floor(acknowledged);
        }
        let topic = Uuid::from_bytes(key.topic);
        if let Some(partition) = cluster.registry.get(&topic, key.partition as i32) {
            partition.raise_floor(acknowledged);
        }
    }
}

fn key_of(group: Option<&rpc::GroupId>) -> Option<LogKey> {
    let group = group?;
    Some(LogKey {
        topic: <[u8; 16]>::try_from(&group.topic_id[..]).ok()?,
        partition: group.partition,
    })
}

/// Tells every peer that (re)connects what it has acknowledged of what this broker leads.
pub async fn tell_acknowledged(cluster: Arc<Cluster>, registry: Arc<Registry>) {
    let peers = cluster.peers.clone();
    let mut standings = peers.standings();
    let mut told: BTreeMap<ReplicaId, u64> = BTreeMap::new();
    loop {
        let now = standings.borrow_and_update().clone();
        for (disk, standing) in now {
            let Standing::Alive { connection, .. } = standing else {
                continue;
            };
            if told.insert(disk, connection) != Some(connection) {
                tokio::spawn(tell(cluster.clone(), registry.clone(), disk));
            }
        }
        if standings.changed().await.is_err() {
            return;
        }
    }
}

async fn tell(cluster: Arc<Cluster>, registry: Arc<Registry>, disk: ReplicaId) {
    let groups = acknowledged_by(&cluster, &registry, disk);
    // An empty message says as much as a full one: that there is no more.
    let mut rest = &groups[..];
    loop {
        let (part, left) = rest.split_at(rest.len().min(GROUPS_MAX));
        rest = left;
        let message = rpc::Acknowledged {
            groups: part.to_vec(),
            complete: rest.is_empty(),
        };
        if let Err(error) = cluster.peers.acknowledged(disk, message, ANSWER).await {
            debug!(%error, "a peer was not told what it has acknowledged");
            return;
        }
        if rest.is_empty() {
            return;
        }
    }
}

fn acknowledged_by(
    cluster: &Cluster,
    registry: &Registry,
    disk: ReplicaId,
) -> Vec<rpc::AcknowledgedGroup> {
    let entry = |topic: &[u8], partition: u32, index: u64| rpc::AcknowledgedGroup {
        group: Some(rpc::GroupId {
            topic_id: Bytes::copy_from_slice(topic),
            partition,
            generation: 0,
        }),
        index,
    };
    let led = registry.all().into_iter().filter(|p| p.outlook().leads);
    let mut groups: Vec<_> = led
        .filter_map(|p| {
            let index = *p.members().matched.get(&disk)?;
            Some(entry(p.topic_id().as_bytes(), p.index() as u32, index))
        })
        .collect();
    if cluster.group.outlook().leads
        && let Some(index) = cluster.group.members().matched.get(&disk)
    {
        groups.push(entry(&METADATA_TOPIC, 0, *index));
    }
    groups
}
