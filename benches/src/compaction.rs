//! Compaction: the same records on each broker, then the moment when it may begin. How fast a log becomes small, what
//! that takes of memory and CPU, and what a producer of another topic notices meanwhile.
//!
//! Looked at from outside alone: a topic's size as DescribeLogDirs tells it, which both brokers answer. The log is at
//! its end when its size has not changed for a while. Not here: whether what is left is right (tests).

use crate::Brokers;
use crate::broker::Target;
use crate::latency;
use crate::report::{head, row};
use anyhow::{Context, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    brokers: Brokers,
    /// Records of the compacted topic
    #[arg(long, default_value_t = 2_000_000)]
    records: u64,
    /// Keys they have, each as likely as any other
    #[arg(long, default_value_t = 500_000)]
    keys: u64,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 500)]
    size: usize,
    /// Bytes of a segment
    #[arg(long, default_value_t = 64 << 20)]
    segment_bytes: u32,
    /// Seconds of the round at rest, and of the one while the log is compacted
    #[arg(long, default_value_t = 15)]
    seconds: u32,
    /// Records per second of the producer that may notice
    #[arg(long, default_value_t = 1000)]
    rate: u32,
}

/// A log that did not change for so long is done.
const QUIET: Duration = Duration::from_secs(8);
/// Longer than any log here takes.
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Larger than any answer to what is asked here.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What happened while a log was compacted.
#[derive(Debug, Default)]
struct Seen {
    before: i64,
    after: i64,
    /// From the moment when it might begin to its last change.
    took: Duration,
    cpu: Duration,
    /// At its most, above what it was.
    memory_mb: f64,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    head(&[
        "broker",
        "log MB",
        "left MB",
        "seconds",
        "MB/s",
        "CPU s",
        "memory MB",
        "p99 ms at rest",
        "p99 ms meanwhile",
    ]);
    for target in &options.brokers.targets {
        one(options, target).await?;
    }
    Ok(())
}

async fn one(options: &Options, target: &Target) -> Result<()> {
    let topic = format!("compaction-{}", std::process::id());
    let segment = options.segment_bytes.to_string();
    let settings = |ratio: &'static str| {
        [
            ("cleanup.policy", "compact"),
            ("segment.bytes", segment.as_str()),
            ("min.cleanable.dirty.ratio", ratio),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
    };
    let replicas = options.brokers.replicas;
    target.create_topic(&topic, 1, replicas).await?;
    // A part is never larger than the whole: nothing begins before it is to.
    target.configure(&topic, &settings("1")).await?;
    tokio::task::block_in_place(|| fill(options, target, &topic))?;
    let calm = p99(options, target, "rest").await?;

    let over = AtomicBool::new(false);
    let before = size_of(target, &topic)?;
    target.configure(&topic, &settings("0.01")).await?;
    let (seen, meanwhile) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(target, &topic, before, &over));
        let meanwhile = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(p99(options, target, "meanwhile"))
        });
        over.store(true, Ordering::Release);
        let seen = watching
            .join()
            .unwrap_or_else(|_| bail!("the watcher panicked"));
        (seen, meanwhile)
    });
    let (seen, meanwhile) = (seen?, meanwhile?);
    let mb = |bytes: i64| bytes as f64 / 1e6;
    let seconds = seen.took.as_secs_f64();
    row(&[
        target.name.clone(),
        format!("{:.0}", mb(seen.before)),
        format!("{:.0}", mb(seen.after)),
        format!("{seconds:.1}"),
        format!("{:.0}", mb(seen.before) / seconds),
        format!("{:.1}", seen.cpu.as_secs_f64()),
        format!("{:.0}", seen.memory_mb),
        format!("{calm:.2}"),
        format!("{meanwhile:.2}"),
    ]);
    target.delete_topics(&[&topic]).await
}

async fn p99(options: &Options, target: &Target, when: &str) -> Result<f64> {
    let topic = format!("compaction-{when}-{}", std::process::id());
    target.create_topic(&topic, 1, 1).await?;
    let plan = latency::Plan {
        rate: options.rate,
        seconds: options.seconds,
        size: 100,
    };
    let histogram = tokio::task::block_in_place(|| latency::one(plan, target, &topic))?;
    target.delete_topics(&[&topic]).await?;
    Ok(histogram.value_at_quantile(0.99) as f64 / 1e3)
}

fn fill(options: &Options, target: &Target, topic: &str) -> Result<()> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &target.address)
        .set("linger.ms", "20")
        .set("batch.size", "500000")
        .set("queue.buffering.max.messages", "200000");
    let producer: ThreadedProducer<_> = config.create().context("a producer")?;
    let mut value = vec![b'x'; options.size];
    let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
    for n in 0..options.records {
        // xorshift64: the same keys for every broker.
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        let key = format!("key {:012}", dice % options.keys);
        let number = n.to_be_bytes();
        let len = number.len().min(value.len());
        value[..len].copy_from_slice(&number[..len]);
        loop {
            let record = BaseRecord::to(topic).partition(0).key(&key).payload(&value);
            match producer.send(record) {
                Ok(()) => break,
                Err((e, _))
                    if e.rdkafka_error_code()
                        == Some(rdkafka::types::RDKafkaErrorCode::QueueFull) =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err((e, _)) => return Err(e).context("the producer's queue"),
            }
        }
    }
    producer.flush(PATIENCE).context("unacknowledged records")
}

/// Looks until nothing changes any more, and at least until the round is `over`.
fn watch(target: &Target, topic: &str, before: i64, over: &AtomicBool) -> Result<Seen> {
    let begun = Instant::now();
    let (cpu, memory) = (target.cpu()?, target.anonymous_mb()?);
    let mut seen = Seen {
        before,
        after: before,
        ..Seen::default()
    };
    loop {
        std::thread::sleep(LOOK_EVERY);
        let now = size_of(target, topic)?;
        seen.memory_mb = seen.memory_mb.max(target.anonymous_mb()? - memory);
        if now != seen.after {
            (seen.after, seen.took) = (now, begun.elapsed());
            seen.cpu = target.cpu()?.saturating_sub(cpu);
        }
        let quiet = seen.took > Duration::ZERO && begun.elapsed() > seen.took + QUIET;
        if quiet && over.load(Ordering::Acquire) {
            return Ok(seen);
        }
        if begun.elapsed() > PATIENCE {
            bail!(
                "{}: {topic} was not compacted within {PATIENCE:?}",
                target.name
            );
        }
    }
}

/// Bytes of a topic on the first broker: DescribeLogDirs in version 1.
fn size_of(target: &Target, topic: &str) -> Result<i64> {
    let address = target.address.split(',').next().context("an address")?;
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request = Vec::new();
    request.extend_from_slice(&35i16.to_be_bytes());
    request.extend_from_slice(&1i16.to_be_bytes());
    request.extend_from_slice(&7i32.to_be_bytes());
    // No client id; one topic, its partition 0.
    request.extend_from_slice(&(-1i16).to_be_bytes());
    request.extend_from_slice(&1i32.to_be_bytes());
    request.extend_from_slice(&(topic.len() as i16).to_be_bytes());
    request.extend_from_slice(topic.as_bytes());
    request.extend_from_slice(&1i32.to_be_bytes());
    request.extend_from_slice(&0i32.to_be_bytes());
    socket.write_all(&(request.len() as i32).to_be_bytes())?;
    socket.write_all(&request)?;
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = usize::try_from(i32::from_be_bytes(length)).context("a length")?;
    if length > ANSWER_BYTES_MAX {
        bail!("an answer of {length} bytes");
    }
    let mut answer = vec![0; length];
    socket.read_exact(&mut answer)?;
    size_in(&answer).with_context(|| format!("{} does not tell the size of {topic}", target.name))
}

/// `correlation i32, throttle i32, [error i16, folder str, [topic str, [partition i32, size i64, ..]]]`.
fn size_in(answer: &[u8]) -> Option<i64> {
    fn take<const N: usize>(left: &mut &[u8]) -> Option<[u8; N]> {
        let (head, rest) = left.split_first_chunk::<N>()?;
        *left = rest;
        Some(*head)
    }
    fn skip_string(left: &mut &[u8]) -> Option<()> {
        let length = usize::try_from(i16::from_be_bytes(take(left)?)).ok()?;
        *left = left.get(length..)?;
        Some(())
    }
    let mut left = answer;
    take::<8>(&mut left)?;
    let folders = i32::from_be_bytes(take(&mut left)?);
    for _ in 0..folders {
        take::<2>(&mut left)?;
        skip_string(&mut left)?;
        let topics = i32::from_be_bytes(take(&mut left)?);
        for _ in 0..topics {
            skip_string(&mut left)?;
            let partitions = i32::from_be_bytes(take(&mut left)?);
            if partitions > 0 {
                take::<4>(&mut left)?;
                return Some(i64::from_be_bytes(take(&mut left)?));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_where_the_protocol_has_it() {
        let mut answer = vec![0; 8];
        answer.extend(1i32.to_be_bytes());
        answer.extend(0i16.to_be_bytes());
        answer.extend(2i16.to_be_bytes());
        answer.extend(*b"/d");
        answer.extend(1i32.to_be_bytes());
        answer.extend(1i16.to_be_bytes());
        answer.extend(*b"t");
        answer.extend(1i32.to_be_bytes());
        answer.extend(0i32.to_be_bytes());
        answer.extend(4711i64.to_be_bytes());
        assert_eq!(size_in(&answer), Some(4711));
        for cut in 0..answer.len() {
            assert_eq!(size_in(&answer[..cut]), None);
        }
    }
}
