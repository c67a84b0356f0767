//! The offset of an acknowledged or committed batch never changes and never holds another one. Compaction may take
//! records out of it, and changes nothing else.

use super::{Batch, Invariant, Seen};
use crate::may_lack_records;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Offsets {
    /// By partition and base offset. What only an acknowledgement told has no checksum yet.
    known: BTreeMap<(u32, i64), (Batch, bool)>,
}

impl Offsets {
    fn note(&mut self, partition: u32, batch: Batch, whole: bool) -> Result<(), String> {
        let key = (partition, batch.base_offset);
        let before = self.known.range((partition, i64::MIN)..key).next_back();
        if let Some((_, (other, _))) = before
            && other.end() > batch.base_offset
        {
            return Err(format!("p{partition}: {batch:?} lies in {other:?}"));
        }
        match self.known.get_mut(&key) {
            Some((known, known_whole)) => {
                let same = known.identity() == batch.identity();
                let crc = match may_lack_records(partition) {
                    true => known.crc,
                    false => batch.crc,
                };
                let is_known = *known == Batch { crc, ..batch };
                if !same || (whole && *known_whole && !is_known) {
                    return Err(format!(
                        "p{partition}: {batch:?}, and before it was {known:?}"
                    ));
                }
                if whole {
                    (*known, *known_whole) = (batch, true);
                }
            }
            None => drop(self.known.insert(key, (batch, whole))),
        }
        Ok(())
    }
}

impl Invariant for Offsets {
    fn name(&self) -> &'static str {
        "an offset holds one record for ever"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match *seen {
            Seen::Acked {
                partition, batch, ..
            } => self.note(partition, batch, false),
            Seen::Read {
                partition, batches, ..
            }
            | Seen::Held {
                partition, batches, ..
            } => batches
                .iter()
                .try_for_each(|b| self.note(partition, *b, true)),
            _ => Ok(()),
        }
    }
}
