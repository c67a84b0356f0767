//! Many partitions at rest: how long they take to make, what they cost, and how soon all have leaders again after a
//! broker, or every broker, is killed. Leaders are what the cluster's own Metadata answers say.

use crate::Brokers;
use crate::broker::{Placed, Target};
use crate::failover::when_whole;
use crate::processes::{Processes, Signal};
use crate::report::{head, row};
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    brokers: Brokers,
    /// How many partitions one topic gets; repeat for each
    #[arg(long, default_values_t = [1000, 4000])]
    partitions: Vec<i32>,
    /// Seconds of rest whose CPU time is counted, behind as many of settling
    #[arg(long, default_value_t = 20)]
    idle: u64,
    /// Kill nobody: only make them and let them rest
    #[arg(long)]
    calm: bool,
}

const PATIENCE: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(crate) async fn run(options: &Options) -> Result<()> {
    let mut targets = options.brokers.targets.clone();
    head(&[
        "partitions",
        "cluster",
        "made s",
        "led s",
        "idle, % of a core per broker",
        "anonymous KB per replica",
        "led after one is killed s",
        "led after all are killed s",
    ]);
    for partitions in &options.partitions {
        for target in &mut targets {
            let cells = one(options, *partitions, target).await?;
            let mut all = vec![partitions.to_string(), target.name.clone()];
            all.extend(cells);
            row(&all);
        }
    }
    Ok(())
}

async fn one(options: &Options, partitions: i32, target: &mut Target) -> Result<Vec<String>> {
    let topic = format!("scale-{}-{partitions}", std::process::id());
    let before = target.anonymous_mb()?;
    let asker = target.asker()?;
    let begun = Instant::now();
    target
        .make_topic(&topic, partitions, options.brokers.replicas)
        .await?;
    let made = begun.elapsed();
    let led = begun.elapsed() + until(target, &topic, |p| all_led(p, None))?;
    let rest = Duration::from_secs(options.idle);
    tokio::time::sleep(rest).await;
    let cpu = target.cpu()?;
    tokio::time::sleep(rest).await;
    let brokers = target.pids.len() as f64;
    let idle = (target.cpu()? - cpu).as_secs_f64() / rest.as_secs_f64() / brokers * 100.0;
    let replicas = f64::from(partitions * options.brokers.replicas);
    let memory = (target.anonymous_mb()? - before) * 1000.0 / replicas;
    let mut cells = vec![
        format!("{:.2}", made.as_secs_f64()),
        format!("{:.2}", led.as_secs_f64()),
        format!("{idle:.1}"),
        format!("{memory:.0}"),
    ];
    drop(asker);
    if options.calm {
        cells.extend(["-".to_owned(), "-".to_owned()]);
    } else {
        let mut processes = Processes::of(target)?;
        let one = kill_one(&mut processes, target, &topic)?;
        let all = kill_all(&mut processes, target, &topic)?;
        cells.extend([one, all].map(|t| format!("{:.2}", t.as_secs_f64())));
        when_whole(target, &topic)?;
    }
    target.delete_topics(&[&topic]).await?;
    Ok(cells)
}

/// The last broker, as clients begin with the first.
fn kill_one(processes: &mut Processes, target: &mut Target, topic: &str) -> Result<Duration> {
    let nth = target.pids.len() - 1;
    let gone = target.address.split(',').nth(nth).map(str::to_owned);
    processes.signal(target, nth, Signal::Kill)?;
    let took = until(target, topic, |p| all_led(p, gone.as_deref()))?;
    processes.gone(target, nth)?;
    processes.revive(target, nth)?;
    when_whole(target, topic)?;
    Ok(took)
}

fn kill_all(processes: &mut Processes, target: &mut Target, topic: &str) -> Result<Duration> {
    for nth in 0..target.pids.len() {
        processes.signal(target, nth, Signal::Kill)?;
    }
    for nth in 0..target.pids.len() {
        processes.gone(target, nth)?;
    }
    let begun = Instant::now();
    for nth in 0..target.pids.len() {
        processes.revive(target, nth)?;
    }
    until(target, topic, |p| all_led(p, None))?;
    Ok(begun.elapsed())
}

fn all_led(placed: &Placed, gone: Option<&str>) -> bool {
    placed
        .leaders
        .iter()
        .all(|leader| leader.is_some() && leader.as_deref() != gone)
}

fn until(target: &Target, topic: &str, done: impl Fn(&Placed) -> bool) -> Result<Duration> {
    let (asker, begun) = (target.asker()?, Instant::now());
    loop {
        let placed = target.placed(&asker, topic);
        if placed.as_ref().is_ok_and(&done) {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > PATIENCE {
            let led = placed.map(|p| p.leaders.iter().flatten().count());
            bail!("{}: leaders after {PATIENCE:?}: {led:?}", target.name);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
