//! Draining, resuming and decommissioning a broker.
//!
//! Promise: a broker that is decommissioned is forgotten only when everything that was on it is elsewhere
//! and it does not vote on metadata any more. Whoever leads the metadata group sees to it.
//! Not here: which broker takes what (`rebalance`), and the moves themselves.

use super::controller::Cluster;
use super::duty::Duty;
use super::rebalance;
use super::state::{Answer, ClusterState, Command};
use crate::raft::ProposeError;
use logd_proto::rpc::v1 as rpc;
use logd_proto::rpc::v1::envelope::Body;
use std::sync::Arc;
use std::time::Duration;
use tracing::{debug, info};

/// How often it is looked whether a broker that leaves is done.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DutyError {
    #[error("there is no broker {0}")]
    Unknown(i32),
    #[error(
        "broker {node} cannot be decommissioned: topic {topic:?} has {replicas} replicas, and {left} other brokers \
         take replicas; add a broker first, or give the topic fewer replicas"
    )]
    NoRoom {
        node: i32,
        topic: String,
        replicas: usize,
        left: usize,
    },
    #[error("broker {0} is the only one that takes replicas; there is nowhere to go")]
    Last(i32),
    #[error("{0}")]
    Unavailable(String),
}

/// How long an answer waits until a broker that holds nothing is forgotten.
const UNREGISTER_PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnregisterError {
    #[error("there is no broker {0}")]
    Unknown(i32),
    #[error(
        "broker {node} is to hold {partitions} partitions, which unregistering would not move; decommission it instead \
         (logctl node decommission {node})"
    )]
    StillNeeded { node: i32, partitions: usize },
    #[error(transparent)]
    Duty(#[from] DutyError),
    #[error("broker {0} is leaving, and is forgotten as soon as no group has it for a member")]
    NotYet(i32),
}

fn room(state: &ClusterState, node: i32) -> Result<(), DutyError> {
    let left = state
        .brokers
        .keys()
        .filter(|n| **n != node && state.takes_more(**n));
    let left = left.count();
    if left == 0 {
        return Err(DutyError::Last(node));
    }
    for topic in state.topics.values() {
        let mut on = topic.partitions.iter().filter(|r| r.contains(&node));
        if let Some(replicas) = on.find(|r| r.len() > left) {
            return Err(DutyError::NoRoom {
                node,
                topic: topic.name.clone(),
                replicas: replicas.len(),
                left,
            });
        }
    }
    Ok(())
}

impl Cluster {
    /// Says what a broker is there for from now on.
    ///
    /// # Errors
    /// If there is no such broker, or nowhere to go with what it holds.
    pub async fn set_duty(&self, node: i32, duty: Duty) -> Result<(), DutyError> {
        let view = self.view();
        if !view.brokers.contains_key(&node) {
            return Err(DutyError::Unknown(node));
        }
        if duty == Duty::Leaving {
            room(&view, node)?;
        }
        match self.propose(Command::SetDuty { node, duty }).await {
            Ok(Answer::Done) => {
                info!(node, duty = duty.name(), "a broker's duty changed");
                Ok(())
            }
            Ok(Answer::Refused(_)) => Err(DutyError::Unknown(node)),
            Ok(other) => Err(DutyError::Unavailable(format!(
                "unexpected answer {other:?}"
            ))),
            Err(error) => Err(DutyError::Unavailable(error.to_string())),
        }
    }

    /// Forgets a broker that holds nothing; an answer comes when it is forgotten.
    ///
    /// # Errors
    /// If there is no such broker, partitions are to be on it, it is the last, or it takes longer.
    pub async fn unregister(&self, node: i32) -> Result<(), UnregisterError> {
        let state = self.view();
        if !state.brokers.contains_key(&node) {
            return Err(UnregisterError::Unknown(node));
        }
        let partitions = state.partitions_on(node);
        if partitions > 0 {
            return Err(UnregisterError::StillNeeded { node, partitions });
        }
        self.set_duty(node, Duty::Leaving).await?;
        let mut view = self.watch();
        let forgotten = view.wait_for(|s| !s.brokers.contains_key(&node));
        match tokio::time::timeout(UNREGISTER_PATIENCE, forgotten).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(UnregisterError::NotYet(node)),
        }
    }

    /// Resolves when this broker is no member of the cluster any more.
    pub async fn removed(&self) {
        let (mut view, mut dismissed) = (self.watch(), self.dismissed.subscribe());
        let me = self.disk();
        let gone = tokio::select! {
            gone = view.wait_for(|s| s.removed.contains(&me)) => gone.is_err(),
            gone = dismissed.wait_for(|said| *said) => gone.is_err(),
        };
        if gone {
            std::future::pending::<()>().await;
        }
    }

    /// Nobody writes the metadata to a broker that was let go, so one that is to leave asks.
    async fn ask_whether_dismissed(&self) {
        let standings = self.peers.standings().borrow().clone();
        let there = standings.iter().filter(|(_, s)| s.is_alive());
        let asked = there.map(|(disk, _)| {
            let question = Body::AskQuorum(rpc::AskQuorum { disk: self.disk() });
            self.peers.ask(*disk, question, LOOK_EVERY)
        });
        let answers = futures_util::future::join_all(asked).await;
        let mut answers = answers.into_iter();
        if answers.any(|a| matches!(a, Ok(Body::Quorum(q)) if q.dismissed)) {
            self.dismissed.send_replace(true);
        }
    }

    /// Whether any group still has a disk among its members, as far as leaders have said.
    fn is_member_anywhere(&self, state: &ClusterState, disk: u64) -> bool {
        let partitions = state.topics.values().flat_map(|topic| {
            let indexes = 0..topic.partitions.len() as i32;
            indexes.map(|index| self.leaders().get(&topic.id, index))
        });
        let mut claims = partitions.flatten();
        claims.any(|c| c.voters.contains(&disk) || c.learners.contains(&disk))
    }

    async fn retire(&self, state: &ClusterState, node: i32) -> Result<(), ProposeError> {
        let moves = rebalance::evacuate(state, node, &|n| self.is_alive(n));
        if !moves.is_empty() {
            info!(
                node,
                partitions = moves.len(),
                "moving partitions off a broker"
            );
            return self.propose(Command::SetTargets { moves }).await.map(drop);
        }
        let Some(broker) = state.brokers.get(&node) else {
            return Ok(());
        };
        let votes = self.group.members().voters.contains(&broker.replica);
        let holds = state.partitions_on(node) > 0;
        if votes || holds || self.is_member_anywhere(state, broker.replica) {
            return Ok(());
        }
        self.propose(Command::RemoveBroker { node }).await?;
        info!(node, "a broker was decommissioned");
        Ok(())
    }
}

/// Moves everything off brokers that leave, and forgets them, while this broker leads the metadata group.
pub async fn retire_brokers(cluster: Arc<Cluster>) {
    let mut view = cluster.watch();
    loop {
        let state = view.borrow_and_update().clone();
        let leaving = state.duties.iter().filter(|(_, d)| **d == Duty::Leaving);
        for node in leaving.map(|(node, _)| *node) {
            if !cluster.leads_metadata() {
                break;
            }
            if let Err(error) = cluster.retire(&state, node).await {
                debug!(node, %error, "decommissioning goes on later");
            }
        }
        if state.duty(cluster.node_id()) == Duty::Leaving {
            cluster.ask_whether_dismissed().await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        if view.has_changed().is_err() {
            return;
        }
    }
}
