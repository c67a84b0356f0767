//! What a member keeps doing: links to the others, its card, and, where it leads, the metadata group's members and
//! the cluster's feature level.

use super::card::Card;
use super::controller::{Cluster, ask};
use super::duty::Duty;
use super::features::{FeatureLevel, Told};
use super::state::{Answer, BrokerInfo, ClusterState};
use super::voters::{Step, metadata_voters, next_step};
use crate::peers::Standing;
use crate::raft::ReplicaId;
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tracing::{debug, info, warn};

/// Leaderships that are handed over at once: each is over sooner than if all were, and syncs are still shared.
const HANDED_OVER_AT_ONCE: usize = 40;

/// How often the metadata group's members are looked at, beside every change of the brokers.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Keeps links to every registered broker, and the card that the next start begins with.
pub async fn follow_brokers(cluster: Arc<Cluster>, data_dir: PathBuf) {
    let mut view = cluster.watch();
    let mut written: Option<Card> = None;
    loop {
        view.borrow_and_update();
        let wanted = cluster.peer_addresses();
        cluster.peers.set(&wanted);
        cluster
            .leaders()
            .retain(|topic| cluster.view().topics.contains_key(topic));
        let peers = wanted
            .into_iter()
            .map(|(disk, a)| (disk, (a.node_id, a.rpc)));
        let card = Card {
            cluster_id: cluster.cluster_id().to_owned(),
            node_id: cluster.node_id(),
            peers: peers.collect::<BTreeMap<_, _>>(),
            lineage: cluster.lineage(),
            unfinished: None,
        };
        if written.as_ref() != Some(&card) {
            let (to, new) = (data_dir.clone(), card.clone());
            match tokio::task::spawn_blocking(move || new.write(&to)).await {
                Ok(Ok(())) => written = Some(card),
                Ok(Err(error)) => {
                    warn!(%error, "the card of this broker's membership stays as it was")
                }
                Err(_) => return,
            }
        }
        if view.changed().await.is_err() {
            return;
        }
    }
}

/// Hands everything that this broker leads to others that are there, the metadata last. What cannot be
/// handed over in time is taken over when this broker is gone.
pub async fn hand_over_all(cluster: &Cluster, patience: Duration) {
    let hearing = cluster.peers.hearing().clone();
    // Better a slow leader than none, at a stop.
    let there = |disk: ReplicaId| hearing.is_heard_by(disk);
    let led: Vec<_> = cluster
        .registry
        .all()
        .into_iter()
        .filter(|p| p.leadership().serving && p.members().voters.len() > 1)
        .collect();
    let all = async {
        let handed = futures_util::stream::iter(&led)
            .map(|partition| async move {
                match partition.hand_over(there).await {
                    Ok(()) => true,
                    Err(error) => {
                        debug!(topic = partition.topic(), partition = partition.index(), %error, "not handed over");
                        false
                    }
                }
            })
            .buffer_unordered(HANDED_OVER_AT_ONCE)
            .filter(|done| std::future::ready(*done))
            .count()
            .await;
        if cluster.group.role().serving {
            let members = cluster.group.members();
            let heir = members.voters.iter().find(|v| there(**v));
            if let Some(heir) = heir {
                // The others elect one of themselves if this fails.
                let _ = cluster.group.hand_over(*heir).await;
            }
        }
        handed
    };
    match tokio::time::timeout(patience, all).await {
        Ok(handed) if led.is_empty() => debug!(handed, "nothing to hand over"),
        Ok(handed) => info!(handed, of = led.len(), "leaderships handed over"),
        Err(_) => warn!(
            of = led.len(),
            "handing over took too long; the others take over what is left"
        ),
    }
}

/// Takes joined brokers into the metadata group, and raises the feature level, while this broker leads it.
pub async fn keep_metadata_members(cluster: Arc<Cluster>) {
    let mut view = cluster.watch();
    loop {
        view.borrow_and_update();
        if cluster.group.role().serving {
            step(&cluster).await;
            raise(&cluster).await;
        }
        if let Ok(Err(_)) = tokio::time::timeout(LOOK_EVERY, view.changed()).await {
            return;
        }
    }
}

async fn step(cluster: &Cluster) {
    let view = cluster.view();
    let brokers: BTreeSet<ReplicaId> = view.brokers.values().map(|b| b.replica).collect();
    let me = cluster.disk();
    if !brokers.contains(&me) {
        // Our own registration is still on its way: nobody is let go on a state that lacks ourselves.
        return;
    }
    if !cluster.group.begins_with(cluster.lineage().term) {
        // Those that were voters before a forced recovery, and are sent what was before it, would be voters again by
        // that, one of them perhaps the only one.
        if let Err(error) = cluster.compact().await {
            debug!(%error, "the metadata's log is not cut behind its recovery yet");
        }
        return;
    }
    let standings = cluster.peers.standings().borrow().clone();
    let alive = |r: ReplicaId| r == me || standings.get(&r).is_some_and(Standing::is_alive);
    let now = cluster.group.members();
    let leaving = |b: &&BrokerInfo| view.duty(b.id) == Duty::Leaving;
    let leaving: BTreeSet<ReplicaId> = view
        .brokers
        .values()
        .filter(leaving)
        .map(|b| b.replica)
        .collect();
    let staying: BTreeSet<ReplicaId> = brokers.difference(&leaving).copied().collect();
    let heir = now
        .voters
        .iter()
        .filter(|v| staying.contains(v) && alive(**v));
    let heir = heir.min_by_key(|v| now.lag(**v)).copied();
    let voters = metadata_voters(&now, &staying, me, alive);
    let learners = brokers.difference(&voters).copied().collect();
    let step = match heir {
        Some(heir) if leaving.contains(&me) => Some(Step::HandOver(heir)),
        _ => next_step(&now, &voters, &learners),
    };
    let Some(step) = step else {
        return;
    };
    let done = match step.clone() {
        Step::AddLearner(disk) => cluster.group.add_learner(disk).await,
        Step::SetVoters(voters) => cluster.group.set_voters(voters).await,
        Step::RemoveLearner(disk) => cluster.group.remove_learner(disk).await,
        Step::HandOver(heir) => cluster.group.hand_over(heir).await,
    };
    match done {
        Ok(()) => info!(?step, "metadata group changed"),
        Err(error) => debug!(?step, %error, "a change of the metadata group put off"),
    }
}

/// Raises the cluster's feature level as soon as every broker understands the next one.
pub(super) async fn raise(cluster: &Cluster) {
    let view = cluster.view();
    let Some(command) = view.next_level(cluster.build, &told(cluster, &view)) else {
        return;
    };
    // What decided on it is what admits it: our own picture, and who is connected.
    match ask(&cluster.group, &command).await {
        Ok((Answer::Done, _)) => {
            let level = cluster.view().features;
            info!(%level, "every broker understands it: the cluster's feature level is raised, a downgrade is no longer possible");
        }
        Ok((answer, _)) => debug!(?answer, "raising the feature level put off"),
        Err(error) => debug!(%error, "raising the feature level put off"),
    }
}

fn told(cluster: &Cluster, view: &ClusterState) -> Told {
    let standings = cluster.peers.standings().borrow().clone();
    let alive = standings.into_iter().filter_map(|(disk, s)| match s {
        Standing::Alive {
            start, features, ..
        } => Some((disk, (start, FeatureLevel::new(features)))),
        Standing::Unknown | Standing::Dead { .. } => None,
    });
    let us = view
        .brokers
        .values()
        .filter(|b| b.replica == cluster.disk());
    let us = us.map(|b| (b.replica, (b.start, cluster.build)));
    alive.chain(us).collect()
}
