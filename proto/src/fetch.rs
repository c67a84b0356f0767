//! Fetch, by hand: the response is a gather list in which the record slices keep their own memory, so
//! that bytes go from the log to the socket without being copied.
//!
//! | versions | what they added |
//! |---|---|
//! | 4 | isolation level, last stable offset, aborted transactions |
//! | 5 | log start offset |
//! | 7 | fetch sessions |
//! | 9 | the leader epoch the client believes in |
//! | 11 | rack, preferred read replica |
//! | 12 | flexible encoding; last fetched epoch, diverging epoch, current leader |
//! | 13 | topics by id instead of by name |
//! | 15 | a follower names itself in a tagged field |
//! | 16 | endpoints of current leaders |
//! | 17, 18 | fields of followers only |
//!
//! Invariant: record slices are never looked at; the sizes around them are exact.
//!
//! Not here: which bytes to send, and when.

use bytes::Bytes;

use crate::leader::{CurrentLeader, NodeEndpoint, put_endpoints_tag};
use crate::wire::{Gather, ReadError, Reader};
use crate::{ErrorCode, StrBytes, Uuid};

const FLEXIBLE_FROM: i16 = 12;
const TOPIC_IDS_FROM: i16 = 13;
const REPLICA_STATE_FROM: i16 = 15;

/// What a consumer wants to read, and how long it is ready to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// -1 for consumers; a follower's broker id.
    pub replica_id: i32,
    /// How long to wait for `min_bytes`.
    pub max_wait_ms: i32,
    /// Answer at once when so much is there.
    pub min_bytes: i32,
    /// Send no more than this, except for one batch that is larger.
    pub max_bytes: i32,
    /// 0: everything below the high watermark; 1: below the last stable offset.
    pub isolation_level: i8,
    /// The fetch session, 0 for none (version 7 and up).
    pub session_id: i32,
    /// The request's number within its session; -1: outside of sessions (version 7 and up).
    pub session_epoch: i32,
    /// What to read.
    pub topics: Vec<FetchTopic>,
    /// What to drop from the session (version 7 and up).
    pub forgotten_topics: Vec<ForgottenTopic>,
    /// The consumer's rack (version 11 and up).
    pub rack_id: StrBytes,
}

/// What to read of one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchTopic {
    /// Its name; empty from version 13 on.
    pub name: StrBytes,
    /// Its id; zero below version 13.
    pub topic_id: Uuid,
    /// The partitions to read.
    pub partitions: Vec<FetchPartition>,
}

/// What to read of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchPartition {
    /// Which partition.
    pub partition: i32,
    /// The epoch the client believes to be current, -1 if it does not care (version 9 and up).
    pub current_leader_epoch: i32,
    /// Read from here.
    pub fetch_offset: i64,
    /// The epoch of the last record the client has, -1 for none (version 12 and up).
    pub last_fetched_epoch: i32,
    /// Where a follower's log starts, -1 for consumers.
    pub log_start_offset: i64,
    /// Send no more than this of the partition, except for one batch that is larger.
    pub partition_max_bytes: i32,
}

/// What a session no longer wants of one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForgottenTopic {
    /// Its name; empty from version 13 on.
    pub name: StrBytes,
    /// Its id; zero below version 13.
    pub topic_id: Uuid,
    /// The partitions to drop.
    pub partitions: Vec<i32>,
}

impl FetchRequest {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// When the bytes are not a Fetch request of that version.
    pub fn read(body: Bytes, version: i16) -> Result<FetchRequest, ReadError> {
        let flexible = version >= FLEXIBLE_FROM;
        let mut reader = Reader::new(body);
        let mut request = read_limits(&mut reader, version)?;
        request.topics = reader.array_of(flexible, 3, |reader| read_topic(reader, version))?;
        if version >= 7 {
            request.forgotten_topics =
                reader.array_of(flexible, 3, |reader| read_forgotten(reader, version))?;
        }
        if version >= 11 {
            request.rack_id = reader.string(flexible)?;
        }
        // Tag 0 is a cluster id, which only followers send.
        let replica_id = &mut request.replica_id;
        reader.tags(flexible, |tag, field| {
            if tag == 1 && version >= REPLICA_STATE_FROM {
                *replica_id = field.i32()?;
            }
            Ok(())
        })?;
        Ok(request)
    }
}

fn read_limits(reader: &mut Reader, version: i16) -> Result<FetchRequest, ReadError> {
    let replica_id = if version < REPLICA_STATE_FROM {
        reader.i32()?
    } else {
        -1
    };
    let mut request = FetchRequest {
        replica_id,
        max_wait_ms: reader.i32()?,
        min_bytes: reader.i32()?,
        max_bytes: reader.i32()?,
        isolation_level: reader.i8()?,
        session_id: 0,
        session_epoch: -1,
        topics: Vec::new(),
        forgotten_topics: Vec::new(),
        rack_id: StrBytes::default(),
    };
    if version >= 7 {
        request.session_id = reader.i32()?;
        request.session_epoch = reader.i32()?;
    }
    Ok(request)
}

fn read_topic(reader: &mut Reader, version: i16) -> Result<FetchTopic, ReadError> {
    let flexible = version >= FLEXIBLE_FROM;
    let (name, topic_id) = read_topic_reference(reader, version)?;
    // Two integers and an offset are in every version.
    let partitions = reader.array_of(flexible, 16, |reader| read_partition(reader, version))?;
    reader.skip_tags(flexible)?;
    Ok(FetchTopic {
        name,
        topic_id,
        partitions,
    })
}

fn read_topic_reference(reader: &mut Reader, version: i16) -> Result<(StrBytes, Uuid), ReadError> {
    if version >= TOPIC_IDS_FROM {
        Ok((StrBytes::default(), reader.uuid()?))
    } else {
        Ok((reader.string(version >= FLEXIBLE_FROM)?, Uuid::ZERO))
    }
}

fn read_partition(reader: &mut Reader, version: i16) -> Result<FetchPartition, ReadError> {
    let partition = FetchPartition {
        partition: reader.i32()?,
        current_leader_epoch: if version >= 9 { reader.i32()? } else { -1 },
        fetch_offset: reader.i64()?,
        last_fetched_epoch: if version >= FLEXIBLE_FROM {
            reader.i32()?
        } else {
            -1
        },
        log_start_offset: if version >= 5 { reader.i64()? } else { -1 },
        partition_max_bytes: reader.i32()?,
    };
    // Tags 0 and 1 are a follower's directory and high watermark.
    reader.skip_tags(version >= FLEXIBLE_FROM)?;
    Ok(partition)
}

fn read_forgotten(reader: &mut Reader, version: i16) -> Result<ForgottenTopic, ReadError> {
    let flexible = version >= FLEXIBLE_FROM;
    let (name, topic_id) = read_topic_reference(reader, version)?;
    let partitions = reader.array_of(flexible, 4, Reader::i32)?;
    reader.skip_tags(flexible)?;
    Ok(ForgottenTopic {
        name,
        topic_id,
        partitions,
    })
}

/// Records, with what a consumer needs to know about where they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchResponse {
    /// How long the client should hold back.
    pub throttle_time_ms: i32,
    /// What was wrong with the request as a whole (version 7 and up).
    pub error: ErrorCode,
    /// The fetch session, 0 for none (version 7 and up).
    pub session_id: i32,
    /// The answers.
    pub topics: Vec<FetchTopicResponse>,
    /// Endpoints of the leaders named below (version 16 and up).
    pub node_endpoints: Vec<NodeEndpoint>,
}

/// The answers for one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchTopicResponse {
    /// Its name (below version 13).
    pub name: StrBytes,
    /// Its id (version 13 and up).
    pub topic_id: Uuid,
    /// The answers by partition.
    pub partitions: Vec<FetchPartitionResponse>,
}

/// The answer for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchPartitionResponse {
    /// Which partition.
    pub partition: i32,
    /// What went wrong, if anything.
    pub error: ErrorCode,
    /// Consumers can read below this offset; -1 if unknown.
    pub high_watermark: i64,
    /// All transactions below this offset are decided; -1 if unknown.
    pub last_stable_offset: i64,
    /// The first offset there is; -1 if unknown (version 5 and up).
    pub log_start_offset: i64,
    /// Where the client's log differs from ours (version 12 and up).
    pub diverging_epoch: Option<EpochEnd>,
    /// Who leads instead (version 12 and up).
    pub current_leader: Option<CurrentLeader>,
    /// Transactions whose records a reader of committed data must skip; null when it reads all.
    pub aborted_transactions: Option<Vec<AbortedTransaction>>,
    /// A nearer broker to read from, or -1 (version 11 and up).
    pub preferred_read_replica: i32,
    /// Record batches, in order; the last one may be cut.
    pub records: Vec<Bytes>,
}

/// The largest epoch both sides know, and where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEnd {
    /// The epoch.
    pub epoch: i32,
    /// The offset after its last record.
    pub end_offset: i64,
}

/// One aborted transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedTransaction {
    /// Whose it was.
    pub producer_id: i64,
    /// Its first record's offset.
    pub first_offset: i64,
}

impl FetchPartitionResponse {
    /// An answer without records: everything unknown but the error.
    pub fn failed(partition: i32, error: ErrorCode) -> Self {
        FetchPartitionResponse {
            partition,
            error,
            high_watermark: -1,
            last_stable_offset: -1,
            log_start_offset: -1,
            diverging_epoch: None,
            current_leader: None,
            aborted_transactions: None,
            preferred_read_replica: -1,
            records: Vec::new(),
        }
    }

    /// Bytes of records in this answer.
    pub fn record_bytes(&self) -> usize {
        self.records
            .iter()
            .fold(0, |sum, slice| sum.saturating_add(slice.len()))
    }
}

impl FetchResponse {
    pub(crate) fn put(self, out: &mut Gather, version: i16) {
        let flexible = version >= FLEXIBLE_FROM;
        out.i32(self.throttle_time_ms);
        if version >= 7 {
            out.i16(self.error.code());
            out.i32(self.session_id);
        }
        out.array_length(flexible, Some(self.topics.len()));
        for topic in self.topics {
            put_topic(out, version, topic);
        }
        if version >= 16 {
            put_endpoints_tag(out, &self.node_endpoints);
        } else {
            out.no_tags(flexible);
        }
    }
}

fn put_topic(out: &mut Gather, version: i16, topic: FetchTopicResponse) {
    let flexible = version >= FLEXIBLE_FROM;
    if version >= TOPIC_IDS_FROM {
        out.uuid(topic.topic_id);
    } else {
        out.string(flexible, &topic.name);
    }
    out.array_length(flexible, Some(topic.partitions.len()));
    for partition in topic.partitions {
        put_partition(out, version, partition);
    }
    out.no_tags(flexible);
}

fn put_partition(out: &mut Gather, version: i16, partition: FetchPartitionResponse) {
    let flexible = version >= FLEXIBLE_FROM;
    out.i32(partition.partition);
    out.i16(partition.error.code());
    out.i64(partition.high_watermark);
    out.i64(partition.last_stable_offset);
    if version >= 5 {
        out.i64(partition.log_start_offset);
    }
    put_aborted(out, flexible, partition.aborted_transactions.as_deref());
    if version >= 11 {
        out.i32(partition.preferred_read_replica);
    }
    out.bytes_length(flexible, Some(partition.record_bytes()));
    for slice in partition.records {
        out.slice(slice);
    }
    if flexible {
        put_partition_tags(out, partition.diverging_epoch, partition.current_leader);
    }
}

fn put_aborted(out: &mut Gather, flexible: bool, aborted: Option<&[AbortedTransaction]>) {
    out.array_length(flexible, aborted.map(<[_]>::len));
    for transaction in aborted.unwrap_or_default() {
        out.i64(transaction.producer_id);
        out.i64(transaction.first_offset);
        out.no_tags(flexible);
    }
}

fn put_partition_tags(
    out: &mut Gather,
    diverging: Option<EpochEnd>,
    leader: Option<CurrentLeader>,
) {
    let count = u32::from(diverging.is_some()).saturating_add(u32::from(leader.is_some()));
    out.unsigned_varint(count);
    if let Some(end) = diverging {
        out.tag(0, |out| {
            out.i32(end.epoch);
            out.i64(end.end_offset);
            out.no_tags(true);
        });
    }
    if let Some(leader) = leader {
        out.tag(1, |out| leader.put(out));
    }
}
