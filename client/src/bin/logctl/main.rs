//! `logctl`: topics, records and groups from a terminal or a script.
//!
//! Promise: data goes to stdout and everything else to stderr; every command prints a table or JSON; an
//! error says what, where and what to do; the exit code says which kind of failure it was
//! ([`failure::Exit`]). A reader that goes away (`| head`) is not a failure.
//!
//! Not here: Kafka's protocol, which is the library's business; this uses its public door only. What operators
//! ask goes to the brokers' own service ([`operator`]).

mod cli;

mod args;
mod context;
mod failure;
mod lookup;
mod output;
mod signals;

mod topic;

mod consume;
mod lines;
mod produce;

mod group;

mod cluster;
mod node;
mod operator;
mod partition;
mod watch;

mod bench;

mod debug;

mod dev;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use context::Context;
use debug::{DebugCommand, Verdict};
use failure::{Exit, Failure};

fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let context = Context::new(global);
    let exit = match start(&context, command) {
        Ok(exit) => exit,
        Err(failure) => context.out.fail(&failure),
    };
    ExitCode::from(exit.code())
}

fn start(context: &Context, command: Command) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start threads: {error}")))?;
    runtime.block_on(run(context, command))
}

/// One arm per family. Boxed, because a family's future holds everything any of its commands needs.
async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Topic { action } => Box::pin(topic::run(context, action)).await,
        Command::Produce(options) => Box::pin(produce::run(context, options)).await,
        Command::Consume(options) => Box::pin(consume::run(context, options)).await,
        Command::Group { action } => Box::pin(group::run(context, action)).await,
        Command::Cluster { rpc, action } => Box::pin(cluster::run(context, rpc, action)).await,
        Command::Node { rpc, action } => Box::pin(node::run(context, rpc, action)).await,
        Command::Partition { rpc, action } => Box::pin(partition::run(context, rpc, action)).await,
        Command::Bench { action } => Box::pin(bench::run(context, action)).await,
        Command::Dev { action } => Box::pin(dev::run(context, action)).await,
        // Blocks on a disk; nothing else runs.
        Command::Debug { action } => inspect(context, action),
    }
}

fn inspect(context: &Context, action: DebugCommand) -> Result<Exit, Failure> {
    match debug::run(action, context.out.format, &mut std::io::stdout().lock()) {
        Ok(Verdict::Sound) => Ok(Exit::Done),
        Ok(Verdict::Damaged) => Ok(Exit::CheckFailed),
        Err(error) => Err(Failure::new(Exit::Failed, format!("{error:#}"))),
    }
}
