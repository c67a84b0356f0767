//! At rest, replicas are equal byte for byte up to their common high watermark. Each compacts its own files in its own
//! time: of a compacted log they have the same last record of every key, but for tombstones, which go in the end, and
//! what two have at an offset is the same.

use super::{Invariant, Seen, Settled};
use crate::keyed::{Record, records};
use crate::may_lack_records;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Replicas;

fn from(replica: &Settled, offset: i64) -> &[u8] {
    // Batches are whole: the log start may lie in one.
    let header = logd_proto::record_batch::batches(replica.bytes.clone());
    let below: usize = header
        .filter_map(Result::ok)
        .take_while(|(h, _)| h.next_offset() <= offset)
        .map(|(_, b)| b.len())
        .sum();
    &replica.bytes[below..]
}

fn last(records: &[Record]) -> BTreeMap<&str, &Record> {
    records.iter().map(|r| (r.key.as_str(), r)).collect()
}

/// What two replicas of a compacted log have that does not go together.
fn parts(a: &Settled, b: &Settled) -> Result<Option<String>, String> {
    let (of_a, of_b) = (records(&a.bytes)?, records(&b.bytes)?);
    let at: BTreeMap<i64, &Record> = of_a.iter().map(|r| (r.offset, r)).collect();
    let other = of_b
        .iter()
        .find(|r| at.get(&r.offset).is_some_and(|there| there != r));
    if let Some(other) = other {
        return Ok(Some(format!("{:?} and {other:?}", at[&other.offset])));
    }
    let (last_of_a, last_of_b) = (last(&of_a), last(&of_b));
    let differs = |key: &&&str| {
        let pair = (last_of_a.get(**key), last_of_b.get(**key));
        match pair {
            (Some(one), None) | (None, Some(one)) => !one.is_tombstone(),
            (here, there) => here != there,
        }
    };
    let key = last_of_a.keys().chain(last_of_b.keys()).find(differs);
    Ok(key.map(|key| {
        let (here, there) = (last_of_a.get(key), last_of_b.get(key));
        format!("{here:?} and {there:?}")
    }))
}

impl Invariant for Replicas {
    fn name(&self) -> &'static str {
        "replicas are equal"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Settled {
            partition,
            replicas,
        } = *seen
        else {
            return Ok(());
        };
        let start = replicas.iter().map(|r| r.log_start).max().unwrap_or(0);
        for pair in replicas.windows(2) {
            let (a, b) = (&pair[0], &pair[1]);
            if (a.log_start, a.high_watermark) != (b.log_start, b.high_watermark) {
                return Err(format!(
                    "p{partition} is {}..{} on broker {} and {}..{} on broker {}",
                    a.log_start,
                    a.high_watermark,
                    a.broker,
                    b.log_start,
                    b.high_watermark,
                    b.broker
                ));
            }
            if may_lack_records(partition) {
                if let Some(what) = parts(a, b)? {
                    return Err(format!(
                        "p{partition} differs between brokers {} and {}: {what}",
                        a.broker, b.broker
                    ));
                }
                continue;
            }
            if from(a, start) != from(b, start) {
                let differs = a.batches.iter().zip(&b.batches).find(|(x, y)| x != y);
                return Err(format!(
                    "p{partition} differs between brokers {} and {}: {differs:?}",
                    a.broker, b.broker
                ));
            }
        }
        Ok(())
    }
}
