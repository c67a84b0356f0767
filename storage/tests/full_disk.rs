//! A disk that is full and gets room again: nothing waits for ever, and what gives space back needs none.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests say what they expect by panicking"
)]

mod common;

use common::{ROOT, Rng, World, append_one, disk_options, key, log_options, open};
use logd_storage::vfs::{Fault, RealFs, SimFs, Vfs};
use logd_storage::{Disk, DiskOptions, EntryId, Log, Pump, ReadError};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

fn used(fs: &SimFs) -> u64 {
    let files = fs.files().into_iter();
    files
        .filter_map(|f| fs.contents(&f))
        .map(|c| c.len() as u64)
        .sum()
}

fn with_threads(fs: &SimFs) -> Disk {
    let options = DiskOptions {
        pump: Pump::Threads,
        // The keeper is not to make room by a checkpoint.
        checkpoint_every: Duration::from_secs(3_600),
        ..disk_options()
    };
    let fs: Arc<dyn Vfs> = Arc::new(fs.clone());
    Disk::open(fs, Path::new(ROOT), options, &|_| {}).unwrap()
}

#[test]
fn the_last_operation_before_the_disk_was_full_is_done_when_there_is_room() {
    let fs = SimFs::new(1);
    fs.inject(Fault::Space(1_000));
    let disk = with_threads(&fs);
    let log = disk.open_log(key(0), log_options()).unwrap();
    let (tell, told) = mpsc::channel();
    let done = Box::new(move |r: std::io::Result<()>| tell.send(r.is_ok()).unwrap());
    // A vote, behind which no copy comes that would take the mark of the full disk away.
    log.save_vote(b"vote".as_slice().into(), done).unwrap();
    assert!(told.recv_timeout(Duration::from_millis(300)).is_err());
    assert!(!disk.space().accepting);
    fs.inject(Fault::Space(1 << 30));
    assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(true));
    assert!(disk.space().accepting, "the doors are told");
}

#[test]
fn the_last_copy_before_the_disk_was_full_is_done_when_there_is_room() {
    let fs = SimFs::new(1);
    let disk = with_threads(&fs);
    let log = disk.open_log(key(0), log_options()).unwrap();
    let (tell, told) = mpsc::channel();
    let done = Box::new(move |r: std::io::Result<()>| tell.send(r.is_ok()).unwrap());
    log.save_vote(b"vote".as_slice().into(), done).unwrap();
    told.recv_timeout(Duration::from_secs(10)).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    fs.inject(Fault::Space(used(&fs)));
    append_one(&log, 1, 1_000);
    let began = std::time::Instant::now();
    while disk.space().accepting {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "the disk is full"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(disk.checkpoint().is_err());
    fs.inject(Fault::Space(1 << 30));
    while disk.checkpoint().is_err() {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "copies go on when there is room"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn retention_and_deletion_give_space_back_to_copies_that_wait_for_it() {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    let log = disk.open_log(key(0), log_options()).unwrap();
    let other = disk.open_log(key(1), log_options()).unwrap();
    for _ in 0..30 {
        append_one(&log, 1, 1_000);
        append_one(&other, 1, 1_000);
    }
    disk.checkpoint().unwrap();
    fs.inject(Fault::Space(used(&fs)));
    for _ in 0..12 {
        append_one(&log, 1, 2_000);
    }
    while disk.pump() {}
    assert!(!disk.space().accepting, "copies wait for space");
    let before = used(&fs);
    log.purge_to(EntryId { term: 1, index: 20 }, Box::new(|_| {}))
        .unwrap();
    while disk.pump() {}
    assert!(
        used(&fs) < before || disk.space().accepting,
        "the purge gave space back"
    );
    disk.delete_log(key(1)).unwrap();
    while disk.pump() {}
    assert!(
        fs.files()
            .iter()
            .all(|f| !f.to_string_lossy().contains(&format!("logs/{}", key(1)))),
        "the deleted log is in the trash"
    );
}

/// Found by hand: connections that took every descriptor had the disk declared failed, and the broker ended.
#[test]
fn descriptors_that_run_out_for_a_while_end_nothing_and_lose_nothing() {
    for seed in 1..40 {
        let fs = SimFs::new(seed);
        let disk = open(&fs).unwrap();
        let mut rng = Rng(seed);
        let mut world = World::default();
        for step in 0..90 {
            // Gone for ten steps of every thirty, in which segments, files of the log and checkpoints come due.
            fs.inject(Fault::Descriptors(step % 30 >= 20));
            world.step(&disk, &mut rng);
            assert_eq!(disk.space().poisoned, None, "seed {seed}, step {step}");
        }
        fs.inject(Fault::Descriptors(false));
        while disk.pump() {}
        disk.checkpoint().unwrap();
        assert!(disk.space().accepting, "seed {seed}");
        world.check(&disk, &format!("seed {seed}, with descriptors again"));
        drop(disk);
        fs.reboot();
        world.check(
            &open(&fs).unwrap(),
            &format!("seed {seed}, after a power cut"),
        );
    }
}

/// Open files of this process below a folder.
fn open_below(dir: &Path) -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    all.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
        .filter(|file| file.starts_with(dir))
        .count()
}

/// Found by a test on a loaded machine: segments that waited for the checkpoint's sync held every descriptor,
/// and the checkpoint waited for copies that found none.
#[test]
fn segments_that_wait_for_their_sync_do_not_take_every_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let options = DiskOptions {
        open_segments_max: 8,
        ..disk_options()
    };
    let disk = Disk::open(Arc::new(RealFs), dir.path(), options, &|_| {}).unwrap();
    let log = disk.open_log(key(0), log_options()).unwrap();
    for _ in 0..40 {
        append_one(&log, 1, 9_000);
        disk.pump();
    }
    let open = open_below(&dir.path().join("logs"));
    assert!(open <= 2 * 8, "{open} files of 40 segments are open");
    disk.checkpoint().unwrap();
}

/// What was compacted last is then in the write-ahead log alone.
#[test]
fn a_base_that_a_restart_finds_no_room_to_copy_is_not_damaged_and_is_read_when_there_is_room() {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    let log = disk.open_log(key(0), log_options()).unwrap();
    log.set_floor(0);
    for _ in 0..30 {
        append_one(&log, 1, 1_000);
    }
    while disk.pump() {}
    let base = log.segments().first().unwrap().last;
    log.purge_to(base, Box::new(|_| {})).unwrap();
    while disk.pump() {}
    let before = read_from_start(&log).unwrap();
    assert!(!log.base_segments().is_empty());
    drop((log, disk));
    fs.reboot();
    // Room for what a start writes itself, and for nothing else.
    let full = used(&fs);
    let disk = (0..1_000).step_by(8).find_map(|room| {
        fs.inject(Fault::Space(full + room));
        open(&fs).ok()
    });
    let disk = disk.unwrap();
    let log = disk.open_log(key(0), log_options()).unwrap();
    log.set_floor(0);
    let early = read_from_start(&log);
    assert!(matches!(early, Err(ReadError::Moved { .. })), "{early:?}");
    assert_eq!(log.fenced(), None);
    fs.inject(Fault::Space(1 << 30));
    while disk.pump() {}
    assert_eq!(read_from_start(&log).unwrap(), before);
}

fn read_from_start(log: &Log) -> Result<Vec<u8>, ReadError> {
    let plan = log.read(0, log.bounds().end_offset, 1 << 20, true)?;
    plan.warm()?;
    Ok(plan.slices.concat())
}
