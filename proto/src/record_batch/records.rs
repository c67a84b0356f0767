//! The records inside a batch: reading them one by one, and checking them all.
//!
//! ```text
//! length varint | attributes i8 | timestamp delta varlong | offset delta varint
//! key length varint (-1: null) | key | value length varint (-1: null) | value
//! header count varint | ( key length varint | key | value length varint | value )*
//! ```
//!
//! Invariant: a [`Record`] borrows; nothing is allocated per record.
//!
//! Not here: the header of the batch.

use bytes::Bytes;

use super::{BatchError, BatchHeader, CompressionError, HEADER_BYTES, NONE, decompress};
use crate::ErrorCode;

/// Why the records inside a batch cannot be read, or must not be stored.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The batch around them is broken.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// They cannot be decompressed.
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// A record's bytes make no sense.
    #[error("record {index}: {reason}")]
    Malformed { index: i32, reason: &'static str },
    /// The header counts fewer records than there are.
    #[error("{bytes} bytes follow the last record")]
    Trailing { bytes: usize },
    /// A record is not where it says.
    #[error("record {index} has the offset delta {found}")]
    OffsetDelta { index: i32, found: i32 },
    /// A timestamp too far from now.
    #[error("record {index} has the timestamp {timestamp}, outside of {min}..={max}")]
    Timestamp {
        index: i32,
        timestamp: i64,
        min: i64,
        max: i64,
    },
    /// Compaction needs keys.
    #[error("{} records without a key in a compacted topic", indexes.len())]
    Keyless { indexes: Vec<i32> },
}

impl RecordsError {
    /// The code Kafka answers with.
    pub const fn code(&self) -> ErrorCode {
        match self {
            RecordsError::Batch(error) => error.code(),
            RecordsError::Compression(CompressionError::Malformed { .. }) => {
                ErrorCode::CorruptMessage
            }
            RecordsError::Compression(CompressionError::TooLarge { .. }) => {
                ErrorCode::MessageTooLarge
            }
            RecordsError::Timestamp { .. } => ErrorCode::InvalidTimestamp,
            RecordsError::Malformed { .. }
            | RecordsError::Trailing { .. }
            | RecordsError::OffsetDelta { .. }
            | RecordsError::Keyless { .. } => ErrorCode::InvalidRecord,
        }
    }
}

/// The records of one batch, decompressed.
#[derive(Clone, Debug)]
pub struct Records {
    header: BatchHeader,
    body: Bytes,
}

impl Records {
    /// Opens a whole batch. Uncompressed records keep sharing its memory; others are decompressed to
    /// at most `output_bytes_max`.
    ///
    /// ```
    /// use logd_proto::record_batch::{BatchBuilder, Compression, Records};
    ///
    /// let mut batch = BatchBuilder::new().compression(Compression::Zstd);
    /// batch.push(5, Some(b"key"), Some(b"value"), &[("trace", Some(b"1"))])?;
    /// let records = Records::open(&batch.build()?, 1 << 20)?;
    /// for record in &records {
    ///     let record = record?;
    ///     assert_eq!((record.timestamp, record.value), (5, Some(&b"value"[..])));
    ///     assert_eq!(record.headers.iter().next().unwrap().key, b"trace");
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When the header or the compressed bytes are broken. The checksum is not looked at.
    pub fn open(batch: &Bytes, output_bytes_max: usize) -> Result<Records, RecordsError> {
        let header = BatchHeader::parse(batch)?;
        let (needed, got) = (header.size(), batch.len());
        if needed > got {
            return Err(BatchError::Truncated { needed, got }.into());
        }
        let codec = header.attributes.compression();
        let codec = codec.ok_or(BatchError::Codec((header.attributes.0 & 7) as u8))?;
        let body = batch.slice(HEADER_BYTES..needed);
        let body = match codec {
            super::Compression::None => body,
            codec => Bytes::from(decompress(codec, &body, output_bytes_max)?),
        };
        Ok(Records { header, body })
    }

    /// The header of the batch they came in.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The records, in order.
    pub fn iter(&self) -> RecordIter<'_> {
        RecordIter {
            header: &self.header,
            cursor: Cursor { rest: &self.body },
            next: 0,
        }
    }

    /// What a record borrowed, as bytes of its own that share this memory.
    pub fn share(&self, borrowed: &[u8]) -> Bytes {
        // An empty slice may point anywhere.
        if borrowed.is_empty() {
            Bytes::new()
        } else {
            self.body.slice_ref(borrowed)
        }
    }
}

impl<'a> IntoIterator for &'a Records {
    type Item = Result<Record<'a>, RecordsError>;
    type IntoIter = RecordIter<'a>;

    fn into_iter(self) -> RecordIter<'a> {
        self.iter()
    }
}

/// One record, borrowing from its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its offset, by the base offset of the batch.
    pub offset: i64,
    /// The same, from the base offset.
    pub offset_delta: i32,
    /// Its timestamp, the producer's or the broker's as the batch says.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; none is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers.
    pub headers: Headers<'a>,
}

/// A record's headers, known to be well-formed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers<'a> {
    pub(super) count: usize,
    pub(super) bytes: &'a [u8],
}

impl<'a> Headers<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The headers in order; a key may appear more than once.
    pub fn iter(&self) -> impl Iterator<Item = Header<'a>> + use<'a> {
        let mut cursor = Cursor { rest: self.bytes };
        (0..self.count).map_while(move |_| cursor.header().ok())
    }
}

/// One header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Its name, by convention UTF-8.
    pub key: &'a [u8],
    /// Its value.
    pub value: Option<&'a [u8]>,
}

/// Iterates over [`Records`]; ends after the first error.
#[derive(Clone, Debug)]
pub struct RecordIter<'a> {
    header: &'a BatchHeader,
    cursor: Cursor<'a>,
    next: i32,
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<Record<'a>, RecordsError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.header.record_count {
            let bytes = std::mem::take(&mut self.cursor.rest).len();
            return (bytes > 0).then_some(Err(RecordsError::Trailing { bytes }));
        }
        let index = self.next;
        self.next = index.saturating_add(1);
        let record = self.cursor.record(self.header);
        if record.is_err() {
            self.next = i32::MAX;
            self.cursor.rest = &[];
        }
        Some(record.map_err(|Broken(reason)| RecordsError::Malformed { index, reason }))
    }
}

/// What is wrong with a record's bytes.
#[derive(Debug)]
struct Broken(&'static str);

/// Reads the variable-length forms that only records use.
#[derive(Clone, Copy, Debug)]
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    #[inline]
    fn record(&mut self, batch: &BatchHeader) -> Result<Record<'a>, Broken> {
        let length = usize::try_from(self.varint()?).map_err(|_| Broken("negative length"))?;
        let mut cursor = Cursor {
            rest: self.take(length)?,
        };
        let _attributes = cursor.byte()?;
        let timestamp_delta = cursor.varlong()?;
        let offset_delta = cursor.varint()?;
        let key = cursor.nullable()?;
        let value = cursor.nullable()?;
        let headers = cursor.headers()?;
        let timestamp = if batch.attributes.is_log_append_time() {
            batch.max_timestamp
        } else {
            batch.base_timestamp.saturating_add(timestamp_delta)
        };
        let offset = batch.base_offset.saturating_add(i64::from(offset_delta));
        Ok(Record {
            offset,
            offset_delta,
            timestamp,
            key,
            value,
            headers,
        })
    }

    #[inline]
    fn headers(&mut self) -> Result<Headers<'a>, Broken> {
        let count = usize::try_from(self.varint()?).map_err(|_| Broken("negative header count"))?;
        let bytes = self.rest;
        for _ in 0..count {
            self.header()?;
        }
        if self.rest.is_empty() {
            Ok(Headers { count, bytes })
        } else {
            Err(Broken("bytes follow the last header"))
        }
    }

    fn header(&mut self) -> Result<Header<'a>, Broken> {
        let key = self.nullable()?.ok_or(Broken("header without a key"))?;
        let value = self.nullable()?;
        Ok(Header { key, value })
    }

    #[inline]
    fn nullable(&mut self) -> Result<Option<&'a [u8]>, Broken> {
        match self.varint()? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| Broken("negative length"))?;
                self.take(length).map(Some)
            }
        }
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(Broken("cut short"))?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, Broken> {
        let (&byte, rest) = self.rest.split_first().ok_or(Broken("cut short"))?;
        self.rest = rest;
        Ok(byte)
    }

    #[inline]
    fn varint(&mut self) -> Result<i32, Broken> {
        let zigzag = self.unsigned(35)?;
        let zigzag = u32::try_from(zigzag).map_err(|_| Broken("varint too large"))?;
        Ok((zigzag >> 1) as i32 ^ ((zigzag & 1) as i32).wrapping_neg())
    }

    #[inline]
    fn varlong(&mut self) -> Result<i64, Broken> {
        let zigzag = self.unsigned(70)?;
        Ok((zigzag >> 1) as i64 ^ ((zigzag & 1) as i64).wrapping_neg())
    }

    #[inline]
    fn unsigned(&mut self, bits_max: u32) -> Result<u64, Broken> {
        // Most deltas and lengths are one or two bytes, and every record of every produce is looked at.
        match *self.rest {
            [a, ref rest @ ..] if a < 0x80 => {
                self.rest = rest;
                Ok(u64::from(a))
            }
            [a, b, ref rest @ ..] if b < 0x80 => {
                self.rest = rest;
                Ok(u64::from(a & 0x7f) | u64::from(b) << 7)
            }
            _ => self.long_unsigned(bits_max),
        }
    }

    #[cold]
    fn long_unsigned(&mut self, bits_max: u32) -> Result<u64, Broken> {
        let mut value = 0u64;
        for shift in (0..bits_max).step_by(7) {
            let byte = self.byte()?;
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                return Err(Broken("varint too large"));
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Broken("varint too long"))
    }
}

/// What a partition demands of every record.
#[derive(Clone, Copy, Debug)]
pub struct RecordRules {
    /// Whether each needs a key, because the topic is compacted.
    pub keys_required: bool,
    /// Timestamps after this are refused.
    pub timestamp_max: i64,
    /// Timestamps before this are refused.
    pub timestamp_min: i64,
    /// The records may decompress to no more than this.
    pub output_bytes_max: usize,
}

/// What a look at every record found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordsSummary {
    /// The largest timestamp, -1 if none has one.
    pub max_timestamp: i64,
    /// The first record that has it.
    pub max_timestamp_offset_delta: i32,
    /// Bytes of the records when not compressed.
    pub bytes: usize,
}

/// Checks every record of a batch whose header [`super::validate`] accepted: well-formed, numbered
/// from zero without gaps, timestamps in bounds, keys where they are needed.
///
/// # Errors
/// See [`RecordsError`]. Missing keys are reported all together, so that the response can name each.
pub fn validate_records(
    batch: &Bytes,
    rules: &RecordRules,
) -> Result<RecordsSummary, RecordsError> {
    let records = Records::open(batch, rules.output_bytes_max)?;
    let bytes = records.body.len();
    let mut summary = RecordsSummary {
        max_timestamp: NONE,
        max_timestamp_offset_delta: 0,
        bytes,
    };
    let mut keyless = Vec::new();
    for (record, index) in records.iter().zip(0i32..) {
        let record = record?;
        if record.offset_delta != index {
            return Err(RecordsError::OffsetDelta {
                index,
                found: record.offset_delta,
            });
        }
        check_timestamp(index, record.timestamp, rules)?;
        if record.timestamp > summary.max_timestamp {
            summary.max_timestamp = record.timestamp;
            summary.max_timestamp_offset_delta = index;
        }
        if rules.keys_required && record.key.is_none() {
            keyless.push(index);
        }
    }
    if keyless.is_empty() {
        Ok(summary)
    } else {
        Err(RecordsError::Keyless { indexes: keyless })
    }
}

fn check_timestamp(index: i32, timestamp: i64, rules: &RecordRules) -> Result<(), RecordsError> {
    let (min, max) = (rules.timestamp_min, rules.timestamp_max);
    if timestamp == NONE || (min..=max).contains(&timestamp) {
        Ok(())
    } else {
        Err(RecordsError::Timestamp {
            index,
            timestamp,
            min,
            max,
        })
    }
}
