//! What an entry's payload has to be: one record batch that says the same as its row.
//!
//! Not here: the checksum that storage has of it, which was right before a payload comes here.

use bytes::Bytes;
use logd_proto::record_batch::{BatchHeader, Records, verify_checksum};
use logd_storage::{LogKey, Row};

/// No batch in a log grows beyond this when it is decompressed: a bomb is a finding, not a crash.
const DECOMPRESSED_BYTES_MAX: usize = 256 << 20;

/// The cluster's own log holds commands and not batches.
const METADATA_TOPIC: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

pub(super) fn holds_batches(key: LogKey) -> bool {
    key.topic != METADATA_TOPIC
}

/// What is wrong with the batch, if anything is.
pub(super) fn complaint(row: &Row, bytes: &Bytes) -> Option<String> {
    check(row, bytes).err()
}

fn check(row: &Row, bytes: &Bytes) -> Result<(), String> {
    let header = BatchHeader::parse(bytes).map_err(|e| e.to_string())?;
    if header.size() != bytes.len() {
        return Err(format!(
            "the batch says {} bytes, the entry has {}",
            header.size(),
            bytes.len()
        ));
    }
    verify_checksum(bytes, &header).map_err(|e| e.to_string())?;
    let (first, next) = (header.base_offset, header.next_offset());
    if (first, next) != (row.base_offset, row.end_offset()) {
        return Err(format!(
            "the batch has offsets {first}..{next}, its row {}..{}",
            row.base_offset,
            row.end_offset()
        ));
    }
    if header.max_timestamp != row.max_timestamp {
        return Err(format!(
            "the batch's newest record is of {}, its row says {}",
            header.max_timestamp, row.max_timestamp
        ));
    }
    check_records(&header, bytes)
}

fn check_records(header: &BatchHeader, bytes: &Bytes) -> Result<(), String> {
    let records = Records::open(bytes, DECOMPRESSED_BYTES_MAX).map_err(|e| e.to_string())?;
    let mut next = header.base_offset;
    for record in &records {
        let record = record.map_err(|e| format!("record at offset {next}: {e}"))?;
        if record.offset != next {
            return Err(format!("record {} follows offset {next}", record.offset));
        }
        next += 1;
    }
    if next == header.next_offset() {
        Ok(())
    } else {
        Err(format!(
            "{} records, the batch says {}",
            next - header.base_offset,
            header.record_count
        ))
    }
}

/// The records of a batch, decompressed.
pub(super) fn records(bytes: &Bytes) -> Result<Records, String> {
    Records::open(bytes, DECOMPRESSED_BYTES_MAX).map_err(|e| e.to_string())
}
