//! Produce and consume at full speed, through librdkafka's own performance program, brokers taking turns.
//!
//! A run lasts at least `--seconds`, sized by the warm-up before it; the warm-up is not reported. CPU time is the
//! broker's own, per GB (10^9 bytes) of record values. Not here: latency, which saturation would distort.

use crate::broker::Target;
use crate::page_cache::PageCache;
use crate::report::{Rounds, head, ratio, row};
use crate::{Brokers, Client};
use anyhow::{Context, Result, bail};
use std::process::Command;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    brokers: Brokers,
    #[command(flatten)]
    client: Client,
    /// Rounds of each workload; the median is reported
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How long a run lasts, at the warm-up's speed
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Keep the page cache full with a sparse file of this many GB (2^30), read again before each run
    #[arg(long, value_name = "GB", default_value_t = 0)]
    page_cache: u64,
    /// Also measure librdkafka's mock broker: no disk, in the client's process, the client's ceiling
    #[arg(long)]
    mock: bool,
    /// Only the workloads whose names contain this
    #[arg(long, default_value = "")]
    only: String,
}

struct Workload {
    name: &'static str,
    size: u32,
    partitions: i32,
    consumes: bool,
}

const WORKLOADS: [Workload; 5] = [
    Workload {
        name: "produce 1 KiB, 1 partition",
        size: 1024,
        partitions: 1,
        consumes: false,
    },
    Workload {
        name: "produce 1 KiB, 64 partitions",
        size: 1024,
        partitions: 64,
        consumes: false,
    },
    Workload {
        name: "produce 100 B, 1 partition",
        size: 100,
        partitions: 1,
        consumes: false,
    },
    Workload {
        name: "produce 100 B, 64 partitions",
        size: 100,
        partitions: 64,
        consumes: false,
    },
    Workload {
        name: "consume 1 KiB, 1 partition",
        size: 1024,
        partitions: 1,
        consumes: true,
    },
];

/// What one broker showed on one workload.
#[derive(Default)]
struct Shown {
    speed: Rounds,
    cpu: Rounds,
    memory: Rounds,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    head(&[
        "workload",
        "broker",
        "MB/s",
        "ratio",
        "broker CPU s/GB",
        "ratio",
        "anonymous MB, most",
    ]);
    let cache = PageCache::new(options.page_cache)?;
    for workload in WORKLOADS.iter().filter(|w| w.name.contains(&options.only)) {
        measure(options, cache.as_ref(), workload)
            .await
            .with_context(|| workload.name.to_owned())?;
    }
    Ok(())
}

async fn measure(options: &Options, cache: Option<&PageCache>, workload: &Workload) -> Result<()> {
    let targets = &options.brokers.targets;
    let mut shown: Vec<Shown> = targets.iter().map(|_| Shown::default()).collect();
    let mut ceiling = Rounds::default();
    let mut counts = vec![0; targets.len()];
    for round in 0..=options.rounds {
        for (n, target) in targets.iter().enumerate() {
            let topic = format!("bench-{}-{round}", std::process::id());
            target
                .create_topic(&topic, workload.partitions, options.brokers.replicas)
                .await?;
            cache.map_or(Ok(()), PageCache::fill)?;
            let warm_up = round == 0;
            let count = if warm_up {
                (1 << 30) / u64::from(workload.size)
            } else {
                counts[n]
            };
            let speed = one(
                options,
                workload,
                target,
                &topic,
                count,
                (!warm_up).then_some(&mut shown[n]),
            )?;
            if warm_up {
                counts[n] = records(speed, workload, options.seconds);
            }
            target.delete_topics(&[&topic]).await?;
        }
        if options.mock && round > 0 && !workload.consumes {
            let count = counts.iter().copied().max().unwrap_or_default();
            ceiling.push(client(options, &mock(workload, count))?);
        }
    }
    print(workload, targets, &shown, &ceiling);
    Ok(())
}

/// What a consumer reads at most: it should come from memory on every broker, as it does when consumers keep up.
const CONSUMED_BYTES: u64 = 4_000_000_000;

/// How many records a run needs to last that long. A warm-up tells the speed only roughly: 20 % more.
fn records(mb_per_second: f64, workload: &Workload, seconds: f64) -> u64 {
    let size = u64::from(workload.size);
    let wanted = (mb_per_second * 1.2e6 * seconds) as u64 / size;
    if workload.consumes {
        wanted.min(CONSUMED_BYTES / size)
    } else {
        wanted
    }
}

/// One run on one broker; returns MB/s.
fn one(
    options: &Options,
    workload: &Workload,
    target: &Target,
    topic: &str,
    count: u64,
    shown: Option<&mut Shown>,
) -> Result<f64> {
    if workload.consumes {
        client(options, &produce(workload, target, topic, count))?;
    }
    let before = target.cpu()?;
    let arguments = if workload.consumes {
        consume(target, topic, count)
    } else {
        produce(workload, target, topic, count)
    };
    let speed = client(options, &arguments)?;
    if let Some(shown) = shown {
        let gigabytes = count as f64 * f64::from(workload.size) / 1e9;
        shown.speed.push(speed);
        shown
            .cpu
            .push((target.cpu()? - before).as_secs_f64() / gigabytes);
        shown.memory.push(target.anonymous_mb()?);
    }
    Ok(speed)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn produce(workload: &Workload, target: &Target, topic: &str, count: u64) -> Vec<String> {
    let partition = if workload.partitions == 1 { "-p 0" } else { "" };
    words(&format!(
        "-P -t {topic} {partition} -b {} -s {} -c {count} -a -1 -X linger.ms=5 -q",
        target.address, workload.size
    ))
}

fn mock(workload: &Workload, count: u64) -> Vec<String> {
    let partition = if workload.partitions == 1 { "-p 0" } else { "" };
    words(&format!(
        "-P -t mock {partition} -s {} -c {count} -a -1 -X linger.ms=5 -X test.mock.num.brokers=1 -q",
        workload.size
    ))
}

fn consume(target: &Target, topic: &str, count: u64) -> Vec<String> {
    words(&format!(
        "-C -t {topic} -p 0 -b {} -o beginning -c {count} -q",
        target.address
    ))
}

/// Runs the C client and returns the MB/s of its last summary.
fn client(options: &Options, arguments: &[String]) -> Result<f64> {
    let program = &options.client.client;
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| program.display().to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    match speed(&text) {
        Some(speed) => Ok(speed),
        None => bail!(
            "{} {} reported no speed:\n{text}",
            program.display(),
            arguments.join(" ")
        ),
    }
}

fn speed(text: &str) -> Option<f64> {
    let summary = text
        .lines()
        .rfind(|l| l.contains("messages") && l.contains(" MB/s"))?;
    let failed = summary
        .split_once(" failed)")
        .and_then(|(head, _)| head.rsplit(' ').next());
    if failed.is_some_and(|count| count != "0") {
        return None;
    }
    let number = summary[..summary.find(" MB/s")?]
        .rsplit([' ', '('])
        .next()?;
    number.parse().ok()
}

fn print(workload: &Workload, targets: &[Target], shown: &[Shown], ceiling: &Rounds) {
    let Some(reference) = shown.last() else {
        return;
    };
    for (target, this) in targets.iter().zip(shown) {
        row(&[
            workload.name.into(),
            target.name.clone(),
            this.speed.shown(0),
            ratio(this.speed.median(), reference.speed.median()),
            this.cpu.shown(2),
            ratio(this.cpu.median(), reference.cpu.median()),
            format!("{:.0}", this.memory.greatest()),
        ]);
    }
    if ceiling.median().is_finite() {
        let dash = || "-".to_owned();
        let against = ratio(ceiling.median(), reference.speed.median());
        row(&[
            workload.name.into(),
            "(mock)".into(),
            ceiling.shown(0),
            against,
            dash(),
            dash(),
            dash(),
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_s_summaries_are_read() {
        let produced = "% 2000000 messages produced (2048000000 bytes), 2000000 delivered (offset 9, 0 failed) in 6336ms: 315652 msgs/s and 323.23 MB/s, 783 produce failures, 0 in queue";
        assert_eq!(speed(produced), Some(323.23));
        assert_eq!(
            speed(
                "% 2000000 messages (2048000000 bytes) consumed in 2289ms: 873698 msgs/s (894.67 MB/s)"
            ),
            Some(894.67)
        );
        assert_eq!(speed("% nothing"), None);
    }

    #[test]
    fn a_run_that_lost_records_is_no_result() {
        let lossy = "% 20 messages produced (20 bytes), 19 delivered (offset 9, 1 failed) in 6336ms: 315652 msgs/s and 323.23 MB/s";
        assert_eq!(speed(lossy), None);
    }

    #[test]
    fn runs_last_as_long_as_asked() {
        let produce = Workload {
            name: "produce",
            size: 1000,
            partitions: 1,
            consumes: false,
        };
        assert_eq!(records(100.0, &produce, 10.0), 1_200_000);
        let consume = Workload {
            consumes: true,
            ..produce
        };
        assert_eq!(records(1e6, &consume, 10.0), 4_000_000);
    }
}
