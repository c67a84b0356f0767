//! The same records in another codec, for topics that say how they are stored.
//!
//! Invariant: nothing but codec, length and checksum changes; records, offsets, times and sequence stay.
//! Not here: whether a topic wants it, and whether the outcome is still small enough.

use super::compression::{CompressionError, compress_at, decompress};
use super::{Attributes, Codec, Compression, HEADER_BYTES, with_checksum};
use bytes::{BufMut, Bytes, BytesMut};
use std::ops::Range;

/// Where a batch says how many bytes follow.
const LENGTH: Range<usize> = 8..12;

/// A copy of a validated batch whose records are stored in `to`. `from` is what they are stored in now.
///
/// # Errors
/// If the records do not decompress, or to more than `output_bytes_max`.
pub fn recompressed(
    batch: &[u8],
    from: Compression,
    to: Codec,
    output_bytes_max: usize,
) -> Result<Bytes, CompressionError> {
    let (head, body) = batch
        .split_at_checked(HEADER_BYTES)
        .ok_or_else(|| from.malformed("a batch shorter than its header"))?;
    let records = match from {
        Compression::None => compress_at(to, body)?,
        _ => compress_at(to, &decompress(from, body, output_bytes_max)?)?,
    };
    let mut out = BytesMut::from(head);
    out.put_slice(&records);
    let counted = out.get(LENGTH.end..).unwrap_or_default().len();
    let length = i32::try_from(counted)
        .map_err(|_| to.compression.malformed("more than a batch can hold"))?;
    if let Some(bytes) = out.get_mut(LENGTH) {
        bytes.copy_from_slice(&length.to_be_bytes());
    }
    if let Some(low) = out.get_mut(22) {
        *low = (*low & !(Attributes::CODEC as u8)) | to.compression.id();
    }
    Ok(with_checksum(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record_batch::{BatchBuilder, BatchHeader, BatchLimits, Records, validate};

    fn batch(compression: Compression) -> Bytes {
        let mut batch = BatchBuilder::new()
            .compression(compression)
            .producer(7, 1, 40);
        for n in 0..50i64 {
            let value = format!("value {}", n % 3);
            batch
                .push(1_000 + n, Some(b"key"), Some(value.as_bytes()), &[])
                .unwrap();
        }
        batch.build().unwrap()
    }

    fn held(batch: &Bytes) -> Vec<(i64, i64, Vec<u8>)> {
        let records = Records::open(batch, 1 << 20).unwrap();
        let each = records.iter().map(|r| r.unwrap());
        each.map(|r| (r.offset, r.timestamp, r.value.unwrap().to_vec()))
            .collect()
    }

    #[test]
    fn records_survive_every_change_of_codec_and_the_header_says_the_new_one() {
        for from in Compression::ALL {
            for compression in Compression::ALL {
                let before = batch(from);
                let to = Codec {
                    compression,
                    level: None,
                };
                let after = recompressed(&before, from, to, 1 << 20).unwrap();
                let limits = BatchLimits::size(1 << 20);
                let header = validate(&after, &limits).unwrap();
                let was = BatchHeader::parse(&before).unwrap();
                assert_eq!(header.attributes.compression(), Some(compression));
                assert_eq!(held(&after), held(&before));
                let told = |h: &BatchHeader| {
                    let times = (h.base_timestamp, h.max_timestamp);
                    let sequence = (h.producer_id, h.producer_epoch, h.base_sequence);
                    (times, sequence, h.last_offset_delta, h.record_count)
                };
                assert_eq!(told(&header), told(&was));
            }
        }
    }

    #[test]
    fn a_level_is_gone_by() {
        let long: Vec<u8> = (0..200_000u32)
            .flat_map(|n| (n / 7).to_be_bytes())
            .collect();
        for (compression, low, high) in [(Compression::Gzip, 1, 9), (Compression::Zstd, -50, 19)] {
            let size = |level| {
                let level = Some(level);
                compress_at(Codec { compression, level }, &long)
                    .unwrap()
                    .len()
            };
            assert!(size(high) < size(low), "{compression:?}");
        }
    }

    #[test]
    fn records_that_are_too_many_inside_are_not_unpacked() {
        let bomb = batch(Compression::Gzip);
        let to = Codec {
            compression: Compression::Zstd,
            level: None,
        };
        let refused = recompressed(&bomb, Compression::Gzip, to, 100).unwrap_err();
        assert!(
            matches!(refused, CompressionError::TooLarge { .. }),
            "{refused}"
        );
    }
}
