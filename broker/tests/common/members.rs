//! Several broker processes that form a cluster, and traffic through them.

use super::requests::ask;
use super::{PATIENCE, free_port};
use logd_proto::message;
use logd_proto::messages::*;
use logd_proto::rpc::admin::admin_client::AdminClient;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tonic::transport::Channel;

/// One broker of several. Killed when dropped.
pub struct Member {
    process: Child,
    pub kafka: SocketAddr,
    pub admin: SocketAddr,
    pub rpc: SocketAddr,
    pub rack: String,
    seeds: String,
    data: tempfile::TempDir,
}

/// Where a broker will be: its Kafka, admin and broker-to-broker ports.
pub type Place = [SocketAddr; 3];

pub fn place() -> Place {
    [free_port(), free_port(), free_port()]
}

impl Member {
    /// Starts a broker that looks for others at `seeds`, and waits until it serves.
    pub fn start(place: Place, seeds: &[SocketAddr]) -> Self {
        let member = Self::begin(place, seeds, "");
        member.wait();
        member
    }

    fn begin([kafka, admin, rpc]: Place, seeds: &[SocketAddr], rack: &str) -> Self {
        let seeds: Vec<String> = seeds.iter().map(ToString::to_string).collect();
        let (seeds, data) = (seeds.join(","), tempfile::tempdir().expect("a folder"));
        let process = spawn([kafka, admin, rpc], &seeds, rack, data.path().to_owned());
        Self {
            process,
            kafka,
            admin,
            rpc,
            rack: rack.to_owned(),
            seeds,
            data,
        }
    }

    /// Brokers that found a cluster together, in the order of their node ids.
    pub async fn found(count: usize) -> Vec<Self> {
        Self::found_in(&vec![""; count]).await
    }

    /// As [`Member::found`], each in a rack of its own.
    pub async fn found_in(racks: &[&str]) -> Vec<Self> {
        let count = racks.len();
        let ports: Vec<_> = (0..count).map(|_| place()).collect();
        let seeds: Vec<_> = ports.iter().map(|p| p[2]).collect();
        let begin = |(place, rack): (&Place, &&str)| Self::begin(*place, &seeds, rack);
        let mut members: Vec<_> = ports.iter().zip(racks).map(begin).collect();
        members.iter().for_each(Self::wait);
        let mut known = Vec::new();
        for member in &members {
            let look = async || member.addresses().await;
            known = until_seen("all meet", look, |all| all.len() == count).await;
        }
        members.sort_by_key(|m| known.iter().find(|(_, at)| *at == m.kafka).map(|k| k.0));
        members
    }

    /// Until it serves.
    pub fn wait(&self) {
        until("a broker serves", || {
            std::net::TcpStream::connect(self.kafka).is_ok()
        });
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }

    /// SIGSTOP or SIGCONT: it is there, and does nothing, or goes on.
    pub fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.expect("kill runs").success());
    }

    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("its state").is_none()
    }

    /// A start at the same place, of a broker that has ended.
    pub fn begin_again(&mut self) {
        let ports = [self.kafka, self.admin, self.rpc];
        self.process = spawn(ports, &self.seeds, &self.rack, self.data.path().to_owned());
    }

    /// A start at the same place, of a broker that was killed; it serves.
    pub fn restart(&mut self) {
        self.begin_again();
        self.wait();
    }

    /// `logd recover-metadata` with this broker's settings.
    pub fn recover_metadata(&self, accept_data_loss: bool) -> Output {
        let ports = [self.kafka, self.admin, self.rpc];
        let mut command = command(ports, &self.seeds, &self.rack, self.data.path().to_owned());
        command.arg("recover-metadata");
        if accept_data_loss {
            command.arg("--accept-data-loss");
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.output().expect("the broker's binary runs")
    }

    /// What it keeps of its membership.
    pub fn card(&self) -> String {
        std::fs::read_to_string(self.data.path().join("cluster.json")).expect("a card")
    }

    pub fn put_card(&self, card: &str) {
        std::fs::write(self.data.path().join("cluster.json"), card).expect("written");
    }

    /// A start at the same place with an empty disk.
    pub fn restart_wiped(&mut self) {
        self.data = tempfile::tempdir().expect("a folder");
        self.restart();
    }

    /// Whether a folder of one of the topic's partitions lies on its disk.
    pub fn holds(&self, topic_id: &str) -> bool {
        let folders = std::fs::read_dir(self.data.path().join("logs"));
        let mut names = folders.into_iter().flatten().flatten();
        names.any(|e| e.file_name().to_string_lossy().contains(topic_id))
    }

    /// Segments of the topic's partitions on its disk.
    pub fn segments_of(&self, topic_id: &str) -> usize {
        let folders = std::fs::read_dir(self.data.path().join("logs"));
        let of_topic = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().contains(topic_id);
        let folders = folders.into_iter().flatten().flatten().filter(of_topic);
        let files =
            folders.flat_map(|folder| std::fs::read_dir(folder.path()).into_iter().flatten());
        let names = files.flatten().map(|file| file.path());
        names
            .filter(|file| file.extension().is_some_and(|e| e == "log"))
            .count()
    }

    /// What an operator's tool speaks to.
    pub async fn operator(&self) -> AdminClient<Channel> {
        let address = format!("http://{}", self.rpc);
        AdminClient::connect(address).await.expect("it accepts")
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.kafka).await.expect("it accepts")
    }

    pub async fn create(&self, topic: &str, replicas: &[&[i32]]) {
        self.create_with(topic, replicas, &[]).await;
    }

    pub async fn create_with(&self, topic: &str, replicas: &[&[i32]], configs: &[(&str, &str)]) {
        let configs = configs.iter().map(|(name, value)| {
            message!(create_topics_request::CreatableTopicConfig {
                name: (*name).into(),
                value: Some((*value).into())
            })
        });
        let assignments = replicas.iter().zip(0..).map(|(replicas, index)| {
            message!(create_topics_request::CreatableReplicaAssignment {
                partition_index: index,
                broker_ids: replicas.to_vec()
            })
        });
        let wanted = message!(create_topics_request::CreatableTopic {
            name: topic.into(),
            num_partitions: -1,
            replication_factor: -1,
            assignments: assignments.collect(),
            configs: configs.collect()
        });
        let request = message!(CreateTopicsRequest {
            topics: vec![wanted],
            timeout_ms: 30_000
        });
        let created = ask(&mut self.connect().await, &request, 5).await;
        let created = &created.topics[0];
        assert_eq!(created.error_code, 0, "{:?}", created.error_message);
    }

    /// A topic's id in hexadecimal digits.
    pub async fn topic_id(&self, topic: &str) -> String {
        let wanted = message!(metadata_request::MetadataRequestTopic {
            name: Some(topic.into())
        });
        let request = message!(MetadataRequest {
            topics: Some(vec![wanted])
        });
        let answer = ask(&mut self.connect().await, &request, 12).await;
        let bytes = answer.topics[0].topic_id.to_bytes();
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Leader, replicas and in-sync replicas of each partition.
    pub async fn describe(&self, topic: &str) -> Vec<(i32, Vec<i32>, Vec<i32>)> {
        let wanted = message!(metadata_request::MetadataRequestTopic {
            name: Some(topic.into())
        });
        let request = message!(MetadataRequest {
            topics: Some(vec![wanted])
        });
        let mut answer = ask(&mut self.connect().await, &request, 7).await;
        let mut partitions = answer.topics.remove(0).partitions;
        partitions.sort_by_key(|p| p.partition_index);
        let shown = partitions.into_iter().map(|p| {
            let mut in_sync = p.isr_nodes;
            in_sync.sort_unstable();
            (p.leader_id, p.replica_nodes, in_sync)
        });
        shown.collect()
    }

    /// Asks for a partition's replicas, or to go back; the error code.
    pub async fn reassign(&self, topic: &str, index: i32, replicas: Option<&[i32]>) -> i16 {
        let partition = message!(
            alter_partition_reassignments_request::ReassignablePartition {
                partition_index: index,
                replicas: replicas.map(<[i32]>::to_vec)
            }
        );
        let topic = message!(alter_partition_reassignments_request::ReassignableTopic {
            name: topic.into(),
            partitions: vec![partition]
        });
        let request = message!(AlterPartitionReassignmentsRequest {
            timeout_ms: 30_000,
            allow_replication_factor_change: true,
            topics: vec![topic]
        });
        let answer = ask(&mut self.connect().await, &request, 1).await;
        answer.responses[0].partitions[0].error_code
    }

    /// Moves under way: topic, partition, adding, removing.
    pub async fn moving(&self) -> Vec<(String, i32, Vec<i32>, Vec<i32>)> {
        let request = message!(ListPartitionReassignmentsRequest {
            timeout_ms: 30_000,
            topics: None
        });
        let answer = ask(&mut self.connect().await, &request, 0).await;
        let topics = answer.topics.into_iter();
        let rows = topics.flat_map(|t| {
            let name = t.name.to_string();
            t.partitions.into_iter().map(move |p| {
                (
                    name.clone(),
                    p.partition_index,
                    p.adding_replicas,
                    p.removing_replicas,
                )
            })
        });
        rows.collect()
    }

    /// Asks for preferred leaders: of everything, or of one partition. The codes.
    pub async fn elect(&self, of: Option<(&str, i32)>) -> Vec<i16> {
        let one = of.map(|(topic, index)| {
            vec![message!(elect_leaders_request::TopicPartitions {
                topic: topic.into(),
                partitions: vec![index]
            })]
        });
        let request = message!(ElectLeadersRequest {
            election_type: 0,
            topic_partitions: one,
            timeout_ms: 30_000
        });
        let answer = ask(&mut self.connect().await, &request, 2).await;
        let results = answer.replica_election_results.into_iter();
        results
            .flat_map(|r| r.partition_result)
            .map(|p| p.error_code)
            .collect()
    }

    /// Voters and observers of the metadata group.
    pub async fn quorum(&self) -> (Vec<i32>, Vec<i32>) {
        let partition = message!(describe_quorum_request::PartitionData { partition_index: 0 });
        let topic = message!(describe_quorum_request::TopicData {
            topic_name: "__cluster_metadata".into(),
            partitions: vec![partition]
        });
        let request = message!(DescribeQuorumRequest {
            topics: vec![topic]
        });
        let answer = ask(&mut self.connect().await, &request, 2).await;
        let partition = &answer.topics[0].partitions[0];
        let nodes = |of: &[describe_quorum_response::ReplicaState]| {
            let mut nodes: Vec<_> = of.iter().map(|r| r.replica_id).collect();
            nodes.sort_unstable();
            nodes
        };
        (
            nodes(&partition.current_voters),
            nodes(&partition.observers),
        )
    }

    /// Ids of the brokers that are there.
    pub async fn brokers(&self) -> Vec<i32> {
        let all = self.addresses().await;
        all.into_iter().map(|(id, _)| id).collect()
    }

    async fn addresses(&self) -> Vec<(i32, SocketAddr)> {
        let request = message!(DescribeClusterRequest { endpoint_type: 1 });
        let answer = ask(&mut self.connect().await, &request, 2).await;
        let brokers = answer.brokers.iter().map(|b| {
            let host = b.host.parse().expect("an address");
            (b.broker_id, SocketAddr::new(host, b.port as u16))
        });
        brokers.collect()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended already, which is what some tests are about.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(place: Place, seeds: &str, rack: &str, data: PathBuf) -> Child {
    let spawned = command(place, seeds, rack, data).spawn();
    spawned.expect("the broker's binary runs")
}

fn command([kafka, admin, rpc]: Place, seeds: &str, rack: &str, data: PathBuf) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logd"));
    command
        .args(["--kafka-addr", &kafka.to_string()])
        .args(["--admin-addr", &admin.to_string()])
        .args(["--rpc-addr", &rpc.to_string()])
        .arg("--data-dir")
        .arg(data)
        .env("LOGD_NODE__RACK", rack)
        .env("LOGD_GROUP__INITIAL_REBALANCE_DELAY_MS", "0")
        .env("LOGD_STORAGE__RETENTION_CHECK_INTERVAL_MS", "1000")
        .env("LOGD_STORAGE__COMPACTION_CHECK_INTERVAL_MS", "500")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    if !seeds.is_empty() {
        command.args(["--seed", seeds]);
    }
    command
}

/// Waits until something is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < PATIENCE, "waited for: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until what is looked at is so; says what it was last if it never is.
pub async fn until_seen<T: std::fmt::Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> T,
    so: impl Fn(&T) -> bool,
) -> T {
    let begun = Instant::now();
    loop {
        let seen = look().await;
        if so(&seen) {
            return seen;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "waited for: {what}; last seen {seen:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn client(brokers: &[SocketAddr]) -> ClientConfig {
    let bootstrap: Vec<_> = brokers.iter().map(ToString::to_string).collect();
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap.join(","))
        .set("message.timeout.ms", "60000")
        .set("topic.metadata.refresh.interval.ms", "1000");
    config
}

/// An idempotent producer that runs until it is told to stop.
pub struct Producing {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Producing {
    pub fn begin(brokers: &[SocketAddr], topic: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let producer: ThreadedProducer<_> = client(brokers)
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .create()
            .expect("a producer");
        let (topic, told) = (topic.to_owned(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            while !told.load(Ordering::Relaxed) {
                let (key, value) = (format!("k{}", sent % 31), sent.to_string());
                let record = BaseRecord::to(&topic).key(&key).payload(&value);
                if let Err((error, _)) = producer.send(record) {
                    panic!("{error}: {:?}", producer.client().fatal_error());
                }
                sent += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            producer
                .flush(PATIENCE)
                .expect("everything is acknowledged");
            sent
        });
        Self { stop, thread }
    }

    /// Stops; how many records were acknowledged: all of them.
    pub fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the producer ends well")
    }
}

/// Writes these numbers to a topic; comes back when they are acknowledged.
pub fn produce_all(brokers: &[SocketAddr], topic: &str, values: std::ops::Range<usize>) {
    let producer: ThreadedProducer<_> = client(brokers)
        .set("enable.idempotence", "true")
        .create()
        .expect("a producer");
    for value in values {
        let payload = value.to_string();
        let record: BaseRecord<'_, (), String> = BaseRecord::to(topic).payload(&payload);
        producer.send(record).map_err(|(e, _)| e).expect("queued");
    }
    producer.flush(PATIENCE).expect("all are acknowledged");
}

/// The numbers that a topic's first partition has, in order.
pub fn consume_all(brokers: &[SocketAddr], topic: &str) -> Vec<usize> {
    let consumer: BaseConsumer = client(brokers)
        .set("group.id", "by-hand")
        .create()
        .expect("a consumer");
    let (first, end) = consumer
        .fetch_watermarks(topic, 0, PATIENCE)
        .expect("its leader answers");
    let mut assignment = TopicPartitionList::new();
    let added = assignment.add_partition_offset(topic, 0, Offset::Beginning);
    added.expect("an assignment");
    consumer.assign(&assignment).expect("assigned");
    let (mut seen, begun) = (Vec::new(), Instant::now());
    while seen.len() < (end - first) as usize {
        assert!(begun.elapsed() < PATIENCE, "{} of {end} came", seen.len());
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let value = std::str::from_utf8(message.payload().expect("a value")).expect("UTF-8");
        seen.push(value.parse().expect("a number"));
    }
    seen
}

/// The first offset of a topic's first partition.
pub fn log_start(brokers: &[SocketAddr], topic: &str) -> i64 {
    let asker: BaseConsumer = client(brokers).create().expect("a client");
    let watermarks = asker.fetch_watermarks(topic, 0, PATIENCE);
    watermarks.expect("its leader answers").0
}

/// A consumer of all partitions from their beginnings, which runs beside the producer.
pub struct Consuming {
    wanted: Arc<std::sync::OnceLock<usize>>,
    thread: JoinHandle<Vec<(i32, i64, usize)>>,
}

impl Consuming {
    pub fn begin(brokers: &[SocketAddr], topic: &str, partitions: i32) -> Self {
        let consumer: BaseConsumer = client(brokers)
            .set("group.id", "by-hand")
            .set("enable.auto.commit", "false")
            .create()
            .expect("a consumer");
        let mut assignment = TopicPartitionList::new();
        for index in 0..partitions {
            let added = assignment.add_partition_offset(topic, index, Offset::Beginning);
            added.expect("an assignment");
        }
        consumer.assign(&assignment).expect("assigned");
        let wanted = Arc::new(std::sync::OnceLock::new());
        let until = wanted.clone();
        let thread = std::thread::spawn(move || consume(&consumer, &until));
        Self { wanted, thread }
    }

    /// Waits until so many records came, and checks that each came once and that none is out of order.
    pub fn end(self, count: usize) {
        self.wanted.set(count).expect("it is said once");
        let seen = self.thread.join().expect("the consumer ends well");
        let mut values: Vec<usize> = seen.iter().map(|(_, _, value)| *value).collect();
        values.sort_unstable();
        assert!(values.into_iter().eq(0..count), "every record, once");
    }
}

fn consume(consumer: &BaseConsumer, wanted: &std::sync::OnceLock<usize>) -> Vec<(i32, i64, usize)> {
    let mut seen: Vec<(i32, i64, usize)> = Vec::new();
    let mut last = std::collections::BTreeMap::new();
    let mut ending = None;
    while wanted.get().is_none_or(|count| seen.len() < *count) {
        if wanted.get().is_some() {
            let begun = *ending.get_or_insert_with(Instant::now);
            let ends = || consumer.position();
            assert!(
                begun.elapsed() < PATIENCE,
                "{} of {wanted:?} came, up to {:?}",
                seen.len(),
                ends()
            );
        }
        // Errors of a moment are the client's to overcome.
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let value = std::str::from_utf8(message.payload().expect("a value")).expect("UTF-8");
        let value: usize = value.parse().expect("a number");
        let (partition, offset) = (message.partition(), message.offset());
        let key = message.key().map(<[u8]>::to_vec);
        let before = last.insert(key, value);
        assert!(before.is_none_or(|b| b < value), "{value} after {before:?}");
        seen.push((partition, offset, value));
    }
    seen
}
