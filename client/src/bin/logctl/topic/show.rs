//! `logctl topic list` and `logctl topic describe`.
//!
//! Promise: a partition whose offsets cannot be had is shown without them, and said to be so.

use std::collections::HashMap;

use clap::Args;
use logd_client::error::ConsumeError;
use logd_client::{Admin, OffsetAt, PartitionInfo, TopicInfo};
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Exit, Failure, Tally};
use crate::lookup;
use crate::output::{Shown, Table, joined, or_dash};

#[derive(Debug, Args)]
pub struct ListOptions {
    /// Also those that brokers use themselves
    #[arg(long)]
    internal: bool,
}

#[derive(Debug, Args)]
pub struct DescribeOptions {
    /// Which ones
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Listed {
    topic: String,
    partitions: usize,
    replicas: usize,
    internal: bool,
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct List(Vec<Listed>);

impl Shown for List {
    fn table(&self) -> String {
        let mut table = Table::new(&["TOPIC", ">PARTITIONS", ">REPLICAS"]);
        for topic in &self.0 {
            table.row([
                topic.topic.clone(),
                topic.partitions.to_string(),
                topic.replicas.to_string(),
            ]);
        }
        table.render()
    }
}

pub(super) async fn list(context: &Context, options: ListOptions) -> Result<Exit, Failure> {
    let topics = context.connect().await?.admin().list_topics().await?;
    let wanted = topics.into_iter();
    let wanted = wanted.filter(|topic| options.internal || !topic.internal);
    let listed = wanted.map(|topic| Listed {
        partitions: topic.partitions.len(),
        replicas: replicas(&topic),
        internal: topic.internal,
        topic: topic.name,
    });
    let list = List(listed.collect());
    context.out.show(&list)?;
    if list.0.is_empty() {
        context
            .out
            .note("no topics; `logctl topic create NAME` makes one");
    }
    Ok(Exit::Done)
}

/// What partitions have in common is their number of replicas, unless they are being moved.
fn replicas(topic: &TopicInfo) -> usize {
    let counts = topic.partitions.iter().map(|p| p.replicas.len());
    counts.max().unwrap_or(0)
}

#[derive(Debug, Serialize)]
struct Described {
    topic: String,
    id: String,
    internal: bool,
    partitions: Vec<Partition>,
}

#[derive(Debug, Serialize)]
struct Partition {
    partition: i32,
    leader: Option<i32>,
    leader_epoch: Option<i32>,
    replicas: Vec<i32>,
    in_sync: Vec<i32>,
    start_offset: Option<i64>,
    end_offset: Option<i64>,
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct AllDescribed(Vec<Described>);

impl Shown for AllDescribed {
    fn table(&self) -> String {
        let headers = [
            "TOPIC",
            ">PARTITION",
            ">LEADER",
            ">EPOCH",
            "REPLICAS",
            "IN-SYNC",
            ">START",
            ">END",
        ];
        let mut table = Table::new(&headers);
        for topic in &self.0 {
            for partition in &topic.partitions {
                table.row([
                    topic.topic.clone(),
                    partition.partition.to_string(),
                    or_dash(partition.leader),
                    or_dash(partition.leader_epoch),
                    joined(&partition.replicas),
                    joined(&partition.in_sync),
                    or_dash(partition.start_offset),
                    or_dash(partition.end_offset),
                ]);
            }
        }
        table.render()
    }
}

pub(super) async fn describe(context: &Context, options: DescribeOptions) -> Result<Exit, Failure> {
    let admin = context.connect().await?.admin();
    let mut tally = Tally::default();
    let mut all = Vec::new();
    for name in &options.names {
        match lookup::topic(&admin, name).await {
            Ok(info) => {
                let (described, offsets) = describe_one(&admin, info).await;
                all.push(described);
                match offsets {
                    Ok(()) => tally.done(),
                    Err(error) => tally.failed(context.out.fail(&error.into())),
                }
            }
            Err(failure) => tally.failed(context.out.fail(&failure)),
        }
    }
    if context.out.format == crate::output::Format::Json || !all.is_empty() {
        context.out.show(&AllDescribed(all))?;
    }
    Ok(tally.exit())
}

/// The topic as far as it can be seen, and why no further.
async fn describe_one(admin: &Admin, info: TopicInfo) -> (Described, Result<(), ConsumeError>) {
    let led = info.partitions.iter().filter(|p| p.leader.is_some());
    let led: Vec<(String, i32)> = led.map(|p| (info.name.clone(), p.index)).collect();
    let starts = offsets(admin, &led, OffsetAt::Start).await;
    let ends = offsets(admin, &led, OffsetAt::End).await;
    let at = |found: &Result<HashMap<i32, i64>, ConsumeError>, index: i32| {
        let found = found.as_ref().ok()?;
        found.get(&index).copied()
    };
    let partitions = info.partitions.iter().map(|place| Partition {
        start_offset: at(&starts, place.index),
        end_offset: at(&ends, place.index),
        ..placed(place)
    });
    let described = Described {
        partitions: partitions.collect(),
        id: uuid(&info.id),
        internal: info.internal,
        topic: info.name,
    };
    (described, starts.and(ends).map(drop))
}

fn placed(place: &PartitionInfo) -> Partition {
    Partition {
        partition: place.index,
        leader: place.leader,
        leader_epoch: (place.leader_epoch >= 0).then_some(place.leader_epoch),
        replicas: place.replicas.clone(),
        in_sync: place.in_sync.clone(),
        start_offset: None,
        end_offset: None,
    }
}

async fn offsets(
    admin: &Admin,
    partitions: &[(String, i32)],
    at: OffsetAt,
) -> Result<HashMap<i32, i64>, ConsumeError> {
    let found = admin.offsets(partitions, at).await?.into_iter();
    Ok(found
        .filter_map(|found| Some((found.partition, found.offset?)))
        .collect())
}

/// As `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
fn uuid(id: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in id.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json;

    #[test]
    fn a_partition_without_a_leader_is_shown_as_far_as_it_is_known() {
        let partition = Partition {
            partition: 0,
            leader: Some(1),
            leader_epoch: Some(2),
            replicas: vec![1, 2],
            in_sync: vec![1],
            start_offset: Some(0),
            end_offset: Some(42),
        };
        let orphan = Partition {
            partition: 1,
            leader: None,
            leader_epoch: None,
            replicas: vec![2],
            in_sync: vec![],
            start_offset: None,
            end_offset: None,
        };
        let all = AllDescribed(vec![Described {
            topic: "orders".into(),
            id: uuid(&[0xab; 16]),
            internal: false,
            partitions: vec![partition, orphan],
        }]);
        let table = "\
TOPIC   PARTITION  LEADER  EPOCH  REPLICAS  IN-SYNC  START  END
orders          0       1      2  1,2       1            0   42
orders          1       -      -  2         -            -    -
";
        assert_eq!(all.table(), table);
        let text = json(&all).unwrap();
        assert!(
            text.contains(r#""id": "abababab-abab-abab-abab-abababababab""#),
            "{text}"
        );
        assert!(text.contains("\"leader\": null"), "{text}");
        assert!(text.contains("\"end_offset\": 42"), "{text}");
    }

    #[test]
    fn a_list_shows_size_and_kind() {
        let list = List(vec![Listed {
            topic: "orders".into(),
            partitions: 3,
            replicas: 1,
            internal: false,
        }]);
        assert_eq!(
            list.table(),
            "TOPIC   PARTITIONS  REPLICAS\norders           3         1\n"
        );
        let expected = r#"[
  {
    "topic": "orders",
    "partitions": 3,
    "replicas": 1,
    "internal": false
  }
]"#;
        assert_eq!(json(&list).unwrap(), expected);
    }
}
