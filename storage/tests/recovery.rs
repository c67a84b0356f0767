//! Directories that somebody damaged: what opens is true, what is not true does not open, and damage is a
//! torn tail only where power could have torn it.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests say what they expect by panicking"
)]

mod common;

use common::damage::{Files, SEEDS, apply, damage, disk_of, files_of, made};
use common::{Held, World, append_one, key, log_options, open, read};
use logd_storage::vfs::{SimFs, Vfs};
use logd_storage::{Disk, OpenError};
use proptest::prelude::*;
use std::path::PathBuf;

/// What every log says; `None` for one that is fenced or damaged.
fn look(disk: &Disk, world: &World, when: &str) -> Vec<Option<Held>> {
    world
        .logs()
        .map(|n| {
            let log = disk.open_log(key(n), log_options()).ok()?;
            let now = read(&log).ok()?;
            assert!(
                world.was_once(n, &now),
                "{when}, log {n}: it never held entries {:?}, purged {:?}, vote {:?}",
                now.entries.keys().collect::<Vec<_>>(),
                now.purged,
                now.vote
            );
            Some(now)
        })
        .collect()
}

fn check(files: &Files, world: &World, when: &str) {
    let fs = disk_of(files);
    let disk = match open(&fs) {
        Ok(disk) => disk,
        Err(e) => {
            assert!(!matches!(e, OpenError::Io { .. }), "{when}: {e}");
            assert!(open(&fs).is_err(), "{when}: refused once, opened then");
            return;
        }
    };
    while disk.pump() {}
    assert_eq!(disk.space().poisoned, None, "{when}");
    let first = look(&disk, world, when);
    drop(disk);
    let disk = open(&fs).unwrap_or_else(|e| panic!("{when}, opened once: {e}"));
    let second = look(&disk, world, when);
    assert_eq!(first, second, "{when}: a second recovery changed something");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn what_opens_is_true_and_stays_so(
        made_by in 0..SEEDS,
        damages in prop::collection::vec((any::<prop::sample::Index>(), damage()), 1..4),
    ) {
        let made = made(made_by);
        let mut files = made.files.clone();
        for (which, damage) in &damages {
            if !files.is_empty() {
                apply(&mut files, which.index(1 << 20), damage);
            }
        }
        check(&files, &made.world, "damaged");
    }
}

#[test]
fn what_nobody_damaged_opens_whole() {
    for n in 0..SEEDS {
        let disk = open(&disk_of(&made(n).files)).unwrap();
        made(n).world.check(&disk, &format!("workload {n}"));
    }
}

/// A disk with five groups of one entry each behind its checkpoint, each a block of the last file.
fn five_groups() -> (Files, PathBuf) {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    let log = disk.open_log(key(0), log_options()).unwrap();
    for _ in 0..5 {
        append_one(&log, 1, 1_000);
        while disk.pump() {}
    }
    drop((log, disk));
    fs.reboot();
    let files = files_of(&fs);
    let wal = files.keys().find(|f| f.to_string_lossy().ends_with(".wal"));
    let wal = wal.unwrap().clone();
    (files, wal)
}

const BLOCK: usize = 4_096;

fn with_damage_in_group(n: usize, at: usize) -> (SimFs, PathBuf) {
    let (mut files, wal) = five_groups();
    files.get_mut(&wal).unwrap()[n * BLOCK + at] ^= 0x40;
    (disk_of(&files), wal)
}

#[test]
fn damage_in_the_last_group_is_a_torn_tail_and_cut() {
    // Its header, its descriptor, its payload.
    for at in [20, 100, 700] {
        let (fs, _) = with_damage_in_group(5, at);
        let disk = open(&fs).unwrap();
        let log = disk.open_log(key(0), log_options()).unwrap();
        let held: Vec<u64> = read(&log).unwrap().entries.into_keys().collect();
        assert_eq!(held, [0, 1, 2, 3], "damage at {at}");
    }
}

#[test]
fn damage_in_an_earlier_group_is_said_by_file_and_position() {
    for n in 1..5 {
        for at in [20, 100, 700] {
            let (fs, wal) = with_damage_in_group(n, at);
            match open(&fs) {
                Err(OpenError::Corrupt { path, position, .. }) => {
                    assert_eq!(
                        (path, position as usize),
                        (wal, n * BLOCK),
                        "group {n}, {at}"
                    );
                }
                other => panic!("group {n}, damage at {at}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_missing_middle_file_is_damage() {
    let made = made(0);
    let wal: Vec<&PathBuf> = made
        .files
        .keys()
        .filter(|f| f.to_string_lossy().ends_with(".wal"))
        .collect();
    assert!(wal.len() > 2, "the workload fills a few files");
    let mut files = made.files.clone();
    files.remove(wal[wal.len() - 2]);
    match open(&disk_of(&files)) {
        Err(OpenError::Corrupt { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_length_without_bytes_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let fs: std::sync::Arc<dyn Vfs> = std::sync::Arc::new(logd_storage::vfs::RealFs);
    let open = || Disk::open(fs.clone(), dir.path(), common::disk_options(), &|_| {});
    drop(open().unwrap());
    for name in ["checkpoint", "disk", "format"] {
        let path = dir.path().join(name);
        let before = std::fs::read(&path).ok();
        let file = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .unwrap();
        file.set_len(1 << 42).unwrap();
        assert!(open().is_err(), "{name}");
        std::fs::remove_file(&path).unwrap();
        if let Some(bytes) = before {
            std::fs::write(&path, bytes).unwrap();
        }
    }
    drop(open().unwrap());
}
