//! Brings the members of the groups that this broker leads to where the metadata wants them.
//!
//! Promise: one step at a time per group, a new disk learns before it votes, and a leader that is to go
//! hands over to one that stays. A broker that came back with a new disk under its old number is healed
//! by the same steps: the wanted disk of a replica is the one that its broker has now.
//! Invariant: the steps are decided from the group's own members and the metadata alone, so whoever leads
//! next goes on where this broker stopped.
//! Not here: which brokers are wanted (`targets`), and files (`reconcile`).

use super::claims::Claims;
use super::controller::Cluster;
use super::duty::Duty;
use super::state::{ClusterState, Command, TopicId};
use super::targets::Move;
use super::voters::{LAG_MAX, Step, partition_step};
use crate::partition::{Partition, Registry};
use crate::peers::{Standing, Standings};
use crate::raft::{Members, ProposeError, ReplicaId};
use futures_util::future::join_all;
use logd_proto::Uuid;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::{debug, info, warn};

/// Partitions of one broker that are copied elsewhere at once: clients come first.
pub const MOVING_AT_ONCE: usize = 16;

/// Steps taken side by side: each is an entry in its group's log.
const STEPS_AT_ONCE: usize = 64;

/// A step is committed by then, or asked for again.
const STEP_DEADLINE: Duration = Duration::from_secs(5);

/// With something under way it is looked this often how far it is, else this often whether there is anything.
const LOOK_SOON: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_secs(2);

type Key = (Uuid, i32);

/// One group that this broker leads, and the next thing to do.
struct Due {
    partition: Arc<Partition>,
    step: Step,
}

/// Looks after the groups that this broker leads.
pub struct Moves {
    pub cluster: Arc<Cluster>,
    pub registry: Arc<Registry>,
    /// Is told of every change, so that others hear of it.
    pub claims: Arc<Claims>,
}

/// The disks that a partition's target brokers have now; `None` if one of them is not registered.
pub(super) fn wanted_disks(state: &ClusterState, target: &[i32]) -> Option<Vec<ReplicaId>> {
    let disk = |node: &i32| state.brokers.get(node).map(|b| b.replica);
    target.iter().map(disk).collect()
}

fn is_there(now: &Members, wanted: &[ReplicaId]) -> bool {
    let all_vote = wanted.iter().all(|r| now.voters.contains(r));
    all_vote && now.voters.len() == wanted.len() && now.learners.is_empty() && !now.changing
}

impl Moves {
    /// Runs until the metadata group is gone.
    pub async fn run(self) {
        let mut view = self.cluster.watch();
        // Terms in which a hand-over has failed: the leader takes no proposals until somebody else leads.
        let mut failed: BTreeMap<Key, i32> = BTreeMap::new();
        loop {
            let state = view.borrow_and_update().clone();
            let busy = self.round(&state, &mut failed).await;
            let pause = if busy {
                LOOK_SOON
            } else {
                self.registry.pause(LOOK_EVERY)
            };
            if let Ok(Err(_)) = tokio::time::timeout(pause, view.changed()).await {
                return;
            }
        }
    }

    /// One step for every group that needs one; true if anything is under way.
    async fn round(&self, state: &ClusterState, failed: &mut BTreeMap<Key, i32>) -> bool {
        let standings = self.cluster.peers.standings().borrow().clone();
        let me = self.cluster.disk();
        let alive = |r: ReplicaId| r == me || standings.get(&r).is_some_and(Standing::is_alive);
        let mut steps = Vec::new();
        let (mut begun, mut over) = (Vec::new(), Vec::new());
        let mut copying = 0;
        for partition in self.registry.all() {
            let leadership = partition.leadership();
            let key = (partition.topic_id(), partition.index());
            let topic = state.topics.get(&key.0).filter(|_| leadership.serving);
            let Some((topic, target)) = topic.and_then(|t| Some((t, t.target(key.1)?))) else {
                failed.remove(&key);
                continue;
            };
            if failed.get(&key) == Some(&leadership.epoch) {
                steps.extend(rescue(&partition, &standings, me));
                continue;
            }
            failed.remove(&key);
            let Some(wanted) = wanted_disks(state, target) else {
                continue;
            };
            let now = partition.members();
            if is_there(&now, &wanted) {
                if topic.moves.contains_key(&key.1) {
                    over.push(Move {
                        topic: TopicId(key.0),
                        partition: key.1,
                        target: Some(target.clone()),
                    });
                }
                steps.extend(relief(
                    state,
                    partition,
                    &now,
                    &wanted,
                    self.cluster.node_id(),
                    alive,
                ));
                continue;
            }
            copying += usize::from(!now.learners.is_empty());
            match partition_step(&now, &wanted, me, alive) {
                Some(step @ Step::AddLearner(_)) if now.learners.is_empty() => {
                    begun.push(Due { partition, step });
                }
                Some(step) => steps.push(Due { partition, step }),
                None => {}
            }
        }
        begun.sort_by_key(|due| (due.partition.topic_id(), due.partition.index()));
        begun.truncate(MOVING_AT_ONCE.saturating_sub(copying));
        steps.extend(begun);
        steps.truncate(STEPS_AT_ONCE);
        let busy = copying > 0 || !steps.is_empty() || !over.is_empty();
        self.take(steps, failed).await;
        self.say_over(over).await;
        busy
    }

    async fn take(&self, steps: Vec<Due>, failed: &mut BTreeMap<Key, i32>) {
        let taken = steps.into_iter().map(|due| async move {
            let done = take(&due).await;
            (due, done)
        });
        for (due, done) in join_all(taken).await {
            let (topic, index) = (due.partition.topic_id(), due.partition.index());
            let name = due.partition.topic();
            match done {
                Ok(()) => {
                    info!(topic = name, partition = index, step = ?due.step, "members changed")
                }
                Err(error) => {
                    debug!(topic = name, partition = index, step = ?due.step, %error, "a change of members put off");
                    let leadership = due.partition.leadership();
                    if matches!(due.step, Step::HandOver(_)) && leadership.serving {
                        warn!(topic = name, partition = index, %error, "leadership was not taken over; offering it to the others");
                        failed.insert((topic, index), leadership.epoch);
                    }
                }
            }
            self.claims.due(topic, index);
        }
    }

    async fn say_over(&self, over: Vec<Move>) {
        if over.is_empty() {
            return;
        }
        let partitions = over.len();
        match self.cluster.propose(Command::MovesOver { over }).await {
            Ok(_) => info!(partitions, "moves are over"),
            Err(error) => debug!(%error, "the end of moves is said again later"),
        }
    }
}

/// A broker that is drained or leaves hands over what it leads, to the first replica that may take more.
fn relief(
    state: &ClusterState,
    partition: Arc<Partition>,
    now: &Members,
    wanted: &[ReplicaId],
    node: i32,
    alive: impl Fn(ReplicaId) -> bool,
) -> Option<Due> {
    if state.duty(node) == Duty::Active {
        return None;
    }
    let takes = |r: &&ReplicaId| state.node_of(**r).is_some_and(|n| state.takes_more(n));
    let mut others = wanted.iter().filter(takes);
    let heir = others.find(|r| alive(**r) && now.lag(**r) <= LAG_MAX)?;
    let step = Step::HandOver(*heir);
    Some(Due { partition, step })
}

/// A group whose hand-over failed is led by anybody who can.
fn rescue(partition: &Arc<Partition>, standings: &Standings, me: ReplicaId) -> Option<Due> {
    let now = partition.members();
    let alive = |r: &&ReplicaId| **r != me && standings.get(r).is_some_and(Standing::is_alive);
    let heir = now.voters.iter().filter(alive).min_by_key(|r| now.lag(**r));
    heir.map(|heir| Due {
        partition: partition.clone(),
        step: Step::HandOver(*heir),
    })
}

async fn take(due: &Due) -> Result<(), ProposeError> {
    let partition = &due.partition;
    let step = async {
        match due.step.clone() {
            Step::AddLearner(disk) => partition.add_learner(disk).await,
            Step::SetVoters(voters) => partition.set_voters(voters).await,
            Step::RemoveLearner(disk) => partition.remove_learner(disk).await,
            Step::HandOver(heir) => partition.hand_over(|r| r == heir).await,
        }
    };
    tokio::time::timeout(STEP_DEADLINE, step)
        .await
        .unwrap_or(Err(ProposeError::Unknown))
}
