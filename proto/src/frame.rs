//! What surrounds a message: the four-byte size, the request header, the response header.
//!
//! Invariant: a size is judged before anybody allocates for it, and bytes that cannot be Kafka's are
//! told apart by what they are, so that a log line can say "that was a browser".
//!
//! Not here: sockets, timeouts and memory budgets; a connection calls these functions between reads.

use bytes::{BufMut, Bytes};

use crate::StrBytes;
use crate::api::ApiKey;
use crate::wire::{Gather, ReadError, Reader};

/// Bytes of the size in front of every frame.
pub const SIZE_BYTES: usize = 4;

/// Kafka's own limit on a request (`socket.request.max.bytes`): 100 MiB.
pub const FRAME_BYTES_MAX: usize = 100 * 1024 * 1024;

/// Why a size prefix is not the start of a frame we will read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first four bytes are a method of HTTP.
    #[error("an HTTP client spoke to the Kafka port")]
    Http,
    /// The first bytes are a TLS hello.
    #[error("a TLS client spoke to a plaintext Kafka port")]
    Tls,
    /// The size is below zero.
    #[error("a frame announced the negative size {size}")]
    Negative { size: i32 },
    /// The size is zero: there is not even a header.
    #[error("a frame announced the size zero")]
    Zero,
    /// The size is above the limit of this listener.
    #[error("a frame announced {size} bytes, the limit is {limit}")]
    TooLarge { size: usize, limit: usize },
}

/// Judges the four bytes in front of a frame and returns how many follow.
///
/// ```
/// use logd_proto::frame::{FRAME_BYTES_MAX, FrameError, check_size};
/// assert_eq!(check_size([0, 0, 0, 20], FRAME_BYTES_MAX), Ok(20));
/// assert_eq!(check_size(*b"GET ", FRAME_BYTES_MAX), Err(FrameError::Http));
/// ```
///
/// # Errors
/// See [`FrameError`]; all of them mean that the connection should be closed.
pub fn check_size(prefix: [u8; SIZE_BYTES], limit: usize) -> Result<usize, FrameError> {
    let size = i32::from_be_bytes(prefix);
    let Ok(bytes) = usize::try_from(size) else {
        return Err(FrameError::Negative { size });
    };
    match bytes {
        0 => Err(FrameError::Zero),
        _ if bytes <= limit => Ok(bytes),
        _ if is_http(prefix) => Err(FrameError::Http),
        _ if is_tls(prefix) => Err(FrameError::Tls),
        _ => Err(FrameError::TooLarge { size: bytes, limit }),
    }
}

/// The starts of HTTP requests, of responses, and of HTTP/2's preface.
fn is_http(prefix: [u8; SIZE_BYTES]) -> bool {
    const STARTS: [&[u8; 4]; 11] = [
        b"GET ", b"POST", b"PUT ", b"HEAD", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC", b"HTTP",
        b"PRI ",
    ];
    STARTS.contains(&&prefix)
}

/// A TLS record of type handshake (22), version 3.x.
fn is_tls(prefix: [u8; SIZE_BYTES]) -> bool {
    matches!(prefix, [0x16, 0x03, minor, _] if minor <= 4)
}

/// Cuts one frame (without its size) off the front of `buffered`, or says that more bytes are needed.
///
/// # Errors
/// As [`check_size`].
pub fn split_frame(buffered: &mut Bytes, limit: usize) -> Result<Option<Bytes>, FrameError> {
    let Some(prefix) = buffered.first_chunk::<SIZE_BYTES>() else {
        return Ok(None);
    };
    let size = check_size(*prefix, limit)?;
    let end = SIZE_BYTES.saturating_add(size);
    if buffered.len() < end {
        return Ok(None);
    }
    let frame = buffered.split_to(end);
    Ok(Some(frame.slice(SIZE_BYTES..)))
}

/// Who asks for what, in which version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// The API asked for; it is one we serve.
    pub api: ApiKey,
    /// Its version; it is one we serve.
    pub version: i16,
    /// Chosen by the client, repeated in the response.
    pub correlation_id: i32,
    /// The client's name for itself; a null one reads as nothing.
    pub client_id: Option<StrBytes>,
}

/// Why a frame has no request header we can serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// An API key that is not in our table. Kafka closes the connection.
    #[error("unknown API key {key} (version {version})")]
    UnknownApi { key: i16, version: i16 },
    /// A version outside the range we serve. Kafka closes the connection, except for ApiVersions,
    /// which gets [`crate::api::unsupported_api_versions`].
    #[error("{} version {version} is not supported", api.name())]
    UnsupportedVersion {
        api: ApiKey,
        version: i16,
        correlation_id: i32,
    },
    /// The header's bytes make no sense.
    #[error("malformed request header: {0}")]
    Malformed(#[from] ReadError),
}

/// Splits a frame into its header and the bytes of the message.
///
/// # Errors
/// See [`HeaderError`].
pub fn split_request(frame: Bytes) -> Result<(RequestHeader, Bytes), HeaderError> {
    let mut reader = Reader::new(frame);
    let (key, version) = (reader.i16()?, reader.i16()?);
    let correlation_id = reader.i32()?;
    let Some(api) = ApiKey::from_code(key) else {
        return Err(HeaderError::UnknownApi { key, version });
    };
    if !api.versions().contains(&version) {
        return Err(HeaderError::UnsupportedVersion {
            api,
            version,
            correlation_id,
        });
    }
    // Also in flexible versions the client id keeps its classic form: a broker must be able to read
    // it before it knows whether it understands the version.
    let client_id = reader.nullable_string(false)?;
    reader.skip_tags(api.is_flexible(version))?;
    Ok((
        RequestHeader {
            api,
            version,
            correlation_id,
            client_id,
        },
        reader.rest(),
    ))
}

/// A frame ready to be written: its pieces in order, the size in front included.
#[derive(Clone, Debug, Default)]
pub struct EncodedFrame {
    chunks: Vec<Bytes>,
}

impl EncodedFrame {
    pub(crate) fn new(chunks: Vec<Bytes>) -> EncodedFrame {
        EncodedFrame { chunks }
    }

    /// The pieces, for one vectored write.
    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// The pieces, to be owned by a writer's queue.
    pub fn into_chunks(self) -> Vec<Bytes> {
        self.chunks
    }

    /// All bytes that will be written.
    pub fn len(&self) -> usize {
        self.chunks
            .iter()
            .fold(0, |sum, chunk| sum.saturating_add(chunk.len()))
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.chunks.iter().all(Bytes::is_empty)
    }

    /// One contiguous copy, for tests and small messages.
    pub fn to_bytes(&self) -> Bytes {
        match self.chunks.as_slice() {
            [only] => only.clone(),
            chunks => Bytes::from(chunks.concat()),
        }
    }
}

/// Writes a response header.
pub(crate) fn put_response_header(out: &mut Gather, correlation_id: i32, flexible: bool) {
    out.own().put_i32(correlation_id);
    out.no_tags(flexible);
}

/// Splits a response frame (without its size) into the correlation id and the bytes of the message.
///
/// # Errors
/// When the header's bytes make no sense.
pub fn split_response(frame: Bytes, flexible_header: bool) -> Result<(i32, Bytes), ReadError> {
    let mut reader = Reader::new(frame);
    let correlation_id = reader.i32()?;
    reader.skip_tags(flexible_header)?;
    Ok((correlation_id, reader.rest()))
}

/// The correlation id of a response frame, before it is known which request it answers.
pub fn correlation_id(frame: &[u8]) -> Option<i32> {
    frame.first_chunk().map(|bytes| i32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of(prefix: &[u8; 4]) -> Result<usize, FrameError> {
        check_size(*prefix, FRAME_BYTES_MAX)
    }

    #[test]
    fn strangers_are_recognised_by_their_first_four_bytes() {
        assert_eq!(size_of(b"GET "), Err(FrameError::Http));
        assert_eq!(size_of(b"POST"), Err(FrameError::Http));
        assert_eq!(size_of(&[0x16, 0x03, 0x01, 0x00]), Err(FrameError::Tls));
    }

    #[test]
    fn sizes_are_limited_before_anything_is_read() {
        assert_eq!(size_of(&[0xff; 4]), Err(FrameError::Negative { size: -1 }));
        assert_eq!(size_of(&[0; 4]), Err(FrameError::Zero));
        let two_gigabytes = size_of(&[0x7f, 0xff, 0xff, 0xff]);
        let limit = FRAME_BYTES_MAX;
        assert_eq!(
            two_gigabytes,
            Err(FrameError::TooLarge {
                size: 0x7fff_ffff,
                limit
            })
        );
        assert_eq!(size_of(&[0x06, 0x40, 0, 0]), Ok(FRAME_BYTES_MAX));
    }

    #[test]
    fn a_frame_is_cut_off_when_all_of_it_arrived() {
        let mut buffered = Bytes::from_static(&[0, 0, 0, 2, 1]);
        assert_eq!(split_frame(&mut buffered, 100), Ok(None));
        let mut buffered = Bytes::from_static(&[0, 0, 0, 2, 1, 2, 0, 0]);
        let frame = split_frame(&mut buffered, 100).unwrap().unwrap();
        assert_eq!(frame.as_ref(), [1, 2]);
        assert_eq!(buffered.as_ref(), [0, 0]);
    }

    #[test]
    fn a_classic_header_has_a_client_id_and_no_tags() {
        let frame = Bytes::from_static(b"\x00\x03\x00\x01\x00\x00\x00\x09\x00\x02me!!");
        let (header, body) = split_request(frame).unwrap();
        assert_eq!((header.api, header.version), (ApiKey::Metadata, 1));
        assert_eq!(header.correlation_id, 9);
        assert_eq!(header.client_id.as_deref(), Some("me"));
        assert_eq!(body.as_ref(), b"!!");
    }

    #[test]
    fn trap_05_a_flexible_header_keeps_the_classic_client_id_and_skips_unknown_tags() {
        let frame = Bytes::from_static(b"\x00\x03\x00\x0c\x00\x00\x00\x09\xff\xff\x01\x63\x02zz!");
        let (header, body) = split_request(frame).unwrap();
        assert_eq!(header.client_id, None);
        assert_eq!(body.as_ref(), b"!");
    }

    #[test]
    fn unknown_apis_and_versions_are_told_apart() {
        let unknown = split_request(Bytes::from_static(&[0x7f, 0, 0, 1, 0, 0, 0, 1]));
        assert_eq!(
            unknown,
            Err(HeaderError::UnknownApi {
                key: 0x7f00,
                version: 1
            })
        );
        // The body of an ApiVersions from the future is not looked at.
        let future = split_request(Bytes::from_static(&[0, 18, 0, 99, 0, 0, 0, 7, 1, 2, 3]));
        let api = ApiKey::ApiVersions;
        let expected = HeaderError::UnsupportedVersion {
            api,
            version: 99,
            correlation_id: 7,
        };
        assert_eq!(future, Err(expected));
    }
}
