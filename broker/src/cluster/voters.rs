//! The next step from the members a group has to those it should have. Pure.
//!
//! Promise: one step at a time, none while a change is under way; a replica votes only after it has
//! caught up, and one that leaves goes only together with the one that replaces it.
//! Not here: who should be a member (`placement`, the brokers that have joined).

use crate::raft::{Members, ReplicaId};
use std::collections::BTreeSet;

/// Voters of the metadata group at most: more of them make every change slower, not safer.
pub const METADATA_VOTERS_MAX: usize = 5;

/// A learner this close to the leader's end may vote: it is a few messages behind at most.
pub(super) const LAG_MAX: u64 = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    AddLearner(ReplicaId),
    SetVoters(BTreeSet<ReplicaId>),
    RemoveLearner(ReplicaId),
    /// Another one is to lead.
    HandOver(ReplicaId),
}

/// What the group's leader should do next so that `voters` vote, `learners` follow, and nobody else is a member.
pub fn next_step(
    now: &Members,
    voters: &BTreeSet<ReplicaId>,
    learners: &BTreeSet<ReplicaId>,
) -> Option<Step> {
    if now.changing {
        return None;
    }
    let members: BTreeSet<ReplicaId> = now.voters.union(&now.learners).copied().collect();
    let wanted = voters.union(learners);
    if let Some(new) = wanted.copied().find(|r| !members.contains(r)) {
        return Some(Step::AddLearner(new));
    }
    let caught_up = |r: &ReplicaId| now.voters.contains(r) || now.lag(*r) <= LAG_MAX;
    if now.voters != *voters && !voters.is_empty() && voters.iter().all(caught_up) {
        return Some(Step::SetVoters(voters.clone()));
    }
    let gone = |r: &&ReplicaId| !voters.contains(r) && !learners.contains(r);
    now.learners
        .iter()
        .find(gone)
        .copied()
        .map(Step::RemoveLearner)
}

/// What the leader `me` of a partition's group should do next so that `wanted` are its members. The first
/// of them that can is handed the leadership if `me` is to leave. Nothing is begun with a disk that is
/// not there: the group stays as it is until it comes.
pub fn partition_step(
    now: &Members,
    wanted: &[ReplicaId],
    me: ReplicaId,
    alive: impl Fn(ReplicaId) -> bool,
) -> Option<Step> {
    let voters: BTreeSet<ReplicaId> = wanted.iter().copied().collect();
    if now.changing || voters.is_empty() {
        return None;
    }
    let mut missing = wanted.iter().copied().filter(|r| !now.contains(*r));
    if let Some(first) = missing.next() {
        let there = std::iter::once(first).chain(missing).find(|r| alive(*r));
        return there.map(Step::AddLearner);
    }
    if now.voters == voters {
        return now.learners.first().copied().map(Step::RemoveLearner);
    }
    let there = |r: &ReplicaId| *r == me || alive(*r);
    let ready = |r: &ReplicaId| now.voters.contains(r) || (there(r) && now.lag(*r) <= LAG_MAX);
    if !wanted.iter().all(ready) {
        return None;
    }
    if voters.contains(&me) {
        return vote(now, voters, there);
    }
    let can_lead = |r: &&ReplicaId| now.voters.contains(r) && there(r) && now.lag(**r) <= LAG_MAX;
    match wanted.iter().find(can_lead) {
        Some(heir) => Some(Step::HandOver(*heir)),
        None => vote(now, voters.into_iter().chain([me]).collect(), there),
    }
}

/// A change of voters needs a majority of the new ones; without it the group would stand between two.
fn vote(
    now: &Members,
    voters: BTreeSet<ReplicaId>,
    there: impl Fn(&ReplicaId) -> bool,
) -> Option<Step> {
    let present = voters.iter().filter(|r| there(r)).count();
    let possible = 2 * present > voters.len() && voters != now.voters;
    possible.then_some(Step::SetVoters(voters))
}

/// Which of the brokers' disks should vote on metadata: an odd number, those that do already first.
/// As long as that number is not ready everything stays: two voters are worse than one, as either's
/// death stops both.
pub fn metadata_voters(
    now: &Members,
    brokers: &BTreeSet<ReplicaId>,
    me: ReplicaId,
    alive: impl Fn(ReplicaId) -> bool,
) -> BTreeSet<ReplicaId> {
    let most = brokers.len().min(METADATA_VOTERS_MAX);
    let room = most - usize::from(most.is_multiple_of(2) && most > 0);
    let votes = |r: &ReplicaId| now.voters.contains(r);
    let ready = |r: &ReplicaId| now.learners.contains(r) && now.lag(*r) <= LAG_MAX && alive(*r);
    let mut candidates: Vec<ReplicaId> = brokers
        .iter()
        .copied()
        .filter(|r| votes(r) || ready(r))
        .collect();
    candidates.sort_by_key(|r| (*r != me, !(votes(r) && alive(*r)), !votes(r), *r));
    candidates.truncate(room);
    if candidates.len() == room {
        candidates.into_iter().collect()
    } else {
        now.voters.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(of: &[u64]) -> BTreeSet<u64> {
        of.iter().copied().collect()
    }

    fn members(voters: &[u64], learners: &[u64], matched: &[(u64, u64)]) -> Members {
        Members {
            voters: set(voters),
            learners: set(learners),
            changing: false,
            last_index: 1_000,
            applied: 1_000,
            named_at: 1,
            matched: matched.iter().copied().collect(),
        }
    }

    #[test]
    fn a_new_replica_learns_before_it_votes() {
        let now = members(&[1], &[], &[]);
        assert_eq!(
            next_step(&now, &set(&[1, 2]), &set(&[])),
            Some(Step::AddLearner(2))
        );
        let behind = members(&[1], &[2], &[(2, 10)]);
        assert_eq!(next_step(&behind, &set(&[1, 2]), &set(&[])), None);
        let there = members(&[1], &[2], &[(2, 990)]);
        assert_eq!(
            next_step(&there, &set(&[1, 2]), &set(&[])),
            Some(Step::SetVoters(set(&[1, 2])))
        );
    }

    #[test]
    fn nothing_is_begun_while_a_change_is_under_way() {
        let mut now = members(&[1], &[], &[]);
        now.changing = true;
        assert_eq!(next_step(&now, &set(&[1, 2]), &set(&[])), None);
    }

    #[test]
    fn a_replaced_replica_goes_with_the_one_that_replaces_it() {
        let now = members(&[1, 2, 3], &[4], &[(4, 1_000)]);
        assert_eq!(
            next_step(&now, &set(&[1, 2, 4]), &set(&[])),
            Some(Step::SetVoters(set(&[1, 2, 4])))
        );
        let done = members(&[1, 2, 4], &[3], &[]);
        assert_eq!(
            next_step(&done, &set(&[1, 2, 4]), &set(&[])),
            Some(Step::RemoveLearner(3))
        );
        assert_eq!(
            next_step(&members(&[1, 2, 4], &[], &[]), &set(&[1, 2, 4]), &set(&[])),
            None
        );
    }

    fn step(now: &Members, wanted: &[u64], dead: &[u64]) -> Option<Step> {
        partition_step(now, wanted, 1, |r| !dead.contains(&r))
    }

    #[test]
    fn a_partition_grows_when_all_have_caught_up() {
        assert_eq!(
            step(&members(&[1], &[], &[]), &[1, 2, 3], &[2]),
            Some(Step::AddLearner(3))
        );
        let one = members(&[1], &[2, 3], &[(2, 1_000)]);
        assert_eq!(step(&one, &[1, 2, 3], &[]), None);
        let both = members(&[1], &[2, 3], &[(2, 1_000), (3, 1_000)]);
        assert_eq!(
            step(&both, &[1, 2, 3], &[]),
            Some(Step::SetVoters(set(&[1, 2, 3])))
        );
        assert_eq!(step(&both, &[1, 2, 3], &[3]), None, "it went away again");
    }

    #[test]
    fn a_leader_that_leaves_hands_over_to_one_that_stays() {
        let now = members(&[1, 2, 3], &[4], &[(2, 1_000), (3, 1_000), (4, 1_000)]);
        assert_eq!(step(&now, &[4, 3, 2], &[]), Some(Step::HandOver(3)));
        assert_eq!(step(&now, &[4, 3, 2], &[3]), Some(Step::HandOver(2)));
        // The one that took over goes on.
        assert_eq!(
            partition_step(&now, &[4, 3, 2], 3, |_| true),
            Some(Step::SetVoters(set(&[2, 3, 4])))
        );
    }

    #[test]
    fn where_nobody_stays_the_new_ones_vote_before_the_leader_goes() {
        let now = members(&[1], &[2], &[(2, 1_000)]);
        assert_eq!(step(&now, &[2], &[]), Some(Step::SetVoters(set(&[1, 2]))));
        let both = members(&[1, 2], &[], &[(2, 1_000)]);
        assert_eq!(step(&both, &[2], &[]), Some(Step::HandOver(2)));
        assert_eq!(step(&both, &[2], &[2]), None);
    }

    #[test]
    fn a_move_that_was_cancelled_leaves_no_learner_behind() {
        let now = members(&[1, 2, 3], &[4], &[]);
        assert_eq!(step(&now, &[1, 2, 3], &[]), Some(Step::RemoveLearner(4)));
        assert_eq!(step(&members(&[1, 2, 3], &[], &[]), &[1, 2, 3], &[]), None);
    }

    #[test]
    fn voters_are_not_reduced_to_those_that_are_away() {
        let now = members(&[1, 2, 3], &[], &[(3, 1_000)]);
        assert_eq!(step(&now, &[1, 2], &[2]), None);
        assert_eq!(
            step(&now, &[1, 3], &[2]),
            Some(Step::SetVoters(set(&[1, 3])))
        );
    }

    #[test]
    fn a_wiped_disk_is_replaced_by_the_new_one() {
        let old = members(&[1, 2, 3], &[], &[(2, 1_000)]);
        assert_eq!(step(&old, &[1, 2, 9], &[3]), Some(Step::AddLearner(9)));
        let there = members(&[1, 2, 3], &[9], &[(2, 1_000), (9, 1_000)]);
        assert_eq!(
            step(&there, &[1, 2, 9], &[3]),
            Some(Step::SetVoters(set(&[1, 2, 9])))
        );
    }

    #[test]
    fn metadata_goes_from_one_voter_to_three() {
        let brokers = set(&[1, 2, 3]);
        let one_ready = members(&[1], &[2, 3], &[(2, 1_000)]);
        assert_eq!(
            metadata_voters(&one_ready, &brokers, 1, |_| true),
            set(&[1])
        );
        let both = members(&[1], &[2, 3], &[(2, 1_000), (3, 1_000)]);
        assert_eq!(metadata_voters(&both, &brokers, 1, |_| true), brokers);
        assert_eq!(metadata_voters(&both, &brokers, 1, |r| r != 3), set(&[1]));
    }

    #[test]
    fn a_lost_metadata_voter_stays_until_its_replacement_is_ready() {
        let now = members(&[1, 2, 3], &[4], &[(4, 0)]);
        assert_eq!(
            metadata_voters(&now, &set(&[1, 2, 4]), 1, |_| true),
            set(&[1, 2, 3])
        );
    }

    #[test]
    fn with_two_brokers_left_one_votes() {
        let now = members(&[1, 2, 3], &[], &[]);
        assert_eq!(metadata_voters(&now, &set(&[1, 2]), 2, |_| true), set(&[2]));
    }

    #[test]
    fn a_replaced_metadata_voter_makes_room() {
        let now = members(&[1, 2, 3], &[4], &[(4, 1_000)]);
        assert_eq!(
            metadata_voters(&now, &set(&[1, 2, 4]), 1, |_| true),
            set(&[1, 2, 4])
        );
    }

    #[test]
    fn five_vote_and_the_sixth_learns() {
        let all = set(&[1, 2, 3, 4, 5, 6]);
        let caught_up: Vec<(u64, u64)> = all.iter().map(|r| (*r, 1_000)).collect();
        let now = members(&[1, 2, 3], &[4, 5, 6], &caught_up);
        assert_eq!(
            metadata_voters(&now, &all, 1, |_| true),
            set(&[1, 2, 3, 4, 5])
        );
    }
}
