//! What came of the lines: stored, refused, or never acknowledged.

use std::collections::BTreeMap;

use logd_client::Delivery;
use logd_client::error::DeliveryError;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::failure::{Exit, Failure};
use crate::output::{Format, Out, Shown, count};

/// Lines that are named when they were not stored; the others are counted.
const REASONS_MAX: usize = 5;

/// Lines that never got as far as the producer.
#[derive(Debug, Default)]
pub(super) struct Refused {
    count: u64,
    reasons: Vec<String>,
}

impl Refused {
    pub(super) fn add(&mut self, line: u64, reason: &impl ToString) {
        self.count += 1;
        if self.reasons.len() < REASONS_MAX {
            self.reasons
                .push(format!("line {line}: {}", reason.to_string()));
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Stored {
    /// By partition: how many, the first offset, the last one.
    partitions: BTreeMap<i32, (u64, Option<i64>, Option<i64>)>,
    failed: u64,
    reasons: Vec<String>,
    /// Nobody acknowledged in time, as opposed to a refusal.
    silent: bool,
}

impl Stored {
    pub(super) fn add(&mut self, refused: Refused) {
        self.failed += refused.count;
        self.reasons.extend(refused.reasons);
    }

    fn records(&self) -> u64 {
        self.partitions.values().map(|(count, ..)| count).sum()
    }
}

/// Awaits every record's fate.
pub(super) async fn collect(mut deliveries: mpsc::Receiver<(u64, Delivery)>) -> Stored {
    let mut stored = Stored::default();
    while let Some((line, delivery)) = deliveries.recv().await {
        match delivery.await {
            Ok(at) => {
                let (count, first, last) = stored.partitions.entry(at.partition).or_default();
                *count += 1;
                *first = first.or(at.offset);
                *last = at.offset.or(*last);
            }
            Err(error) => {
                stored.failed += 1;
                stored.silent |= matches!(
                    error,
                    DeliveryError::Expired { .. } | DeliveryError::NoProducerId(_)
                );
                if stored.reasons.len() < REASONS_MAX {
                    stored.reasons.push(format!("line {line}: {error}"));
                }
            }
        }
    }
    stored
}

#[derive(Debug, Serialize)]
struct Summary {
    topic: String,
    stored: u64,
    failed: u64,
    partitions: Vec<Partition>,
}

#[derive(Debug, Serialize)]
struct Partition {
    partition: i32,
    stored: u64,
    first_offset: Option<i64>,
    last_offset: Option<i64>,
}

impl Shown for Summary {
    /// There is no data to show: what happened is a remark, which goes to stderr.
    fn table(&self) -> String {
        String::new()
    }
}

impl Summary {
    fn of(topic: &str, stored: &Stored) -> Summary {
        let partitions = stored.partitions.iter();
        let partitions = partitions.map(|(index, (count, first, last))| Partition {
            partition: *index,
            stored: *count,
            first_offset: *first,
            last_offset: *last,
        });
        Summary {
            topic: topic.to_owned(),
            stored: stored.records(),
            failed: stored.failed,
            partitions: partitions.collect(),
        }
    }
}

pub(super) fn conclude(
    out: Out,
    topic: &str,
    stored: &Stored,
    fed: Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    let summary = Summary::of(topic, stored);
    if out.format == Format::Json {
        out.show(&summary)?;
    }
    out.note(&format!(
        "stored {} in {}",
        count(summary.stored, "record"),
        topic
    ));
    let ended = fed?;
    if stored.failed == 0 {
        return Ok(ended);
    }
    let exit = match stored.silent && summary.stored == 0 {
        true => Exit::Unreachable,
        false => Exit::Failed,
    };
    let mut message = format!("{} not stored", count(stored.failed, "record"));
    for reason in stored.reasons.iter().take(REASONS_MAX) {
        message.push_str(&format!("\n  {reason}"));
    }
    if stored.failed > REASONS_MAX as u64 {
        message.push_str("\n  and so on");
    }
    Err(Failure::new(exit, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_where_records_went() {
        let mut stored = Stored::default();
        stored.partitions.insert(1, (3, Some(7), Some(9)));
        stored.add(Refused {
            count: 1,
            reasons: vec!["line 4: too long".into()],
        });
        let text = crate::output::json(&Summary::of("orders", &stored)).unwrap();
        let expected = r#"{
  "topic": "orders",
  "stored": 3,
  "failed": 1,
  "partitions": [
    {
      "partition": 1,
      "stored": 3,
      "first_offset": 7,
      "last_offset": 9
    }
  ]
}"#;
        assert_eq!(text, expected);
    }
}
