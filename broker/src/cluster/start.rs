//! From a disk to a member of a cluster: found one, join one, or come back to one's own.
//!
//! Promise: an empty broker with seeds founds only what [`formation`] allows; a broker with a card
//! goes back to that cluster and to no other; an older copy of a disk never takes part.
//! Not here: what a member does from then on.

use super::back::back;
use super::card::{Card, CardError};
use super::controller::{ANSWER_DEADLINE, BrokerSpec, Cluster};
use super::door::Door;
use super::features::FeatureLevel;
use super::formation::{Heard, Verdict, decide};
use super::keep::raise;
use super::lineage::{Lineage, Surpassed};
use super::metadata::{METADATA_TOPIC, Metadata, Outgrown, View};
use super::state::{Answer, BrokerInfo, Command, Refusal, UNASSIGNED};
use super::vetting::tell_acknowledged;
use crate::partition::Registry;
use crate::peers::{Address, Client, Peers, Standing, replica_of};
use crate::raft::{Group, GroupSpec, Links, OpenError, ProposeError, ReplicaId, Timers, unstamped};
use crate::settings::Live;
use logd_proto::rpc::v1::{self as rpc, IdentifyRequest, JoinRequest};
use logd_storage::{Disk, Log, LogKey, LogOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::info;

/// Seeds are asked this often.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(300);

/// What holds a start up is said this often.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// How long a seed may take to answer.
const SEED_PATIENCE: Duration = Duration::from_secs(2);

/// How long a member that comes back waits to meet another before it registers.
const INTRODUCTION: Duration = Duration::from_secs(2);

/// How long a join may take, including a proposal on the other side.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Group(#[from] OpenError),
    #[error(transparent)]
    Card(#[from] CardError),
    #[error("the metadata log cannot be opened: {0}")]
    Log(String),
    #[error("the metadata group does not answer: {0}")]
    Metadata(#[from] ProposeError),
    #[error("the metadata group refused: {0}")]
    Refused(Refusal),
    #[error("the cluster does not take this broker in: {0}")]
    NotTakenIn(String),
    #[error(
        "the seeds belong to different clusters ({0}): node.seeds must name brokers of one cluster"
    )]
    Split(String),
    #[error(
        "this data directory belongs to cluster {ours}, but seed {seed} to cluster {theirs}: give it the right \
         seeds, or an empty data directory"
    )]
    OtherCluster {
        ours: String,
        seed: String,
        theirs: String,
    },
    #[error(transparent)]
    Outgrown(#[from] Outgrown),
    #[error(transparent)]
    Surpassed(#[from] Surpassed),
    #[error(
        "a recovery of the metadata group was begun on this data directory and is not finished: run `logd \
         recover-metadata --accept-data-loss` again, with the same settings"
    )]
    Unfinished,
    #[error("unexpected answer of the metadata group: {0:?}")]
    Answer(Answer),
}

/// What a start needs from its surroundings.
pub struct Surroundings {
    pub disk: Disk,
    pub data_dir: PathBuf,
    pub registry: Arc<Registry>,
    pub reconciled: watch::Receiver<u64>,
    pub door: Arc<Door>,
    pub peers: Peers,
    pub links: Links,
    pub settings: Live,
}

/// How this broker comes to its cluster.
pub(super) enum Way {
    /// It is the cluster's first and only member.
    Found,
    /// It was taken in just now, as of this entry.
    Joined { card: Card, index: u64 },
    /// It has been a member before.
    Back(Card),
    /// A disk of a broker that was alone before there were cards.
    Alone,
}

/// Comes back as soon as this broker is a registered member whose state is up to date.
///
/// # Errors
/// What keeps it from being one for good. What may pass is waited for, and said.
pub async fn start(spec: BrokerSpec, around: Surroundings) -> Result<Arc<Cluster>, StartError> {
    let card = Card::read(&around.data_dir)?;
    let me = around.door.disk();
    let way = match card {
        Some(card) => back(&spec, &around, card).await?,
        None => first(&spec, &around).await?,
    };
    if let Way::Joined { card, .. } | Way::Back(card) = &way {
        // Before it is said to be of the cluster: it must not be taken for what it was.
        around.door.descends_from(card.lineage);
        around.door.belongs_to(&card.cluster_id, Some(card.node_id));
        around.peers.set(&addresses(card));
    }
    let (log, lineage) = (open_log(&around)?, around.door.lineage());
    if !lineage.is_first() {
        let Lineage {
            generation,
            survivor,
            ..
        } = lineage;
        info!(
            generation,
            survivor, "opening metadata that was recovered by force"
        );
    }
    around.door.vetting().among(&around.peers);
    let (metadata, view) = Metadata::new(around.door.build());
    let group = GroupSpec {
        name: "metadata".into(),
        replica: me,
        founders: matches!(way, Way::Found).then(|| BTreeSet::from([me])),
        stamp: unstamped,
        timers: Timers::Own,
        floor: 0,
        generation: lineage.generation,
        begins: lineage.term,
        client_data: false,
        links: around.links.clone(),
        on_role: Arc::new(|_| {}),
    };
    let group = Group::open(group, log, metadata).await?;
    let id = match &way {
        Way::Joined { card, .. } | Way::Back(card) => card.cluster_id.clone(),
        Way::Found | Way::Alone => founded(&group, &view).await?,
    };
    around.door.belongs_to(&id, None);
    let cluster = Arc::new(Cluster::new(id, group, view, &around));
    around.door.open(&cluster);
    let node_id = tokio::select! {
        biased;
        // It ends the metadata group, and says better why.
        outgrown = cluster.outgrown() => return Err(outgrown.into()),
        registered = register(&cluster, &spec, &around, way) => registered?,
        start = overtaken(&around.door) => return Err(old_disk(&around, start)),
        surpassed = around.door.surpassed() => return Err(surpassed.into()),
        // After a restart of all nobody votes before everybody has said that.
        () = tell_acknowledged(cluster.clone(), around.registry.clone()) => {
            return Err(ProposeError::Stopped("the links to peers are gone".into()).into());
        }
    };
    cluster.settle(node_id);
    if cluster.group.role().serving {
        // Whoever founds a cluster serves nobody before what its build brings can be used.
        raise(&cluster).await;
    }
    around.door.belongs_to(cluster.cluster_id(), Some(node_id));
    let state = cluster.view();
    info!(
        cluster_id = cluster.cluster_id(),
        node_id,
        brokers = state.brokers.len(),
        topics = state.topics.len(),
        partitions = state.partitions(),
        "metadata loaded"
    );
    Ok(cluster)
}

pub(super) fn open_log(around: &Surroundings) -> Result<Log, StartError> {
    let key = LogKey {
        topic: METADATA_TOPIC,
        partition: 0,
    };
    let log = around.disk.open_log(key, LogOptions::default());
    log.map_err(|e| StartError::Log(e.to_string()))
}

/// A broker that has never been a member, or was alone before there were cards.
async fn first(spec: &BrokerSpec, around: &Surroundings) -> Result<Way, StartError> {
    let log = open_log(around)?;
    let empty = log.bounds().last.is_none() && log.vote().is_none();
    match (empty, spec.seeds.is_empty()) {
        (false, _) => Ok(Way::Alone),
        (true, true) => Ok(Way::Found),
        (true, false) => form(spec, around).await,
    }
}

fn addresses(card: &Card) -> BTreeMap<ReplicaId, Address> {
    let address = |(disk, (node, rpc)): (&ReplicaId, &(i32, String))| {
        let (node_id, rpc) = (*node, rpc.clone());
        (*disk, Address { node_id, rpc })
    };
    card.peers.iter().map(address).collect()
}

fn old_disk(around: &Surroundings, known: u64) -> StartError {
    let start = around.disk.identity().start;
    StartError::Refused(Refusal::OldDisk { start, known })
}

async fn overtaken(door: &Door) -> u64 {
    let mut overtaken = door.overtaken();
    match overtaken.wait_for(Option::is_some).await {
        Ok(start) => start.unwrap_or(0),
        Err(_) => std::future::pending().await,
    }
}

async fn founded(group: &Group<Metadata>, view: &View) -> Result<String, StartError> {
    group.serving(ANSWER_DEADLINE).await?;
    let state = view.borrow().clone();
    if let Some(id) = &state.cluster {
        return Ok(id.clone());
    }
    let id = super::controller::base64_url(uuid::Uuid::new_v4().as_bytes());
    let cluster = id.clone();
    match super::controller::ask(group, &Command::Found { cluster })
        .await?
        .0
    {
        Answer::Refused(Refusal::Founded(born)) => Ok(born),
        Answer::Refused(other) => Err(StartError::Refused(other)),
        _ => {
            info!(cluster_id = id, "cluster founded");
            Ok(id)
        }
    }
}

/// Asks the seeds until it is clear what to do.
async fn form(spec: &BrokerSpec, around: &Surroundings) -> Result<Way, StartError> {
    let me = around.door.disk();
    let mut said = None;
    loop {
        let answers = ask_all(spec.seeds.clone(), around).await;
        let why = match decide(me, &answers) {
            Verdict::Found => return Ok(Way::Found),
            Verdict::Split(clusters) => return Err(StartError::Split(clusters)),
            Verdict::Join(address) => match join(spec, around, &address).await {
                Ok((card, index)) => {
                    card.write(&around.data_dir)?;
                    return Ok(Way::Joined { card, index });
                }
                Err(Unjoined::Refused(why)) => return Err(StartError::NotTakenIn(why)),
                Err(Unjoined::NotNow(why)) => why,
            },
            Verdict::Wait(why) => why,
        };
        say(&mut said, &why);
        sleep(ASK_EVERY).await;
    }
}

pub(super) fn say(said: &mut Option<Instant>, why: &str) {
    if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
        info!("waiting for {why}");
        *said = Some(Instant::now());
    }
}

/// What is said at each address, or why nothing is.
pub(super) type Answers = Vec<(String, Result<Heard, String>)>;

pub(super) async fn ask_all(addresses: Vec<String>, around: &Surroundings) -> Answers {
    let caller = crate::peers::Household::identity(&*around.door);
    let asked = addresses.into_iter().map(|address| {
        let caller = Some(caller.clone());
        async move {
            let answer = introduce(&address, caller).await;
            (address, answer)
        }
    });
    futures_util::future::join_all(asked).await
}

/// Asks who is at an address.
pub(super) async fn introduce(
    address: &str,
    caller: Option<rpc::Identity>,
) -> Result<Heard, String> {
    let client = Client::connect(address).await.map_err(|e| e.to_string())?;
    let answer = client
        .identify(IdentifyRequest { caller }, SEED_PATIENCE)
        .await;
    let broker = answer.map_err(|e| e.to_string())?.broker;
    let broker = broker.ok_or("it does not say who it is")?;
    let disk = <[u8; 16]>::try_from(&broker.disk_incarnation[..])
        .map_err(|_| "it does not say which disk it has")?;
    Ok(Heard {
        disk: replica_of(u128::from_be_bytes(disk)),
        cluster_id: broker.cluster_id,
        seeds: broker.seeds,
        features: FeatureLevel::new(broker.feature_level),
        lineage: Lineage::of(broker.lineage),
        metadata_led: broker.metadata_led,
    })
}

pub(super) enum Unjoined {
    Refused(String),
    NotNow(String),
}

pub(super) async fn join(
    spec: &BrokerSpec,
    around: &Surroundings,
    address: &str,
) -> Result<(Card, u64), Unjoined> {
    let not_now = |e: crate::peers::RpcError| Unjoined::NotNow(e.to_string());
    let client = Client::connect(address).await.map_err(not_now)?;
    let listeners = spec
        .listeners
        .iter()
        .map(|(name, (host, port))| rpc::Listener {
            name: name.clone(),
            host: host.clone(),
            port: u32::from(*port),
        });
    around.door.registering();
    let request = JoinRequest {
        caller: Some(crate::peers::Household::identity(&*around.door)),
        rpc_address: spec.rpc_addr.clone(),
        rack: spec.rack.clone().unwrap_or_default(),
        listeners: listeners.collect(),
    };
    let answer = client.join(request, JOIN_PATIENCE).await.map_err(not_now)?;
    if !answer.refused.is_empty() {
        return Err(Unjoined::Refused(answer.refused));
    }
    // Whoever took us in is reached by its disk; the rest comes with the metadata.
    let caller = Some(crate::peers::Household::identity(&*around.door));
    let heard = introduce(address, caller).await;
    let heard = heard.map_err(Unjoined::NotNow)?;
    let card = Card {
        cluster_id: answer.cluster_id,
        node_id: answer.node_id,
        peers: BTreeMap::from([(heard.disk, (UNASSIGNED, address.to_owned()))]),
        lineage: heard.lineage,
        unfinished: None,
    };
    info!(
        cluster_id = card.cluster_id,
        node_id = card.node_id,
        by = address,
        "taken in"
    );
    Ok((card, answer.index))
}

/// Tells the cluster where this broker is now, and waits until this broker knows that itself.
async fn register(
    cluster: &Arc<Cluster>,
    spec: &BrokerSpec,
    around: &Surroundings,
    way: Way,
) -> Result<i32, StartError> {
    let info = BrokerInfo {
        id: UNASSIGNED,
        replica: around.door.disk(),
        start: spec.start,
        rack: spec.rack.clone(),
        listeners: spec.listeners.clone(),
        rpc: spec.rpc_addr.clone(),
        features: around.door.build(),
    };
    let mut said = None;
    let index = if let Way::Joined { index, .. } = way {
        index
    } else {
        introduced(around).await;
        around.door.registering();
        loop {
            match cluster
                .propose_indexed(&Command::RegisterBroker(info.clone()))
                .await
            {
                Ok((Answer::Registered { .. }, index)) => break index,
                Ok((Answer::Refused(why), _)) => return Err(StartError::Refused(why)),
                Ok((other, _)) => return Err(StartError::Answer(other)),
                Err(ProposeError::Stopped(why)) => return Err(ProposeError::Stopped(why).into()),
                Err(error) => say(
                    &mut said,
                    &format!("a majority of the metadata group ({error})"),
                ),
            }
            follow(cluster, around);
            sleep(ASK_EVERY).await;
        }
    };
    let mut view = cluster.watch();
    loop {
        follow(cluster, around);
        let state = view.borrow_and_update().clone();
        let ours = state.brokers.values().find(|b| b.replica == info.replica);
        if let Some(ours) = ours.filter(|b| state.applied >= index && b.start >= info.start) {
            return Ok(ours.id);
        }
        let changed = tokio::time::timeout(SAY_EVERY, view.changed()).await;
        if let Ok(Err(_)) = changed {
            return Err(ProposeError::Stopped("the metadata group is gone".into()).into());
        }
        if changed.is_err() {
            info!(
                applied = state.applied,
                index, "waiting for the metadata to be up to date"
            );
        }
    }
}

/// Introductions come first: whoever knows this start of our disk, or a later one, says so there. Where
/// nobody is met there is nobody to vote with either.
async fn introduced(around: &Surroundings) {
    let mut standings = around.peers.standings();
    let met = standings.wait_for(|all| all.is_empty() || all.values().any(Standing::is_alive));
    // The registration itself is refused too, if it comes to that.
    let _ = tokio::time::timeout(INTRODUCTION, met).await;
}

/// Keeps links to whom the state names. Before it names anybody, the card's stay.
pub(super) fn follow(cluster: &Cluster, around: &Surroundings) {
    let wanted = cluster.peer_addresses();
    if !wanted.is_empty() {
        around.peers.set(&wanted);
    }
}
