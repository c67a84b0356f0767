//! A producer's batches lie in the order of its sequence numbers, none missing between two, unless compaction may
//! have removed it.

use super::{Invariant, Seen, Settled};
use crate::may_lack_records;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Order;

fn check(partition: u32, replica: &Settled) -> Result<(), String> {
    let mut next: BTreeMap<i64, i64> = BTreeMap::new();
    for batch in &replica.batches {
        let first = i64::from(batch.first);
        let expected = next.insert(batch.producer, first + batch.records);
        // Without a log start of 0 what came before is gone.
        let expected = expected.or((replica.log_start == 0).then_some(0));
        let follows = |e: i64| e == first || may_lack_records(partition) && e < first;
        if expected.is_some_and(|e| !follows(e)) {
            let broker = replica.broker;
            return Err(format!(
                "p{partition} on broker {broker}: {batch:?} follows sequence {expected:?}"
            ));
        }
    }
    Ok(())
}

impl Invariant for Order {
    fn name(&self) -> &'static str {
        "a producer's batches lie in its order"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match *seen {
            Seen::Settled {
                partition,
                replicas,
            } => replicas.iter().try_for_each(|r| check(partition, r)),
            _ => Ok(()),
        }
    }
}
