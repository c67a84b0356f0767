//! The composition root: start order, stop order; nothing else wires.
//!
//! Start: admin door, sockets, disk (recovery), metadata, partitions, groups, then requests. Stop is the
//! same backwards. What can fail because of its surroundings fails before anything is served.

mod dials;
mod gauges;
mod kafka_door;
mod rescue;

pub use rescue::{RecoverError, recover_metadata};

use crate::admin::{AdminListener, Health, Phase};
use crate::cluster::{
    self, BrokerSpec, Claims, Cluster, Door, Leaders, Moves, Reconciler, SpecOf, Surroundings,
    Takeover, Topic,
};
use crate::config::{Config, GroupConfig, StorageConfig};
use crate::control::Control;
use crate::group::{self, Coordinator, ReplicatedOffsets};
use crate::metrics;
use crate::partition::{Clock, Registry, Spec, keep_compacted, keep_retention, keep_scrubbed};
use crate::peers::{Hearing, Peers, RpcListener, Served};
use crate::raft::{Exchange, Links, Throttle, Timers};
use crate::server::{BindError, Server};
use crate::settings::{Keeper, Live};
use dials::Dials;
use logd_storage::vfs::RealFs;
use logd_storage::{Disk, DiskOptions, RecoveryProgress};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tracing::{error, info, warn};

/// Groups are looked at for expired offsets this often.
const GROUP_EXPIRY_INTERVAL_MS: i64 = 10 * 60 * 1000;

/// A recovery that takes long says how far it is this often.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// How long a start waits for whoever holds its ports and its disk.
const PREDECESSOR: Duration = Duration::from_secs(3);

/// How long a start waits for partitions with replicas elsewhere to have leaders: when all brokers start at
/// once, clients that were let in before would be told of none, and look again only later.
const LED_DEADLINE: Duration = Duration::from_secs(2);

/// How long a start waits for its own partitions to have leaders before it serves the others.
const ELECTION_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Kafka(#[from] BindError),
    #[error("the {door} port cannot bind {address}: {source}")]
    Door {
        door: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    #[error("the data directory {path} cannot be used: {source}")]
    Disk {
        path: PathBuf,
        source: Box<logd_storage::OpenError>,
    },
    #[error("this broker does not come to its cluster: {0}")]
    Cluster(#[from] cluster::StartError),
    #[error("a task of the start ended badly: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl StartError {
    /// True if another process holds what this one needs: most likely its predecessor, which is ending.
    fn is_busy(&self) -> bool {
        let in_use = |source: &io::Error| source.kind() == io::ErrorKind::AddrInUse;
        match self {
            StartError::Kafka(error) => in_use(&error.source),
            StartError::Door { source, .. } => in_use(source),
            StartError::Disk { source, .. } => {
                matches!(**source, logd_storage::OpenError::Locked { .. })
            }
            StartError::Cluster(_) | StartError::Task(_) => false,
        }
    }
}

/// A Kafka listener as it was bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundListener {
    pub name: String,
    pub address: SocketAddr,
    /// Host and port that clients are told.
    pub advertised: (String, u16),
}

/// Where everything listens, also when port 0 was asked for.
#[derive(Debug, Clone)]
pub struct Bound {
    pub kafka: Vec<BoundListener>,
    pub admin: SocketAddr,
    pub rpc: SocketAddr,
}

/// A running broker.
#[derive(Debug)]
pub struct Node {
    bound: Bound,
    health: Health,
    server: Server,
    cluster: Arc<Cluster>,
    registry: Arc<Registry>,
    disk: Disk,
    tasks: JoinSet<()>,
    /// Tells requests that are parked to end.
    stopping: watch::Sender<bool>,
    /// Tells the other doors to close.
    stop: watch::Sender<bool>,
    failed: watch::Receiver<Option<String>>,
    _sampling: metrics::Sampling,
}

fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the node is gone, which is a stop too.
    drop(stop.wait_for(|s| *s).await);
}

impl Node {
    /// As [`Node::start`]; a predecessor that is still ending is given a moment to let go of its ports and
    /// its disk.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn start_after_predecessor(config: Config) -> Result<Node, StartError> {
        let begun = Instant::now();
        loop {
            match Node::start(config.clone()).await {
                Err(error) if error.is_busy() && begun.elapsed() < PREDECESSOR => {
                    info!(%error, "waiting for another process to end");
                    tokio::time::sleep(PREDECESSOR / 10).await;
                }
                started => return started,
            }
        }
    }

    /// Starts a broker; returns when it serves.
    ///
    /// # Errors
    /// A port or data directory that cannot be used, or data that must not be served.
    pub async fn start(config: Config) -> Result<Node, StartError> {
        let health = Health::default();
        let stop = watch::channel(false).0;
        let mut tasks = JoinSet::new();
        let admin = open_admin(config.admin_addr, &health, &stop, &mut tasks).await?;
        let rpc = RpcListener::bind(config.rpc_addr)
            .await
            .map_err(|source| StartError::Door {
                door: "rpc",
                address: config.rpc_addr,
                source,
            })?;
        let (listeners, kafka) = kafka_door::bind_kafka(&config.kafka.listeners)?;
        let bound = Bound {
            kafka,
            admin,
            rpc: rpc.address(),
        };
        let syncs = Arc::new(cluster::Syncs::default());
        let (disk, failed) = open_disk(&config, &health, &syncs).await?;
        let registry = Arc::new(Registry::default());
        let (done, reconciled) = watch::channel(0);
        let leaders = Arc::new(Leaders::default());
        let identity = disk.identity();
        let seeds = config.node.seeds.clone();
        let vetting = cluster::Vetting::new(disk.clone(), config.node.data_dir.clone());
        let (id, start) = (identity.id, identity.start);
        let build = cluster::BUILD;
        let door = Door::new(build, id, start, seeds, leaders.clone(), vetting.clone());
        let hearing = Hearing::default();
        let heard = hearing.clone();
        let exchange = Exchange::new(
            Arc::new(move |disk| heard.hears(disk)),
            Arc::new(move || vetting.is_done()),
            room_on(&disk),
        );
        let served = Served {
            household: door.clone(),
            hearing: hearing.clone(),
            exchange: exchange.clone(),
        };
        // Before this broker belongs to a cluster: forming one takes answers from everybody.
        let control = Control::default();
        spawn_rpc(rpc, served, control.routes(), &stop, &mut tasks);
        let peers = Peers::new(door.clone(), hearing.clone());
        let throttle = Throttle::new(config.rpc_learner_bytes_per_second);
        let links = Links {
            transport: Arc::new(peers.clone()),
            exchange,
            throttle: throttle.clone(),
        };
        let (keeper, settings) = Keeper::new(config.clone());
        let around = Surroundings {
            disk: disk.clone(),
            data_dir: config.node.data_dir.clone(),
            registry: registry.clone(),
            reconciled,
            door,
            peers: peers.clone(),
            links: links.clone(),
            settings: settings.clone(),
        };
        let cluster = cluster::start(broker_spec(&config, &disk, &bound), around).await?;
        control.open(cluster.clone(), registry.clone());
        // Before anything acts on a setting: the metadata is as new as the cluster's.
        keeper.hear(cluster.node_id(), &cluster.view().settings, |_| {});
        let claims = Arc::new(Claims::default());
        let spec = partition_spec(&settings, &cluster, &claims, links, hearing);
        let data_dir = config.node.data_dir.clone();
        tasks.spawn(cluster::follow_brokers(cluster.clone(), data_dir));
        tasks.spawn(cluster::keep_metadata_members(cluster.clone()));
        tasks.spawn(cluster::publish_leaders(leaders, cluster.node_id(), peers));
        tasks.spawn(cluster::tell_acknowledged(
            cluster.clone(),
            registry.clone(),
        ));
        tasks.spawn(cluster::avoid_slow_disk(
            cluster.clone(),
            syncs,
            disk.clone(),
        ));
        tasks.spawn(claims.clone().keep(cluster.clone(), registry.clone()));
        let moves = Moves {
            cluster: cluster.clone(),
            registry: registry.clone(),
            claims: claims.clone(),
        };
        tasks.spawn(moves.run());
        tasks.spawn(cluster::retire_brokers(cluster.clone()));
        tasks.spawn(cluster::keep_preferred_leaders(
            cluster.clone(),
            registry.clone(),
        ));
        let reconciler = Reconciler {
            cluster: cluster.clone(),
            registry: registry.clone(),
            disk: disk.clone(),
            data_dir: config.node.data_dir.clone(),
            spec,
            claims,
            done,
            settings: settings.clone(),
        };
        reconciler.round(&cluster.view()).await;
        let takeover = Takeover {
            neighbours: cluster.clone(),
            registry: registry.clone(),
        };
        tasks.spawn(takeover.run());
        wait_until_serving(&registry).await;
        tasks.spawn(reconciler.run());
        tasks.spawn(cluster.clone().keep_compact());
        let groups = Arc::new(coordinator(&settings, &cluster, &registry));
        tasks.spawn(groups.clone().keep_counted());
        let shown = settings.clone();
        tasks.spawn(group::keep_lags(
            groups.clone(),
            ends_here(&cluster, &registry),
            move || shown.now().config.limits.group_lag_series,
        ));
        tasks.spawn(forget_deleted_topics(cluster.clone(), groups.clone()));
        let stopping = watch::channel(false).0;
        let services = kafka_door::Parts {
            cluster: &cluster,
            registry: &registry,
            disk: &disk,
            groups,
            settings: settings.clone(),
            bound: &bound,
        };
        let services = kafka_door::services(&config, services, stopping.subscribe());
        let as_now = &settings.now().config;
        let limits = dials::limits(as_now);
        let sampling = gauges::sample(&services, &limits, &disk);
        let dials = Dials::new(as_now, throttle, limits.clone(), services.clone());
        let (every, clock): (_, Clock) = (dials.retention_every(), Arc::new(now_ms));
        tasks.spawn(keep_retention(registry.clone(), every, clock.clone()));
        let compaction = dials.compaction();
        tasks.spawn(keep_compacted(registry.clone(), compaction, clock));
        let scrub = dials.scrub_bytes_per_second();
        tasks.spawn(keep_scrubbed(registry.clone(), scrub));
        tasks.spawn(dials.keep_bytes());
        let server = kafka_door::serve(listeners, &dials, services, &limits)?;
        tasks.spawn(dials.follow(cluster.clone(), keeper));
        health.set(Phase::Ready);
        metrics::set_ready(true);
        Ok(Node {
            bound,
            health,
            server,
            cluster,
            registry,
            disk,
            tasks,
            stopping,
            stop,
            failed,
            _sampling: sampling,
        })
    }

    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    pub fn cluster_id(&self) -> &str {
        self.cluster.cluster_id()
    }

    pub fn node_id(&self) -> i32 {
        self.cluster.node_id()
    }

    /// Resolves when this broker cannot go on and its process must end: the disk has failed, so that nothing can be
    /// acknowledged any more, the metadata says what this build does not understand, or it was recovered by force
    /// without this broker.
    pub async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        tokio::select! {
            failed = failed.wait_for(Option::is_some) => match failed {
                Ok(why) => format!("the disk has failed: {}", why.clone().unwrap_or_default()),
                Err(_) => std::future::pending().await,
            },
            outgrown = self.cluster.outgrown() => outgrown.to_string(),
            surpassed = self.cluster.surpassed() => surpassed.to_string(),
        }
    }

    /// Resolves when this broker has been decommissioned: the cluster goes on without it.
    pub async fn removed(&self) {
        self.cluster.removed().await;
    }

    /// Stops in the reverse order: what is led is handed over, no new requests, finish those in flight, sync, mark a clean stop.
    pub async fn stop(mut self, deadline: Duration) {
        let begun = Instant::now();
        self.health.set(Phase::Draining);
        cluster::hand_over_all(&self.cluster, deadline / 3).await;
        self.stopping.send_replace(true);
        self.server
            .drain(deadline.saturating_sub(begun.elapsed()))
            .await;
        self.stop.send_replace(true);
        self.tasks.shutdown().await;
        for partition in self.registry.all() {
            partition.close().await;
        }
        self.cluster.close().await;
        let disk = self.disk;
        match tokio::task::spawn_blocking(move || disk.close()).await {
            Ok(Ok(())) => info!(seconds = begun.elapsed().as_secs_f64(), "stopped cleanly"),
            Ok(Err(error)) => {
                error!(%error, "the disk was not closed cleanly; the next start recovers")
            }
            Err(error) => error!(%error, "closing the disk ended badly; the next start recovers"),
        }
    }
}

/// Elections take milliseconds; clients that come first should find leaders. Groups with other voters are
/// waited for only a moment: they may lack a majority, and others do not.
async fn wait_until_serving(registry: &Registry) {
    let (all, shared): (Vec<_>, Vec<_>) = registry.all().into_iter().partition(|p| p.is_alone());
    let led = async {
        for partition in &shared {
            partition.led().await;
        }
    };
    if tokio::time::timeout(LED_DEADLINE, led).await.is_err() {
        info!("some partitions have no leader yet");
    }
    let serving = async {
        for partition in &all {
            if let Err(error) = partition.serving(ELECTION_DEADLINE).await {
                warn!(topic = partition.topic(), partition = partition.index(), %error, "a partition does not serve yet");
            }
        }
    };
    if tokio::time::timeout(ELECTION_DEADLINE, serving)
        .await
        .is_err()
    {
        warn!("some partitions do not serve yet; requests for them are answered so");
    }
}

/// A deleted topic's offsets go with it. Those that a crash spares are not served, as their topic's id is
/// no topic's any more, and go when they expire.
async fn forget_deleted_topics(cluster: Arc<Cluster>, groups: Arc<Coordinator>) {
    let mut view = cluster.watch();
    let mut before = view.borrow_and_update().clone();
    while view.changed().await.is_ok() {
        let now = view.borrow_and_update().clone();
        let known = before.topics.keys();
        let gone: BTreeSet<_> = known
            .filter(|id| !now.topics.contains_key(id))
            .map(|id| id.to_bytes())
            .collect();
        if !gone.is_empty() {
            groups.topics_deleted(gone).await;
        }
        before = now;
    }
}

async fn open_admin(
    address: SocketAddr,
    health: &Health,
    stop: &watch::Sender<bool>,
    tasks: &mut JoinSet<()>,
) -> Result<SocketAddr, StartError> {
    let listener = AdminListener::bind(address)
        .await
        .map_err(|source| StartError::Door {
            door: "admin",
            address,
            source,
        })?;
    let bound = listener.address();
    let serving = listener.serve(health.clone(), stopped(stop.subscribe()));
    tasks.spawn(async move {
        if let Err(error) = serving.await {
            error!(%error, "the admin port ended");
        }
    });
    Ok(bound)
}

fn spawn_rpc(
    rpc: RpcListener,
    served: Served,
    others: Routes,
    stop: &watch::Sender<bool>,
    tasks: &mut JoinSet<()>,
) {
    let serving = rpc.serve(served, others, stopped(stop.subscribe()));
    tasks.spawn(async move {
        if let Err(error) = serving.await {
            error!(%error, "the rpc port ended");
        }
    });
}

/// Whether the disk takes new client data.
fn room_on(disk: &Disk) -> crate::raft::Room {
    let disk = disk.clone();
    Arc::new(move || disk.space().accepting)
}

type Failed = watch::Receiver<Option<String>>;

async fn open_disk(
    config: &Config,
    health: &Health,
    syncs: &Arc<cluster::Syncs>,
) -> Result<(Disk, Failed), StartError> {
    let path = config.node.data_dir.clone();
    let options = disk_options(&config.storage);
    let (begun, phase) = (Instant::now(), health.clone());
    let opening = tokio::task::spawn_blocking(move || {
        let said = Cell::new(begun);
        let progress = move |p: RecoveryProgress| {
            let now = Phase::Recovering {
                done: p.done_logs,
                total: p.total_logs,
                bytes: p.bytes_replayed,
            };
            phase.set(now);
            if said.get().elapsed() >= SAY_EVERY {
                said.set(Instant::now());
                info!("{now}");
            }
        };
        Disk::open(Arc::new(RealFs), &path, options, &progress).map_err(|source| StartError::Disk {
            path,
            source: Box::new(source),
        })
    });
    let disk = opening.await??;
    let (took, identity) = (begun.elapsed(), disk.identity());
    metrics::set_recovery(took);
    info!(
        seconds = took.as_secs_f64(),
        logs = disk.logs().len(),
        start = identity.start,
        clean = identity.clean_shutdown,
        "disk opened"
    );
    let (tell, failed) = watch::channel(None);
    let health = health.clone();
    let syncs = syncs.clone();
    disk.on_sync(Box::new(move |took, bytes| {
        metrics::storage_synced(took, bytes);
        syncs.took(took);
    }));
    disk.on_fatal(Box::new(move |why| {
        health.set(Phase::Failed);
        tell.send_replace(Some(why.to_owned()));
    }));
    Ok((disk, failed))
}

fn disk_options(storage: &StorageConfig) -> DiskOptions {
    let wanted = DiskOptions::default();
    DiskOptions {
        wal_budget_bytes: storage.wal_budget_bytes,
        tail_budget_bytes: storage.tail_budget_bytes,
        reserve_bytes: storage.reserve_bytes,
        checkpoint_every: storage.checkpoint_interval,
        open_segments_max: storage.open_segments_max.min(wanted.open_segments_max),
        ..wanted
    }
}

fn broker_spec(config: &Config, disk: &Disk, bound: &Bound) -> BrokerSpec {
    BrokerSpec {
        start: disk.identity().start,
        rack: config.node.rack.clone(),
        rpc_addr: advertised_rpc(config, bound),
        seeds: config.node.seeds.clone(),
        listeners: bound
            .kafka
            .iter()
            .map(|l| (l.name.clone(), l.advertised.clone()))
            .collect::<BTreeMap<_, _>>(),
    }
}

/// Where others reach this broker: an advertised port 0 means the port that was bound.
fn advertised_rpc(config: &Config, bound: &Bound) -> String {
    match &config.rpc_advertise {
        Some((host, 0)) => format!("{host}:{}", bound.rpc.port()),
        Some((host, port)) => format!("{host}:{port}"),
        None => bound.rpc.to_string(),
    }
}

fn partition_spec(
    settings: &Live,
    cluster: &Arc<Cluster>,
    claims: &Arc<Claims>,
    links: Links,
    hearing: Hearing,
) -> SpecOf {
    let heard = hearing.clone();
    let heard_by: crate::partition::HeardBy = Arc::new(move |disk| heard.is_heard_by(disk));
    let lapses: crate::partition::Lapses = Arc::new(move || hearing.lapses());
    let settings = settings.clone();
    let now = settings.clone();
    let producer_expiration_ms: crate::partition::Expiration =
        Arc::new(move || now.now().config.kafka.producer_id_expiration_ms);
    let (cluster, claims) = (cluster.clone(), claims.clone());
    let brokers = cluster.clone();
    let node_of = Arc::new(move |disk| brokers.view().node_of(disk));
    Arc::new(move |topic: &Topic, index: i32| Spec {
        topic_id: topic.id,
        topic: topic.name.clone(),
        index,
        replica: cluster.disk(),
        node_of: node_of.clone(),
        founders: topic.founders(&cluster.view(), index),
        floor: 0,
        generation: topic.generation(index),
        begins: topic.recoveries.get(&index).map_or(0, |r| r.term),
        internal: topic.internal,
        founds: topic.founder(&cluster.view(), index) == Some(cluster.disk()),
        heard_by: heard_by.clone(),
        lapses: lapses.clone(),
        timers: Timers::None,
        links: links.clone(),
        on_role: {
            let (claims, id) = (claims.clone(), topic.id);
            Arc::new(move |_| claims.due(id, index))
        },
        config: Arc::new(topic.config.over(&settings.now().topics)),
        producer_expiration_ms: producer_expiration_ms.clone(),
        clock: Arc::new(now_ms),
    })
}

/// Where partitions end, as far as their replicas here know. One that follows may not have heard yet that its
/// last entries are committed; nearly always they are.
fn ends_here(cluster: &Arc<Cluster>, registry: &Arc<Registry>) -> group::EndOf {
    let (cluster, registry) = (cluster.clone(), registry.clone());
    Arc::new(move |topic, index| {
        let id = cluster.view().topic(topic)?.id;
        let partition = registry.get(&id, index)?;
        let offsets = partition.offsets();
        Some(if partition.leadership().serving {
            offsets.high_watermark
        } else {
            offsets.log_end
        })
    })
}

fn group_limits(config: &GroupConfig) -> group::Limits {
    group::Limits {
        session_timeout_ms_min: config.min_session_timeout_ms,
        session_timeout_ms_max: config.max_session_timeout_ms,
        initial_rebalance_delay_ms: config.initial_rebalance_delay_ms,
        members_max: config.max_size,
        offsets_retention_ms: config.offsets_retention_ms,
        ..group::Limits::default()
    }
}

fn coordinator(settings: &Live, cluster: &Arc<Cluster>, registry: &Arc<Registry>) -> Coordinator {
    let metadata = cluster.clone();
    let find = move || {
        metadata
            .view()
            .topic(group::OFFSETS_TOPIC)
            .map(|t| (t.id, t.partitions.len()))
    };
    let live = settings.clone();
    let settings = group::Settings {
        limits: Arc::new(move || group_limits(&live.now().config.group)),
        expiry_interval_ms: GROUP_EXPIRY_INTERVAL_MS,
        ..group::Settings::default()
    };
    Coordinator::new(
        settings,
        Arc::new(ReplicatedOffsets::new(registry.clone(), Box::new(find))),
    )
}
