//! The record batch of magic 2, the unit in which records travel, are stored and are checked.
//!
//! ```text
//!  0 base offset       i64 | outside the checksum: a broker writes both
//!  8 batch length      i32 | counts the bytes after itself
//! 12 leader epoch      i32 | outside the checksum
//! 16 magic             i8  | 2
//! 17 crc               u32 | CRC-32C of everything from here on
//! 21 attributes        i16 | bits 0-2 codec, 3 append time, 4 transactional, 5 control, 6 delete horizon
//! 23 last offset delta i32
//! 27 base timestamp    i64
//! 35 max timestamp     i64
//! 43 producer id       i64 | -1: neither idempotent nor transactional
//! 51 producer epoch    i16
//! 53 base sequence     i32
//! 57 record count      i32
//! 61 records, compressed together
//! ```
//!
//! Invariant: a batch that [`validate`] accepted is one whole batch from a client whose header is
//! consistent and whose checksum is right; [`validate_records`] extends that to every record inside.
//! Neither copies, and the producer's compressed bytes are kept as they are.
//!
//! Not here: sequence numbers against what was seen before, and the clock: both are a partition's.

mod builder;
mod compression;
mod recompress;
mod records;
mod retain;

use bytes::{Buf, Bytes, BytesMut};

use crate::ErrorCode;

pub use builder::{BatchBuilder, BuildError};
pub use compression::{Codec, Compression, CompressionError, compress, decompress};
pub use recompress::recompressed;
pub use records::{
    Header, Headers, Record, RecordIter, RecordRules, Records, RecordsError, RecordsSummary,
    validate_records,
};
pub use retain::{RetainError, Retained, retain};

/// Bytes of a batch before its records.
pub const HEADER_BYTES: usize = 61;

/// Bytes before and including the batch length, which does not count them.
const LENGTH_OVERHEAD: usize = 12;

/// Where the checksummed bytes begin.
const CHECKSUMMED_FROM: usize = 21;

const MAGIC_AT: usize = 16;

/// "There is no producer id", and likewise no epoch, sequence or timestamp.
pub const NONE: i64 = -1;

/// The attribute bits of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes(pub i16);

impl Attributes {
    const CODEC: i16 = 0x07;
    const LOG_APPEND_TIME: i16 = 0x08;
    const TRANSACTIONAL: i16 = 0x10;
    const CONTROL: i16 = 0x20;
    const DELETE_HORIZON: i16 = 0x40;

    /// How the records are compressed; `None` for a codec Kafka does not define.
    pub const fn compression(self) -> Option<Compression> {
        Compression::from_id((self.0 & Self::CODEC) as u8)
    }

    /// Whether the broker's clock gave the records their timestamp.
    pub const fn is_log_append_time(self) -> bool {
        self.0 & Self::LOG_APPEND_TIME != 0
    }

    /// Whether the records belong to a transaction.
    pub const fn is_transactional(self) -> bool {
        self.0 & Self::TRANSACTIONAL != 0
    }

    /// Whether the batch holds a marker for brokers and clients instead of records for applications.
    pub const fn is_control(self) -> bool {
        self.0 & Self::CONTROL != 0
    }

    /// Whether the base timestamp is the time until which tombstones are kept.
    pub const fn has_delete_horizon(self) -> bool {
        self.0 & Self::DELETE_HORIZON != 0
    }
}

/// The header of a batch, by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The offset of the first record.
    pub base_offset: i64,
    /// Bytes after the length field.
    pub batch_length: i32,
    /// The epoch of the leader that appended it.
    pub partition_leader_epoch: i32,
    /// CRC-32C of everything from the attributes on.
    pub crc: u32,
    /// Codec and flags.
    pub attributes: Attributes,
    /// The last record's offset, from the base offset.
    pub last_offset_delta: i32,
    /// The first record's timestamp.
    pub base_timestamp: i64,
    /// The largest timestamp.
    pub max_timestamp: i64,
    /// The producer, or -1.
    pub producer_id: i64,
    /// Its epoch, or -1.
    pub producer_epoch: i16,
    /// The first record's sequence number, or -1.
    pub base_sequence: i32,
    /// How many records there are.
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`, believing all of it but the magic and the length.
    ///
    /// # Errors
    /// When the bytes end too soon, are of another magic, or the length cannot be a batch's.
    pub fn parse(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        match bytes.get(MAGIC_AT) {
            Some(2) => {}
            Some(&magic) => return Err(BatchError::Magic(magic as i8)),
            None => {
                return Err(BatchError::Truncated {
                    needed: HEADER_BYTES,
                    got: bytes.len(),
                });
            }
        }
        let Some(mut head) = bytes.get(..HEADER_BYTES) else {
            return Err(BatchError::Truncated {
                needed: HEADER_BYTES,
                got: bytes.len(),
            });
        };
        let base_offset = head.get_i64();
        let batch_length = head.get_i32();
        let partition_leader_epoch = head.get_i32();
        let _magic = head.get_i8();
        let header = BatchHeader {
            base_offset,
            batch_length,
            partition_leader_epoch,
            crc: head.get_u32(),
            attributes: Attributes(head.get_i16()),
            last_offset_delta: head.get_i32(),
            base_timestamp: head.get_i64(),
            max_timestamp: head.get_i64(),
            producer_id: head.get_i64(),
            producer_epoch: head.get_i16(),
            base_sequence: head.get_i32(),
            record_count: head.get_i32(),
        };
        if header.size() < HEADER_BYTES {
            return Err(BatchError::Length {
                announced: batch_length,
            });
        }
        Ok(header)
    }

    /// All bytes of the batch.
    pub fn size(&self) -> usize {
        usize::try_from(self.batch_length)
            .map_or(0, |length| length.saturating_add(LENGTH_OVERHEAD))
    }

    /// The offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.base_offset
            .saturating_add(i64::from(self.last_offset_delta))
    }

    /// The offset after the last record.
    pub fn next_offset(&self) -> i64 {
        self.last_offset().saturating_add(1)
    }

    /// Whether a producer numbered the records.
    pub fn has_producer(&self) -> bool {
        self.producer_id > NONE
    }

    /// The last record's sequence number. Numbers go from `i32::MAX` to 0.
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence < 0 {
            return self.base_sequence;
        }
        self.base_sequence.wrapping_add(self.last_offset_delta) & i32::MAX
    }
}

/// What a partition accepts from a client.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// `max.message.bytes`: the whole batch, as compressed by the producer.
    pub size_bytes_max: usize,
    /// Timestamps after this are refused (`message.timestamp.after.max.ms` from now).
    pub timestamp_max: i64,
    /// Timestamps before this are refused (`message.timestamp.before.max.ms` until now).
    pub timestamp_min: i64,
    /// Whether zstd may be used: from version 7 of Produce on.
    pub zstd: bool,
}

impl BatchLimits {
    /// No limit but the size.
    pub const fn size(size_bytes_max: usize) -> BatchLimits {
        let (timestamp_min, timestamp_max) = (i64::MIN, i64::MAX);
        BatchLimits {
            size_bytes_max,
            timestamp_max,
            timestamp_min,
            zstd: true,
        }
    }
}

/// Why bytes are not a batch that a client may append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// No records at all.
    #[error("no record batch")]
    Missing,
    /// The bytes end before the batch does.
    #[error("record batch cut short: {needed} bytes needed, {got} there")]
    Truncated { needed: usize, got: usize },
    /// A format that is not the one of today.
    #[error("record batch of magic {0}: {advice}", advice = magic_advice(*.0))]
    Magic(i8),
    /// A length that leaves no room for the header.
    #[error("record batch announces the impossible length {announced}")]
    Length { announced: i32 },
    /// Bytes follow the batch.
    #[error("more than one record batch for a partition")]
    NotAlone,
    /// Larger than the topic's limit.
    #[error("record batch of {size} bytes, the topic's max.message.bytes is {limit}")]
    TooLarge { size: usize, limit: usize },
    /// The bytes changed on their way.
    #[error("record batch checksum is {computed:#010x}, the batch says {announced:#010x}")]
    Checksum { announced: u32, computed: u32 },
    /// The count and the last offset contradict each other, or there is nothing.
    #[error("record batch of {count} records whose last offset delta is {last_offset_delta}")]
    Count { count: i32, last_offset_delta: i32 },
    /// Control batches are the broker's to write.
    #[error("clients may not write control batches")]
    Control,
    /// A delete horizon is the cleaner's to write.
    #[error("clients may not set a delete horizon")]
    DeleteHorizon,
    /// A producer id without epoch or sequence, or a transaction without producer id.
    #[error("producer id {id} with epoch {epoch} and sequence {sequence}")]
    Producer { id: i64, epoch: i16, sequence: i32 },
    /// A codec Kafka does not define.
    #[error("unknown compression codec {0}")]
    Codec(u8),
    /// zstd by a client too old to know that it may.
    #[error("zstd needs version 7 of Produce")]
    ZstdTooEarly,
    /// The client claims the broker's clock.
    #[error("clients may not set the append time")]
    LogAppendTime,
    /// A timestamp too far from now.
    #[error("timestamp {timestamp} is outside of {min}..={max}")]
    Timestamp { timestamp: i64, min: i64, max: i64 },
}

fn magic_advice(magic: i8) -> &'static str {
    match magic {
        0 | 1 => "written by a client older than Kafka 0.11, which must be updated",
        _ => "not a format of Kafka",
    }
}

impl BatchError {
    /// The code Kafka answers with.
    pub const fn code(&self) -> ErrorCode {
        match self {
            BatchError::Truncated { .. }
            | BatchError::Length { .. }
            | BatchError::Checksum { .. }
            | BatchError::Magic(i8::MIN..=-1 | 3..) => ErrorCode::CorruptMessage,
            BatchError::TooLarge { .. } => ErrorCode::MessageTooLarge,
            BatchError::LogAppendTime | BatchError::Timestamp { .. } => ErrorCode::InvalidTimestamp,
            BatchError::Codec(_) | BatchError::ZstdTooEarly => {
                ErrorCode::UnsupportedCompressionType
            }
            BatchError::Missing
            | BatchError::Magic(_)
            | BatchError::NotAlone
            | BatchError::Count { .. }
            | BatchError::Control
            | BatchError::DeleteHorizon
            | BatchError::Producer { .. } => ErrorCode::InvalidRecord,
        }
    }
}

/// Checks that `records` is exactly one batch that a client may append, without looking inside the
/// compressed records.
///
/// ```
/// use logd_proto::record_batch::{BatchBuilder, BatchLimits, validate};
///
/// let mut batch = BatchBuilder::new();
/// batch.push(1_700_000_000_000, Some(b"key"), Some(b"value"), &[])?;
/// let header = validate(&batch.build()?, &BatchLimits::size(1_048_588))?;
/// assert_eq!(header.record_count, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// See [`BatchError`]; [`BatchError::code`] is what the client is told.
pub fn validate(records: &Bytes, limits: &BatchLimits) -> Result<BatchHeader, BatchError> {
    if records.is_empty() {
        return Err(BatchError::Missing);
    }
    let header = BatchHeader::parse(records)?;
    let (size, got) = (header.size(), records.len());
    if size > got {
        return Err(BatchError::Truncated { needed: size, got });
    }
    if size < got {
        return Err(BatchError::NotAlone);
    }
    let limit = limits.size_bytes_max;
    if size > limit {
        return Err(BatchError::TooLarge { size, limit });
    }
    verify_checksum(records, &header)?;
    validate_header(&header)?;
    validate_room(&header)?;
    validate_attributes(header.attributes, limits)?;
    validate_timestamps(&header, limits)?;
    Ok(header)
}

fn validate_header(header: &BatchHeader) -> Result<(), BatchError> {
    let (count, last_offset_delta) = (header.record_count, header.last_offset_delta);
    if count <= 0 || last_offset_delta.checked_add(1) != Some(count) {
        return Err(BatchError::Count {
            count,
            last_offset_delta,
        });
    }
    let (id, epoch) = (header.producer_id, header.producer_epoch);
    let sequence = header.base_sequence;
    let numbered = id > NONE && epoch >= 0 && sequence >= 0;
    let anonymous = id <= NONE && !header.attributes.is_transactional();
    if numbered || anonymous {
        Ok(())
    } else {
        Err(BatchError::Producer {
            id,
            epoch,
            sequence,
        })
    }
}

/// The shortest record: seven fields of one byte.
const RECORD_BYTES_MIN: usize = 7;

/// A header can agree with itself and still claim two billion offsets for no records. Where the
/// records are in sight, they must have room; compressed ones are for [`validate_records`] to count.
fn validate_room(header: &BatchHeader) -> Result<(), BatchError> {
    let (count, last_offset_delta) = (header.record_count, header.last_offset_delta);
    let room = header.size().saturating_sub(HEADER_BYTES) / RECORD_BYTES_MIN;
    let in_sight = header.attributes.compression() == Some(Compression::None);
    if in_sight && usize::try_from(count).unwrap_or(usize::MAX) > room {
        return Err(BatchError::Count {
            count,
            last_offset_delta,
        });
    }
    Ok(())
}

fn validate_attributes(attributes: Attributes, limits: &BatchLimits) -> Result<(), BatchError> {
    match attributes.compression() {
        None => return Err(BatchError::Codec((attributes.0 & Attributes::CODEC) as u8)),
        Some(Compression::Zstd) if !limits.zstd => return Err(BatchError::ZstdTooEarly),
        Some(_) => {}
    }
    if attributes.is_control() {
        return Err(BatchError::Control);
    }
    if attributes.has_delete_horizon() {
        return Err(BatchError::DeleteHorizon);
    }
    if attributes.is_log_append_time() {
        return Err(BatchError::LogAppendTime);
    }
    Ok(())
}

fn validate_timestamps(header: &BatchHeader, limits: &BatchLimits) -> Result<(), BatchError> {
    let (min, max) = (limits.timestamp_min, limits.timestamp_max);
    for timestamp in [header.base_timestamp, header.max_timestamp] {
        // -1 is a record without a timestamp.
        if timestamp != NONE && !(min..=max).contains(&timestamp) {
            return Err(BatchError::Timestamp {
                timestamp,
                min,
                max,
            });
        }
    }
    Ok(())
}

/// Compares the checksum of one whole batch with what its header says.
///
/// # Errors
/// [`BatchError::Checksum`].
pub fn verify_checksum(batch: &[u8], header: &BatchHeader) -> Result<(), BatchError> {
    let computed = checksum(batch);
    let announced = header.crc;
    if computed == announced {
        Ok(())
    } else {
        Err(BatchError::Checksum {
            announced,
            computed,
        })
    }
}

fn checksum(batch: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(batch.get(CHECKSUMMED_FROM..).unwrap_or_default())
}

/// A copy of the header with its offset and epoch set, to be stored in front of the untouched
/// records. Neither field is under the checksum. `None` when `batch` is shorter than a header.
pub fn patched_header(
    batch: &[u8],
    base_offset: i64,
    partition_leader_epoch: i32,
) -> Option<[u8; HEADER_BYTES]> {
    let mut header = *batch.first_chunk::<HEADER_BYTES>()?;
    patch(&mut header, base_offset, partition_leader_epoch);
    Some(header)
}

/// Sets offset and epoch of the batch at the start of `batch`, in place.
pub fn patch(batch: &mut [u8], base_offset: i64, partition_leader_epoch: i32) {
    if let Some(bytes) = batch.get_mut(..8) {
        bytes.copy_from_slice(&base_offset.to_be_bytes());
    }
    if let Some(bytes) = batch.get_mut(12..16) {
        bytes.copy_from_slice(&partition_leader_epoch.to_be_bytes());
    }
}

/// A copy of a batch that carries the broker's clock: attribute, largest timestamp and checksum
/// change, so unlike offsets this cannot be patched in front of shared bytes.
pub fn with_log_append_time(batch: &[u8], timestamp: i64) -> Bytes {
    let mut copy = BytesMut::from(batch);
    if let Some(low) = copy.get_mut(22) {
        *low |= Attributes::LOG_APPEND_TIME as u8;
    }
    set_max_timestamp(copy, timestamp)
}

/// A copy of a batch whose header tells the largest timestamp of its records, for a client that told
/// another one: look-ups by time and retention believe the header.
pub fn with_max_timestamp(batch: &[u8], timestamp: i64) -> Bytes {
    set_max_timestamp(BytesMut::from(batch), timestamp)
}

fn set_max_timestamp(mut batch: BytesMut, timestamp: i64) -> Bytes {
    if let Some(bytes) = batch.get_mut(35..43) {
        bytes.copy_from_slice(&timestamp.to_be_bytes());
    }
    with_checksum(batch)
}

/// The batch with the checksum of what it holds now.
fn with_checksum(mut batch: BytesMut) -> Bytes {
    let crc = checksum(&batch);
    if let Some(bytes) = batch.get_mut(17..CHECKSUMMED_FROM) {
        bytes.copy_from_slice(&crc.to_be_bytes());
    }
    batch.freeze()
}

/// Cuts fetched records into batches that share their memory. A last batch that was cut short ends
/// the sequence without an error: brokers send it that way.
///
/// ```
/// use logd_proto::record_batch::{BatchBuilder, batches};
///
/// let mut batch = BatchBuilder::new();
/// batch.push(0, None, Some(b"value"), &[])?;
/// for batch in batches(batch.build()?) {
///     let (header, _bytes) = batch?;
///     assert_eq!(header.next_offset(), 1);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn batches(records: Bytes) -> Batches {
    Batches { rest: records }
}

/// See [`batches`].
#[derive(Clone, Debug)]
pub struct Batches {
    rest: Bytes,
}

impl Iterator for Batches {
    type Item = Result<(BatchHeader, Bytes), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match BatchHeader::parse(&self.rest) {
            Ok(header) if header.size() <= self.rest.len() => {
                Some(Ok((header, self.rest.split_to(header.size()))))
            }
            Ok(_) | Err(BatchError::Truncated { .. }) => {
                self.rest.clear();
                None
            }
            Err(error) => {
                self.rest.clear();
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests;
