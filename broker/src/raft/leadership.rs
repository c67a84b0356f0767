//! Taking and giving leadership of a group whose leader is watched from outside.
//!
//! Without ticks nobody inside a group notices that its leader is gone. Whoever watches the brokers
//! says so here: [`Group::take_over`] by the one with the longest log, [`Group::make_way`] by the others.
//! Invariant: a broker that hears a group's leader votes for nobody else (see `exchange`), so an
//! election needs a majority that lost the leader, whatever a single broker believes.
//! Not here: who is dead, and who should lead.

use super::group::{Group, ProposeError, RoleCell};
use super::state_machine::Apply;
use super::types::{LeaderId, Outcome, Proposal, RaftVote, ReplicaId, TypeConfig, log_id};
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{Fatal, RaftError};
use openraft::raft::{TransferLeaderRequest, VoteRequest};
use openraft::vote::RaftLeaderId;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a hand-over may take before the leader steps down.
const HAND_OVER: Duration = Duration::from_secs(2);

/// How long a majority may take to say that it follows this leader.
const LEASE_PATIENCE: Duration = Duration::from_secs(2);

/// How long what is proposed seldom may take. Its callers go from group to group: one that has lost its
/// majority does not hold up the others.
const SELDOM_PATIENCE: Duration = Duration::from_secs(10);

/// What a replica can say about the leadership of its group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outlook {
    /// It votes. A replica that has never been written to does not know.
    pub votes: bool,
    /// The leader it knows of, in `term`; not one that is known to have stopped leading.
    pub leader: Option<ReplicaId>,
    /// It leads itself.
    pub leads: bool,
    pub term: u64,
    /// Term and index of its last entry.
    pub last: (u64, u64),
    /// It has written nothing since it was opened.
    pub fresh: bool,
}

fn stopped(error: Fatal<TypeConfig>) -> ProposeError {
    ProposeError::Stopped(error.to_string())
}

fn stopped_in(error: RaftError<TypeConfig>) -> ProposeError {
    ProposeError::Stopped(error.to_string())
}

/// Waits until another replica leads in a later term.
async fn elsewhere(role: &RoleCell, me: ReplicaId, term: u64) {
    let mut changes = role.changes();
    loop {
        changes.mark_unchanged();
        let now = role.role();
        let moved = now.term > term && now.leader.is_some_and(|l| l != me);
        if moved || changes.changed().await.is_err() {
            return;
        }
    }
}

impl<A: Apply> Group<A> {
    pub fn outlook(&self) -> Outlook {
        let role = self.role();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leads = metrics.state == ServerState::Leader;
        let last = self.last_entry();
        Outlook {
            votes: metrics.state != ServerState::Learner && self.role.may_vote(last),
            // Our own old vote does not make us leader again: leadership is not restored.
            leader: role.leader.filter(|l| *l != metrics.id || leads),
            leads,
            term: role.term,
            last,
            fresh: self.is_fresh(),
        }
    }

    fn is_fresh(&self) -> bool {
        self.raft.watch_log_progress().get().is_none()
    }

    /// True if this replica is the group's only voter.
    pub fn is_alone(&self) -> bool {
        self.raft.voter_ids().eq([self.replica])
    }

    /// The voters, of both halves while they change: an election takes a majority of each.
    pub fn electorates(&self) -> Vec<BTreeSet<ReplicaId>> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        membership.get_joint_config().clone()
    }

    /// True if a majority of the voters (of both halves, while they change) passes.
    pub fn has_majority(&self, passes: impl Fn(ReplicaId) -> bool) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let configs = metrics.membership_config.membership().get_joint_config();
        configs.iter().all(|voters| {
            let passing = voters.iter().filter(|v| passes(**v)).count();
            2 * passing > voters.len()
        })
    }

    /// Asks for the votes of a group that has no leader any more.
    ///
    /// # Errors
    /// If the group's core has ended.
    pub async fn take_over(&self) -> Result<(), ProposeError> {
        let own_vote = self
            .raft
            .metrics()
            .borrow_watched()
            .vote
            .leader_id
            .voted_for
            == self.replica;
        if self.is_fresh() || own_vote {
            // A transfer comes from a leader: nothing that was flushed in this process tells of one, or the
            // last one was this replica itself, which has restarted or has not won.
            return self.raft.trigger().elect(false).await.map_err(stopped);
        }
        let transfer = self.transfer_to_whom(self.replica);
        let taken = self.raft.handle_transfer_leader(transfer).await;
        match taken.map_err(stopped)? {
            Ok(()) => Ok(()),
            // Somebody was elected meanwhile, or our own vote is on its way to the disk.
            Err(error) => Err(ProposeError::ChangeRefused(error.to_string())),
        }
    }

    /// Lets go of the lease that a leader that is gone still has here, so that `to` may be elected.
    ///
    /// # Errors
    /// If the group's core has ended.
    pub async fn make_way(&self, to: ReplicaId) -> Result<(), ProposeError> {
        let transfer = self.transfer_to_whom(to);
        let made = self.raft.handle_transfer_leader(transfer).await;
        made.map(drop).map_err(stopped)
    }

    fn transfer_to_whom(&self, to: ReplicaId) -> TransferLeaderRequest<TypeConfig> {
        let metrics = self.raft.metrics();
        let vote = metrics.borrow_watched().vote;
        TransferLeaderRequest::new(vote, to, None)
    }

    /// Hands leadership to a voter that has caught up, and waits until somebody else leads. If nobody does
    /// in time, steps down, also if nobody waits for this any more: a leader that is handing over accepts no
    /// proposals, and openraft lets none take it back.
    ///
    /// # Errors
    /// If the group's core has ended, or leadership has not moved.
    pub async fn hand_over(&self, to: ReplicaId) -> Result<(), ProposeError> {
        let before = self.role();
        if before.leader != Some(self.replica) {
            return Err(ProposeError::NotLeader {
                leader: before.leader,
            });
        }
        self.role.hands_over(before.term, self.replica, to);
        let transfer = self.raft.trigger().transfer_leader(to).await;
        transfer.map_err(stopped)?;
        let (role, raft, last) = (self.role.clone(), self.raft.clone(), self.last_entry());
        let (me, term) = (self.replica, before.term);
        let handed = tokio::spawn(async move {
            let moved = tokio::time::timeout(HAND_OVER, elsewhere(&role, me, term));
            if moved.await.is_ok() {
                return Ok(());
            }
            // A vote of the next term, as if the heir had asked for it: whoever watches the brokers finds a
            // group without a leader, and somebody to lead it.
            let mut vote = VoteRequest::new(
                RaftVote {
                    leader_id: LeaderId::new(term + 1, to),
                    committed: false,
                },
                Some(log_id(last.0, last.1)),
            );
            vote.leadership_transfer = true;
            raft.vote(vote).await.map_err(stopped_in)?;
            Err(ProposeError::ChangeRefused(format!(
                "replica {to} did not take the leadership over within {HAND_OVER:?}"
            )))
        });
        handed
            .await
            .unwrap_or_else(|e| Err(ProposeError::Stopped(e.to_string())))
    }

    /// Sends every member a heartbeat: it learns who leads, and the leader learns what it lacks.
    ///
    /// # Errors
    /// If the group's core has ended.
    pub async fn hail(&self) -> Result<(), ProposeError> {
        self.raft.trigger().heartbeat().await.map_err(stopped)
    }

    /// Proposes what comes seldom, and waits for what becomes of it.
    ///
    /// # Errors
    /// As [`Group::propose`] and its answer; also if no majority follows this replica, or none has it in time.
    pub async fn propose_seldom(&self, proposal: Proposal) -> Result<Outcome, ProposeError> {
        self.assure_lease().await?;
        let done = async { self.propose(proposal).await?.await };
        tokio::time::timeout(SELDOM_PATIENCE, done)
            .await
            .unwrap_or(Err(ProposeError::Unknown))
    }

    /// Before anything that is not proposed all the time: a group that nobody writes to has no lease, and
    /// openraft refuses whoever proposes without one.
    pub(super) async fn assure_lease(&self) -> Result<(), ProposeError> {
        if self.is_alone() {
            return Ok(());
        }
        self.renew_lease(LEASE_PATIENCE).await
    }

    /// Makes sure that the leader may propose: after a silence openraft wants a majority's word first.
    ///
    /// # Errors
    /// If no majority answers in time, or this replica does not lead.
    pub async fn renew_lease(&self, patience: Duration) -> Result<(), ProposeError> {
        let policy = openraft::ReadPolicy::ReadIndex;
        match tokio::time::timeout(patience, self.raft.get_read_log_id(policy)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(openraft::errors::RaftError::Fatal(error))) => Err(stopped(error)),
            Ok(Err(_)) => Err(ProposeError::NotLeader {
                leader: self.role().leader,
            }),
            Err(_) => Err(ProposeError::LeaseExpired),
        }
    }
}
