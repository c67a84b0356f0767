//! Where messages of other brokers' replicas arrive, and find the group they are for.
//!
//! Invariant: a message reaches a group only if it is meant for this disk's replica of it. A group
//! that is not open (yet, or any more) is said so, and the sender tries again.
//! Not here: bytes and sockets, and who may connect at all (`peers`).

use super::state_machine::{Apply, Machine};
use super::types::{ReplicaId, TypeConfig};
use super::wire;
use futures_util::future::BoxFuture;
use logd_proto::rpc::v1::group_message::Kind;
use logd_proto::rpc::v1::{self as rpc, GroupMessage};
use logd_storage::LogKey;
use openraft::Raft;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;

/// One open group, as its peers see it.
trait Member: Send + Sync {
    fn replica(&self) -> ReplicaId;
    fn receive(&self, kind: Kind) -> BoxFuture<'static, Kind>;
}

/// This broker's open groups.
#[derive(Clone, Default)]
pub struct Exchange(Arc<RwLock<HashMap<LogKey, Arc<dyn Member>>>>);

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exchange({} groups)", self.0.read().len())
    }
}

impl Exchange {
    pub(super) fn open<A: Apply>(
        &self,
        key: LogKey,
        replica: ReplicaId,
        raft: Raft<TypeConfig, Machine<A>>,
    ) {
        self.0.write().insert(key, Arc::new(Door { replica, raft }));
    }

    pub(super) fn close(&self, key: &LogKey) {
        self.0.write().remove(key);
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
        let member = self.0.read().get(&key).cloned();
        let member = member.ok_or("the group is not open here")?;
        if member.replica() != message.to {
            let (meant, here) = (message.to, member.replica());
            return Err(format!("it is for disk {meant}, this is disk {here}"));
        }
        Ok((member, kind))
    }
}

struct Door<A: Apply> {
    replica: ReplicaId,
    raft: Raft<TypeConfig, Machine<A>>,
}

impl<A: Apply> Member for Door<A> {
    fn replica(&self) -> ReplicaId {
        self.replica
    }

    fn receive(&self, kind: Kind) -> BoxFuture<'static, Kind> {
        let raft = self.raft.clone();
        Box::pin(async move { answer(&raft, kind).await.unwrap_or_else(Kind::Refused) })
    }
}

async fn answer<A: Apply>(raft: &Raft<TypeConfig, Machine<A>>, kind: Kind) -> Result<Kind, String> {
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
        Kind::Snapshot(request) => {
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
        | Kind::Refused(_) => return Err("an answer to nothing that was asked".into()),
    })
}
