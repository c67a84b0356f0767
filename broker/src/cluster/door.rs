//! What other brokers may ask of this one: who it is, to be taken in, to change the metadata.
//!
//! It answers from before this broker belongs to a cluster until it stops.
//! Invariant: what peers know of our disk's starts is compared before anything of ours is believed.

use super::controller::Cluster;
use super::features::FeatureLevel;
use super::leaders::Leaders;
use super::lineage::{Lineage, Surpassed};
use super::state::{Answer, BrokerInfo, Command, UNASSIGNED};
use super::vetting::Vetting;
use crate::peers::{Household, fit, replica_of};
use crate::raft::ReplicaId;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use logd_proto::rpc::v1::envelope::Body;
use logd_proto::rpc::v1::{
    self as rpc, Identity, JoinRequest, JoinResponse, ProposeRequest, ProposeResponse,
};
use logd_proto::rpc::{PROTOCOL_OF_LINEAGES, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN};
use parking_lot::RwLock;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use tokio::sync::watch;

/// This broker as others see it.
pub struct Door {
    identity: RwLock<Identity>,
    leaders: Arc<Leaders>,
    vetting: Arc<Vetting>,
    cluster: OnceLock<Weak<Cluster>>,
    /// From here on others may know our start from ourselves.
    registering: AtomicBool,
    /// A start of our disk that others know of and that we have not reached: ours is an older copy.
    overtaken: watch::Sender<Option<u64>>,
    /// The latest generation of the metadata that somebody has, of those that were said to be later than ours.
    surpassed: watch::Sender<u32>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Door").field(&*self.identity.read()).finish()
    }
}

impl Door {
    /// `build`: what this broker's build understands.
    pub fn new(
        build: FeatureLevel,
        disk: u128,
        start: u64,
        seeds: Vec<String>,
        leaders: Arc<Leaders>,
        vetting: Arc<Vetting>,
    ) -> Arc<Self> {
        let identity = Identity {
            cluster_id: String::new(),
            node_id: None,
            disk_incarnation: Bytes::copy_from_slice(&disk.to_be_bytes()),
            protocol_version: PROTOCOL_VERSION,
            protocol_version_min: PROTOCOL_VERSION_MIN,
            feature_version: build.number(),
            seeds,
            start,
            // As of each time that it is asked for.
            feature_level: 0,
            lineage: None,
            metadata_led: false,
        };
        Arc::new(Self {
            identity: RwLock::new(identity),
            leaders,
            vetting,
            cluster: OnceLock::new(),
            registering: AtomicBool::new(false),
            overtaken: watch::channel(None).0,
            surpassed: watch::channel(0).0,
        })
    }

    /// This broker's disk, as it votes.
    pub fn disk(&self) -> ReplicaId {
        let identity = self.identity.read();
        let bytes = <[u8; 16]>::try_from(&identity.disk_incarnation[..]).unwrap_or_default();
        replica_of(u128::from_be_bytes(bytes))
    }

    /// What this broker's build understands.
    pub(super) fn build(&self) -> FeatureLevel {
        FeatureLevel::new(self.identity.read().feature_version)
    }

    pub(super) fn vetting(&self) -> Arc<Vetting> {
        self.vetting.clone()
    }

    pub fn leaders(&self) -> Arc<Leaders> {
        self.leaders.clone()
    }

    pub(super) fn belongs_to(&self, cluster_id: &str, node_id: Option<i32>) {
        let mut identity = self.identity.write();
        cluster_id.clone_into(&mut identity.cluster_id);
        identity.node_id = node_id;
    }

    /// Where this broker's metadata comes from. Builds that do not know of recoveries cannot take part from then on.
    pub(super) fn descends_from(&self, lineage: Lineage) {
        let mut identity = self.identity.write();
        identity.lineage = lineage.said();
        if !lineage.is_first() {
            identity.protocol_version_min = PROTOCOL_OF_LINEAGES;
        }
    }

    pub(super) fn lineage(&self) -> Lineage {
        Lineage::of(self.identity.read().lineage)
    }

    /// Resolves when somebody has metadata of a later generation.
    pub(super) fn surpassed(&self) -> impl Future<Output = Surpassed> + use<> {
        let (mut heard, ours) = (self.surpassed.subscribe(), self.lineage().generation);
        async move {
            match heard.wait_for(|theirs| *theirs > ours).await {
                Ok(theirs) => Surpassed {
                    ours,
                    theirs: *theirs,
                },
                Err(_) => std::future::pending().await,
            }
        }
    }

    pub(super) fn open(&self, cluster: &Arc<Cluster>) {
        // A second call could only bring the same one.
        let _ = self.cluster.set(Arc::downgrade(cluster));
    }

    pub(super) fn registering(&self) {
        self.registering.store(true, Ordering::Release);
    }

    /// Wakes when a peer knows of a later start of our disk.
    pub(super) fn overtaken(&self) -> watch::Receiver<Option<u64>> {
        self.overtaken.subscribe()
    }

    fn cluster(&self) -> Option<Arc<Cluster>> {
        self.cluster.get()?.upgrade()
    }
}

fn not_in(why: impl ToString) -> JoinResponse {
    JoinResponse {
        refused: why.to_string(),
        ..JoinResponse::default()
    }
}

fn broker_of(request: JoinRequest, caller: &Identity, disk: ReplicaId) -> BrokerInfo {
    let listener = |l: rpc::Listener| {
        let port = u16::try_from(l.port).unwrap_or(0);
        (l.name, (l.host, port))
    };
    BrokerInfo {
        id: UNASSIGNED,
        replica: disk,
        start: caller.start,
        rack: Some(request.rack).filter(|r| !r.is_empty()),
        listeners: request.listeners.into_iter().map(listener).collect(),
        rpc: request.rpc_address,
        features: FeatureLevel::new(caller.feature_version),
    }
}

async fn take_in(us: Identity, cluster: Arc<Cluster>, mut request: JoinRequest) -> JoinResponse {
    let Some(caller) = request.caller.take() else {
        return not_in("the request does not say who asks");
    };
    let Ok(disk) = <[u8; 16]>::try_from(&caller.disk_incarnation[..]) else {
        return not_in("the request does not say which disk asks");
    };
    if let Err(misfit) = fit(&us, &caller) {
        return not_in(misfit);
    }
    if !caller.cluster_id.is_empty() && caller.cluster_id != cluster.cluster_id() {
        return not_in(format!(
            "its data belongs to cluster {}, this is cluster {}",
            caller.cluster_id,
            cluster.cluster_id()
        ));
    }
    let info = broker_of(request, &caller, replica_of(u128::from_be_bytes(disk)));
    match cluster
        .propose_indexed(&Command::RegisterBroker(info))
        .await
    {
        Ok((Answer::Registered { node }, index)) => JoinResponse {
            refused: String::new(),
            cluster_id: cluster.cluster_id().to_owned(),
            node_id: node,
            index,
        },
        Ok((Answer::Refused(why), _)) => not_in(why),
        Ok((other, _)) => not_in(format!("unexpected answer {other:?}")),
        Err(error) => not_in(error),
    }
}

impl Household for Door {
    fn identity(&self) -> Identity {
        let cluster = self.cluster();
        let level = cluster.as_ref().map_or(0, |c| c.view().features.number());
        Identity {
            feature_level: level,
            metadata_led: cluster.is_some_and(|c| c.may_decide().is_ok()),
            ..self.identity.read().clone()
        }
    }

    fn known_start(&self, disk: ReplicaId) -> u64 {
        let Some(cluster) = self.cluster() else {
            return 0;
        };
        let view = cluster.view();
        let known = view.brokers.values().find(|b| b.replica == disk);
        known.map_or(0, |b| b.start)
    }

    fn known_of_us(&self, start: u64) {
        let ours = self.identity.read().start;
        let registering = self.registering.load(Ordering::Acquire);
        if start > ours || (start == ours && !registering) {
            self.overtaken.send_replace(Some(start));
        }
    }

    fn surpassed_by(&self, generation: u32) {
        self.surpassed.send_if_modified(|latest| {
            let later = generation > *latest;
            *latest = generation.max(*latest);
            later
        });
    }

    fn join(&self, request: JoinRequest) -> BoxFuture<'static, JoinResponse> {
        match self.cluster() {
            Some(cluster) => Box::pin(take_in(self.identity(), cluster, request)),
            None => Box::pin(std::future::ready(not_in(
                "this broker belongs to no cluster yet",
            ))),
        }
    }

    fn propose(&self, request: ProposeRequest) -> BoxFuture<'static, ProposeResponse> {
        let (cluster, ours) = (self.cluster(), self.lineage());
        Box::pin(async move {
            match cluster {
                Some(_) if Lineage::of(request.lineage) != ours => ProposeResponse {
                    failed: "it is for metadata of another generation".into(),
                    retriable: true,
                    ..ProposeResponse::default()
                },
                Some(cluster) => cluster.propose_for_peer(request.command).await,
                None => ProposeResponse {
                    failed: "this broker belongs to no cluster yet".into(),
                    retriable: true,
                    ..ProposeResponse::default()
                },
            }
        })
    }

    fn acknowledged(&self, from: ReplicaId, said: rpc::Acknowledged) -> BoxFuture<'static, ()> {
        let (vetting, cluster) = (self.vetting.clone(), self.cluster());
        Box::pin(async move {
            let looked = move || vetting.remembered(from, &said, cluster.as_deref());
            // A panic there is a bug; the peer is answered all the same.
            let _ = tokio::task::spawn_blocking(looked).await;
        })
    }

    fn outlooks(&self, orphans: rpc::Orphans) -> rpc::Outlooks {
        match self.cluster() {
            Some(cluster) => {
                let hears = |leader| cluster.peers.hearing().hears(leader);
                let vetted = cluster.vetting.is_done();
                super::takeover::outlooks(&cluster.registry, hears, vetted, &orphans)
            }
            None => rpc::Outlooks::default(),
        }
    }

    fn asked(&self, question: Body) -> Option<BoxFuture<'static, Body>> {
        let cluster = self.cluster();
        match question {
            Body::HandOver(wanted) => Some(Box::pin(async move {
                let done = match cluster {
                    Some(cluster) => cluster.hand_over_for_peer(&wanted).await,
                    None => Err("this broker belongs to no cluster yet".into()),
                };
                let refused = done.err().unwrap_or_default();
                Body::HandedOver(rpc::HandedOver { refused })
            })),
            Body::AskQuorum(asked) => {
                let quorum = cluster.map(|c| rpc::Quorum {
                    dismissed: c.view().removed.contains(&asked.disk),
                    ..c.quorum_here()
                });
                let quorum = quorum.unwrap_or_default();
                Some(Box::pin(std::future::ready(Body::Quorum(quorum))))
            }
            _ => None,
        }
    }

    fn leaders(&self, leaders: rpc::Leaders) {
        self.leaders.note(leaders);
    }
}
