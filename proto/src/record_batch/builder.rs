//! Writes batches: for the client, for the internal topics, for tests.
//!
//! Invariant: what it builds passes [`super::validate`] and [`super::validate_records`].
//!
//! Not here: when a batch is full; callers watch [`BatchBuilder::bytes`].

use bytes::{BufMut, Bytes, BytesMut};

use super::{Attributes, Compression, CompressionError, HEADER_BYTES, NONE, checksum, compress};

/// Why a batch cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A batch has at least one record.
    #[error("a record batch needs at least one record")]
    Empty,
    /// A length or count that its field cannot hold.
    #[error("a record batch cannot hold that much")]
    TooLarge,
    /// The codec failed.
    #[error(transparent)]
    Compression(#[from] CompressionError),
}

/// Collects records into one batch.
///
/// ```
/// use logd_proto::record_batch::{BatchBuilder, BatchHeader, Compression};
///
/// let mut builder = BatchBuilder::new().compression(Compression::Lz4).producer(7, 0, 100);
/// builder.push(1_000, Some(b"key"), Some(b"value"), &[("header", None)])?;
/// builder.push(1_001, None, None, &[])?;
/// let header = BatchHeader::parse(&builder.build()?)?;
/// assert_eq!((header.record_count, header.last_sequence()), (2, 101));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    records: BytesMut,
    scratch: BytesMut,
    count: i32,
    base_offset: i64,
    partition_leader_epoch: i32,
    attributes: i16,
    compression: Compression,
    base_timestamp: i64,
    max_timestamp: i64,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
}

impl Default for BatchBuilder {
    fn default() -> BatchBuilder {
        BatchBuilder::new()
    }
}

impl BatchBuilder {
    /// An empty batch at offset 0: uncompressed, of no producer.
    pub fn new() -> BatchBuilder {
        BatchBuilder {
            records: BytesMut::new(),
            scratch: BytesMut::new(),
            count: 0,
            base_offset: 0,
            partition_leader_epoch: -1,
            attributes: 0,
            compression: Compression::None,
            base_timestamp: NONE,
            max_timestamp: NONE,
            producer_id: NONE,
            producer_epoch: -1,
            base_sequence: -1,
        }
    }

    /// Compresses the records together.
    #[must_use]
    pub fn compression(mut self, codec: Compression) -> Self {
        self.compression = codec;
        self
    }

    /// Places the first record; clients leave that to the broker.
    #[must_use]
    pub fn base_offset(mut self, offset: i64) -> Self {
        self.base_offset = offset;
        self
    }

    /// Says which leader appended it; clients leave that to the broker.
    #[must_use]
    pub fn partition_leader_epoch(mut self, epoch: i32) -> Self {
        self.partition_leader_epoch = epoch;
        self
    }

    /// Numbers the records for an idempotent producer.
    #[must_use]
    pub fn producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> Self {
        self.producer_id = id;
        self.producer_epoch = epoch;
        self.base_sequence = base_sequence;
        self
    }

    /// Makes the records part of their producer's transaction.
    #[must_use]
    pub fn transactional(mut self) -> Self {
        self.attributes |= Attributes::TRANSACTIONAL;
        self
    }

    /// Makes it a control batch, which only brokers may write.
    #[must_use]
    pub fn control(mut self) -> Self {
        self.attributes |= Attributes::CONTROL;
        self
    }

    /// Records so far.
    pub fn len(&self) -> usize {
        usize::try_from(self.count).unwrap_or(0)
    }

    /// Whether there are no records yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The size so far, before compression.
    pub fn bytes(&self) -> usize {
        self.records.len().saturating_add(HEADER_BYTES)
    }

    /// Adds a record.
    ///
    /// # Errors
    /// When it is larger than its length field can say.
    pub fn push(
        &mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> Result<(), BuildError> {
        if self.is_empty() {
            self.base_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        self.scratch.clear();
        self.scratch.put_i8(0);
        put_varlong(
            &mut self.scratch,
            timestamp.wrapping_sub(self.base_timestamp),
        );
        put_varint(&mut self.scratch, self.count);
        put_nullable(&mut self.scratch, key)?;
        put_nullable(&mut self.scratch, value)?;
        put_varint(&mut self.scratch, length(headers.len())?);
        for (name, value) in headers {
            put_nullable(&mut self.scratch, Some(name.as_bytes()))?;
            put_nullable(&mut self.scratch, *value)?;
        }
        let count = self.count.checked_add(1).ok_or(BuildError::TooLarge)?;
        put_varint(&mut self.records, length(self.scratch.len())?);
        self.records.put_slice(&self.scratch);
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.count = count;
        Ok(())
    }

    /// Compresses, counts and checksums.
    ///
    /// # Errors
    /// When there are no records, or too many bytes of them.
    pub fn build(self) -> Result<Bytes, BuildError> {
        let last_offset_delta = self.count.checked_sub(1).ok_or(BuildError::TooLarge)?;
        if last_offset_delta < 0 {
            return Err(BuildError::Empty);
        }
        let records = match self.compression {
            Compression::None => self.records,
            codec => BytesMut::from(compress(codec, &self.records)?.as_slice()),
        };
        let size = records.len().saturating_add(HEADER_BYTES);
        let mut batch = BytesMut::with_capacity(size);
        batch.put_i64(self.base_offset);
        batch.put_i32(length(size.saturating_sub(super::LENGTH_OVERHEAD))?);
        batch.put_i32(self.partition_leader_epoch);
        batch.put_i8(2);
        batch.put_u32(0);
        batch.put_i16(self.attributes | i16::from(self.compression.id()));
        batch.put_i32(last_offset_delta);
        batch.put_i64(self.base_timestamp);
        batch.put_i64(self.max_timestamp);
        batch.put_i64(self.producer_id);
        batch.put_i16(self.producer_epoch);
        batch.put_i32(self.base_sequence);
        batch.put_i32(self.count);
        batch.put_slice(&records);
        let crc = checksum(&batch);
        if let Some(bytes) = batch.get_mut(17..super::CHECKSUMMED_FROM) {
            bytes.copy_from_slice(&crc.to_be_bytes());
        }
        Ok(batch.freeze())
    }
}

fn length(length: usize) -> Result<i32, BuildError> {
    i32::try_from(length).map_err(|_| BuildError::TooLarge)
}

pub(super) fn put_nullable(out: &mut BytesMut, bytes: Option<&[u8]>) -> Result<(), BuildError> {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, length(bytes.len())?);
            out.put_slice(bytes);
        }
    }
    Ok(())
}

pub(super) fn put_varint(out: &mut BytesMut, value: i32) {
    let zigzag = (value << 1) ^ (value >> 31);
    put_unsigned(out, u64::from(zigzag as u32));
}

pub(super) fn put_varlong(out: &mut BytesMut, value: i64) {
    put_unsigned(out, ((value << 1) ^ (value >> 63)) as u64);
}

pub(super) fn put_unsigned(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}
