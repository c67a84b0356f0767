//! The primitives the hand-written messages are made of: a cursor that borrows from a frame, and a
//! buffer that gathers headers and foreign slices into one response.
//!
//! Invariant: a length or count from a peer is compared with the bytes that are left before anything
//! is allocated for it.
//!
//! Not here: which fields a message has, and at which versions.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_wire_core::{StrBytes, Uuid};

/// What is wrong with the bytes of a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The message ends before the field does.
    #[error("at byte {at}: {needed} bytes needed, {left} left")]
    Truncated {
        at: usize,
        needed: usize,
        left: usize,
    },
    /// A length below -1, or a null where the protocol has none.
    #[error("at byte {at}: length {length} is not allowed here")]
    BadLength { at: usize, length: i64 },
    /// More elements announced than the remaining bytes could hold, or than any honest message has.
    #[error(
        "at byte {at}: {count} elements announced, {left} bytes left; a message has at most {max} elements",
        max = ELEMENTS_MAX
    )]
    TooMany {
        at: usize,
        count: usize,
        left: usize,
    },
    /// A variable-length integer of more bytes than its type has.
    #[error("at byte {at}: malformed variable-length integer")]
    BadVarint { at: usize },
    /// A string that is not UTF-8.
    #[error("at byte {at}: string is not UTF-8")]
    NotUtf8 { at: usize },
}

/// Elements of all arrays of one message together. An element of three bytes becomes a structure of
/// seventy, so a frame of 100 MiB could otherwise take gigabytes; the largest clients name some
/// thousand partitions at once.
const ELEMENTS_MAX: usize = 200_000;

/// A cursor over one message. Slices it hands out share the frame's memory.
#[derive(Debug)]
pub(crate) struct Reader {
    buf: Bytes,
    at: usize,
    /// Elements that arrays may still have.
    elements_left: usize,
}

impl Reader {
    pub(crate) fn new(buf: Bytes) -> Reader {
        Reader {
            buf,
            at: 0,
            elements_left: ELEMENTS_MAX,
        }
    }

    pub(crate) fn left(&self) -> usize {
        self.buf.len().saturating_sub(self.at)
    }

    /// What has not been read yet, sharing memory.
    pub(crate) fn rest(self) -> Bytes {
        self.buf.slice(self.at..)
    }

    fn truncated(&self, needed: usize) -> ReadError {
        ReadError::Truncated {
            at: self.at,
            needed,
            left: self.left(),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let tail = self.buf.get(self.at..).unwrap_or_default();
        let Some(bytes) = tail.first_chunk::<N>() else {
            return Err(self.truncated(N));
        };
        self.at = self.at.saturating_add(N);
        Ok(*bytes)
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<Bytes, ReadError> {
        if length > self.left() {
            return Err(self.truncated(length));
        }
        let end = self.at.saturating_add(length);
        let slice = self.buf.slice(self.at..end);
        self.at = end;
        Ok(slice)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, ReadError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn i8(&mut self) -> Result<i8, ReadError> {
        self.array().map(i8::from_be_bytes)
    }

    pub(crate) fn i16(&mut self) -> Result<i16, ReadError> {
        self.array().map(i16::from_be_bytes)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, ReadError> {
        self.array().map(i32::from_be_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, ReadError> {
        self.array().map(i64::from_be_bytes)
    }

    pub(crate) fn uuid(&mut self) -> Result<Uuid, ReadError> {
        self.array().map(Uuid::from_bytes)
    }

    pub(crate) fn unsigned_varint(&mut self) -> Result<u32, ReadError> {
        let at = self.at;
        let mut value = 0u32;
        for shift in [0u32, 7, 14, 21, 28] {
            let byte = self.u8()?;
            if shift == 28 && byte > 0x0f {
                break;
            }
            value |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(ReadError::BadVarint { at })
    }

    /// A length: the classic forms use -1 for null, the compact ones 0, with everything one higher.
    fn length(&mut self, flexible: bool, classic: Classic) -> Result<Option<usize>, ReadError> {
        let at = self.at;
        let length = if flexible {
            i64::from(self.unsigned_varint()?).saturating_sub(1)
        } else {
            match classic {
                Classic::Short => i64::from(self.i16()?),
                Classic::Long => i64::from(self.i32()?),
            }
        };
        match usize::try_from(length) {
            Ok(length) => Ok(Some(length)),
            Err(_) if length == -1 => Ok(None),
            Err(_) => Err(ReadError::BadLength { at, length }),
        }
    }

    pub(crate) fn nullable_string(
        &mut self,
        flexible: bool,
    ) -> Result<Option<StrBytes>, ReadError> {
        let Some(length) = self.length(flexible, Classic::Short)? else {
            return Ok(None);
        };
        let at = self.at;
        let text = StrBytes::try_from(self.take(length)?);
        text.map(Some).map_err(|_| ReadError::NotUtf8 { at })
    }

    pub(crate) fn string(&mut self, flexible: bool) -> Result<StrBytes, ReadError> {
        let at = self.at;
        let text = self.nullable_string(flexible)?;
        text.ok_or(ReadError::BadLength { at, length: -1 })
    }

    pub(crate) fn nullable_bytes(&mut self, flexible: bool) -> Result<Option<Bytes>, ReadError> {
        match self.length(flexible, Classic::Long)? {
            Some(length) => self.take(length).map(Some),
            None => Ok(None),
        }
    }

    /// Reads an array whose elements take at least `element_bytes_min` bytes each, so that a claimed
    /// count is refused when the frame cannot hold it, before room is made for it.
    pub(crate) fn array_of<T>(
        &mut self,
        flexible: bool,
        element_bytes_min: usize,
        mut element: impl FnMut(&mut Reader) -> Result<T, ReadError>,
    ) -> Result<Vec<T>, ReadError> {
        let at = self.at;
        let count = self.length(flexible, Classic::Long)?;
        let count = count.ok_or(ReadError::BadLength { at, length: -1 })?;
        let fits = count.saturating_mul(element_bytes_min) <= self.left();
        let Some(elements_left) = self.elements_left.checked_sub(count).filter(|_| fits) else {
            return Err(ReadError::TooMany {
                at,
                count,
                left: self.left(),
            });
        };
        self.elements_left = elements_left;
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(element(self)?);
        }
        Ok(elements)
    }

    /// Reads the tagged fields at the end of a flexible structure: `known` takes those it knows from
    /// a reader of their own bytes; the others are skipped.
    pub(crate) fn tags(
        &mut self,
        flexible: bool,
        mut known: impl FnMut(u32, &mut Reader) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        if !flexible {
            return Ok(());
        }
        for _ in 0..self.unsigned_varint()? {
            let tag = self.unsigned_varint()?;
            let length = self.unsigned_varint()?;
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let mut field = Reader::new(self.take(length)?);
            known(tag, &mut field)?;
        }
        Ok(())
    }

    pub(crate) fn skip_tags(&mut self, flexible: bool) -> Result<(), ReadError> {
        self.tags(flexible, |_, _| Ok(()))
    }
}

/// How wide a length is before the compact forms came.
#[derive(Clone, Copy)]
enum Classic {
    Short,
    Long,
}

/// Slices shorter than this are copied between their neighbours: an extra entry in a vectored write
/// costs more than moving so few bytes.
const COPY_BYTES_MAX: usize = 256;

/// Builds a frame out of bytes written here and slices that belong to somebody else, which are
/// neither copied nor looked at.
#[derive(Debug)]
pub(crate) struct Gather {
    own: BytesMut,
    /// Foreign slices, with the position in `own` they follow.
    slices: Vec<(usize, Bytes)>,
    slice_bytes: usize,
}

impl Gather {
    /// Starts a frame; its first four bytes become the size.
    pub(crate) fn frame() -> Gather {
        let mut own = BytesMut::with_capacity(256);
        own.put_i32(0);
        Gather {
            own,
            slices: Vec::new(),
            slice_bytes: 0,
        }
    }

    /// Starts a message that is no frame: it has no size in front.
    pub(crate) fn message() -> Gather {
        Gather {
            own: BytesMut::new(),
            slices: Vec::new(),
            slice_bytes: 0,
        }
    }

    /// The bytes of a message into which no slices were gathered.
    pub(crate) fn into_bytes(self) -> Bytes {
        self.own.freeze()
    }

    /// The bytes written here, for encoders that append to a buffer.
    pub(crate) fn own(&mut self) -> &mut BytesMut {
        &mut self.own
    }

    pub(crate) fn slice(&mut self, slice: Bytes) {
        if slice.len() < COPY_BYTES_MAX {
            self.own.put_slice(&slice);
        } else {
            self.slice_bytes = self.slice_bytes.saturating_add(slice.len());
            self.slices.push((self.own.len(), slice));
        }
    }

    /// Writes the size and hands out the pieces in order, or nothing when the frame is larger than
    /// its size field can say.
    pub(crate) fn finish(mut self) -> Option<Vec<Bytes>> {
        let bytes = self.own.len().checked_add(self.slice_bytes)?;
        let size = i32::try_from(bytes.checked_sub(4)?).ok()?;
        self.own.get_mut(..4)?.copy_from_slice(&size.to_be_bytes());
        let mut own = self.own.freeze();
        let mut chunks = Vec::with_capacity(self.slices.len().saturating_mul(2).saturating_add(1));
        let mut written = 0usize;
        for (position, slice) in self.slices {
            let head = own.split_to(position.checked_sub(written)?);
            written = position;
            if !head.is_empty() {
                chunks.push(head);
            }
            chunks.push(slice);
        }
        if !own.is_empty() {
            chunks.push(own);
        }
        Some(chunks)
    }

    pub(crate) fn i16(&mut self, value: i16) {
        self.own.put_i16(value);
    }

    pub(crate) fn i32(&mut self, value: i32) {
        self.own.put_i32(value);
    }

    pub(crate) fn i64(&mut self, value: i64) {
        self.own.put_i64(value);
    }

    pub(crate) fn uuid(&mut self, value: Uuid) {
        self.own.put_slice(value.as_bytes());
    }

    pub(crate) fn unsigned_varint(&mut self, value: u32) {
        put_unsigned_varint(&mut self.own, value);
    }

    fn length(&mut self, flexible: bool, classic: Classic, length: Option<usize>) {
        if flexible {
            let compact = length.map_or(0, |length| saturating_u32(length).saturating_add(1));
            self.unsigned_varint(compact);
        } else {
            match classic {
                Classic::Short => self.i16(length.map_or(-1, saturating_i16)),
                Classic::Long => self.i32(length.map_or(-1, saturating_i32)),
            }
        }
    }

    /// A string; one too long for its length field is cut at a character, because an error message
    /// must not make a response impossible.
    pub(crate) fn nullable_string(&mut self, flexible: bool, text: Option<&str>) {
        let text = text
            .map(|text| text.get(..text.floor_char_boundary(STRING_BYTES_MAX)))
            .map(Option::unwrap_or_default);
        self.length(flexible, Classic::Short, text.map(str::len));
        self.own.put_slice(text.unwrap_or_default().as_bytes());
    }

    pub(crate) fn string(&mut self, flexible: bool, text: &str) {
        self.nullable_string(flexible, Some(text));
    }

    pub(crate) fn bytes_length(&mut self, flexible: bool, length: Option<usize>) {
        self.length(flexible, Classic::Long, length);
    }

    pub(crate) fn array_length(&mut self, flexible: bool, length: Option<usize>) {
        self.length(flexible, Classic::Long, length);
    }

    /// The empty set of tagged fields that closes a flexible structure.
    pub(crate) fn no_tags(&mut self, flexible: bool) {
        if flexible {
            self.own.put_u8(0);
        }
    }

    /// One tagged field, from what `body` writes.
    pub(crate) fn tag(&mut self, tag: u32, body: impl FnOnce(&mut Gather)) {
        let mut field = Gather::message();
        body(&mut field);
        self.unsigned_varint(tag);
        self.unsigned_varint(saturating_u32(field.own.len()));
        self.own.put_slice(&field.own);
    }
}

/// The longest string the classic length field can describe.
const STRING_BYTES_MAX: usize = 32_767;

fn saturating_i16(length: usize) -> i16 {
    i16::try_from(length).unwrap_or(i16::MAX)
}

fn saturating_i32(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}

fn saturating_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn put_unsigned_varint(out: &mut BytesMut, mut value: u32) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_beyond_the_frame_is_refused_before_room_is_made() {
        let mut reader = Reader::new(Bytes::from_static(&[0x3b, 0x9a, 0xca, 0x00]));
        let error = reader.array_of(false, 1, Reader::i8).unwrap_err();
        assert_eq!(
            error,
            ReadError::TooMany {
                at: 0,
                count: 1_000_000_000,
                left: 0
            }
        );
    }

    #[test]
    fn large_slices_travel_uncopied_and_small_ones_inline() {
        let record = Bytes::from(vec![7u8; 1000]);
        let mut gather = Gather::frame();
        gather.i32(1);
        gather.slice(record.clone());
        gather.slice(Bytes::from_static(b"tiny"));
        let chunks = gather.finish().unwrap();
        assert_eq!(chunks.len(), 3);
        assert_eq!(chunks[0].as_ref(), [0, 0, 3, 0xf0, 0, 0, 0, 1]);
        assert_eq!(chunks[1].as_ptr(), record.as_ptr());
        assert_eq!(chunks[2].as_ref(), b"tiny");
    }

    #[test]
    fn varints_longer_than_their_type_are_malformed() {
        for bytes in [&[0xffu8, 0xff, 0xff, 0xff, 0x1f][..], &[0x80; 6]] {
            let mut reader = Reader::new(Bytes::copy_from_slice(bytes));
            assert_eq!(
                reader.unsigned_varint(),
                Err(ReadError::BadVarint { at: 0 })
            );
        }
    }

    #[test]
    fn an_endless_error_message_is_cut_rather_than_refused() {
        let mut gather = Gather::frame();
        gather.string(false, &"é".repeat(20_000));
        let bytes = gather.finish().unwrap().concat();
        assert_eq!(bytes[4..6], 32_766u16.to_be_bytes());
        assert_eq!(bytes.len(), 6 + 32_766);
    }
}
