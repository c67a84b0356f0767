//! From a time to an offset: the ledger finds the batch, the batch's records find the record.

use super::{Partition, ReadError, epoch_of};
use bytes::{Bytes, BytesMut};
use logd_proto::record_batch::{Records, RecordsError};
use logd_storage::Row;

/// Records of one batch may inflate to this much while they are searched; beyond it a batch is hostile.
const INFLATED_BYTES_MAX: usize = 128 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeQuery {
    /// The first record at or after this time, in milliseconds since the epoch.
    At(i64),
    /// The record with the largest timestamp (KIP-734).
    MaxTimestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeOffset {
    pub offset: i64,
    pub timestamp: i64,
    pub leader_epoch: i32,
}

impl Partition {
    /// Finds a committed record by time. `None` if there is none.
    ///
    /// # Errors
    /// If the batch cannot be read or its records do not decode.
    pub async fn offset_for_time(&self, query: TimeQuery) -> Result<Option<TimeOffset>, ReadError> {
        let offsets = self.offsets();
        let row = match query {
            TimeQuery::At(ms) => self.log.row_at_time(ms, offsets.log_start),
            TimeQuery::MaxTimestamp => self
                .log
                .row_max_time(offsets.log_start, offsets.high_watermark),
        };
        let Some(row) = row.filter(|r| r.base_offset < offsets.high_watermark) else {
            return Ok(None);
        };
        let slices = self
            .slices(
                row.base_offset,
                offsets.high_watermark,
                row.length as usize,
                true,
            )
            .await?;
        let batch = one_piece(slices, row.length as usize);
        find_record(&batch, &row, query, offsets.log_start)
    }
}

fn one_piece(slices: Vec<Bytes>, length: usize) -> Bytes {
    match <[Bytes; 1]>::try_from(slices) {
        Ok([only]) => only,
        Err(several) => {
            let mut whole = BytesMut::with_capacity(length);
            several.iter().for_each(|s| whole.extend_from_slice(s));
            whole.freeze()
        }
    }
}

fn find_record(
    batch: &Bytes,
    row: &Row,
    query: TimeQuery,
    log_start: i64,
) -> Result<Option<TimeOffset>, ReadError> {
    let damaged =
        |e: RecordsError| ReadError::Storage(format!("batch at offset {}: {e}", row.base_offset));
    let wanted = match query {
        TimeQuery::At(ms) => ms,
        TimeQuery::MaxTimestamp => row.max_timestamp,
    };
    for record in Records::open(batch, INFLATED_BYTES_MAX)
        .map_err(damaged)?
        .iter()
    {
        let record = record.map_err(damaged)?;
        if record.timestamp >= wanted && record.offset >= log_start {
            return Ok(Some(TimeOffset {
                offset: record.offset,
                timestamp: record.timestamp,
                leader_epoch: epoch_of(row.term),
            }));
        }
    }
    Ok(None)
}
