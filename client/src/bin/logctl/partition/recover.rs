//! `logctl partition recover`: a partition that has lost its majority for good goes on with what one replica has.
//!
//! Promise: what every replica that answers has is shown, and which one goes on; nothing is done, and
//! nothing lost, unless somebody has said that they accept it.
//!
//! Not here: whether it may be done, which the cluster decides.

use clap::Args;
use logd_proto::rpc::admin as api;
use serde::Serialize;

use crate::args::{self, PartitionName};
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::operator::Operator;
use crate::output::{Shown, Table, joined, or_dash};

#[derive(Debug, Args)]
pub struct RecoverOptions {
    /// Which one
    #[arg(value_name = "TOPIC/PARTITION", value_parser = args::partition)]
    partition: PartitionName,
    /// Whose replica goes on [default: the one with the longest log]
    #[arg(long, value_name = "ID")]
    from: Option<i32>,
    /// What only the lost replicas had is lost, and that is accepted
    #[arg(long)]
    accept_data_loss: bool,
    /// Show what each replica has and which one would go on, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Replica {
    node_id: i32,
    /// How often the partition had been recovered when it was last open.
    generation: u32,
    last_term: u64,
    last_index: u64,
    /// The offset behind its last record, committed or not.
    end_offset: i64,
    /// What it knows to be committed.
    high_watermark: Option<i64>,
    damage: Option<String>,
    survives: bool,
}

#[derive(Debug, Serialize)]
struct Recovered {
    topic: String,
    partition: i32,
    /// `planned`, `begun` or `recovered`.
    status: &'static str,
    survivor: i32,
    /// Who is to have it then.
    target: Vec<i32>,
    /// How often it was recovered, with this time.
    generation: Option<u32>,
    /// Brokers that did not answer.
    away: Vec<i32>,
    replicas: Vec<Replica>,
}

impl Recovered {
    fn new(name: &PartitionName, told: api::RecoverPartitionResponse) -> Recovered {
        let survivor = told.survivor;
        let replica = |r: api::Replica| Replica {
            node_id: r.node_id,
            generation: r.generation,
            last_term: r.last_term,
            last_index: r.last_index,
            end_offset: r.end_offset,
            high_watermark: r.high_watermark,
            damage: Some(r.damage).filter(|why| !why.is_empty()),
            survives: r.node_id == survivor,
        };
        Recovered {
            topic: name.topic.clone(),
            partition: name.partition,
            status: match (told.generation, told.led) {
                (0, _) => "planned",
                (_, false) => "begun",
                (_, true) => "recovered",
            },
            survivor,
            target: told.target,
            generation: (told.generation > 0).then_some(told.generation),
            away: told.away,
            replicas: told.replicas.into_iter().map(replica).collect(),
        }
    }
}

impl Shown for Recovered {
    fn table(&self) -> String {
        let mut whole = Table::new(&["TOPIC", ">PARTITION", "STATUS", ">FROM", "REPLICAS"]);
        whole.row([
            self.topic.clone(),
            self.partition.to_string(),
            self.status.to_owned(),
            self.survivor.to_string(),
            joined(&self.target),
        ]);
        let mut replicas = Table::new(&[
            ">NODE",
            ">RECOVERIES",
            ">LAST-TERM",
            ">LAST-INDEX",
            ">END",
            ">COMMITTED",
            "STATE",
        ]);
        for r in &self.replicas {
            let state = match (&r.damage, r.survives) {
                (Some(why), _) => format!("damaged: {why}"),
                (None, true) => "goes on".to_owned(),
                (None, false) => "is replaced".to_owned(),
            };
            replicas.row([
                r.node_id.to_string(),
                r.generation.to_string(),
                r.last_term.to_string(),
                r.last_index.to_string(),
                r.end_offset.to_string(),
                or_dash(r.high_watermark),
                state,
            ]);
        }
        format!("{}\n{}", whole.render(), replicas.render())
    }
}

fn say_what_it_means(context: &Context, shown: &Recovered) {
    let survivor = shown.survivor;
    let own = shown.replicas.iter().find(|r| r.survives);
    if let Some(own) = own {
        let committed = or_dash(own.high_watermark);
        context.out.note(&format!(
            "everything that broker {survivor} has is kept, up to offset {}; it knows that {committed} of it is \
             committed. What was acknowledged beyond that, and only the others had, is lost",
            own.end_offset
        ));
    }
    let longest = shown.replicas.iter().map(|r| r.end_offset).max();
    if let (Some(longest), Some(own)) = (longest, own)
        && longest > own.end_offset
    {
        context.out.note(&format!(
            "another replica ends at offset {longest}: what it has beyond {} is thrown away",
            own.end_offset
        ));
    }
    if !shown.away.is_empty() {
        let away = joined(&shown.away);
        context.out.note(&format!(
            "did not answer: {away}. Make sure that they are stopped: if they run somewhere out of reach they go on \
             acknowledging what is thrown away. When they come back their replicas are replaced"
        ));
    }
    context.out.note(
        "where fewer brokers are to have it than should, `logctl cluster rebalance run` adds others when they are there",
    );
    if shown.status == "begun" {
        context.out.note(&format!(
            "it is decided, and broker {survivor} does not lead yet; it goes on with it as soon as it can"
        ));
    }
}

pub(super) async fn recover(
    context: &Context,
    operator: &mut Operator,
    options: RecoverOptions,
) -> Result<Exit, Failure> {
    let name = options.partition;
    if !options.accept_data_loss && !options.dry_run {
        let message = format!("recovering {name} loses what only the lost replicas had");
        return Err(Failure::usage(message).hint(
            "--dry-run shows what each replica has; --accept-data-loss says that this is accepted",
        ));
    }
    let wanted = api::RecoverPartitionRequest {
        topic: name.topic.clone(),
        partition: name.partition,
        accept_data_loss: options.accept_data_loss,
        from: options.from,
        dry_run: options.dry_run,
    };
    let what = format!("recovery of {name}");
    let asked = operator.ask(&what, |mut client| async move {
        client.recover_partition(wanted).await
    });
    let shown = Recovered::new(&name, asked.await?);
    context.out.show(&shown)?;
    say_what_it_means(context, &shown);
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_and_what_would_go_on_is_shown() {
        let replica = |node_id, last_index, high_watermark| api::Replica {
            node_id,
            last_term: 7,
            last_index,
            end_offset: last_index as i64 - 2,
            high_watermark,
            ..api::Replica::default()
        };
        let told = api::RecoverPartitionResponse {
            replicas: vec![replica(1, 90, Some(85)), replica(4, 60, None)],
            away: vec![2, 3],
            survivor: 1,
            target: vec![1, 4, 5],
            ..api::RecoverPartitionResponse::default()
        };
        let name = args::partition("t/0").unwrap();
        let table = "\
TOPIC  PARTITION  STATUS   FROM  REPLICAS
t              0  planned     1  1,4,5

NODE  RECOVERIES  LAST-TERM  LAST-INDEX  END  COMMITTED  STATE
   1           0          7          90   88         85  goes on
   4           0          7          60   58          -  is replaced
";
        assert_eq!(Recovered::new(&name, told).table(), table);
    }
}
