//! Finding leaders for groups that have lost theirs.
//!
//! Partition groups have no timers: an idle one costs nothing, and notices nothing. This watches the
//! brokers instead. When one is dead, or has restarted, the groups it led are orphans; so is every group
//! after a full restart. Those who vote in an orphan tell each other how long their logs are, in one
//! message per pair of brokers, and the one with the longest log asks for the votes.
//! Invariant: this only ever starts elections. Who wins, and that an entry which was acknowledged
//! survives, is Raft's; that a leader others still hear is not deposed, is the exchange's.
//! A replica that is written again after damage asks in the same way, so that its leader notices.
//! Not here: who is dead (`peers`), the metadata group (it has timers).

use super::controller::Cluster;
use crate::partition::{Partition, Registry};
use crate::peers::{Standing, Standings};
use crate::raft::{CallError, Outlook, ReplicaId};
use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use logd_proto::Uuid;
use logd_proto::rpc::v1 as rpc;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tracing::{debug, info};

/// Elections at once: each costs a few messages and a vote on the disk, which share syncs.
const AT_ONCE: usize = 256;

/// How long the others may take to say how long their logs are. Who does not answer does not vote either.
const PATIENCE: Duration = Duration::from_millis(500);

/// Groups in one question.
const GROUPS_MAX: usize = 4_096;

/// Orphans that are still without a leader are looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// With nothing to do it is looked this often whether a group has lost its leader unnoticed.
const LOOK_ROUND: Duration = Duration::from_secs(2);

/// However many partitions there are: nobody writes to a group without a leader.
const LOOK_ROUND_MAX: Duration = Duration::from_secs(4);

/// A group that nobody has founded is left to its founder for this long.
const FOUNDER_FIRST: Duration = Duration::from_secs(3);

/// What somebody who may lead has to show. The greatest leads: the longest log, then one that can step
/// over leases at once, then the preferred order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    last: (u64, u64),
    seasoned: bool,
    preference: std::cmp::Reverse<usize>,
}

/// Who should ask for the votes; `None` if somebody leads.
fn choose(candidates: &[(ReplicaId, Outlook, usize)], led: bool) -> Option<ReplicaId> {
    let claim = |(_, outlook, preference): &&(ReplicaId, Outlook, usize)| Claim {
        last: outlook.last,
        seasoned: !outlook.fresh,
        preference: std::cmp::Reverse(*preference),
    };
    let voters = candidates.iter().filter(|(_, o, _)| o.votes);
    let best = voters.max_by_key(claim)?;
    (!led).then_some(best.0)
}

/// What this broker knows of groups that another one holds to be without a leader.
pub fn outlooks(
    registry: &Registry,
    hears: impl Fn(ReplicaId) -> bool,
    vetted: bool,
    orphans: &rpc::Orphans,
) -> rpc::Outlooks {
    let one = |group: &rpc::GroupId| {
        let topic = <[u8; 16]>::try_from(&group.topic_id[..]).ok()?;
        let index = group.partition as i32;
        let partition = registry.get(&Uuid::from_bytes(topic), index)?;
        match partition.generation().cmp(&group.generation) {
            // Their group is no more, which they will learn. Until then they had better elect nobody.
            Ordering::Greater => {
                return Some(rpc::Outlook {
                    led: true,
                    ..rpc::Outlook::default()
                });
            }
            Ordering::Less => return None,
            Ordering::Equal => {}
        }
        // Who asks does not lead, whatever was known of it.
        partition.abandoned_by(orphans.disk);
        let outlook = partition.outlook();
        if outlook.leads {
            // A member does not know that we lead, or lacks what we believe it has: a word from us mends both.
            tokio::spawn(async move {
                if let Err(error) = partition.hail().await {
                    debug!(%error, "no word to a member that misses us");
                }
            });
            return Some(rpc::Outlook {
                led: true,
                term: outlook.term,
                ..rpc::Outlook::default()
            });
        }
        let last = (outlook.last != (0, 0)).then_some(rpc::LogId {
            term: outlook.last.0,
            index: outlook.last.1,
        });
        Some(rpc::Outlook {
            votes: vetted && (outlook.votes || partition.may_found()),
            led: outlook.leader.is_some_and(&hears),
            term: outlook.term,
            last,
            fresh: outlook.fresh,
        })
    };
    let outlooks = orphans.groups.iter().map(|g| one(g).unwrap_or_default());
    rpc::Outlooks {
        outlooks: outlooks.collect(),
    }
}

fn outlook_of(said: &rpc::Outlook) -> Outlook {
    Outlook {
        votes: said.votes,
        leader: None,
        leads: false,
        term: said.term,
        last: said.last.map_or((0, 0), |id| (id.term, id.index)),
        fresh: said.fresh,
    }
}

/// The other brokers, as far as a takeover needs them.
pub trait Neighbours: Send + Sync + 'static {
    /// This broker's disk.
    fn disk(&self) -> ReplicaId;

    /// This broker's disk may vote.
    fn vetted(&self) -> bool;

    fn standings(&self) -> watch::Receiver<Standings>;

    /// Asks what groups that seem to have no leader look like over there.
    fn outlooks(
        &self,
        of: ReplicaId,
        orphans: rpc::Orphans,
        patience: Duration,
    ) -> BoxFuture<'static, Result<rpc::Outlooks, CallError>>;

    /// The disks of a partition's target replicas, the preferred leader's first.
    fn preference(&self, partition: &Partition) -> Vec<ReplicaId>;
}

impl Neighbours for Cluster {
    fn disk(&self) -> ReplicaId {
        Cluster::disk(self)
    }

    fn vetted(&self) -> bool {
        self.vetting.is_done()
    }

    fn standings(&self) -> watch::Receiver<Standings> {
        self.peers.standings()
    }

    fn outlooks(
        &self,
        of: ReplicaId,
        orphans: rpc::Orphans,
        patience: Duration,
    ) -> BoxFuture<'static, Result<rpc::Outlooks, CallError>> {
        let peers = self.peers.clone();
        Box::pin(async move { peers.outlooks(of, orphans, patience).await })
    }

    fn preference(&self, partition: &Partition) -> Vec<ReplicaId> {
        let view = self.view();
        let topic = view.topic_by_id(&partition.topic_id());
        let replicas = topic.and_then(|t| t.partitions.get(partition.index() as usize));
        let disk = |node: &i32| view.brokers.get(node).map(|b| b.replica);
        replicas.into_iter().flatten().filter_map(disk).collect()
    }
}

/// Looks after the partitions of this broker until it is dropped.
pub struct Takeover {
    pub neighbours: Arc<dyn Neighbours>,
    pub registry: Arc<Registry>,
}

struct Orphan {
    partition: Arc<Partition>,
    own: Outlook,
}

impl Takeover {
    pub async fn run(self) {
        let mut standings = self.neighbours.standings();
        let mut starts: BTreeMap<ReplicaId, u64> = BTreeMap::new();
        let mut since: BTreeMap<(Uuid, i32), Instant> = BTreeMap::new();
        let room = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let now = standings.borrow_and_update().clone();
            self.note_restarts(&now, &mut starts);
            let orphans = self.orphans(&now);
            let known = std::mem::take(&mut since);
            for key in orphans.iter().map(Orphan::key) {
                let from = known.get(&key).copied();
                since.insert(key, from.unwrap_or_else(Instant::now));
            }
            let any = !orphans.is_empty();
            if any && self.neighbours.vetted() {
                for part in orphans.chunks(GROUPS_MAX) {
                    self.settle(part, &now, &since, &room).await;
                }
            }
            let again = if any {
                LOOK_AGAIN
            } else {
                self.registry.pause(LOOK_ROUND).min(LOOK_ROUND_MAX)
            };
            if let Ok(Err(_)) = tokio::time::timeout(again, standings.changed()).await {
                return;
            }
        }
    }

    /// A process that has restarted leads nothing that it led before.
    fn note_restarts(&self, now: &Standings, starts: &mut BTreeMap<ReplicaId, u64>) {
        for (disk, standing) in now {
            let Standing::Alive { start, .. } = standing else {
                continue;
            };
            if starts
                .insert(*disk, *start)
                .is_some_and(|before| before < *start)
            {
                info!(
                    disk,
                    start, "a peer has restarted; what it led has no leader"
                );
                for partition in self.registry.all() {
                    partition.abandoned_by(*disk);
                }
            }
        }
    }

    fn orphans(&self, standings: &Standings) -> Vec<Orphan> {
        let me = self.neighbours.disk();
        // A disk that no broker has any more is as dead as can be.
        let alive = |disk| disk == me || standings.get(&disk).is_some_and(|s| !is_dead(s));
        let all = self.registry.all().into_iter();
        let looked = all.map(|partition| {
            let own = partition.outlook();
            Orphan { partition, own }
        });
        looked
            .filter(|o| {
                let lost = !o.own.leads && !o.own.leader.is_some_and(alive);
                let concerned = o.own.votes || o.partition.may_found();
                (lost && concerned) || o.partition.misses_entries()
            })
            .collect()
    }

    /// Asks everybody about these orphans, and asks for the votes where we should be the one.
    async fn settle(
        &self,
        orphans: &[Orphan],
        standings: &Standings,
        since: &BTreeMap<(Uuid, i32), Instant>,
        room: &Arc<Semaphore>,
    ) {
        let me = self.neighbours.disk();
        let asked = standings
            .iter()
            .filter(|(_, s)| s.is_alive())
            .map(|(disk, _)| ask(&*self.neighbours, *disk, me, orphans));
        let answers: Vec<(ReplicaId, rpc::Outlooks)> =
            join_all(asked).await.into_iter().flatten().collect();
        for (n, orphan) in orphans.iter().enumerate() {
            let order = self.neighbours.preference(&orphan.partition);
            let rank = |disk| order.iter().position(|d| *d == disk).unwrap_or(order.len());
            let mut candidates = vec![(me, orphan.own, rank(me))];
            let mut led = false;
            for (disk, outlooks) in &answers {
                if let Some(said) = outlooks.outlooks.get(n) {
                    led |= said.led;
                    if said.led {
                        // Of the one that was elected in that term this says that it leads itself.
                        orphan.partition.leads_after_all(*disk, said.term);
                    }
                    candidates.push((*disk, outlook_of(said), rank(*disk)));
                }
            }
            let Some(chosen) = choose(&candidates, led) else {
                continue;
            };
            let patient = since
                .get(&orphan.key())
                .is_some_and(|s| s.elapsed() < FOUNDER_FIRST);
            tokio::spawn(act(
                orphan.partition.clone(),
                me,
                chosen,
                patient,
                room.clone(),
            ));
        }
    }
}

impl Orphan {
    fn key(&self) -> (Uuid, i32) {
        (self.partition.topic_id(), self.partition.index())
    }
}

fn is_dead(standing: &Standing) -> bool {
    matches!(standing, Standing::Dead { .. })
}

async fn ask(
    neighbours: &dyn Neighbours,
    disk: ReplicaId,
    me: ReplicaId,
    orphans: &[Orphan],
) -> Option<(ReplicaId, rpc::Outlooks)> {
    let groups = orphans.iter().map(|o| rpc::GroupId {
        topic_id: Bytes::copy_from_slice(o.partition.topic_id().as_bytes()),
        partition: o.partition.index() as u32,
        generation: o.partition.generation(),
    });
    let question = rpc::Orphans {
        disk: me,
        groups: groups.collect(),
    };
    match neighbours.outlooks(disk, question, PATIENCE).await {
        Ok(outlooks) => Some((disk, outlooks)),
        Err(error) => {
            debug!(%error, "no word about groups without a leader");
            None
        }
    }
}

/// Either the votes are asked for here, or way is made for the one who asks.
async fn act(
    partition: Arc<Partition>,
    me: ReplicaId,
    chosen: ReplicaId,
    patient: bool,
    room: Arc<Semaphore>,
) {
    let Ok(_one) = room.acquire_owned().await else {
        return;
    };
    let done = if chosen != me {
        partition.make_way(chosen).await
    } else if partition.outlook().votes {
        partition.take_over().await
    } else if patient {
        return;
    } else {
        partition.found_late().await
    };
    if let Err(error) = done {
        debug!(topic = partition.topic(), partition = partition.index(), %error, "no election yet");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlook(last: (u64, u64), fresh: bool) -> Outlook {
        Outlook {
            votes: true,
            last,
            fresh,
            ..Outlook::default()
        }
    }

    #[test]
    fn the_longest_log_goes_first_whoever_is_preferred() {
        let all = [
            (1, outlook((3, 9), false), 0),
            (2, outlook((3, 10), true), 1),
        ];
        assert_eq!(choose(&all, false), Some(2));
        let later_term = [
            (1, outlook((3, 10), false), 0),
            (2, outlook((4, 1), false), 1),
        ];
        assert_eq!(choose(&later_term, false), Some(2));
    }

    #[test]
    fn among_equals_one_that_need_not_wait_and_then_the_preferred() {
        let all = [
            (1, outlook((3, 9), true), 0),
            (2, outlook((3, 9), false), 1),
        ];
        assert_eq!(choose(&all, false), Some(2));
        let equal = [
            (7, outlook((3, 9), false), 2),
            (2, outlook((3, 9), false), 1),
        ];
        assert_eq!(choose(&equal, false), Some(2));
    }

    #[test]
    fn nobody_goes_while_anybody_hears_a_leader() {
        assert_eq!(choose(&[(1, outlook((3, 9), false), 0)], true), None);
    }

    #[test]
    fn a_learner_does_not_go() {
        let learner = Outlook {
            votes: false,
            ..outlook((9, 9), false)
        };
        let all = [(1, learner, 0), (2, outlook((3, 9), false), 1)];
        assert_eq!(choose(&all, false), Some(2));
    }
}
