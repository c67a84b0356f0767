//! `logctl cluster health`.
//!
//! Promise: it ends with 0 only if the last answer was "healthy", with 6 if it was not, and with 5 if there was
//! none. A wait has an end; a watch without one is for people, who interrupt it.

use std::time::Duration;

use clap::{Args, ValueEnum};
use logd_proto::rpc::admin as api;
use serde::Serialize;
use tokio::time::sleep;

use crate::args::PartitionName;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::operator::Operator;
use crate::output::{Shown, Table, count, joined};
use crate::signals::{Signals, reader_gone};
use crate::watch::{Step, until_over};

/// Names that are said of each kind; a cluster that has lost half its brokers has thousands.
const NAMES_MAX: usize = 5;

/// A broker that starts may have much to catch up with.
const WAIT: Duration = Duration::from_secs(120);

/// Between two looks of a watch.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct Options {
    /// Show it again whenever it changes, until it is interrupted or what --wait names has come
    #[arg(long)]
    watch: bool,
    /// Wait until the cluster is so, at most for --timeout [default: 2m]
    #[arg(long, value_name = "STATE", value_enum)]
    wait: Option<Wait>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wait {
    Healthy,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Named {
    topic: String,
    partition: i32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Health {
    healthy: bool,
    metadata_leaderless: bool,
    dead_brokers: Vec<i32>,
    slow_disks: Vec<i32>,
    leaderless: Vec<Named>,
    under_replicated: Vec<Named>,
    moving: u32,
}

impl From<api::HealthResponse> for Health {
    fn from(told: api::HealthResponse) -> Health {
        let named = |names: Vec<api::PartitionName>| {
            let named = names.into_iter().map(|name| Named {
                topic: name.topic,
                partition: name.partition,
            });
            named.collect()
        };
        Health {
            healthy: told.healthy,
            metadata_leaderless: told.metadata_leaderless,
            dead_brokers: told.dead_brokers,
            slow_disks: told.slow_disks,
            leaderless: named(told.leaderless),
            under_replicated: named(told.under_replicated),
            moving: told.moving,
        }
    }
}

impl Health {
    /// In a few words, for a line of progress.
    fn summary(&self) -> String {
        let kinds = [
            (&self.leaderless, "without a leader"),
            (&self.under_replicated, "under-replicated"),
        ];
        let mut words = Vec::new();
        if !self.dead_brokers.is_empty() {
            words.push(format!("dead brokers {}", joined(&self.dead_brokers)));
        }
        if !self.slow_disks.is_empty() {
            let brokers = joined(&self.slow_disks);
            words.push(format!("slow or full disks on brokers {brokers}"));
        }
        for (names, what) in kinds {
            if !names.is_empty() {
                let names = count(names.len() as u64, "partition");
                words.push(format!("{names} {what}"));
            }
        }
        if self.metadata_leaderless {
            words.push("metadata without a leader".to_owned());
        }
        match self.healthy {
            true => "healthy".to_owned(),
            false => format!("unhealthy: {}", words.join(", ")),
        }
    }

    fn exit(&self) -> Exit {
        match self.healthy {
            true => Exit::Done,
            false => Exit::CheckFailed,
        }
    }
}

fn some(names: &[Named]) -> String {
    let shown = names.iter().take(NAMES_MAX).map(|name| {
        let (topic, partition) = (name.topic.clone(), name.partition);
        PartitionName { topic, partition }.to_string()
    });
    let shown: Vec<String> = shown.collect();
    match names.len().checked_sub(NAMES_MAX) {
        Some(more @ 1..) => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

impl Shown for Health {
    fn table(&self) -> String {
        let mut table = Table::new(&["CHECK", "STATE", "DETAIL"]);
        let mut row = |check: &str, ill: bool, detail: String| {
            let state = if ill { "bad" } else { "ok" };
            table.row([check.to_owned(), state.to_owned(), detail]);
        };
        let dead = &self.dead_brokers;
        let detail = match dead.is_empty() {
            true => String::new(),
            false => format!("dead: {}", joined(dead)),
        };
        row("brokers", !dead.is_empty(), detail);
        let slow = &self.slow_disks;
        let detail = match slow.is_empty() {
            true => String::new(),
            false => format!("slow or full: {}", joined(slow)),
        };
        row("disks", !slow.is_empty(), detail);
        let detail = match self.metadata_leaderless {
            true => "nobody is known to lead; nothing can be changed",
            false => "",
        };
        row("metadata", self.metadata_leaderless, detail.to_owned());
        let leaderless = &self.leaderless;
        row("leaders", !leaderless.is_empty(), some(leaderless));
        let under = &self.under_replicated;
        row("replicas", !under.is_empty(), some(under));
        let moves = match self.moving {
            0 => String::new(),
            moving => format!("{} under way", count(moving.into(), "move")),
        };
        row("moves", false, moves);
        table.render()
    }
}

async fn look(operator: &mut Operator) -> Result<Health, Failure> {
    Ok(operator.health().await?.into())
}

pub(super) async fn run(
    context: &Context,
    operator: &mut Operator,
    options: Options,
) -> Result<Exit, Failure> {
    match (options.wait, options.watch) {
        (Some(Wait::Healthy), watch) => wait(context, operator, watch).await,
        (None, true) => watch(context, operator).await,
        (None, false) => {
            let health = look(operator).await?;
            context.out.show(&health)?;
            Ok(health.exit())
        }
    }
}

/// With `watch`, every change is data; otherwise only how it ended is.
async fn wait(context: &Context, operator: &mut Operator, watch: bool) -> Result<Exit, Failure> {
    operator.watching();
    let mut last = None;
    let limit = context.timeout_or(WAIT);
    let over = until_over(context.out, "health", limit, async || {
        let health = look(operator).await?;
        if watch && last.as_ref() != Some(&health) {
            context.out.show(&health)?;
        }
        let summary = health.summary();
        let healthy = health.healthy;
        last = Some(health);
        match healthy {
            true => Ok(Step::Over(())),
            false => Ok(Step::Going(summary)),
        }
    });
    let over = over.await;
    let Some(last) = last else {
        return over.map(|()| Exit::Done);
    };
    if !watch {
        context.out.show(&last)?;
    }
    match over {
        Ok(()) => Ok(Exit::Done),
        Err(failure) if failure.exit() == Exit::Unreachable => {
            context.out.fail(&failure);
            Ok(Exit::CheckFailed)
        }
        Err(failure) => Err(failure),
    }
}

/// Until it is interrupted, or nobody reads any more.
async fn watch(context: &Context, operator: &mut Operator) -> Result<Exit, Failure> {
    operator.watching();
    let mut signals = Signals::new();
    tokio::select! {
        failure = watch_on(context, operator) => Err(failure),
        exit = signals.next() => Ok(exit),
        () = reader_gone() => Ok(Exit::Done),
    }
}

/// Why it ends. Brokers that are away for a moment are not a reason.
async fn watch_on(context: &Context, operator: &mut Operator) -> Failure {
    let (mut last, mut silent) = (None, false);
    loop {
        match look(operator).await {
            Ok(health) => {
                silent = false;
                if last.as_ref() != Some(&health)
                    && let Err(failure) = context.out.show(&health)
                {
                    return failure;
                }
                last = Some(health);
            }
            // The first time nobody has ever answered, which waiting may not mend.
            Err(failure) if last.is_none() || failure.exit() != Exit::Unreachable => {
                return failure;
            }
            Err(failure) => {
                if !silent {
                    context.out.fail(&failure);
                }
                silent = true;
            }
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Health {
        Health {
            healthy: true,
            metadata_leaderless: false,
            dead_brokers: vec![],
            slow_disks: vec![],
            leaderless: vec![],
            under_replicated: vec![],
            moving: 1,
        }
    }

    #[test]
    fn what_is_well_is_said_too() {
        let table = "\
CHECK     STATE  DETAIL
brokers   ok     -
disks     ok     -
metadata  ok     -
leaders   ok     -
replicas  ok     -
moves     ok     1 move under way
";
        assert_eq!(well().table(), table);
        assert_eq!(well().exit(), Exit::Done);
        assert_eq!(well().summary(), "healthy");
    }

    #[test]
    fn what_ails_is_named_but_not_without_end() {
        let named = |partition| Named {
            topic: "t".to_owned(),
            partition,
        };
        let ill = Health {
            healthy: false,
            dead_brokers: vec![2],
            slow_disks: vec![3],
            under_replicated: (0..7).map(named).collect(),
            ..well()
        };
        let table = ill.table();
        assert!(table.contains("brokers   bad    dead: 2\n"), "{table}");
        assert!(
            table.contains("disks     bad    slow or full: 3\n"),
            "{table}"
        );
        assert!(
            table.contains("bad    t/0, t/1, t/2, t/3, t/4 and 2 more\n"),
            "{table}"
        );
        assert_eq!(ill.exit(), Exit::CheckFailed);
        let expected = "unhealthy: dead brokers 2, slow or full disks on brokers 3, \
                        7 partitions under-replicated";
        assert_eq!(ill.summary(), expected);
    }
}
