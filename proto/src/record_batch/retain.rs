//! Some records of a batch, as a batch: what compaction leaves of it.
//!
//! Promise: what stays keeps its offset, key, value, headers and timestamp; the batch keeps its first and
//! last offset, its producer and sequence numbers, its codec and its leader epoch. The checksum is made anew.
//! Source: KIP-534 for the delete horizon; Kafka's rules for batches of which no record stays.
//!
//! Not here: which records are to stay.

use bytes::{BufMut, Bytes, BytesMut};

use super::builder::{put_nullable, put_unsigned, put_varint, put_varlong};
use super::{
    Attributes, BatchHeader, BuildError, CHECKSUMMED_FROM, Compression, HEADER_BYTES,
    LENGTH_OVERHEAD, Record, Records, RecordsError, checksum, compress,
};

/// Why a batch was not written anew.
#[derive(Debug, thiserror::Error)]
pub enum RetainError {
    /// Its records cannot be read.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// What stays cannot be written.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// What stays of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retained {
    /// The batch with what stays of it; without a record, its header alone.
    pub batch: Bytes,
    /// How many records stay.
    pub kept: i32,
    /// How many do not.
    pub removed: i32,
    /// The newest timestamp of those that stay; -1 for none.
    pub max_timestamp: i64,
}

/// Keeps the records that `keep` says yes to. If a tombstone stays and the batch says of none yet how long,
/// it now says `horizon`.
///
/// ```
/// use logd_proto::record_batch::{BatchBuilder, Records, retain};
///
/// let mut batch = BatchBuilder::new().base_offset(10);
/// batch.push(1, Some(b"a"), Some(b"old"), &[])?;
/// batch.push(2, Some(b"b"), Some(b"only"), &[])?;
/// let left = retain(&batch.build()?, 1 << 20, 0, &mut |record| record.key != Some(b"a"))?;
/// let records = Records::open(&left.batch, 1 << 20)?;
/// assert_eq!(records.iter().next().unwrap()?.offset, 11);
/// assert_eq!(records.header().next_offset(), 12, "the batch covers what it did");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When the records cannot be read, or not be written.
pub fn retain(
    batch: &Bytes,
    output_bytes_max: usize,
    horizon: i64,
    keep: &mut dyn FnMut(&Record<'_>) -> bool,
) -> Result<Retained, RetainError> {
    let records = Records::open(batch, output_bytes_max)?;
    let header = *records.header();
    let mut kept = Vec::new();
    let mut seen = 0i32;
    for record in &records {
        let record = record?;
        seen = seen.saturating_add(1);
        if keep(&record) {
            kept.push(record);
        }
    }
    let count = i32::try_from(kept.len()).map_err(|_| BuildError::TooLarge)?;
    let removed = seen.saturating_sub(count);
    let newest = kept.iter().map(|r| r.timestamp).max();
    let Some(newest) = newest else {
        return Ok(Retained {
            batch: emptied(&header)?,
            kept: 0,
            removed,
            max_timestamp: super::NONE,
        });
    };
    let begins = horizon_to_set(&header, &kept, horizon);
    let batch = if removed == 0 && begins.is_none() {
        batch.clone()
    } else {
        written(&header, &kept, count, newest, begins)?
    };
    Ok(Retained {
        batch,
        kept: count,
        removed,
        max_timestamp: newest,
    })
}

/// Only where a tombstone needs it, and every timestamp can be told from it.
fn horizon_to_set(header: &BatchHeader, kept: &[Record<'_>], horizon: i64) -> Option<i64> {
    let wanted = !header.attributes.has_delete_horizon() && kept.iter().any(|r| r.value.is_none());
    let fits = |r: &Record<'_>| r.timestamp.checked_sub(horizon).is_some();
    (wanted && kept.iter().all(fits)).then_some(horizon)
}

fn written(
    header: &BatchHeader,
    kept: &[Record<'_>],
    count: i32,
    newest: i64,
    horizon: Option<i64>,
) -> Result<Bytes, RetainError> {
    let base_timestamp = horizon.unwrap_or(header.base_timestamp);
    let (mut out, mut scratch) = (BytesMut::new(), BytesMut::new());
    for record in kept {
        scratch.clear();
        scratch.put_i8(0);
        put_varlong(&mut scratch, record.timestamp.wrapping_sub(base_timestamp));
        put_varint(&mut scratch, record.offset_delta);
        put_nullable(&mut scratch, record.key)?;
        put_nullable(&mut scratch, record.value)?;
        let headers = record.headers;
        // A count of headers is a zigzag number like the others.
        put_unsigned(&mut scratch, (headers.count as u64) << 1);
        scratch.put_slice(headers.bytes);
        let length = i32::try_from(scratch.len()).map_err(|_| BuildError::TooLarge)?;
        put_varint(&mut out, length);
        out.put_slice(&scratch);
    }
    let codec = header.attributes.compression().unwrap_or(Compression::None);
    let body = match codec {
        Compression::None => out,
        codec => {
            let compressed = compress(codec, &out).map_err(BuildError::from)?;
            BytesMut::from(compressed.as_slice())
        }
    };
    let bit = if horizon.is_some() {
        Attributes::DELETE_HORIZON
    } else {
        0
    };
    let header = BatchHeader {
        attributes: Attributes(header.attributes.0 | bit),
        base_timestamp,
        max_timestamp: if header.attributes.is_log_append_time() {
            header.max_timestamp
        } else {
            newest
        },
        record_count: count,
        ..*header
    };
    Ok(assembled(&header, &body)?)
}

/// A batch without records, for what its header says: which offsets, and which numbers of which producer.
fn emptied(header: &BatchHeader) -> Result<Bytes, BuildError> {
    let flags = Attributes::CODEC | Attributes::DELETE_HORIZON;
    let header = BatchHeader {
        attributes: Attributes(header.attributes.0 & !flags),
        base_timestamp: header.max_timestamp,
        record_count: 0,
        ..*header
    };
    assembled(&header, &[])
}

fn assembled(header: &BatchHeader, body: &[u8]) -> Result<Bytes, BuildError> {
    let size = body.len().saturating_add(HEADER_BYTES);
    let length = size.saturating_sub(LENGTH_OVERHEAD);
    let length = i32::try_from(length).map_err(|_| BuildError::TooLarge)?;
    let mut batch = BytesMut::with_capacity(size);
    batch.put_i64(header.base_offset);
    batch.put_i32(length);
    batch.put_i32(header.partition_leader_epoch);
    batch.put_i8(2);
    batch.put_u32(0);
    batch.put_i16(header.attributes.0);
    batch.put_i32(header.last_offset_delta);
    batch.put_i64(header.base_timestamp);
    batch.put_i64(header.max_timestamp);
    batch.put_i64(header.producer_id);
    batch.put_i16(header.producer_epoch);
    batch.put_i32(header.base_sequence);
    batch.put_i32(header.record_count);
    batch.put_slice(body);
    let crc = checksum(&batch);
    if let Some(bytes) = batch.get_mut(17..CHECKSUMMED_FROM) {
        bytes.copy_from_slice(&crc.to_be_bytes());
    }
    Ok(batch.freeze())
}

#[cfg(test)]
mod tests {
    use super::super::{BatchBuilder, verify_checksum};
    use super::*;

    const ROOM: usize = 1 << 20;
    const HORIZON: i64 = 9_000;

    fn batch(codec: Compression) -> Bytes {
        let builder = BatchBuilder::new().base_offset(100).compression(codec);
        let mut batch = builder.partition_leader_epoch(4).producer(7, 1, 30);
        for (n, key) in [b"a", b"b", b"c", b"d"].into_iter().enumerate() {
            let value = (key != b"d").then_some(&b"value"[..]);
            let headers = [("h", Some(&b"x"[..])), ("none", None)];
            batch
                .push(50 + n as i64, Some(key), value, &headers)
                .unwrap();
        }
        batch.build().unwrap()
    }

    type Flat = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>, usize);

    fn flat(batch: &Bytes) -> Vec<Flat> {
        let records = Records::open(batch, ROOM).unwrap();
        let record = |r: Record<'_>| {
            let own = |b: Option<&[u8]>| b.map(<[u8]>::to_vec);
            (
                r.offset,
                r.timestamp,
                own(r.key),
                own(r.value),
                r.headers.iter().count(),
            )
        };
        records.iter().map(|r| record(r.unwrap())).collect()
    }

    fn sound(batch: &Bytes) -> BatchHeader {
        let header = BatchHeader::parse(batch).unwrap();
        assert_eq!(header.size(), batch.len());
        verify_checksum(batch, &header).unwrap();
        header
    }

    #[test]
    fn what_stays_is_what_it_was_under_every_codec() {
        for codec in Compression::ALL {
            let whole = batch(codec);
            let left = retain(&whole, ROOM, HORIZON, &mut |r| {
                r.key == Some(b"b") || r.key == Some(b"c")
            })
            .unwrap();
            let all = flat(&whole);
            assert_eq!(flat(&left.batch), all[1..3], "{codec:?}");
            assert_eq!((left.kept, left.removed, left.max_timestamp), (2, 2, 52));
            let (before, after) = (sound(&whole), sound(&left.batch));
            let same = BatchHeader {
                batch_length: before.batch_length,
                crc: before.crc,
                record_count: 4,
                max_timestamp: 53,
                ..after
            };
            assert_eq!(same, before, "{codec:?}: nothing else differs");
        }
    }

    #[test]
    fn a_tombstone_that_stays_is_told_until_when_and_timestamps_do_not_move() {
        let whole = batch(Compression::Lz4);
        let left = retain(&whole, ROOM, HORIZON, &mut |_| true).unwrap();
        let header = sound(&left.batch);
        assert!(header.attributes.has_delete_horizon());
        assert_eq!((header.base_timestamp, header.max_timestamp), (HORIZON, 53));
        assert_eq!(flat(&left.batch), flat(&whole));
        let again = retain(&left.batch, ROOM, HORIZON + 1, &mut |_| true).unwrap();
        assert_eq!(again.batch, left.batch, "the first time counts");
    }

    #[test]
    fn a_batch_of_which_all_stays_is_not_touched() {
        let mut values = BatchBuilder::new();
        values.push(1, Some(b"k"), Some(b"v"), &[]).unwrap();
        let values = values.build().unwrap();
        let left = retain(&values, ROOM, HORIZON, &mut |_| true).unwrap();
        assert_eq!(left.batch, values);
    }

    #[test]
    fn an_emptied_batch_still_says_whose_numbers_and_offsets_it_held() {
        let left = retain(&batch(Compression::Zstd), ROOM, HORIZON, &mut |_| false).unwrap();
        let header = sound(&left.batch);
        assert_eq!(left.batch.len(), HEADER_BYTES);
        assert_eq!((header.base_offset, header.next_offset()), (100, 104));
        assert_eq!((header.producer_id, header.producer_epoch), (7, 1));
        assert_eq!((header.base_sequence, header.last_sequence()), (30, 33));
        assert_eq!((header.record_count, header.max_timestamp), (0, 53));
        assert_eq!(header.attributes.compression(), Some(Compression::None));
        assert_eq!((left.kept, left.removed, left.max_timestamp), (0, 4, -1));
        assert!(flat(&left.batch).is_empty());
    }
}
