//! What was acknowledged is never lost.
//!
//! Whoever shows the range of an acknowledged batch shows that batch; the serving leader of the latest
//! term is never behind an acknowledgement; and at rest every replica has all above its log start. Of a compacted
//! log a batch may be gone (`compacted` says which); what is there is what was acknowledged.

use super::{Batch, Invariant, Seen};
use crate::may_lack_records;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Kept {
    acked: BTreeMap<u32, BTreeMap<i64, Batch>>,
    latest_term: BTreeMap<u32, i64>,
}

impl Kept {
    fn shown(&self, who: &str, partition: u32, from: i64, batches: &[Batch]) -> Result<(), String> {
        let (Some(acked), Some(last)) = (self.acked.get(&partition), batches.last()) else {
            return Ok(());
        };
        let from = batches.first().map_or(from, |b| b.base_offset.min(from));
        for (offset, batch) in acked.range(from..last.end()) {
            let there = batches.iter().find(|b| b.base_offset == *offset);
            if there.is_none() && may_lack_records(partition) {
                continue;
            }
            if there.map(Batch::identity) != Some(batch.identity()) {
                return Err(format!(
                    "{who} shows {there:?} where {batch:?} of p{partition} was acknowledged"
                ));
            }
        }
        Ok(())
    }

    fn reached(&self, broker: usize, partition: u32, term: i64, end: i64) -> Result<(), String> {
        let acked = self
            .acked
            .get(&partition)
            .and_then(BTreeMap::last_key_value);
        match acked.map(|(_, batch)| batch) {
            Some(batch) if batch.end() > end => Err(format!(
                "broker {broker} serves p{partition} in term {term} up to {end}, and {batch:?} was acknowledged"
            )),
            _ => Ok(()),
        }
    }
}

impl Invariant for Kept {
    fn name(&self) -> &'static str {
        "what was acknowledged is kept"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match *seen {
            Seen::Acked {
                partition,
                batch,
                term,
                ..
            } => {
                let latest = self.latest_term.entry(partition).or_default();
                *latest = term.max(*latest);
                let acked = self.acked.entry(partition).or_default();
                acked.insert(batch.base_offset, batch);
                Ok(())
            }
            Seen::Read {
                reader,
                partition,
                from,
                batches,
                ..
            } => self.shown(&format!("reader {reader}"), partition, from, batches),
            Seen::Held {
                broker,
                partition,
                from,
                batches,
                ..
            } => self.shown(&format!("broker {broker}"), partition, from, batches),
            Seen::Serves {
                broker,
                partition: Some(partition),
                term,
                high_watermark,
            } => {
                let latest = self.latest_term.entry(partition).or_default();
                *latest = term.max(*latest);
                if *latest == term {
                    self.reached(broker, partition, term, high_watermark)
                } else {
                    Ok(())
                }
            }
            Seen::Settled {
                partition,
                replicas,
            } => replicas.iter().try_for_each(|r| {
                self.reached(r.broker, partition, -1, r.high_watermark)?;
                self.shown(
                    &format!("broker {}", r.broker),
                    partition,
                    r.log_start,
                    &r.batches,
                )
            }),
            _ => Ok(()),
        }
    }
}
