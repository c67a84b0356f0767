//! An upgrade of a cluster, one broker at a time: real disks, sockets and metadata, builds of one's choice.
//!
//! A process has the build that it is, so these brokers are parts of one that come to their cluster as a process
//! does. Each has a runtime of its own: when it stops, everything of it is gone at once.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use common::members::{place, until};
use futures_util::future::BoxFuture;
use logd::cluster::{
    self, Answer, BUILD, BrokerSpec, Cluster, Command, Door, FeatureLevel, Leaders, Refusal,
    StartError, Surroundings, Vetting,
};
use logd::config::{Config, Raw};
use logd::partition::Registry;
use logd::peers::{Address, Hearing, Household, Peers, RpcListener, Served, Standing};
use logd::raft::{Exchange, Links, ReplicaId, Throttle};
use logd::settings::Keeper;
use logd_proto::rpc::v1 as rpc;
use logd_proto::rpc::v1::broker_client::BrokerClient;
use logd_proto::rpc::v1::envelope::Body;
use logd_storage::vfs::RealFs;
use logd_storage::{Captured, Disk, DiskOptions, StateSource};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::service::Routes;

/// How long a broker's tasks may take to end.
const END: Duration = Duration::from_secs(5);

/// Where a broker is, and what it finds there when it starts.
struct Home {
    data: tempfile::TempDir,
    rpc: SocketAddr,
}

impl Home {
    fn new() -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let [_, _, rpc] = place();
        Self { data, rpc }
    }
}

struct Broker {
    runtime: Runtime,
    disk: Disk,
    cluster: Arc<Cluster>,
}

struct Nobody;

impl StateSource for Nobody {
    fn capture(&self) -> Option<Captured> {
        None
    }
}

/// Closes a disk whose owners are gone, or are about to be.
fn close(disk: Disk, runtime: Runtime) {
    let closed = disk.clone().close();
    runtime.shutdown_timeout(END);
    // A log and its owner hold each other; a process that ends does not mind, ours goes on.
    for log in disk.logs().into_iter().filter_map(|k| disk.log(k)) {
        log.set_state_source(Arc::new(Nobody));
    }
    closed.expect("a clean end");
}

impl Broker {
    /// A start of this build; what keeps it from being a member for good.
    fn start(home: &Home, build: FeatureLevel, seeds: &[SocketAddr]) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (fs, root) = (Arc::new(RealFs), home.data.path());
        let disk = Disk::open(fs, root, DiskOptions::default(), &|_| {}).expect("a disk");
        match runtime.block_on(come(home, build, seeds, &disk)) {
            Ok(cluster) => Ok(Self {
                runtime,
                disk,
                cluster,
            }),
            Err(error) => {
                close(disk, runtime);
                Err(error)
            }
        }
    }

    fn stop(self) {
        self.runtime.block_on(self.cluster.close());
        drop(self.cluster);
        close(self.disk, self.runtime);
    }

    fn level(&self) -> FeatureLevel {
        self.cluster.view().features
    }

    /// Asks whoever leads the metadata for the next level. It is a command that only newer builds understand.
    fn raise_to(&self, level: FeatureLevel) -> Answer {
        let starts = BTreeMap::new();
        let command = Command::RaiseFeatureLevel { level, starts };
        let answer = self.runtime.block_on(self.cluster.propose(command));
        answer.expect("an answer")
    }
}

/// Comes to its cluster as `node` has it.
async fn come(
    home: &Home,
    build: FeatureLevel,
    seeds: &[SocketAddr],
    disk: &Disk,
) -> Result<Arc<Cluster>, StartError> {
    let data_dir = home.data.path().to_owned();
    let seeds: Vec<String> = seeds.iter().map(ToString::to_string).collect();
    let (identity, leaders) = (disk.identity(), Arc::new(Leaders::default()));
    let vetting = Vetting::new(disk.clone(), data_dir.clone());
    let (id, start) = (identity.id, identity.start);
    let door = Door::new(build, id, start, seeds.clone(), leaders, vetting.clone());
    let hearing = Hearing::default();
    let heard = hearing.clone();
    let exchange = Exchange::new(
        Arc::new(move |disk| heard.hears(disk)),
        Arc::new(move || vetting.is_done()),
        Arc::new(|| true),
    );
    let served = Served {
        household: door.clone(),
        hearing: hearing.clone(),
        exchange: exchange.clone(),
    };
    let rpc = RpcListener::bind(home.rpc).await.expect("its port");
    tokio::spawn(rpc.serve(served, Routes::default(), std::future::pending()));
    let peers = Peers::new(door.clone(), hearing);
    let links = Links {
        transport: Arc::new(peers.clone()),
        exchange,
        throttle: Throttle::new(0),
    };
    let registry = Arc::new(Registry::default());
    let config = Config::try_from(Raw::default()).expect("settings");
    let around = Surroundings {
        disk: disk.clone(),
        data_dir: data_dir.clone(),
        registry: registry.clone(),
        reconciled: watch::channel(0).1,
        door,
        peers,
        links,
        settings: Keeper::new(config).1,
    };
    let spec = BrokerSpec {
        start,
        rack: None,
        rpc_addr: home.rpc.to_string(),
        seeds,
        listeners: BTreeMap::new(),
    };
    let cluster = cluster::start(spec, around).await?;
    tokio::spawn(cluster::follow_brokers(cluster.clone(), data_dir));
    tokio::spawn(cluster::keep_metadata_members(cluster.clone()));
    tokio::spawn(cluster::tell_acknowledged(cluster.clone(), registry));
    Ok(cluster)
}

/// Three brokers of one build that have founded a cluster, all of them voters on its metadata: any of them can
/// be away.
fn found(homes: &[Home], build: FeatureLevel, seeds: &[SocketAddr]) -> Vec<Broker> {
    let start = |home| Broker::start(home, build, seeds).expect("a start");
    let brokers: Vec<Broker> = std::thread::scope(|scope| {
        let starts: Vec<_> = homes.iter().map(|h| scope.spawn(|| start(h))).collect();
        let starts = starts.into_iter();
        starts.map(|s| s.join().expect("a broker")).collect()
    });
    until("all vote", || {
        let quorums = brokers
            .iter()
            .map(|b| b.runtime.block_on(b.cluster.quorum()));
        let mut quorums = quorums.flatten();
        quorums.any(|q| q.members.iter().filter(|m| m.votes).count() == homes.len())
    });
    brokers
}

/// Everything a broker's start can say, as its operator reads it.
fn refusal(started: Result<Broker, StartError>) -> String {
    match started {
        Err(error) => error.to_string(),
        Ok(broker) => panic!(
            "it came to its cluster as broker {}",
            broker.cluster.node_id()
        ),
    }
}

fn explains(why: &str, build: FeatureLevel, level: FeatureLevel) {
    let build = format!("understands feature level {build},");
    let level = format!("cluster is at level {level}:");
    for said in [
        &build,
        &level,
        "a downgrade is not possible",
        "newer binary",
    ] {
        assert!(why.contains(said), "{why}");
    }
}

fn an_upgrade(old: FeatureLevel, new: FeatureLevel) {
    let homes = [Home::new(), Home::new(), Home::new()];
    let seeds: Vec<SocketAddr> = homes.iter().map(|h| h.rpc).collect();
    let mut brokers = found(&homes, old, &seeds);
    until("all are at the old level", || {
        brokers.iter().all(|b| b.level() == old)
    });

    let last = brokers.pop().expect("three");
    brokers = (homes.iter().zip(brokers))
        .map(|(home, broker)| {
            broker.stop();
            Broker::start(home, new, &seeds).expect("an upgrade")
        })
        .collect();
    let held_by = last.cluster.node_id();
    // Whoever passes a command on goes by its own picture, too: an older leader could not read it.
    let knows = |broker: &Broker| {
        let state = broker.cluster.view();
        let older = state.brokers.values().filter(|b| b.features < new);
        older.count() == 1
    };
    until("all know of the upgrades", || {
        brokers.iter().chain([&last]).all(knows)
    });
    // Whoever leads: two of these three ask another broker.
    for broker in brokers.iter().chain([&last]) {
        match broker.raise_to(new) {
            Answer::Refused(Refusal::AboveLevel(why)) => {
                assert_eq!((why.needed, why.level), (new, old));
                assert_eq!(why.older, BTreeMap::from([(held_by, old)]), "{why}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(broker.level(), old);
    }

    last.stop();
    let upgraded = Broker::start(&homes[2], new, &seeds).expect("an upgrade");
    brokers.push(upgraded);
    until("all are at the new level", || {
        brokers.iter().all(|b| b.level() == new)
    });
    for broker in &brokers {
        assert_eq!(broker.raise_to(new), Answer::Done);
    }

    brokers.pop().expect("three").stop();
    // Told by a seed, before anything else.
    let back = Broker::start(&homes[2], old, &seeds);
    explains(&refusal(back), old, new);
    // What it knows itself is enough.
    explains(&refusal(Broker::start(&homes[2], old, &[])), old, new);
    let stranger = Broker::start(&Home::new(), old, &seeds);
    explains(&refusal(stranger), old, new);

    let again = Broker::start(&homes[2], new, &seeds).expect("the newer binary");
    assert_eq!(again.cluster.node_id(), held_by);
    brokers.push(again);
    brokers.into_iter().for_each(Broker::stop);
}

#[test]
fn brokers_from_before_there_were_levels_are_upgraded_one_by_one() {
    an_upgrade(FeatureLevel::FIRST, BUILD);
}

#[test]
fn this_build_is_the_older_one_once() {
    an_upgrade(BUILD, FeatureLevel::new(BUILD.number() + 1));
}

/// A broker of this cluster and build, as far as it says.
struct Caller(rpc::Identity);

impl Household for Caller {
    fn identity(&self) -> rpc::Identity {
        self.0.clone()
    }

    fn known_start(&self, _: ReplicaId) -> u64 {
        0
    }

    fn known_of_us(&self, _: u64) {}

    fn surpassed_by(&self, _: u32) {}

    fn join(&self, _: rpc::JoinRequest) -> BoxFuture<'static, rpc::JoinResponse> {
        Box::pin(std::future::ready(rpc::JoinResponse::default()))
    }

    fn propose(&self, _: rpc::ProposeRequest) -> BoxFuture<'static, rpc::ProposeResponse> {
        Box::pin(std::future::ready(rpc::ProposeResponse::default()))
    }

    fn leaders(&self, _: rpc::Leaders) {}

    fn outlooks(&self, _: rpc::Orphans) -> rpc::Outlooks {
        rpc::Outlooks::default()
    }

    fn acknowledged(&self, _: ReplicaId, _: rpc::Acknowledged) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    fn asked(&self, _: Body) -> Option<BoxFuture<'static, Body>> {
        None
    }
}

/// What comes of a connection to this broker from one whose build understands so much, of a cluster at a level.
async fn connected(to: &Cluster, rpc: String, build: u32, level: u32) -> Standing {
    let caller = Caller(rpc::Identity {
        cluster_id: to.cluster_id().to_owned(),
        protocol_version: 1,
        protocol_version_min: 1,
        feature_version: build,
        feature_level: level,
        start: 1,
        ..rpc::Identity::default()
    });
    let peers = Peers::new(Arc::new(caller), Hearing::default());
    let node_id = to.node_id();
    peers.set(&BTreeMap::from([(to.disk(), Address { node_id, rpc })]));
    let mut standings = peers.standings();
    let known = standings.wait_for(|all| all.get(&to.disk()) != Some(&Standing::Unknown));
    let known = tokio::time::timeout(common::PATIENCE, known).await;
    let known = known.expect("an end").expect("a link");
    known[&to.disk()].clone()
}

/// How a broker that does not say what it understands is let in: it is from before there were levels.
async fn silent_caller(to: &Cluster, rpc: &str) -> Result<(), String> {
    let client = BrokerClient::connect(format!("http://{rpc}")).await;
    let mut request = tonic::Request::new(futures_util::stream::pending());
    let headers = [
        ("logd-cluster", to.cluster_id()),
        ("logd-disk", "5"),
        ("logd-start", "1"),
    ];
    for (name, value) in headers {
        let value = value.parse().expect("a value");
        request.metadata_mut().insert(name, value);
    }
    let opened = client.expect("it accepts").exchange(request).await;
    opened.map(drop).map_err(|s| s.message().to_owned())
}

#[test]
fn whoever_is_below_the_others_level_is_not_connected_to() {
    let home = Home::new();
    let broker = Broker::start(&home, BUILD, &[]).expect("a broker that is alone");
    until("it is at its own level", || broker.level() == BUILD);
    let (rpc, cluster) = (home.rpc.to_string(), broker.cluster.clone());
    let build = BUILD.number();
    let connected = |build, level| {
        let standing = connected(&cluster, rpc.clone(), build, level);
        match broker.runtime.block_on(standing) {
            Standing::Dead { why } => Err(why),
            Standing::Alive { features, .. } => Ok(features),
            Standing::Unknown => panic!("nothing came of it"),
        }
    };
    assert_eq!(connected(build, build), Ok(build));
    assert_eq!(
        connected(build + 1, build),
        Ok(build),
        "newer, and not used"
    );
    let too_old = connected(build - 1, 0).expect_err("it is below");
    explains(&too_old, FeatureLevel::new(build - 1), BUILD);
    // The other way: this one is below what calls.
    let next = FeatureLevel::new(build + 1);
    let too_new = connected(build + 1, build + 1).expect_err("it is above");
    explains(&too_new, BUILD, next);
    let silent = broker.runtime.block_on(silent_caller(&cluster, &rpc));
    explains(
        &silent.expect_err("it is of the first"),
        FeatureLevel::FIRST,
        BUILD,
    );
    drop(cluster);
    broker.stop();
}
