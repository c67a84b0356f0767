//! The high watermark and the log start that a client sees never go back; nor do a replica's own,
//! as long as its broker runs.

use super::{Invariant, Seen};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Reader(usize),
    Replica(usize, u64),
}

#[derive(Default)]
pub struct Watermarks {
    seen: BTreeMap<(Who, u32), (i64, i64)>,
}

impl Watermarks {
    fn note(&mut self, who: Who, partition: u32, log_start: i64, high: i64) -> Result<(), String> {
        if log_start > high {
            return Err(format!(
                "{who:?} saw p{partition} start at {log_start}, beyond its end {high}"
            ));
        }
        let before = self.seen.insert((who, partition), (log_start, high));
        match before {
            Some((start, end)) if start > log_start || end > high => Err(format!(
                "{who:?} saw p{partition} as {start}..{end}, and then as {log_start}..{high}"
            )),
            _ => Ok(()),
        }
    }
}

impl Invariant for Watermarks {
    fn name(&self) -> &'static str {
        "high watermark and log start never go back"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match *seen {
            Seen::Read {
                reader,
                partition,
                log_start,
                high_watermark,
                ..
            } => self.note(Who::Reader(reader), partition, log_start, high_watermark),
            Seen::Held {
                broker,
                start,
                partition,
                log_start,
                high_watermark,
                ..
            } => self.note(
                Who::Replica(broker, start),
                partition,
                log_start,
                high_watermark,
            ),
            _ => Ok(()),
        }
    }
}
