//! A replica that lost its disk: how fast it is filled again, and what clients notice meanwhile.
//!
//! The broker is killed, its data directory emptied, and it is started again under live traffic to another topic.

use crate::broker::Target;
use crate::failover::when_whole;
use crate::load::{Fate, Load, Plan, percentile};
use crate::processes::{Processes, Signal};
use crate::{Brokers, Client};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    brokers: Brokers,
    #[command(flatten)]
    client: Client,
    /// Data directory of the last broker: it is EMPTIED
    #[arg(long, value_name = "DIR")]
    empties: PathBuf,
    /// GB (10^9 bytes) of values that lie there
    #[arg(long, default_value_t = 5)]
    gigabytes: u64,
    #[arg(long, default_value_t = 8)]
    partitions: i32,
    /// Records per second of the live traffic
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Seconds of live traffic before
    #[arg(long, default_value_t = 15)]
    seconds: u64,
}

/// Takeovers and the start are not what is measured: the p99 is of the time between this and the end.
const SETTLED: Duration = Duration::from_secs(3);

pub(crate) async fn run(options: &Options) -> Result<()> {
    let [target] = options.brokers.targets.as_slice() else {
        bail!("one cluster at a time: the directory is one broker's")
    };
    let mut target = target.clone();
    let mut processes = Processes::of(&target)?;
    let nth = target.pids.len() - 1;
    let (bulk, live) = ("catch-up-bulk", "catch-up-live");
    let replicas = options.brokers.replicas;
    target
        .create_topic(bulk, options.partitions, replicas)
        .await?;
    target.create_topic(live, 3, replicas).await?;
    fill(options, &target, bulk)?;
    when_whole(&target, bulk)?;
    let plan = Plan {
        topic: live.into(),
        partitions: 3,
        rate: f64::from(options.rate),
        size: 100,
        socket_timeout: Duration::from_secs(5),
    };
    let load = Load::begin(&target, plan)?;
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    let killed = load.begun.elapsed();
    processes.signal(&target, nth, Signal::Kill)?;
    processes.gone(&target, nth)?;
    empty(&options.empties)?;
    let back = Instant::now();
    processes.revive(&mut target, nth)?;
    let begun = load.begun.elapsed();
    when_there(options, back)?;
    when_whole(&target, bulk)?;
    let took = back.elapsed();
    let done = load.begun.elapsed();
    let fates = tokio::task::block_in_place(|| load.end())?;
    let speed = options.gigabytes as f64 * 1e3 / took.as_secs_f64();
    println!(
        "{} GB in {:.1} s: {speed:.0} MB/s",
        options.gigabytes,
        took.as_secs_f64()
    );
    say("before", &fates, SETTLED, killed);
    say("while it is filled", &fates, begun + SETTLED, done);
    Ok(())
}

fn fill(options: &Options, target: &Target, topic: &str) -> Result<()> {
    let records = options.gigabytes * 1_000_000_000 / 1024;
    let arguments = format!(
        "-P -t {topic} -b {} -s 1024 -c {records} -a -1 -X linger.ms=5 -q",
        target.address
    );
    let output = Command::new(&options.client.client)
        .args(arguments.split_whitespace())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !text.contains(" 0 failed)") {
        bail!("the client lost records:\\n{text}");
    }
    Ok(())
}

fn empty(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            std::fs::remove_dir_all(&path)?;
        } else {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Waits until the files are there: that a replica counts as in sync may be old news.
fn when_there(options: &Options, begun: Instant) -> Result<()> {
    let wanted = options.gigabytes * 1_000_000_000;
    while size_of(&options.empties) < wanted {
        if begun.elapsed() > Duration::from_secs(600) {
            bail!(
                "{} bytes of {wanted} after 600 s",
                size_of(&options.empties)
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Bytes of the segments below; files come and go meanwhile.
fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let size = |path: PathBuf| match std::fs::metadata(&path) {
        Ok(meta) if meta.is_dir() => size_of(&path),
        Ok(meta) if path.extension().is_some_and(|e| e == "log") => meta.len(),
        _ => 0,
    };
    entries.flatten().map(|entry| size(entry.path())).sum()
}

fn say(when: &str, fates: &[Fate], from: Duration, to: Duration) {
    let then = fates
        .iter()
        .filter(|f| f.intended >= from && f.intended < to);
    let took: Vec<Duration> = then.map(|f| f.told.saturating_sub(f.intended)).collect();
    let ms = |percent| percentile(&took, percent).as_secs_f64() * 1e3;
    println!(
        "live traffic {when}: p50 {:.2} ms, p99 {:.2} ms, most {:.2} ms, {} records",
        ms(50.0),
        ms(99.0),
        ms(100.0),
        took.len()
    );
}
