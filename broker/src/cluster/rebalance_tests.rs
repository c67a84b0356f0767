//! The planner under random clusters, and the cases that have names.

use super::*;
use crate::cluster::duty::Duty;
use crate::cluster::state::{BrokerInfo, Command, TopicRecord};
use proptest::prelude::*;

fn broker(id: i32, rack: Option<u8>) -> BrokerInfo {
    BrokerInfo {
        id,
        replica: id as u64,
        start: 1,
        rack: rack.map(|r| format!("r{r}")),
        listeners: BTreeMap::new(),
        rpc: format!("b{id}:1"),
        features: crate::cluster::FeatureLevel::FIRST,
    }
}

fn topic(n: u8, partitions: Vec<Vec<i32>>, replication: Option<i16>) -> TopicRecord {
    TopicRecord {
        id: TopicId(Uuid::from_bytes([n; 16])),
        name: format!("t{n}"),
        internal: false,
        partitions,
        replication,
        disks: BTreeMap::new(),
        moves: BTreeMap::new(),
        moved: BTreeSet::new(),
        grown: BTreeMap::new(),
        recoveries: BTreeMap::new(),
        overrides: BTreeMap::new(),
    }
}

fn cluster(racks: &[Option<u8>], topics: Vec<TopicRecord>) -> ClusterState {
    let mut s = ClusterState::default();
    for (rack, id) in racks.iter().zip(1..) {
        s.apply(Command::RegisterBroker(broker(id, *rack)));
    }
    for record in topics {
        s.apply(Command::CreateTopic(record));
    }
    s
}

fn carry_out(s: &mut ClusterState, moves: Vec<Move>) {
    s.apply(Command::SetTargets {
        moves: moves.clone(),
    });
    s.apply(Command::MovesOver { over: moves });
}

fn counts(s: &ClusterState) -> (Vec<usize>, Vec<usize>) {
    let all = || s.topics.values().flat_map(|t| &t.partitions);
    let of = |n: &i32| all().filter(|p| p.contains(n)).count();
    let led = |n: &i32| all().filter(|p| p.first() == Some(n)).count();
    (
        s.brokers.keys().map(of).collect(),
        s.brokers.keys().map(led).collect(),
    )
}

#[test]
fn what_one_broker_held_grows_to_three_replicas_and_is_led_by_all() {
    let mut s = cluster(&[None, None, None], vec![topic(1, vec![vec![1]; 6], None)]);
    let moves = plan(&s, &|_| true, 0);
    assert_eq!(moves.len(), 6);
    carry_out(&mut s, moves);
    assert_eq!(counts(&s), (vec![6, 6, 6], vec![2, 2, 2]));
}

#[test]
fn a_wish_is_kept_and_two_brokers_are_no_reason_to_grow() {
    let wish = topic(1, vec![vec![1], vec![2], vec![3]], Some(1));
    let s = cluster(&[None, None, None], vec![wish]);
    assert_eq!(plan(&s, &|_| true, 0), []);
    let s = cluster(&[None, None], vec![topic(1, vec![vec![1], vec![2]], None)]);
    assert_eq!(plan(&s, &|_| true, 0), []);
}

#[test]
fn a_new_broker_takes_its_share_with_the_fewest_moves() {
    let partitions: Vec<Vec<i32>> = (0..12).map(|n| vec![n % 3 + 1]).collect();
    let mut s = cluster(&[None; 4], vec![topic(1, partitions, Some(1))]);
    let moves = plan(&s, &|_| true, 0);
    assert_eq!(moves.len(), 3, "{moves:?}");
    carry_out(&mut s, moves);
    assert_eq!(counts(&s).0, [3, 3, 3, 3]);
}

#[test]
fn replicas_that_share_a_rack_are_parted() {
    let racks = [Some(1), Some(1), Some(2), Some(2)];
    let mut s = cluster(
        &racks,
        vec![topic(1, vec![vec![1, 2], vec![3, 4]], Some(2))],
    );
    let moves = plan(&s, &|_| true, 0);
    carry_out(&mut s, moves);
    for replicas in s.topics.values().flat_map(|t| &t.partitions) {
        let racks: BTreeSet<_> = replicas.iter().map(|n| racks[*n as usize - 1]).collect();
        assert_eq!(racks.len(), 2, "{replicas:?}");
    }
}

#[test]
fn leadership_goes_round_corners() {
    // 1 leads too much and shares nothing with 3; 2 leads as much as it should and shares with both.
    let partitions = vec![vec![1, 2], vec![1, 2], vec![1, 2], vec![2, 3], vec![2, 3]];
    let mut s = cluster(&[None, None, None], vec![topic(1, partitions, Some(2))]);
    let moves = plan(&s, &|_| true, 0);
    carry_out(&mut s, moves);
    let (_, leaders) = counts(&s);
    assert!(leaders.iter().all(|l| (1..=2).contains(l)), "{leaders:?}");
}

#[test]
fn a_broker_that_leaves_is_emptied_as_far_as_there_is_room() {
    let partitions = vec![vec![1, 2], vec![4, 1], vec![1, 2, 3, 4]];
    let mut s = cluster(&[None; 4], vec![topic(1, partitions, None)]);
    let (node, duty) = (1, Duty::Leaving);
    s.apply(Command::SetDuty { node, duty });
    let moves = evacuate(&s, 1, &|_| true);
    assert_eq!(moves.len(), 2, "{moves:?}");
    carry_out(&mut s, moves);
    let left = s.topics.values().flat_map(|t| &t.partitions);
    assert_eq!(left.filter(|p| p.contains(&1)).count(), 1);
}

prop_compose! {
    fn clusters()(brokers in 1..7i32)(
        racks in prop::collection::vec(prop::option::of(0..3u8), brokers as usize),
        dead in prop::collection::btree_set(1..=brokers, 0..=(brokers as usize / 2)),
        duties in prop::collection::vec(0..6u8, brokers as usize),
        topics in prop::collection::vec(
            (prop::option::of(1..4i16), prop::collection::vec(
                prop::sample::subsequence((1..=brokers).collect::<Vec<_>>(), 1..=(brokers as usize).min(3))
                    .prop_shuffle(), 1..8)), 0..4),
    ) -> (ClusterState, BTreeSet<i32>) {
        let topics = topics.into_iter().zip(1..).map(|((wish, p), n)| topic(n, p, wish));
        let mut s = cluster(&racks, topics.collect());
        for (duty, node) in duties.into_iter().zip(1..) {
            let duty = match duty { 0 => Duty::Draining, 1 => Duty::Leaving, _ => Duty::Active };
            s.apply(Command::SetDuty { node, duty });
        }
        (s, dead)
    }
}

fn racks_of(s: &ClusterState, replicas: &[i32]) -> usize {
    let rack = |n: &i32| s.brokers[n].rack.clone().unwrap_or_else(|| n.to_string());
    replicas.iter().map(rack).collect::<BTreeSet<_>>().len()
}

proptest! {
    #[test]
    fn a_plan_takes_nothing_away_and_is_the_last((before, dead) in clusters()) {
        let alive = |n: i32| !dead.contains(&n);
        let mut after = before.clone();
        let moves = plan(&before, &alive, 0);
        for m in &moves {
            let (old, new) = (before.topics[&m.topic.0].target(m.partition).unwrap(), m.target.as_ref().unwrap());
            let live = |r: &[i32]| r.iter().filter(|n| alive(**n)).count();
            prop_assert!(live(new) >= live(old), "{old:?} -> {new:?}");
            prop_assert!(new.len() >= old.len());
            prop_assert!(racks_of(&before, new) >= racks_of(&before, old), "{old:?} -> {new:?}");
            for added in new.iter().filter(|n| !old.contains(n)) {
                prop_assert!(alive(*added) && before.takes_more(*added));
            }
            prop_assert_ne!(old, new);
        }
        let answer = after.apply(Command::SetTargets { moves: moves.clone() });
        let refused = matches!(answer, crate::cluster::state::Answer::Moves { refused } if refused.iter().any(Option::is_some));
        prop_assert!(!refused);
        after.apply(Command::MovesOver { over: moves });
        prop_assert_eq!(plan(&after, &alive, 0), vec![]);
    }

    #[test]
    fn an_evacuation_takes_nothing_away_but_the_one((before, dead) in clusters(), node in 1..7i32) {
        let alive = |n: i32| !dead.contains(&n);
        for m in evacuate(&before, node, &alive) {
            let (old, new) = (before.topics[&m.topic.0].target(m.partition).unwrap(), m.target.unwrap());
            prop_assert!(old.contains(&node) && !new.contains(&node));
            prop_assert_eq!(old.len(), new.len());
            let live = |r: &[i32]| r.iter().filter(|n| alive(**n)).count();
            prop_assert!(live(&new) >= live(old));
        }
    }
}

#[test]
fn what_goes_on_alone_is_given_all_the_replicas_that_there_are_brokers_for() {
    let s = cluster(&[None; 5], vec![topic(1, vec![vec![1, 2, 3]], None)]);
    let lost = s.topic("t1").unwrap();
    let refilled = |survivor, dead: &[i32]| {
        let alive = |n| !dead.contains(&n);
        refill(&s, lost, 0, survivor, &alive, 0)
    };
    assert_eq!(refilled(2, &[1, 3]), [2, 4, 5]);
    assert_eq!(refilled(3, &[1]), [3, 2, 4], "its own replicas first");
    assert_eq!(refilled(1, &[2, 3, 4]), [1, 5], "two are better than one");
    assert_eq!(refilled(1, &[2, 3, 4, 5]), [1]);
}
