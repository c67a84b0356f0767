//! `logctl cluster rebalance`: what would level the cluster, and doing it.
//!
//! Promise: `plan` changes nothing. A move that was refused is shown with the reason, and the command fails.

use clap::Subcommand;
use logd_proto::rpc::admin as api;
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Exit, Failure, Tally};
use crate::operator::Operator;
use crate::output::{Shown, Table, joined};

#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Action {
    /// Show what would move
    Plan,
    /// Begin the moves of a plan that is made now
    Run,
    /// Send every move that is under way back
    Cancel,
}

#[derive(Debug, Serialize)]
struct Move {
    topic: String,
    partition: i32,
    from: Vec<i32>,
    to: Vec<i32>,
    /// `planned`, `moving`, `going_back` or `refused`.
    status: &'static str,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Moves {
    moves: Vec<Move>,
}

impl Moves {
    fn new(action: Action, told: api::RebalanceResponse) -> Moves {
        let begun = match action {
            Action::Plan => "planned",
            Action::Run => "moving",
            Action::Cancel => "going_back",
        };
        let moves = told.moves.into_iter().map(|planned| Move {
            topic: planned.topic,
            partition: planned.partition,
            from: planned.from,
            to: planned.to,
            status: match planned.refused.is_empty() {
                true => begun,
                false => "refused",
            },
            error: Some(planned.refused).filter(|why| !why.is_empty()),
        });
        Moves {
            moves: moves.collect(),
        }
    }

    fn exit(&self) -> Exit {
        let mut tally = Tally::default();
        for planned in &self.moves {
            match planned.error {
                None => tally.done(),
                Some(_) => tally.failed(Exit::Failed),
            }
        }
        tally.exit()
    }
}

impl Shown for Moves {
    fn table(&self) -> String {
        let mut table = Table::new(&["TOPIC", ">PARTITION", "FROM", "TO", "STATUS"]);
        for planned in &self.moves {
            let status = match &planned.error {
                Some(why) => format!("refused: {why}"),
                None => planned.status.replace('_', " "),
            };
            table.row([
                planned.topic.clone(),
                planned.partition.to_string(),
                joined(&planned.from),
                joined(&planned.to),
                status,
            ]);
        }
        table.render()
    }
}

pub(super) async fn run(
    context: &Context,
    operator: &mut Operator,
    action: Action,
) -> Result<Exit, Failure> {
    let asked = operator.ask("rebalance", |mut client| async move {
        let request = api::RebalanceRequest {};
        match action {
            Action::Plan => client.plan_rebalance(request).await,
            Action::Run => client.run_rebalance(request).await,
            Action::Cancel => client.cancel_rebalance(request).await,
        }
    });
    let moves = Moves::new(action, asked.await?);
    context.out.show(&moves)?;
    context.out.note(match (action, moves.moves.is_empty()) {
        (Action::Cancel, true) => "nothing is moving",
        (_, true) => "the cluster is level already",
        (Action::Plan, false) => "`logctl cluster rebalance run` begins it",
        (_, false) => "`logctl partition list` shows how far it is",
    });
    Ok(moves.exit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_move_says_why_and_fails() {
        let planned = |partition, refused: &str| api::PlannedMove {
            topic: "t".into(),
            partition,
            from: vec![1],
            to: vec![2, 3],
            refused: refused.to_owned(),
        };
        let moves = vec![planned(0, ""), planned(1, "busy")];
        let moves = Moves::new(Action::Cancel, api::RebalanceResponse { moves });
        let table = "\
TOPIC  PARTITION  FROM  TO   STATUS
t              0  1     2,3  going back
t              1  1     2,3  refused: busy
";
        assert_eq!(moves.table(), table);
        assert_eq!(moves.exit(), Exit::Failed);
    }
}
