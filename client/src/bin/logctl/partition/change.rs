//! `logctl partition transfer-leader`, `move` and `cancel-move`.
//!
//! Promise: an order that is carried out already is done, not a failure; none of them loses anything.

use std::time::Duration;

use clap::Args;
use logd_proto::rpc::admin as api;
use serde::Serialize;
use tonic::Code;

use super::show::find;
use crate::args::{self, PartitionName};
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::operator::Operator;
use crate::output::{Shown, Table, joined};
use crate::watch::{Step, until_over};

/// A partition's data may be much.
const WAIT: Duration = Duration::from_secs(60 * 60);

#[derive(Debug, Args)]
pub struct TransferOptions {
    /// Which one
    #[arg(value_name = "TOPIC/PARTITION", value_parser = args::partition)]
    partition: PartitionName,
    /// Who should lead [default: the first of its replicas]
    #[arg(long, value_name = "ID")]
    to: Option<i32>,
}

#[derive(Debug, Args)]
pub struct MoveOptions {
    /// Which one
    #[arg(value_name = "TOPIC/PARTITION", value_parser = args::partition)]
    partition: PartitionName,
    /// Who should have it, the preferred leader first
    #[arg(long, value_name = "ID,..", value_delimiter = ',', required = true)]
    to: Vec<i32>,
    /// Say how far it is until it is over, at most for --timeout [default: 1h]
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Args)]
pub struct CancelOptions {
    /// Which one
    #[arg(value_name = "TOPIC/PARTITION", value_parser = args::partition)]
    partition: PartitionName,
}

#[derive(Debug, Serialize)]
struct Changed {
    topic: String,
    partition: i32,
    /// `transferred`, `unchanged`, `moving`, `moved` or `going_back`.
    status: &'static str,
}

impl Shown for Changed {
    fn table(&self) -> String {
        let mut table = Table::new(&["TOPIC", ">PARTITION", "STATUS"]);
        table.row([
            self.topic.clone(),
            self.partition.to_string(),
            self.status.replace('_', " "),
        ]);
        table.render()
    }
}

fn show(context: &Context, name: &PartitionName, status: &'static str) -> Result<Exit, Failure> {
    context.out.show(&Changed {
        topic: name.topic.clone(),
        partition: name.partition,
        status,
    })?;
    Ok(Exit::Done)
}

pub(super) async fn transfer(
    context: &Context,
    operator: &mut Operator,
    options: TransferOptions,
) -> Result<Exit, Failure> {
    let name = options.partition;
    let wanted = api::TransferLeaderRequest {
        topic: name.topic.clone(),
        partition: name.partition,
        to: options.to,
    };
    let what = format!("leadership of {name}");
    let asked = operator.ask(&what, |mut client| async move {
        client.transfer_leader(wanted).await
    });
    match asked.await {
        Ok(api::Done {}) => show(context, &name, "transferred"),
        Err(refused) if refused.code == Some(Code::AlreadyExists) => {
            show(context, &name, "unchanged")
        }
        Err(refused) => Err(refused.into()),
    }
}

async fn order_move(
    operator: &mut Operator,
    name: &PartitionName,
    replicas: Vec<i32>,
) -> Result<(), Failure> {
    let wanted = api::MovePartitionRequest {
        topic: name.topic.clone(),
        partition: name.partition,
        replicas,
    };
    let what = format!("move of {name}");
    let asked = operator.ask(&what, |mut client| async move {
        client.move_partition(wanted).await
    });
    asked.await?;
    Ok(())
}

pub(super) async fn begin_move(
    context: &Context,
    operator: &mut Operator,
    options: MoveOptions,
) -> Result<Exit, Failure> {
    let name = options.partition;
    order_move(operator, &name, options.to).await?;
    if !options.watch {
        return show(context, &name, "moving");
    }
    operator.watching();
    let limit = context.timeout_or(WAIT);
    let what = format!("move of {name}");
    let over = until_over(context.out, &what, limit, async || {
        let told = operator.partitions(Some(&name.topic)).await?;
        Ok(progress(&name, &find(told, &name)?))
    });
    over.await?;
    show(context, &name, "moved")
}

/// The metadata forgets where a partition was when its group has only the new replicas.
fn progress(name: &PartitionName, told: &api::Partition) -> Step<()> {
    if told.before.is_empty() {
        return Step::Over(());
    }
    let behind = told
        .lags
        .iter()
        .filter(|lag| told.target.contains(&lag.node_id));
    let behind = behind.map(|lag| lag.entries).max().unwrap_or(0);
    Step::Going(format!(
        "{name} goes to {}: voters {}, learners {}, {behind} entries behind",
        joined(&told.target),
        joined(&told.voters),
        joined(&told.learners),
    ))
}

pub(super) async fn cancel_move(
    context: &Context,
    operator: &mut Operator,
    options: CancelOptions,
) -> Result<Exit, Failure> {
    // No replicas: back to those it had.
    order_move(operator, &options.partition, Vec::new()).await?;
    show(context, &options.partition, "going_back")
}
