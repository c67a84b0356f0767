//! A batch of an idempotent producer is in the log once, however often it was sent.

use super::{Batch, Invariant, Seen};
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Duplicates {
    /// Where a producer's sequence number is, by partition.
    places: BTreeMap<(u32, i64, i32), i64>,
}

impl Duplicates {
    fn note(&mut self, partition: u32, batch: &Batch) -> Result<(), String> {
        let key = (partition, batch.producer, batch.first);
        let place = *self.places.entry(key).or_insert(batch.base_offset);
        if place == batch.base_offset {
            Ok(())
        } else {
            Err(format!("p{partition}: {batch:?} is at {place} too"))
        }
    }
}

impl Invariant for Duplicates {
    fn name(&self) -> &'static str {
        "no duplicates of an idempotent producer"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match *seen {
            Seen::Acked {
                partition, batch, ..
            } => self.note(partition, &batch),
            Seen::Read {
                partition, batches, ..
            }
            | Seen::Held {
                partition, batches, ..
            } => batches.iter().try_for_each(|b| self.note(partition, b)),
            _ => Ok(()),
        }
    }
}
