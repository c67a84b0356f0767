//! How a member comes back to its cluster: with the metadata it has, or, where the metadata group was recovered by
//! force without it, with none.
//!
//! Promise: metadata from before a forced recovery is never opened beside what came of that. It is given up only when
//! somebody leads what came: until then it may be the next best. What is on the disk beside it stays.
//! Invariant: the card says first of which lineage the broker is to be, and that its log is not yet of that one; then
//! the log goes to the trash, and the mark after it. A crash at any point is a start that goes on from there.
//! Not here: how a broker without a cluster comes to one (`formation`).

use super::card::{Card, Unfinished};
use super::controller::BrokerSpec;
use super::formation::Heard;
use super::lineage::Lineage;
use super::metadata::{METADATA_TOPIC, Outgrown};
use super::start::{
    ASK_EVERY, Answers, StartError, Surroundings, Unjoined, Way, ask_all, join, open_log, say,
};
use logd_storage::LogKey;
use std::collections::BTreeSet;
use tokio::time::sleep;
use tracing::{info, warn};

/// What is to become of a member's metadata.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// It is of the past; why what came after it cannot be had yet.
    Wait(String),
    GiveUp(Lineage),
}

fn judge(ours: &Card, answers: &Answers) -> Verdict {
    let members = || heard(answers).filter(|(_, h)| h.cluster_id == ours.cluster_id);
    let newest = members().map(|(_, h)| h.lineage.generation).max();
    let Some(newest) = newest.filter(|n| *n > ours.lineage.generation) else {
        return Verdict::Keep;
    };
    let of_it = members().filter(|(_, h)| h.lineage.generation == newest);
    let led: BTreeSet<Lineage> = of_it
        .filter(|(_, h)| h.metadata_led)
        .map(|(_, h)| h.lineage)
        .collect();
    match (led.first(), led.len()) {
        (Some(lineage), 1) => Verdict::GiveUp(*lineage),
        (None, _) => Verdict::Wait(format!(
            "the metadata of generation {newest} to be led: it was recovered by force without this broker"
        )),
        (Some(_), _) => Verdict::Wait(format!(
            "one metadata group of generation {newest}: it was recovered by force twice, apart from each other"
        )),
    }
}

fn heard(answers: &Answers) -> impl Iterator<Item = (&String, &Heard)> {
    let heard = answers.iter();
    heard.filter_map(|(address, answer)| Some((address, answer.as_ref().ok()?)))
}

/// A member comes back. Seeds that belong elsewhere are a mistake worth stopping for, and so is an older binary.
pub(super) async fn back(
    spec: &BrokerSpec,
    around: &Surroundings,
    mut card: Card,
) -> Result<Way, StartError> {
    match card.unfinished {
        Some(Unfinished::Recovery { .. }) => return Err(StartError::Unfinished),
        Some(Unfinished::Adoption) => throw_away(around, &mut card).await?,
        None => {}
    }
    let mut said = None;
    loop {
        let answers = ask_all(addresses(spec, &card), around).await;
        fits(spec, around, &card, &answers)?;
        let why = match judge(&card, &answers) {
            Verdict::GiveUp(lineage) => {
                warn!(
                    from = card.lineage.generation,
                    to = lineage.generation,
                    "the metadata group was recovered by force without this broker, which gives its own metadata up"
                );
                card.lineage = lineage;
                card.unfinished = Some(Unfinished::Adoption);
                card.write(&around.data_dir)?;
                throw_away(around, &mut card).await?;
                continue;
            }
            Verdict::Keep => match again(spec, around, &card, &answers).await? {
                Again::In(way) => return Ok(way),
                Again::Wait(why) => why,
            },
            Verdict::Wait(why) => why,
        };
        say(&mut said, &why);
        sleep(ASK_EVERY).await;
    }
}

/// Where others may be: the seeds first.
fn addresses(spec: &BrokerSpec, card: &Card) -> Vec<String> {
    let peers = card.peers.values().map(|(_, rpc)| rpc);
    let peers = peers.filter(|rpc| !spec.seeds.contains(rpc) && **rpc != spec.rpc_addr);
    spec.seeds.iter().chain(peers).cloned().collect()
}

fn fits(
    spec: &BrokerSpec,
    around: &Surroundings,
    card: &Card,
    answers: &Answers,
) -> Result<(), StartError> {
    for (address, h) in heard(answers).filter(|(_, h)| !h.cluster_id.is_empty()) {
        let is_ours = h.cluster_id == card.cluster_id;
        if !is_ours && spec.seeds.contains(address) {
            return Err(StartError::OtherCluster {
                ours: card.cluster_id.clone(),
                seed: address.clone(),
                theirs: h.cluster_id.clone(),
            });
        }
        if is_ours && h.features > around.door.build() {
            return Err(StartError::Outgrown(Outgrown {
                build: around.door.build(),
                level: h.features,
            }));
        }
    }
    Ok(())
}

async fn throw_away(around: &Surroundings, card: &mut Card) -> Result<(), StartError> {
    let disk = around.disk.clone();
    let key = LogKey {
        topic: METADATA_TOPIC,
        partition: 0,
    };
    let gone = tokio::task::spawn_blocking(move || disk.delete_log(key)).await;
    let gone = gone.map_err(|e| StartError::Log(e.to_string()))?;
    gone.map_err(|e| StartError::Log(e.to_string()))?;
    card.unfinished = None;
    card.write(&around.data_dir)?;
    let generation = card.lineage.generation;
    info!(
        generation,
        "the metadata log from before a forced recovery moved to the trash"
    );
    Ok(())
}

enum Again {
    In(Way),
    Wait(String),
}

/// Whoever gave its metadata up asks to be taken in: those who have it now may not know that this broker exists.
async fn again(
    spec: &BrokerSpec,
    around: &Surroundings,
    card: &Card,
    answers: &Answers,
) -> Result<Again, StartError> {
    let log = open_log(around)?;
    let empty = log.bounds().last.is_none() && log.vote().is_none();
    if empty && card.peers.is_empty() {
        warn!("this broker has a card of a cluster and no metadata; founding is not repeated");
    }
    if !empty || card.lineage.is_first() {
        return Ok(Again::In(Way::Back(card.clone())));
    }
    let mut why = "a broker that has the metadata".to_owned();
    let me = around.door.disk();
    let like_us =
        |h: &Heard| h.disk != me && h.cluster_id == card.cluster_id && h.lineage == card.lineage;
    for (address, _) in heard(answers).filter(|(_, h)| like_us(h)) {
        match join(spec, around, address).await {
            Ok((mut taken, index)) => {
                let known = card.peers.iter().map(|(disk, at)| (*disk, at.clone()));
                let known = known.filter(|(disk, _)| *disk != me);
                let by = std::mem::take(&mut taken.peers);
                taken.peers = known.chain(by).collect();
                taken.write(&around.data_dir)?;
                return Ok(Again::In(Way::Joined { card: taken, index }));
            }
            Err(Unjoined::Refused(why)) => return Err(StartError::NotTakenIn(why)),
            Err(Unjoined::NotNow(not_now)) => why = not_now,
        }
    }
    Ok(Again::Wait(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::FeatureLevel;
    use std::collections::BTreeMap;

    fn lineage(generation: u32, survivor: u64) -> Lineage {
        Lineage {
            generation,
            survivor,
            term: 1_000,
        }
    }

    fn card(generation: u32) -> Card {
        Card {
            cluster_id: "c".into(),
            node_id: 2,
            peers: BTreeMap::from([(7, (1, "a:1".into())), (8, (3, "b:1".into()))]),
            lineage: lineage(generation, 0),
            unfinished: None,
        }
    }

    fn says(disk: u64, lineage: Lineage, metadata_led: bool) -> (String, Result<Heard, String>) {
        let heard = Heard {
            disk,
            cluster_id: "c".into(),
            seeds: Vec::new(),
            features: FeatureLevel::FIRST,
            lineage,
            metadata_led,
        };
        (format!("{disk}:1"), Ok(heard))
    }

    #[test]
    fn metadata_is_given_up_for_what_came_of_a_recovery_and_is_led() {
        let silent = ("9:1".to_owned(), Err("refused".to_owned()));
        let (old, new) = (lineage(0, 0), lineage(1, 7));
        let led = vec![says(8, old, true), says(7, new, true), silent.clone()];
        assert_eq!(judge(&card(0), &led), Verdict::GiveUp(new));
        let not_led = vec![says(8, old, true), says(7, new, false), silent];
        let verdict = judge(&card(0), &not_led);
        assert!(matches!(verdict, Verdict::Wait(_)), "it is the next best");
    }

    #[test]
    fn it_is_kept_among_those_of_the_same_generation_or_of_one_before() {
        assert_eq!(judge(&card(0), &vec![]), Verdict::Keep);
        let older = vec![says(8, lineage(0, 0), true), says(7, lineage(1, 7), true)];
        assert_eq!(judge(&card(1), &older), Verdict::Keep);
        let mut stranger = says(7, lineage(1, 7), true);
        stranger.1.as_mut().unwrap().cluster_id = "other".into();
        assert_eq!(judge(&card(0), &vec![stranger]), Verdict::Keep);
    }

    #[test]
    fn nobody_chooses_between_two_that_were_recovered_apart() {
        let two = vec![says(8, lineage(1, 8), true), says(7, lineage(1, 7), true)];
        assert!(matches!(judge(&card(0), &two), Verdict::Wait(_)));
    }
}
