//! `logd`: settings, a node, and the signals that end it.

use anyhow::Context as _;
use clap::Parser;
use logd::banner;
use logd::cli::{Cli, Command, ConfigAction, check, print};
use logd::config::Config;
use logd::healthcheck::{self, Verdict};
use logd::logging;
use logd::node::{Node, recover_metadata};
use logd::open_files;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A shell's word for "ended by SIGTERM": what a signal while starting or stopping comes to.
const CUT_SHORT: u8 = 143;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  because: {cause}");
            }
            eprintln!(
                "  hint: `logd config check` finds mistakes in settings, `logd --help` lists them"
            );
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Some(Command::Config {
            action: ConfigAction::Print { effective },
        }) => say(&print(&cli.settings.load()?, *effective)?),
        Some(Command::Config {
            action: ConfigAction::Check,
        }) => say(&check(&cli.settings)?),
        Some(Command::Healthcheck) => {
            let verdict = healthcheck::ask(cli.settings.resolve()?.admin_addr);
            say(&format!("{verdict}\n"))?;
            Ok(ExitCode::from(u8::from(verdict != Verdict::Ready)))
        }
        Some(Command::RecoverMetadata { accept_data_loss }) => {
            let config = cli.settings.resolve()?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .context("the runtime cannot start")?;
            runtime.block_on(recover(&config, *accept_data_loss))
        }
        None => {
            let mut config = cli.settings.resolve()?;
            logging::start(&config)?;
            open_files::fit(&mut config, open_files::raise_limit());
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .context("the runtime cannot start")?;
            runtime.block_on(serve(config))
        }
    }
}

fn say(text: &str) -> anyhow::Result<ExitCode> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("nobody reads the output")?;
    Ok(ExitCode::SUCCESS)
}

/// As when an operator has not said that they accept a loss: the command is not complete.
const NOT_ACCEPTED: u8 = 2;

async fn recover(config: &Config, accepted: bool) -> anyhow::Result<ExitCode> {
    let tell = |plan: &str| {
        // What is said about it afterwards is enough where nobody reads this.
        let _ = say(plan);
    };
    let done = recover_metadata(config, accepted, tell).await;
    let Some(lineage) = done.context("the metadata cannot be recovered by force")? else {
        let given: Vec<String> = std::env::args().collect();
        eprintln!(
            "nothing was changed. Make sure that the brokers that do not answer are stopped or gone for good, and then: \
             {} --accept-data-loss",
            given.join(" ")
        );
        return Ok(ExitCode::from(NOT_ACCEPTED));
    };
    let generation = lineage.generation;
    say(&format!(
        "done: the metadata goes on from this disk alone, as generation {generation}. Start this broker; partitions that \
         have lost their majority are recovered with `logctl partition recover`\n"
    ))
}

/// Serves until a signal, or until the disk fails.
async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let (deadline, data_dir) = (config.node.shutdown_timeout, config.node.data_dir.clone());
    let node = tokio::select! {
        started = Node::start_after_predecessor(config) => started.context("logd cannot start")?,
        // Nothing is served yet, so there is nothing to finish; nor is a recovery waited for.
        _ = term.recv() => return cut_short("signal while starting"),
        _ = int.recv() => return cut_short("signal while starting"),
    };
    let facts = banner::Facts {
        bound: node.bound(),
        data_dir: &data_dir,
        cluster_id: node.cluster_id(),
        node_id: node.node_id(),
    };
    // A broker whose output nobody reads is still a broker.
    let _ = say(&banner::text(&facts));
    tokio::select! {
        _ = term.recv() => info!("SIGTERM: stopping; a second one exits at once"),
        _ = int.recv() => info!("SIGINT: stopping; a second one exits at once"),
        () = node.removed() => info!("this broker has been decommissioned: stopping; its data directory is not needed any more"),
        why = node.failed() => {
            error!(why, "nothing can be acknowledged any more, so this process ends");
            // At once: a thread that hangs in a read of that disk must not keep the process.
            std::process::exit(1);
        }
    }
    tokio::select! {
        () = node.stop(deadline) => Ok(ExitCode::SUCCESS),
        _ = term.recv() => cut_short("second signal"),
        _ = int.recv() => cut_short("second signal"),
        () = tokio::time::sleep(deadline + Duration::from_secs(5)) => {
            error!(seconds = deadline.as_secs(), "stopping took too long; the next start recovers");
            std::process::exit(1)
        }
    }
}

/// Threads of the disk may be in the middle of a write: ending here is what a crash would be, and as safe.
fn cut_short(why: &str) -> anyhow::Result<ExitCode> {
    warn!("{why}: exiting at once; the next start recovers");
    std::process::exit(i32::from(CUT_SHORT))
}
