//! `logctl dev`: a cluster on this machine, its brokers being processes that outlive the command.
//!
//! Promise: nothing but `logd` is needed; whatever ends badly says the broker's own last words; no process is
//! signalled and no file removed that is not the cluster's.
//!
//! Not here: what brokers do, and settings, which they take from the environment as always.

mod layout;
mod process;
mod state;

mod launch;
mod probe;
mod status;

mod control;
mod down;
mod logs;
mod up;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::context::Context;
use crate::failure::{Exit, Failure};
use layout::{HOME, Home};

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Start a cluster, or what is down of it
    Up(up::Options),
    /// Show which brokers are up
    #[command(visible_alias = "ps")]
    Status(At),
    /// Print what brokers print
    Logs(logs::Options),
    /// Start one broker that is down
    Start(control::StartOptions),
    /// End one broker the hard way, or pause it: others should go on
    Kill(control::KillOptions),
    /// Stop all brokers; what they have stored stays
    Down(down::Options),
    /// Become a broker in a session of its own
    #[command(hide = true)]
    Detached(launch::Detached),
}

/// Which cluster.
#[derive(Debug, Args)]
pub struct At {
    /// The cluster's folder: data, logs and what is known about its processes
    #[arg(long, value_name = "DIR", default_value = HOME)]
    dir: PathBuf,
}

impl At {
    fn home(&self) -> Home {
        Home::new(self.dir.clone())
    }
}

pub async fn run(context: &Context, action: Action) -> Result<Exit, Failure> {
    match action {
        Action::Up(options) => up::run(context, options).await,
        Action::Status(at) => status::run(context, &at.home()).await,
        Action::Logs(options) => logs::run(context, options).await,
        Action::Start(options) => control::start(context, options).await,
        Action::Kill(options) => control::kill(context, options).await,
        Action::Down(options) => down::run(context, options).await,
        Action::Detached(command) => Err(launch::become_broker(&command)),
    }
}
