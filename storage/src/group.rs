//! A group of the write-ahead log: what one write to the disk carries.
//!
//! ```text
//!      0  magic "logdgrp1"      8  sequence of the group     16  number of its first operation
//!     24  operations           28  payload bytes (8)         36  CRC of the descriptors
//!     40  zero ..              60  CRC of this header
//!     64  one 72-byte descriptor per operation, then their payloads without gaps, then zeros to 4 KiB
//! ```
//! A descriptor:
//! ```text
//!      0  type   1  flags   2  kind (2)   4  partition   8  topic (16)
//!     24  index  32  term  40  offset  48  max timestamp
//!     56  payload bytes  60  records  64  CRC of the payload  68  zero
//! ```
//! Flags: of an entry 1 "starts a segment"; of a truncation 1 "keeps something"; of truncation, purge and
//! snapshot 2 "the offset is where the log ends or starts afterwards"; of a snapshot 4 "replaces the log"; of
//! settling 1 "moves something into the base". `records` of a replacement is the length of the state, its first part.
//! Checksums of header and descriptors start from the disk's id and the file's number, so that what an
//! earlier life of a recycled file left behind never validates. Payloads have their own, computed once
//! when they arrive and kept in the ledger too.
//! Not here: files (see `wal`), and what operations do (see `state`).

use crate::codec::{crc, kind_number, kind_of, u32_at, u64_at};
use crate::ledger::Row;
use crate::{Entry, EntryId, Kind, LogKey};
use bytes::Bytes;

/// What the disk writes at once without reading first.
pub(crate) const BLOCK_BYTES: usize = 4096;
pub(crate) const HEADER_BYTES: usize = 64;
pub(crate) const DESCRIPTOR_BYTES: usize = 72;
const MAGIC: [u8; 8] = *b"logdgrp1";

const ENTRY: u8 = 1;
const VOTE: u8 = 2;
const TRUNCATE: u8 = 3;
const PURGE: u8 = 4;
const DELETE: u8 = 5;
const SNAPSHOT: u8 = 6;
const REWRITE: u8 = 7;
const SETTLE: u8 = 8;
const CAPTURE: u8 = 9;
const REPLACE: u8 = 10;
/// The entry starts a new segment.
const NEW_SEGMENT: u8 = 1;
/// The truncation keeps something: its index counts.
const KEEPS: u8 = 1;
/// A truncation, purge or snapshot carries what it led to: the offset where the log ends or starts after it,
/// and whether anything stays. Without the flag (older files) replay reads the ledger for it, whose file a
/// later operation may have removed.
const OUTCOME: u8 = 2;
/// Nothing of the log stays below or above the snapshot.
const REPLACES: u8 = 4;

/// One operation as it is written.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Entry {
        row: Row,
        head: Bytes,
        body: Bytes,
        new_segment: bool,
    },
    Vote(Bytes),
    Truncate {
        keep: Option<u64>,
        /// Where the log ends after it.
        end_offset: Option<i64>,
    },
    Purge {
        upto: EntryId,
        /// Where the log starts after it.
        start_offset: Option<i64>,
    },
    Delete,
    Snapshot {
        upto: EntryId,
        next_offset: i64,
        state: Bytes,
        /// The log was damaged or differed: nothing of it stays.
        replaces: Option<bool>,
    },
    /// A segment of the base (as in the checkpoint) takes the place of those that hold the same entries.
    Rewrite(Bytes),
    /// Segments up to an entry become the base's; of the base, what lies below the floor goes.
    Settle {
        upto: Option<EntryId>,
        floor: i64,
    },
    /// The owner's state after an entry that the log has.
    Capture {
        applied: EntryId,
        state: Bytes,
    },
    /// A snapshot and its files (as in the checkpoint) take the place of the whole log.
    Replace {
        upto: EntryId,
        next_offset: i64,
        state: Bytes,
        base: Bytes,
    },
}

impl Operation {
    pub fn payload(&self) -> [&[u8]; 2] {
        match self {
            Operation::Entry { head, body, .. } => [head, body],
            Operation::Vote(b)
            | Operation::Snapshot { state: b, .. }
            | Operation::Capture { state: b, .. }
            | Operation::Rewrite(b) => [b, &[]],
            Operation::Replace { state, base, .. } => [state, base],
            Operation::Truncate { .. }
            | Operation::Purge { .. }
            | Operation::Settle { .. }
            | Operation::Delete => [&[], &[]],
        }
    }

    pub fn payload_len(&self) -> usize {
        self.payload().iter().map(|p| p.len()).sum()
    }

    /// What it takes in a group.
    pub fn weight(&self) -> usize {
        DESCRIPTOR_BYTES + self.payload_len()
    }

    fn describe(&self, key: LogKey) -> [u8; DESCRIPTOR_BYTES] {
        let mut b = [0; DESCRIPTOR_BYTES];
        b[4..8].copy_from_slice(&key.partition.to_le_bytes());
        b[8..24].copy_from_slice(&key.topic);
        let (mut index, mut term, mut offset, mut time, mut records) = (0u64, 0u64, 0i64, 0i64, 0);
        let mut payload_crc = None;
        b[0] = match self {
            Operation::Entry {
                row, new_segment, ..
            } => {
                b[1] = if *new_segment { NEW_SEGMENT } else { 0 };
                b[2..4].copy_from_slice(&kind_number(row.kind).to_le_bytes());
                (index, term, offset) = (row.index, row.term, row.base_offset);
                (time, records) = (row.max_timestamp, row.records);
                payload_crc = Some(row.payload_crc);
                ENTRY
            }
            Operation::Vote(_) => VOTE,
            Operation::Rewrite(_) => REWRITE,
            Operation::Truncate { keep, end_offset } => {
                b[1] = flag(keep.is_some(), KEEPS) | flag(end_offset.is_some(), OUTCOME);
                (index, offset) = (keep.unwrap_or(0), end_offset.unwrap_or(0));
                TRUNCATE
            }
            Operation::Purge { upto, start_offset } => {
                b[1] = flag(start_offset.is_some(), OUTCOME);
                (index, term, offset) = (upto.index, upto.term, start_offset.unwrap_or(0));
                PURGE
            }
            Operation::Delete => DELETE,
            Operation::Settle { upto, floor } => {
                b[1] = flag(upto.is_some(), KEEPS);
                (index, term) = upto.map_or((0, 0), |u| (u.index, u.term));
                offset = *floor;
                SETTLE
            }
            Operation::Capture { applied, .. } => {
                (index, term) = (applied.index, applied.term);
                CAPTURE
            }
            Operation::Replace {
                upto,
                next_offset,
                state,
                ..
            } => {
                (index, term, offset) = (upto.index, upto.term, *next_offset);
                records = state.len() as u32;
                REPLACE
            }
            Operation::Snapshot {
                upto,
                next_offset,
                replaces,
                ..
            } => {
                b[1] = flag(replaces.is_some(), OUTCOME) | flag(*replaces == Some(true), REPLACES);
                (index, term, offset) = (upto.index, upto.term, *next_offset);
                SNAPSHOT
            }
        };
        b[24..32].copy_from_slice(&index.to_le_bytes());
        b[32..40].copy_from_slice(&term.to_le_bytes());
        b[40..48].copy_from_slice(&offset.to_le_bytes());
        b[48..56].copy_from_slice(&time.to_le_bytes());
        b[56..60].copy_from_slice(&(self.payload_len() as u32).to_le_bytes());
        b[60..64].copy_from_slice(&records.to_le_bytes());
        let sum = payload_crc.unwrap_or_else(|| payload_checksum(self.payload()));
        b[64..68].copy_from_slice(&sum.to_le_bytes());
        b
    }
}

fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

pub(crate) fn payload_checksum(parts: [&[u8]; 2]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|p| hasher.update(p));
    hasher.finalize()
}

/// The bytes that a group of operations of this total weight takes on the disk.
pub(crate) fn group_bytes(weight: usize) -> usize {
    (HEADER_BYTES + weight).next_multiple_of(BLOCK_BYTES)
}

/// Encodes a group into `out`, which is exactly as long as it.
pub(crate) fn encode<'a>(
    out: &mut [u8],
    seed: u32,
    sequence: u64,
    first_op: u64,
    operations: impl ExactSizeIterator<Item = (LogKey, &'a Operation)>,
) {
    let count = operations.len();
    let (header, rest) = out.split_at_mut(HEADER_BYTES);
    let (descriptors, payloads) = rest.split_at_mut(count * DESCRIPTOR_BYTES);
    let mut at = 0;
    for ((key, operation), place) in operations.zip(descriptors.chunks_exact_mut(DESCRIPTOR_BYTES))
    {
        place.copy_from_slice(&operation.describe(key));
        for part in operation.payload() {
            payloads[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
    }
    payloads[at..].fill(0);
    header.fill(0);
    header[0..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    header[16..24].copy_from_slice(&first_op.to_le_bytes());
    header[24..28].copy_from_slice(&(count as u32).to_le_bytes());
    header[28..36].copy_from_slice(&(at as u64).to_le_bytes());
    header[36..40].copy_from_slice(&crc(seed, descriptors).to_le_bytes());
    let sum = crc(seed, &header[..60]);
    header[60..64].copy_from_slice(&sum.to_le_bytes());
}

/// A group's header, once it validates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupHeader {
    pub sequence: u64,
    pub first_op: u64,
    pub operations: u32,
    pub payload_bytes: u64,
    descriptors_crc: u32,
}

impl GroupHeader {
    pub fn decode(b: &[u8], seed: u32) -> Option<GroupHeader> {
        let b = b.get(..HEADER_BYTES)?;
        let sound = b[..8] == MAGIC && crc(seed, &b[..60]) == u32_at(b, 60);
        sound.then(|| GroupHeader {
            sequence: u64_at(b, 8),
            first_op: u64_at(b, 16),
            operations: u32_at(b, 24),
            payload_bytes: u64_at(b, 28),
            descriptors_crc: u32_at(b, 36),
        })
    }

    /// Bytes of the whole group on the disk, if that is a number a file could hold.
    pub fn group_bytes(&self) -> Option<usize> {
        let descriptors = u64::from(self.operations) * DESCRIPTOR_BYTES as u64;
        let all = descriptors
            .checked_add(self.payload_bytes)?
            .checked_add(HEADER_BYTES as u64)?;
        let all = usize::try_from(all).ok().filter(|n| *n < 1 << 40)?;
        Some(all.next_multiple_of(BLOCK_BYTES))
    }

    /// The operations of a group whose bytes, header included, are `group`; `None` if it is torn.
    pub fn operations(&self, group: &Bytes, seed: u32) -> Option<Vec<(LogKey, Operation)>> {
        let payloads_at = HEADER_BYTES + self.operations as usize * DESCRIPTOR_BYTES;
        let descriptors = group.get(HEADER_BYTES..payloads_at)?;
        if crc(seed, descriptors) != self.descriptors_crc {
            return None;
        }
        let mut at = payloads_at;
        let mut operations = Vec::with_capacity(self.operations as usize);
        for descriptor in descriptors.chunks_exact(DESCRIPTOR_BYTES) {
            let end = at.checked_add(u32_at(descriptor, 56) as usize)?;
            let payload = (end <= group.len()).then(|| group.slice(at..end))?;
            if crc32fast::hash(&payload) != u32_at(descriptor, 64) {
                return None;
            }
            operations.push(operation(descriptor, payload)?);
            at = end;
        }
        Some(operations)
    }
}

fn operation(b: &[u8], payload: Bytes) -> Option<(LogKey, Operation)> {
    let mut topic = [0; 16];
    topic.copy_from_slice(&b[8..24]);
    let key = LogKey {
        topic,
        partition: u32_at(b, 4),
    };
    let id = EntryId {
        index: u64_at(b, 24),
        term: u64_at(b, 32),
    };
    let offset = u64_at(b, 40) as i64;
    let recorded = (b[1] & OUTCOME != 0).then_some(offset);
    let operation = match b[0] {
        ENTRY => entry(b, id, payload)?,
        VOTE => Operation::Vote(payload),
        TRUNCATE => Operation::Truncate {
            keep: (b[1] & KEEPS != 0).then_some(id.index),
            end_offset: recorded,
        },
        PURGE => Operation::Purge {
            upto: id,
            start_offset: recorded,
        },
        DELETE => Operation::Delete,
        REWRITE => Operation::Rewrite(payload),
        SETTLE => Operation::Settle {
            upto: (b[1] & KEEPS != 0).then_some(id),
            floor: offset,
        },
        CAPTURE => Operation::Capture {
            applied: id,
            state: payload,
        },
        REPLACE => {
            let state_len = u32_at(b, 60) as usize;
            Operation::Replace {
                upto: id,
                next_offset: offset,
                state: (state_len <= payload.len()).then(|| payload.slice(..state_len))?,
                base: payload.slice(state_len..),
            }
        }
        SNAPSHOT => Operation::Snapshot {
            upto: id,
            next_offset: offset,
            state: payload,
            replaces: recorded.map(|_| b[1] & REPLACES != 0),
        },
        _ => return None,
    };
    Some((key, operation))
}

fn entry(b: &[u8], id: EntryId, payload: Bytes) -> Option<Operation> {
    let kind = kind_of(u16::from_le_bytes([b[2], b[3]]))?;
    let row = Row {
        index: id.index,
        term: id.term,
        base_offset: u64_at(b, 40) as i64,
        max_timestamp: u64_at(b, 48) as i64,
        // Where it lies in its segment follows from the entries before it.
        position: 0,
        length: match kind {
            Kind::Data => payload.len() as u32,
            Kind::Control(_) => 0,
        },
        records: u32_at(b, 60),
        kind,
        payload_crc: u32_at(b, 64),
    };
    Some(Operation::Entry {
        row,
        head: Bytes::new(),
        body: payload,
        new_segment: b[1] & NEW_SEGMENT != 0,
    })
}

/// For each operation of a group, the log it deletes, if it does; from the descriptors alone.
pub(crate) fn deletions(group: &[u8]) -> impl Iterator<Item = Option<LogKey>> {
    let descriptors = group.get(HEADER_BYTES..).unwrap_or_default();
    descriptors.chunks_exact(DESCRIPTOR_BYTES).map(|b| {
        let mut topic = [0; 16];
        topic.copy_from_slice(&b[8..24]);
        (b[0] == DELETE).then(|| LogKey {
            topic,
            partition: u32_at(b, 4),
        })
    })
}

/// The entry that a row and its payload stand for.
pub(crate) fn to_entry(row: &Row, head: Bytes, body: Bytes) -> Entry {
    Entry {
        id: row.id(),
        kind: row.kind,
        base_offset: row.base_offset,
        records: row.records,
        max_timestamp: row.max_timestamp,
        head,
        body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: LogKey = LogKey {
        topic: [5; 16],
        partition: 2,
    };
    const ID: EntryId = EntryId { term: 3, index: 9 };

    fn truncate(keep: Option<u64>, end_offset: Option<i64>) -> Operation {
        Operation::Truncate { keep, end_offset }
    }

    fn operations() -> Vec<(LogKey, Operation)> {
        let head = Bytes::from_static(b"head");
        let body = Bytes::from_static(b" and body");
        let row = Row {
            index: 9,
            term: 3,
            base_offset: 77,
            max_timestamp: 12,
            position: 0,
            length: 13,
            records: 2,
            kind: Kind::Data,
            payload_crc: payload_checksum([&head, &body]),
        };
        let data = Operation::Entry {
            row,
            head,
            body,
            new_segment: true,
        };
        let snapshot = Operation::Snapshot {
            upto: ID,
            next_offset: 5,
            state: Bytes::from_static(b"state"),
            replaces: Some(true),
        };
        let others = [
            Operation::Vote(Bytes::from_static(b"vote")),
            truncate(None, None),
            truncate(Some(4), Some(40)),
            Operation::Purge {
                upto: ID,
                start_offset: Some(6),
            },
            Operation::Delete,
            snapshot,
            Operation::Rewrite(Bytes::from_static(b"segment")),
            Operation::Settle {
                upto: Some(ID),
                floor: 7,
            },
            Operation::Settle {
                upto: None,
                floor: 8,
            },
            Operation::Capture {
                applied: ID,
                state: Bytes::from_static(b"state"),
            },
            Operation::Replace {
                upto: ID,
                next_offset: 70,
                state: Bytes::from_static(b"state"),
                base: Bytes::from_static(b"segments"),
            },
        ];
        std::iter::once(data)
            .chain(others)
            .map(|o| (KEY, o))
            .collect()
    }

    fn encoded() -> Vec<u8> {
        let operations = operations();
        let weight = operations.iter().map(|(_, o)| o.weight()).sum();
        let mut out = vec![0xff; group_bytes(weight)];
        encode(
            &mut out,
            7,
            42,
            100,
            operations.iter().map(|(k, o)| (*k, o)),
        );
        out
    }

    fn decoded(bytes: Vec<u8>, seed: u32) -> Option<(GroupHeader, Vec<(LogKey, Operation)>)> {
        let header = GroupHeader::decode(&bytes, seed)?;
        let operations = header.operations(&bytes.into(), seed)?;
        Some((header, operations))
    }

    #[test]
    fn a_group_is_read_as_it_was_written() {
        let (header, found) = decoded(encoded(), 7).unwrap();
        assert_eq!((header.sequence, header.first_op), (42, 100));
        assert_eq!(header.group_bytes(), Some(encoded().len()));
        let flat = |o: &[(LogKey, Operation)]| -> Vec<String> {
            // Head and body come back as one piece.
            o.iter()
                .map(|(k, o)| format!("{k:?} {:?} {:?}", o.describe(*k), o.payload().concat()))
                .collect()
        };
        assert_eq!(flat(&found), flat(&operations()));
    }

    #[test]
    fn a_group_of_another_file_does_not_validate() {
        assert!(decoded(encoded(), 8).is_none());
    }

    #[test]
    fn no_flipped_bit_in_its_content_goes_unseen() {
        let weight: usize = operations().iter().map(|(_, o)| o.weight()).sum();
        for at in 0..HEADER_BYTES + weight {
            let mut bytes = encoded();
            bytes[at] ^= 0x10;
            assert!(decoded(bytes, 7).is_none(), "byte {at}");
        }
    }
}
