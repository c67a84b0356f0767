//! What requests mean: one match over [`Request`], one file per family, errors to codes in one table.
//!
//! Promise: an answer is given only for what is committed. What must keep the order of a connection's
//! requests (appends, group requests) is queued before [`Handler::take`] returns; the rest is done in
//! the future it returns.
//! Not here: sockets, files, and how anything is replicated.

mod access;
mod cluster;
mod configs;
mod delete_records;
mod elect;
mod errors;
mod fetch;
mod find_coordinator;
pub mod groups;
mod leader_epoch;
mod list_offsets;
mod log_dirs;
mod metadata;
mod operations;
mod partitions;
mod produce;
mod producer_id;
mod producers;
mod quorum;
mod reassign;
mod repacking;
mod topic_partitions;
mod topics;
mod unregister;
mod versions;

pub use fetch::{CacheLimits as FetchSessionLimits, SessionCounts, Sessions as FetchSessions};
pub use repacking::Repacking;

use crate::cluster::Cluster;
use crate::partition::{Leadership, Partition, Registry};
use crate::settings::Live;
use crate::topic_config::Described;
use logd_proto::api::{ApiKey, Request, Response};
use logd_proto::leader::{CurrentLeader, NodeEndpoint};
use logd_proto::{ErrorCode, StrBytes, Uuid};
use logd_storage::Disk;
use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;

/// Who asks, and in which version.
#[derive(Debug, Clone)]
pub struct Context {
    pub client_id: Option<StrBytes>,
    pub peer: SocketAddr,
    /// The name of the listener that was asked: its advertised addresses are what the client can use.
    pub listener: Arc<str>,
    pub api: ApiKey,
    pub version: i16,
}

/// What a request comes to.
#[derive(Debug)]
pub enum Answer {
    Respond(Response),
    /// A produce that wants no answer.
    Nothing,
    /// The client cannot be told: it must notice by the connection's end.
    Close,
}

/// An answer on its way.
pub type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What is done with requests.
pub trait Handler: Send + Sync + 'static {
    /// Takes a request over. Awaited before the next request of the connection is handed over, so what it
    /// queues is in order; what it returns is polled beside later requests of those kinds that overlap.
    fn take(&self, context: Context, request: Request) -> impl Future<Output = Answering> + Send;
}

/// What a broker is, from its start on.
#[derive(Debug, Clone)]
pub struct Identity {
    /// What it says of itself beside its settings, under Kafka's names.
    pub described: Arc<[Described]>,
    /// Where it keeps everything.
    pub log_dir: String,
}

/// Everything requests act on.
#[derive(Debug)]
pub struct Services {
    pub cluster: Arc<Cluster>,
    pub partitions: Arc<Registry>,
    pub disk: Disk,
    pub groups: Arc<crate::group::Coordinator>,
    pub fetch_sessions: FetchSessions,
    pub repacking: Repacking,
    /// What requests depend on: looked at when they are worked on.
    pub settings: Live,
    pub identity: Identity,
    /// Milliseconds since the epoch.
    pub now_ms: fn() -> i64,
    /// Turns true when the broker stops: requests that are parked are answered then, not waited for.
    pub stopping: watch::Receiver<bool>,
}

/// The broker's [`Handler`].
#[derive(Debug, Clone)]
pub struct Api(pub Arc<Services>);

/// A response at once.
fn ready(response: impl Into<Response>) -> Answering {
    Box::pin(std::future::ready(Answer::Respond(response.into())))
}

/// A response from a future that owns what it needs.
fn later<R: Into<Response>>(future: impl Future<Output = R> + Send + 'static) -> Answering {
    Box::pin(async move { Answer::Respond(future.await.into()) })
}

impl Handler for Api {
    async fn take(&self, context: Context, request: Request) -> Answering {
        let services = self.0.clone();
        match request {
            Request::ApiVersions(r) => ready(versions::answer(&r, context.version)),
            Request::Metadata(r) => later(metadata::answer(services, context, r)),
            Request::Produce(r) => produce::take(services, context, r).await,
            Request::Fetch(r) => later(fetch::answer(services, context, r)),
            Request::ListOffsets(r) => later(list_offsets::answer(services, context, r)),
            Request::OffsetForLeaderEpoch(r) => later(leader_epoch::answer(services, r)),
            Request::CreateTopics(r) => later(topics::create(services, r)),
            Request::DeleteTopics(r) => later(topics::delete(services, context, r)),
            Request::CreatePartitions(r) => later(partitions::create(services, r)),
            Request::DeleteRecords(r) => later(delete_records::delete(services, r)),
            Request::InitProducerId(r) => later(producer_id::answer(services, r)),
            Request::FindCoordinator(r) => later(find_coordinator::answer(services, context, r)),
            Request::DescribeCluster(r) => ready(cluster::describe(&services, &context, &r)),
            Request::DescribeTopicPartitions(r) => ready(topic_partitions::describe(&services, &r)),
            Request::DescribeLogDirs(r) => ready(log_dirs::describe(&services, &context, r)),
            Request::DescribeProducers(r) => later(producers::describe(services, r)),
            Request::ListConfigResources(r) => ready(configs::list(&services, &context, &r)),
            Request::UnregisterBroker(r) => later(unregister::unregister(services, r)),
            Request::DescribeQuorum(r) => later(quorum::describe(services, context, r)),
            Request::AlterPartitionReassignments(r) => later(reassign::alter(services, context, r)),
            Request::ListPartitionReassignments(r) => ready(reassign::list(&services, r)),
            Request::DescribeAcls(_) => ready(access::describe_acls()),
            Request::CreateAcls(r) => ready(access::create_acls(&r)),
            Request::DeleteAcls(r) => ready(access::delete_acls(&r)),
            Request::DescribeClientQuotas(_) => ready(access::describe_quotas()),
            Request::DescribeUserScramCredentials(r) => ready(access::describe_users(&r)),
            Request::DescribeConfigs(r) => ready(configs::describe(&services, &context, &r)),
            Request::IncrementalAlterConfigs(r) => later(configs::incremental(services, r)),
            Request::AlterConfigs(r) => later(configs::replace(services, r)),
            Request::ElectLeaders(r) => later(elect::elect(services, context, r)),
            other => groups::take(services, context, other).await,
        }
    }
}

impl Services {
    /// Resolves when the broker stops. Owns what it needs, for futures that are answers.
    fn stop(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stopping = self.stopping.clone();
        // An error means that the node is gone, which is a stop too.
        async move { drop(stopping.wait_for(|stop| *stop).await) }
    }

    /// Who leads a partition, as far as is known here: by our own replica's vote, or by what leaders have
    /// said, whichever is of the later epoch. A leader that was just elected is named before it serves: it
    /// lets its clients wait that moment, which is quicker than having them look elsewhere.
    fn leadership(&self, topic: &Uuid, index: i32) -> Option<Leadership> {
        let own = self.partitions.get(topic, index).map(|p| p.leadership());
        let claim = self
            .cluster
            .leaders()
            .get(topic, index)
            .map(|c| Leadership {
                leader: Some(c.node),
                expected: None,
                epoch: i32::try_from(c.term).unwrap_or(i32::MAX),
                serving: false,
            });
        match (own, claim) {
            (Some(own), _) if own.serving => Some(own),
            (Some(own), Some(claim)) if own.epoch > claim.epoch => Some(own),
            (_, Some(claim)) => Some(claim),
            // Nobody has served yet: a topic is announced when it can be used.
            (own, None) => own.map(|own| Leadership {
                leader: None,
                expected: None,
                ..own
            }),
        }
    }

    /// False if most of those who vote in the partition's group are away: then nobody leads it, whatever
    /// was last heard.
    fn may_be_led(&self, topic: &Uuid, index: i32, away: &BTreeSet<i32>) -> bool {
        if away.is_empty() {
            return true;
        }
        let claim = self.cluster.leaders().get(topic, index);
        claim.is_none_or(|c| c.may_be_led(&self.cluster.view(), |node| !away.contains(&node)))
    }

    /// The replicas that keep up, as the leader has said; all of them where nobody has said anything.
    fn in_sync(&self, topic: &Uuid, index: i32, replicas: &[i32]) -> Vec<i32> {
        let Some(claim) = self.cluster.leaders().get(topic, index) else {
            return replicas.to_vec();
        };
        let view = self.cluster.view();
        let nodes = claim.in_sync.iter().filter_map(|d| view.node_of(*d));
        nodes.filter(|n| replicas.contains(n)).collect()
    }

    /// For a partition that this broker does not lead: who does, and how that broker is reached, so that
    /// the client need not ask (KIP-951).
    fn redirect(
        &self,
        context: &Context,
        topic: (&str, &Uuid),
        index: i32,
        endpoints: &mut Vec<NodeEndpoint>,
    ) -> Option<CurrentLeader> {
        let view = self.cluster.view();
        let known = view.topic_by_id(topic.1).or_else(|| view.topic(topic.0))?;
        let leadership = self.leadership(&known.id, index)?;
        let leader = leadership.expected.or(leadership.leader);
        let leader_id = leader.filter(|l| *l != self.cluster.node_id())?;
        if !endpoints.iter().any(|e| e.node_id == leader_id) {
            endpoints.push(self.endpoint(leader_id, &context.listener)?);
        }
        Some(CurrentLeader {
            leader_id,
            leader_epoch: leadership.epoch,
        })
    }

    /// Where clients of a listener reach a broker.
    fn endpoint(&self, node: i32, listener: &str) -> Option<NodeEndpoint> {
        let view = self.cluster.view();
        let broker = view.brokers.get(&node)?;
        let (host, port) = broker.listeners.get(listener)?;
        Some(NodeEndpoint {
            node_id: node,
            host: host.as_str().into(),
            port: i32::from(*port),
            rack: broker.rack.as_deref().map(StrBytes::from),
        })
    }

    /// A partition by topic name, as older versions name it.
    fn partition_by_name(&self, topic: &str, index: i32) -> Result<Arc<Partition>, ErrorCode> {
        let state = self.cluster.view();
        let topic = state
            .topic(topic)
            .ok_or(ErrorCode::UnknownTopicOrPartition)?;
        self.partition_of(&topic.id, topic.partitions.len(), index)
    }

    /// A partition by topic id (KIP-516).
    fn partition_by_id(&self, topic: &Uuid, index: i32) -> Result<Arc<Partition>, ErrorCode> {
        let state = self.cluster.view();
        let topic = state.topic_by_id(topic).ok_or(ErrorCode::UnknownTopicId)?;
        self.partition_of(&topic.id, topic.partitions.len(), index)
    }

    /// Whether a topic's records are the broker's own to write.
    fn is_internal(&self, topic: &Uuid) -> bool {
        let state = self.cluster.view();
        state.topic_by_id(topic).is_some_and(|t| t.internal)
    }

    fn partition_of(
        &self,
        topic: &Uuid,
        partitions: usize,
        index: i32,
    ) -> Result<Arc<Partition>, ErrorCode> {
        if !usize::try_from(index).is_ok_and(|i| i < partitions) {
            return Err(ErrorCode::UnknownTopicOrPartition);
        }
        self.partitions.get(topic, index).ok_or_else(|| {
            match self.partitions.failure(topic, index) {
                Some(_) => ErrorCode::KafkaStorageError,
                None => ErrorCode::NotLeaderOrFollower,
            }
        })
    }
}
