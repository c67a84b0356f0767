//! The cluster as this client sees it: who the brokers are, who leads what, and open connections.
//!
//! Promise: metadata is asked for once however many wait for it; a closed connection is replaced on
//! the next use; a retry never outlives its deadline.
//!
//! Not here: what requests mean to producers and consumers.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use logd_proto::messages::metadata_request::MetadataRequestTopic;
use logd_proto::messages::{FindCoordinatorRequest, MetadataRequest, MetadataResponse};
use logd_proto::messages::{RequestResponsePair, metadata_response::MetadataResponseTopic};
use logd_proto::{ErrorCode, message};
use tokio::time::Instant;

use crate::connection::{Connection, Settings};
use crate::error::{MetadataError, RequestError};

/// The highest versions whose fields we fill, for APIs where the newest would need topic ids.
pub(crate) mod cap {
    /// No restriction.
    pub const NEWEST: i16 = i16::MAX;
    /// Beyond it topics go by id.
    pub const PRODUCE: i16 = 12;
    pub const FETCH: i16 = 12;
    pub const OFFSET_COMMIT: i16 = 9;
    pub const OFFSET_FETCH: i16 = 7;
    pub const DELETE_TOPICS: i16 = 5;
    /// Beyond it one request names several groups.
    pub const FIND_COORDINATOR: i16 = 3;
    /// Beyond it one request names several members.
    pub const LEAVE_GROUP: i16 = 2;
}

/// Answers come in the order of the requests, so requests that wait long get a connection of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// Short questions.
    General,
    /// Produce requests, whose order matters.
    Produce,
    /// Fetches, which wait for records.
    Fetch,
    /// Joins and syncs, which wait for other members.
    Group,
    /// Heartbeats, which must not wait behind a join.
    Heartbeat,
}

/// One partition's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Its number.
    pub index: i32,
    /// The broker that leads it.
    pub leader: Option<i32>,
    /// That leadership's epoch, -1 when unknown.
    pub leader_epoch: i32,
    /// The brokers that hold it.
    pub replicas: Vec<i32>,
    /// Those that are caught up.
    pub in_sync: Vec<i32>,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// Its id, zeros when the broker has none.
    pub id: [u8; 16],
    /// Whether the brokers use it themselves.
    pub internal: bool,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionInfo>,
}

/// One broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerInfo {
    /// Its id.
    pub id: i32,
    /// `host:port`, as it wants to be reached.
    pub addr: String,
}

type Slot = Arc<tokio::sync::Mutex<Option<Arc<Connection>>>>;

#[derive(Debug, Default)]
struct State {
    brokers: BTreeMap<i32, BrokerInfo>,
    topics: HashMap<String, Arc<TopicInfo>>,
    /// Counts refreshes of topics, so that waiters can tell whether theirs happened meanwhile.
    refreshed: HashMap<String, Instant>,
    connections: HashMap<(String, Purpose), Slot>,
}

/// Shared by everything a [`crate::Client`] makes.
#[derive(Debug)]
pub(crate) struct Cluster {
    bootstrap: Vec<String>,
    pub settings: Settings,
    pub retry: RetryPolicy,
    auto_create: bool,
    state: Mutex<State>,
    refreshing: tokio::sync::Mutex<()>,
}

/// How often and how long to try again.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// The wait after the first failure; it doubles with each further one.
    pub backoff_min: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
    /// The end of all attempts.
    pub give_up_after: Duration,
}

impl RetryPolicy {
    /// Tries for so long, with waits from 50 ms up to 1 s in between.
    pub const fn until(give_up_after: Duration) -> RetryPolicy {
        RetryPolicy {
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            give_up_after,
        }
    }

    /// The wait after the `failures`-th failure in a row, counted from 1.
    pub fn backoff(&self, failures: u32) -> Duration {
        let doubled = 1u32
            .checked_shl(failures.saturating_sub(1))
            .unwrap_or(u32::MAX);
        self.backoff_min
            .saturating_mul(doubled)
            .min(self.backoff_max)
    }
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy::until(Duration::from_secs(30))
    }
}

/// What decides whether to try again.
pub(crate) trait Retriable {
    fn may_succeed_later(&self) -> bool;
}

macro_rules! retriable {
    ($($error:ty),+) => {$(
        impl Retriable for $error {
            fn may_succeed_later(&self) -> bool {
                self.is_retriable()
            }
        }
    )+};
}
retriable!(
    RequestError,
    MetadataError,
    crate::error::AdminError,
    crate::error::ConsumeError
);

impl Cluster {
    pub fn new(
        bootstrap: Vec<String>,
        settings: Settings,
        retry: RetryPolicy,
        auto_create: bool,
    ) -> Cluster {
        Cluster {
            bootstrap,
            settings,
            retry,
            auto_create,
            state: Mutex::default(),
            refreshing: tokio::sync::Mutex::new(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Repeats `attempt` while its error may go away and the policy's time lasts.
    pub async fn retrying<T, E: Retriable, F: Future<Output = Result<T, E>>>(
        &self,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, E> {
        let deadline = Instant::now() + self.retry.give_up_after;
        let mut failures = 0;
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            failures += 1;
            let wait = self.retry.backoff(failures);
            if !error.may_succeed_later() || Instant::now() + wait >= deadline {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// An open connection to an address, dialled by one caller while others wait for it.
    pub async fn connection_to(
        &self,
        addr: &str,
        purpose: Purpose,
    ) -> Result<Arc<Connection>, RequestError> {
        let slot = {
            let mut state = self.lock();
            let key = (addr.to_owned(), purpose);
            Arc::clone(state.connections.entry(key).or_default())
        };
        let mut slot = slot.lock().await;
        if let Some(open) = slot.as_ref().filter(|open| !open.is_closed()) {
            return Ok(Arc::clone(open));
        }
        let opened = Arc::new(Connection::open(addr, &self.settings).await?);
        *slot = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// A connection to a broker by its id.
    pub async fn connection(
        &self,
        node: i32,
        purpose: Purpose,
    ) -> Result<Arc<Connection>, RequestError> {
        let addr = self
            .lock()
            .brokers
            .get(&node)
            .map(|broker| broker.addr.clone());
        match addr {
            Some(addr) => self.connection_to(&addr, purpose).await,
            None => Err(RequestError::NoBroker {
                tried: vec![format!("broker {node}, whose address is unknown")],
            }),
        }
    }

    /// A connection to whoever answers: a known broker or one of the bootstrap addresses.
    pub async fn any_connection(&self) -> Result<Arc<Connection>, RequestError> {
        let mut addrs: Vec<String> = self
            .lock()
            .brokers
            .values()
            .map(|broker| broker.addr.clone())
            .collect();
        addrs.extend(self.bootstrap.iter().cloned());
        addrs.dedup();
        let mut failed = Vec::new();
        let mut last = None;
        for addr in &addrs {
            match self.connection_to(addr, Purpose::General).await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    failed.push(error.to_string());
                    last = Some(error);
                }
            }
        }
        match (last, addrs.len()) {
            (Some(only), 1) => Err(only),
            _ => Err(RequestError::NoBroker { tried: failed }),
        }
    }

    /// Asks any broker.
    pub async fn ask_any<R: RequestResponsePair>(
        &self,
        request: &R,
        cap: i16,
    ) -> Result<R::Response, RequestError> {
        let connection = self.any_connection().await?;
        connection
            .call(request, cap, self.settings.request_timeout)
            .await
    }

    /// Asks for the metadata of some topics, or of all.
    pub async fn metadata(
        &self,
        topics: Option<&[&str]>,
    ) -> Result<MetadataResponse, RequestError> {
        self.fetch_metadata(topics, false).await
    }

    async fn fetch_metadata(
        &self,
        topics: Option<&[&str]>,
        create: bool,
    ) -> Result<MetadataResponse, RequestError> {
        let named = |name: &&str| {
            message!(MetadataRequestTopic {
                name: Some((*name).into())
            })
        };
        let request = message!(MetadataRequest {
            topics: topics.map(|names| names.iter().map(named).collect()),
            allow_auto_topic_creation: create,
        });
        let response = self.ask_any(&request, cap::NEWEST).await?;
        self.absorb(&response);
        Ok(response)
    }

    fn absorb(&self, response: &MetadataResponse) {
        let mut state = self.lock();
        let brokers = response.brokers.iter().map(|broker| {
            let addr = format!("{}:{}", broker.host, broker.port);
            let id = broker.node_id;
            (id, BrokerInfo { id, addr })
        });
        state.brokers = brokers.collect();
        for topic in &response.topics {
            let Some(name) = &topic.name else { continue };
            match ErrorCode::from_code(topic.error_code) {
                ErrorCode::None => {
                    let info = Arc::new(topic_info(topic));
                    state.topics.insert(name.to_string(), info);
                }
                ErrorCode::UnknownTopicOrPartition => drop(state.topics.remove(name.as_str())),
                _ => {}
            }
        }
    }

    /// The brokers as of the last metadata.
    pub fn brokers(&self) -> Vec<BrokerInfo> {
        self.lock().brokers.values().cloned().collect()
    }

    /// A topic, from memory or from a broker; waits for one that is being created.
    pub async fn topic(&self, name: &str) -> Result<Arc<TopicInfo>, MetadataError> {
        if let Some(known) = self.lock().topics.get(name) {
            return Ok(Arc::clone(known));
        }
        self.retrying(|| self.refresh(name)).await
    }

    /// A topic, freshly asked for, without waiting for it to come into being.
    pub async fn topic_now(&self, name: &str) -> Result<Arc<TopicInfo>, MetadataError> {
        let response = self.metadata(Some(&[name])).await?;
        topic_of(&response, name)
    }

    /// Asks anew, unless somebody just did.
    pub async fn refresh(&self, name: &str) -> Result<Arc<TopicInfo>, MetadataError> {
        let wanted = Instant::now();
        let _one_at_a_time = self.refreshing.lock().await;
        let recent = self
            .lock()
            .refreshed
            .get(name)
            .is_some_and(|at| *at >= wanted);
        if recent && let Some(known) = self.lock().topics.get(name) {
            return Ok(Arc::clone(known));
        }
        let response = self.fetch_metadata(Some(&[name]), self.auto_create).await?;
        self.lock()
            .refreshed
            .insert(name.to_owned(), Instant::now());
        topic_of(&response, name)
    }

    /// Who leads a partition, as far as is known.
    pub fn leader(&self, topic: &str, partition: i32) -> Option<i32> {
        let state = self.lock();
        let partitions = &state.topics.get(topic)?.partitions;
        let at = partitions
            .binary_search_by_key(&partition, |p| p.index)
            .ok()?;
        partitions.get(at)?.leader
    }

    /// The broker that coordinates a group.
    pub async fn coordinator(&self, group: &str) -> Result<String, RequestError> {
        let request = message!(FindCoordinatorRequest {
            key: group.into(),
            key_type: 0,
        });
        let connection = self.any_connection().await?;
        let timeout = self.settings.request_timeout;
        let response = connection
            .call(&request, cap::FIND_COORDINATOR, timeout)
            .await?;
        match ErrorCode::from_code(response.error_code) {
            ErrorCode::None => Ok(format!("{}:{}", response.host, response.port)),
            code => Err(connection.refused("FindCoordinator", code)),
        }
    }
}

fn topic_of(response: &MetadataResponse, name: &str) -> Result<Arc<TopicInfo>, MetadataError> {
    let mut topics = response.topics.iter();
    let topic = name.to_owned();
    let Some(found) = topics.find(|t| t.name.as_ref().is_some_and(|n| n.as_str() == name)) else {
        return Err(MetadataError::UnknownTopic { topic });
    };
    match ErrorCode::from_code(found.error_code) {
        ErrorCode::None if found.partitions.is_empty() => {
            let code = ErrorCode::LeaderNotAvailable;
            Err(MetadataError::Refused { topic, code })
        }
        ErrorCode::None => Ok(Arc::new(topic_info(found))),
        ErrorCode::UnknownTopicOrPartition => Err(MetadataError::UnknownTopic { topic }),
        code => Err(MetadataError::Refused { topic, code }),
    }
}

pub(crate) fn topic_info(topic: &MetadataResponseTopic) -> TopicInfo {
    let partitions = topic.partitions.iter().map(|partition| PartitionInfo {
        index: partition.partition_index,
        leader: (partition.leader_id >= 0).then_some(partition.leader_id),
        leader_epoch: partition.leader_epoch,
        replicas: partition.replica_nodes.clone(),
        in_sync: partition.isr_nodes.clone(),
    });
    let mut partitions: Vec<PartitionInfo> = partitions.collect();
    partitions.sort_by_key(|partition| partition.index);
    TopicInfo {
        name: topic
            .name
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        id: topic.topic_id.to_bytes(),
        internal: topic.is_internal,
        partitions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let policy = RetryPolicy::until(Duration::from_secs(30));
        let waits: Vec<u128> = (1..8).map(|n| policy.backoff(n).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(policy.backoff(1000), policy.backoff_max);
    }
}
