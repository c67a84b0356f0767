//! Little-endian bytes in and out for everything of ours that lies on the disk.
//!
//! Promise: taking never reads past the end and never allocates more than the bytes that are there.
//! Not here: what the fields mean, and their checksums.

use crate::{EntryId, Kind, LogKey};
use bytes::Bytes;

/// Rows and groups carry the kind as a number: data is 0, control has a bit above its own number.
const CONTROL: u16 = 0x100;

pub(crate) fn kind_number(kind: Kind) -> u16 {
    match kind {
        Kind::Data => 0,
        Kind::Control(n) => CONTROL | u16::from(n),
    }
}

pub(crate) fn kind_of(number: u16) -> Option<Kind> {
    match number {
        0 => Some(Kind::Data),
        n if n & !0xff == CONTROL => Some(Kind::Control(n as u8)),
        _ => None,
    }
}

/// A buffer that grows.
#[derive(Debug, Default)]
pub(crate) struct Put(pub Vec<u8>);

impl Put {
    pub fn u8(&mut self, v: u8) {
        self.0.push(v);
    }
    pub fn u32(&mut self, v: u32) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub fn u64(&mut self, v: u64) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub fn i64(&mut self, v: i64) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub fn u128(&mut self, v: u128) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub fn key(&mut self, key: LogKey) {
        self.0.extend_from_slice(&key.topic);
        self.u32(key.partition);
    }
    pub fn id(&mut self, id: EntryId) {
        self.u64(id.term);
        self.u64(id.index);
    }
    pub fn bytes(&mut self, b: &[u8]) {
        self.u32(b.len() as u32);
        self.0.extend_from_slice(b);
    }
    pub fn option<T>(&mut self, v: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.u8(u8::from(v.is_some()));
        if let Some(v) = v {
            put(self, v);
        }
    }
    pub fn list<T>(&mut self, items: &[T], mut put: impl FnMut(&mut Self, &T)) {
        self.u32(items.len() as u32);
        items.iter().for_each(|item| put(self, item));
    }
}

/// What is left to read. Every method says `None` when too little is left.
#[derive(Debug, Clone)]
pub(crate) struct Take(pub Bytes);

impl Take {
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, _) = self.0.split_first_chunk::<N>()?;
        let head = *head;
        let _ = self.0.split_to(N);
        Some(head)
    }
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }
    pub fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }
    pub fn key(&mut self) -> Option<LogKey> {
        Some(LogKey {
            topic: self.array()?,
            partition: self.u32()?,
        })
    }
    pub fn id(&mut self) -> Option<EntryId> {
        Some(EntryId {
            term: self.u64()?,
            index: self.u64()?,
        })
    }
    pub fn bytes(&mut self) -> Option<Bytes> {
        let len = self.u32()? as usize;
        (len <= self.0.len()).then(|| self.0.split_to(len))
    }
    pub fn option<T>(&mut self, take: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.u8()? {
            0 => Some(None),
            1 => take(self).map(Some),
            _ => None,
        }
    }
    pub fn list<T>(&mut self, mut take: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let len = self.u32()? as usize;
        // The count is not believed before its items are there: no allocation by it.
        let mut items = Vec::new();
        for _ in 0..len {
            items.push(take(self)?);
        }
        Some(items)
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The checksum of all our own files, started from what must also match: a disk, a file, a log.
pub(crate) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// Reads a number at a fixed place of a fixed-size row that the caller has cut to size.
pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(raw)
}

pub(crate) fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(raw)
}
