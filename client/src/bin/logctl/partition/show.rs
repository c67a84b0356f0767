//! `logctl partition list` and `logctl partition describe`.

use std::collections::BTreeSet;

use clap::Args;
use logd_proto::rpc::admin as api;
use serde::Serialize;

use crate::args::{self, PartitionName};
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::operator::Operator;
use crate::output::{Shown, Table, count, joined, or_dash};

#[derive(Debug, Args)]
pub struct ListOptions {
    /// Of this topic alone
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
}

#[derive(Debug, Args)]
pub struct DescribeOptions {
    /// Which one
    #[arg(value_name = "TOPIC/PARTITION", value_parser = args::partition)]
    partition: PartitionName,
}

#[derive(Debug, Serialize)]
struct Lag {
    node_id: i32,
    /// Entries behind the leader.
    entries: u64,
}

#[derive(Debug, Serialize)]
struct Partition {
    topic: String,
    partition: i32,
    leader: Option<i32>,
    epoch: Option<i64>,
    /// Who should have it, the preferred leader first.
    target: Vec<i32>,
    /// Who had it before the move that is under way, if one is.
    moving_from: Vec<i32>,
    /// Who has it. A disk that no broker has any more is -1.
    voters: Vec<i32>,
    learners: Vec<i32>,
    in_sync: Vec<i32>,
    /// Of each replica; empty if the leader has not answered.
    lags: Vec<Lag>,
    high_watermark: Option<i64>,
    /// How often it was recovered by force, accepting a loss of data.
    forced_recoveries: u32,
}

impl From<api::Partition> for Partition {
    fn from(told: api::Partition) -> Partition {
        let lags = told.lags.into_iter().map(|lag| Lag {
            node_id: lag.node_id,
            entries: lag.entries,
        });
        Partition {
            topic: told.topic,
            partition: told.partition,
            leader: told.leader,
            epoch: (told.epoch >= 0).then_some(told.epoch),
            target: told.target,
            moving_from: told.before,
            voters: told.voters,
            learners: told.learners,
            in_sync: told.in_sync,
            lags: lags.collect(),
            high_watermark: told.high_watermark,
            forced_recoveries: told.forced_recoveries,
        }
    }
}

const HEADERS: [&str; 11] = [
    "TOPIC",
    ">PARTITION",
    ">LEADER",
    ">EPOCH",
    "REPLICAS",
    "MOVING-FROM",
    "VOTERS",
    "LEARNERS",
    "IN-SYNC",
    ">LAG",
    ">END",
];

impl Partition {
    fn cells(&self) -> [String; HEADERS.len()] {
        [
            self.topic.clone(),
            self.partition.to_string(),
            or_dash(self.leader),
            or_dash(self.epoch),
            joined(&self.target),
            joined(&self.moving_from),
            joined(&self.voters),
            joined(&self.learners),
            joined(&self.in_sync),
            or_dash(self.lags.iter().map(|lag| lag.entries).max()),
            or_dash(self.high_watermark),
        ]
    }

    fn role(&self, node: i32) -> &'static str {
        if self.leader == Some(node) {
            "leader"
        } else if self.voters.contains(&node) {
            "voter"
        } else if self.learners.contains(&node) {
            "learner"
        } else {
            "none"
        }
    }

    /// Everyone who has it or should.
    fn replicas(&self) -> BTreeSet<i32> {
        let all = [&self.target, &self.voters, &self.learners];
        all.into_iter().flatten().copied().collect()
    }
}

#[derive(Debug, Serialize)]
struct List {
    partitions: Vec<Partition>,
    /// Brokers that did not answer: what they lead has no lags.
    silent: Vec<i32>,
}

impl Shown for List {
    fn table(&self) -> String {
        let mut table = Table::new(&HEADERS);
        for partition in &self.partitions {
            table.row(partition.cells());
        }
        table.render()
    }
}

impl Shown for Partition {
    fn table(&self) -> String {
        let mut whole = Table::new(&HEADERS);
        whole.row(self.cells());
        let mut replicas = Table::new(&[">NODE", "ROLE", "WANTED", "IN-SYNC", ">LAG"]);
        let yes = |so| if so { "yes" } else { "no" }.to_owned();
        for node in self.replicas() {
            let lag = self.lags.iter().find(|lag| lag.node_id == node);
            replicas.row([
                node.to_string(),
                self.role(node).to_owned(),
                yes(self.target.contains(&node)),
                yes(self.in_sync.contains(&node)),
                or_dash(lag.map(|lag| lag.entries)),
            ]);
        }
        format!("{}\n{}", whole.render(), replicas.render())
    }
}

fn note_silent(context: &Context, silent: &[i32]) {
    if !silent.is_empty() {
        let silent = joined(silent);
        context.out.note(&format!(
            "did not answer: {silent}; what they lead is shown as others know it"
        ));
    }
}

pub(super) async fn list(
    context: &Context,
    operator: &mut Operator,
    options: ListOptions,
) -> Result<Exit, Failure> {
    let told = operator.partitions(options.topic.as_deref()).await?;
    let partitions = told.partitions.into_iter().map(Partition::from);
    let list = List {
        partitions: partitions.collect(),
        silent: told.silent,
    };
    context.out.show(&list)?;
    note_silent(context, &list.silent);
    Ok(Exit::Done)
}

pub(super) async fn describe(
    context: &Context,
    operator: &mut Operator,
    options: DescribeOptions,
) -> Result<Exit, Failure> {
    let name = options.partition;
    let told = operator.partitions(Some(&name.topic)).await?;
    let silent = told.silent.clone();
    let partition = Partition::from(find(told, &name)?);
    context.out.show(&partition)?;
    let forced = u64::from(partition.forced_recoveries);
    if forced > 0 {
        context.out.note(&format!(
            "recovered by force {}, accepting a loss of data",
            count(forced, "time")
        ));
    }
    note_silent(context, &silent);
    Ok(Exit::Done)
}

/// A partition that must be there.
pub(super) fn find(
    told: api::ListPartitionsResponse,
    name: &PartitionName,
) -> Result<api::Partition, Failure> {
    let mut all = told.partitions.into_iter();
    let found = all.find(|told| told.partition == name.partition);
    found.ok_or_else(|| {
        Failure::not_found(format!("there is no partition {name}")).hint(format!(
            "`logctl partition list --topic {}` shows those that there are",
            name.topic
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_under_way_shows_who_has_it_and_who_should() {
        let lag = |node_id, entries| api::ReplicaLag { node_id, entries };
        let partition = Partition::from(api::Partition {
            topic: "t".into(),
            partition: 0,
            leader: Some(1),
            epoch: 2,
            target: vec![1, 3],
            before: vec![1, 2],
            voters: vec![1, 2],
            learners: vec![3],
            in_sync: vec![1, 2],
            lags: vec![lag(1, 0), lag(2, 0), lag(3, 40)],
            high_watermark: Some(7),
            forced_recoveries: 0,
        });
        let table = "\
TOPIC  PARTITION  LEADER  EPOCH  REPLICAS  MOVING-FROM  VOTERS  LEARNERS  IN-SYNC  LAG  END
t              0       1      2  1,3       1,2          1,2     3         1,2       40    7

NODE  ROLE     WANTED  IN-SYNC  LAG
   1  leader   yes     yes        0
   2  voter    no      yes        0
   3  learner  yes     no        40
";
        assert_eq!(partition.table(), table);
    }

    #[test]
    fn a_partition_that_nobody_leads_has_dashes() {
        let told = api::Partition {
            topic: "t".into(),
            epoch: -1,
            target: vec![1],
            ..api::Partition::default()
        };
        let (partitions, silent) = (vec![told], vec![1]);
        let name = args::partition("t/1").unwrap();
        let told = api::ListPartitionsResponse { partitions, silent };
        assert_eq!(
            find(told.clone(), &name).unwrap_err().exit(),
            Exit::NotFound
        );
        let name = args::partition("t/0").unwrap();
        let table = Partition::from(find(told, &name).unwrap()).table();
        assert!(
            table.ends_with("   1  none  yes     no         -\n"),
            "{table}"
        );
    }
}
