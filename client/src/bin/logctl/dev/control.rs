//! `logctl dev kill` and `logctl dev start`: one broker goes, or comes back, while the others serve.

use std::time::Duration;

use clap::{Args, ValueEnum};
use rustix::process::Signal;

use super::At;
use super::down::{STOP_WITHIN, signal};
use super::launch::{self, Binary};
use super::process::Life;
use super::state;
use super::status;
use super::up::bring_up;
use crate::context::Context;
use crate::failure::{Exit, Failure};

/// The kernel needs a moment to pause a process or to let it go on.
const PAUSED_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
enum Kind {
    /// End at once, as in a crash
    #[default]
    Kill,
    /// Stop in order
    Term,
    /// Pause, as a machine that hangs
    Stop,
    /// Go on after STOP
    Cont,
}

#[derive(Debug, Args)]
pub struct KillOptions {
    /// Which broker, counted from 1
    node: u16,
    /// What to send
    #[arg(short, long, value_enum, default_value_t, ignore_case = true)]
    signal: Kind,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Args)]
pub struct StartOptions {
    /// Which broker, counted from 1
    node: u16,
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    binary: Binary,
}

pub(super) async fn kill(context: &Context, options: KillOptions) -> Result<Exit, Failure> {
    let (home, number) = (options.at.home(), options.node);
    let _lock = state::lock(&home)?;
    let mut cluster = state::read(&home)?;
    let start = home.command(&format!("start {number}"));
    let process = cluster.node(number)?.running().cloned();
    let process = process.ok_or_else(|| {
        let failure = Failure::new(Exit::Failed, format!("node {number} is down already"));
        failure.hint(format!("`{start}` starts it"))
    })?;
    let within = context.timeout_or(STOP_WITHIN);
    let (done, hint) = match options.signal {
        Kind::Kill => {
            signal(&process, Signal::KILL)?;
            (process.ends_within(within).await, start)
        }
        Kind::Term => {
            signal(&process, Signal::TERM)?;
            (process.ends_within(within).await, start)
        }
        Kind::Stop => {
            signal(&process, Signal::STOP)?;
            let go_on = home.command(&format!("kill {number} --signal CONT"));
            (becomes(|| process.life() != Life::Runs).await, go_on)
        }
        Kind::Cont => {
            signal(&process, Signal::CONT)?;
            let look = home.command("status");
            (becomes(|| process.life() != Life::Paused).await, look)
        }
    };
    if !done {
        let pid = process.pid;
        let message = format!("node {number} (process {pid}) is still there after {within:?}");
        return Err(Failure::new(Exit::Unreachable, message).hint("--timeout waits longer"));
    }
    context
        .out
        .show(&status::of_one(&home, &cluster, number).await)?;
    let what = match options.signal {
        Kind::Kill | Kind::Term => "starts it again",
        Kind::Stop => "lets it go on",
        Kind::Cont => "shows all",
    };
    context.out.note(&format!("`{hint}` {what}"));
    Ok(Exit::Done)
}

async fn becomes(so: impl Fn() -> bool) -> bool {
    let wait = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PAUSED_WITHIN, wait).await.is_ok()
}

pub(super) async fn start(context: &Context, options: StartOptions) -> Result<Exit, Failure> {
    let logd = options.binary.find()?;
    let (home, number) = (options.at.home(), options.node);
    let _lock = state::lock(&home)?;
    let mut cluster = state::read(&home)?;
    let node = cluster.node(number)?;
    if let Some(process) = node.running() {
        let message = format!("node {number} runs already, as process {}", process.pid);
        let go_on = home.command(&format!("kill {number} --signal CONT"));
        let failure = Failure::new(Exit::Failed, message);
        return Err(match process.life() {
            Life::Paused => failure.hint(format!("it is paused: `{go_on}` lets it go on")),
            _ => failure,
        });
    }
    launch::check_ports(&[node])?;
    bring_up(context, &home, &logd, &mut cluster, &[number]).await?;
    context
        .out
        .show(&status::of_one(&home, &cluster, number).await)?;
    Ok(Exit::Done)
}
