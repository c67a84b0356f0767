//! Records on an open-loop schedule, round robin over partitions, with the fate of each. Not here: what is done to
//! the brokers meanwhile, and what is made of the fates.

use crate::broker::Target;
use anyhow::{Context, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const FLUSH: Duration = Duration::from_secs(90);

/// What a load sends.
#[derive(Clone)]
pub(crate) struct Plan {
    pub topic: String,
    pub partitions: i32,
    /// Records per second, over all partitions.
    pub rate: f64,
    pub size: usize,
    /// The client's wait for one answer.
    pub socket_timeout: Duration,
}

/// A record's fate; times are from the beginning of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fate {
    pub partition: i32,
    pub intended: Duration,
    pub told: Duration,
    pub acknowledged: bool,
}

struct Sent {
    partition: i32,
    intended: Duration,
}

struct Fates {
    begun: Instant,
    list: Mutex<Vec<Fate>>,
}

impl ClientContext for Fates {
    // A broker that is killed is no news here.
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Fates {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        let fate = Fate {
            partition: sent.partition,
            intended: sent.intended,
            told: self.begun.elapsed(),
            acknowledged: result.is_ok(),
        };
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push(fate);
    }
}

/// A load that runs until it is ended.
pub(crate) struct Load {
    pub begun: Instant,
    ending: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Fate>>>,
}

impl Load {
    pub fn begin(target: &Target, plan: Plan) -> Result<Load> {
        let begun = Instant::now();
        let producer = producer(target, &plan, begun)?;
        let ending = Arc::new(AtomicBool::new(false));
        let end = ending.clone();
        let thread = std::thread::spawn(move || send(&producer, &plan, begun, &end));
        Ok(Load {
            begun,
            ending,
            thread,
        })
    }

    /// Ends the load, waits for what is under way, and tells every record's fate.
    pub fn end(self) -> Result<Vec<Fate>> {
        self.ending.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.unwrap_or_else(|_| bail!("the producer panicked"))
    }
}

fn producer(target: &Target, plan: &Plan, begun: Instant) -> Result<ThreadedProducer<Fates>> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &target.address)
        .set("enable.idempotence", "true")
        .set("linger.ms", "0")
        .set("queue.buffering.max.messages", "1000000")
        .set(
            "socket.timeout.ms",
            plan.socket_timeout.as_millis().to_string(),
        )
        .set(
            "request.timeout.ms",
            plan.socket_timeout.as_millis().to_string(),
        )
        .set("message.timeout.ms", "60000");
    let fates = Fates {
        begun,
        list: Mutex::default(),
    };
    config.create_with_context(fates).context("a producer")
}

fn send(
    producer: &ThreadedProducer<Fates>,
    plan: &Plan,
    begun: Instant,
    ending: &AtomicBool,
) -> Result<Vec<Fate>> {
    let value = vec![b'x'; plan.size];
    let mut n = 0_u32;
    while !ending.load(Ordering::Relaxed) {
        let intended = Duration::from_secs_f64(f64::from(n) / plan.rate);
        if let Some(wait) = intended.checked_sub(begun.elapsed()) {
            std::thread::sleep(wait);
        }
        let partition = n as i32 % plan.partitions;
        let sent = Box::new(Sent {
            partition,
            intended,
        });
        let record = BaseRecord::<(), _, _>::with_opaque_to(&plan.topic, sent)
            .partition(partition)
            .payload(&value);
        match producer.send(record) {
            Ok(()) => n += 1,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err((error, _)) => return Err(error).context("a record was not taken"),
        }
    }
    producer.flush(FLUSH).context("records without an answer")?;
    let list = &producer.context().list;
    Ok(std::mem::take(
        &mut *list.lock().unwrap_or_else(PoisonError::into_inner),
    ))
}

/// The longest time between two acknowledgements of each partition, of those that end after `from`.
pub(crate) fn gaps(fates: &[Fate], partitions: i32, from: Duration) -> Vec<Duration> {
    let mut last = vec![Duration::ZERO; partitions as usize];
    let mut gaps = vec![Duration::ZERO; partitions as usize];
    let mut told: Vec<&Fate> = fates.iter().filter(|f| f.acknowledged).collect();
    told.sort_by_key(|f| f.told);
    for fate in told {
        let partition = fate.partition as usize;
        if fate.told >= from {
            gaps[partition] = gaps[partition].max(fate.told - last[partition]);
        }
        last[partition] = fate.told;
    }
    gaps
}

/// The value below which `percent` of the durations lie; zero for none.
pub(crate) fn percentile(durations: &[Duration], percent: f64) -> Duration {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted
        .get(rank.clamp(1, sorted.len().max(1)) - 1)
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fate(partition: i32, ms: u64, acknowledged: bool) -> Fate {
        let told = Duration::from_millis(ms);
        Fate {
            partition,
            intended: told,
            told,
            acknowledged,
        }
    }

    #[test]
    fn a_gap_is_between_acknowledgements_of_one_partition_after_the_fault() {
        let fates = [
            fate(0, 0, true),
            fate(1, 5, true),
            fate(0, 500, true),
            fate(0, 550, true),
            fate(0, 600, false),
            fate(0, 700, true),
            fate(1, 900, true),
        ];
        let ms = Duration::from_millis;
        assert_eq!(gaps(&fates, 2, ms(510)), [ms(150), ms(895)]);
    }

    #[test]
    fn percentiles_are_of_what_is_there() {
        let all: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&all, 99.0), Duration::from_millis(99));
        assert_eq!(percentile(&all, 50.0), Duration::from_millis(50));
        assert_eq!(percentile(&[], 50.0), Duration::ZERO);
    }
}
