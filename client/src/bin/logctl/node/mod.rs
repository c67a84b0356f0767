//! `logctl node`: brokers one by one.
//!
//! Promise: what a command begins goes on in the cluster whether it is watched or not, and may be ordered again.
//!
//! Not here: starting and stopping processes, which is whoever runs them ([`crate::dev`] on one machine).

mod duty;
mod show;

use clap::Subcommand;

use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::operator::{Operator, Rpc};

#[derive(Debug, Subcommand)]
pub enum Action {
    /// List brokers
    #[command(visible_alias = "ls")]
    List,
    /// Show one broker
    #[command(visible_alias = "desc")]
    Describe(show::Options),
    /// Let a broker lead nothing more and get nothing new, before it is stopped for a while
    Drain(duty::Options),
    /// Give a broker that was drained, or is being decommissioned, its work back
    Resume(duty::ResumeOptions),
    /// Move everything off a broker, then forget it for good
    Decommission(duty::Options),
}

pub async fn run(context: &Context, rpc: Rpc, action: Action) -> Result<Exit, Failure> {
    let mut operator = Operator::new(context, rpc);
    match action {
        Action::List => show::list(context, &mut operator).await,
        Action::Describe(options) => show::describe(context, &mut operator, options).await,
        Action::Drain(options) => duty::drain(context, &mut operator, options).await,
        Action::Resume(options) => duty::resume(context, &mut operator, options).await,
        Action::Decommission(options) => duty::decommission(context, &mut operator, options).await,
    }
}
