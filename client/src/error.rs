//! What can go wrong, one enum per operation.
//!
//! Promise: every error says which broker, topic or group it concerns, keeps the Kafka code a broker
//! answered with, and knows whether trying again may help. The library has then already tried until
//! its deadline; `is_retriable` tells a caller whether a later attempt is sensible.
//!
//! Not here: errors of building requests, which would be bugs and surface as
//! [`RequestError::Encode`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use logd_proto::ErrorCode;
use logd_proto::api::{DecodeError, EncodeError};
use logd_proto::record_batch::{BuildError, RecordsError};

/// One request to one broker did not get an answer that can be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// No connection could be made.
    #[error("cannot reach {addr} ({})", words(source))]
    Connect {
        addr: Arc<str>,
        source: Arc<io::Error>,
    },
    /// None of the bootstrap addresses answered.
    #[error("no broker answered: {}", tried.join("; "))]
    NoBroker { tried: Vec<String> },
    /// The connection ended before the answer came.
    #[error("connection to {addr} closed: {reason}")]
    Closed { addr: Arc<str>, reason: Arc<str> },
    /// No answer in time. The broker may or may not have done what was asked.
    #[error("no answer from {addr} to {api} within {after:?}")]
    Timeout {
        addr: Arc<str>,
        api: &'static str,
        after: Duration,
    },
    /// The broker speaks no version of the request that we speak.
    #[error("{addr} offers no version of {api} that this client speaks")]
    Unsupported { addr: Arc<str>, api: &'static str },
    /// The answer could not be read.
    #[error("{addr} sent a malformed answer: {source}")]
    Malformed { addr: Arc<str>, source: DecodeError },
    /// The request could not be written: a value has no place in the version both sides speak.
    #[error("cannot encode the request: {0}")]
    Encode(EncodeError),
    /// The broker refused the request as a whole.
    #[error("{addr} refused {api}: {}", name(*code))]
    Refused {
        addr: Arc<str>,
        api: &'static str,
        code: ErrorCode,
    },
}

impl RequestError {
    /// Whether the same request may succeed later or elsewhere.
    pub fn is_retriable(&self) -> bool {
        match self {
            RequestError::Connect { .. }
            | RequestError::NoBroker { .. }
            | RequestError::Closed { .. }
            | RequestError::Timeout { .. } => true,
            RequestError::Refused { code, .. } => code.is_retriable(),
            _ => false,
        }
    }

    /// The code the broker answered with, if it answered.
    pub fn kafka_code(&self) -> Option<ErrorCode> {
        match self {
            RequestError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether nobody could be talked to, as opposed to a refusal.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            RequestError::Connect { .. }
                | RequestError::NoBroker { .. }
                | RequestError::Closed { .. }
                | RequestError::Timeout { .. }
        )
    }
}

/// An operating system's error in words, without its number where there are words for it.
fn words(error: &io::Error) -> String {
    use io::ErrorKind as Kind;
    match error.kind() {
        kind @ (Kind::ConnectionRefused
        | Kind::ConnectionReset
        | Kind::HostUnreachable
        | Kind::NetworkUnreachable
        | Kind::TimedOut) => kind.to_string(),
        _ => error.to_string(),
    }
}

/// A Kafka code as users know it: `TOPIC_ALREADY_EXISTS (36)`.
pub(crate) fn name(code: ErrorCode) -> String {
    format!("{} ({})", code.name(), code.code())
}

/// Finding out about topics, partitions or offsets failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The broker knows no such topic.
    #[error("topic {topic:?} does not exist")]
    UnknownTopic { topic: String },
    /// The topic has no such partition.
    #[error("topic {topic:?} has no partition {partition}")]
    UnknownPartition { topic: String, partition: i32 },
    /// Nobody leads the partition at the moment.
    #[error("{topic}/{partition} has no leader")]
    NoLeader { topic: String, partition: i32 },
    /// The broker refused to tell.
    #[error("{topic}: {}", name(*code))]
    Refused { topic: String, code: ErrorCode },
}

impl MetadataError {
    /// Whether it may be different soon.
    pub fn is_retriable(&self) -> bool {
        match self {
            MetadataError::Request(error) => error.is_retriable(),
            MetadataError::Refused { code, .. } => code.is_retriable(),
            MetadataError::NoLeader { .. } => true,
            // A topic that another client created a moment ago may not be known everywhere yet.
            MetadataError::UnknownTopic { .. } => true,
            MetadataError::UnknownPartition { .. } => false,
        }
    }

    /// The code the broker answered with, if it answered.
    pub fn kafka_code(&self) -> Option<ErrorCode> {
        match self {
            MetadataError::Request(error) => error.kafka_code(),
            MetadataError::UnknownTopic { .. } => Some(ErrorCode::UnknownTopicOrPartition),
            MetadataError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// An administrative request failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The broker answered with an error.
    #[error("{subject}: {}{}", name(*code), message.as_deref().map(|m| format!(": {m}")).unwrap_or_default())]
    Refused {
        /// The topic or group it is about.
        subject: String,
        code: ErrorCode,
        /// What the broker said beyond the code.
        message: Option<String>,
    },
    /// The answer does not mention what was asked.
    #[error("the broker's answer says nothing about {subject}")]
    Missing { subject: String },
}

impl AdminError {
    /// Whether a later attempt may succeed.
    pub fn is_retriable(&self) -> bool {
        match self {
            AdminError::Request(error) => error.is_retriable(),
            AdminError::Metadata(error) => error.is_retriable(),
            AdminError::Refused { code, .. } => code.is_retriable(),
            AdminError::Missing { .. } => false,
        }
    }

    /// The code the broker answered with, if it answered.
    pub fn kafka_code(&self) -> Option<ErrorCode> {
        match self {
            AdminError::Request(error) => error.kafka_code(),
            AdminError::Metadata(error) => error.kafka_code(),
            AdminError::Refused { code, .. } => Some(*code),
            AdminError::Missing { .. } => None,
        }
    }

    pub(crate) fn check(subject: &str, code: i16, message: Option<&str>) -> Result<(), AdminError> {
        match ErrorCode::from_code(code) {
            ErrorCode::None => Ok(()),
            code => Err(AdminError::Refused {
                subject: subject.to_owned(),
                code,
                message: message.map(str::to_owned),
            }),
        }
    }
}

/// A record was not taken over by the producer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// Larger than one batch may be.
    #[error("record of {bytes} bytes, the limit is {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// The record cannot be encoded.
    #[error("record cannot be encoded: {0}")]
    Encode(Arc<BuildError>),
    /// The producer was closed.
    #[error("the producer is closed")]
    Closed,
}

impl SendError {
    /// Whether the same record may be taken later.
    pub fn is_retriable(&self) -> bool {
        matches!(self, SendError::Metadata(error) if error.is_retriable())
    }

    /// The code the broker answered with, if it answered.
    pub fn kafka_code(&self) -> Option<ErrorCode> {
        match self {
            SendError::Metadata(error) => error.kafka_code(),
            _ => None,
        }
    }
}

/// A record that the producer had taken over was not acknowledged.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeliveryError {
    /// The broker refused the batch; it is not in the log.
    #[error("{topic}/{partition} refused the batch: {}{}", name(*code), message.as_deref().map(|m| format!(": {m}")).unwrap_or_default())]
    Refused {
        topic: Arc<str>,
        partition: i32,
        code: ErrorCode,
        message: Option<String>,
    },
    /// No acknowledgement before the delivery timeout. The record may be in the log.
    #[error("{topic}/{partition}: not acknowledged within {after:?}; last error: {last}")]
    Expired {
        topic: Arc<str>,
        partition: i32,
        after: Duration,
        last: Arc<str>,
    },
    /// An earlier batch of the partition failed for good, and order is a promise.
    #[error("{topic}/{partition}: given up because an earlier batch failed: {cause}")]
    Behind {
        topic: Arc<str>,
        partition: i32,
        cause: Arc<str>,
    },
    /// No broker gave out a producer id.
    #[error("no producer id: {0}")]
    NoProducerId(RequestError),
    /// The batch could not be encoded, or its request not be written.
    #[error("the batch cannot be sent: {0}")]
    Encode(Arc<str>),
    /// The producer ended before the record was acknowledged.
    #[error("the producer was closed before the record was acknowledged")]
    Closed,
}

impl DeliveryError {
    /// Whether sending the record again makes sense. After [`DeliveryError::Expired`] it may lead to a
    /// duplicate.
    pub fn is_retriable(&self) -> bool {
        match self {
            DeliveryError::Refused { code, .. } => code.is_retriable(),
            DeliveryError::Expired { .. } | DeliveryError::Behind { .. } => true,
            DeliveryError::NoProducerId(error) => error.is_retriable(),
            DeliveryError::Encode(_) | DeliveryError::Closed => false,
        }
    }

    /// The code the broker answered with, if it answered.
    pub fn kafka_code(&self) -> Option<ErrorCode> {
        match self {
            DeliveryError::Refused { code, .. } => Some(*code),
            DeliveryError::NoProducerId(error) => error.kafka_code(),
            _ => None,
        }
    }
}

/// Reading a partition failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumeError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The position lies outside of the log, and the consumer was not told where to go instead.
    #[error("{topic}/{partition}: offset {offset} is outside of the log")]
    OutOfRange {
        topic: Arc<str>,
        partition: i32,
        offset: i64,
    },
    /// The broker refused.
    #[error("{topic}/{partition}: {}", name(*code))]
    Refused {
        topic: Arc<str>,
        partition: i32,
        code: ErrorCode,
    },
    /// Records that cannot be read. The position stays before them.
    #[error("{topic}/{partition} at offset {offset}: {source}")]
    Corrupt {
        topic: Arc<str>,
        partition: i32,
        offset: i64,
        source: Arc<RecordsError>,
    },
    /// The group refused.
    #[error("group {group:?}: {}", name(*code))]
    Group { group: Arc<str>, code: ErrorCode },
    /// A member of the group sent something unreadable.
    #[error("group {group:?}: {what}")]
    GroupProtocol { group: Arc<str>, what: String },
}

impl ConsumeError {
    /// Whether going on may succeed.
    pub fn is_retriable(&self) -> bool {
        match self {
            ConsumeError::Metadata(error) => error.is_retriable(),
            ConsumeError::Request(error) => error.is_retriable(),
            ConsumeError::Refused { code, .. } | ConsumeError::Group { code, .. } => {
                code.is_retriable()
            }
            _ => false,
        }
    }

    /// The code the broker answered with, if it answered.
    pub fn kafka_code(&self) -> Option<ErrorCode> {
        match self {
            ConsumeError::Metadata(error) => error.kafka_code(),
            ConsumeError::Request(error) => error.kafka_code(),
            ConsumeError::OutOfRange { .. } => Some(ErrorCode::OffsetOutOfRange),
            ConsumeError::Refused { code, .. } | ConsumeError::Group { code, .. } => Some(*code),
            _ => None,
        }
    }
}
