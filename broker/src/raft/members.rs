//! Who is in a group: look, take in, promote, let go.
//!
//! Invariant: a change is asked for only when none is under way; openraft refuses a second one. A new
//! replica comes as a learner, which is written to and does not vote.
//! Not here: who should be in it (`cluster`).

use super::group::{Group, ProposeError, refused};
use super::state_machine::Apply;
use super::types::{ReplicaId, TypeConfig};
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::impls::BasicNode;
use std::collections::{BTreeMap, BTreeSet};

/// A group's members as its leader has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    pub voters: BTreeSet<ReplicaId>,
    pub learners: BTreeSet<ReplicaId>,
    /// A change of voters is between its two halves, or its entry is not committed yet.
    pub changing: bool,
    /// The last entry of the leader's own log, and of each follower's as far as the leader knows.
    pub last_index: u64,
    /// The last entry that is applied here.
    pub applied: u64,
    /// One more than the entry that says who is a member, committed or not; 0 for none.
    pub named_at: u64,
    pub matched: BTreeMap<ReplicaId, u64>,
}

impl Members {
    /// As [`Members::named_at`]; 0 while it is being changed, when another entry may take its place.
    pub fn settled_at(&self) -> u64 {
        if self.changing { 0 } else { self.named_at }
    }

    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica) || self.learners.contains(&replica)
    }

    /// Entries that a replica is behind the leader.
    pub fn lag(&self, replica: ReplicaId) -> u64 {
        let matched = self.matched.get(&replica).copied().unwrap_or(0);
        self.last_index.saturating_sub(matched)
    }
}

impl<A: Apply> Group<A> {
    /// The members, and how far the followers are if this replica leads.
    pub fn members(&self) -> Members {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let stored = &metrics.membership_config;
        let membership = stored.membership();
        let applied = metrics.last_applied.as_ref().map(|id| id.index());
        let replication = metrics.replication.iter().flatten();
        let index = |id: &Option<super::types::LogId>| id.as_ref().map_or(0, |id| id.index());
        Members {
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            changing: membership.get_joint_config().len() > 1
                || stored.log_id().as_ref().map(|id| id.index()) > applied,
            named_at: stored.log_id().as_ref().map_or(0, |id| id.index() + 1),
            applied: applied.unwrap_or(0),
            last_index: metrics.last_log_index.unwrap_or(0),
            matched: replication.map(|(id, at)| (*id, index(at))).collect(),
        }
    }

    /// Begins to write to a replica that does not vote.
    ///
    /// # Errors
    /// If this replica does not lead, or another change is under way.
    pub async fn add_learner(&self, replica: ReplicaId) -> Result<(), ProposeError> {
        let node = BTreeMap::from([(replica, BasicNode::default())]);
        self.change(ChangeMembers::AddNodes(node)).await
    }

    /// Makes these the voters; who voted and does no more leaves the group.
    ///
    /// # Errors
    /// As [`Group::add_learner`]; also if one of them is not a member yet.
    pub async fn set_voters(&self, voters: BTreeSet<ReplicaId>) -> Result<(), ProposeError> {
        self.change(ChangeMembers::ReplaceAllVoters(voters)).await
    }

    /// Stops writing to a replica that does not vote.
    ///
    /// # Errors
    /// As [`Group::add_learner`].
    pub async fn remove_learner(&self, replica: ReplicaId) -> Result<(), ProposeError> {
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([replica])))
            .await
    }

    async fn change(
        &self,
        change: ChangeMembers<ReplicaId, BasicNode>,
    ) -> Result<(), ProposeError> {
        self.assure_lease().await?;
        let changed = self.raft.change_membership(change, false).await;
        changed.map(drop).map_err(|error| match error {
            RaftError::APIError(error) => change_refused(error),
            RaftError::Fatal(error) => ProposeError::Stopped(error.to_string()),
        })
    }
}

fn change_refused(error: ClientWriteError<TypeConfig>) -> ProposeError {
    match error {
        ClientWriteError::ChangeMembershipError(error) => {
            ProposeError::ChangeRefused(error.to_string())
        }
        other => refused(other),
    }
}
