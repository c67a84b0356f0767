//! How a broker without a cluster comes to one: found, join, or wait. Pure.
//!
//! Promise: brokers whose seed lists agree found one cluster, never two. Only the lowest seed founds,
//! and only when every seed is there, is empty, and has the same list; whoever knows a cluster is joined.
//! Not here: who is asked, and how often.

use super::features::FeatureLevel;
use super::lineage::Lineage;
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// What a seed said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub disk: u64,
    /// Empty while it belongs to none.
    pub cluster_id: String,
    pub seeds: Vec<String>,
    /// In use in its cluster.
    pub features: FeatureLevel,
    /// Of its metadata.
    pub lineage: Lineage,
    /// It hears who leads the metadata group, and a majority of it.
    pub metadata_led: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Found,
    /// Ask this address to be taken in.
    Join(String),
    /// Nothing yet; why.
    Wait(String),
    /// Seeds that belong to different clusters: a mistake in the list, which nobody but its author can mend.
    Split(String),
}

/// `answers`: each seed of our list with what it said, or why it said nothing.
pub fn decide(own_disk: u64, answers: &[(String, Result<Heard, String>)]) -> Verdict {
    let heard = || {
        answers
            .iter()
            .filter_map(|(a, h)| Some((a, h.as_ref().ok()?)))
    };
    let clusters: BTreeSet<&str> = heard()
        .map(|(_, h)| h.cluster_id.as_str())
        .filter(|id| !id.is_empty())
        .collect();
    if clusters.len() > 1 {
        let members = heard().filter(|(_, h)| !h.cluster_id.is_empty());
        let list: Vec<_> = members
            .map(|(address, h)| format!("{address} to {}", h.cluster_id))
            .collect();
        return Verdict::Split(list.join(", "));
    }
    let members = heard().filter(|(_, h)| !h.cluster_id.is_empty());
    // What is left from before a forced recovery is no cluster to be taken in by.
    if let Some((address, _)) = members.min_by_key(|(_, h)| Reverse(h.lineage.generation)) {
        return Verdict::Join(address.clone());
    }
    let ours: BTreeSet<&str> = answers.iter().map(|(a, _)| a.as_str()).collect();
    let mut missing = Vec::new();
    for (address, answer) in answers {
        match answer {
            Err(why) => missing.push(format!("{address} ({why})")),
            Ok(h) if h.seeds.iter().map(String::as_str).collect::<BTreeSet<_>>() != ours => {
                missing.push(format!(
                    "{address} (its seeds are {}: all must have the same list)",
                    h.seeds.join(",")
                ));
            }
            Ok(_) => {}
        }
    }
    if !missing.is_empty() {
        return Verdict::Wait(missing.join(", "));
    }
    let lowest = heard().min_by_key(|(address, _)| address.as_str());
    match lowest {
        Some((_, h)) if h.disk == own_disk => Verdict::Found,
        Some((address, _)) => Verdict::Wait(format!("{address} to found the cluster")),
        None => Verdict::Wait("a seed".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEDS: [&str; 3] = ["a:1", "b:1", "c:1"];

    fn empty(disk: u64) -> Result<Heard, String> {
        Ok(Heard {
            disk,
            cluster_id: String::new(),
            seeds: SEEDS.map(Into::into).into(),
            features: FeatureLevel::FIRST,
            lineage: Lineage::default(),
            metadata_led: false,
        })
    }

    fn answers(of: [Result<Heard, String>; 3]) -> Vec<(String, Result<Heard, String>)> {
        SEEDS.map(String::from).into_iter().zip(of).collect()
    }

    #[test]
    fn the_lowest_of_empty_seeds_founds_and_nobody_else() {
        let all = answers([empty(1), empty(2), empty(3)]);
        assert_eq!(decide(1, &all), Verdict::Found);
        for other in [2, 3, 4] {
            assert!(matches!(decide(other, &all), Verdict::Wait(_)));
        }
    }

    #[test]
    fn one_seed_that_is_away_holds_the_founding_back() {
        let all = answers([empty(1), Err("refused".into()), empty(3)]);
        assert_eq!(decide(1, &all), Verdict::Wait("b:1 (refused)".into()));
    }

    #[test]
    fn a_seed_with_another_list_holds_the_founding_back() {
        let mut other = empty(2).unwrap();
        other.seeds.push("d:1".into());
        let all = answers([empty(1), Ok(other), empty(3)]);
        assert!(matches!(decide(1, &all), Verdict::Wait(why) if why.contains("same list")));
    }

    #[test]
    fn a_cluster_that_anybody_knows_is_joined() {
        let mut member = empty(3).unwrap();
        member.cluster_id = "x".into();
        let all = answers([empty(1), Err("refused".into()), Ok(member)]);
        assert_eq!(decide(1, &all), Verdict::Join("c:1".into()));
    }

    #[test]
    fn who_was_recovered_by_force_is_joined_rather_than_who_is_left_of_before() {
        let of = |generation| {
            let mut member = empty(3).unwrap();
            member.cluster_id = "x".into();
            member.lineage.generation = generation;
            Ok(member)
        };
        let all = answers([of(0), of(1), of(1)]);
        assert_eq!(decide(9, &all), Verdict::Join("b:1".into()));
    }

    #[test]
    fn seeds_of_two_clusters_are_a_mistake() {
        let of = |disk, id: &str| {
            let mut member = empty(disk).unwrap();
            member.cluster_id = id.into();
            Ok(member)
        };
        let all = answers([of(1, "x"), empty(2), of(3, "y")]);
        assert!(matches!(decide(2, &all), Verdict::Split(_)));
    }
}
