//! A topic that is deleted while it is produced to and consumed from: everybody is told, nobody hangs, nothing is left,
//! and what has its name afterwards is another topic.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::requests::*;
use common::{Broker, PATIENCE};
use logd_proto::messages::*;
use logd_proto::{ErrorCode, Uuid, message};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

const TOPIC: &str = "short-lived";
const PARTITIONS: i32 = 4;
/// Versions that name topics by id only.
const PRODUCE_BY_ID: i16 = 13;
const FETCH_BY_ID: i16 = 17;
/// Longer than the tests have patience for: who waits that long was forgotten.
const MAX_WAIT_MS: i32 = 150_000;

/// How a client names the topic.
#[derive(Debug, Clone, Copy)]
enum Named {
    ByName,
    ById(Uuid),
}

async fn topic_id(socket: &mut TcpStream) -> Uuid {
    let topic = message!(metadata_request::MetadataRequestTopic {
        name: Some(TOPIC.into())
    });
    let request = message!(MetadataRequest {
        topics: Some(vec![topic])
    });
    ask(socket, &request, 12).await.topics.remove(0).topic_id
}

async fn produced_as(
    socket: &mut TcpStream,
    named: Named,
) -> produce_response::PartitionProduceResponse {
    let mut request = produce(TOPIC, -1, 30_000, vec![batch(1)]);
    let version = match named {
        Named::ByName => PRODUCE_VERSION,
        Named::ById(id) => {
            request.topic_data[0].topic_id = id;
            PRODUCE_BY_ID
        }
    };
    let mut answer = ask(socket, &request, version).await;
    answer.responses.remove(0).partition_responses.remove(0)
}

async fn fetched_as(
    socket: &mut TcpStream,
    named: Named,
    offset: i64,
    max_wait_ms: i32,
) -> fetch_response::PartitionData {
    let mut request = fetch(TOPIC, offset, 1, max_wait_ms);
    let version = match named {
        Named::ByName => FETCH_VERSION,
        Named::ById(id) => {
            request.topics[0].topic_id = id;
            FETCH_BY_ID
        }
    };
    let mut answer = ask(socket, &request, version).await;
    answer.responses.remove(0).partitions.remove(0)
}

/// What a client may be told while the topic goes: that it is unknown, or that asking again will tell.
fn may_be_told(code: i16) -> bool {
    [
        ErrorCode::UnknownTopicOrPartition,
        ErrorCode::UnknownTopicId,
        ErrorCode::NotLeaderOrFollower,
        ErrorCode::RequestTimedOut,
        ErrorCode::KafkaStorageError,
    ]
    .iter()
    .any(|known| known.code() == code)
}

fn unknown(named: Named) -> i16 {
    match named {
        Named::ByName => ErrorCode::UnknownTopicOrPartition.code(),
        Named::ById(_) => ErrorCode::UnknownTopicId.code(),
    }
}

/// Produces until it is told that there is no such topic; how often it was acknowledged before.
async fn produce_to_the_end(mut socket: TcpStream, named: Named) -> usize {
    let mut acknowledged = 0;
    loop {
        let code = produced_as(&mut socket, named).await.error_code;
        match code {
            0 => acknowledged += 1,
            code if code == unknown(named) => return acknowledged,
            code => assert!(may_be_told(code), "{named:?}: produce answered {code}"),
        }
    }
}

/// Reads, waiting for more where there is no more, until it is told that there is no such topic.
async fn consume_to_the_end(mut socket: TcpStream, named: Named) -> usize {
    let (mut offset, mut reads) = (0, 0);
    loop {
        let read = fetched_as(&mut socket, named, offset, MAX_WAIT_MS).await;
        match read.error_code {
            0 => {
                reads += 1;
                offset = read.high_watermark;
            }
            code if code == unknown(named) => return reads,
            code => assert!(may_be_told(code), "{named:?}: fetch answered {code}"),
        }
    }
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("{what} took too long"))
}

async fn nothing_is_left(broker: &Broker) {
    let begun = Instant::now();
    loop {
        let (named, held) = (broker.logs_and_trash(), broker.deleted_files());
        let told = broker.get("/metrics");
        let partitions = broker.metric("logd_partitions ");
        // The metadata log stays.
        if named.len() == 1 && held.is_empty() && !told.contains(TOPIC) && partitions == 0.0 {
            return;
        }
        let about = told.lines().filter(|line| line.contains(TOPIC));
        assert!(
            begun.elapsed() < PATIENCE,
            "{named:?} {held:?} {partitions} {:?}",
            about.collect::<Vec<_>>()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn all_users_of_a_deleted_topic_are_told_and_nothing_of_it_is_left() {
    let broker = Broker::start();
    let mut admin = broker.connect().await;
    create(&mut admin, TOPIC, PARTITIONS, &[]).await;
    let id = topic_id(&mut admin).await;
    let (mut producers, mut consumers) = (Vec::new(), Vec::new());
    for named in [Named::ByName, Named::ById(id), Named::ByName] {
        producers.push(tokio::spawn(produce_to_the_end(
            broker.connect().await,
            named,
        )));
        consumers.push(tokio::spawn(consume_to_the_end(
            broker.connect().await,
            named,
        )));
    }
    // These wait where nobody writes, for what never comes.
    let mut parked = Vec::new();
    for named in [Named::ByName, Named::ById(id)] {
        let mut socket = broker.connect().await;
        parked.push((
            named,
            tokio::spawn(async move {
                let mut request = fetch(TOPIC, 0, 1, MAX_WAIT_MS);
                request.topics[0].partitions[0].partition = PARTITIONS - 1;
                let version = match named {
                    Named::ByName => FETCH_VERSION,
                    Named::ById(id) => {
                        request.topics[0].topic_id = id;
                        FETCH_BY_ID
                    }
                };
                ask(&mut socket, &request, version).await.responses[0].partitions[0].error_code
            }),
        ));
    }
    let begun = Instant::now();
    while fetched_as(&mut admin, Named::ByName, 0, 0)
        .await
        .high_watermark
        < 100
    {
        assert!(begun.elapsed() < PATIENCE, "nobody produces");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    delete(&mut admin, TOPIC).await;
    for producer in producers {
        let acknowledged = in_time("a producer", producer)
            .await
            .expect("it ended well");
        assert!(acknowledged > 0);
    }
    for consumer in consumers {
        assert!(
            in_time("a consumer", consumer)
                .await
                .expect("it ended well")
                > 0
        );
    }
    for (named, waiting) in parked {
        let code = in_time("a parked fetch", waiting)
            .await
            .expect("it ended well");
        assert!(may_be_told(code), "{named:?}: {code}");
    }
    nothing_is_left(&broker).await;
}

#[tokio::test]
async fn a_topic_that_takes_a_deleted_ones_name_never_serves_its_data() {
    let broker = Broker::start();
    let mut admin = broker.connect().await;
    create(&mut admin, TOPIC, PARTITIONS, &[]).await;
    let mut former = topic_id(&mut admin).await;
    for life in 0..5 {
        for offset in 0..10 {
            let answer = produced_as(&mut admin, Named::ByName).await;
            assert_eq!(
                (answer.error_code, answer.base_offset),
                (0, offset),
                "life {life}"
            );
        }
        delete(&mut admin, TOPIC).await;
        create(&mut admin, TOPIC, PARTITIONS, &[]).await;
        let id = topic_id(&mut admin).await;
        assert_ne!(id, former);
        let gone = ErrorCode::UnknownTopicId.code();
        assert_eq!(
            fetched_as(&mut admin, Named::ById(former), 0, 0)
                .await
                .error_code,
            gone
        );
        assert_eq!(
            produced_as(&mut admin, Named::ById(former))
                .await
                .error_code,
            gone
        );
        for named in [Named::ByName, Named::ById(id)] {
            let fresh = fetched_as(&mut admin, named, 0, 0).await;
            let records = fresh.records.map_or(0, |r| r.len());
            assert_eq!((fresh.error_code, fresh.high_watermark, records), (0, 0, 0));
            let stale = fetched_as(&mut admin, named, 10, 0).await.error_code;
            assert_eq!(stale, ErrorCode::OffsetOutOfRange.code());
        }
        former = id;
    }
}

/// Now and then the fetch finds the new topic where it left the old one.
const ROUNDS: u32 = 20;

/// The name is taken again as soon as it is free, before the deletion is answered.
async fn delete_and_create(broker: &Broker) {
    let (mut one, mut other) = (broker.connect().await, broker.connect().await);
    let wanted = message!(create_topics_request::CreatableTopic {
        name: TOPIC.into(),
        num_partitions: 1,
        replication_factor: 1
    });
    let creation = message!(CreateTopicsRequest {
        topics: vec![wanted],
        timeout_ms: 30_000
    });
    let creating = async {
        loop {
            match ask(&mut other, &creation, 5).await.topics[0].error_code {
                0 => return,
                code => assert_eq!(code, ErrorCode::TopicAlreadyExists.code()),
            }
        }
    };
    tokio::join!(delete(&mut one, TOPIC), creating);
}

#[tokio::test]
async fn a_fetch_that_waits_goes_on_waiting_at_the_topic_that_has_the_name_now() {
    let broker = Broker::start();
    let mut admin = broker.connect().await;
    create(&mut admin, TOPIC, 1, &[]).await;
    let mut socket = broker.connect().await;
    let waiting = tokio::spawn(async move {
        loop {
            let read = fetched_as(&mut socket, Named::ByName, 0, MAX_WAIT_MS).await;
            match read.error_code {
                0 => return read.records.map_or(0, |r| r.len()),
                code => assert!(may_be_told(code), "{code}"),
            }
        }
    });
    for _ in 0..ROUNDS {
        delete_and_create(&broker).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A fetch that watched on at a partition that has ended was woken ten thousand times.
    let waits = broker.metric("logd_kafka_fetch_wait_seconds_count");
    let most = f64::from(ROUNDS * 4);
    assert!(waits < most, "it woke {waits} times in {ROUNDS} rounds");
    assert_eq!(produced_as(&mut admin, Named::ByName).await.error_code, 0);
    let bytes = in_time("the fetch", waiting).await.expect("it ended well");
    assert!(bytes > 0);
}

/// Counts what became of each record.
struct Fates(mpsc::Sender<Option<RDKafkaErrorCode>>);

impl rdkafka::ClientContext for Fates {}

impl ProducerContext for Fates {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let failed = result.as_ref().err();
        let code = failed.and_then(|(error, _)| error.rdkafka_error_code());
        // The test has ended if nobody listens.
        let _ = self.0.send(code);
    }
}

fn client(broker: &Broker) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", broker.bootstrap())
        .set("topic.metadata.refresh.interval.ms", "200")
        .set("topic.metadata.propagation.max.ms", "200")
        .set("allow.auto.create.topics", "false");
    config
}

fn send(producer: &ThreadedProducer<Fates>, value: &str) -> Option<RDKafkaErrorCode> {
    let record = BaseRecord::<'_, (), str>::to(TOPIC).payload(value);
    producer
        .send(record)
        .err()
        .and_then(|(e, _)| e.rdkafka_error_code())
}

fn told_unknown(code: Option<RDKafkaErrorCode>) -> bool {
    use RDKafkaErrorCode::{UnknownPartition, UnknownTopic, UnknownTopicOrPartition};
    matches!(
        code,
        Some(UnknownTopic | UnknownPartition | UnknownTopicOrPartition)
    )
}

/// What the consumer gets next: a value, or why there is none.
fn next(consumer: &BaseConsumer) -> Option<Result<String, Option<RDKafkaErrorCode>>> {
    match consumer.poll(Duration::from_millis(100))? {
        Ok(message) => {
            let value = rdkafka::Message::payload(&message).unwrap_or_default();
            Some(Ok(String::from_utf8_lossy(value).into_owned()))
        }
        Err(KafkaError::MessageConsumption(code)) => Some(Err(Some(code))),
        Err(other) => Some(Err(other.rdkafka_error_code())),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn librdkafka_tells_its_users_and_goes_on_with_the_topic_that_has_the_name_now() {
    let broker = Broker::start_with(&[
        ("LOGD_TOPICS__AUTO_CREATE", "false"),
        ("LOGD_GROUP__INITIAL_REBALANCE_DELAY_MS", "0"),
    ]);
    let mut admin = broker.connect().await;
    create(&mut admin, TOPIC, 1, &[]).await;
    let (fates, told) = mpsc::channel();
    let producer: ThreadedProducer<Fates> = client(&broker)
        .create_with_context(Fates(fates))
        .expect("a producer");
    let consumer: BaseConsumer = client(&broker)
        .set("group.id", "readers")
        .set("auto.offset.reset", "earliest")
        .create()
        .expect("a consumer");
    consumer.subscribe(&[TOPIC]).expect("subscribed");
    let begun = Instant::now();
    let waits = |what: &str| assert!(begun.elapsed() < PATIENCE, "{what}");

    assert_eq!(send(&producer, "first life"), None);
    while next(&consumer) != Some(Ok("first life".into())) {
        waits("the first record is not read");
    }
    delete(&mut admin, TOPIC).await;
    let mut refused = false;
    while !refused {
        waits("the producer is not told");
        refused = told_unknown(send(&producer, "nowhere"));
        refused |= told.try_iter().any(told_unknown);
        std::thread::sleep(Duration::from_millis(10));
    }
    while !matches!(next(&consumer), Some(Err(code)) if told_unknown(code)) {
        waits("the consumer is not told");
    }
    producer.flush(PATIENCE).expect("every record has its fate");

    create(&mut admin, TOPIC, 1, &[]).await;
    // More than one: what a consumer commits by name while the topic changes may count for the new one, in Kafka too.
    let value = loop {
        waits("nothing of the new topic is read");
        // A producer that still believes that there is no such topic says so, and tries again with the next record.
        if send(&producer, "second life").is_none() {
            producer.flush(PATIENCE).expect("the record has its fate");
        }
        if let Some(Ok(value)) = next(&consumer) {
            break value;
        }
    };
    assert_eq!(value, "second life", "read from the topic that was deleted");
}
