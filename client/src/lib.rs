//! A Kafka client: topics, a producer, a consumer, consumer groups.
//!
//! ```no_run
//! use logd_client::{Client, NewTopic, Record, StartAt};
//!
//! # async fn tour() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder(["localhost:9092"]).client_id("shop").connect().await?;
//! client.admin().create_topic(&NewTopic::new("orders").partitions(6)).await?;
//!
//! let producer = client.producer().build();
//! let delivery = producer.send("orders", Record::value("42 cents").key("order-7")).await?;
//! println!("stored at {:?}", delivery.await?.offset);
//! assert_eq!(producer.close().await.undelivered, 0);
//!
//! let mut consumer = client.consumer().build();
//! consumer.assign_topic("orders", StartAt::Start).await?;
//! for record in consumer.next_batch().await? {
//!     println!("{}/{}", record.partition, record.offset);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The request path, in the order of the modules: `connection` speaks to one broker,
//! `cluster` knows them all and tries again, the others say what they want of it.
//!
//! Invariants: every wait has a deadline, except the one for records; every buffer has a bound; no
//! answer of a broker makes the client panic.
//!
//! Not here: TLS, SASL and transactions; the command line, which uses this door only.

pub mod error;

mod connection;

mod cluster;

mod admin;
mod offsets;
mod settings;

mod record;

mod producer;

mod assignment;
mod consumer;

use std::sync::Arc;
use std::time::Duration;

pub use admin::{
    Admin, ClusterInfo, CommittedOffset, CreatedTopic, GroupDescription, GroupListing, GroupMember,
    NewTopic,
};
pub use cluster::{BrokerInfo, PartitionInfo, RetryPolicy, TopicInfo};
pub use consumer::{Consumer, ConsumerBuilder, GroupConsumer, GroupConsumerBuilder, StartAt};
pub use logd_proto::ErrorCode;
pub use logd_proto::record_batch::Compression;
pub use offsets::{OffsetAt, OffsetFound};
pub use producer::{Closed, Delivery, Producer, ProducerBuilder, RecordMetadata};
pub use record::{ConsumedRecord, Record, RecordHeader};
pub use settings::{BrokerSetting, SettingApplies, SettingSource};

use cluster::Cluster;
use connection::Settings;
use error::RequestError;

/// A way into a cluster. Cheap to clone; clones share connections and metadata.
#[derive(Clone, Debug)]
pub struct Client {
    cluster: Arc<Cluster>,
}

/// Builds a [`Client`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    bootstrap: Vec<String>,
    client_id: String,
    connect_timeout: Duration,
    request_timeout: Duration,
    retry: RetryPolicy,
    auto_create: bool,
}

impl ClientBuilder {
    /// What brokers call this client in their logs. `logd-client`.
    pub fn client_id(mut self, id: impl Into<String>) -> Self {
        self.client_id = id.into();
        self
    }

    /// How long a connection may take to come about. 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a broker may take to answer. 30 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How often and how long questions are repeated. 30 s. Producers have a policy of their own.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Whether using a topic that is not there may create it, where the broker allows. Not unless said:
    /// a misspelt name should be an error.
    pub fn auto_create_topics(mut self, on: bool) -> Self {
        self.auto_create = on;
        self
    }

    /// Connects to the first address that answers.
    ///
    /// # Errors
    /// When none does; nothing is repeated here, so that a wrong address shows at once.
    pub async fn connect(self) -> Result<Client, RequestError> {
        let settings = Settings {
            client_id: self.client_id.into(),
            connect_timeout: self.connect_timeout,
            request_timeout: self.request_timeout,
        };
        let cluster = Cluster::new(self.bootstrap, settings, self.retry, self.auto_create);
        // Asks for no topic: who the brokers are is enough.
        cluster.metadata(Some(&[])).await?;
        Ok(Client {
            cluster: Arc::new(cluster),
        })
    }
}

impl Client {
    /// A client of the cluster to which these addresses (`host:port`) belong; one that answers is
    /// enough, the others are found.
    pub fn builder<A: Into<String>>(bootstrap: impl IntoIterator<Item = A>) -> ClientBuilder {
        ClientBuilder {
            bootstrap: bootstrap.into_iter().map(Into::into).collect(),
            client_id: "logd-client".to_owned(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            retry: RetryPolicy::default(),
            auto_create: false,
        }
    }

    /// Topics, groups and offsets.
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.cluster))
    }

    /// Sends records.
    pub fn producer(&self) -> ProducerBuilder {
        ProducerBuilder::new(Arc::clone(&self.cluster))
    }

    /// Reads partitions of one's own choice.
    pub fn consumer(&self) -> ConsumerBuilder {
        ConsumerBuilder::new(Arc::clone(&self.cluster))
    }

    /// Reads as a member of a group.
    pub fn group_consumer(&self, group: impl Into<String>) -> GroupConsumerBuilder {
        GroupConsumerBuilder::new(Arc::clone(&self.cluster), group.into())
    }
}
