//! What requests mean: one match over [`Request`], one file per family, errors to codes in one table.
//!
//! Promise: an answer is given only for what is committed. What must keep the order of a connection's
//! requests (appends, group requests) is queued before [`Handler::take`] returns; the rest is done in
//! the future it returns.
//! Not here: sockets, files, and how anything is replicated.

mod errors;
mod fetch;
mod find_coordinator;
pub mod groups;
mod leader_epoch;
mod list_offsets;
mod metadata;
mod produce;
mod producer_id;
mod topics;
mod versions;

use crate::cluster::Cluster;
use crate::partition::{Partition, Registry};
use logd_proto::api::{ApiKey, Request, Response};
use logd_proto::{ErrorCode, StrBytes, Uuid};
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
    /// queues is in order; what it returns is polled beside later requests.
    fn take(&self, context: Context, request: Request) -> impl Future<Output = Answering> + Send;
}

/// Plain values that requests depend on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Metadata for an unknown topic creates it.
    pub auto_create_topics: bool,
    /// A Fetch answers with no more record bytes than this, whatever it asks for.
    pub fetch_bytes_max: usize,
    pub offsets_topic_partitions: i32,
    pub offsets_topic_replication: i16,
}

/// Everything requests act on.
#[derive(Debug)]
pub struct Services {
    pub cluster: Arc<Cluster>,
    pub partitions: Arc<Registry>,
    pub groups: Arc<crate::group::Coordinator>,
    pub settings: Settings,
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
            Request::OffsetForLeaderEpoch(r) => ready(leader_epoch::answer(&services, r)),
            Request::CreateTopics(r) => later(topics::create(services, r)),
            Request::DeleteTopics(r) => later(topics::delete(services, context, r)),
            Request::InitProducerId(r) => later(producer_id::answer(services, r)),
            Request::FindCoordinator(r) => later(find_coordinator::answer(services, context, r)),
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
