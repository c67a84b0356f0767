//! Who leads what, as every broker has heard it.
//!
//! Promise: of two claims for a partition the one of the higher term stands, within a generation of its group. What this broker leads
//! it tells every peer: changes as they come, and everything to whoever (re)connects.
//! Not here: elections. A claim is made by a leader that serves.

use super::state::ClusterState;
use crate::peers::{Peers, Standing};
use crate::raft::ReplicaId;
use bytes::Bytes;
use logd_proto::Uuid;
use logd_proto::rpc::v1::envelope::Body;
use logd_proto::rpc::v1::{self as rpc};
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Claims in one message: some hundred kilobytes.
const AT_ONCE: usize = 4_096;

/// How long a peer may take to note claims; then it is told everything again.
const PATIENCE: Duration = Duration::from_secs(5);

/// A table that was not taken is tried again after this.
const TRY_AGAIN: Duration = Duration::from_secs(1);

type Key = (Uuid, i32);

/// Who leads a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// How often the partition was recovered by force.
    pub generation: u32,
    pub term: u64,
    pub node: i32,
    /// The disks that vote in the group, and those of them that keep up.
    pub voters: Vec<ReplicaId>,
    pub in_sync: Vec<ReplicaId>,
    /// Disks that are written to and do not vote.
    pub learners: Vec<ReplicaId>,
    /// One more than the committed entry that says who is a member; 0 while that is being changed.
    pub settled_at: u64,
}

impl Claim {
    /// The later of two claims has more of this. What is left of a group that was recovered by force
    /// elects nobody who counts, whatever its terms.
    fn standing(&self) -> (u32, u64) {
        (self.generation, self.term)
    }

    /// False if not most of those who vote in the group are there: then nobody leads it, whatever was heard last. A
    /// disk that no broker has any more votes no more.
    pub fn may_be_led(&self, view: &ClusterState, there: impl Fn(i32) -> bool) -> bool {
        let voting = |disk: &&ReplicaId| view.node_of(**disk).is_some_and(&there);
        self.voters.iter().filter(voting).count() * 2 > self.voters.len()
    }

    /// True if each of the brokers that should hold the partition keeps up with its leader.
    pub fn is_kept_by(&self, view: &ClusterState, nodes: &[i32]) -> bool {
        nodes.iter().all(|node| {
            let disk = view.brokers.get(node).map(|b| b.replica);
            disk.is_some_and(|d| self.in_sync.contains(&d))
        })
    }
}

/// The number before the first change: 0 stands for "nothing told yet".
const NO_CHANGE: u64 = 1;

#[derive(Debug)]
struct Table {
    claims: HashMap<Key, Claim>,
    /// Own claims that have changed, with the number of the change.
    changes: BTreeMap<u64, Key>,
    last_change: u64,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            claims: HashMap::new(),
            changes: BTreeMap::new(),
            last_change: NO_CHANGE,
        }
    }
}

/// The table. One writer per claim: the leader itself, or what it said.
#[derive(Debug)]
pub struct Leaders {
    table: RwLock<Table>,
    changed: watch::Sender<u64>,
    /// Wakes those who wait for a leader, whoever it is.
    heard: watch::Sender<()>,
}

impl Default for Leaders {
    fn default() -> Self {
        Self {
            table: RwLock::default(),
            changed: watch::channel(0).0,
            heard: watch::channel(()).0,
        }
    }
}

impl Leaders {
    pub fn get(&self, topic: &Uuid, index: i32) -> Option<Claim> {
        self.table.read().claims.get(&(*topic, index)).cloned()
    }

    /// Disks that are being written to somewhere and do not vote there yet.
    pub fn learners(&self) -> BTreeSet<ReplicaId> {
        let table = self.table.read();
        let learners = table.claims.values().flat_map(|claim| &claim.learners);
        learners.copied().collect()
    }

    /// Wakes whenever a claim was noted.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.heard.subscribe()
    }

    /// This broker leads.
    pub fn claim(&self, topic: Uuid, index: i32, claim: Claim) {
        let number = {
            let mut table = self.table.write();
            let known = table.claims.get(&(topic, index));
            if known.is_some_and(|k| k.standing() > claim.standing() || *k == claim) {
                return;
            }
            table.claims.insert((topic, index), claim);
            table.last_change += 1;
            let number = table.last_change;
            table.changes.insert(number, (topic, index));
            number
        };
        self.changed.send_replace(number);
        self.heard.send_replace(());
    }

    /// Another broker leads, it says.
    pub fn note(&self, leaders: rpc::Leaders) {
        {
            let mut table = self.table.write();
            for leader in leaders.leaders {
                let Ok(id) = <[u8; 16]>::try_from(&leader.topic_id[..]) else {
                    continue;
                };
                let key = (Uuid::from_bytes(id), leader.partition as i32);
                let claim = Claim {
                    generation: leader.generation,
                    term: leader.term,
                    node: leader.node_id,
                    voters: leader.voters,
                    in_sync: leader.in_sync,
                    learners: leader.learners,
                    settled_at: leader.settled_at,
                };
                let known = table.claims.get(&key);
                if known.is_none_or(|k| k.standing() <= claim.standing()) {
                    table.claims.insert(key, claim);
                }
            }
        }
        self.heard.send_replace(());
    }

    /// Forgets partitions of topics that are gone.
    pub fn retain(&self, exists: impl Fn(&Uuid) -> bool) {
        self.table
            .write()
            .claims
            .retain(|(topic, _), _| exists(topic));
    }

    /// Own claims that changed after `since`, and the number to go on from.
    fn news(&self, me: i32, since: u64) -> (Vec<rpc::Leader>, u64) {
        let table = self.table.read();
        let keys: BTreeSet<&Key> = if since == 0 {
            table.claims.keys().collect()
        } else {
            table
                .changes
                .range(since + 1..)
                .map(|(_, key)| key)
                .collect()
        };
        let ours = keys.into_iter().filter_map(|key| {
            let claim = table.claims.get(key).filter(|c| c.node == me)?;
            Some(rpc::Leader {
                topic_id: Bytes::copy_from_slice(key.0.as_bytes()),
                partition: key.1 as u32,
                generation: claim.generation,
                term: claim.term,
                node_id: claim.node,
                voters: claim.voters.clone(),
                in_sync: claim.in_sync.clone(),
                learners: claim.learners.clone(),
                settled_at: claim.settled_at,
            })
        });
        (ours.collect(), table.last_change)
    }

    /// Drops the record of changes that every peer has.
    fn forget_changes(&self, upto: u64) {
        let mut table = self.table.write();
        let upto = upto.min(table.last_change);
        table.changes = table.changes.split_off(&(upto + 1));
    }
}

/// How far a peer is: which connection, and which change it has.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    connection: u64,
    change: u64,
}

/// Tells every peer what this broker leads, until the peers are gone.
pub async fn publish(leaders: Arc<Leaders>, me: i32, peers: Peers) {
    let mut standings = peers.standings();
    let mut changed = leaders.changed.subscribe();
    let mut told: BTreeMap<ReplicaId, Told> = BTreeMap::new();
    loop {
        let now = standings.borrow_and_update().clone();
        changed.borrow_and_update();
        let mut all_told = true;
        told.retain(|disk, _| now.contains_key(disk));
        let mut telling = Vec::new();
        for (disk, standing) in &now {
            let Standing::Alive { connection, .. } = *standing else {
                continue;
            };
            let known = told.get(disk).filter(|t| t.connection == connection);
            let since = known.map_or(0, |t| t.change);
            telling.push(tell(&leaders, me, &peers, *disk, connection, since));
        }
        for (disk, result) in futures_util::future::join_all(telling).await {
            match result {
                Some(now) => drop(told.insert(disk, now)),
                None => {
                    told.remove(&disk);
                    all_told = false;
                }
            }
        }
        // A peer that is away is told everything when it is back.
        let least = told.values().map(|t| t.change).min();
        leaders.forget_changes(least.unwrap_or(u64::MAX - 1));
        let again = async {
            if all_told {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(TRY_AGAIN).await;
        };
        tokio::select! {
            gone = standings.changed() => if gone.is_err() { return },
            gone = changed.changed() => if gone.is_err() { return },
            () = again => {}
        }
    }
}

async fn tell(
    leaders: &Leaders,
    me: i32,
    peers: &Peers,
    disk: ReplicaId,
    connection: u64,
    since: u64,
) -> (ReplicaId, Option<Told>) {
    let (news, change) = leaders.news(me, since);
    for part in news.chunks(AT_ONCE) {
        let body = Body::Leaders(rpc::Leaders {
            leaders: part.to_vec(),
        });
        if peers.tell(disk, body, PATIENCE).await.is_err() {
            return (disk, None);
        }
    }
    (disk, Some(Told { connection, change }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(term: u64, node: i32) -> Claim {
        Claim {
            generation: 0,
            term,
            node,
            voters: vec![1, 2, 3],
            in_sync: vec![1, 2, 3],
            learners: vec![],
            settled_at: 1,
        }
    }

    fn topic() -> Uuid {
        Uuid::from_bytes([7; 16])
    }

    fn said(term: u64, node: i32) -> rpc::Leaders {
        rpc::Leaders {
            leaders: vec![rpc::Leader {
                topic_id: Bytes::copy_from_slice(topic().as_bytes()),
                partition: 0,
                term,
                node_id: node,
                ..rpc::Leader::default()
            }],
        }
    }

    #[test]
    fn the_higher_term_stands_whoever_is_heard_last() {
        let leaders = Leaders::default();
        leaders.note(said(5, 2));
        leaders.note(said(4, 3));
        leaders.claim(topic(), 0, claim(3, 1));
        assert_eq!(
            leaders.get(&topic(), 0).map(|c| (c.term, c.node)),
            Some((5, 2))
        );
        leaders.claim(topic(), 0, claim(6, 1));
        assert_eq!(leaders.get(&topic(), 0).map(|c| c.node), Some(1));
    }

    #[test]
    fn what_is_left_of_a_group_that_was_recovered_by_force_leads_nothing() {
        let leaders = Leaders::default();
        let recovered = Claim {
            generation: 1,
            ..claim(7, 1)
        };
        leaders.claim(topic(), 0, recovered);
        leaders.note(said(9_000, 2));
        assert_eq!(leaders.get(&topic(), 0).map(|c| c.node), Some(1));
    }

    #[test]
    fn a_peer_is_told_everything_once_and_then_what_changed() {
        let leaders = Leaders::default();
        leaders.claim(topic(), 0, claim(1, 1));
        leaders.claim(topic(), 1, claim(1, 1));
        leaders.note(rpc::Leaders::default());
        let (news, at) = leaders.news(1, 0);
        assert_eq!(news.len(), 2);
        leaders.claim(topic(), 1, claim(2, 1));
        let (news, _) = leaders.news(1, at);
        assert_eq!(
            news.iter()
                .map(|l| (l.partition, l.term))
                .collect::<Vec<_>>(),
            [(1, 2)]
        );
    }

    #[test]
    fn what_others_lead_is_theirs_to_tell() {
        let leaders = Leaders::default();
        leaders.note(said(5, 2));
        assert!(leaders.news(1, 0).0.is_empty());
    }
}
