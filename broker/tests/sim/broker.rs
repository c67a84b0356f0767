//! One simulated broker: its disk, its groups, and a runtime of its own that the world moves by hand.
//!
//! A runtime per broker is what makes a crash a crash (its tasks are gone between two polls), a pause a
//! pause (nothing is polled while the clock goes on), and a clock of its own possible. The disk has no
//! threads: the world does its work in the pace of the day.
//! Invariant: within one step a broker handles one message, and time moves only when it has nothing to do.
//! Not here: where messages come from and go to (`world`), who asks what (`producer`, `reader`).

use crate::client::{Ask, Reply, serve};
use crate::dice::Dice;
use crate::healing::{self, Notes};
use crate::link::Links;
use crate::net::{Answer, Outgoing};
use crate::{CLOCK_BEGINS_MS, FOUNDERS, PARTITIONS, TOPIC, topic_config};
use bytes::Bytes;
use logd::cluster::{
    self, BUILD, Command, METADATA_TOPIC, Metadata, Takeover, Told, View, outlooks,
};
use logd::partition::{CompactionSettings, Partition, Registry, Spec, keep_compacted};
use logd::raft::{self, Exchange, Group, GroupSpec, Proposal, ProposeError, Timers, unstamped};
use logd_proto::Uuid;
use logd_proto::rpc::v1::envelope::Body;
use logd_proto::rpc::v1::{GroupMessage, Ping};
use logd_storage::vfs::{SimFs, Vfs};
use logd_storage::{
    Captured, Disk, DiskOptions, Log, LogKey, LogOptions, OpenError, Pump, StateSource,
};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::watch;

const ROOT: &str = "/data";

/// How long a command may take, as in the product.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Where a replica that goes on by force begins.
pub const SURVIVOR_TERM: u64 = 1_000;

/// Free space below which a broker refuses new data.
pub const RESERVE_BYTES: u64 = 64 << 10;

/// What waits for a broker to look at it.
pub enum Inbound {
    Message {
        call: u64,
        /// The disk that asks.
        from: u64,
        body: Body,
    },
    Answered {
        reply: tokio::sync::oneshot::Sender<Answer>,
        answer: Answer,
    },
    Asked {
        op: u64,
        ask: Ask,
    },
    Retain,
    Checkpoint,
    /// What it leads goes to others.
    HandOver,
}

/// What a broker has open. Filled by its own tasks, one by one.
#[derive(Default)]
pub struct Groups {
    pub metadata: Option<(Arc<Group<Metadata>>, View)>,
    /// What could not be opened, and why.
    pub failed: Vec<String>,
}

/// A broker that runs.
pub struct Up {
    runtime: Runtime,
    pub disk: Disk,
    exchange: Exchange,
    links: Links,
    pub registry: Arc<Registry>,
    pub groups: Arc<Mutex<Groups>>,
    pub fatal: Arc<Mutex<Option<String>>>,
}

pub struct Broker {
    pub number: usize,
    pub fs: SimFs,
    /// The file system as the broker sees it: a lie stands between in some runs.
    pub seen_fs: Arc<dyn Vfs>,
    pub up: Option<Up>,
    /// How often it was started.
    pub start: u64,
    pub inbox: VecDeque<Inbound>,
    /// Down, and about to start again.
    pub comes_back: bool,
    /// Its machine has no power: nobody refuses connections to it.
    pub dark: bool,
    /// Nothing of it is polled until then.
    pub paused_until: u64,
    /// Time that went by while it was paused.
    missed_ms: u64,
    /// The disk is given a turn this often.
    pub pace_ms: Range<u64>,
    next_turn: u64,
    clock: Arc<AtomicI64>,
    /// Its clock gains a millisecond this often.
    gains_every: Option<u64>,
    dice: Dice,
    /// How often its partitions were recovered by force, as far as it knows.
    pub generation: u32,
    /// It is the one whose replicas go on.
    pub survives: bool,
    /// Replicas of it that are to be written again.
    pub notes: Notes,
}

pub const QUICK_DISK: Range<u64> = 1..3;

impl Broker {
    pub fn new(number: usize, fs: SimFs, seen_fs: Arc<dyn Vfs>, mut dice: Dice) -> Self {
        Self {
            number,
            fs,
            seen_fs,
            up: None,
            start: 0,
            inbox: VecDeque::new(),
            comes_back: false,
            dark: false,
            paused_until: 0,
            missed_ms: 0,
            pace_ms: QUICK_DISK,
            next_turn: 0,
            clock: Arc::new(AtomicI64::new(CLOCK_BEGINS_MS)),
            gains_every: dice.chance(300).then(|| dice.range(5_000..50_000)),
            dice,
            generation: 0,
            survives: false,
            notes: Notes::default(),
        }
    }

    /// The disk that votes.
    pub fn replica(&self) -> u64 {
        FOUNDERS[self.number]
    }

    /// Opens the disk and begins to open the groups on it.
    ///
    /// # Errors
    /// If the disk does not open.
    pub fn switch_on(&mut self) -> Result<(), OpenError> {
        let options = DiskOptions {
            wal_file_bytes: 128 << 10,
            wal_budget_bytes: 4 << 20,
            reserve_bytes: RESERVE_BYTES,
            pump: Pump::Manual,
            ..DiskOptions::default()
        };
        let disk = Disk::open(self.seen_fs.clone(), Path::new(ROOT), options, &|_| {})?;
        self.start += 1;
        self.inbox.clear();
        let fatal = Arc::new(Mutex::new(None));
        let tell = fatal.clone();
        disk.on_fatal(Box::new(move |why| *tell.lock() = Some(why.to_owned())));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            // One thread: what blocks ends in the order it began.
            .max_blocking_threads(1)
            .build()
            .expect("a runtime");
        let links = Links::new(self.replica(), self.start);
        let (heard, space) = (links.hearing.clone(), disk.clone());
        let exchange = Exchange::new(
            Arc::new(move |disk| heard.hears(disk)),
            Arc::new(|| true),
            Arc::new(move || space.space().accepting),
        );
        let up = Up {
            runtime,
            disk,
            exchange,
            links,
            registry: Arc::default(),
            groups: Arc::default(),
            fatal,
        };
        for partition in 0..PARTITIONS {
            up.runtime.spawn(self.open_partition(&up, partition));
        }
        up.runtime.spawn(self.open_metadata(&up));
        for peer in FOUNDERS.into_iter().filter(|d| *d != self.replica()) {
            up.runtime.spawn(up.links.clone().keep(peer));
        }
        let takeover = Takeover {
            neighbours: Arc::new(up.links.clone()),
            registry: up.registry.clone(),
        };
        up.runtime.spawn(takeover.run());
        let (settings, clock) = (self.compaction(), self.clock.clone());
        let compacts = keep_compacted(
            up.registry.clone(),
            watch::channel(settings).1,
            Arc::new(move || clock.load(Ordering::Relaxed)),
        );
        up.runtime.spawn(compacts);
        self.up = Some(up);
        Ok(())
    }

    /// How it compacts from this start on: often, some with less room for keys than there are, and so slowly that
    /// much goes on meanwhile.
    fn compaction(&mut self) -> CompactionSettings {
        CompactionSettings {
            every: Duration::from_millis(self.dice.range(200..1_500)),
            map_bytes: self.dice.pick(&[0, 1 << 16]),
            bytes_per_second: self.dice.pick(&[0, 200_000, 1_000_000]),
            hash_seeds: [self.dice.next(), self.dice.next()],
        }
    }

    fn links(&self, up: &Up) -> raft::Links {
        raft::Links {
            throttle: raft::Throttle::new(0),
            transport: Arc::new(up.links.clone()),
            exchange: up.exchange.clone(),
        }
    }

    fn open_partition(&self, up: &Up, partition: u32) -> impl Future<Output = ()> + Send + use<> {
        let config = topic_config(partition);
        let clock = self.clock.clone();
        let (hearing, lapses) = (up.links.hearing.clone(), up.links.hearing.clone());
        let founds = FOUNDERS[partition as usize % FOUNDERS.len()] == self.replica();
        let spec = Spec {
            topic_id: Uuid::from_bytes(TOPIC),
            topic: "t".into(),
            index: partition as i32,
            replica: self.replica(),
            node_of: Arc::new(|disk| i32::try_from(disk).ok()),
            founders: FOUNDERS.into(),
            founds,
            internal: false,
            floor: self.notes.lock().get(&partition).map_or(0, |n| n.floor),
            generation: self.generation,
            begins: if self.generation > 0 {
                SURVIVOR_TERM
            } else {
                0
            },
            heard_by: Arc::new(move |disk| hearing.is_heard_by(disk)),
            lapses: Arc::new(move || lapses.lapses()),
            timers: Timers::None,
            links: self.links(up),
            on_role: Arc::new(|_| {}),
            config: config.clone(),
            producer_expiration_ms: Arc::new(|| i64::MAX / 4),
            clock: Arc::new(move || clock.load(Ordering::Relaxed)),
        };
        let (disk, groups) = (up.disk.clone(), up.groups.clone());
        let (registry, notes) = (up.registry.clone(), self.notes.clone());
        let survives = self.survives.then(|| self.replica());
        async move {
            let log = healing::open(&disk, partition, config.log_options(), &notes).await;
            let opened = match log {
                Ok(log) => {
                    if let Some(replica) = survives {
                        let forced = raft::force_alone(&log, replica, SURVIVOR_TERM).await;
                        forced.expect("it becomes the only voter");
                    }
                    Partition::open(spec, disk, log)
                        .await
                        .map_err(|e| e.to_string())
                }
                Err(why) => Err(why),
            };
            match opened {
                Ok(opened) => registry.insert(opened),
                Err(why) => groups.lock().failed.push(format!("p{partition}: {why}")),
            }
        }
    }

    fn open_metadata(&self, up: &Up) -> impl Future<Output = ()> + Send + use<> {
        let spec = GroupSpec {
            name: "metadata".into(),
            replica: self.replica(),
            founders: (self.number == 0).then(|| FOUNDERS.into()),
            stamp: unstamped,
            client_data: false,
            floor: 0,
            generation: 0,
            begins: 0,
            timers: Timers::Own,
            links: self.links(up),
            on_role: Arc::new(|_| {}),
        };
        let (disk, groups) = (up.disk.clone(), up.groups.clone());
        async move {
            let (metadata, view) = Metadata::new(BUILD);
            let opened = match disk.open_log(metadata_key(), LogOptions::default()) {
                Ok(log) => Group::open(spec, log, metadata)
                    .await
                    .map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let mut groups = groups.lock();
            match opened {
                Ok(group) => groups.metadata = Some((Arc::new(group), view)),
                Err(why) => groups.failed.push(format!("metadata: {why}")),
            }
        }
    }

    /// Takes it off the air between two polls. What its disk has is another matter.
    pub fn switch_off(&mut self) {
        let Some(up) = self.up.take() else { return };
        self.inbox.clear();
        (self.paused_until, self.missed_ms) = (0, 0);
        // A log and its owner hold each other; a process that ends does not mind, ours goes on.
        for log in up.disk.logs().into_iter().filter_map(|k| up.disk.log(k)) {
            log.set_state_source(Arc::new(Nobody));
        }
        drop(up);
    }

    /// Stops in order, as after SIGTERM.
    pub fn stop(&mut self) -> Result<(), String> {
        let Some(up) = &self.up else { return Ok(()) };
        let disk = up.disk.clone();
        let groups = std::mem::take(&mut *up.groups.lock());
        let registry = up.registry.clone();
        let closing = async {
            for partition in registry.all() {
                partition.close().await;
            }
            if let Some((group, _)) = &groups.metadata {
                group.close().await;
            }
        };
        let ended = up.runtime.block_on(async {
            let patient = tokio::time::timeout(Duration::from_secs(5), closing).await;
            let closed = disk.close().map_err(|e| e.to_string());
            patient
                .map_err(|_| "its groups do not end".to_owned())
                .and(closed)
        });
        self.switch_off();
        ended
    }

    /// A millisecond passes.
    pub fn step(&mut self, now: u64) {
        self.clock.fetch_add(1, Ordering::Relaxed);
        let Some(up) = &self.up else { return };
        if now < self.paused_until {
            self.missed_ms += 1;
            return;
        }
        let missed = std::mem::take(&mut self.missed_ms);
        let next = self.inbox.pop_front();
        let disk_turn = now >= self.next_turn;
        if disk_turn {
            self.next_turn = now + self.dice.range(self.pace_ms.clone());
        }
        let gains = self
            .gains_every
            .is_some_and(|every| now.is_multiple_of(every));
        up.runtime.block_on(async {
            if missed > 0 {
                tokio::time::advance(Duration::from_millis(missed)).await;
            }
            if let Some(inbound) = next {
                up.accept(inbound);
            }
            if disk_turn {
                up.disk.pump();
            }
            tokio::time::sleep(Duration::from_millis(1 + u64::from(gains))).await;
        });
    }

    pub fn outgoing(&self) -> Vec<Outgoing> {
        self.up
            .as_ref()
            .map_or_else(Vec::new, |up| up.links.outbox.take())
    }

    pub fn log(&self, partition: u32) -> Option<Log> {
        self.up.as_ref()?.disk.log(partition_key(partition))
    }

    pub fn partition(&self, partition: u32) -> Option<Arc<Partition>> {
        let registry = &self.up.as_ref()?.registry;
        registry.get(&Uuid::from_bytes(TOPIC), partition as i32)
    }

    pub fn is_paused(&self, now: u64) -> bool {
        now < self.paused_until
    }
}

impl Up {
    fn accept(&self, inbound: Inbound) {
        match inbound {
            Inbound::Message { call, from, body } => self.hear(call, from, body),
            Inbound::Asked { op, ask } => self.serve(op, ask),
            Inbound::Retain => {
                for partition in self.registry.all() {
                    // Its outcome shows in the log's start.
                    tokio::spawn(async move { partition.retain(0).await });
                }
            }
            Inbound::HandOver => {
                for partition in self.registry.all() {
                    if partition.leadership().serving {
                        let hearing = self.links.hearing.clone();
                        tokio::spawn(async move {
                            partition.hand_over(|d| hearing.is_heard_by(d)).await
                        });
                    }
                }
            }
            Inbound::Checkpoint => {
                // Put off if the disk is full or gone.
                let _ = self.disk.checkpoint();
            }
            // Who called may have given up.
            Inbound::Answered { reply, answer } => drop(reply.send(answer)),
        }
    }

    fn hear(&self, call: u64, from: u64, body: Body) {
        let outbox = self.links.outbox.clone();
        let hearing = &self.links.hearing;
        let body = match body {
            Body::Group(message) => {
                let answer = self.exchange.deliver(message);
                tokio::spawn(async move {
                    let kind = Some(answer.await);
                    let body = Body::Group(GroupMessage {
                        kind,
                        ..GroupMessage::default()
                    });
                    outbox.put(Outgoing::Answer { call, body });
                });
                return;
            }
            Body::Ping(_) => {
                hearing.heard(from, false, &[]);
                let start = self.links.start;
                Body::Ping(Ping {
                    start,
                    ..Ping::default()
                })
            }
            Body::Orphans(orphans) => {
                let hears = |disk| hearing.hears(disk);
                Body::Outlooks(outlooks(&self.registry, hears, true, &orphans))
            }
            other => other,
        };
        outbox.put(Outgoing::Answer { call, body });
    }

    fn serve(&self, op: u64, ask: Ask) {
        let outbox = self.links.outbox.clone();
        let groups = self.groups.lock();
        if matches!(ask, Ask::Propose(_) | Ask::Raise) {
            let metadata = groups.metadata.clone();
            tokio::spawn(async move {
                let reply = match metadata {
                    Some((group, view)) => order(&group, &view, ask).await,
                    None => Reply::NotOpen,
                };
                outbox.put(Outgoing::Reply { op, reply });
            });
            return;
        }
        let topic = Uuid::from_bytes(TOPIC);
        let partition = self.registry.get(&topic, ask.partition() as i32);
        tokio::spawn(async move {
            let reply = match partition {
                Some(partition) => serve(partition, ask).await,
                None => Reply::NotOpen,
            };
            outbox.put(Outgoing::Reply { op, reply });
        });
    }
}

/// Carries out what was asked of the metadata.
async fn order(group: &Group<Metadata>, view: &View, ask: Ask) -> Reply {
    let state = view.borrow().clone();
    let command = match ask {
        Ask::Propose(command) => Some(command),
        _ => state.next_level(BUILD, &Told::new()),
    };
    match command {
        Some(command) => Reply::Proposed(propose(group, &command).await),
        None => Reply::Proposed(Ok(cluster::Answer::Done)),
    }
}

async fn propose(
    group: &Group<Metadata>,
    command: &Command,
) -> Result<cluster::Answer, ProposeError> {
    let stopped = |e: serde_json::Error| ProposeError::Stopped(e.to_string());
    let payload = serde_json::to_vec(command)
        .map(Bytes::from)
        .map_err(stopped)?;
    let pending = group.propose(Proposal::data(payload, 1, -1)).await?;
    let outcome = tokio::time::timeout(ANSWER_DEADLINE, pending)
        .await
        .map_err(|_| ProposeError::Unknown)??;
    serde_json::from_slice(&outcome.answer).map_err(stopped)
}

pub fn partition_key(partition: u32) -> LogKey {
    LogKey {
        topic: TOPIC,
        partition,
    }
}

pub fn metadata_key() -> LogKey {
    LogKey {
        topic: METADATA_TOPIC,
        partition: 0,
    }
}

struct Nobody;

impl StateSource for Nobody {
    fn capture(&self) -> Option<Captured> {
        None
    }
}
