//! Reading a partition's groups back from its log.
//!
//! Promise: a record that cannot be read is reported and skipped; one bad record must not take
//! every other group of the partition out of service.
//!
//! Not here: when to load (`worker`).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use logd_proto::record_batch::{Records, batches};

use super::codec;
use super::event::{Millis, Name};
use super::log::{OffsetsLog, ReadError};
use super::state::{Group, Limits};

/// How far one compressed batch may expand. Ours are not compressed; a batch that another tool
/// wrote may be, and the topic's batches are at most 1 MiB.
const BATCH_BYTES_MAX: usize = 64 << 20;

/// The groups of one partition.
pub(super) type Groups = HashMap<Name, Group>;

/// Reads from the start of the log to its end.
pub(super) async fn load(
    log: Arc<dyn OffsetsLog>,
    limits: Limits,
    now: Millis,
) -> Result<Groups, ReadError> {
    // An append whose outcome nobody waited for may be committed yet: it must not appear behind our back.
    if !log.settled().await {
        let why = "what is in flight is not committed yet";
        return Err(ReadError::Storage(why.into()));
    }
    let mut groups = Groups::new();
    let mut next = log.start();
    loop {
        let slices = log.read(next).await?;
        let before = next;
        for slice in slices {
            next = replay(&mut groups, limits, now, slice, next)?;
        }
        if next == before {
            break;
        }
    }
    groups.retain(|_, group| {
        group.wake(now);
        !group.is_vacant()
    });
    Ok(groups)
}

/// Returns the offset after the last batch of the slice.
fn replay(
    groups: &mut Groups,
    limits: Limits,
    now: Millis,
    slice: Bytes,
    from: i64,
) -> Result<i64, ReadError> {
    let broken = |why: String| ReadError::Storage(why);
    let mut next = from;
    for batch in batches(slice) {
        let (header, bytes) = batch.map_err(|why| broken(why.to_string()))?;
        next = next.max(header.next_offset());
        let records =
            Records::open(&bytes, BATCH_BYTES_MAX).map_err(|why| broken(why.to_string()))?;
        for record in &records {
            let record = record.map_err(|why| broken(why.to_string()))?;
            let Some(key) = record.key else { continue };
            let value = record.value.map(|value| records.share(value));
            match codec::decode(records.share(key), value) {
                Ok(Some((id, record))) => {
                    let group = groups
                        .entry(id.clone())
                        .or_insert_with(|| Group::new(id, limits));
                    group.restore(now, record);
                }
                Ok(None) => {}
                Err(why) => {
                    let offset = header.base_offset;
                    tracing::warn!(offset, %why, "skipped an unreadable record of a group");
                }
            }
        }
    }
    Ok(next)
}
