//! `logctl bench produce`.
//!
//! The sender follows a schedule; one collector per partition takes the time of every acknowledgement,
//! since within a partition they come in the order of the records.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use logd_client::{Admin, Client, Delivery, ErrorCode, NewTopic, Producer, Record, TopicInfo};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::payload;
use super::report::{Latency, Report, histogram, rate};
use crate::args::{self, Codec};
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::lookup;
use crate::signals::Signals;

/// What the library's producer fills before it sends, so that batches here are like everybody's.
const BATCH_BYTES: usize = 128 << 10;

/// Records of a partition whose acknowledgement is still to be timed.
const DELIVERIES_MAX: usize = 64 << 10;

/// The largest record the library takes by default.
const SIZE_MAX: u64 = (1 << 20) - 40;

/// A bar that is told of every record would cost more than the record.
const PROGRESS_RECORDS: u64 = 256;

#[derive(Debug, Args)]
pub struct Options {
    /// Where records go
    topic: String,
    /// How many records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    records: Option<u64>,
    /// How long to send; both: whichever ends first [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    duration: Option<Duration>,
    /// Bytes of a record's value, random letters that compress to about half
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=SIZE_MAX))]
    size: u64,
    /// Records per second, or max
    #[arg(long, value_name = "R|max", default_value = "max", value_parser = pace)]
    rate: Pace,
    /// How long a batch that is not full waits for more records, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u64).range(..=60_000))]
    linger_ms: u64,
    /// Create the topic with so many partitions, if it is not there
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Option<i32>,
    /// How batches are compressed
    #[arg(short = 'z', long, value_enum, value_name = "CODEC", default_value_t)]
    compression: Codec,
}

/// When records are due.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
    Max,
    PerSecond(f64),
}

fn pace(text: &str) -> Result<Pace, String> {
    if text == "max" {
        return Ok(Pace::Max);
    }
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.001 => Ok(Pace::PerSecond(rate)),
        _ => Err("expected records per second, or max".to_owned()),
    }
}

impl Pace {
    /// When the `n`-th record, counted from 0, is meant to be sent; now, if there is no schedule.
    fn due(self, begin: Instant, n: u64) -> Option<Instant> {
        match self {
            Pace::Max => None,
            Pace::PerSecond(rate) => {
                let after = Duration::try_from_secs_f64(n as f64 / rate).ok()?;
                begin.checked_add(after)
            }
        }
    }
}

pub(super) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let client = context.connect().await?;
    let topic = prepare(&client.admin(), &options).await?;
    let loopback = super::is_loopback(&client).await?;
    let producer = producer(context, &client, &options);
    warm_up(&producer, &topic, &options).await?;
    let bar = super::progress(context.out, options.records);
    let (collectors, outlets) = collectors(&topic, &bar)?;
    let begin = Instant::now();
    let mut sender = Sender {
        producer: &producer,
        topic: &topic,
        options: &options,
        outlets,
        sent: 0,
    };
    let mut signals = Signals::new();
    let ended = tokio::select! {
        sent = sender.all(begin) => sent.map(|()| Exit::Done),
        exit = signals.next() => Ok(exit),
    };
    drop(sender);
    tokio::select! {
        _ = producer.close() => {}
        exit = signals.next() => return Ok(exit),
    }
    let measured = gather(collectors, begin).await?;
    bar.finish_and_clear();
    let report = report(&options, &topic, &measured, loopback);
    context.out.show(&report)?;
    let exit = ended?;
    match &measured.reason {
        Some(reason) => Err(Failure::new(
            Exit::Failed,
            format!("{} records were not stored: {reason}", measured.failed),
        )),
        None => Ok(exit),
    }
}

/// The topic, made if that was asked for.
async fn prepare(admin: &Admin, options: &Options) -> Result<TopicInfo, Failure> {
    if let Some(partitions) = options.partitions {
        let topic = NewTopic::new(&options.topic).partitions(partitions);
        match admin.create_topic(&topic).await {
            Err(error) if error.kafka_code() == Some(ErrorCode::TopicAlreadyExists) => {}
            result => drop(result?),
        }
    }
    let found = lookup::topic(admin, &options.topic).await;
    found.map_err(|failure| match failure.exit() {
        Exit::NotFound => failure.hint("--partitions N creates it"),
        _ => failure,
    })
}

fn producer(context: &Context, client: &Client, options: &Options) -> Producer {
    client
        .producer()
        .batch_bytes(BATCH_BYTES)
        .linger(Duration::from_millis(options.linger_ms))
        .compression(options.compression.into())
        .retry(context.store_policy())
        .build()
}

/// One record per partition, which connects to its leader; not counted.
async fn warm_up(producer: &Producer, topic: &TopicInfo, options: &Options) -> Result<(), Failure> {
    for place in &topic.partitions {
        let record = Record::value(payload::one(0, options.size)).partition(place.index);
        let delivery = producer.send(&topic.name, record).await?;
        let stored = delivery.await;
        stored.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    }
    Ok(())
}

struct Sender<'a> {
    producer: &'a Producer,
    topic: &'a TopicInfo,
    options: &'a Options,
    outlets: Vec<mpsc::Sender<(Instant, Delivery)>>,
    sent: u64,
}

impl Sender<'_> {
    async fn all(&mut self, begin: Instant) -> Result<(), Failure> {
        let payloads = payload::pool(self.options.size);
        let duration = match (self.options.duration, self.options.records) {
            (Some(duration), _) => duration,
            (None, None) => Duration::from_secs(10),
            (None, Some(_)) => Duration::MAX,
        };
        let records = self.options.records.unwrap_or(u64::MAX);
        for payload in payloads.iter().cycle() {
            let intended = self.options.rate.due(begin, self.sent);
            if let Some(due) = intended {
                // The schedule does not move: what is late is sent at once.
                tokio::time::sleep_until(due).await;
            }
            let intended = intended.unwrap_or_else(Instant::now);
            if self.sent >= records || intended.duration_since(begin) >= duration {
                return Ok(());
            }
            self.one(payload.clone(), intended).await?;
        }
        Ok(())
    }

    async fn one(&mut self, payload: Bytes, intended: Instant) -> Result<(), Failure> {
        // As keyless records go: a batch's worth to one partition, then on to the next.
        let per_batch = (BATCH_BYTES / payload.len().max(1)).max(1) as u64;
        let turn = (self.sent / per_batch) as usize % self.outlets.len().max(1);
        let (Some(place), Some(outlet)) = (self.topic.partitions.get(turn), self.outlets.get(turn))
        else {
            return Err(Failure::not_found("the topic has no partitions"));
        };
        let record = Record::value(payload).partition(place.index);
        let delivery = self.producer.send(&self.topic.name, record).await?;
        self.sent += 1;
        // The collector lives as long as this end.
        outlet.send((intended, delivery)).await.ok();
        Ok(())
    }
}

type Outlets = Vec<mpsc::Sender<(Instant, Delivery)>>;

fn collectors(
    topic: &TopicInfo,
    bar: &ProgressBar,
) -> Result<(Vec<JoinHandle<Measured>>, Outlets), Failure> {
    let mut collectors = Vec::new();
    let mut outlets = Vec::new();
    for _ in &topic.partitions {
        let (outlet, deliveries) = mpsc::channel(DELIVERIES_MAX);
        let measured = Measured::new()?;
        collectors.push(tokio::spawn(measured.collect(deliveries, bar.clone())));
        outlets.push(outlet);
    }
    Ok((collectors, outlets))
}

/// What was acknowledged, and when.
#[derive(Debug)]
struct Measured {
    latencies: Histogram<u64>,
    stored: u64,
    failed: u64,
    reason: Option<String>,
    last: Option<Instant>,
    seconds: f64,
}

impl Measured {
    fn new() -> Result<Measured, Failure> {
        Ok(Measured {
            latencies: histogram()?,
            stored: 0,
            failed: 0,
            reason: None,
            last: None,
            seconds: 0.0,
        })
    }

    async fn collect(
        mut self,
        mut deliveries: mpsc::Receiver<(Instant, Delivery)>,
        bar: ProgressBar,
    ) -> Measured {
        while let Some((intended, delivery)) = deliveries.recv().await {
            let stored = delivery.await;
            let now = Instant::now();
            match stored {
                Ok(_) => {
                    self.stored += 1;
                    self.last = Some(now);
                    let us = now.duration_since(intended).as_micros();
                    let us = u64::try_from(us).unwrap_or(u64::MAX);
                    self.latencies.saturating_record(us.max(1));
                    if self.stored.is_multiple_of(PROGRESS_RECORDS) {
                        bar.inc(PROGRESS_RECORDS);
                    }
                }
                Err(error) => {
                    self.failed += 1;
                    self.reason.get_or_insert_with(|| error.to_string());
                }
            }
        }
        self
    }
}

/// All partitions together; the time ends with the last acknowledgement.
async fn gather(
    collectors: Vec<JoinHandle<Measured>>,
    begin: Instant,
) -> Result<Measured, Failure> {
    let mut all = Measured::new()?;
    for collector in collectors {
        let one = collector.await;
        let one = one.map_err(|error| Failure::new(Exit::Failed, format!("collector: {error}")))?;
        // Same bounds, so adding cannot fail.
        all.latencies.add(&one.latencies).ok();
        all.stored += one.stored;
        all.failed += one.failed;
        all.reason = all.reason.or(one.reason);
        all.last = all.last.max(one.last);
    }
    let seconds = all
        .last
        .map(|last| last.duration_since(begin).as_secs_f64());
    all.seconds = seconds.unwrap_or(0.0);
    Ok(all)
}

fn report(options: &Options, topic: &TopicInfo, measured: &Measured, loopback: bool) -> Report {
    let bytes = measured.stored * options.size;
    let (target_rate, from) = match options.rate {
        Pace::Max => (None, "send"),
        Pace::PerSecond(rate) => (Some(rate), "intended_send"),
    };
    Report {
        bench: "produce",
        topic: topic.name.clone(),
        partitions: topic.partitions.len(),
        acks: Some("all"),
        codec: Some(options.compression.name()),
        record_bytes: Some(options.size),
        linger_ms: Some(options.linger_ms),
        target_rate,
        records: measured.stored,
        failed: measured.failed,
        bytes,
        seconds: measured.seconds,
        records_per_second: rate(measured.stored, measured.seconds),
        bytes_per_second: rate(bytes, measured.seconds),
        latency: Latency::of(&measured.latencies, from, target_rate.is_some()),
        loopback,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn the_schedule_does_not_depend_on_answers() {
        let begin = Instant::now();
        let pace = pace("100").unwrap();
        let due = |n| {
            pace.due(begin, n)
                .unwrap()
                .duration_since(begin)
                .as_millis()
        };
        assert_eq!([due(0), due(1), due(100)], [0, 10, 1000]);
        assert_eq!(Pace::Max.due(begin, 5), None);
    }

    #[test]
    fn a_rate_is_a_positive_number_or_max() {
        assert_eq!(pace("max"), Ok(Pace::Max));
        assert_eq!(pace("0.5"), Ok(Pace::PerSecond(0.5)));
        for wrong in ["0", "-1", "fast", "inf", "NaN", ""] {
            assert!(pace(wrong).is_err(), "{wrong:?}");
        }
    }
}
