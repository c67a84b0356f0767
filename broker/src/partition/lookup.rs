//! From a time to an offset: the ledger finds the batch, the batch's records find the record.

use super::{Offsets, Partition, ReadError, epoch_of};
use bytes::{Bytes, BytesMut};
use logd_proto::record_batch::{Records, RecordsError};
use logd_storage::Row;

/// Records of one batch may inflate to this much while they are searched: what Produce lets in at most.
const INFLATED_BYTES_MAX: usize = 256 << 20;

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
        let mut from = offsets.log_start;
        loop {
            let row = match query {
                TimeQuery::At(ms) => self.log.row_at_time(ms, from),
                TimeQuery::MaxTimestamp => self.log.row_max_time(from, offsets.high_watermark),
            };
            let Some(row) = row.filter(|r| r.base_offset < offsets.high_watermark) else {
                return Ok(None);
            };
            let found = self.look_into(row, query, offsets).await?;
            // A row tells the latest time of its batch; the record that has it may lie below the log's
            // start, and then a later batch has the answer.
            if found.is_some() || query == TimeQuery::MaxTimestamp {
                return Ok(found);
            }
            from = row.end_offset();
        }
    }

    /// Finds the record in its batch. A compressed one may inflate a lot, so not on a runtime's thread.
    async fn look_into(
        &self,
        row: Row,
        query: TimeQuery,
        offsets: Offsets,
    ) -> Result<Option<TimeOffset>, ReadError> {
        let length = row.length as usize;
        let limit = offsets.high_watermark;
        let slices = self.slices(row.base_offset, limit, length, true).await?;
        let find = move || find_record(&one_piece(slices, length), &row, query, offsets.log_start);
        let found = tokio::task::spawn_blocking(find).await;
        found.map_err(|e| ReadError::Storage(e.to_string()))?
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

/// The first record late enough; of the largest timestamp, the first that has it.
fn find_record(
    batch: &Bytes,
    row: &Row,
    query: TimeQuery,
    log_start: i64,
) -> Result<Option<TimeOffset>, ReadError> {
    let damaged =
        |e: RecordsError| ReadError::Storage(format!("batch at offset {}: {e}", row.base_offset));
    let records = Records::open(batch, INFLATED_BYTES_MAX).map_err(damaged)?;
    let mut best: Option<TimeOffset> = None;
    for record in &records {
        let record = record.map_err(damaged)?;
        let at = TimeOffset {
            offset: record.offset,
            timestamp: record.timestamp,
            leader_epoch: epoch_of(row.term),
        };
        match query {
            _ if record.offset < log_start => {}
            TimeQuery::At(ms) if record.timestamp >= ms => return Ok(Some(at)),
            TimeQuery::At(_) => {}
            TimeQuery::MaxTimestamp => {
                best = best.filter(|b| b.timestamp >= at.timestamp).or(Some(at));
            }
        }
    }
    Ok(best)
}
