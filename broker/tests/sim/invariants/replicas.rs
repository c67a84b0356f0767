//! At rest, replicas are equal byte for byte up to their common high watermark.

use super::{Invariant, Seen, Settled};

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
