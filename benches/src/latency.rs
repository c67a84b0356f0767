//! Single records at a fixed rate, from the *intended* send to the consumer that reads them.
//!
//! The schedule does not wait for answers (open loop): a broker that stalls is charged for every record that should have
//! been sent meanwhile, which a closed loop would forgive ("coordinated omission"). Each record carries its intended time.

use crate::Brokers;
use crate::broker::Target;
use crate::report::{Rounds, head, row};
use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    brokers: Brokers,
    /// Records per second
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Seconds of each round, behind a warm-up of a fifth as long
    #[arg(long, default_value_t = 15)]
    seconds: u32,
    /// Rounds; the median is reported
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 100)]
    size: usize,
}

/// One round.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub rate: u32,
    pub seconds: u32,
    pub size: usize,
}

const PERCENTILES: [f64; 4] = [50.0, 99.0, 99.9, 100.0];
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(options: &Options) -> Result<()> {
    let targets = &options.brokers.targets;
    let mut shown = vec![vec![Rounds::default(); PERCENTILES.len()]; targets.len()];
    for round in 0..options.rounds {
        for (target, shown) in targets.iter().zip(&mut shown) {
            let topic = format!("latency-{}-{round}", std::process::id());
            target
                .create_topic(&topic, 1, options.brokers.replicas)
                .await?;
            let plan = Plan {
                rate: options.rate,
                seconds: options.seconds,
                size: options.size,
            };
            let histogram = tokio::task::block_in_place(|| one(plan, target, &topic))?;
            for (percentile, rounds) in PERCENTILES.iter().zip(shown) {
                rounds.push(histogram.value_at_percentile(*percentile) as f64 / 1e3);
            }
            target.delete_topics(&[&topic]).await?;
        }
    }
    head(&["broker", "p50 ms", "p99 ms", "p99.9 ms", "most ms"]);
    for (target, shown) in targets.iter().zip(&shown) {
        let cells = shown.iter().map(|rounds| rounds.shown(2));
        row(&std::iter::once(target.name.clone())
            .chain(cells)
            .collect::<Vec<_>>());
    }
    Ok(())
}

/// One round; microseconds.
pub(crate) fn one(options: Plan, target: &Target, topic: &str) -> Result<Histogram<u64>> {
    let warm_up = options.rate * options.seconds / 5;
    let total = warm_up + options.rate * options.seconds;
    let consumer = reader(target, topic)?;
    let producer = writer(target)?;
    let origin = Instant::now();
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || read(&consumer, origin, warm_up, total));
        write(options, &producer, topic, origin, total)?;
        producer.flush(PATIENCE).context("unacknowledged records")?;
        reading
            .join()
            .unwrap_or_else(|_| bail!("the reader panicked"))
    })
}

fn writer(target: &Target) -> Result<ThreadedProducer<rdkafka::producer::DefaultProducerContext>> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &target.address)
        .set("linger.ms", "0")
        .set("acks", "all");
    config.create().context("a producer")
}

fn reader(target: &Target, topic: &str) -> Result<BaseConsumer> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &target.address)
        .set("group.id", "latency")
        .set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().context("a consumer")?;
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, 0, Offset::Beginning)?;
    consumer.assign(&from)?;
    Ok(consumer)
}

fn write(
    options: Plan,
    producer: &ThreadedProducer<rdkafka::producer::DefaultProducerContext>,
    topic: &str,
    origin: Instant,
    total: u32,
) -> Result<()> {
    // A second for the consumer to be there; the schedule begins behind it.
    let begin = Duration::from_secs(1);
    let mut value = vec![b'x'; options.size.max(8)];
    for n in 0..total {
        let intended = begin + Duration::from_secs_f64(f64::from(n) / f64::from(options.rate));
        if let Some(wait) = intended.checked_sub(origin.elapsed()) {
            std::thread::sleep(wait);
        }
        value[..8].copy_from_slice(&(intended.as_nanos() as u64).to_be_bytes());
        let record = BaseRecord::<(), _>::to(topic).partition(0).payload(&value);
        producer
            .send(record)
            .map_err(|(error, _)| error)
            .context("the producer's queue")?;
    }
    Ok(())
}

fn read(
    consumer: &BaseConsumer,
    origin: Instant,
    warm_up: u32,
    total: u32,
) -> Result<Histogram<u64>> {
    let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    let mut seen = 0;
    while seen < total {
        let message = consumer
            .poll(PATIENCE)
            .with_context(|| format!("no record {seen} of {total}"))??;
        let now = origin.elapsed().as_nanos() as u64;
        let intended = message
            .payload()
            .and_then(|value| value.first_chunk())
            .copied()
            .map(u64::from_be_bytes);
        let intended = intended.context("a record that is not ours")?;
        if seen >= warm_up {
            histogram.saturating_record(now.saturating_sub(intended) / 1000);
        }
        seen += 1;
    }
    Ok(histogram)
}
