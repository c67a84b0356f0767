//! A partition that goes on by force, and what is left of the group it was, on one network.
//!
//! The others here are worse than any real ones: they never learn that they are no more. They lead, as the
//! majority that they were, and talk to the survivor as if nothing had happened.

use crate::broker::SURVIVOR_TERM;
use crate::lies::Lie;
use crate::world::World;
use crate::{FOUNDERS, PARTITIONS};
use logd_storage::TermStart;
use std::collections::BTreeSet;

const SURVIVOR: usize = 0;
const OTHERS: [usize; 2] = [1, 2];

fn pass(world: &mut World, ms: u64) {
    for _ in 0..ms {
        world
            .step()
            .expect("nothing is promised, nothing is broken");
    }
}

fn switch_off(world: &mut World, broker: usize) {
    world.brokers[broker].switch_off();
    world.break_calls(broker, true);
}

fn terms(world: &World, partition: u32) -> Vec<TermStart> {
    let log = world.brokers[SURVIVOR].log(partition);
    log.expect("it has a log").terms()
}

/// The world in which two lead what was the group, and the third goes on with what it had; what its logs
/// are then.
fn survived(seed: u64, generation: u32) -> (World, Vec<Vec<TermStart>>) {
    logd::raft::seed_randomness(seed);
    let mut world = World::new(seed, Lie::None, false);
    world.fair_weather = true;
    world.begin().expect("three brokers");
    pass(&mut world, 8_000);
    switch_off(&mut world, SURVIVOR);
    // What these two acknowledge from here on the survivor will never have.
    pass(&mut world, 8_000);
    world.unwatched = true;
    for partition in 0..PARTITIONS {
        assert!(led_by_others(&world, partition).is_some(), "seed {seed}");
    }
    world.brokers[SURVIVOR].survives = true;
    world.brokers[SURVIVOR].generation = generation;
    world.restart(SURVIVOR).expect("its disk opens");
    let mut alone = Vec::new();
    for partition in 0..PARTITIONS {
        let begins = (0..2_000).any(|_| {
            pass(&mut world, 1);
            leads_alone(&world, partition)
        });
        assert!(begins, "seed {seed}: it goes on");
        alone.push(terms(&world, partition));
    }
    (world, alone)
}

fn leads_alone(world: &World, partition: u32) -> bool {
    let Some(replica) = world.brokers[SURVIVOR].partition(partition) else {
        return false;
    };
    let only = BTreeSet::from([FOUNDERS[SURVIVOR]]);
    replica.leadership().serving && replica.members().voters == only
}

/// The term in which one of the others leads what was the group.
fn led_by_others(world: &World, partition: u32) -> Option<u64> {
    let led = OTHERS.iter().find_map(|b| {
        let replica = world.brokers[*b].partition(partition)?;
        let leadership = replica.leadership();
        leadership.serving.then_some(leadership.epoch)
    });
    led.map(|epoch| u64::try_from(epoch).expect("a term"))
}

fn end(mut world: World) {
    world.brokers.iter_mut().for_each(|b| b.switch_off());
}

#[test]
fn a_majority_of_the_past_and_a_group_recovered_by_force_hear_nothing_of_each_other() {
    for seed in 1..=4 {
        let (mut world, alone) = survived(seed, 1);
        pass(&mut world, 15_000);
        for (partition, before) in (0..PARTITIONS).zip(&alone) {
            assert!(leads_alone(&world, partition), "seed {seed} p{partition}");
            assert_eq!(
                terms(&world, partition),
                *before,
                "seed {seed} p{partition}"
            );
            let theirs = led_by_others(&world, partition);
            let theirs = theirs.expect("they are a majority of what they take for the group");
            assert!(theirs < SURVIVOR_TERM, "seed {seed} p{partition}");
        }
        end(world);
    }
}

/// That the test above can fail: without generations the two sides are one group, and depose each other.
#[test]
fn without_generations_they_would_hear_each_other() {
    let (mut world, _) = survived(1, 0);
    let heard = (0..15_000).any(|_| {
        pass(&mut world, 1);
        (0..PARTITIONS).any(|partition| {
            let theirs = led_by_others(&world, partition);
            !leads_alone(&world, partition) || theirs.is_none_or(|term| term >= SURVIVOR_TERM)
        })
    });
    assert!(heard);
    end(world);
}
