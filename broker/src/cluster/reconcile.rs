//! What should run on this broker against what does: a pure difference, and the loop that acts on it.
//!
//! Invariant: data goes only on a positive tombstone, or when the partition is to be elsewhere and its
//! leader has said, later than anything this replica knows, that this disk is no member; or when the metadata
//! says that another replica went on by force, and that one leads (`generations`). A log that no
//! topic claims stays where it is, because "I do not know this topic" may be our own ignorance; a replica
//! that is no target any more is opened all the same, because its group may still need its vote.

use super::claims::Claims;
use super::controller::Cluster;
use super::generations;
use super::heal;
use super::leaders::Claim;
use super::state::{ClusterState, Command, Topic, TopicId};
use crate::partition::{Partition, Registry, Spec};
use crate::settings::Live;
use crate::topic_config::TopicDefaults;
use logd_proto::Uuid;
use logd_storage::{Disk, LogKey};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

/// Groups opened at once: each costs a few tasks and an election, which share syncs.
const OPENING_AT_ONCE: usize = 256;

/// How long a failed opening or deletion, or a group that ended, waits for another try.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Open {
        topic: Arc<Topic>,
        index: i32,
    },
    Delete {
        topic: Uuid,
        index: i32,
    },
    /// The partition goes on without this replica.
    Release {
        topic: Uuid,
        index: i32,
    },
}

/// What a replica knows of its own membership.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Own {
    pub disk: u64,
    pub generation: u32,
    pub term: u64,
    /// One more than the last entry here that says who is a member; 0 for none.
    pub named_at: u64,
}

/// Whether the leader has said, later than anything this replica knows, that its disk is no member.
pub fn let_go(own: Own, claim: Option<&Claim>) -> bool {
    claim.is_some_and(|c| {
        let later = c.term >= own.term && c.settled_at > 0 && c.settled_at >= own.named_at;
        let led = !c.voters.is_empty() && c.generation == own.generation;
        later && led && !c.voters.contains(&own.disk) && !c.learners.contains(&own.disk)
    })
}

/// What to do so that this broker holds what the state says. `released`: replicas held here whose leader
/// has let them go.
pub fn diff(
    state: &ClusterState,
    node: i32,
    held: &BTreeSet<(Uuid, i32)>,
    released: &BTreeSet<(Uuid, i32)>,
    on_disk: &[LogKey],
) -> Vec<Action> {
    let key = |k: &LogKey| (Uuid::from_bytes(k.topic), k.partition as i32);
    let lying: BTreeSet<(Uuid, i32)> = on_disk.iter().map(key).collect();
    let mut actions = Vec::new();
    for topic in state.topics.values() {
        for (index, replicas) in topic.partitions.iter().enumerate() {
            let key = (topic.id, index as i32);
            let (topic, index) = (topic.clone(), key.1);
            let wanted = replicas.contains(&node);
            if !held.contains(&key) && (wanted || lying.contains(&key)) {
                actions.push(Action::Open { topic, index });
            } else if held.contains(&key) && !wanted && released.contains(&key) {
                let topic = key.0;
                actions.push(Action::Release { topic, index });
            }
        }
    }
    let dead = |topic: &Uuid| {
        let left = state.tombstones.get(topic);
        left.is_some_and(|left| left.contains(&node))
    };
    let mut doomed: BTreeSet<(Uuid, i32)> = held
        .iter()
        .filter(|(topic, _)| dead(topic))
        .copied()
        .collect();
    doomed.extend(lying.into_iter().filter(|(topic, _)| dead(topic)));
    actions.extend(
        doomed
            .into_iter()
            .map(|(topic, index)| Action::Delete { topic, index }),
    );
    actions
}

/// What a partition of a topic needs to open on this broker.
pub type SpecOf = Arc<dyn Fn(&Topic, i32) -> Spec + Send + Sync>;

/// Opens and deletes replicas as the metadata says. The registry's only writer.
pub struct Reconciler {
    pub cluster: Arc<Cluster>,
    pub registry: Arc<Registry>,
    pub disk: Disk,
    pub data_dir: PathBuf,
    pub spec: SpecOf,
    /// Is told of every replica that is opened.
    pub claims: Arc<Claims>,
    pub done: tokio::sync::watch::Sender<u64>,
    pub settings: Live,
}

impl Reconciler {
    /// Follows the metadata until its group is gone. Looks again every now and then: what failed may work.
    pub async fn run(self) {
        let (mut view, mut settings) = (self.cluster.watch(), self.settings.watch());
        loop {
            let state = view.borrow_and_update().clone();
            settings.mark_unchanged();
            self.round(&state).await;
            self.done.send_modify(|n| *n += 1);
            let gone = tokio::select! {
                changed = view.changed() => changed.is_err(),
                Ok(()) = settings.changed() => false,
                () = tokio::time::sleep(self.registry.pause(LOOK_AGAIN)) => false,
            };
            if gone {
                return;
            }
        }
    }

    /// A group whose core has ended is closed, and opened anew by the difference.
    async fn drop_failed(&self) {
        for partition in self.registry.all() {
            if let Some(why) = partition.failure() {
                error!(
                    topic = partition.topic(),
                    partition = partition.index(),
                    why,
                    "a partition's group ended; opening it anew"
                );
                self.registry
                    .remove(&partition.topic_id(), partition.index());
                partition.close().await;
            }
        }
    }

    /// A replica of a partition that was recovered by force since it was opened serves nobody any more.
    async fn close_outdated(&self, state: &ClusterState) {
        for partition in self.registry.all() {
            let (id, index) = (partition.topic_id(), partition.index());
            let topic = state.topics.get(&id);
            if topic.is_some_and(|t| t.generation(index) > partition.generation()) {
                let (topic, generation) = (partition.topic(), partition.generation());
                warn!(
                    topic,
                    partition = index,
                    generation,
                    "a replica is closed: its partition is recovered by force"
                );
                self.registry.remove(&id, index);
                partition.close().await;
            }
        }
    }

    /// What is known of a replica before it is opened.
    fn replica(&self, topic: &Topic, index: i32) -> generations::Replica {
        let claim = self.cluster.leaders().get(&topic.id, index);
        let target = topic.target(index);
        generations::Replica {
            key: LogKey {
                topic: topic.id.to_bytes(),
                partition: index as u32,
            },
            disk: self.cluster.disk(),
            recovery: topic.recoveries.get(&index).copied(),
            led: claim.map(|c| c.generation),
            wanted: target.is_some_and(|t| t.contains(&self.cluster.node_id())),
        }
    }

    /// Damaged replicas are handed over if they lead, and then closed to be written again by whoever leads.
    async fn heal(&self) {
        for partition in self.registry.all() {
            if partition.is_whole_again() {
                heal::end(&self.data_dir, partition.key());
            }
            if !partition.is_damaged() || partition.is_alone() {
                continue;
            }
            let hearing = self.cluster.hearing();
            let handed = if partition.outlook().leads {
                partition.hand_over(|disk| hearing.is_heard_by(disk)).await
            } else {
                Ok(())
            };
            let (topic, index) = (partition.topic_id(), partition.index());
            let led_elsewhere = partition.outlook().leader.is_some();
            if let (Ok(()), true) = (handed, led_elsewhere) {
                self.registry.remove(&topic, index);
                partition.close().await;
                self.begin_healing(partition.key());
            }
        }
    }

    fn begin_healing(&self, key: LogKey) {
        let Some(log) = self.disk.log(key) else {
            return;
        };
        if let Err(error) = heal::begin(&self.data_dir, &log) {
            error!(%error, "a damaged replica cannot be written again: no note can be made of it");
        }
    }

    /// A replica that could not be opened for damage is written again if somebody else serves the partition.
    fn heal_unopened(&self, topic: &Uuid, index: i32) {
        let key = LogKey {
            topic: topic.to_bytes(),
            partition: index as u32,
        };
        let damaged = self.disk.log(key).is_some_and(|log| log.fenced().is_some());
        let claim = self.cluster.leaders().get(topic, index);
        let elsewhere = claim.is_some_and(|c| c.node != self.cluster.node_id());
        if damaged && elsewhere {
            self.begin_healing(key);
        }
    }

    /// One difference acted upon; false if something is left to try again.
    pub async fn round(&self, state: &ClusterState) -> bool {
        self.drop_failed().await;
        self.close_outdated(state).await;
        self.heal().await;
        let all = self.registry.all();
        reconfigure(state, &self.settings.now().topics, &all);
        let held = all.iter().map(|p| (p.topic_id(), p.index())).collect();
        let (node, released) = (self.cluster.node_id(), self.released(state, &all));
        let actions = diff(state, node, &held, &released, &self.disk.logs());
        let mut clean = true;
        let mut deleted: BTreeMap<Uuid, usize> = BTreeMap::new();
        let mut opening = JoinSet::new();
        for action in actions {
            match action {
                Action::Delete { topic, index } => {
                    let done = self.delete(topic, index, Why::TopicDeleted).await;
                    *deleted.entry(topic).or_default() += usize::from(done);
                    clean &= done;
                }
                Action::Release { topic, index } => {
                    let done = self.delete(topic, index, Why::Elsewhere).await;
                    if done {
                        info!(topic_id = %TopicId(topic), partition = index, "a replica that is elsewhere now moved to the trash");
                    }
                    clean &= done;
                }
                Action::Open { topic, index } => {
                    if opening.len() >= OPENING_AT_ONCE {
                        clean &= self.opened(opening.join_next().await);
                    }
                    let replica = self.replica(&topic, index);
                    let (spec, disk) = ((self.spec)(&topic, index), self.disk.clone());
                    opening.spawn(open(spec, disk, self.data_dir.clone(), replica));
                }
            }
        }
        while let Some(result) = opening.join_next().await {
            clean &= self.opened(Some(result));
        }
        for (topic, replicas) in deleted {
            info!(topic_id = %TopicId(topic), replicas, "a deleted topic's replicas moved to the trash");
        }
        self.reap(state).await;
        clean
    }

    /// Replicas that are no targets and whose leaders have let them go.
    fn released(&self, state: &ClusterState, all: &[Arc<Partition>]) -> BTreeSet<(Uuid, i32)> {
        let node = self.cluster.node_id();
        let leaving = all.iter().filter(|p| {
            let topic = state.topics.get(&p.topic_id());
            let target = topic.and_then(|t| t.target(p.index()));
            target.is_some_and(|t| !t.contains(&node))
        });
        let gone = leaving.filter(|p| {
            let own = Own {
                disk: self.cluster.disk(),
                generation: p.generation(),
                term: u64::try_from(p.leadership().epoch).unwrap_or(0),
                named_at: p.members().named_at,
            };
            let claim = self.cluster.leaders().get(&p.topic_id(), p.index());
            let_go(own, claim.as_ref())
        });
        gone.map(|p| (p.topic_id(), p.index())).collect()
    }

    fn opened(&self, result: Option<Result<Opened, tokio::task::JoinError>>) -> bool {
        match result {
            Some(Ok(Ok(None))) => true,
            Some(Ok(Ok(Some(partition)))) => {
                let (topic, index) = (partition.topic_id(), partition.index());
                self.registry.insert(partition);
                self.claims.due(topic, index);
                true
            }
            Some(Ok(Err(Unopened { topic, index, why }))) => {
                // Said once: it is tried again every few seconds.
                if self.registry.failure(&topic.1, index).as_ref() != Some(&why) {
                    error!(
                        topic = topic.0,
                        partition = index,
                        why,
                        "a partition cannot be opened; it serves nothing"
                    );
                }
                self.registry.fail(topic.1, index, why);
                self.heal_unopened(&topic.1, index);
                false
            }
            Some(Err(error)) => {
                error!(%error, "opening a partition panicked");
                false
            }
            None => true,
        }
    }

    async fn delete(&self, topic: Uuid, index: i32, why: Why) -> bool {
        if let Some(partition) = self.registry.remove(&topic, index) {
            partition.close().await;
        }
        let key = LogKey {
            topic: topic.to_bytes(),
            partition: index as u32,
        };
        let (disk, data_dir) = (self.disk.clone(), self.data_dir.clone());
        // What is elsewhere now may come back.
        let for_good = why == Why::TopicDeleted;
        let deleting = move || {
            let deleted = disk.delete_log(key);
            if deleted.is_ok() {
                heal::forget(&data_dir, key);
                if for_good {
                    generations::forget(&data_dir, key);
                }
            }
            deleted
        };
        match tokio::task::spawn_blocking(deleting).await {
            Ok(Ok(())) => {
                debug!(topic_id = %TopicId(topic), partition = index, ?why, "replica moved to the trash");
                true
            }
            Ok(Err(error)) => {
                warn!(topic_id = %TopicId(topic), partition = index, ?why, %error, "a replica could not be removed; trying again");
                false
            }
            Err(_) => false,
        }
    }

    /// Tells the cluster that nothing of a deleted topic is left here.
    async fn reap(&self, state: &ClusterState) {
        let node = self.cluster.node_id();
        let on_disk: BTreeSet<[u8; 16]> = self.disk.logs().iter().map(|k| k.topic).collect();
        let ids: Vec<TopicId> = state
            .tombstones
            .iter()
            .filter(|(t, left)| left.contains(&node) && !on_disk.contains(t.as_bytes()))
            .map(|(t, _)| TopicId(*t))
            .collect();
        if !ids.is_empty()
            && let Err(error) = self
                .cluster
                .propose(Command::Reaped {
                    ids,
                    node: Some(node),
                })
                .await
        {
            warn!(%error, "tombstones kept for another round");
        }
    }
}

/// Open partitions go by their topics' configurations as they are now, and by what the broker gives topics.
fn reconfigure(state: &ClusterState, defaults: &TopicDefaults, all: &[Arc<Partition>]) {
    for partition in all {
        let topic = state.topics.get(&partition.topic_id());
        if topic.is_some_and(|t| partition.reconfigure(&t.config, defaults)) {
            let (topic, index) = (partition.topic(), partition.index());
            debug!(topic, partition = index, "configuration changed");
        }
    }
}

/// Why a replica goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    TopicDeleted,
    Elsewhere,
}

/// Nothing, if the replica is not to be opened, or not yet.
type Opened = Result<Option<Arc<Partition>>, Unopened>;

/// A partition that cannot be opened, and why.
struct Unopened {
    topic: (String, Uuid),
    index: i32,
    why: String,
}

async fn open(spec: Spec, disk: Disk, data_dir: PathBuf, replica: generations::Replica) -> Opened {
    let (topic, index) = ((spec.topic.clone(), spec.topic_id), spec.index);
    let options = spec.config.log_options();
    let opened = match generations::bring(data_dir, disk.clone(), options, replica).await {
        Ok(Some((log, floor))) => Partition::open(Spec { floor, ..spec }, disk, log)
            .await
            .map(Some)
            .map_err(|e| e.to_string()),
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    opened.map_err(|why| Unopened { topic, index, why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::{BrokerInfo, TopicRecord};
    use std::collections::BTreeMap;

    fn id(n: u8) -> Uuid {
        Uuid::from_bytes([n; 16])
    }

    fn with_topic(n: u8, partitions: Vec<Vec<i32>>) -> ClusterState {
        let mut s = ClusterState::default();
        s.apply(Command::RegisterBroker(BrokerInfo {
            id: 1,
            replica: 7,
            start: 1,
            rack: None,
            listeners: BTreeMap::new(),
            rpc: String::new(),
            features: crate::cluster::FeatureLevel::FIRST,
        }));
        s.apply(Command::CreateTopic(TopicRecord {
            id: TopicId(id(n)),
            name: format!("t{n}"),
            internal: false,
            partitions,
            replication: None,
            disks: BTreeMap::new(),
            moves: BTreeMap::new(),
            moved: BTreeSet::new(),
            grown: BTreeMap::new(),
            recoveries: BTreeMap::new(),
            overrides: BTreeMap::new(),
        }));
        s
    }

    fn key(n: u8, partition: u32) -> LogKey {
        LogKey {
            topic: [n; 16],
            partition,
        }
    }

    #[test]
    fn only_our_replicas_are_opened_and_only_once() {
        let state = with_topic(1, vec![vec![1], vec![2], vec![2, 1]]);
        let held = BTreeSet::from([(id(1), 0)]);
        let opens: Vec<i32> = diff(&state, 1, &held, &BTreeSet::new(), &[])
            .into_iter()
            .map(|a| match a {
                Action::Open { index, .. } => index,
                other => panic!("nothing goes: {other:?}"),
            })
            .collect();
        assert_eq!(opens, [2]);
    }

    #[test]
    fn a_replica_that_is_no_target_stays_until_its_leader_has_let_it_go() {
        let state = with_topic(1, vec![vec![2]]);
        let (held, none) = (BTreeSet::from([(id(1), 0)]), BTreeSet::new());
        assert_eq!(diff(&state, 1, &held, &none, &[key(1, 0)]), []);
        let gone = Action::Release {
            topic: id(1),
            index: 0,
        };
        assert_eq!(diff(&state, 1, &held, &held, &[key(1, 0)]), [gone]);
        let wanted = with_topic(1, vec![vec![2, 1]]);
        assert_eq!(diff(&wanted, 1, &held, &held, &[key(1, 0)]), []);
    }

    #[test]
    fn a_replica_that_only_lies_on_disk_is_opened_though_it_is_no_target() {
        let state = with_topic(1, vec![vec![2]]);
        let none = BTreeSet::new();
        let actions = diff(&state, 1, &none, &none, &[key(1, 0)]);
        assert!(matches!(actions[..], [Action::Open { index: 0, .. }]));
    }

    #[test]
    fn only_a_later_word_of_the_leader_lets_a_replica_go() {
        let own = Own {
            disk: 7,
            generation: 1,
            term: 4,
            named_at: 20,
        };
        let claim = |term, settled_at, voters: &[u64]| Claim {
            generation: 1,
            term,
            node: 2,
            voters: voters.to_vec(),
            in_sync: vec![],
            learners: vec![],
            settled_at,
        };
        assert!(let_go(own, Some(&claim(4, 21, &[8, 9]))));
        assert!(!let_go(own, None), "silence");
        assert!(!let_go(own, Some(&claim(3, 21, &[8, 9]))), "an older term");
        assert!(!let_go(own, Some(&claim(4, 19, &[8, 9]))), "before it came");
        assert!(!let_go(own, Some(&claim(4, 0, &[8, 9]))), "still changing");
        let before = Claim {
            generation: 0,
            ..claim(9, 21, &[8, 9])
        };
        assert!(!let_go(own, Some(&before)), "of a group that is no more");
        assert!(!let_go(own, Some(&claim(4, 21, &[7, 9]))), "it votes");
        let learning = Claim {
            learners: vec![7],
            ..claim(4, 21, &[8, 9])
        };
        assert!(!let_go(own, Some(&learning)), "it learns");
    }

    #[test]
    fn a_log_that_no_topic_claims_is_left_alone() {
        assert_eq!(
            diff(
                &ClusterState::default(),
                1,
                &BTreeSet::new(),
                &BTreeSet::new(),
                &[key(9, 0)]
            ),
            []
        );
    }

    #[test]
    fn a_tombstone_deletes_what_is_held_and_what_only_lies_on_disk() {
        let mut state = with_topic(1, vec![vec![1], vec![1]]);
        state.apply(Command::DeleteTopic { id: TopicId(id(1)) });
        let held = BTreeSet::from([(id(1), 0)]);
        let on_disk = [key(1, 0), key(1, 1)];
        let actions = diff(&state, 1, &held, &BTreeSet::new(), &on_disk);
        assert_eq!(
            actions,
            [
                Action::Delete {
                    topic: id(1),
                    index: 0
                },
                Action::Delete {
                    topic: id(1),
                    index: 1
                }
            ]
        );
    }
}
