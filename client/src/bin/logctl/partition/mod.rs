//! `logctl partition`: where partitions are, where they should be, and who leads them.
//!
//! Promise: what is shown of a partition is what its leader says, and it is said who was silent. What a
//! command begins goes on in the cluster whether it is watched or not.
//!
//! Not here: records and offsets in use ([`crate::topic`]).

mod change;
mod recover;
mod show;

use clap::Subcommand;

use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::operator::{Operator, Rpc};

#[derive(Debug, Subcommand)]
pub enum Action {
    /// List partitions
    #[command(visible_alias = "ls")]
    List(show::ListOptions),
    /// Show one partition's replicas
    #[command(visible_alias = "desc")]
    Describe(show::DescribeOptions),
    /// Let another replica lead
    TransferLeader(change::TransferOptions),
    /// Give a partition other replicas
    Move(change::MoveOptions),
    /// Send a move that is under way back
    CancelMove(change::CancelOptions),
    /// Go on with what one replica has, when a majority is lost for good
    Recover(recover::RecoverOptions),
}

pub async fn run(context: &Context, rpc: Rpc, action: Action) -> Result<Exit, Failure> {
    let mut operator = Operator::new(context, rpc);
    match action {
        Action::List(options) => show::list(context, &mut operator, options).await,
        Action::Describe(options) => show::describe(context, &mut operator, options).await,
        Action::TransferLeader(options) => change::transfer(context, &mut operator, options).await,
        Action::Move(options) => change::begin_move(context, &mut operator, options).await,
        Action::CancelMove(options) => change::cancel_move(context, &mut operator, options).await,
        Action::Recover(options) => recover::recover(context, &mut operator, options).await,
    }
}
