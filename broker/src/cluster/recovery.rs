//! Whether a partition that has lost its majority may be recovered by force, and from which replica. Pure.
//!
//! Promise: a group that has a leader, or could elect one, is left alone; of what is left the longest log
//! goes on, as Raft would have it. Each recovery begins a new generation of the group, once: the command
//! names the number it is to be, so two operators at a time recover one partition once.
//! Not here: what a disk does about it (`generations`), asking the brokers (`recover`, `control`).

use super::state::{Answer, ClusterState, Refusal, Topic, TopicId};
use crate::raft::ReplicaId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The survivor's term is above every term that is known by so much. What is left of the generation before
/// may hold some elections before it learns that it is no more, and clients remember the epochs they saw.
const TERMS_APART: u64 = 1_000;

/// The last time a partition was recovered by force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// How often it was by now. A replica of an earlier generation is as good as none.
    pub generation: u32,
    /// The disk whose log goes on.
    pub survivor: ReplicaId,
    /// It begins in this term, or in a later one.
    pub term: u64,
}

/// A recovery as a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forced {
    pub topic: TopicId,
    pub partition: i32,
    #[serde(flatten)]
    pub recovery: Recovery,
    /// The survivor's broker, and those that are to have the partition too.
    pub target: Vec<i32>,
}

/// Generations of a partition that begin with one of the metadata: as many recoveries as nobody asks for.
const GENERATIONS_APART: u32 = 1 << 16;

/// Producer ids that are left out when metadata is recovered: more than anybody was given beyond what is known.
const PRODUCER_IDS_APART: i64 = 1 << 40;

impl Topic {
    /// How often a partition was recovered by force since the metadata was, if that was.
    pub fn recoveries_lately(&self, index: i32) -> u32 {
        self.generation(index) % GENERATIONS_APART
    }

    /// The generation of a partition: one more with each time that it is recovered by force. Those that metadata
    /// decided on that is lost are never given again.
    pub fn generation(&self, index: i32) -> u32 {
        self.recoveries.get(&index).map_or(0, |r| r.generation)
    }
}

impl ClusterState {
    /// The generation of a partition that would begin if it was recovered by force now.
    pub fn next_generation(&self, topic: &Topic, index: i32) -> u32 {
        let known = self.generation.saturating_mul(GENERATIONS_APART);
        topic.generation(index).max(known).saturating_add(1)
    }

    /// What was decided beyond this entry is not known, and must not be decided otherwise: ids that were given are not
    /// given again, and no group is founded that somebody has moved away from here.
    pub(super) fn metadata_recovered(&mut self, generation: u32) -> Answer {
        self.generation = self.generation.max(generation);
        self.next_producer_id += PRODUCER_IDS_APART;
        for topic in self.topics.values_mut() {
            let topic = Arc::make_mut(topic);
            topic.moved.extend(0..topic.partitions.len() as i32);
        }
        Answer::Done
    }

    pub(super) fn recover(&mut self, forced: Forced) -> Answer {
        let (index, recovery) = (forced.partition, forced.recovery);
        let known = self.topics.get(&forced.topic.0);
        let next = known.map_or(0, |topic| self.next_generation(topic, index));
        let survivor = self.node_of(recovery.survivor);
        let Some(topic) = self.topics.get_mut(&forced.topic.0).map(Arc::make_mut) else {
            return Answer::Refused(Refusal::UnknownTopic);
        };
        let now = topic.generation(index);
        if recovery.generation != next {
            return Answer::Refused(Refusal::Recovered { now });
        }
        if survivor.is_none() || survivor != forced.target.first().copied() {
            let node = forced.target.first().copied().unwrap_or_default();
            return Answer::Refused(Refusal::UnknownBroker(node));
        }
        let slot = usize::try_from(index).ok();
        let Some(slot) = slot.and_then(|i| topic.partitions.get_mut(i)) else {
            return Answer::Refused(Refusal::UnknownTopic);
        };
        // A move that is given up leads to the survivor alone: it is the only one that has anything.
        let alone = vec![forced.target[0]];
        if forced.target == alone {
            topic.moves.remove(&index);
        } else {
            topic.moves.insert(index, alone);
        }
        *slot = forced.target;
        topic.moved.insert(index);
        topic.recoveries.insert(index, recovery);
        Answer::Done
    }
}

/// What a broker has of a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    pub node: i32,
    pub disk: ReplicaId,
    pub generation: u32,
    /// Term and index of its last entry; zeros for none.
    pub last: (u64, u64),
    pub end_offset: i64,
    /// What it knows to be committed; a replica that is not open does not say.
    pub high_watermark: Option<i64>,
    /// The latest term it knows of.
    pub term: u64,
    /// It leads, and a majority hears it.
    pub leads: bool,
    /// It is open and may vote.
    pub votes: bool,
    /// Why it cannot be read.
    pub damage: Option<String>,
    /// The voters it knows of, of both halves while they change.
    pub electorates: Vec<BTreeSet<ReplicaId>>,
}

impl Held {
    fn is_empty(&self) -> bool {
        self.last == (0, 0)
    }

    /// What makes a log the one to go on with.
    fn standing(&self) -> (u32, (u64, u64)) {
        (self.generation, self.last)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryRefusal {
    #[error("it has a leader, broker {0}: nothing is to be recovered")]
    Led(i32),
    #[error(
        "brokers {0:?} have replicas that vote, and are a majority: they elect a leader by themselves; \
         `logctl cluster health` says what holds them up"
    )]
    Majority(Vec<i32>),
    #[error(
        "brokers {0:?} are there and have not said what they have; try again, or stop them if they cannot"
    )]
    Silent(Vec<i32>),
    #[error("broker {0} has no replica of it that could go on, or does not answer")]
    NoReplica(i32),
    #[error("the replica of broker {node} is damaged: {why}")]
    Damaged { node: i32, why: String },
    #[error(
        "no broker that answers has a replica with anything in it; bring one of its brokers back, or delete the topic"
    )]
    NothingLeft,
}

/// The replica to go on with, and the term that it begins in at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    pub node: i32,
    pub survivor: ReplicaId,
    pub term: u64,
}

/// From what should the partition go on? `silent`: brokers that are there and have not answered.
///
/// # Errors
/// Why it should not be recovered by force, or cannot be.
pub fn decide(held: &[Held], silent: &[i32], from: Option<i32>) -> Result<Choice, RecoveryRefusal> {
    if let Some(leader) = held.iter().find(|h| h.leads) {
        return Err(RecoveryRefusal::Led(leader.node));
    }
    if !silent.is_empty() {
        return Err(RecoveryRefusal::Silent(silent.to_vec()));
    }
    if let Some(able) = majority(held) {
        return Err(RecoveryRefusal::Majority(able));
    }
    let survivor = match from {
        Some(node) => named(held, node)?,
        None => longest(held)?,
    };
    let known = held.iter().flat_map(|h| [h.term, h.last.0]).max();
    Ok(Choice {
        node: survivor.node,
        survivor: survivor.disk,
        term: known.unwrap_or(0).saturating_add(TERMS_APART),
    })
}

/// Brokers that could elect a leader, as one of the replicas knows its voters.
fn majority(held: &[Held]) -> Option<Vec<i32>> {
    // Replicas of different generations do not hear each other.
    let able_with = |known: &Held| -> BTreeMap<ReplicaId, i32> {
        let voters = held
            .iter()
            .filter(|h| h.votes && h.generation == known.generation);
        voters.map(|h| (h.disk, h.node)).collect()
    };
    held.iter().find_map(|known| {
        let able = able_with(known);
        let carried = |voters: &BTreeSet<ReplicaId>| {
            let there = voters.iter().filter(|v| able.contains_key(v)).count();
            2 * there > voters.len()
        };
        let elects = !known.electorates.is_empty() && known.electorates.iter().all(carried);
        let voters: BTreeSet<ReplicaId> = known.electorates.iter().flatten().copied().collect();
        let nodes = voters.iter().filter_map(|v| able.get(v).copied());
        elects.then(|| nodes.collect())
    })
}

fn named(held: &[Held], node: i32) -> Result<&Held, RecoveryRefusal> {
    let there = held.iter().find(|h| h.node == node && !h.is_empty());
    let chosen = there.ok_or(RecoveryRefusal::NoReplica(node))?;
    match &chosen.damage {
        Some(why) => Err(RecoveryRefusal::Damaged {
            node,
            why: why.clone(),
        }),
        None => Ok(chosen),
    }
}

fn longest(held: &[Held]) -> Result<&Held, RecoveryRefusal> {
    let whole = held.iter().filter(|h| !h.is_empty() && h.damage.is_none());
    let best = whole.max_by_key(|h| (h.standing(), std::cmp::Reverse(h.node)));
    match (best, held.iter().find(|h| h.damage.is_some())) {
        (Some(best), _) => Ok(best),
        (None, Some(damaged)) => named(held, damaged.node),
        (None, None) => Err(RecoveryRefusal::NothingLeft),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::Command;
    use crate::cluster::targets::tests::{ask, cluster};
    use logd_proto::Uuid;

    fn replica(node: i32, last: (u64, u64)) -> Held {
        Held {
            node,
            disk: 10 * node as u64,
            last,
            term: last.0,
            votes: true,
            electorates: vec![BTreeSet::from([10, 20, 30])],
            ..Held::default()
        }
    }

    fn choice(node: i32, term: u64) -> Choice {
        Choice {
            node,
            survivor: 10 * node as u64,
            term,
        }
    }

    #[test]
    fn the_only_replica_left_goes_on_in_a_term_far_above_what_anybody_knows() {
        let alone = Held {
            term: 9,
            ..replica(2, (7, 50))
        };
        assert_eq!(decide(&[alone], &[], None), Ok(choice(2, 1_009)));
    }

    #[test]
    fn of_several_that_cannot_elect_the_longest_log_goes_on_unless_another_is_named() {
        let five = vec![BTreeSet::from([10, 20, 30, 40, 50])];
        let of_five = |node, last| Held {
            electorates: five.clone(),
            ..replica(node, last)
        };
        let held = [of_five(1, (7, 90)), of_five(2, (8, 40))];
        assert_eq!(decide(&held, &[], None).map(|c| c.node), Ok(2));
        assert_eq!(decide(&held, &[], Some(1)), Ok(choice(1, 1_008)));
        assert_eq!(
            decide(&held, &[], Some(3)),
            Err(RecoveryRefusal::NoReplica(3))
        );
    }

    #[test]
    fn what_can_help_itself_is_left_alone() {
        let two = [replica(1, (7, 90)), replica(2, (7, 80))];
        let refused = decide(&two, &[], Some(1));
        assert_eq!(refused, Err(RecoveryRefusal::Majority(vec![1, 2])));
        let led = Held {
            leads: true,
            ..replica(3, (7, 80))
        };
        assert_eq!(decide(&[led], &[], None), Err(RecoveryRefusal::Led(3)));
        let silent = decide(&[replica(1, (7, 90))], &[2], None);
        assert_eq!(silent, Err(RecoveryRefusal::Silent(vec![2])));
    }

    #[test]
    fn a_voter_that_cannot_vote_makes_no_majority_nor_does_one_of_another_generation() {
        let mut held = [replica(1, (7, 90)), replica(2, (7, 95))];
        held[1].votes = false;
        held[1].damage = Some("a torn row".into());
        assert_eq!(decide(&held, &[], None).map(|c| c.node), Ok(1));
        assert!(matches!(
            decide(&held, &[], Some(2)),
            Err(RecoveryRefusal::Damaged { node: 2, .. })
        ));
        held[1] = replica(2, (7, 95));
        held[0].generation = 1;
        assert_eq!(decide(&held, &[], None).map(|c| c.node), Ok(1));
    }

    #[test]
    fn while_members_change_both_halves_must_be_there() {
        let changing = Held {
            electorates: vec![BTreeSet::from([10, 20, 30]), BTreeSet::from([10, 40, 50])],
            ..replica(1, (7, 90))
        };
        let held = [changing, replica(2, (7, 90))];
        // The second one knows of the first half alone, and that is a majority to it.
        assert!(matches!(
            decide(&held, &[], None),
            Err(RecoveryRefusal::Majority(_))
        ));
        assert_eq!(decide(&held[..1], &[], None).map(|c| c.node), Ok(1));
    }

    #[test]
    fn where_nothing_is_left_nothing_is_recovered() {
        let refused = decide(&[replica(1, (0, 0))], &[], None);
        assert_eq!(refused, Err(RecoveryRefusal::NothingLeft));
    }

    fn forced(generation: u32, survivor: u64, target: &[i32]) -> Command {
        Command::Recover(Forced {
            topic: TopicId(Uuid::from_bytes([1; 16])),
            partition: 0,
            recovery: Recovery {
                generation,
                survivor,
                term: 1_000,
            },
            target: target.to_vec(),
        })
    }

    #[test]
    fn a_recovery_happens_once_and_ends_moves_and_founding() {
        let mut s = cluster(&[1, 2, 3]);
        ask(&mut s, Some(&[2, 3, 4]));
        assert_eq!(s.apply(forced(1, 10, &[1, 4])), Answer::Done);
        let again = s.apply(forced(1, 20, &[2]));
        assert_eq!(again, Answer::Refused(Refusal::Recovered { now: 1 }));
        let topic = s.topic("t").unwrap().clone();
        assert_eq!(topic.generation(0), 1);
        assert_eq!(topic.moving(0).unwrap().adding, [4]);
        assert_eq!(topic.founder(&s, 0), None);
        assert!(topic.founders(&s, 0).is_empty());
        assert_eq!(ClusterState::decode(&s.encode().unwrap()).unwrap(), s);
        // The survivor is lost too, before or after.
        assert_eq!(s.apply(forced(2, 40, &[4])), Answer::Done);
        assert_eq!(s.topic("t").unwrap().moving(0), None);
    }

    #[test]
    fn what_lost_metadata_may_have_decided_is_not_decided_again() {
        let mut s = cluster(&[1, 2, 3]);
        let ids = |s: &mut ClusterState| match s.apply(Command::AllocateProducerIds { node: 1 }) {
            Answer::ProducerIds { first } => first,
            other => unreachable!("{other:?}"),
        };
        let before = ids(&mut s);
        assert!(s.topic("t").unwrap().founder(&s, 0).is_some());
        let recovered = Command::MetadataRecovered { generation: 1 };
        assert_eq!(s.apply(recovered), Answer::Done);
        assert!(ids(&mut s) > before + 1_000_000, "others were given some");
        let topic = s.topic("t").unwrap().clone();
        assert_eq!(topic.founder(&s, 0), None, "it may have been moved away");
        assert_eq!(ClusterState::decode(&s.encode().unwrap()).unwrap(), s);
        // Somebody may have recovered the partition, and so may have the number.
        let now = Answer::Refused(Refusal::Recovered { now: 0 });
        assert_eq!(s.apply(forced(1, 10, &[1, 4])), now);
        let next = s.next_generation(&topic, 0);
        assert_eq!(s.apply(forced(next, 10, &[1, 4])), Answer::Done);
        let topic = s.topic("t").unwrap();
        assert_eq!(topic.recoveries_lately(0), 1);
        assert_eq!(s.next_generation(topic, 0), next + 1);
    }

    #[test]
    fn only_a_disk_that_a_broker_has_survives() {
        let mut s = cluster(&[1]);
        for wrong in [forced(1, 99, &[1]), forced(1, 10, &[2]), forced(1, 10, &[])] {
            assert!(matches!(s.apply(wrong), Answer::Refused(_)));
        }
        assert_eq!(s.topic("t").unwrap().generation(0), 0);
    }
}
