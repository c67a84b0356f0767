//! `logctl node drain`, `resume` and `decommission`.
//!
//! Promise: a watch ends when the broker leads nothing, or is no member any more, or when its time is up; what
//! was begun goes on after that.

use std::time::Duration;

use clap::Args;
use logd_proto::rpc::admin as api;
use serde::Serialize;

use super::show::find;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::operator::Operator;
use crate::output::{Shown, Table, count};
use crate::watch::{Step, until_over};

/// A broker's data may be much.
const WAIT: Duration = Duration::from_secs(60 * 60);

#[derive(Debug, Args)]
pub struct Options {
    /// The broker's number
    #[arg(value_name = "ID")]
    id: i32,
    /// Say how far it is until it is over, at most for --timeout [default: 1h]
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Args)]
pub struct ResumeOptions {
    /// The broker's number
    #[arg(value_name = "ID")]
    id: i32,
}

#[derive(Debug, Serialize)]
struct Ordered {
    node_id: i32,
    /// `draining`, `drained`, `active`, `decommissioning` or `decommissioned`.
    status: &'static str,
}

impl Shown for Ordered {
    fn table(&self) -> String {
        let mut table = Table::new(&[">NODE", "STATUS"]);
        table.row([self.node_id.to_string(), self.status.to_owned()]);
        table.render()
    }
}

fn show(context: &Context, node_id: i32, status: &'static str) -> Result<Exit, Failure> {
    context.out.show(&Ordered { node_id, status })?;
    Ok(Exit::Done)
}

pub(super) async fn drain(
    context: &Context,
    operator: &mut Operator,
    options: Options,
) -> Result<Exit, Failure> {
    let node_id = options.id;
    let what = format!("drain of node {node_id}");
    let asked = operator.ask(&what, |mut client| async move {
        client.drain(api::NodeRequest { node_id }).await
    });
    asked.await?;
    if !options.watch {
        return show(context, node_id, "draining");
    }
    watch(context, operator, &what, async |operator| {
        let left = find(operator.cluster().await?, node_id)?.leaders;
        Ok(match left {
            0 => Step::Over(()),
            _ => Step::Going(format!(
                "node {node_id} leads {} still",
                count(left.into(), "partition")
            )),
        })
    })
    .await?;
    show(context, node_id, "drained")
}

pub(super) async fn resume(
    context: &Context,
    operator: &mut Operator,
    options: ResumeOptions,
) -> Result<Exit, Failure> {
    let node_id = options.id;
    let what = format!("resume of node {node_id}");
    let asked = operator.ask(&what, |mut client| async move {
        client.resume(api::NodeRequest { node_id }).await
    });
    asked.await?;
    show(context, node_id, "active")
}

pub(super) async fn decommission(
    context: &Context,
    operator: &mut Operator,
    options: Options,
) -> Result<Exit, Failure> {
    let node_id = options.id;
    let what = format!("decommission of node {node_id}");
    if options.watch {
        // The broker that we ask may be the one that goes.
        let brokers = operator.cluster().await?.brokers;
        operator.learn(&brokers);
    }
    let asked = operator.ask(&what, |mut client| async move {
        client.decommission(api::NodeRequest { node_id }).await
    });
    asked.await?;
    if !options.watch {
        return show(context, node_id, "decommissioning");
    }
    watch(context, operator, &what, async |operator| {
        let cluster = operator.cluster().await?;
        let moving = cluster.moving;
        Ok(match find(cluster, node_id) {
            Err(_) => Step::Over(()),
            Ok(left) => Step::Going(format!(
                "node {node_id} is to keep {}; {} under way",
                count(left.replicas.into(), "replica"),
                count(moving.into(), "move")
            )),
        })
    })
    .await?;
    show(context, node_id, "decommissioned")
}

async fn watch(
    context: &Context,
    operator: &mut Operator,
    what: &str,
    mut look: impl AsyncFnMut(&mut Operator) -> Result<Step<()>, Failure>,
) -> Result<(), Failure> {
    operator.watching();
    let limit = context.timeout_or(WAIT);
    until_over(context.out, what, limit, async || look(operator).await).await
}
