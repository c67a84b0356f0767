//! Three brokers in one thread: real partitions, replicas and metadata on a simulated network, clock and
//! disk. A seed is a run; every run ends healed, at rest, and equal.
//!
//! ```text
//! LOGD_SIM_SEED=17 cargo test -p logd --test sim good          one seed, again
//! LOGD_SIM_SEED=17 LOGD_SIM_TRACE=1 ... -- --nocapture         with all that happens
//! LOGD_SIM_SEEDS=10000 cargo test -p logd --test sim good      many
//! ```
//! Not here: sockets, the broker's start and its doors (`peers`, `server`, `api`), consumer groups.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod dice;
mod trace;

mod broker;
mod client;
mod link;
mod net;

mod keyed;
mod operator;
mod producer;
mod reader;
mod recovered;

mod chaos;
mod faults;
mod forged;
mod healing;
mod invariants;
mod lies;
mod said;
mod scans;
mod tally;
mod watch;
mod world;

use lies::Lie;
use logd::topic_config::TopicConfig;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tally::Tally;
use world::World;

/// The topic whose partitions are simulated.
pub const TOPIC: [u8; 16] = [7; 16];
pub const PARTITIONS: u32 = 3;
pub const PRODUCERS_PER_PARTITION: usize = 2;

/// The partition that is compacted.
pub const COMPACTED: u32 = 2;

/// What brokers' clocks show when a run begins.
pub const CLOCK_BEGINS_MS: i64 = 1_000_000;

/// The disks that found every group.
pub const FOUNDERS: [u64; net::BROKERS] = [1, 2, 3];

/// How long things go wrong, in simulated time.
const BAD_DAYS_MS: u64 = 20_000;

/// Whether a partition is compacted: then records of it may be gone.
pub fn may_lack_records(partition: u32) -> bool {
    partition == COMPACTED
}

/// Small segments, and little of them kept in one partition: snapshots and purges come often. Another is compacted,
/// and tombstones go within seconds.
pub fn topic_config(partition: u32) -> Arc<TopicConfig> {
    let text = |n: u32| n.to_string();
    let mut asked = BTreeMap::from([("segment.bytes".to_owned(), text(16 << 10))]);
    if partition == 0 {
        asked.insert("retention.bytes".into(), text(48 << 10));
    }
    if may_lack_records(partition) {
        asked.insert("cleanup.policy".into(), "compact".into());
        asked.insert("min.cleanable.dirty.ratio".into(), "0.01".into());
        asked.insert("min.compaction.lag.ms".into(), text(100));
        asked.insert("delete.retention.ms".into(), text(1_500));
    }
    Arc::new(TopicConfig::parse(&asked).expect("a configuration"))
}

struct Run {
    trace: String,
    verdict: Result<(), String>,
    tally: Tally,
}

fn run(seed: u64, lie: Lie) -> Run {
    let echo = std::env::var_os("LOGD_SIM_TRACE").is_some();
    // A thread of its own: the seed is the thread's. What tokio and hash maps draw nobody can seed, so
    // nothing that matters may follow from them: not from which of two watchers of one value wakes first.
    let running = std::thread::spawn(move || {
        logd::raft::seed_randomness(seed);
        lie.begin();
        let mut world = World::new(seed, lie, echo);
        let _hearing = world.said.hear();
        let days = AssertUnwindSafe(|| {
            world.begin()?;
            while world.now < BAD_DAYS_MS {
                world.step()?;
            }
            world.heal();
            world.settle()
        });
        let verdict = catch_unwind(days).unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("a panic: {}", said.unwrap_or("of no words")))
        });
        let tally = world.tally();
        world.brokers.iter_mut().for_each(|b| b.switch_off());
        let trace = std::mem::take(&mut world.trace).into_text();
        Run {
            trace,
            verdict,
            tally,
        }
    });
    running.join().expect("a run that catches its panics")
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number"))
}

/// Runs seeds on a few threads; the verdicts, in order.
fn run_all(seeds: std::ops::Range<u64>, lie: Lie) -> Vec<(u64, Run)> {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut all: Vec<(u64, Run)> = std::thread::scope(|scope| {
        let work = || {
            let mut mine = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return mine;
                }
                mine.push((seed, run(seed, lie)));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .flat_map(|w| w.join().expect("a worker"))
            .collect()
    });
    all.sort_by_key(|(seed, _)| *seed);
    all
}

fn report(seed: u64, run: &Run) -> Option<String> {
    let why = run.verdict.as_ref().err()?;
    Some(format!(
        "seed {seed}: {why}\nagain: LOGD_SIM_SEED={seed} cargo test -p logd --test sim good\n\
         the end of its trace:\n{}\n",
        trace::tail(&run.trace, 30)
    ))
}

#[test]
fn a_good_cluster_survives_bad_days() {
    let seeds = match number("LOGD_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..number("LOGD_SIM_SEEDS").unwrap_or(8) + 1,
    };
    let runs = run_all(seeds, Lie::None);
    let mut tally = Tally::default();
    runs.iter().for_each(|(_, r)| tally.add(&r.tally));
    let lines: usize = runs.iter().map(|(_, r)| r.trace.lines().count()).sum();
    println!("{} seeds, {lines} lines of trace: {tally:?}", runs.len());
    let bad: Vec<String> = runs.iter().filter_map(|(s, r)| report(*s, r)).collect();
    assert!(
        bad.is_empty(),
        "{} bad seeds\n{}",
        bad.len(),
        bad.join("\n")
    );
    // One seed need not meet everything, a set of them must.
    if runs.len() > 1 {
        let missing = tally.missing();
        assert!(missing.is_empty(), "these seeds prove little: {missing:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 2, 3] {
        let (once, again) = (run(seed, Lie::None), run(seed, Lie::None));
        if once.trace != again.trace {
            let mut lines = once.trace.lines().zip(again.trace.lines()).enumerate();
            let parts = lines.find(|(_, (a, b))| a != b);
            panic!("seed {seed} parts at {parts:?}");
        }
    }
}

/// Every hand-over fails: each must end with somebody who leads all the same.
#[test]
fn a_hand_over_that_gets_lost_stops_nothing() {
    let runs = run_all(1..6, Lie::HandOversLost);
    let bad: Vec<String> = runs.iter().filter_map(|(s, r)| report(*s, r)).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Runs seeds until the lie is found out.
fn find_out(lie: Lie) {
    const SEEDS_MAX: u64 = 30;
    for seed in 1..=SEEDS_MAX {
        match run(seed, lie).verdict {
            // That nothing moves any more is no proof of what the lie did.
            Err(why) if !why.starts_with(watch::NO_REST) => {
                println!("{lie:?} is found out by seed {seed}: {why}");
                return;
            }
            _ => {}
        }
    }
    panic!("{lie:?} was not found out by {SEEDS_MAX} seeds");
}

#[test]
fn disks_that_only_say_that_they_synced_are_found_out() {
    find_out(Lie::NoSync);
}

#[test]
fn a_follower_that_stores_nothing_is_found_out() {
    find_out(Lie::StoresNothing);
}

#[test]
fn trap_13_a_high_watermark_that_comes_too_early_is_found_out() {
    find_out(Lie::EarlyCommit);
}

#[test]
fn a_vote_given_twice_is_found_out() {
    find_out(Lie::VotesForAll);
}

#[test]
fn an_empty_disk_under_an_old_name_is_found_out() {
    find_out(Lie::WipedDisk);
}

#[test]
fn a_compaction_that_loses_a_keys_last_value_is_found_out() {
    find_out(Lie::LosesLast);
}

#[test]
fn trap_29_a_tombstone_that_goes_before_what_it_removes_is_found_out() {
    find_out(Lie::BuriesEarly);
}

#[test]
fn a_compaction_that_moves_offsets_is_found_out() {
    find_out(Lie::Renumbers);
}

#[cfg(feature = "mutants")]
#[test]
fn a_leader_that_goes_on_in_its_old_term_is_found_out() {
    find_out(Lie::LeadersRestored);
}
