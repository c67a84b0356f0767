//! Which brokers clients are not told of: those that are gone, for all anybody knows.
//!
//! Tools ask every broker they are told of, and wait for each; Kafka leaves fenced brokers out of what
//! it tells. Promise: a broker hides another only while it hears a majority of the registered ones, itself
//! counted, so one that is cut off hides nobody: a client keeps only what it was told last. And it hides
//! nobody whom a broker that it hears can hear.
//! Not here: who leads (`leaders`). A leader that is named is told of, whatever is said here.

use super::controller::Cluster;
use crate::peers::Standing;
use std::collections::BTreeSet;

/// What is known of a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It answers, or is this one.
    Here,
    /// It does not answer here, but another says that it answers there.
    HereForOthers,
    /// It was not met since this broker's start.
    NotYet,
    Gone,
}

fn away(brokers: &[(i32, Known)]) -> BTreeSet<i32> {
    let here = brokers.iter().filter(|(_, k)| *k == Known::Here).count();
    if here * 2 <= brokers.len() {
        return BTreeSet::new();
    }
    let gone = brokers.iter().filter(|(_, k)| *k == Known::Gone);
    gone.map(|(node, _)| *node).collect()
}

impl Cluster {
    /// The brokers that clients had better not wait for.
    pub fn away(&self) -> BTreeSet<i32> {
        let (view, hearing) = (self.view(), self.hearing());
        let standings = self.peers.standings();
        let standings = standings.borrow();
        let known = view.brokers.values().map(|broker| {
            let disk = broker.replica;
            let known = match standings.get(&disk) {
                _ if disk == self.disk() => Known::Here,
                Some(Standing::Alive { .. }) => Known::Here,
                _ if hearing.is_heard_elsewhere(disk) => Known::HereForOthers,
                Some(Standing::Dead { .. }) => Known::Gone,
                Some(Standing::Unknown) | None => Known::NotYet,
            };
            (broker.id, known)
        });
        away(&known.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Known::{Gone, Here, HereForOthers, NotYet};

    fn told(known: &[Known]) -> Vec<i32> {
        let brokers: Vec<_> = (1..).zip(known.iter().copied()).collect();
        away(&brokers).into_iter().collect()
    }

    #[test]
    fn who_is_gone_is_hidden_while_a_majority_is_heard() {
        assert_eq!(told(&[Here, Here, Gone]), [3]);
        assert_eq!(told(&[Here, Gone, Here, Gone, Here]), [2, 4]);
        assert!(told(&[Here, Here, Here]).is_empty());
    }

    #[test]
    fn who_is_cut_off_hides_nobody() {
        assert!(told(&[Here, Gone, Gone]).is_empty());
        assert!(told(&[Here, Gone]).is_empty(), "half is no majority");
        assert!(told(&[Here, HereForOthers, Gone]).is_empty());
        assert!(told(&[]).is_empty());
    }

    #[test]
    fn whom_others_hear_and_whom_nobody_has_met_yet_are_told_of() {
        assert!(told(&[Here, Here, HereForOthers]).is_empty());
        assert!(told(&[Here, Here, NotYet]).is_empty());
    }
}
