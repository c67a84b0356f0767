//! `logctl dev down`: everything stops, and goes if asked.
//!
//! Promise: brokers are asked first and have time to finish; only what this family has made is removed.

use std::fs;
use std::io;
use std::time::Duration;

use clap::Args;
use rustix::process::Signal;
use serde::Serialize;

use super::At;
use super::layout::Home;
use super::process::{Life, Process};
use super::state::{self, Cluster, Node};
use super::up::spinner;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Shown, Table};

/// A broker gives itself 30 seconds to finish what is in flight, and 5 more before it ends anyhow.
pub(super) const STOP_WITHIN: Duration = Duration::from_secs(40);

/// Ending after SIGKILL is the kernel's affair: a disk that hangs may hold it up.
const KILLED_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    at: At,
    /// Remove the cluster with everything it has stored
    #[arg(long)]
    volumes: bool,
}

/// How a broker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    WasDown,
    Stopped,
    /// It did not stop in time.
    Killed,
}

#[derive(Debug, Serialize)]
struct Ended {
    node: u16,
    result: End,
}

#[derive(Debug, Serialize)]
struct Down {
    dir: String,
    nodes: Vec<Ended>,
    data_removed: bool,
}

impl Shown for Down {
    fn table(&self) -> String {
        let mut table = Table::new(&[">NODE", "RESULT"]);
        for ended in &self.nodes {
            let result = match ended.result {
                End::WasDown => "was down",
                End::Stopped => "stopped",
                End::Killed => "killed",
            };
            table.row([ended.node.to_string(), result.to_owned()]);
        }
        table.render()
    }
}

pub(super) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let home = options.at.home();
    let _lock = state::lock(&home)?;
    let mut cluster = state::read(&home)?;
    let within = context.timeout_or(STOP_WITHIN);
    let bar = spinner(context.out);
    bar.set_message("stopping");
    let ends = stop_nodes(&cluster.nodes, within).await;
    bar.finish_and_clear();
    let nodes = ends?;
    let killed = nodes.iter().filter(|ended| ended.result == End::Killed);
    for Ended { node, .. } in killed {
        let text = format!("node {node} did not stop within {within:?} and was killed");
        context.out.note(&text);
    }
    for node in &mut cluster.nodes {
        node.process = None;
    }
    state::write(&home, &cluster)?;
    if options.volumes {
        remove(&home, &cluster)?;
    }
    let (dir, data_removed) = (home.to_string(), options.volumes);
    context.out.show(&Down {
        dir,
        nodes,
        data_removed,
    })?;
    Ok(Exit::Done)
}

async fn stop_nodes(nodes: &[Node], within: Duration) -> Result<Vec<Ended>, Failure> {
    let running: Vec<&Process> = nodes.iter().filter_map(Node::running).collect();
    let running: Vec<Process> = running.into_iter().cloned().collect();
    let ends = stop(&running, within).await?;
    let result = |node: &Node| {
        let at = running
            .iter()
            .position(|one| node.process.as_ref() == Some(one));
        at.map_or(End::WasDown, |at| ends[at])
    };
    let ended = nodes.iter().map(|node| Ended {
        node: node.node,
        result: result(node),
    });
    Ok(ended.collect())
}

/// Asks all, waits for all, and kills who has not ended by then.
///
/// # Errors
/// If one cannot be signalled, or stays even so.
pub(super) async fn stop(processes: &[Process], within: Duration) -> Result<Vec<End>, Failure> {
    for process in processes {
        signal(process, Signal::TERM)?;
        // One that is paused would not notice.
        if process.life() == Life::Paused {
            signal(process, Signal::CONT)?;
        }
    }
    let deadline = tokio::time::Instant::now() + within;
    let mut ends = Vec::new();
    for process in processes {
        let left = deadline.duration_since(tokio::time::Instant::now());
        ends.push(match process.ends_within(left).await {
            true => End::Stopped,
            false => kill(process).await?,
        });
    }
    Ok(ends)
}

async fn kill(process: &Process) -> Result<End, Failure> {
    signal(process, Signal::KILL)?;
    match process.ends_within(KILLED_WITHIN).await {
        true => Ok(End::Killed),
        false => {
            let message = format!("process {} is still there after SIGKILL", process.pid);
            Err(Failure::new(Exit::Failed, message)
                .hint("it waits for its disk; the kernel's log may say why"))
        }
    }
}

pub(super) fn signal(process: &Process, signal: Signal) -> Result<(), Failure> {
    let what = format!("cannot signal process {}", process.pid);
    let sent = process.signal(signal);
    sent.map_err(|error| Failure::io(&what, &error))
}

/// The folder itself goes only if nothing of somebody else is in it.
fn remove(home: &Home, cluster: &Cluster) -> Result<(), Failure> {
    for node in &cluster.nodes {
        let folder = home.node(node.node);
        gone(fs::remove_dir_all(&folder))
            .map_err(|error| Failure::io(&format!("cannot remove {}", folder.display()), &error))?;
    }
    let state = home.state();
    gone(fs::remove_file(&state))
        .map_err(|error| Failure::io(&format!("cannot remove {}", state.display()), &error))?;
    fs::remove_dir(home.path()).ok();
    Ok(())
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    fn shell(script: &str) -> (Child, Process) {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It says when it is ready for signals.
        let mut out = child.stdout.take().unwrap();
        io::Read::read_exact(&mut out, &mut [0; 1]).unwrap();
        let process = Process::of(child.id()).unwrap();
        (child, process)
    }

    #[tokio::test]
    async fn who_does_not_stop_in_time_is_killed_and_who_is_paused_stops() {
        let stubborn = "trap '' TERM; echo; while :; do sleep 0.05; done";
        let (mut stubborn, one) = shell(stubborn);
        let (mut paused, two) = shell("trap 'exit 0' TERM; echo; while :; do sleep 0.05; done");
        two.signal(Signal::STOP).unwrap();
        while two.life() != Life::Paused {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let two_ends = stop(&[two], STOP_WITHIN).await.unwrap();
        assert_eq!(two_ends, [End::Stopped]);
        let one_ends = stop(&[one], Duration::from_millis(50)).await.unwrap();
        assert_eq!(one_ends, [End::Killed]);
        assert_eq!(paused.wait().unwrap().code(), Some(0));
        stubborn.wait().unwrap();
    }

    #[test]
    fn only_what_is_ours_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().join("cluster"));
        let cluster = Cluster::new(2, 9092);
        fs::create_dir_all(home.data(1)).unwrap();
        state::write(&home, &cluster).unwrap();
        let theirs = home.path().join("node-7");
        fs::create_dir(&theirs).unwrap();
        remove(&home, &cluster).unwrap();
        assert!(theirs.exists() && !home.node(1).exists() && !home.state().exists());
        fs::remove_dir(&theirs).unwrap();
        remove(&home, &cluster).unwrap();
        assert!(!home.path().exists());
    }
}
