//! What an operator asks of the cluster: move partitions, let others lead, show the quorum.
//!
//! Promise: whichever broker is asked, the question reaches whoever has to answer it. A move is accepted
//! when its command is applied; that it is over is in the metadata.
//! Not here: how a group comes to other members (`moves`), and codes.

use super::controller::{ANSWER_DEADLINE, Cluster};
use super::rebalance;
use super::state::{Answer, Command, TopicId};
use super::targets::{Move, MoveRefusal};
use crate::peers::Standing;
use crate::raft::ReplicaId;
use bytes::Bytes;
use logd_proto::Uuid;
use logd_proto::rpc::v1 as rpc;
use logd_proto::rpc::v1::envelope::Body;
use std::time::Duration;

/// Beyond a hand-over's own patience: what is in flight is settled first.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(5);

/// Moves in one command.
const MOVES_AT_ONCE: usize = 1_000;

/// How long the metadata group's leader may take to describe it.
const QUORUM_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    #[error("{0}")]
    Refused(#[from] MoveRefusal),
    #[error(
        "the replication factor would change from {now} to {wanted}, which this request does not allow"
    )]
    OtherWidth { now: usize, wanted: usize },
    #[error("the partition has no leader that could take other replicas in; try again when it has")]
    Leaderless,
    #[error("{0}")]
    Unavailable(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElectError {
    #[error("there is no such partition")]
    UnknownPartition,
    #[error("the wanted replica leads already")]
    NotNeeded,
    #[error("the partition has no leader that could hand over")]
    NoLeader,
    #[error("broker {node} is not there, or has no replica that keeps up")]
    Away { node: i32 },
    #[error("leadership was not handed over: {0}")]
    NotTaken(String),
    #[error(
        "unclean election: a leader needs a majority of its group here, which then has everything that was \
         acknowledged; without a majority nobody is elected"
    )]
    Unclean,
    #[error("there is no election of type {0}")]
    UnknownType(i8),
}

/// The metadata group, as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuorumState {
    pub leader: i32,
    pub term: u64,
    pub committed: u64,
    pub members: Vec<MemberState>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberState {
    /// Absent for a disk that no broker has any more.
    pub node: Option<i32>,
    pub disk: ReplicaId,
    pub votes: bool,
    pub last_index: u64,
}

impl Cluster {
    /// Whether a broker is there, as far as this one knows.
    pub fn is_alive(&self, node: i32) -> bool {
        let view = self.view();
        let broker = view.brokers.get(&node);
        broker.is_some_and(|b| self.is_disk_alive(b.replica))
    }

    /// Whether a broker's disk is slow or has no room, as its pings say.
    pub fn disk_is_slow(&self, node: i32) -> bool {
        let view = self.view();
        view.brokers.get(&node).is_some_and(|b| {
            if b.replica == self.disk() {
                self.hearing().own_disk_is_slow()
            } else {
                self.hearing().disk_is_slow(b.replica)
            }
        })
    }

    /// Whether a broker is there, and its disk keeps up: it may be given more.
    pub(super) fn is_fit(&self, node: i32) -> bool {
        self.is_alive(node) && !self.disk_is_slow(node)
    }

    pub(super) fn is_disk_alive(&self, disk: ReplicaId) -> bool {
        let standings = self.peers.standings();
        let standings = standings.borrow();
        disk == self.disk() || standings.get(&disk).is_some_and(Standing::is_alive)
    }

    /// Asks for moves, or for their cancellation; says for each why not. `other_width`: whether a
    /// partition may get more or fewer replicas than it has.
    pub async fn move_partitions(
        &self,
        moves: Vec<Move>,
        other_width: bool,
    ) -> Vec<Result<(), MoveError>> {
        let checked: Vec<Result<(), MoveError>> = moves
            .iter()
            .map(|m| self.check_move(m, other_width))
            .collect();
        let good: Vec<Move> = moves
            .into_iter()
            .zip(&checked)
            .filter_map(|(m, c)| c.is_ok().then_some(m))
            .collect();
        if good.is_empty() {
            return checked;
        }
        let count = good.len();
        let unavailable = |why: String| vec![Err(MoveError::Unavailable(why)); count];
        let answers = match self.propose(Command::SetTargets { moves: good }).await {
            Ok(Answer::Moves { refused }) => refused
                .into_iter()
                .map(|r| r.map_or(Ok(()), |why| Err(why.into())))
                .collect(),
            Ok(other) => unavailable(format!("unexpected answer {other:?}")),
            Err(error) => unavailable(error.to_string()),
        };
        let mut answers = answers.into_iter();
        let answer = |checked: Result<(), MoveError>| match checked {
            Ok(()) => answers
                .next()
                .unwrap_or(Err(MoveError::Unavailable("no answer".into()))),
            refused => refused,
        };
        checked.into_iter().map(answer).collect()
    }

    fn check_move(&self, wanted: &Move, other_width: bool) -> Result<(), MoveError> {
        let view = self.view();
        let (topic, index) = (view.topics.get(&wanted.topic.0), wanted.partition);
        let now = topic.and_then(|t| t.moves.get(&index).or(t.target(index)));
        let now = now.ok_or(MoveRefusal::UnknownPartition)?;
        let Some(target) = &wanted.target else {
            return Ok(());
        };
        if !other_width && target.len() != now.len() {
            let (now, wanted) = (now.len(), target.len());
            return Err(MoveError::OtherWidth { now, wanted });
        }
        // A group that does not exist yet cannot be moved: nobody would know who founds it.
        let led = self.leaders().get(&wanted.topic.0, index).is_some();
        let led_here = self.registry.get(&wanted.topic.0, index);
        if led || led_here.is_some_and(|p| p.leadership().serving) {
            Ok(())
        } else {
            Err(MoveError::Leaderless)
        }
    }

    /// Lets a partition be led by its first target replica.
    ///
    /// # Errors
    /// If that is so already, or cannot be now.
    pub async fn elect_preferred(&self, topic: &Uuid, index: i32) -> Result<(), ElectError> {
        let view = self.view();
        let known = view.topics.get(topic).and_then(|t| t.target(index));
        let preferred = known.and_then(|t| t.first());
        let preferred = *preferred.ok_or(ElectError::UnknownPartition)?;
        self.transfer(topic, index, preferred).await
    }

    /// Lets a partition be led by one of its voters.
    ///
    /// # Errors
    /// If that is so already, or cannot be now.
    pub async fn transfer(&self, topic: &Uuid, index: i32, to: i32) -> Result<(), ElectError> {
        let view = self.view();
        let known = view.topics.get(topic).and_then(|t| t.target(index));
        known.ok_or(ElectError::UnknownPartition)?;
        let claim = self.leaders().get(topic, index);
        let claim = claim.ok_or(ElectError::NoLeader)?;
        // Our own replica may know of an election before its winner has said so.
        let own = self.registry.get(topic, index).map(|p| p.leadership());
        let later = own.filter(|o| u64::try_from(o.epoch).is_ok_and(|e| e > claim.term));
        let leader = later.and_then(|o| o.leader).unwrap_or(claim.node);
        if leader == to {
            return Err(ElectError::NotNeeded);
        }
        let away = ElectError::Away { node: to };
        let heir = view.brokers.get(&to).map(|b| b.replica);
        let heir = heir.filter(|h| claim.voters.contains(h) && self.is_disk_alive(*h));
        let heir = heir.ok_or(away)?;
        let leader = view.brokers.get(&leader).ok_or(ElectError::NoLeader)?;
        let wanted = rpc::HandOver {
            topic_id: Bytes::copy_from_slice(topic.as_bytes()),
            partition: index as u32,
            to: heir,
        };
        let handed = if leader.replica == self.disk() {
            self.hand_over_for_peer(&wanted).await
        } else {
            let question = Body::HandOver(wanted);
            let asked = self
                .peers
                .ask(leader.replica, question, HAND_OVER_PATIENCE)
                .await;
            match asked {
                Ok(Body::HandedOver(h)) if h.refused.is_empty() => Ok(()),
                Ok(Body::HandedOver(h)) => Err(h.refused),
                Ok(_) => Err("it answers something else".into()),
                Err(error) => Err(error.to_string()),
            }
        };
        handed.map_err(ElectError::NotTaken)
    }

    /// Hands over a partition that this broker leads.
    pub(super) async fn hand_over_for_peer(&self, wanted: &rpc::HandOver) -> Result<(), String> {
        let topic = <[u8; 16]>::try_from(&wanted.topic_id[..])
            .map_err(|_| "a topic id has 16 bytes".to_owned())?;
        let index = wanted.partition as i32;
        let partition = self.registry.get(&Uuid::from_bytes(topic), index);
        let partition = partition.ok_or("this broker has no replica of it")?;
        let heir = wanted.to;
        let handed = partition.hand_over(|disk| disk == heir);
        match tokio::time::timeout(HAND_OVER_PATIENCE, handed).await {
            Ok(handed) => handed.map_err(|e| e.to_string()),
            Err(_) => Err(format!("not within {HAND_OVER_PATIENCE:?}")),
        }
    }

    /// The metadata group as this broker sees it.
    pub(super) fn quorum_here(&self) -> rpc::Quorum {
        let (role, now) = (self.group.role(), self.group.members());
        let leads = role.serving;
        let all = now.voters.iter().map(|r| (*r, true));
        let all = all.chain(now.learners.iter().map(|r| (*r, false)));
        let member = |(disk, votes): (ReplicaId, bool)| {
            let known = now.matched.get(&disk).copied().unwrap_or(0);
            let own = disk == self.disk();
            rpc::QuorumMember {
                disk,
                votes,
                last_index: if own { now.last_index } else { known },
            }
        };
        rpc::Quorum {
            leads,
            leader: role.leader.unwrap_or(0),
            term: role.term,
            committed: now.applied,
            dismissed: false,
            members: all.map(member).collect(),
        }
    }

    /// The metadata group as its leader sees it.
    ///
    /// # Errors
    /// Why its leader does not say.
    pub async fn quorum(&self) -> Result<QuorumState, String> {
        let here = self.quorum_here();
        let quorum = if here.leads {
            here
        } else {
            let question = Body::AskQuorum(rpc::AskQuorum { disk: self.disk() });
            let asked = self
                .peers
                .ask(here.leader, question, QUORUM_PATIENCE.min(ANSWER_DEADLINE));
            match asked.await {
                Ok(Body::Quorum(quorum)) if quorum.leads => quorum,
                Ok(_) => return Err("the metadata group's leader has just changed".into()),
                Err(error) => return Err(format!("the metadata group's leader: {error}")),
            }
        };
        let view = self.view();
        let leader = view
            .node_of(quorum.leader)
            .ok_or("the leader is no broker")?;
        let member = |m: rpc::QuorumMember| MemberState {
            node: view.node_of(m.disk),
            disk: m.disk,
            votes: m.votes,
            last_index: m.last_index,
        };
        Ok(QuorumState {
            leader,
            term: quorum.term,
            committed: quorum.committed,
            members: quorum.members.into_iter().map(member).collect(),
        })
    }

    /// Whether this broker leads the metadata group.
    pub(super) fn leads_metadata(&self) -> bool {
        self.group.role().serving
    }

    /// What should move so that the cluster is whole and level.
    pub fn plan_rebalance(&self) -> Vec<Move> {
        rebalance::plan(&self.view(), &|n| self.is_fit(n), self.defaults().1)
    }

    /// Asks for every move of a plan, in pieces; the moves themselves are made a few at a time.
    pub async fn run_rebalance(&self) -> Vec<(Move, Result<(), MoveError>)> {
        self.ask_for(self.plan_rebalance()).await
    }

    /// Cancels every move that is under way.
    pub async fn cancel_moves(&self) -> Vec<(Move, Result<(), MoveError>)> {
        let view = self.view();
        let back = view.moving().map(|(topic, partition)| Move {
            topic: TopicId(topic.id),
            partition,
            target: None,
        });
        self.ask_for(back.collect()).await
    }

    async fn ask_for(&self, moves: Vec<Move>) -> Vec<(Move, Result<(), MoveError>)> {
        let mut answers = Vec::with_capacity(moves.len());
        for piece in moves.chunks(MOVES_AT_ONCE) {
            let results = self.move_partitions(piece.to_vec(), true).await;
            answers.extend(piece.iter().cloned().zip(results));
        }
        answers
    }

    /// The broker that leads the metadata group, if one is known to.
    pub fn controller(&self) -> Option<i32> {
        self.view().node_of(self.group.role().leader?)
    }
}
