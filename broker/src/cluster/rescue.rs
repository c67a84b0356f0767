//! Recovering the metadata group by force, when most of its voters are gone for good: on the disk of a broker that is
//! stopped, whose metadata goes on.
//!
//! Promise: nothing is done that an operator has not accepted, and nothing while the group may have a majority, as
//! far as those say who answer. Afterwards this disk is the group's only voter, of a new lineage.
//! Invariant: the card says that it has begun, and who voted before, until it is done: a start in between is refused,
//! and another try ends it. What answers is asked each time.
//! Whoever follows begins with a snapshot of what was recovered (`keep`), never with entries from before.
//! Not here: what becomes of the others (`back`), and of partitions (`recovery`): they are groups of their own.

use super::card::{Card, CardError, Unfinished};
use super::formation::Heard;
use super::generations::FORCE_PATIENCE;
use super::lineage::Lineage;
use super::metadata::{METADATA_TOPIC, encode};
use super::start::introduce;
use super::state::Command;
use crate::peers::replica_of;
use crate::raft::{ReplicaId, electorates, force_alone_saying};
use logd_storage::{Disk, EntryId, Log, LogKey, LogOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// The new term is above every term known here by so much: what is left of the group before may hold some elections.
const TERMS_APART: u64 = 1_000;

#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    #[error("{0} holds no broker that belongs to a cluster: there is no metadata to go on with")]
    NoCard(String),
    #[error(transparent)]
    Card(#[from] CardError),
    #[error(
        "its metadata log is empty: there is nothing to go on with; run this on another broker"
    )]
    Empty,
    #[error("its metadata log is damaged ({0}); run this on another broker")]
    Damaged(String),
    #[error("nothing was changed: {0}")]
    Refused(#[from] Refusal),
    #[error(
        "it has begun and is not finished, and this broker does not start before it is; run it again: {0}"
    )]
    Interrupted(String),
}

/// Why the metadata group is not to be recovered by force from this disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "the broker at {address} has metadata of generation {theirs}, this one of generation {ours}: it was recovered \
         already. Start this broker: it is taken in again"
    )]
    Surpassed {
        address: String,
        theirs: u32,
        ours: u32,
    },
    #[error(
        "the metadata group is led: the broker at {0} hears its leader. Start this broker instead"
    )]
    Led(String),
    #[error(
        "this broker and the voters that answer ({0}) are a majority: they elect a leader as soon as this broker is \
         started. Nothing is recovered that can have a majority"
    )]
    Majority(String),
    #[error(
        "this disk is the metadata group's only voter: it leads as soon as this broker is started"
    )]
    Alone,
}

/// Who answers, of our cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voice {
    pub disk: ReplicaId,
    pub address: String,
    pub lineage: Lineage,
    pub led: bool,
}

/// The generation that may begin from this disk, of whose group these vote, of both halves while they change.
fn decide(
    me: ReplicaId,
    ours: Lineage,
    voters: &[BTreeSet<ReplicaId>],
    heard: &[Voice],
) -> Result<u32, Refusal> {
    let later = |v: &&Voice| v.lineage.generation > ours.generation;
    if let Some(later) = heard.iter().find(later) {
        return Err(Refusal::Surpassed {
            address: later.address.clone(),
            theirs: later.lineage.generation,
            ours: ours.generation,
        });
    }
    let next = ours.generation + 1;
    let apart = |v: &Voice| v.lineage.generation == ours.generation && v.lineage != ours;
    if heard.iter().any(apart) {
        // One of two has to be of a later generation than the other.
        return Ok(next);
    }
    let like_us = || heard.iter().filter(|v| v.lineage == ours);
    if let Some(led) = like_us().find(|v| v.led) {
        return Err(Refusal::Led(led.address.clone()));
    }
    let able = |disk: &ReplicaId| *disk == me || like_us().any(|v| v.disk == *disk);
    let carried = |electorate: &BTreeSet<ReplicaId>| {
        let there = electorate.iter().filter(|v| able(v)).count();
        2 * there > electorate.len()
    };
    if !voters.iter().all(carried) {
        return Ok(next);
    }
    let voting = |v: &&Voice| voters.iter().any(|e| e.contains(&v.disk));
    let others: Vec<&str> = like_us()
        .filter(voting)
        .map(|v| v.address.as_str())
        .collect();
    match others.is_empty() {
        true => Err(Refusal::Alone),
        false => Err(Refusal::Majority(others.join(", "))),
    }
}

/// What there is, and what would be done.
#[derive(Debug)]
pub struct Plan {
    card: Card,
    me: ReplicaId,
    last: EntryId,
    voters: Vec<BTreeSet<ReplicaId>>,
    /// What each address said.
    answers: BTreeMap<String, Result<Heard, String>>,
    verdict: Result<u32, Refusal>,
}

/// A broker that is stopped, whose metadata is to go on.
#[derive(Debug)]
pub struct Rescue {
    plan: Plan,
    log: Log,
}

impl Rescue {
    /// Looks at what the disk has, and asks every address that is known who is there. Changes nothing.
    ///
    /// # Errors
    /// If there is no metadata here that could go on.
    pub async fn plan(data_dir: &Path, disk: &Disk, seeds: &[String]) -> Result<Self, RescueError> {
        let card = Card::read(data_dir)?;
        let card = card.ok_or_else(|| RescueError::NoCard(data_dir.display().to_string()))?;
        let key = LogKey {
            topic: METADATA_TOPIC,
            partition: 0,
        };
        if disk.log(key).is_none() || card.unfinished == Some(Unfinished::Adoption) {
            return Err(RescueError::Empty);
        }
        let damaged = |why: String| RescueError::Damaged(why);
        let log = disk.open_log(key, LogOptions::default());
        let log = log.map_err(|e| damaged(e.to_string()))?;
        if let Some(damage) = log.fenced() {
            return Err(damaged(damage.to_string()));
        }
        let last = log.bounds().last.ok_or(RescueError::Empty)?;
        let named = electorates(&log).map_err(|e| damaged(e.to_string()))?;
        let voters = match &card.unfinished {
            // The log may name this disk alone by now.
            Some(Unfinished::Recovery { voters }) => voters.clone(),
            _ => named,
        };
        if voters.iter().all(BTreeSet::is_empty) {
            return Err(damaged("it names no voters".into()));
        }
        let me = replica_of(disk.identity().id);
        let answers = ask(&card, seeds).await;
        let verdict = decide(me, card.lineage, &voters, &voices(&card, me, &answers));
        let plan = Plan {
            card,
            me,
            last,
            voters,
            answers,
            verdict,
        };
        Ok(Self { plan, log })
    }

    pub fn show(&self) -> &Plan {
        &self.plan
    }

    /// Makes this disk the metadata group's only voter. The disk is to be closed then.
    ///
    /// # Errors
    /// If it is refused, or the disk fails.
    pub async fn carry_out(self, data_dir: &Path) -> Result<Lineage, RescueError> {
        let Plan {
            mut card,
            me,
            last,
            voters,
            verdict,
            ..
        } = self.plan;
        let generation = verdict?;
        let first = encode(&Command::MetadataRecovered { generation });
        let first = first.map_err(|e| RescueError::Damaged(e.to_string()))?;
        card.unfinished = Some(Unfinished::Recovery { voters });
        card.write(data_dir)?;
        let least = last.term.saturating_add(TERMS_APART);
        let forced = force_alone_saying(&self.log, me, least, Some(first));
        let forced = tokio::time::timeout(FORCE_PATIENCE, forced).await;
        let forced = forced.map_err(|_| {
            RescueError::Interrupted(format!("the disk took more than {FORCE_PATIENCE:?}"))
        })?;
        let term = forced.map_err(|e| RescueError::Interrupted(e.to_string()))?;
        card.lineage = Lineage {
            generation,
            survivor: me,
            term,
        };
        card.unfinished = None;
        let written = card.write(data_dir);
        written.map_err(|e| RescueError::Interrupted(e.to_string()))?;
        Ok(card.lineage)
    }
}

async fn ask(card: &Card, seeds: &[String]) -> BTreeMap<String, Result<Heard, String>> {
    let peers = card.peers.values().map(|(_, address)| address);
    let addresses: BTreeSet<&String> = peers.chain(seeds).collect();
    let asked = addresses.into_iter().map(|address| async {
        let answer = introduce(address, None).await;
        (address.clone(), answer)
    });
    let answers = futures_util::future::join_all(asked).await;
    answers.into_iter().collect()
}

fn voices(
    card: &Card,
    me: ReplicaId,
    answers: &BTreeMap<String, Result<Heard, String>>,
) -> Vec<Voice> {
    let heard = answers.iter().filter_map(|(address, answer)| {
        let h = answer.as_ref().ok()?;
        (h.cluster_id == card.cluster_id && h.disk != me).then(|| Voice {
            disk: h.disk,
            address: address.clone(),
            lineage: h.lineage,
            led: h.metadata_led,
        })
    });
    heard.collect()
}

impl Plan {
    /// Why it would be refused, if it would be.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.verdict.as_ref().err()
    }

    fn said_at(&self, disk: ReplicaId, address: &str) -> String {
        match self.answers.get(address) {
            Some(Ok(h)) if h.disk != disk => "another disk answers there".to_owned(),
            Some(Ok(h)) if h.cluster_id != self.card.cluster_id => {
                "answers, and belongs to no cluster, or to another one".to_owned()
            }
            Some(Ok(h)) if h.lineage != self.card.lineage => {
                let generation = h.lineage.generation;
                format!("answers, with metadata of another past, of generation {generation}")
            }
            Some(Ok(_)) => "answers".to_owned(),
            Some(Err(why)) => format!("does not answer: {why}"),
            None => "was not asked".to_owned(),
        }
    }

    fn member(&self, disk: ReplicaId) -> String {
        if disk == self.me {
            let node = self.card.node_id;
            return format!("broker {node} (disk {disk}): this one");
        }
        match self.card.peers.get(&disk) {
            Some((node, address)) => {
                let said = self.said_at(disk, address);
                format!("broker {node} (disk {disk}) at {address}: {said}")
            }
            None => format!("disk {disk}, whose broker and address are not known here"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Card {
            cluster_id,
            node_id,
            lineage,
            peers,
            unfinished,
            ..
        } = &self.card;
        let EntryId { term, index } = self.last;
        let generation = lineage.generation;
        writeln!(
            f,
            "cluster {cluster_id}, metadata of generation {generation}, as broker {node_id} has it"
        )?;
        writeln!(f, "last entry: term {term}, index {index}")?;
        if matches!(unfinished, Some(Unfinished::Recovery { .. })) {
            writeln!(f, "a recovery from this disk has begun and is not finished")?;
        }
        let voters: BTreeSet<ReplicaId> = self.voters.iter().flatten().copied().collect();
        writeln!(f, "voters:")?;
        for disk in &voters {
            writeln!(f, "  {}", self.member(*disk))?;
        }
        let others = peers.keys().filter(|disk| !voters.contains(disk));
        for (nth, disk) in others.enumerate() {
            if nth == 0 {
                writeln!(f, "other brokers:")?;
            }
            writeln!(f, "  {}", self.member(*disk))?;
        }
        writeln!(
            f,
            "what is lost: every change of the metadata that others have beyond that entry: topics created or deleted, \
             partitions moved or recovered by force, settings, brokers taken in or let go. Of all brokers that are \
             left, the one whose last entry has the highest term, and of those the highest index, loses least"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::test_entries::records;
    use logd_storage::DiskOptions;
    use logd_storage::vfs::RealFs;
    use std::sync::Arc;

    const ME: ReplicaId = 1;

    fn lineage(generation: u32, survivor: ReplicaId) -> Lineage {
        Lineage {
            generation,
            survivor,
            term: 1_000,
        }
    }

    fn voice(disk: ReplicaId, lineage: Lineage) -> Voice {
        Voice {
            disk,
            address: format!("{disk}:1"),
            lineage,
            led: false,
        }
    }

    fn set(of: &[ReplicaId]) -> BTreeSet<ReplicaId> {
        of.iter().copied().collect()
    }

    const FIRST: Lineage = Lineage {
        generation: 0,
        survivor: 0,
        term: 0,
    };

    #[test]
    fn nothing_is_recovered_that_can_have_a_majority() {
        let decide = |voters: &[&[ReplicaId]], heard: &[ReplicaId]| {
            let voters: Vec<_> = voters.iter().map(|v| set(v)).collect();
            let heard: Vec<_> = heard.iter().map(|disk| voice(*disk, FIRST)).collect();
            decide(ME, FIRST, &voters, &heard)
        };
        assert_eq!(decide(&[&[1, 2, 3]], &[]), Ok(1));
        let both = Refusal::Majority("2:1".into());
        assert_eq!(decide(&[&[1, 2, 3]], &[2]), Err(both));
        assert_eq!(decide(&[&[1, 2, 3]], &[9]), Ok(1), "it does not vote");
        assert_eq!(decide(&[&[1, 2, 3, 4, 5]], &[2]), Ok(1));
        let three = Refusal::Majority("2:1, 3:1".into());
        assert_eq!(decide(&[&[1, 2, 3, 4, 5]], &[2, 3]), Err(three));
        // This disk only learns: the others elect without it, or do not.
        assert_eq!(decide(&[&[2, 3, 4]], &[2]), Ok(1));
        assert!(decide(&[&[2, 3, 4]], &[2, 3]).is_err());
        // Both halves of a change have to carry a leader.
        assert_eq!(decide(&[&[1, 2, 3], &[3, 4, 5]], &[2]), Ok(1));
        assert!(decide(&[&[1, 2, 3], &[1, 2, 4]], &[2]).is_err());
        assert_eq!(decide(&[&[1]], &[]), Err(Refusal::Alone));
    }

    #[test]
    fn a_leader_that_anybody_hears_is_enough_to_leave_it_alone() {
        let led = Voice {
            led: true,
            ..voice(9, FIRST)
        };
        let refused = decide(ME, FIRST, &[set(&[1, 2, 3, 4, 5])], &[led]);
        assert_eq!(refused, Err(Refusal::Led("9:1".into())));
    }

    #[test]
    fn only_those_of_the_same_past_count_and_nobody_goes_behind_a_later_one() {
        let voters = [set(&[1, 2, 3])];
        let decide = |ours, heard: &[Voice]| decide(ME, ours, &voters, heard);
        let (once, other) = (lineage(1, 1), lineage(1, 2));
        // What is left of before does not count.
        let before = [voice(2, FIRST), voice(3, FIRST)];
        assert_eq!(decide(once, &before), Ok(2));
        let later = Refusal::Surpassed {
            address: "2:1".into(),
            theirs: 1,
            ours: 0,
        };
        assert_eq!(decide(FIRST, &[voice(2, other)]), Err(later));
    }

    /// A disk with a metadata log, and a card in which a recovery has begun of a group of three.
    async fn interrupted(dir: &Path) -> Disk {
        let options = DiskOptions::default();
        let disk = Disk::open(Arc::new(RealFs), dir, options, &|_| {}).unwrap();
        let key = LogKey {
            topic: METADATA_TOPIC,
            partition: 0,
        };
        let log = disk.open_log(key, LogOptions::default()).unwrap();
        let (tell, told) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result: std::io::Result<()>| tell.send(result).unwrap());
        log.append(records(3, 0..10), done).unwrap();
        told.await.unwrap().unwrap();
        let me = replica_of(disk.identity().id);
        let card = Card {
            cluster_id: "c".into(),
            node_id: 2,
            peers: BTreeMap::new(),
            lineage: FIRST,
            unfinished: Some(Unfinished::Recovery {
                voters: vec![set(&[me, 7, 8])],
            }),
        };
        card.write(dir).unwrap();
        disk
    }

    #[tokio::test]
    async fn what_was_interrupted_is_done_again_and_then_over() {
        let dir = tempfile::tempdir().unwrap();
        let disk = interrupted(dir.path()).await;
        let rescue = Rescue::plan(dir.path(), &disk, &[]).await.unwrap();
        let shown = rescue.show().to_string();
        for part in ["not finished", "term 3, index 9", "disk 7", "broker 2"] {
            assert!(shown.contains(part), "{shown}");
        }
        let lineage = rescue.carry_out(dir.path()).await.unwrap();
        let me = replica_of(disk.identity().id);
        assert_eq!((lineage.generation, lineage.survivor), (1, me));
        assert!(lineage.term >= 3 + TERMS_APART);
        let card = Card::read(dir.path()).unwrap().unwrap();
        assert_eq!((card.lineage, card.unfinished), (lineage, None));
        let over = Rescue::plan(dir.path(), &disk, &[]).await.unwrap();
        assert_eq!(over.show().refusal(), Some(&Refusal::Alone));
        let refused = over.carry_out(dir.path()).await;
        assert!(matches!(refused, Err(RescueError::Refused(Refusal::Alone))));
    }

    #[tokio::test]
    async fn there_must_be_something_to_go_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let disk = interrupted(dir.path()).await;
        let key = LogKey {
            topic: METADATA_TOPIC,
            partition: 0,
        };
        disk.delete_log(key).unwrap();
        let empty = Rescue::plan(dir.path(), &disk, &[]).await;
        assert!(matches!(empty, Err(RescueError::Empty)));
        std::fs::remove_file(dir.path().join("cluster.json")).unwrap();
        let stranger = Rescue::plan(dir.path(), &disk, &[]).await;
        assert!(matches!(stranger, Err(RescueError::NoCard(_))));
    }

    #[test]
    fn one_of_two_that_were_recovered_apart_can_be_put_before_the_other() {
        let (ours, theirs) = (lineage(1, 1), lineage(1, 2));
        let led = Voice {
            led: true,
            ..voice(2, theirs)
        };
        assert_eq!(decide(ME, ours, &[set(&[1])], &[led]), Ok(2));
    }
}
