//! What producers notice of a broker that is killed, paused, or stopped in good order: the gap in each partition's
//! acknowledgements. The broker leads about a third of the partitions; clusters take turns.

use crate::Brokers;
use crate::broker::{Placed, Target};
use crate::load::{Fate, Load, Plan, gaps, percentile};
use crate::processes::{Processes, Signal};
use crate::report::{Rounds, head, row};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    brokers: Brokers,
    /// What happens to a broker; repeat for each
    #[arg(long = "fault", value_enum, default_values_t = [Fault::Kill, Fault::Stop, Fault::Pause])]
    faults: Vec<Fault>,
    #[arg(long, default_value_t = 300)]
    partitions: i32,
    /// Records per second for each partition
    #[arg(long, default_value_t = 10)]
    rate: u32,
    /// Rounds of each fault; the median is reported
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of load before the fault, and behind it
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Milliseconds that the client waits for an answer (socket.timeout.ms): a paused broker is given up then
    #[arg(long, default_value_t = 1000)]
    socket_timeout: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// SIGKILL
    Kill,
    /// SIGTERM: a stop in good order
    Stop,
    /// SIGSTOP, and SIGCONT when half of the time behind the fault has passed
    Pause,
}

/// What one cluster showed under one fault.
#[derive(Default)]
struct Shown {
    median: Rounds,
    p99: Rounds,
    greatest: Rounds,
    p99_of_all: Rounds,
    failed: usize,
    sent: usize,
}

/// How long a cluster may take until it is whole.
const WHOLE_DEADLINE: Duration = Duration::from_secs(120);

pub(crate) async fn run(options: &Options) -> Result<()> {
    let mut targets = options.brokers.targets.clone();
    let mut processes: Vec<Processes> = targets.iter().map(Processes::of).collect::<Result<_>>()?;
    head(&[
        "fault",
        "cluster",
        "gap p50 s",
        "gap p99 s",
        "longest s",
        "p99 of all partitions s",
        "records",
        "failed",
    ]);
    for fault in &options.faults {
        let mut shown: Vec<Shown> = targets.iter().map(|_| Shown::default()).collect();
        for round in 0..options.rounds {
            for (n, target) in targets.iter_mut().enumerate() {
                let once = Once {
                    options,
                    fault: *fault,
                    topic: format!("failover-{}-{fault:?}-{round}", std::process::id()),
                    nth: round % target.pids.len(),
                };
                once.run(target, &mut processes[n], &mut shown[n])
                    .await
                    .with_context(|| format!("{} under {fault:?}", target.name))?;
            }
        }
        for (target, shown) in targets.iter().zip(&shown) {
            print(*fault, target, shown);
        }
    }
    Ok(())
}

/// One fault of one broker of one cluster.
struct Once<'a> {
    options: &'a Options,
    fault: Fault,
    topic: String,
    nth: usize,
}

impl Once<'_> {
    async fn run(
        &self,
        target: &mut Target,
        processes: &mut Processes,
        shown: &mut Shown,
    ) -> Result<()> {
        let options = self.options;
        target
            .create_topic(&self.topic, options.partitions, options.brokers.replicas)
            .await?;
        let plan = Plan {
            topic: self.topic.clone(),
            partitions: options.partitions,
            rate: f64::from(options.rate) * f64::from(options.partitions),
            size: 100,
            socket_timeout: Duration::from_millis(options.socket_timeout),
        };
        let load = Load::begin(target, plan)?;
        let half = Duration::from_secs(options.seconds) / 2;
        tokio::time::sleep(half * 2).await;
        let led = self.led(&target.placed(&target.asker()?, &self.topic)?, target);
        let at = load.begun.elapsed();
        tokio::task::block_in_place(|| self.hurt(target, processes, half))?;
        let fates = tokio::task::block_in_place(|| load.end())?;
        shown.take(&fates, &led, at);
        if self.fault != Fault::Pause {
            processes.revive(target, self.nth)?;
        }
        when_whole(target, &self.topic)?;
        target.delete_topics(&[&self.topic]).await
    }

    fn hurt(&self, target: &Target, processes: &mut Processes, half: Duration) -> Result<()> {
        match self.fault {
            Fault::Kill | Fault::Stop => {
                let kills = self.fault == Fault::Kill;
                let signal = if kills {
                    Signal::Kill
                } else {
                    Signal::Terminate
                };
                processes.signal(target, self.nth, signal)?;
                std::thread::sleep(half * 2);
                processes.gone(target, self.nth)
            }
            Fault::Pause => {
                processes.signal(target, self.nth, Signal::Stop)?;
                std::thread::sleep(half);
                processes.signal(target, self.nth, Signal::Continue)?;
                std::thread::sleep(half);
                Ok(())
            }
        }
    }

    /// Which partitions the broker leads.
    fn led(&self, placed: &Placed, target: &Target) -> Vec<bool> {
        let leader =
            |address: &Option<String>| address.as_deref().and_then(|a| target.process_at(a));
        let leads = placed.leaders.iter().map(|a| leader(a) == Some(self.nth));
        leads.collect()
    }
}

impl Shown {
    fn take(&mut self, fates: &[Fate], led: &[bool], at: Duration) {
        let all = gaps(fates, led.len() as i32, at);
        let hurt = all.iter().zip(led).filter(|(_, led)| **led);
        let hurt: Vec<Duration> = hurt.map(|(gap, _)| *gap).collect();
        self.median.push(percentile(&hurt, 50.0).as_secs_f64());
        self.p99.push(percentile(&hurt, 99.0).as_secs_f64());
        self.greatest.push(percentile(&hurt, 100.0).as_secs_f64());
        self.p99_of_all.push(percentile(&all, 99.0).as_secs_f64());
        self.sent += fates.len();
        self.failed += fates.iter().filter(|f| !f.acknowledged).count();
    }
}

/// Waits until every partition has a leader and every replica is in sync.
pub(crate) fn when_whole(target: &Target, topic: &str) -> Result<Duration> {
    let (asker, begun) = (target.asker()?, Instant::now());
    loop {
        let placed = target.placed(&asker, topic);
        if placed.is_ok_and(|p| p.in_sync && p.leaders.iter().all(Option::is_some)) {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > WHOLE_DEADLINE {
            bail!("{}: replicas of {topic} stay out of sync", target.name);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn print(fault: Fault, target: &Target, shown: &Shown) {
    row(&[
        format!("{fault:?}").to_lowercase(),
        target.name.clone(),
        shown.median.shown(2),
        shown.p99.shown(2),
        shown.greatest.shown(2),
        shown.p99_of_all.shown(2),
        shown.sent.to_string(),
        shown.failed.to_string(),
    ]);
}
