//! `logctl bench consume`: reads what the topic holds now, from its start.
//!
//! Not here: end-to-end latency, which needs a producer that says when it meant to send.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use logd_client::{ConsumedRecord, Consumer, OffsetAt, StartAt};

use super::report::{Latency, Report, histogram, rate};
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::lookup;
use crate::signals::Signals;

#[derive(Debug, Args)]
pub struct Options {
    /// What to read
    topic: String,
    /// At most so many records [default: all that are there now]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    records: Option<u64>,
    /// How large a broker's answer may be
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20)]
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    fetch_bytes: i32,
    /// How much of one partition an answer may hold
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    partition_bytes: i32,
}

type Offsets = BTreeMap<i32, i64>;

pub(super) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let client = context.connect().await?;
    let admin = client.admin();
    let topic = lookup::topic(&admin, &options.topic).await?;
    let loopback = super::is_loopback(&client).await?;
    let all = topic.partitions.iter();
    let all: Vec<(String, i32)> = all.map(|p| (topic.name.clone(), p.index)).collect();
    let offsets = async |at| -> Result<Offsets, Failure> {
        let found = admin.offsets(&all, at).await?.into_iter();
        Ok(found
            .map(|at| (at.partition, at.offset.unwrap_or(0)))
            .collect())
    };
    let (starts, ends) = (
        offsets(OffsetAt::Start).await?,
        offsets(OffsetAt::End).await?,
    );
    let mut consumer = client
        .consumer()
        .max_bytes(options.fetch_bytes)
        .max_partition_bytes(options.partition_bytes)
        .build();
    for (partition, start) in &starts {
        consumer.assign(&topic.name, *partition, StartAt::Offset(*start));
    }
    let there: i64 = ends.values().sum::<i64>() - starts.values().sum::<i64>();
    let there = u64::try_from(there).unwrap_or(0);
    let wanted = options.records.unwrap_or(u64::MAX);
    let bar = super::progress(context.out, Some(wanted.min(there)));
    let mut read = Read::new(bar)?;
    let mut signals = Signals::new();
    let begin = Instant::now();
    let ended = tokio::select! {
        ended = read.all(&mut consumer, &topic.name, &ends, wanted) => ended.map(|()| Exit::Done),
        exit = signals.next() => Ok(exit),
    };
    let seconds = begin.elapsed().as_secs_f64();
    read.bar.finish_and_clear();
    context.out.show(&Report {
        bench: "consume",
        partitions: topic.partitions.len(),
        acks: None,
        codec: None,
        record_bytes: None,
        linger_ms: None,
        target_rate: None,
        records: read.records,
        failed: 0,
        bytes: read.bytes,
        seconds,
        records_per_second: rate(read.records, seconds),
        bytes_per_second: rate(read.bytes, seconds),
        latency: Latency::of(&read.waits, "wait", false),
        loopback,
        topic: topic.name,
    })?;
    if options.records.is_some_and(|wanted| wanted > there) {
        context
            .out
            .note(&format!("the topic held no more than {there} records"));
    }
    ended
}

struct Read {
    records: u64,
    bytes: u64,
    waits: Histogram<u64>,
    bar: ProgressBar,
}

/// How often it is looked at whether everything is read, when nothing comes.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

impl Read {
    fn new(bar: ProgressBar) -> Result<Read, Failure> {
        Ok(Read {
            records: 0,
            bytes: 0,
            waits: histogram()?,
            bar,
        })
    }

    async fn all(
        &mut self,
        consumer: &mut Consumer,
        topic: &str,
        ends: &Offsets,
        wanted: u64,
    ) -> Result<(), Failure> {
        let is_behind = |consumer: &Consumer| {
            let mut ends = ends.iter();
            ends.all(|(index, end)| {
                consumer
                    .position(topic, *index)
                    .is_some_and(|at| at >= *end)
            })
        };
        while self.records < wanted && !is_behind(consumer) {
            let left = usize::try_from(wanted - self.records).unwrap_or(usize::MAX);
            let asked = Instant::now();
            let next = tokio::time::timeout(LOOK_INTERVAL, consumer.next_batch_of(left));
            if let Ok(records) = next.await {
                let us = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.waits.saturating_record(us.max(1));
                self.count(&records?);
            }
        }
        Ok(())
    }

    fn count(&mut self, records: &[ConsumedRecord]) {
        let bytes = |record: &ConsumedRecord| {
            let (key, value) = (record.key.as_ref(), record.value.as_ref());
            key.map_or(0, |key| key.len()) + value.map_or(0, |value| value.len())
        };
        self.records += records.len() as u64;
        self.bytes += records.iter().map(bytes).sum::<usize>() as u64;
        self.bar.set_position(self.records);
    }
}
