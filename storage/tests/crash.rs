//! Power goes during every single write and sync of a workload, with torn and reordered sectors; then:
//! everything acknowledged is there byte for byte, nothing torn is served, what is there is a prefix of
//! what was asked for, and opening once more changes nothing.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests say what they expect by panicking"
)]

mod common;

use common::{ROOT, Rng, World, disk_options, open};
use logd_storage::vfs::{Fault, SimFs};
use std::path::Path;

/// Steps of one workload: enough to roll segments, wrap the write-ahead log's files and checkpoint.
const STEPS: usize = 60;

fn run(fs: &SimFs, seed: u64) -> World {
    let mut world = World::default();
    let Ok(disk) = open(fs) else { return world };
    let mut rng = Rng(seed);
    for _ in 0..STEPS {
        if !world.step(&disk, &mut rng) {
            break;
        }
    }
    world
}

fn cut_everywhere(seed: u64) {
    let whole = SimFs::new(seed);
    run(&whole, seed);
    let operations = whole.operations();
    assert!(operations > 100, "the workload reaches the disk");
    for n in 1..=operations {
        let fs = SimFs::new(seed);
        fs.inject(Fault::PowerAfter(n));
        let world = run(&fs, seed);
        fs.reboot();
        let first = {
            let disk = open(&fs).unwrap_or_else(|e| panic!("seed {seed}, power cut at {n}: {e}"));
            world.check(&disk, &format!("seed {seed}, power cut at {n}"))
        };
        let disk = open(&fs)
            .unwrap_or_else(|e| panic!("seed {seed}, power cut at {n}, second start: {e}"));
        let second = world.check(
            &disk,
            &format!("seed {seed}, power cut at {n}, second start"),
        );
        assert_eq!(
            first, second,
            "seed {seed}, power cut at {n}: a second recovery changed something"
        );
    }
}

#[test]
fn power_cut_at_every_operation_of_the_first_workload() {
    cut_everywhere(1);
}

#[test]
fn power_cut_at_every_operation_of_the_second_workload() {
    cut_everywhere(2);
}

#[test]
fn power_cut_at_every_operation_of_the_third_workload() {
    cut_everywhere(3);
}

#[test]
fn power_cut_during_recovery_loses_nothing_either() {
    let before = SimFs::new(9);
    let world = run(&before, 9);
    drop(before);
    for n in 1..200 {
        let fs = SimFs::new(9);
        let again = run(&fs, 9);
        assert_eq!(again.summary(), world.summary());
        fs.reboot();
        fs.inject(Fault::PowerAfter(n));
        let finished = open(&fs).is_ok() && fs.operations() < n;
        fs.reboot();
        let disk = open(&fs).unwrap_or_else(|e| panic!("second power cut at {n}: {e}"));
        again.check(&disk, &format!("second power cut at {n}"));
        if finished {
            return;
        }
    }
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_and_nothing_acknowledged_is_lost() {
    for n in 1..40 {
        let fs = SimFs::new(5);
        fs.inject(Fault::SyncErrorOnce(n));
        let mut world = World::default();
        if let Ok(disk) = open(&fs) {
            let mut rng = Rng(5);
            let mut poisoned_at = None;
            for step in 0..STEPS {
                world.step(&disk, &mut rng);
                if disk.space().poisoned.is_some() && poisoned_at.is_none() {
                    poisoned_at = Some((step, world.acknowledged()));
                }
            }
            if let Some((step, acknowledged)) = poisoned_at {
                assert_eq!(
                    world.acknowledged(),
                    acknowledged,
                    "sync {n}: acknowledged after the disk was poisoned in step {step}"
                );
            }
        }
        fs.reboot();
        let disk = open(&fs).unwrap_or_else(|e| panic!("sync error at {n}: {e}"));
        world.check(&disk, &format!("sync error at {n}"));
    }
}

/// Later writes and the checkpoint would cover up for an acknowledgement that came too early.
#[test]
fn power_gone_right_after_a_failed_sync_takes_nothing_acknowledged_along() {
    for n in 1..40 {
        let fs = SimFs::new(6);
        fs.inject(Fault::SyncErrorOnce(n));
        let mut world = World::default();
        if let Ok(disk) = open(&fs) {
            let mut rng = Rng(6);
            for _ in 0..STEPS {
                world.step(&disk, &mut rng);
                if fs.has_failed_a_sync() {
                    break;
                }
            }
        }
        assert!(fs.has_failed_a_sync(), "the workload syncs {n} times");
        fs.reboot();
        let disk = open(&fs).unwrap_or_else(|e| panic!("sync error at {n}: {e}"));
        world.check(&disk, &format!("power cut after a sync error at {n}"));
    }
}

/// A write that failed may be read back by the next process all the same, from a cache of the kernel's or of
/// the disk's own. Once that process counts on it, the next power cut must not take it away.
#[test]
fn what_a_start_finds_after_a_failed_sync_survives_the_next_power_cut() {
    for (n, steps) in (1..40).flat_map(|n| [(n, 0), (n, 8)]) {
        let when = format!("sync error at {n}, {steps} steps later");
        let fs = SimFs::new(8);
        fs.inject(Fault::SyncErrorOnce(n));
        let (mut world, mut rng) = (World::default(), Rng(8));
        if let Ok(disk) = open(&fs) {
            for _ in 0..STEPS {
                world.step(&disk, &mut rng);
                if fs.has_failed_a_sync() {
                    break;
                }
            }
        }
        let disk = open(&fs).unwrap_or_else(|e| panic!("{when}, first start: {e}"));
        world.settle(&disk, &when);
        for _ in 0..steps {
            world.step(&disk, &mut rng);
        }
        drop(disk);
        fs.reboot();
        let disk = open(&fs).unwrap_or_else(|e| panic!("{when}: {e}"));
        world.check(&disk, &when);
    }
}

#[test]
fn a_full_disk_loses_nothing_and_goes_on_when_there_is_room() {
    let fs = SimFs::new(4);
    let mut world = World::default();
    let disk = open(&fs).unwrap();
    let mut rng = Rng(4);
    for _ in 0..20 {
        world.step(&disk, &mut rng);
    }
    let used: u64 = fs
        .files()
        .iter()
        .filter_map(|f| fs.contents(f))
        .map(|c| c.len() as u64)
        .sum();
    fs.inject(Fault::Space(used));
    for _ in 0..20 {
        world.step(&disk, &mut rng);
    }
    assert!(!disk.space().accepting, "the doors are told");
    fs.inject(Fault::Space(used * 100));
    for _ in 0..10 {
        world.step(&disk, &mut rng);
        disk.pump();
    }
    assert!(disk.space().accepting, "and told again when there is room");
    world.check(&disk, "with room again");
    drop(disk);
    fs.reboot();
    world.check(&open(&fs).unwrap(), "after a restart");
}

#[test]
fn a_flipped_bit_is_never_served_and_never_a_panic() {
    let clean = SimFs::new(7);
    let world = run(&clean, 7);
    let files = clean.files();
    drop(clean);
    let mut rng = Rng(77);
    for round in 0..300 {
        let fs = SimFs::new(7);
        run(&fs, 7);
        fs.reboot();
        let file = &files[rng.below(files.len())];
        let Some(len) = fs.contents(file).map(|c| c.len()).filter(|l| *l > 0) else {
            continue;
        };
        fs.flip_bit(file, rng.below(len) as u64, rng.below(8) as u8);
        // Refusing to open, or fencing a log, is an answer; serving other bytes is not.
        if let Ok(disk) = open(&fs) {
            world.check_no_lies(
                &disk,
                &format!("round {round}, a bit of {} flipped", file.display()),
            );
        }
    }
}

#[test]
fn random_files_are_refused_and_never_a_panic() {
    let mut rng = Rng(13);
    for _ in 0..200 {
        let fs = SimFs::new(1);
        run(&fs, 1);
        fs.reboot();
        let files = fs.files();
        let file = &files[rng.below(files.len())];
        common::scribble(&fs, file, &mut rng);
        if let Ok(disk) = open(&fs) {
            for key in disk.logs() {
                common::read_everything(&disk, key);
            }
        }
    }
}

#[test]
fn a_folder_of_another_kind_or_version_is_refused_with_what_to_do() {
    let fs = SimFs::new(1);
    drop(open(&fs).unwrap());
    common::overwrite(
        &fs,
        &Path::new(ROOT).join("format"),
        b"logd data directory, format 999\n",
    );
    let error = logd_storage::Disk::open(
        std::sync::Arc::new(fs),
        Path::new(ROOT),
        disk_options(),
        &|_| {},
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("format"), "{error}");
}

/// Found by the client matrix: the folder was in the trash when the checkpoint wanted to sync it.
#[test]
fn a_log_deleted_before_the_checkpoint_does_not_stop_the_disk() {
    let fs = SimFs::new(3);
    let disk = open(&fs).unwrap();
    let mut world = World::default();
    let mut rng = Rng(3);
    for _ in 0..20 {
        world.step(&disk, &mut rng);
    }
    while disk.pump() {}
    for key in disk.logs() {
        disk.delete_log(key).unwrap();
    }
    while disk.pump() {}
    disk.checkpoint().unwrap();
    assert_eq!(disk.space().poisoned, None);
    drop(disk);
    fs.reboot();
    assert_eq!(open(&fs).unwrap().logs(), []);
}
