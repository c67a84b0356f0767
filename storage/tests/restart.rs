//! Stories of a restart at a bad moment: each one lost entries, or a whole disk, before it was told here.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests say what they expect by panicking"
)]

mod common;

use common::{ROOT, Rng, World, append_one, disk_options, key, log_options, open, overwrite, read};
use logd_storage::vfs::{Fault, SimFs, Vfs};
use logd_storage::{Captured, Disk, EntryId, Log, OpenError, StateSource};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn pump(disk: &Disk) {
    while disk.pump() {}
}

fn log(disk: &Disk) -> Log {
    disk.open_log(key(0), log_options()).unwrap()
}

fn indexes(log: &Log) -> Vec<u64> {
    read(log).unwrap().entries.into_keys().collect()
}

fn append(log: &Log, count: usize) {
    for _ in 0..count {
        append_one(log, 1, 1_000);
    }
}

fn nothing() -> logd_storage::Done {
    Box::new(|_| {})
}

fn files(fs: &SimFs, end: &str) -> Vec<PathBuf> {
    let all = fs.files().into_iter();
    all.filter(|f| f.to_string_lossy().ends_with(end)).collect()
}

#[test]
fn power_fails_again_and_again_and_work_goes_on_between() {
    for seed in 1..60 {
        let fs = SimFs::new(seed);
        let mut rng = Rng(seed);
        let mut world = World::default();
        for round in 0..6 {
            let when = format!("seed {seed}, round {round}");
            let disk = open(&fs).unwrap_or_else(|e| panic!("{when}: {e}"));
            world.settle(&disk, &when);
            fs.inject(Fault::PowerAfter(1 + rng.below(60) as u64));
            while world.step(&disk, &mut rng) {}
            drop(disk);
            fs.reboot();
        }
    }
}

#[test]
fn a_torn_group_with_a_whole_head_does_not_hide_the_group_that_took_its_number() {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    append(&log(&disk), 1);
    pump(&disk);
    append(&log(&disk), 1);
    pump(&disk);
    drop(disk);
    // The second group's payload did not make it, its head did; so it was never acknowledged.
    let wal = files(&fs, ".wal").remove(0);
    fs.flip_bit(&wal, 8_192 + 600, 0);
    fs.reboot();
    let disk = open(&fs).unwrap();
    assert_eq!(indexes(&log(&disk)), [0]);
    append(&log(&disk), 1);
    pump(&disk);
    drop(disk);
    fs.reboot();
    assert_eq!(indexes(&log(&open(&fs).unwrap())), [0, 1]);
}

#[test]
fn a_checkpoint_before_the_first_group_of_a_start_does_not_hide_what_follows() {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    append(&log(&disk), 1);
    pump(&disk);
    disk.close().unwrap();
    // Nothing is written in this start, so its checkpoint points at a file that is never made.
    open(&fs).unwrap().close().unwrap();
    let disk = open(&fs).unwrap();
    append(&log(&disk), 1);
    pump(&disk);
    drop(disk);
    fs.reboot();
    assert_eq!(indexes(&log(&open(&fs).unwrap())), [0, 1]);
}

#[test]
fn files_that_a_later_purge_removed_are_not_needed_to_replay_an_earlier_one() {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    let l = log(&disk);
    append(&l, 30);
    disk.checkpoint().unwrap();
    for index in [10, 25] {
        l.purge_to(EntryId { term: 1, index }, nothing()).unwrap();
        pump(&disk);
    }
    let held = read(&l).unwrap();
    drop((l, disk));
    let disk = open(&fs).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(read(&log(&disk)).unwrap(), held);
    assert!(disk.checkpoint().is_ok());
}

#[test]
fn files_that_a_later_truncation_removed_are_not_needed_to_replay_an_earlier_one() {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    let l = log(&disk);
    append(&l, 30);
    disk.checkpoint().unwrap();
    l.truncate_after(Some(25), nothing()).unwrap();
    append(&l, 2);
    pump(&disk);
    l.truncate_after(Some(10), nothing()).unwrap();
    append(&l, 2);
    pump(&disk);
    let (held, bounds) = (read(&l).unwrap(), l.bounds());
    drop((l, disk));
    let l = log(&open(&fs).unwrap_or_else(|e| panic!("{e}")));
    assert_eq!((read(&l).unwrap(), l.bounds()), (held, bounds));
}

#[test]
fn a_snapshot_that_ended_a_fence_replaces_the_log_again_after_a_restart() {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    append(&log(&disk), 30);
    disk.checkpoint().unwrap();
    drop(disk);
    let segment = files(&fs, ".log").remove(0);
    fs.flip_bit(&segment, 10, 0);
    let disk = open(&fs).unwrap();
    let l = disk.log(key(0)).unwrap();
    assert!(l.entries(0, 30, usize::MAX).is_err(), "damage is seen");
    let upto = EntryId { term: 1, index: 20 };
    l.install_snapshot(upto, 21, b"all".as_slice().into(), None, nothing())
        .unwrap();
    append(&l, 2);
    pump(&disk);
    let held = read(&l).unwrap();
    assert_eq!(held.entries.keys().copied().collect::<Vec<_>>(), [21, 22]);
    drop((l, disk));
    fs.reboot();
    let disk = open(&fs).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(read(&log(&disk)).unwrap(), held);
}

#[test]
fn a_log_deleted_before_its_folder_was_synced_does_not_end_the_disk() {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    append(&log(&disk), 3);
    pump(&disk);
    disk.delete_log(key(0)).unwrap();
    pump(&disk);
    disk.checkpoint().unwrap();
    assert_eq!(disk.space().poisoned, None);
}

#[test]
fn a_log_made_anew_keeps_its_captured_state_when_the_deletion_is_replayed() {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    // A full disk holds the deletion back, so that the checkpoint's position is before it and its images after.
    fs.inject(Fault::Space(0));
    append(&log(&disk), 3);
    assert!(disk.delete_log(key(0)).is_err());
    fs.inject(Fault::Space(1 << 30));
    let l = log(&disk);
    let upto = EntryId { term: 3, index: 7 };
    l.install_snapshot(upto, 40, b"all".as_slice().into(), None, nothing())
        .unwrap();
    l.set_state_source(Arc::new(Source(upto)));
    disk.checkpoint().unwrap();
    let bounds = l.bounds();
    drop((l, disk));
    fs.reboot();
    let disk = open(&fs).unwrap();
    assert_eq!(log(&disk).bounds(), bounds);
    assert_eq!(&log(&disk).recovered_state().unwrap().state[..], b"newer");
}

#[test]
fn a_segment_that_first_met_a_full_disk_has_its_name_synced_later() {
    for seed in 1..30 {
        let fs = SimFs::new(seed);
        let disk = open(&fs).unwrap();
        append(&log(&disk), 1);
        let used: u64 = fs
            .files()
            .iter()
            .filter_map(|f| fs.contents(f))
            .map(|c| c.len() as u64)
            .sum();
        // Room for the write-ahead log's file, not for a segment.
        fs.inject(Fault::Space(used + (64 << 10) + 2_048));
        pump(&disk);
        assert!(disk.checkpoint().is_err(), "nothing fits");
        fs.inject(Fault::Space(1 << 30));
        pump(&disk);
        disk.checkpoint().unwrap();
        drop(disk);
        fs.reboot();
        let disk = open(&fs).unwrap();
        assert_eq!(indexes(&log(&disk)), [0], "seed {seed}");
    }
}

struct Source(EntryId);

impl StateSource for Source {
    fn capture(&self) -> Option<Captured> {
        Some(Captured {
            applied: self.0,
            state: b"newer".as_slice().into(),
        })
    }
}

/// An owner as the broker's are: it holds the log whose state it is.
struct Owner {
    _log: Log,
    gone: Arc<AtomicU64>,
}

impl StateSource for Owner {
    fn capture(&self) -> Option<Captured> {
        None
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.gone.fetch_add(1, Ordering::SeqCst);
    }
}

/// It and its log held each other: every deleted topic kept its files open, and their space, until a restart.
#[test]
fn a_deleted_log_lets_go_of_its_owner() {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    let written = log(&disk);
    append(&written, 3);
    pump(&disk);
    let gone = Arc::new(AtomicU64::new(0));
    written.set_state_source(Arc::new(Owner {
        _log: written.clone(),
        gone: gone.clone(),
    }));
    drop(written);
    disk.delete_log(key(0)).unwrap();
    assert_eq!(gone.load(Ordering::SeqCst), 1);
}

fn refused(fs: &SimFs, path: &Path) {
    match open(fs) {
        Err(OpenError::Corrupt { path: named, .. }) => assert_eq!(named, path),
        other => panic!("opened, or another error: {other:?}"),
    }
}

/// A disk that ended in a crash, with groups behind its checkpoint.
fn crashed(seed: u64) -> (SimFs, PathBuf) {
    let fs = SimFs::new(seed);
    let disk = open(&fs).unwrap();
    append(&log(&disk), 2);
    disk.checkpoint().unwrap();
    for _ in 0..3 {
        append(&log(&disk), 2);
        pump(&disk);
    }
    drop(disk);
    fs.reboot();
    let wal = files(&fs, ".wal").pop().unwrap();
    (fs, wal)
}

#[test]
fn a_damaged_head_of_the_last_file_is_damage_and_not_an_empty_file() {
    let (fs, wal) = crashed(1);
    fs.flip_bit(&wal, 40, 3);
    refused(&fs, &wal);
}

#[test]
fn a_write_ahead_file_cut_short_is_damage_and_not_a_torn_tail() {
    let (fs, wal) = crashed(1);
    let mut bytes = fs.contents(&wal).unwrap();
    bytes.truncate(3 * 4_096);
    overwrite(&fs, &wal, &bytes);
    refused(&fs, &wal);
}

#[test]
fn without_its_identity_a_directory_with_data_is_not_a_new_one() {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    append(&log(&disk), 2);
    pump(&disk);
    drop(disk);
    let path = Path::new(ROOT).join("disk");
    fs.remove_file(&path).unwrap();
    refused(&fs, &path);
}

#[test]
fn without_its_checkpoint_a_directory_with_logs_is_not_an_empty_one() {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    append(&log(&disk), 2);
    disk.close().unwrap();
    open(&fs).unwrap().close().unwrap();
    let path = Path::new(ROOT).join("checkpoint");
    fs.remove_file(&path).unwrap();
    refused(&fs, &path);
}

#[test]
fn a_missing_segment_ends_its_log_and_not_the_disk() {
    let (fs, _) = crashed(1);
    for file in files(&fs, ".idx").into_iter().chain(files(&fs, ".log")) {
        fs.remove_file(&file).unwrap();
    }
    let disk = open(&fs).unwrap();
    pump(&disk);
    assert_eq!(disk.space().poisoned, None);
    assert!(
        disk.open_log(key(0), log_options()).is_err(),
        "it is fenced"
    );
    let other = disk.open_log(key(1), log_options()).unwrap();
    append(&other, 2);
    pump(&disk);
    assert_eq!(indexes(&other), [0, 1]);
}

#[test]
fn a_disk_that_is_dropped_has_stopped_writing_when_it_is_opened_again() {
    let fs = SimFs::new(1);
    let options = logd_storage::DiskOptions {
        pump: logd_storage::Pump::Threads,
        ..disk_options()
    };
    for round in 0..50 {
        let fs: Arc<dyn Vfs> = Arc::new(fs.clone());
        let open = || Disk::open(fs.clone(), Path::new(ROOT), options.clone(), &|_| {});
        let began = std::time::Instant::now();
        let disk = loop {
            match open() {
                Ok(disk) => break disk,
                // Its keeper may have the last handle for a moment: until then nobody gets in.
                Err(OpenError::Locked { .. }) if began.elapsed().as_secs() < 10 => {
                    std::thread::yield_now();
                }
                Err(e) => panic!("round {round}: {e}"),
            }
        };
        append(&log(&disk), 3);
    }
}

#[test]
fn checkpoints_under_way_lose_nothing_that_is_acknowledged_meanwhile() {
    for seed in 1..40 {
        let fs = SimFs::new(seed);
        // The disk's keeper may outlive the last of our handles, but not the power.
        let shared: Arc<dyn Vfs> = Arc::new(fs.process());
        let options = logd_storage::DiskOptions {
            pump: logd_storage::Pump::Threads,
            checkpoint_every: std::time::Duration::from_secs(3_600),
            ..disk_options()
        };
        let disk = Disk::open(shared, Path::new(ROOT), options, &|_| {}).unwrap();
        let acknowledged = Arc::new(AtomicU64::new(0));
        let written = log(&disk);
        fs.inject(Fault::PowerAfter(60 + seed * 7));
        std::thread::scope(|scope| {
            scope.spawn(|| while disk.checkpoint().is_ok() {});
            for index in 0.. {
                let told = acknowledged.clone();
                let done: logd_storage::Done = Box::new(move |result| {
                    if result.is_ok() {
                        told.fetch_max(index + 1, Ordering::SeqCst);
                    }
                });
                if written.append(vec![common::entry(index)], done).is_err() {
                    return;
                }
                std::thread::yield_now();
            }
        });
        drop((written, disk));
        fs.reboot();
        let disk = open(&fs).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let held = indexes(&log(&disk));
        let acknowledged = acknowledged.load(Ordering::SeqCst);
        assert!(
            held.len() as u64 >= acknowledged && held.iter().copied().eq(0..held.len() as u64),
            "seed {seed}: {acknowledged} were acknowledged, {} are there",
            held.len()
        );
    }
}

/// What the tests of crashes stand on: a thread that did not notice the end of its machine.
#[test]
fn whoever_outlives_the_power_changes_nothing_on_the_disk() {
    let fs = SimFs::new(1);
    let (from, to) = (Path::new("/data/from"), Path::new("/data/to"));
    let old = fs.process();
    let create = logd_storage::vfs::Open {
        write: true,
        create: true,
        ..logd_storage::vfs::Open::default()
    };
    old.create_dir_all(Path::new("/data")).unwrap();
    old.open(from, create).unwrap().sync_data().unwrap();
    old.sync_dir(Path::new("/data")).unwrap();
    fs.reboot();
    assert!(old.rename(from, to).is_err());
    assert!(old.open(to, create).is_err());
    assert!(old.remove_file(from).is_err());
    assert!(!old.exists(from), "it sees nothing, either");
    let new = fs.process();
    assert!(new.exists(from) && !new.exists(to));
    new.rename(from, to).unwrap();
}
