//! What the broker counts: one function per observation, one table of names.
//!
//! Promise: an observation costs a few atomic operations and allocates nothing; handles are looked up once.
//! Values that can be sampled are, at the scrape ([`on_scrape`]), so they cannot drift from the truth.
//! Labels come from closed sets, topics from a bounded one; never a client, an address or a partition.
//! Not here: HTTP, and who observes what.

mod lags;
mod process;
mod table;
mod topics;

pub use table::{Kind, Metric, TABLE};
pub use topics::TopicTraffic;

use lags::Lags;
pub use lags::{GroupLag, HiddenLags};
use logd_proto::ErrorCode;
use logd_proto::api::ApiKey;
use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};
use table::*;
use topics::Topics;

/// 100 microseconds to 10 seconds: below is noise of the scheduler, above it clients give up.
const SECONDS_BUCKETS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// Topics told apart. Two metrics, three series each.
const TOPICS_SHOWN_MAX: usize = 100;

/// Histograms keep single observations until folded: once a second they are few.
const UPKEEP_EVERY: Duration = Duration::from_secs(1);

/// Room for every key of the Kafka protocol so far, and some.
const API_KEYS_MAX: usize = 128;
const ERROR_CODES_MAX: usize = 192;

/// Where a produce request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Checking the batch.
    Validate,
    /// Until the proposal is in its group's queue.
    Queue,
    /// Until it is durable on a majority and applied.
    Commit,
    /// Encoding the answer, and waiting until earlier answers of its connection are out.
    Respond,
}

impl Stage {
    const ALL: [(Stage, &'static str); 4] = [
        (Stage::Validate, "validate"),
        (Stage::Queue, "queue"),
        (Stage::Commit, "commit"),
        (Stage::Respond, "respond"),
    ];
}

struct Api {
    requests: Counter,
    seconds: Histogram,
}

struct Handles {
    apis: [OnceLock<Api>; API_KEYS_MAX],
    errors: [OnceLock<Counter>; ERROR_CODES_MAX],
    fetch_wait: Histogram,
    follower_bytes: Counter,
    sent_nearer: Counter,
    bytes_in: Counter,
    bytes_out: Counter,
    connections: Gauge,
    connections_opened: Counter,
    stages: [Histogram; Stage::ALL.len()],
    repack_turn: Histogram,
    repack_work: Histogram,
    raft_proposals: Counter,
    raft_commit: Histogram,
    raft_elections: Counter,
    raft_files_sent: Counter,
    compaction: CompactionCounters,
    raft_files_received: Counter,
    partition_forced: Counter,
    sequence_gaps: Counter,
    sequences_late: Counter,
    storage_commit: Histogram,
    storage_sync: Histogram,
    storage_commits: Counter,
    storage_commit_bytes: Counter,
    group_rebalances: Counter,
}

type Sampler = Box<dyn Fn() + Send + Sync>;

struct Core {
    recorder: PrometheusRecorder,
    exporter: PrometheusHandle,
    handles: Handles,
    samplers: Mutex<Vec<(u64, Arc<Sampler>)>>,
    topics: Topics,
    lags: Lags,
    started: Instant,
}

/// Alive from the first observation on, so that nobody has to come first.
static CORE: LazyLock<Core> = LazyLock::new(Core::new);

impl Core {
    fn new() -> Self {
        let builder = PrometheusBuilder::new();
        // Fails on an empty list of buckets only; ours is not.
        let builder = match builder
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)
        {
            Ok(builder) => builder,
            Err(_) => PrometheusBuilder::new(),
        };
        let recorder = builder.build_recorder();
        describe(&recorder);
        fold_for_ever(recorder.handle());
        Self {
            exporter: recorder.handle(),
            handles: Handles::new(&recorder),
            samplers: Mutex::default(),
            topics: Topics::new(TOPICS_SHOWN_MAX),
            lags: Lags::default(),
            started: Instant::now(),
            recorder,
        }
    }
}

fn describe(recorder: &PrometheusRecorder) {
    for metric in TABLE {
        let (name, help) = (metric.name.into(), metric.help.into());
        match metric.kind {
            Kind::Counter => metrics::Recorder::describe_counter(recorder, name, None, help),
            Kind::Gauge => metrics::Recorder::describe_gauge(recorder, name, None, help),
            Kind::Histogram => metrics::Recorder::describe_histogram(recorder, name, None, help),
        }
    }
}

fn key(metric: &Metric, labels: &[&str]) -> metrics::Key {
    debug_assert_eq!(
        metric.labels.len(),
        labels.len(),
        "{} has its labels",
        metric.name
    );
    let labels = metric.labels.iter().zip(labels);
    let labels = labels.map(|(k, v)| metrics::Label::new(*k, (*v).to_owned()));
    metrics::Key::from_parts(metric.name, labels.collect::<Vec<_>>())
}

const METADATA: metrics::Metadata<'static> =
    metrics::Metadata::new("logd", metrics::Level::INFO, None);

fn counter(recorder: &PrometheusRecorder, metric: &Metric, labels: &[&str]) -> Counter {
    metrics::Recorder::register_counter(recorder, &key(metric, labels), &METADATA)
}

fn gauge(recorder: &PrometheusRecorder, metric: &Metric, labels: &[&str]) -> Gauge {
    metrics::Recorder::register_gauge(recorder, &key(metric, labels), &METADATA)
}

fn histogram(recorder: &PrometheusRecorder, metric: &Metric, labels: &[&str]) -> Histogram {
    metrics::Recorder::register_histogram(recorder, &key(metric, labels), &METADATA)
}

impl Handles {
    fn new(r: &PrometheusRecorder) -> Self {
        Self {
            apis: [const { OnceLock::new() }; API_KEYS_MAX],
            errors: [const { OnceLock::new() }; ERROR_CODES_MAX],
            fetch_wait: histogram(r, &FETCH_WAIT_SECONDS, &[]),
            follower_bytes: counter(r, &FOLLOWER_BYTES, &[]),
            sent_nearer: counter(r, &SENT_NEARER, &[]),
            bytes_in: counter(r, &BYTES, &["in"]),
            bytes_out: counter(r, &BYTES, &["out"]),
            connections: gauge(r, &CONNECTIONS, &[]),
            connections_opened: counter(r, &CONNECTIONS_OPENED, &[]),
            stages: Stage::ALL.map(|(_, stage)| histogram(r, &PRODUCE_STAGE_SECONDS, &[stage])),
            repack_turn: histogram(r, &REPACK_SECONDS, &["turn"]),
            repack_work: histogram(r, &REPACK_SECONDS, &["work"]),
            raft_proposals: counter(r, &RAFT_PROPOSALS, &[]),
            raft_commit: histogram(r, &RAFT_COMMIT_SECONDS, &[]),
            raft_elections: counter(r, &RAFT_ELECTIONS, &[]),
            raft_files_sent: counter(r, &RAFT_FILES_BYTES, &["sent"]),
            compaction: CompactionCounters::new(r),
            raft_files_received: counter(r, &RAFT_FILES_BYTES, &["received"]),
            partition_forced: counter(r, &PARTITION_FORCED_RECOVERIES, &[]),
            sequence_gaps: counter(r, &PARTITION_SEQUENCES_REFUSED, &["gap"]),
            sequences_late: counter(r, &PARTITION_SEQUENCES_REFUSED, &["late"]),
            storage_commit: histogram(r, &STORAGE_COMMIT_SECONDS, &[]),
            storage_sync: histogram(r, &STORAGE_SYNC_SECONDS, &[]),
            storage_commits: counter(r, &STORAGE_COMMITS, &[]),
            storage_commit_bytes: counter(r, &STORAGE_COMMIT_BYTES, &[]),
            group_rebalances: counter(r, &GROUP_REBALANCES, &[]),
        }
    }
}

/// A request was answered. The duration of a Fetch does not count the time it was parked: tell that to
/// [`fetch_waited`].
pub fn request_answered(api: ApiKey, took: Duration) {
    let core = &*CORE;
    let Some(slot) = usize::try_from(api.code())
        .ok()
        .and_then(|at| core.handles.apis.get(at))
    else {
        return;
    };
    let handles = slot.get_or_init(|| Api {
        requests: counter(&core.recorder, &REQUESTS, &[api.name()]),
        seconds: histogram(&core.recorder, &REQUEST_SECONDS, &[api.name()]),
    });
    handles.requests.increment(1);
    handles.seconds.record(took);
}

/// A fetch was parked for so long.
pub fn fetch_waited(waited: Duration) {
    CORE.handles.fetch_wait.record(waited);
}

/// A follower gave a consumer so many bytes of records.
pub fn follower_served(bytes: u64) {
    CORE.handles.follower_bytes.increment(bytes);
}

/// A consumer was sent to a follower in its own rack.
pub fn fetch_sent_nearer() {
    CORE.handles.sent_nearer.increment(1);
}

/// An answer carried an error code.
pub fn error_answered(code: ErrorCode) {
    let core = &*CORE;
    // Kafka's lowest code is -1.
    let slot = usize::try_from(i32::from(code.code()) + 1).ok();
    if let Some(slot) = slot.and_then(|at| core.handles.errors.get(at)) {
        let counted = slot.get_or_init(|| counter(&core.recorder, &ERRORS, &[code.name()]));
        counted.increment(1);
    }
}

/// A whole request frame arrived.
pub fn bytes_received(bytes: usize) {
    CORE.handles.bytes_in.increment(bytes as u64);
}

/// So many bytes of answers were written.
pub fn bytes_sent(bytes: usize) {
    CORE.handles.bytes_out.increment(bytes as u64);
}

/// An open connection: counted until dropped.
#[derive(Debug)]
pub struct OpenConnection(());

impl Drop for OpenConnection {
    fn drop(&mut self) {
        CORE.handles.connections.decrement(1.0);
    }
}

/// A connection was accepted.
pub fn connection_opened() -> OpenConnection {
    CORE.handles.connections.increment(1.0);
    CORE.handles.connections_opened.increment(1);
    OpenConnection(())
}

/// A connection was turned away; `reason` comes from a closed set.
pub fn connection_refused(reason: &'static str) {
    counter(&CORE.recorder, &CONNECTIONS_REFUSED, &[reason]).increment(1);
}

/// The broker ended a connection; `reason` comes from a closed set.
pub fn connection_closed(reason: &'static str) {
    counter(&CORE.recorder, &CONNECTIONS_CLOSED, &[reason]).increment(1);
}

/// Bytes of requests at a scrape, and how many there may be.
pub fn set_request_bytes(held: usize, max: usize) {
    set(&REQUEST_BYTES_HELD, &[], held as f64);
    set(&REQUEST_BYTES_MAX, &[], max as f64);
}

/// A produce spent so long in a stage.
pub fn produce_stage(stage: Stage, took: Duration) {
    CORE.handles.stages[stage as usize].record(took);
}

/// A batch was packed anew after a wait for its turn.
pub fn batch_repacked(waited: Duration, worked: Duration) {
    CORE.handles.repack_turn.record(waited);
    CORE.handles.repack_work.record(worked);
}

/// The traffic of a topic: keep the handle with the partition.
pub fn topic_traffic(topic: &str) -> Arc<TopicTraffic> {
    CORE.topics.traffic(topic)
}

/// An entry was proposed and applied.
pub fn raft_committed(took: Duration) {
    CORE.handles.raft_commit.record(took);
}

/// An entry was handed to a group.
pub fn raft_proposed() {
    CORE.handles.raft_proposals.increment(1);
}

/// A replica here became leader.
pub fn raft_elected() {
    CORE.handles.raft_elections.increment(1);
}

/// A piece of a snapshot's files went out.
pub fn raft_files_sent(bytes: usize) {
    CORE.handles.raft_files_sent.increment(bytes as u64);
}

/// A piece of a snapshot's files came in.
pub fn raft_files_received(bytes: usize) {
    CORE.handles.raft_files_received.increment(bytes as u64);
}

/// What a compaction of one log did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compacted {
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub kept: u64,
    pub removed: u64,
}

struct CompactionCounters {
    runs: Counter,
    failures: Counter,
    bytes_read: Counter,
    bytes_written: Counter,
    kept: Counter,
    removed: Counter,
}

impl CompactionCounters {
    fn new(r: &PrometheusRecorder) -> Self {
        Self {
            runs: counter(r, &COMPACTION_RUNS, &[]),
            failures: counter(r, &COMPACTION_FAILURES, &[]),
            bytes_read: counter(r, &COMPACTION_READ_BYTES, &[]),
            bytes_written: counter(r, &COMPACTION_WRITTEN_BYTES, &[]),
            kept: counter(r, &COMPACTION_RECORDS, &["kept"]),
            removed: counter(r, &COMPACTION_RECORDS, &["removed"]),
        }
    }
}

/// A log was compacted, as far as it went.
pub fn compacted(done: Compacted) {
    let counters = &CORE.handles.compaction;
    counters.bytes_read.increment(done.bytes_read);
    counters.bytes_written.increment(done.bytes_written);
    counters.kept.increment(done.kept);
    counters.removed.increment(done.removed);
}

/// A log is going to be compacted.
pub fn compaction_begun() {
    CORE.handles.compaction.runs.increment(1);
}

/// A log could not be compacted.
pub fn compaction_failed() {
    CORE.handles.compaction.failures.increment(1);
}

/// How much of the dirtiest log is new.
pub fn set_dirty_ratio(ratio: f64) {
    gauge(&CORE.recorder, &COMPACTION_DIRTY_RATIO, &[]).set(ratio);
}

/// A partition goes on with what the replica here has, by force.
pub fn partition_forced() {
    CORE.handles.partition_forced.increment(1);
}

/// A batch was refused for its sequence: it leaves a gap, or is a late copy of one from long ago.
pub fn sequence_refused(late: bool) {
    let handles = &CORE.handles;
    let counter = if late {
        &handles.sequences_late
    } else {
        &handles.sequence_gaps
    };
    counter.increment(1);
}

/// An append became durable.
pub fn storage_committed(took: Duration) {
    CORE.handles.storage_commit.record(took);
}

/// The write-ahead log wrote a group of so many bytes in one synchronous write.
pub fn storage_synced(took: Duration, bytes: u64) {
    CORE.handles.storage_sync.record(took);
    CORE.handles.storage_commits.increment(1);
    CORE.handles.storage_commit_bytes.increment(bytes);
}

/// A group began a generation.
pub fn group_rebalanced() {
    CORE.handles.group_rebalances.increment(1);
}

/// Partitions as they are at a scrape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Partitions {
    pub topics: usize,
    pub held: usize,
    pub leading: usize,
    pub leaderless: usize,
    pub under_replicated: usize,
    pub failed: usize,
    pub producers: usize,
    pub log_bytes: u64,
}

pub fn set_partitions(now: Partitions) {
    set(&TOPICS, &[], now.topics as f64);
    set(&PARTITIONS, &[], now.held as f64);
    set(&PARTITIONS_LEADING, &[], now.leading as f64);
    set(&PARTITIONS_LEADERLESS, &[], now.leaderless as f64);
    set(
        &PARTITIONS_UNDER_REPLICATED,
        &[],
        now.under_replicated as f64,
    );
    set(&PARTITIONS_FAILED, &[], now.failed as f64);
    set(&PRODUCERS, &[], now.producers as f64);
    set(&STORAGE_LOG_BYTES, &[], now.log_bytes as f64);
}

/// The disk at a scrape. `failed`: a write failed and this process writes no more.
pub fn set_disk(free_bytes: u64, total_bytes: u64, accepting: bool, failed: bool) {
    set(&DISK_FREE_BYTES, &[], free_bytes as f64);
    set(&DISK_TOTAL_BYTES, &[], total_bytes as f64);
    let alert = match (accepting, failed) {
        (_, true) => 2.0,
        (false, false) => 1.0,
        (true, false) => 0.0,
    };
    set(&DISK_ALERT, &[], alert);
}

/// Groups at a scrape; every state is given, also those without a group.
pub fn set_groups(by_state: &[(&'static str, usize)], members: usize) {
    for (state, groups) in by_state {
        set(&GROUPS, &[state], *groups as f64);
    }
    set(&GROUP_MEMBERS, &[], members as f64);
}

/// What groups have still to read; so many series are made of it.
pub fn set_group_lags(lags: Vec<GroupLag>, hidden: HiddenLags, shown_max: usize) {
    CORE.lags.set(lags, hidden, shown_max);
}

/// Fetch sessions at a scrape; evictions since the start.
pub fn set_fetch_sessions(sessions: usize, partitions: usize, evictions: u64) {
    set(&FETCH_SESSIONS, &[], sessions as f64);
    set(&FETCH_SESSION_PARTITIONS, &[], partitions as f64);
    counter(&CORE.recorder, &FETCH_SESSION_EVICTIONS, &[]).absolute(evictions);
}

pub fn set_ready(ready: bool) {
    set(&READY, &[], f64::from(u8::from(ready)));
}

pub fn set_recovery(took: Duration) {
    set(&RECOVERY_SECONDS, &[], took.as_secs_f64());
}

fn set(metric: &Metric, labels: &[&str], value: f64) {
    gauge(&CORE.recorder, metric, labels).set(value);
}

/// Keeps a sampler registered; dropping it takes the sampler out.
#[derive(Debug)]
#[must_use = "the sampler is gone when this is dropped"]
pub struct Sampling(u64);

impl Drop for Sampling {
    fn drop(&mut self) {
        CORE.samplers.lock().retain(|(id, _)| *id != self.0);
    }
}

/// Calls `sample` before each scrape, for what can be looked up instead of counted. It must not block.
pub fn on_scrape(sample: impl Fn() + Send + Sync + 'static) -> Sampling {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let sample: Sampler = Box::new(sample);
    CORE.samplers.lock().push((id, Arc::new(sample)));
    Sampling(id)
}

fn sample_process() {
    set(&BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
    set(&UPTIME_SECONDS, &[], CORE.started.elapsed().as_secs_f64());
    if let Some(memory) = process::memory() {
        set(&RESIDENT_BYTES, &[], memory.resident as f64);
        set(&ANON_BYTES, &[], memory.anonymous as f64);
    }
    if let Some(open) = process::open_fds() {
        set(&OPEN_FDS, &[], open as f64);
    }
    if let Some(max) = process::max_fds() {
        set(&MAX_FDS, &[], max as f64);
    }
}

/// The page for `/metrics`.
pub fn render() -> String {
    let core = &*CORE;
    sample_process();
    // Out of the lock: a sampler may register or drop another.
    let samplers: Vec<_> = core
        .samplers
        .lock()
        .iter()
        .map(|(_, s)| s.clone())
        .collect();
    for sample in samplers {
        sample();
    }
    let mut page = core.exporter.render();
    // The facade counts in whole numbers; seconds of CPU are not.
    let cpu = CPU_SECONDS;
    page.push_str(&format!(
        "# HELP {0} {1}\n# TYPE {0} counter\n{0} {2}\n\n",
        cpu.name,
        cpu.help,
        process::cpu_seconds()
    ));
    core.topics.render(&mut page);
    core.lags.render(&mut page);
    page
}

/// Folds observations into buckets for as long as the process lives: also where nobody scrapes, they
/// must not pile up. On a thread of its own, started with the first observation, so that nobody can
/// forget to start it.
fn fold_for_ever(exporter: PrometheusHandle) {
    let fold = move || {
        loop {
            std::thread::sleep(UPKEEP_EVERY);
            exporter.run_upkeep();
        }
    };
    let thread = std::thread::Builder::new().name("metrics".to_owned());
    if let Err(error) = thread.spawn(fold) {
        tracing::warn!(%error, "observations pile up in memory until /metrics is read");
    }
}

#[cfg(test)]
mod tests;
