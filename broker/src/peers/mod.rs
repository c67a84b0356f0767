//! The other brokers: a few streams to each carry everything that groups say to each other.
//!
//! Promise: a call is answered, or fails within its patience; a peer that is gone fails its calls at
//! once. Whoever is spoken to belongs to our cluster and speaks our protocol, or is not spoken to.
//! Invariant: one `link` per peer, dialled by us; what a peer asks comes over the one it dialled.
//! Not here: what messages mean (`raft`, `cluster`), and what a death leads to.

mod call;
mod fit;
mod hearing;
mod link;
mod listener;
mod server;

pub use call::{Client, RpcError};
pub use fit::{Misfit, fit};
pub use hearing::{Hearing, SILENCE};
pub use link::Standing;
pub use listener::RpcListener;

use crate::raft::{CallError, Exchange, ReplicaId, Transport};
use futures_util::future::BoxFuture;
use link::Link;
use logd_proto::rpc::v1::envelope::Body;
use logd_proto::rpc::v1::group_message::Kind;
use logd_proto::rpc::v1::{
    Acknowledged, GroupMessage, Identity, JoinRequest, JoinResponse, Leaders, Orphans, Outlooks,
    ProposeRequest, ProposeResponse,
};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Bytes of one message between brokers: the largest batch there may be, with room.
const MESSAGE_BYTES_MAX: usize = 96 << 20;

/// The half of a disk's random identity that votes for it: openraft counts in 64 bits, and half of a
/// random 128-bit number is as unique as a cluster needs.
pub fn replica_of(disk: u128) -> ReplicaId {
    (disk as u64).max(1)
}

/// What the rest of this broker answers to others.
pub trait Household: Send + Sync + 'static {
    /// Who this broker is.
    fn identity(&self) -> Identity;

    /// The last start of a disk that this broker knows of; 0 for none.
    fn known_start(&self, disk: ReplicaId) -> u64;

    /// A peer knows of this start of our own disk.
    fn known_of_us(&self, start: u64);

    /// A peer's metadata is of a later generation than ours.
    fn surpassed_by(&self, generation: u32);

    fn join(&self, request: JoinRequest) -> BoxFuture<'static, JoinResponse>;
    fn propose(&self, request: ProposeRequest) -> BoxFuture<'static, ProposeResponse>;
    fn leaders(&self, leaders: Leaders);
    fn outlooks(&self, orphans: Orphans) -> Outlooks;

    /// A peer says how far this broker's disk had acknowledged what the peer leads.
    fn acknowledged(&self, from: ReplicaId, said: Acknowledged) -> BoxFuture<'static, ()>;
    /// Something a peer asks that takes its time; `None` for what is no question.
    fn asked(&self, question: Body) -> Option<BoxFuture<'static, Body>>;
}

/// Where a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub node_id: i32,
    /// `host:port` of its broker-to-broker port.
    pub rpc: String,
}

/// How it stands with every peer.
pub type Standings = BTreeMap<ReplicaId, Standing>;

/// The door to the other brokers. Clones share it.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    household: Arc<dyn Household>,
    hearing: Hearing,
    links: RwLock<BTreeMap<ReplicaId, Link>>,
    standings: watch::Sender<Standings>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Peers")
            .field(&self.0.links.read().keys())
            .finish()
    }
}

impl Peers {
    pub fn new(household: Arc<dyn Household>, hearing: Hearing) -> Self {
        Self(Arc::new(Inner {
            household,
            hearing,
            links: RwLock::default(),
            standings: watch::channel(Standings::new()).0,
        }))
    }

    /// Keeps a link to each of these and to nobody else.
    pub fn set(&self, wanted: &BTreeMap<ReplicaId, Address>) {
        let mut links = self.0.links.write();
        links.retain(|disk, link| wanted.get(disk) == Some(link.address()));
        for (disk, address) in wanted {
            links.entry(*disk).or_insert_with(|| {
                let (household, standings) = (self.0.household.clone(), self.0.standings.clone());
                let hearing = self.0.hearing.clone();
                Link::open(*disk, address.clone(), household, standings, hearing)
            });
        }
        self.0.standings.send_if_modified(|standings| {
            let before = standings.len();
            standings.retain(|disk, _| links.contains_key(disk));
            standings.len() != before
        });
    }

    /// How it stands with each peer, to look at and to wait on.
    pub fn standings(&self) -> watch::Receiver<Standings> {
        self.0.standings.subscribe()
    }

    /// Sends something that is not a group's, and waits until the peer has taken it.
    ///
    /// # Errors
    /// If the peer is not there, or does not answer in time.
    pub async fn tell(
        &self,
        to: ReplicaId,
        body: Body,
        patience: Duration,
    ) -> Result<(), CallError> {
        self.call_body(to, body, patience).await.map(drop)
    }

    /// Asks what groups that seem to have no leader look like over there.
    ///
    /// # Errors
    /// As [`Peers::tell`].
    pub async fn outlooks(
        &self,
        of: ReplicaId,
        orphans: Orphans,
        patience: Duration,
    ) -> Result<Outlooks, CallError> {
        match self.call_body(of, Body::Orphans(orphans), patience).await? {
            Body::Outlooks(outlooks) => Ok(outlooks),
            _ => Err(CallError::Refused {
                to: of,
                why: "it answers something else".into(),
            }),
        }
    }

    /// Tells a peer what it has acknowledged; returns when it has noted that.
    ///
    /// # Errors
    /// As [`Peers::tell`].
    pub async fn acknowledged(
        &self,
        to: ReplicaId,
        said: Acknowledged,
        patience: Duration,
    ) -> Result<(), CallError> {
        self.tell(to, Body::Acknowledged(said), patience).await
    }

    /// Asks a peer something that its household answers.
    ///
    /// # Errors
    /// As [`Peers::tell`].
    pub async fn ask(
        &self,
        whom: ReplicaId,
        question: Body,
        patience: Duration,
    ) -> Result<Body, CallError> {
        self.call_body(whom, question, patience).await
    }

    /// How recently we have heard of whom.
    pub fn hearing(&self) -> &Hearing {
        &self.0.hearing
    }

    fn call_body(
        &self,
        to: ReplicaId,
        body: Body,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Body, CallError>> {
        match self.0.links.read().get(&to) {
            Some(link) => link.caller().call(body, patience),
            None => {
                let why = "it is no broker of this cluster".into();
                Box::pin(std::future::ready(Err(CallError::Unreachable { to, why })))
            }
        }
    }
}

impl Transport for Peers {
    fn call(
        &self,
        message: GroupMessage,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Kind, CallError>> {
        let to = message.to;
        let answer = self.call_body(to, Body::Group(message), patience);
        Box::pin(async move {
            let refused = |why: &str| CallError::Refused {
                to,
                why: why.to_owned(),
            };
            match answer.await? {
                Body::Group(GroupMessage {
                    kind: Some(Kind::Refused(why)),
                    ..
                }) => Err(refused(&why)),
                Body::Group(GroupMessage {
                    kind: Some(kind), ..
                }) => Ok(kind),
                _ => Err(refused("its answer is none of a group's")),
            }
        })
    }
}

/// What the server side hands messages to.
#[derive(Clone)]
pub struct Served {
    pub household: Arc<dyn Household>,
    pub hearing: Hearing,
    pub exchange: Exchange,
}
