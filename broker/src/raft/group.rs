//! A handle to one group: open it, propose to it, see who leads it, compact it, close it.
//!
//! Leadership is read from what storage has made durable (the vote) and from what was applied (the
//! blank of its term), so nobody serves before the entries of earlier terms are known to be committed.

use super::log_store::LogStore;
use super::network::NoPeers;
use super::state_machine::{Apply, Machine};
use super::types::{Outcome, Proposal, RaftVote, ReplicaId, Stamp, TypeConfig};
use crate::metrics;
use logd_storage::Log;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardReason};
use openraft::impls::BasicNode;
use openraft::raft::{ClientWriteResult, responder::Responder};
use openraft::{Config, Raft, SnapshotPolicy};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What a group needs to open.
#[derive(Debug)]
pub struct GroupSpec {
    /// Named in logs and in openraft's own traces.
    pub name: String,
    pub replica: ReplicaId,
    /// The voters a group is born with; used only if its log is empty.
    pub founders: BTreeMap<ReplicaId, String>,
    pub stamp: Stamp,
    /// Ticks and elections by timer: for the metadata group only.
    pub ticks: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("group {group}: reading its log: {source}")]
    Log {
        group: String,
        source: std::io::Error,
    },
    #[error("group {group}: {why}")]
    Raft { group: String, why: String },
}

/// Why a proposal was not taken, or is not known to be committed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("this replica does not lead the group (leader: {leader:?})")]
    NotLeader { leader: Option<ReplicaId> },
    #[error("the leader has not heard from a majority for a while; try again")]
    LeaseExpired,
    #[error("the entry's fate is unknown: leadership changed before it was committed")]
    Unknown,
    #[error("the group has stopped: {0}")]
    Stopped(String),
}

/// Who leads, as far as this replica's own disk and state say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    pub term: u64,
    /// The leader of `term`, once its election is known to have succeeded.
    pub leader: Option<ReplicaId>,
    /// We lead, and every entry of earlier terms is applied.
    pub serving: bool,
}

/// The role's facts, written by the log store and the state machine.
#[derive(Debug)]
pub(super) struct RoleCell {
    me: ReplicaId,
    vote: Mutex<(u64, Option<ReplicaId>)>,
    began: AtomicU64,
    changed: tokio::sync::watch::Sender<()>,
}

impl RoleCell {
    pub fn new(me: ReplicaId) -> Self {
        Self {
            me,
            vote: Mutex::new((0, None)),
            began: AtomicU64::new(0),
            changed: tokio::sync::watch::channel(()).0,
        }
    }

    pub fn saw_vote(&self, vote: &RaftVote) {
        *self.vote.lock() = (
            vote.leader_id.term,
            vote.committed.then_some(vote.leader_id.voted_for),
        );
        self.changed.send_replace(());
    }

    pub fn term_began(&self, term: u64) {
        self.began.fetch_max(term, Ordering::Release);
        if self.role().serving {
            metrics::raft_elected();
        }
        self.changed.send_replace(());
    }

    fn role(&self) -> Role {
        let (term, leader) = *self.vote.lock();
        let serving = leader == Some(self.me) && self.began.load(Ordering::Acquire) == term;
        Role {
            term,
            leader,
            serving,
        }
    }
}

/// One replicated log. Dropping it does not stop it: see [`Group::close`].
pub struct Group<A: Apply> {
    name: String,
    raft: Raft<TypeConfig, Machine<A>>,
    machine: Machine<A>,
    role: Arc<RoleCell>,
}

impl<A: Apply> std::fmt::Debug for Group<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("name", &self.name)
            .field("role", &self.role())
            .finish()
    }
}

impl<A: Apply> Group<A> {
    /// Opens the group on its log, founding it if the log is empty, and starts an election if it is alone.
    ///
    /// # Errors
    /// If its log or captured state cannot be read, or openraft refuses to start on them.
    pub async fn open(spec: GroupSpec, log: Log, owner: A) -> Result<Self, OpenError> {
        let on_log = |source| OpenError::Log {
            group: spec.name.clone(),
            source,
        };
        let raft_error = |why: String| OpenError::Raft {
            group: spec.name.clone(),
            why,
        };
        let role = Arc::new(RoleCell::new(spec.replica));
        let fresh = log.bounds().last.is_none() && log.vote().is_none();
        let store = LogStore::new(log.clone(), spec.stamp, role.clone()).map_err(on_log)?;
        let machine = Machine::open(owner, log, role.clone()).map_err(on_log)?;
        let config = config(&spec).map_err(raft_error)?;
        let raft = Raft::new(spec.replica, config, NoPeers, store, machine.clone())
            .await
            .map_err(|e| raft_error(e.to_string()))?;
        if fresh {
            let members: BTreeMap<_, _> = spec
                .founders
                .iter()
                .map(|(id, addr)| (*id, BasicNode::new(addr)))
                .collect();
            raft.initialize(members)
                .await
                .map_err(|e| raft_error(e.to_string()))?;
        } else if spec.founders.len() == 1 {
            raft.trigger()
                .elect(false)
                .await
                .map_err(|e| raft_error(e.to_string()))?;
        }
        Ok(Self {
            name: spec.name,
            raft,
            machine,
            role,
        })
    }

    pub fn role(&self) -> Role {
        self.role.role()
    }

    /// Wakes whenever [`Group::role`] may have changed.
    pub fn role_changes(&self) -> tokio::sync::watch::Receiver<()> {
        self.role.changed.subscribe()
    }

    /// Waits until this replica leads and serves.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`] when the deadline passes first.
    pub async fn serving(&self, deadline: Duration) -> Result<Role, ProposeError> {
        let mut changes = self.role_changes();
        let serving = async {
            loop {
                changes.mark_unchanged();
                let role = self.role();
                if role.serving || changes.changed().await.is_err() {
                    return role;
                }
            }
        };
        let role = tokio::time::timeout(deadline, serving)
            .await
            .unwrap_or_else(|_| self.role());
        if role.serving {
            Ok(role)
        } else {
            Err(ProposeError::NotLeader {
                leader: role.leader,
            })
        }
    }

    /// Hands an entry to the leader's queue; returns when it is queued, so calls in order append in order.
    ///
    /// # Errors
    /// [`ProposeError::Stopped`] if the group's core has ended.
    pub async fn propose(&self, proposal: Proposal) -> Result<Pending, ProposeError> {
        let (reply, answer) = Reply::pair();
        self.raft
            .client_write_ff(proposal, Some(reply))
            .await
            .map_err(|e| ProposeError::Stopped(e.to_string()))?;
        metrics::raft_proposed();
        Ok(Pending(answer))
    }

    /// Looks at the owner under the lock that applies entries: be quick.
    pub fn with_owner<T>(&self, f: impl FnOnce(&A) -> T) -> T {
        self.machine.with(f)
    }

    /// Moves the snapshot to the owner's snapshot point and drops the log below it.
    ///
    /// # Errors
    /// [`ProposeError::Stopped`] if the group's core has ended.
    pub async fn compact(&self) -> Result<(), ProposeError> {
        let stopped = |e: openraft::errors::Fatal<TypeConfig>| ProposeError::Stopped(e.to_string());
        let Some(point) = self.machine.with(A::snapshot_point) else {
            return Ok(());
        };
        self.raft.trigger().snapshot().await.map_err(stopped)?;
        self.raft
            .trigger()
            .purge_log(point.index)
            .await
            .map_err(stopped)
    }

    /// Why the group's core ended, if it did.
    pub fn failure(&self) -> Option<String> {
        self.raft
            .metrics()
            .borrow_watched()
            .running_state
            .as_ref()
            .err()
            .map(ToString::to_string)
    }

    /// Stops the group's tasks. Proposals still queued get no answer.
    pub async fn close(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = self.name, %error, "a group's task ended badly");
        }
    }
}

fn config(spec: &GroupSpec) -> Result<Arc<Config>, String> {
    let config = Config {
        cluster_name: spec.name.clone(),
        enable_tick: spec.ticks,
        enable_elect: spec.ticks,
        enable_heartbeat: true,
        // A restarted leader that went on in its old term could give an index two entries (raft.md).
        enable_leader_restore: Some(false),
        enable_pre_vote: Some(true),
        heartbeat_interval: 500,
        election_timeout_min: 5_000,
        election_timeout_max: 10_000,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        max_payload_entries: 1_024,
        broadcast_submitted_on_append: Some(true),
        api_channel_size: Some(1_024),
        notification_channel_size: Some(1_024),
        state_machine_channel_size: Some(64),
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|e| e.to_string())
}

/// Where a proposal's outcome goes. Unlike openraft's own, it does not mind that nobody waits any
/// more: a client may go away.
pub struct Reply<T> {
    to: oneshot::Sender<T>,
    proposed: Instant,
}

impl<T> Reply<T> {
    fn pair() -> (Self, oneshot::Receiver<T>) {
        let (tx, rx) = oneshot::channel();
        let proposed = Instant::now();
        (Self { to: tx, proposed }, rx)
    }
}

impl<T: Send + 'static> Responder<TypeConfig, T> for Reply<T> {
    fn on_complete(self, result: T) {
        metrics::raft_committed(self.proposed.elapsed());
        let _ = self.to.send(result);
    }
}

/// A queued proposal: resolves when its entry is applied, or known not to be.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<ClientWriteResult<TypeConfig>>);

impl Future for Pending {
    type Output = Result<Outcome, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|answer| match answer {
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(error)) => Err(refused(error)),
            Err(_) => Err(ProposeError::Unknown),
        })
    }
}

fn refused(error: ClientWriteError<TypeConfig>) -> ProposeError {
    match error {
        ClientWriteError::ForwardToLeader(forward)
            if forward.reason == ForwardReason::LeaseExpired =>
        {
            ProposeError::LeaseExpired
        }
        ClientWriteError::ForwardToLeader(forward) => ProposeError::NotLeader {
            leader: forward.leader_id,
        },
        ClientWriteError::LogEntryDiscarded(_) => ProposeError::Unknown,
        other => ProposeError::Stopped(other.to_string()),
    }
}
