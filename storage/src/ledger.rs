//! The ledger: one 64-byte row per entry, and the header in front of them.
//!
//! Promise: a row that decodes is the row that was written, for this log and no other. Rows are
//! sorted by index, offset and position at once, so one search serves all three; in the Raft log they
//! are dense, below it those of entries of which nothing is left may be missing.
//! Not here: the files that hold rows (see `segment`), and which rows are present (see `state`).

use crate::codec::{Put, crc, kind_number, kind_of, u32_at, u64_at};
use crate::{EntryId, Kind, LogKey};

pub(crate) const ROW_BYTES: usize = 64;
pub(crate) const LEDGER_MAGIC: [u8; 8] = *b"logd.idx";
const CRC_AT: usize = ROW_BYTES - 4;

/// What is known of an entry without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub index: u64,
    pub term: u64,
    pub base_offset: i64,
    pub max_timestamp: i64,
    /// Where its payload starts in the segment's `.log`.
    pub position: u64,
    /// Bytes it takes there: 0 for control.
    pub length: u32,
    pub records: u32,
    pub kind: Kind,
    pub payload_crc: u32,
}

impl Row {
    pub fn id(&self) -> EntryId {
        EntryId {
            term: self.term,
            index: self.index,
        }
    }

    /// The offset after its last record.
    pub fn end_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.records))
    }

    pub fn end_position(&self) -> u64 {
        self.position.saturating_add(u64::from(self.length))
    }

    pub(crate) fn encode(&self, seed: u32) -> [u8; ROW_BYTES] {
        let mut b = [0; ROW_BYTES];
        b[0..8].copy_from_slice(&self.index.to_le_bytes());
        b[8..16].copy_from_slice(&self.term.to_le_bytes());
        b[16..24].copy_from_slice(&self.base_offset.to_le_bytes());
        b[24..32].copy_from_slice(&self.max_timestamp.to_le_bytes());
        b[32..40].copy_from_slice(&self.position.to_le_bytes());
        b[40..44].copy_from_slice(&self.length.to_le_bytes());
        b[44..48].copy_from_slice(&self.records.to_le_bytes());
        b[48..50].copy_from_slice(&kind_number(self.kind).to_le_bytes());
        b[52..56].copy_from_slice(&self.payload_crc.to_le_bytes());
        let sum = crc(seed, &b[..CRC_AT]);
        b[CRC_AT..].copy_from_slice(&sum.to_le_bytes());
        b
    }

    /// `None` if these are not the bytes of a row of the log behind `seed`.
    pub(crate) fn decode(b: &[u8], seed: u32) -> Option<Row> {
        let b = b.get(..ROW_BYTES)?;
        if crc(seed, &b[..CRC_AT]) != u32_at(b, CRC_AT) {
            return None;
        }
        Some(Row {
            index: u64_at(b, 0),
            term: u64_at(b, 8),
            base_offset: u64_at(b, 16) as i64,
            max_timestamp: u64_at(b, 24) as i64,
            position: u64_at(b, 32),
            length: u32_at(b, 40),
            records: u32_at(b, 44),
            kind: kind_of(u16::from_le_bytes([b[48], b[49]]))?,
            payload_crc: u32_at(b, 52),
        })
    }
}

/// A row read in the wrong log's file must not validate.
pub(crate) fn row_seed(key: LogKey) -> u32 {
    let mut put = Put::default();
    put.key(key);
    crc(0, &put.0)
}

/// Which entries a ledger has rows for; the format's version says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Every one from the first index on.
    Dense,
    /// Some of them, in order.
    Sparse,
}

impl Layout {
    fn version(self) -> u32 {
        match self {
            Layout::Dense => 1,
            Layout::Sparse => 2,
        }
    }

    fn of_version(version: u32) -> Option<Layout> {
        [Layout::Dense, Layout::Sparse]
            .into_iter()
            .find(|layout| layout.version() == version)
    }

    /// True if an index may stand in the row of this number.
    pub fn allows(self, base_index: u64, ordinal: u64, index: u64) -> bool {
        match self {
            Layout::Dense => index == base_index + ordinal,
            Layout::Sparse => index >= base_index + ordinal,
        }
    }
}

/// First 64 bytes of a ledger: whose it is and where it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LedgerHeader {
    pub layout: Layout,
    pub key: LogKey,
    pub base_offset: i64,
    pub base_index: u64,
}

impl LedgerHeader {
    pub fn encode(&self) -> [u8; ROW_BYTES] {
        let mut put = Put::default();
        put.0.extend_from_slice(&LEDGER_MAGIC);
        put.u32(self.layout.version());
        put.u32(ROW_BYTES as u32);
        put.key(self.key);
        put.i64(self.base_offset);
        put.u64(self.base_index);
        let mut b = [0; ROW_BYTES];
        b[..put.0.len()].copy_from_slice(&put.0);
        let sum = crc(0, &b[..CRC_AT]);
        b[CRC_AT..].copy_from_slice(&sum.to_le_bytes());
        b
    }

    pub fn decode(b: &[u8]) -> Option<LedgerHeader> {
        let b = b.get(..ROW_BYTES)?;
        let layout = Layout::of_version(u32_at(b, 8))?;
        let sound = b[..8] == LEDGER_MAGIC && crc(0, &b[..CRC_AT]) == u32_at(b, CRC_AT);
        let mut topic = [0; 16];
        topic.copy_from_slice(&b[16..32]);
        sound.then(|| LedgerHeader {
            layout,
            key: LogKey {
                topic,
                partition: u32_at(b, 32),
            },
            base_offset: u64_at(b, 36) as i64,
            base_index: u64_at(b, 44),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: LogKey = LogKey {
        topic: [3; 16],
        partition: 9,
    };

    fn row() -> Row {
        Row {
            index: 7,
            term: 2,
            base_offset: 100,
            max_timestamp: -1,
            position: 4096,
            length: 61,
            records: 5,
            kind: Kind::Control(3),
            payload_crc: 0xdead_beef,
        }
    }

    #[test]
    fn a_row_is_read_as_it_was_written_and_only_in_its_own_log() {
        let bytes = row().encode(row_seed(KEY));
        assert_eq!(Row::decode(&bytes, row_seed(KEY)), Some(row()));
        let other = LogKey {
            partition: 10,
            ..KEY
        };
        assert_eq!(Row::decode(&bytes, row_seed(other)), None);
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        for layout in [Layout::Dense, Layout::Sparse] {
            let header = LedgerHeader {
                layout,
                key: KEY,
                base_offset: 12,
                base_index: 34,
            };
            assert_eq!(LedgerHeader::decode(&header.encode()), Some(header));
        }
        assert_eq!(LedgerHeader::decode(&[0; ROW_BYTES]), None);
    }

    proptest! {
        #[test]
        fn no_flipped_bit_goes_unseen(bit in 0usize..ROW_BYTES * 8) {
            let mut bytes = row().encode(row_seed(KEY));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Row::decode(&bytes, row_seed(KEY)), None);
        }
    }
}
