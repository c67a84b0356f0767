//! `logctl topic`: one file per thing that can be done with a topic.

mod create;
mod delete;
mod show;

use clap::Subcommand;

use crate::context::Context;
use crate::failure::{Exit, Failure};

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Create topics
    Create(create::Options),
    /// List topics
    #[command(visible_alias = "ls")]
    List(show::ListOptions),
    /// Show where partitions are, where they begin and where they end
    #[command(visible_alias = "desc")]
    Describe(show::DescribeOptions),
    /// Delete topics with all their records
    #[command(visible_alias = "rm")]
    Delete(delete::Options),
}

pub async fn run(context: &Context, action: Action) -> Result<Exit, Failure> {
    match action {
        Action::Create(options) => create::run(context, options).await,
        Action::List(options) => show::list(context, options).await,
        Action::Describe(options) => show::describe(context, options).await,
        Action::Delete(options) => delete::run(context, options).await,
    }
}
