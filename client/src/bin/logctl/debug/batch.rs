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
    // A batch that compaction has emptied remembers a time that none of its records has any more.
    let newest = if header.record_count == 0 {
        -1
    } else {
        header.max_timestamp
    };
    if newest != row.max_timestamp {
        return Err(format!(
            "the batch's newest record is of {newest}, its row says {}",
            row.max_timestamp
        ));
    }
    check_records(&header, bytes)
}

fn check_records(header: &BatchHeader, bytes: &Bytes) -> Result<(), String> {
    let records = Records::open(bytes, DECOMPRESSED_BYTES_MAX).map_err(|e| e.to_string())?;
    let (mut next, mut count) = (header.base_offset, 0);
    for record in &records {
        let record = record.map_err(|e| format!("record at offset {next}: {e}"))?;
        // Compaction takes records away: what is left does not follow without gaps.
        if record.offset < next || record.offset >= header.next_offset() {
            return Err(format!("record {} follows offset {next}", record.offset));
        }
        next = record.offset + 1;
        count += 1;
    }
    if count == header.record_count {
        Ok(())
    } else {
        Err(format!(
            "{count} records, the batch says {}",
            header.record_count
        ))
    }
}

/// The records of a batch, decompressed.
pub(super) fn records(bytes: &Bytes) -> Result<Records, String> {
    Records::open(bytes, DECOMPRESSED_BYTES_MAX).map_err(|e| e.to_string())
}
