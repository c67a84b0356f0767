//! The five ways to store the records of a batch.
//!
//! Invariant: decompression stops at the caller's limit, however small the input that promises more.
//!
//! Not here: where the compressed bytes begin and end.

use std::io::{Read, Write};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

/// How records are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Snappy, in the framing of its Java library; raw blocks are understood too.
    Snappy,
    /// LZ4 frames.
    Lz4,
    /// Zstandard frames.
    Zstd,
}

/// Why bytes could not be compressed or decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// The bytes are not what the codec writes.
    #[error("malformed {} data: {reason}", codec.name())]
    Malformed { codec: Compression, reason: String },
    /// The output grew beyond the limit: too large for us, or made to exhaust memory.
    #[error("{} data decompresses to more than {limit} bytes", codec.name())]
    TooLarge { codec: Compression, limit: usize },
}

impl Compression {
    /// All codecs, in the order of their numbers.
    pub const ALL: [Compression; 5] = [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];

    /// The number in a batch's attributes.
    pub const fn id(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Snappy => 2,
            Compression::Lz4 => 3,
            Compression::Zstd => 4,
        }
    }

    /// The codec of a number, if there is one.
    pub const fn from_id(id: u8) -> Option<Compression> {
        match id {
            0 => Some(Compression::None),
            1 => Some(Compression::Gzip),
            2 => Some(Compression::Snappy),
            3 => Some(Compression::Lz4),
            4 => Some(Compression::Zstd),
            _ => None,
        }
    }

    /// Its name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }

    /// The codec of a name, if there is one.
    pub fn from_name(name: &str) -> Option<Compression> {
        Compression::ALL
            .into_iter()
            .find(|codec| codec.name() == name)
    }

    pub(super) fn malformed(self, reason: impl ToString) -> CompressionError {
        CompressionError::Malformed {
            codec: self,
            reason: reason.to_string(),
        }
    }
}

/// How records are to be compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec {
    pub compression: Compression,
    /// Within what the codec knows; `None`, and any where it has but one: its default.
    pub level: Option<i32>,
}

/// Compresses the records of a batch.
///
/// # Errors
/// When the codec itself fails, which none does on memory.
pub fn compress(compression: Compression, input: &[u8]) -> Result<Vec<u8>, CompressionError> {
    let level = None;
    compress_at(Codec { compression, level }, input)
}

/// As [`compress`], at a level.
///
/// # Errors
/// As [`compress`].
pub fn compress_at(codec: Codec, input: &[u8]) -> Result<Vec<u8>, CompressionError> {
    let output = match codec.compression {
        Compression::None => return Ok(input.to_vec()),
        Compression::Gzip => gzip(input, codec.level),
        Compression::Snappy => return snappy(input),
        Compression::Lz4 => return lz4(input),
        Compression::Zstd => zstd::bulk::compress(input, codec.level.unwrap_or(ZSTD_LEVEL)),
    };
    output.map_err(|error| codec.compression.malformed(error))
}

/// zstd's own default, and Kafka's.
const ZSTD_LEVEL: i32 = 3;

fn gzip(input: &[u8], level: Option<i32>) -> std::io::Result<Vec<u8>> {
    let level = level.and_then(|level| u32::try_from(level).ok());
    let level = level.map_or_else(flate2::Compression::default, flate2::Compression::new);
    let mut encoder = GzEncoder::new(Vec::new(), level);
    encoder.write_all(input)?;
    encoder.finish()
}

fn lz4(input: &[u8]) -> Result<Vec<u8>, CompressionError> {
    // Kafka's Java client reads independent blocks only.
    let info = FrameInfo::new()
        .block_mode(BlockMode::Independent)
        .block_size(BlockSize::Max64KB);
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    let written = encoder
        .write_all(input)
        .map_err(lz4_flex::frame::Error::from);
    let finished = written.and_then(|()| encoder.finish());
    finished.map_err(|error| Compression::Lz4.malformed(error))
}

/// The Java library's framing: a header, then blocks with their lengths.
const XERIAL_MAGIC: &[u8; 8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_BYTES: usize = 16;
const XERIAL_BLOCK_BYTES: usize = 32 * 1024;

fn snappy(input: &[u8]) -> Result<Vec<u8>, CompressionError> {
    let malformed = |error: snap::Error| Compression::Snappy.malformed(error);
    let mut output = XERIAL_MAGIC.to_vec();
    // Its version, and the oldest version that can read it.
    output.extend_from_slice(&1i32.to_be_bytes());
    output.extend_from_slice(&1i32.to_be_bytes());
    for block in input.chunks(XERIAL_BLOCK_BYTES) {
        let block = snap::raw::Encoder::new()
            .compress_vec(block)
            .map_err(malformed)?;
        let length = u32::try_from(block.len()).unwrap_or(u32::MAX);
        output.extend_from_slice(&length.to_be_bytes());
        output.extend_from_slice(&block);
    }
    Ok(output)
}

/// Decompresses the records of a batch to at most `limit` bytes.
///
/// # Errors
/// When the bytes are malformed, or would become longer than the limit.
pub fn decompress(
    codec: Compression,
    input: &[u8],
    limit: usize,
) -> Result<Vec<u8>, CompressionError> {
    match codec {
        Compression::None if input.len() > limit => {
            Err(CompressionError::TooLarge { codec, limit })
        }
        Compression::None => Ok(input.to_vec()),
        Compression::Gzip => read_capped(codec, MultiGzDecoder::new(input), limit),
        Compression::Snappy => unsnappy(input, limit),
        Compression::Lz4 => unlz4(input, limit),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)
                .map_err(|error| codec.malformed(error))?;
            // A frame names the window its reader must keep; beyond our limit it is of no use.
            let _refused_only_when_out_of_range = decoder.window_log_max(window_log(limit));
            read_capped(codec, decoder, limit)
        }
    }
}

/// The smallest window that covers `limit`, within zstd's default bounds.
fn window_log(limit: usize) -> u32 {
    let log = limit.max(1).ilog2().saturating_add(1);
    log.clamp(ZSTD_WINDOW_LOG_MIN, ZSTD_WINDOW_LOG_MAX)
}

/// 8 MiB: the format asks every decoder to support at least this.
const ZSTD_WINDOW_LOG_MIN: u32 = 23;
/// 128 MiB: zstd's own limit, unless told otherwise. Untouched pages of it cost nothing.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

fn read_capped(
    codec: Compression,
    decoder: impl Read,
    limit: usize,
) -> Result<Vec<u8>, CompressionError> {
    let one_more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let mut output = Vec::new();
    let read = decoder.take(one_more).read_to_end(&mut output);
    if output.len() > limit {
        return Err(CompressionError::TooLarge { codec, limit });
    }
    read.map_err(|error| codec.malformed(error))?;
    Ok(output)
}

const LZ4_MAGIC: &[u8; 4] = &[0x04, 0x22, 0x4d, 0x18];

fn unlz4(input: &[u8], limit: usize) -> Result<Vec<u8>, CompressionError> {
    // The library would also read a legacy format, which no Kafka client writes.
    if !input.starts_with(LZ4_MAGIC) {
        return Err(Compression::Lz4.malformed("not an LZ4 frame"));
    }
    read_capped(Compression::Lz4, FrameDecoder::new(input), limit)
}

fn unsnappy(input: &[u8], limit: usize) -> Result<Vec<u8>, CompressionError> {
    let mut output = Vec::new();
    if !input.starts_with(XERIAL_MAGIC) {
        append_snappy_block(&mut output, input, limit)?;
        return Ok(output);
    }
    let codec = Compression::Snappy;
    let cut_short = || codec.malformed("cut short");
    let mut rest = input.get(XERIAL_HEADER_BYTES..).ok_or_else(cut_short)?;
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(cut_short)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let (block, after) = after.split_at_checked(length).ok_or_else(cut_short)?;
        append_snappy_block(&mut output, block, limit)?;
        rest = after;
    }
    Ok(output)
}

/// A copy of 64 bytes takes three, so no block grows more than this.
const SNAPPY_RATIO_MAX: usize = 22;

fn append_snappy_block(
    output: &mut Vec<u8>,
    block: &[u8],
    limit: usize,
) -> Result<(), CompressionError> {
    let codec = Compression::Snappy;
    let length = snap::raw::decompress_len(block).map_err(|error| codec.malformed(error))?;
    let start = output.len();
    let end = start.saturating_add(length);
    if end > limit {
        return Err(CompressionError::TooLarge { codec, limit });
    }
    if length > block.len().saturating_mul(SNAPPY_RATIO_MAX) {
        return Err(codec.malformed("announces more than its bytes can hold"));
    }
    output.resize(end, 0);
    let room = output.get_mut(start..).unwrap_or_default();
    let written = snap::raw::Decoder::new().decompress(block, room);
    written
        .map(|_bytes| ())
        .map_err(|error| codec.malformed(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_gives_back_what_it_got() {
        let text = b"the same words again and the same words again ".repeat(5_000);
        for codec in Compression::ALL {
            let small = compress(codec, &text).unwrap();
            assert_eq!(
                decompress(codec, &small, text.len()).unwrap(),
                text,
                "{codec:?}"
            );
            assert!(
                codec == Compression::None || small.len() < text.len() / 4,
                "{codec:?}"
            );
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let zeros = vec![0u8; 64 << 20];
        for codec in Compression::ALL {
            let bomb = compress(codec, &zeros).unwrap();
            let error = decompress(codec, &bomb, 1 << 20).unwrap_err();
            assert!(
                matches!(error, CompressionError::TooLarge { .. }),
                "{codec:?}: {error}"
            );
        }
    }

    #[test]
    fn an_empty_batch_of_each_codec_is_empty() {
        for codec in Compression::ALL {
            let nothing = compress(codec, b"").unwrap();
            assert_eq!(decompress(codec, &nothing, 10).unwrap(), b"", "{codec:?}");
        }
    }

    #[test]
    fn raw_snappy_is_understood_as_well() {
        let raw = snap::raw::Encoder::new()
            .compress_vec(b"from librdkafka")
            .unwrap();
        assert_eq!(
            decompress(Compression::Snappy, &raw, 100).unwrap(),
            b"from librdkafka"
        );
    }

    #[test]
    fn a_snappy_block_that_promises_gigabytes_gets_no_memory() {
        let promise = [0xff, 0xff, 0xff, 0xff, 0x0f, 0x00];
        let error = decompress(Compression::Snappy, &promise, usize::MAX).unwrap_err();
        assert!(
            error.to_string().contains("more than its bytes can hold"),
            "{error}"
        );
    }

    #[test]
    fn gzip_members_may_follow_each_other() {
        let mut two = compress(Compression::Gzip, b"one ").unwrap();
        two.extend(compress(Compression::Gzip, b"two").unwrap());
        assert_eq!(
            decompress(Compression::Gzip, &two, 100).unwrap(),
            b"one two"
        );
    }

    #[test]
    fn names_and_numbers_are_kafkas() {
        for (id, name) in ["none", "gzip", "snappy", "lz4", "zstd"]
            .into_iter()
            .enumerate()
        {
            let codec = Compression::from_id(id as u8).unwrap();
            assert_eq!(
                (codec.name(), Compression::from_name(name)),
                (name, Some(codec))
            );
        }
        assert_eq!(Compression::from_id(5), None);
        assert_eq!(Compression::from_name("brotli"), None);
    }
}
