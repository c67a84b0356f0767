//! Where messages of other brokers' replicas arrive, and find the group they are for.
//!
//! Invariant: a message reaches a group only if it is meant for this disk's replica of it, and comes from
//! the same generation: a group that was recovered by force and what is left of the one before have
//! nothing to say to each other, neither votes nor acknowledgements. A group
//! that is not open (yet, or any more) is said so, and the sender tries again. A candidate gets no vote
//! for a group that has no timers of its own while this broker hears that group's leader, unless the
//! leader itself hands over to it: two brokers that cannot hear each other would else depose each other
//! for ever.
//! Not here: bytes and sockets, and who may connect at all (`peers`).

use super::candidacy::Candidacy;
use super::files::{Inbox, Travelling};
use super::group::{GroupSpec, RoleCell, Timers};
use super::runtime::off_the_loop;
use super::state_machine::{Apply, Machine};
use super::types::{ReplicaId, TypeConfig};
use super::wire;
use futures_util::future::BoxFuture;
use logd_proto::rpc::v1::group_message::Kind;
use logd_proto::rpc::v1::{self as rpc, GroupMessage};
use logd_storage::{Log, LogKey};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Raft, ServerState};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;

/// One open group, as its peers see it.
trait Member: Send + Sync {
    fn replica(&self) -> ReplicaId;
    fn generation(&self) -> u32;
    fn receive(&self, kind: Kind) -> BoxFuture<'static, Kind>;
    /// Whether a replica votes in the group.
    fn votes(&self, replica: ReplicaId) -> bool;
}

/// Whether a disk's broker has been heard a moment ago.
pub type Hears = Arc<dyn Fn(ReplicaId) -> bool + Send + Sync>;

/// Whether this broker's disk may vote at all.
pub type Vetted = Arc<dyn Fn() -> bool + Send + Sync>;

/// Whether the disk takes new client data.
pub type Room = Arc<dyn Fn() -> bool + Send + Sync>;

/// This broker's open groups.
#[derive(Clone)]
pub struct Exchange {
    groups: Arc<RwLock<HashMap<LogKey, Arc<dyn Member>>>>,
    hears: Hears,
    vetted: Vetted,
    room: Room,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exchange({} groups)", self.groups.read().len())
    }
}

impl Exchange {
    pub fn new(hears: Hears, vetted: Vetted, room: Room) -> Self {
        Self {
            groups: Arc::default(),
            hears,
            vetted,
            room,
        }
    }

    pub(super) fn open<A: Apply>(
        &self,
        spec: &GroupSpec,
        log: Log,
        raft: Raft<TypeConfig, Machine<A>>,
        role: Arc<RoleCell>,
        inbox: Inbox,
    ) {
        let key = log.key();
        let door = Door {
            replica: spec.replica,
            generation: spec.generation,
            raft,
            candidacy: self.candidacy(role.clone(), log),
            role,
            timers: spec.timers,
            hears: self.hears.clone(),
            room: spec.client_data.then(|| self.room.clone()),
            inbox,
        };
        self.groups.write().insert(key, Arc::new(door));
    }

    pub(super) fn candidacy(&self, role: Arc<RoleCell>, log: Log) -> Candidacy {
        Candidacy {
            vetted: self.vetted.clone(),
            role,
            log,
        }
    }

    pub(super) fn close(&self, key: &LogKey) {
        self.groups.write().remove(key);
    }

    /// Whether a replica votes in a group that is open here.
    pub(super) fn votes(&self, key: &LogKey, replica: ReplicaId) -> bool {
        let member = self.groups.read().get(key).cloned();
        member.is_some_and(|member| member.votes(replica))
    }

    /// Hands a message to its group; the answer is a message too.
    pub fn deliver(&self, message: GroupMessage) -> BoxFuture<'static, Kind> {
        match self.find(&message) {
            Ok((member, kind)) => member.receive(kind),
            Err(why) => Box::pin(std::future::ready(Kind::Refused(why))),
        }
    }

    fn find(&self, message: &GroupMessage) -> Result<(Arc<dyn Member>, Kind), String> {
        let topic = <[u8; 16]>::try_from(&message.topic_id[..])
            .map_err(|_| format!("a topic id of {} bytes", message.topic_id.len()))?;
        let key = LogKey {
            topic,
            partition: message.partition,
        };
        let kind = message.kind.clone().ok_or("a message of no kind")?;
        let member = self.groups.read().get(&key).cloned();
        let member = member.ok_or("the group is not open here")?;
        if member.replica() != message.to {
            let (meant, here) = (message.to, member.replica());
            return Err(format!("it is for disk {meant}, this is disk {here}"));
        }
        if member.generation() != message.generation {
            let (theirs, ours) = (message.generation, member.generation());
            return Err(format!(
                "it is of generation {theirs} of the group, this replica of {ours}: one of them is from before a forced recovery"
            ));
        }
        Ok((member, kind))
    }
}

struct Door<A: Apply> {
    replica: ReplicaId,
    generation: u32,
    raft: Raft<TypeConfig, Machine<A>>,
    role: Arc<RoleCell>,
    candidacy: Candidacy,
    timers: Timers,
    hears: Hears,
    /// For groups of clients' records: on a full disk they wait, what the broker itself needs goes on.
    room: Option<Room>,
    inbox: Inbox,
}

impl<A: Apply> Door<A> {
    /// Why a candidate gets no vote here.
    fn refusal(&self, request: &rpc::VoteRequest) -> Option<String> {
        if let Some(obstacle) = self.candidacy.obstacle() {
            return Some(obstacle.into());
        }
        let candidate = request.vote.map(|v| v.voted_for);
        let leader = self.role.elected().filter(|l| Some(*l) != candidate)?;
        let free =
            self.timers == Timers::Own || (candidate.is_some() && candidate == self.role.heir());
        let heard = leader == self.replica && self.leads() || (self.hears)(leader);
        (!free && heard).then(|| format!("this broker hears the group's leader, disk {leader}"))
    }

    fn has_room(&self) -> bool {
        self.room.as_ref().is_none_or(|room| room())
    }

    fn leads(&self) -> bool {
        self.raft.metrics().borrow_watched().state == ServerState::Leader
    }

    fn note_heir(&self, request: &rpc::TransferRequest) {
        if let Some(from) = request.from {
            self.role.hands_over(from.term, from.voted_for, request.to);
        }
    }
}

impl<A: Apply> Member for Door<A> {
    fn replica(&self) -> ReplicaId {
        self.replica
    }

    fn generation(&self) -> u32 {
        self.generation
    }

    fn votes(&self, replica: ReplicaId) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let mut voters = metrics.membership_config.membership().voter_ids();
        voters.any(|voter| voter == replica)
    }

    fn receive(&self, kind: Kind) -> BoxFuture<'static, Kind> {
        match &kind {
            Kind::Append(request) if !request.entries.is_empty() && !self.has_room() => {
                return Box::pin(std::future::ready(Kind::Refused(NO_ROOM.into())));
            }
            Kind::Piece(_) if !self.has_room() => {
                return Box::pin(std::future::ready(Kind::Refused(NO_ROOM.into())));
            }
            Kind::Vote(request) => {
                if let Some(why) = self.refusal(request) {
                    return Box::pin(std::future::ready(Kind::Refused(why)));
                }
            }
            Kind::Transfer(request) => {
                let is_heir = request.to == self.replica;
                if let Some(why) = self.candidacy.obstacle().filter(|_| is_heir) {
                    return Box::pin(std::future::ready(Kind::Refused(why.into())));
                }
                self.note_heir(request);
            }
            _ => {}
        }
        let (raft, inbox) = (self.raft.clone(), self.inbox.clone());
        Box::pin(async move {
            let answer = answer(&raft, inbox, kind).await;
            answer.unwrap_or_else(Kind::Refused)
        })
    }
}

const NO_ROOM: &str = "the disk has no room for more records";

/// A snapshot that has files is of use only with them.
fn check_files(inbox: &Inbox, request: &rpc::SnapshotRequest) -> Result<(), String> {
    let travelling = Travelling::decode(&request.state).map_err(|e| e.to_string())?;
    let last = request.last.filter(|_| travelling.with_files);
    let Some(upto) = last.map(wire::entry_id_in) else {
        return Ok(());
    };
    if inbox.needs(upto).map_err(|e| e.to_string())? && !inbox.has(upto) {
        return Err("its files are not here: offer them again".into());
    }
    Ok(())
}

async fn answer<A: Apply>(
    raft: &Raft<TypeConfig, Machine<A>>,
    inbox: Inbox,
    kind: Kind,
) -> Result<Kind, String> {
    fn said(error: impl std::fmt::Display) -> String {
        error.to_string()
    }
    Ok(match kind {
        Kind::Append(request) => {
            let request = wire::append_in(request).map_err(said)?;
            let response = raft.append_entries(request).await.map_err(said)?;
            Kind::Appended(wire::appended_out(response))
        }
        Kind::Vote(request) => {
            let pre_vote = request.pre_vote;
            let request = wire::ask_vote_in(request).map_err(said)?;
            let response = if pre_vote {
                raft.pre_vote(request).await
            } else {
                raft.vote(request).await
            };
            Kind::Voted(wire::voted_out(&response.map_err(said)?))
        }
        Kind::Offer(offer) => {
            let wanted = off_the_loop(move || inbox.offered(&offer)).await;
            Kind::Wanted(wanted.map_err(said)??)
        }
        Kind::Piece(piece) => {
            let wanted = off_the_loop(move || inbox.arrived(&piece)).await;
            Kind::Wanted(wanted.map_err(said)??)
        }
        Kind::Snapshot(request) => {
            let checked = off_the_loop(move || {
                let files = check_files(&inbox, &request);
                files.map(|()| request)
            });
            let request = checked.await.map_err(said)??;
            let (vote, snapshot) = wire::snapshot_in(request).map_err(said)?;
            let response = raft.install_full_snapshot(vote, snapshot).await;
            let vote = Some(wire::vote_out(&response.map_err(said)?.vote));
            Kind::SnapshotTaken(rpc::SnapshotResponse { vote })
        }
        Kind::Transfer(request) => {
            let request = wire::transfer_in(request).map_err(said)?;
            let response = raft.handle_transfer_leader(request).await.map_err(said)?;
            let refused = response.err().map(said).unwrap_or_default();
            Kind::Transferred(rpc::TransferResponse { refused })
        }
        Kind::Appended(_)
        | Kind::Voted(_)
        | Kind::SnapshotTaken(_)
        | Kind::Transferred(_)
        | Kind::Wanted(_)
        | Kind::Refused(_) => return Err("an answer to nothing that was asked".into()),
    })
}
