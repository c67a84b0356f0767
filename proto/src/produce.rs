//! Produce, by hand: the request borrows its record bytes from the frame, the response is a few bytes
//! per partition.
//!
//! | versions | what they added |
//! |---|---|
//! | 3 | transactional id; batches of magic 2 |
//! | 5 | log start offset in the response |
//! | 7 | zstd may be used |
//! | 8 | errors per record, error message |
//! | 9 | flexible encoding |
//! | 10 | current leader and its endpoint |
//! | 13 | topics by id instead of by name |
//!
//! Invariant: `records` is a slice of the frame it came in; nobody copied it.
//!
//! Not here: what is inside the records ([`crate::record_batch`]), and versions 0 to 2, which are
//! advertised but not served: old librdkafka versions would otherwise silently stop compressing.

use bytes::Bytes;

use crate::leader::{CurrentLeader, NodeEndpoint, put_endpoints_tag};
use crate::wire::{Gather, ReadError, Reader};
use crate::{ErrorCode, StrBytes, Uuid};

const FLEXIBLE_FROM: i16 = 9;
const TOPIC_IDS_FROM: i16 = 13;

/// Records to append, by topic and partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProduceRequest {
    /// Set by transactional producers.
    pub transactional_id: Option<StrBytes>,
    /// 0: no answer wanted; 1: the leader; -1: all replicas. Anything else is the client's error.
    pub acks: i16,
    /// How long the client is ready to wait for the replicas.
    pub timeout_ms: i32,
    /// The records.
    pub topics: Vec<ProduceTopic>,
}

/// The records for one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProduceTopic {
    /// Its name; empty from version 13 on.
    pub name: StrBytes,
    /// Its id; zero below version 13.
    pub topic_id: Uuid,
    /// The records by partition.
    pub partitions: Vec<ProducePartition>,
}

/// The records for one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducePartition {
    /// Which partition.
    pub index: i32,
    /// One record batch, sharing the frame's memory. A null one is the client's error.
    pub records: Option<Bytes>,
}

impl ProduceRequest {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// When the bytes are not a Produce request of that version.
    pub fn read(body: Bytes, version: i16) -> Result<ProduceRequest, ReadError> {
        let flexible = version >= FLEXIBLE_FROM;
        let mut reader = Reader::new(body);
        let request = ProduceRequest {
            transactional_id: reader.nullable_string(flexible)?,
            acks: reader.i16()?,
            timeout_ms: reader.i32()?,
            topics: reader.array_of(flexible, 3, |reader| read_topic(reader, version))?,
        };
        reader.skip_tags(flexible)?;
        Ok(request)
    }
}

fn read_topic(reader: &mut Reader, version: i16) -> Result<ProduceTopic, ReadError> {
    let flexible = version >= FLEXIBLE_FROM;
    let mut topic = ProduceTopic::default();
    if version >= TOPIC_IDS_FROM {
        topic.topic_id = reader.uuid()?;
    } else {
        topic.name = reader.string(flexible)?;
    }
    topic.partitions = reader.array_of(flexible, 6, |reader| {
        let index = reader.i32()?;
        let records = reader.nullable_bytes(flexible)?;
        reader.skip_tags(flexible)?;
        Ok(ProducePartition { index, records })
    })?;
    reader.skip_tags(flexible)?;
    Ok(topic)
}

/// What became of the records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProduceResponse {
    /// The answers, in any order.
    pub topics: Vec<ProduceTopicResponse>,
    /// How long the client should hold back.
    pub throttle_time_ms: i32,
    /// Endpoints of the leaders named below (version 10 and up).
    pub node_endpoints: Vec<NodeEndpoint>,
}

/// The answers for one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProduceTopicResponse {
    /// Its name (below version 13).
    pub name: StrBytes,
    /// Its id (version 13 and up).
    pub topic_id: Uuid,
    /// The answers by partition.
    pub partitions: Vec<ProducePartitionResponse>,
}

/// The answer for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducePartitionResponse {
    /// Which partition.
    pub index: i32,
    /// What went wrong, if anything.
    pub error: ErrorCode,
    /// The offset of the first record, or -1.
    pub base_offset: i64,
    /// The broker's timestamp where the topic uses append time, otherwise -1.
    pub log_append_time_ms: i64,
    /// Where the log starts, or -1 (version 5 and up).
    pub log_start_offset: i64,
    /// Which records were at fault (version 8 and up).
    pub record_errors: Vec<RecordError>,
    /// What was wrong with them together (version 8 and up).
    pub error_message: Option<StrBytes>,
    /// Who leads instead (version 10 and up).
    pub current_leader: Option<CurrentLeader>,
}

/// One record that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordError {
    /// Its position in the batch.
    pub batch_index: i32,
    /// Why.
    pub message: Option<StrBytes>,
}

impl ProducePartitionResponse {
    /// Appended at `base_offset`, under the record's own timestamps.
    pub fn appended(index: i32, base_offset: i64, log_start_offset: i64) -> Self {
        ProducePartitionResponse {
            base_offset,
            log_start_offset,
            ..ProducePartitionResponse::failed(index, ErrorCode::None)
        }
    }

    /// Not appended.
    pub fn failed(index: i32, error: ErrorCode) -> Self {
        ProducePartitionResponse {
            index,
            error,
            base_offset: -1,
            log_append_time_ms: -1,
            log_start_offset: -1,
            record_errors: Vec::new(),
            error_message: None,
            current_leader: None,
        }
    }
}

impl ProduceResponse {
    pub(crate) fn put(&self, out: &mut Gather, version: i16) {
        let flexible = version >= FLEXIBLE_FROM;
        out.array_length(flexible, Some(self.topics.len()));
        for topic in &self.topics {
            put_topic(out, version, topic);
        }
        out.i32(self.throttle_time_ms);
        if version >= 10 {
            put_endpoints_tag(out, &self.node_endpoints);
        } else {
            out.no_tags(flexible);
        }
    }
}

fn put_topic(out: &mut Gather, version: i16, topic: &ProduceTopicResponse) {
    let flexible = version >= FLEXIBLE_FROM;
    if version >= TOPIC_IDS_FROM {
        out.uuid(topic.topic_id);
    } else {
        out.string(flexible, &topic.name);
    }
    out.array_length(flexible, Some(topic.partitions.len()));
    for partition in &topic.partitions {
        put_partition(out, version, partition);
    }
    out.no_tags(flexible);
}

fn put_partition(out: &mut Gather, version: i16, partition: &ProducePartitionResponse) {
    let flexible = version >= FLEXIBLE_FROM;
    out.i32(partition.index);
    out.i16(partition.error.code());
    out.i64(partition.base_offset);
    out.i64(partition.log_append_time_ms);
    if version >= 5 {
        out.i64(partition.log_start_offset);
    }
    if version >= 8 {
        out.array_length(flexible, Some(partition.record_errors.len()));
        for error in &partition.record_errors {
            out.i32(error.batch_index);
            out.nullable_string(flexible, error.message.as_deref());
            out.no_tags(flexible);
        }
        out.nullable_string(flexible, partition.error_message.as_deref());
    }
    match partition.current_leader {
        Some(leader) if version >= 10 => {
            out.unsigned_varint(1);
            out.tag(0, |out| leader.put(out));
        }
        _ => out.no_tags(flexible),
    }
}
