//! `logctl cluster`: the cluster as a whole, as its brokers see it.
//!
//! Promise: nothing is changed but by `config set`, `config unset`, `rebalance run` and `rebalance cancel`; `health` ends with 6 unless
//! everything is well.
//!
//! Not here: single brokers ([`crate::node`]) and partitions ([`crate::partition`]).

mod config;
mod health;
mod info;
mod quorum;
mod rebalance;

use clap::Subcommand;

use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::operator::{Operator, Rpc};

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Show how large the cluster is and who leads its metadata
    Info,
    /// Show what ails the cluster; ends with 6 if anything does
    Health(health::Options),
    /// Show who keeps the cluster's metadata
    Quorum,
    /// Show and change brokers' settings while they run
    Config {
        #[command(subcommand)]
        action: config::Action,
    },
    /// Level replicas and leaders over brokers and racks
    Rebalance {
        #[command(subcommand)]
        action: rebalance::Action,
    },
}

pub async fn run(context: &Context, rpc: Rpc, action: Action) -> Result<Exit, Failure> {
    let mut operator = Operator::new(context, rpc);
    match action {
        Action::Config { action } => config::run(context, action).await,
        Action::Info => info::run(context, &mut operator).await,
        Action::Health(options) => health::run(context, &mut operator, options).await,
        Action::Quorum => quorum::run(context, &mut operator).await,
        Action::Rebalance { action } => rebalance::run(context, &mut operator, action).await,
    }
}
