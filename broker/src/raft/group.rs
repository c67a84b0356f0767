//! A handle to one group: open it, propose to it, see who leads it, compact it, close it.
//!
//! Leadership is read from what storage has made durable (the vote) and from what was applied (the
//! blank of its term), so nobody serves before the entries of earlier terms are known to be committed.

use super::exchange::Exchange;
use super::log_store::LogStore;
use super::mutants::restores_leaders;
use super::network::{Network, Transport};
use super::state_machine::{Apply, Machine, entry_id};
use super::throttle::Throttle;
use super::types::{Outcome, Proposal, RaftVote, ReplicaId, Stamp, TypeConfig};
use crate::metrics;
use logd_storage::{Log, LogKey};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardReason};
use openraft::impls::BasicNode;
use openraft::raft::{ClientWriteResult, responder::Responder};
use openraft::{Config, Raft, SnapshotPolicy};
use parking_lot::Mutex;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How a group reaches its peers, and they it.
#[derive(Clone)]
pub struct Links {
    pub transport: Arc<dyn Transport>,
    pub exchange: Exchange,
    /// What replicas that do not vote are sent.
    pub throttle: Throttle,
}

/// Is told whenever a group's role may have changed. Called with a lock held: be quick.
pub type OnRole = Arc<dyn Fn(Role) + Send + Sync>;

/// What a group needs to open.
pub struct GroupSpec {
    /// Named in logs and in openraft's own traces.
    pub name: String,
    pub replica: ReplicaId,
    /// The voters the group is born with, if this replica is to found it; used only if its log is
    /// empty. A replica that founds nothing waits for a leader to write to it.
    pub founders: Option<BTreeSet<ReplicaId>>,
    pub stamp: Stamp,
    pub timers: Timers,
    /// This replica votes only while it holds this index: it acknowledged it before its files were damaged.
    pub floor: u64,
    /// How often the group was recovered by force: others of another generation are not heard.
    pub generation: u32,
    /// The term in which that generation began; 0 for the first. A replica votes only once it holds an entry of it,
    /// as those before name voters who have forgotten what they knew.
    pub begins: u64,
    /// Its entries are clients' records: a full disk takes none.
    pub client_data: bool,
    pub links: Links,
    pub on_role: OnRole,
}

/// Who notices that a leader is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timers {
    /// The group itself, by heartbeats.
    Own,
    /// Whoever watches the brokers; an idle group costs nothing.
    None,
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
    #[error("the group's members cannot be changed now: {0}")]
    ChangeRefused(String),
    #[error("the group has stopped: {0}")]
    Stopped(String),
}

/// Who leads, as far as this replica's own disk and state say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    pub term: u64,
    /// The leader of `term`, once its election is known to have succeeded.
    pub leader: Option<ReplicaId>,
    /// Who will lead next, as far as can be foreseen: to whom the leader hands over, or who was last
    /// voted for. A guess, for whoever must be sent somewhere.
    pub expected: Option<ReplicaId>,
    /// We lead, and every entry of earlier terms is applied.
    pub serving: bool,
}

/// How long whoever was voted for may take to lead. A majority that is there takes milliseconds.
const HOPEFUL: Duration = Duration::from_secs(2);

/// Whom this replica would have as leader of a term.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    term: u64,
    replica: ReplicaId,
    since: tokio::time::Instant,
}

/// The role's facts, written by the log store and the state machine.
pub(super) struct RoleCell {
    me: ReplicaId,
    /// The term, and who was elected in it.
    vote: Mutex<(u64, Option<ReplicaId>)>,
    candidate: Mutex<Option<Candidate>>,
    began: AtomicU64,
    /// The leader of this term and of those before is known to lead no more.
    abandoned: AtomicU64,
    /// In this term the leader hands over to this replica.
    heir: Mutex<Option<(u64, ReplicaId)>>,
    floor: AtomicU64,
    /// The term in which the group's generation began.
    begins: u64,
    changed: tokio::sync::watch::Sender<()>,
    on_role: OnRole,
}

impl RoleCell {
    pub fn new(me: ReplicaId, floor: u64, begins: u64, on_role: OnRole) -> Self {
        Self {
            me,
            vote: Mutex::new((0, None)),
            candidate: Mutex::new(None),
            began: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            heir: Mutex::new(None),
            floor: AtomicU64::new(floor),
            begins,
            changed: tokio::sync::watch::channel(()).0,
            on_role,
        }
    }

    /// A disk says that it does not lead, whatever it won before.
    fn abandoned_by(&self, leader: ReplicaId) {
        let (term, led_by) = *self.vote.lock();
        if led_by == Some(leader) && leader != self.me {
            self.abandoned.fetch_max(term, Ordering::AcqRel);
            self.tell();
        }
    }

    /// A disk says that it leads a term: what was said of it before was older.
    fn leads_after_all(&self, leader: ReplicaId, term: u64) {
        let is_elected = *self.vote.lock() == (term, Some(leader));
        let was_abandoned = self.abandoned.load(Ordering::Acquire) >= term;
        if is_elected && was_abandoned {
            self.abandoned.store(term - 1, Ordering::Release);
            self.tell();
        }
    }

    /// The leader of a term says to whom it hands over.
    pub fn hands_over(&self, term: u64, leader: ReplicaId, to: ReplicaId) {
        if *self.vote.lock() == (term, Some(leader)) {
            *self.heir.lock() = Some((term, to));
            self.tell();
        }
    }

    /// To whom the leader of the current term hands over, if it does.
    pub fn heir(&self) -> Option<ReplicaId> {
        let term = self.vote.lock().0;
        self.heir_in(term)
    }

    fn heir_in(&self, term: u64) -> Option<ReplicaId> {
        let heir = self.heir.lock().filter(|(in_term, _)| *in_term == term);
        heir.map(|(_, to)| to)
    }

    /// Whether a replica whose last entry is of this term and index may vote.
    pub fn may_vote(&self, (term, index): (u64, u64)) -> bool {
        term >= self.begins && index >= self.floor.load(Ordering::Acquire)
    }

    /// Who leads by the last vote, whether or not it still does.
    pub fn elected(&self) -> Option<ReplicaId> {
        self.role().leader
    }

    fn tell(&self) {
        (self.on_role)(self.role());
        self.changed.send_replace(());
    }

    pub fn saw_vote(&self, vote: &RaftVote) {
        *self.vote.lock() = (
            vote.leader_id.term,
            vote.committed.then_some(vote.leader_id.voted_for),
        );
        *self.candidate.lock() = Some(Candidate {
            term: vote.leader_id.term,
            replica: vote.leader_id.voted_for,
            since: tokio::time::Instant::now(),
        });
        self.tell();
    }

    pub fn term_began(&self, term: u64) {
        self.began.fetch_max(term, Ordering::Release);
        if self.role().serving {
            metrics::raft_elected();
        }
        self.tell();
    }

    pub fn changes(&self) -> tokio::sync::watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub fn role(&self) -> Role {
        let (term, leader) = *self.vote.lock();
        let abandoned = term <= self.abandoned.load(Ordering::Acquire);
        let leader = leader.filter(|l| *l == self.me || !abandoned);
        let serving = leader == Some(self.me) && self.began.load(Ordering::Acquire) == term;
        let candidate = self.candidate.lock().filter(|_| !abandoned);
        let candidate = candidate.filter(|c| c.term == term && c.since.elapsed() < HOPEFUL);
        let voted_for = candidate.map(|c| c.replica);
        Role {
            term,
            leader,
            expected: self.heir_in(term).or(voted_for),
            serving,
        }
    }
}

/// One replicated log. Dropping it does not stop it: see [`Group::close`].
pub struct Group<A: Apply> {
    name: String,
    pub(super) replica: ReplicaId,
    pub(super) raft: Raft<TypeConfig, Machine<A>>,
    machine: Machine<A>,
    pub(super) role: Arc<RoleCell>,
    key: LogKey,
    exchange: Exchange,
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
        let role = Arc::new(RoleCell::new(
            spec.replica,
            spec.floor,
            spec.begins,
            spec.on_role.clone(),
        ));
        let key = log.key();
        let fresh = log.bounds().last.is_none() && log.vote().is_none();
        let store = LogStore::new(log.clone(), spec.stamp, role.clone()).map_err(on_log)?;
        let machine = Machine::open(owner, log.clone(), role.clone()).map_err(on_log)?;
        let config = config(&spec).map_err(raft_error)?;
        let network = Network {
            key,
            generation: spec.generation,
            transport: spec.links.transport.clone(),
            exchange: spec.links.exchange.clone(),
            throttle: spec.links.throttle.clone(),
            candidacy: spec.links.exchange.candidacy(role.clone(), log.clone()),
            log: log.clone(),
        };
        let raft = Raft::new(spec.replica, config, network, store, machine.clone())
            .await
            .map_err(|e| raft_error(e.to_string()))?;
        // Its core says nothing about the group before it has run once: not that it is alone, either.
        let up = raft.with_raft_state(|_| ()).await;
        up.map_err(|e| raft_error(e.to_string()))?;
        let exchange = spec.links.exchange.clone();
        let inbox = machine.inbox().clone();
        exchange.open(&spec, log, raft.clone(), role.clone(), inbox);
        let group = Self {
            name: spec.name.clone(),
            replica: spec.replica,
            raft,
            machine,
            role,
            key,
            exchange,
        };
        if let Some(founders) = spec.founders.filter(|_| fresh) {
            group.found(founders).await.map_err(raft_error)?;
        } else if group.raft.voter_ids().eq([spec.replica]) && group.may_vote() {
            let elected = group.raft.trigger().elect(false).await;
            elected.map_err(|e| raft_error(e.to_string()))?;
        }
        Ok(group)
    }

    /// Founds a group whose founder has not done so: it is gone.
    ///
    /// # Errors
    /// If the group is founded already, or its core has ended.
    pub async fn found_late(&self, founders: BTreeSet<ReplicaId>) -> Result<(), ProposeError> {
        let founded = self.found(founders).await;
        founded.map_err(ProposeError::ChangeRefused)
    }

    /// Writes the first membership and asks the others for their votes. Two founders that both do so
    /// write the same entry, and one of them is elected.
    async fn found(&self, founders: BTreeSet<ReplicaId>) -> Result<(), String> {
        // Where a replica is reached changes with time and is known from the cluster's state.
        let nodes: BTreeMap<_, _> = founders
            .into_iter()
            .map(|id| (id, BasicNode::default()))
            .collect();
        let founded = self.raft.initialize(nodes).await;
        founded.map_err(|e| e.to_string())
    }

    pub fn role(&self) -> Role {
        self.role.role()
    }

    /// A disk has restarted, or says itself that it does not lead this group any more.
    pub fn abandoned_by(&self, leader: ReplicaId) {
        self.role.abandoned_by(leader);
    }

    /// This replica votes only while it holds this index: it has acknowledged it.
    pub fn raise_floor(&self, index: u64) {
        self.role.floor.fetch_max(index, Ordering::AcqRel);
    }

    /// A disk says itself that it leads a term.
    pub fn leads_after_all(&self, leader: ReplicaId, term: u64) {
        self.role.leads_after_all(leader, term);
    }

    /// Whether this replica holds everything that it ever acknowledged.
    pub fn may_vote(&self) -> bool {
        self.role.may_vote(self.last_entry())
    }

    /// Term and index of the last entry here; zeros for none.
    pub(super) fn last_entry(&self) -> (u64, u64) {
        let last = self.machine.log().bounds().last;
        last.map_or((0, 0), |id| (id.term, id.index))
    }

    /// Wakes whenever [`Group::role`] may have changed.
    pub fn role_changes(&self) -> tokio::sync::watch::Receiver<()> {
        self.role.changes()
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
        let (reply, pending) = Reply::pair();
        self.raft
            .client_write_ff(proposal, Some(reply))
            .await
            .map_err(|e| ProposeError::Stopped(e.to_string()))?;
        metrics::raft_proposed();
        Ok(pending)
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
        self.machine.inbox().sweep();
        let Some(point) = self.machine.point() else {
            return Ok(());
        };
        let cut = self.machine.log().bounds().purged;
        if cut.is_none_or(|cut| cut.index < point.index) {
            // A restart must find a state that is no older than what is purged.
            let kept = self.machine.keep_state();
            kept.map_err(|e| ProposeError::Stopped(e.to_string()))?;
        }
        self.raft.trigger().snapshot().await.map_err(stopped)?;
        self.raft
            .trigger()
            .purge_log(point.index)
            .await
            .map_err(stopped)?;
        self.cut_the_rest()
    }

    /// A log takes from a purge what lies in its files by then; openraft asks once. Not waited for: a full disk
    /// is made room on by whoever calls this, and the next round looks again.
    fn cut_the_rest(&self) -> Result<(), ProposeError> {
        let purged = self.raft.metrics().borrow_watched().purged;
        let log = self.machine.log();
        let Some(upto) = purged.as_ref().map(entry_id).filter(|upto| {
            let cut = log.bounds().purged;
            cut.is_none_or(|cut| cut.index < upto.index)
        }) else {
            return Ok(());
        };
        let cut = log.purge_to(upto, Box::new(|_| {}));
        cut.map_err(|e| ProposeError::Stopped(e.to_string()))
    }

    /// Whether nothing of the terms before this one is left in the log: whoever is sent it begins with a snapshot.
    pub fn begins_with(&self, term: u64) -> bool {
        let purged = self.machine.log().bounds().purged;
        term == 0 || purged.is_some_and(|id| id.term >= term)
    }

    /// Where the snapshot and the log stand, for whoever waits for them to move.
    pub fn cut(&self) -> String {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (named, bounds) = (self.machine.point(), self.machine.log().bounds());
        let [snapshot, purged, applied] =
            [&metrics.snapshot, &metrics.purged, &metrics.last_applied]
                .map(|id| id.as_ref().map(|id| id.index()));
        format!(
            "to go to {:?}, the snapshot is at {snapshot:?}, the log cut at {purged:?} (on disk {:?}), \
             applied up to {applied:?}",
            named.map(|p| p.index),
            bounds.purged.map(|p| p.index),
        )
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
        self.exchange.close(&self.key);
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = self.name, %error, "a group's task ended badly");
        }
    }
}

fn config(spec: &GroupSpec) -> Result<Arc<Config>, String> {
    let ticks = spec.timers == Timers::Own;
    // Without ticks these are the lease alone: how long a leader goes on without a majority's word.
    let (heartbeat, election) = if ticks { (250, 1_000) } else { (500, 5_000) };
    let config = Config {
        cluster_name: spec.name.clone(),
        enable_tick: ticks,
        enable_elect: ticks,
        enable_heartbeat: true,
        // A replica that was damaged is written again from the start; `floor` keeps it from voting meanwhile.
        allow_log_reversion: Some(true),
        enable_leader_restore: Some(restores_leaders()),
        enable_pre_vote: Some(true),
        heartbeat_interval: heartbeat,
        election_timeout_min: election,
        election_timeout_max: 2 * election,
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

/// Whether a proposal was refused: it is not in the log, and never will be. Clones look at the same.
#[derive(Debug, Clone, Default)]
pub struct Refusal(Arc<AtomicBool>);

impl Refusal {
    pub fn is_certain(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Where a proposal's outcome goes. Unlike openraft's own, it does not mind that nobody waits any
/// more: a client may go away.
pub struct Reply<T> {
    to: oneshot::Sender<T>,
    proposed: Instant,
    refusal: Refusal,
}

impl Reply<ClientWriteResult<TypeConfig>> {
    fn pair() -> (Self, Pending) {
        let (to, answer) = oneshot::channel();
        let refusal = Refusal::default();
        let reply = Self {
            to,
            proposed: Instant::now(),
            refusal: refusal.clone(),
        };
        (reply, Pending { answer, refusal })
    }
}

impl<T: Send + 'static> Responder<TypeConfig, T> for Reply<T> {
    fn on_complete(self, result: T) {
        metrics::raft_committed(self.proposed.elapsed());
        // openraft leaves the type open; what is proposed has this one.
        let written = (&result as &dyn Any).downcast_ref::<ClientWriteResult<TypeConfig>>();
        if let Some(Err(ClientWriteError::ForwardToLeader(_))) = written {
            self.refusal.set();
        }
        let _ = self.to.send(result);
    }
}

/// A queued proposal: resolves when its entry is applied, or known not to be.
#[derive(Debug)]
pub struct Pending {
    answer: oneshot::Receiver<ClientWriteResult<TypeConfig>>,
    refusal: Refusal,
}

impl Pending {
    /// For whoever must know when nobody waits here any more.
    pub fn refusal(&self) -> Refusal {
        self.refusal.clone()
    }
}

impl Future for Pending {
    type Output = Result<Outcome, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = Pin::new(&mut self.answer).poll(cx);
        answer.map(|answer| match answer {
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(error)) => Err(refused(error)),
            Err(_) => Err(ProposeError::Unknown),
        })
    }
}

pub(super) fn refused(error: ClientWriteError<TypeConfig>) -> ProposeError {
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

#[cfg(test)]
mod tests {
    use super::super::types::LeaderId;
    use super::*;
    use openraft::vote::RaftLeaderId;

    #[test]
    fn a_leader_that_was_given_up_too_late_is_known_again_when_it_says_so() {
        let role = RoleCell::new(1, 0, 0, Arc::new(|_| {}));
        role.saw_vote(&RaftVote {
            leader_id: LeaderId::new(5, 2),
            committed: true,
        });
        // Its restart is noticed only now; it was elected since.
        role.abandoned_by(2);
        assert_eq!(role.role().leader, None);
        role.leads_after_all(2, 4);
        role.leads_after_all(3, 5);
        assert_eq!(
            role.role().leader,
            None,
            "that was another term, or another disk"
        );
        role.leads_after_all(2, 5);
        assert_eq!(role.role().leader, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn between_two_leaders_the_next_is_foreseen_for_a_while() {
        let vote = |term, replica, committed| RaftVote {
            leader_id: LeaderId::new(term, replica),
            committed,
        };
        let role = RoleCell::new(1, 0, 0, Arc::new(|_| {}));
        let foreseen = || (role.role().leader, role.role().expected);
        role.saw_vote(&vote(5, 2, true));
        assert_eq!(foreseen(), (Some(2), Some(2)));
        role.hands_over(5, 2, 3);
        assert_eq!(foreseen(), (Some(2), Some(3)), "it hands over");
        role.saw_vote(&vote(6, 3, false));
        assert_eq!(foreseen(), (None, Some(3)), "it may be elected");
        tokio::time::advance(HOPEFUL).await;
        assert_eq!(foreseen(), (None, None), "it was not");
        role.saw_vote(&vote(6, 3, true));
        assert_eq!(foreseen(), (Some(3), Some(3)));
        role.abandoned_by(3);
        assert_eq!(foreseen(), (None, None), "nobody sends to the dead");
    }
}
