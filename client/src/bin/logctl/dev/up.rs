//! `logctl dev up`: all brokers of a local cluster, ready.
//!
//! Promise: when it succeeds every broker says that it is ready. What it has started and cannot bring up it
//! stops again, except for brokers that are merely slow: those go on.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde::Serialize;

use super::At;
use super::down;
use super::launch::{self, Binary, Started};
use super::layout::{BASE_PORT_MAX, Home, KAFKA_PORT, NODES_MAX};
use super::probe::{Readiness, readiness};
use super::state::{self, Cluster, Node};
use super::status::{self, Status};
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Out, Shown};
use crate::signals::Signals;

/// A new broker needs a second; one with much to recover says so and is waited for with `--timeout`.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(60);

const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub struct Options {
    /// How many brokers a new cluster has [default: 3]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: Option<u16>,
    #[command(flatten)]
    at: At,
    /// Kafka's port of the first broker of a new cluster [default: 9092]; all other ports move with it
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=i64::from(BASE_PORT_MAX)))]
    base_port: Option<u16>,
    #[command(flatten)]
    binary: Binary,
}

/// The brokers, and what to do with them.
#[derive(Debug, Serialize)]
struct Up {
    #[serde(flatten)]
    status: Status,
    next: Vec<String>,
}

impl Shown for Up {
    fn table(&self) -> String {
        let next: String = self.next.iter().map(|line| format!("  {line}\n")).collect();
        let (table, bootstrap) = (self.status.table(), &self.status.bootstrap);
        format!("{table}\nbootstrap: {bootstrap}\ntry:\n{next}")
    }
}

/// Three commands that show what it is good for.
fn next(home: &Home, cluster: &Cluster) -> Vec<String> {
    let bootstrap = format!("export LOGCTL_BROKERS={}", cluster.bootstrap());
    match cluster.nodes.len() {
        1 => vec![
            bootstrap,
            "logctl topic create greetings".to_owned(),
            "echo hello | logctl produce greetings && logctl consume greetings -e".to_owned(),
        ],
        nodes => vec![
            bootstrap,
            format!("logctl topic create orders -p 3 -r {}", nodes.min(3)),
            format!(
                "{} && echo hello | logctl produce orders",
                home.command("kill 1")
            ),
        ],
    }
}

pub(super) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let logd = options.binary.find()?;
    let home = options.at.home();
    let found = state::find(&home)?;
    let mut cluster = match found {
        Some(cluster) => agreed(cluster, &options, &home)?,
        None => Cluster::new(
            options.nodes.unwrap_or(3),
            options.base_port.unwrap_or(KAFKA_PORT),
        ),
    };
    let down: Vec<u16> = down_nodes(&cluster).map(|node| node.node).collect();
    if down.is_empty() {
        let message = format!("the cluster in {home} is running already");
        let hint = format!(
            "`{}` shows it, `{}` stops it",
            home.command("status"),
            home.command("down")
        );
        return Err(Failure::new(Exit::Failed, message).hint(hint));
    }
    launch::check_ports(&down_nodes(&cluster).collect::<Vec<_>>()).map_err(|failure| {
        failure
            .hint("`--base-port 19092` moves the ports of a new cluster; `--dir` names another one")
    })?;
    let home_is = |error| Failure::io(&format!("cannot make {home}"), &error);
    fs::create_dir_all(home.path()).map_err(home_is)?;
    let _lock = state::lock(&home)?;
    // Another command may have come between.
    if state::find(&home)?.is_some_and(|now| now != cluster) {
        let message = format!("another logctl command has changed the cluster in {home}");
        return Err(Failure::new(Exit::Failed, message).hint("try again"));
    }
    bring_up(context, &home, &logd, &mut cluster, &down).await?;
    let (status, next) = (status::of(&home, &cluster).await, next(&home, &cluster));
    context.out.show(&Up { status, next })?;
    Ok(Exit::Done)
}

/// A cluster that is there already is not what new ones are like.
fn agreed(cluster: Cluster, options: &Options, home: &Home) -> Result<Cluster, Failure> {
    let has = cluster.nodes.len();
    let nodes = options.nodes.is_none_or(|n| usize::from(n) == has);
    let ports = options
        .base_port
        .is_none_or(|port| port == cluster.base_port);
    if nodes && ports {
        return Ok(cluster);
    }
    let message = format!(
        "the cluster in {home} has {} from port {} on, and keeps them",
        crate::output::count(has as u64, "broker"),
        cluster.base_port
    );
    Err(Failure::usage(message).hint(format!(
        "`{}` starts it as it is; `{}` removes it with its data; --dir makes another one",
        home.command("up"),
        home.command("down --volumes"),
    )))
}

fn down_nodes(cluster: &Cluster) -> impl Iterator<Item = &Node> {
    cluster.nodes.iter().filter(|node| node.running().is_none())
}

/// Starts some brokers and waits until they are ready.
///
/// # Errors
/// If one ends, if somebody interrupts, or if it takes too long; the last leaves them running.
pub(super) async fn bring_up(
    context: &Context,
    home: &Home,
    logd: &Path,
    cluster: &mut Cluster,
    nodes: &[u16],
) -> Result<(), Failure> {
    let mut signals = Signals::new();
    let mut started = Vec::new();
    let came = async {
        start_all(home, logd, cluster, nodes, &mut started)?;
        let deadline = context.timeout_or(READY_WITHIN);
        wait_ready(context.out, &mut started, deadline, home).await
    };
    let came = tokio::select! {
        came = came => came,
        exit = signals.next() => Err(Failure::new(exit, "interrupted; what was started is stopped again")),
    };
    if came
        .as_ref()
        .is_err_and(|failure| failure.exit() != Exit::Unreachable)
    {
        give_up(home, cluster, &started).await?;
    }
    came
}

/// Their processes are written down one by one: whatever happens, somebody can find them.
fn start_all(
    home: &Home,
    logd: &Path,
    cluster: &mut Cluster,
    nodes: &[u16],
    started: &mut Vec<Started>,
) -> Result<(), Failure> {
    // Also when none can be started, there is a log to look at.
    state::write(home, cluster)?;
    for number in nodes {
        let node = cluster.node(*number)?.clone();
        let one = launch::spawn(home, logd, cluster, &node)?;
        cluster.node(*number)?.process = Some(one.process.clone());
        started.push(one);
        state::write(home, cluster)?;
    }
    Ok(())
}

async fn wait_ready(
    out: Out,
    started: &mut [Started],
    within: Duration,
    home: &Home,
) -> Result<(), Failure> {
    let (begun, bar) = (Instant::now(), spinner(out));
    loop {
        let mut missing = Vec::new();
        for one in started.iter_mut() {
            let readiness = readiness(one.admin_port).await;
            if let Some(failure) = one.ended() {
                return Err(failure.hint(format!(
                    "`{}` shows all it said",
                    home.command(&format!("logs {}", one.node))
                )));
            }
            match readiness {
                Readiness::Ready => {}
                Readiness::NotYet(said) => missing.push(format!("node {} is {said}", one.node)),
                Readiness::Silent => missing.push(format!("node {} is starting", one.node)),
            }
        }
        let missing = missing.join(", ");
        if missing.is_empty() {
            bar.finish_and_clear();
            return Ok(());
        }
        if begun.elapsed() >= within {
            bar.finish_and_clear();
            let message = format!("not ready after {within:?}: {missing}");
            let look = format!(
                "it goes on: `{}` looks again, --timeout waits longer",
                home.command("status")
            );
            return Err(Failure::new(Exit::Unreachable, message).hint(look));
        }
        bar.set_message(missing);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Moves on stderr while somebody watches.
pub(super) fn spinner(out: Out) -> ProgressBar {
    let target = match out.is_watched() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(None, target);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Stops what this command has started.
async fn give_up(home: &Home, cluster: &mut Cluster, started: &[Started]) -> Result<(), Failure> {
    let processes: Vec<_> = started.iter().map(|one| one.process.clone()).collect();
    down::stop(&processes, down::STOP_WITHIN).await?;
    for one in started {
        cluster.node(one.node)?.process = None;
    }
    state::write(home, cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_try_fits_the_cluster() {
        let home = Home::new("./.logd".into());
        let alone = next(&home, &Cluster::new(1, 9092));
        assert_eq!(alone[0], "export LOGCTL_BROKERS=127.0.0.1:9092");
        let three = next(&home, &Cluster::new(3, 9092));
        assert_eq!(three[1], "logctl topic create orders -p 3 -r 3");
        assert_eq!(
            three[2],
            "logctl dev kill 1 && echo hello | logctl produce orders"
        );
        let two = next(&home, &Cluster::new(2, 9092));
        assert!(two[1].ends_with("-r 2"));
    }
}
