//! The offline inspector: it writes nothing, finds whatever recovery or a read would refuse, and shows what is
//! there.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests say what they expect by panicking"
)]

mod common;

use common::damage::{Files, SEEDS, apply, damage, disk_of, files_of, made};
use common::{ROOT, append_one, key, log_options, open, read};
use logd_storage::inspect::{Change, Directory, Finding, IfRunning, Place, Severity, Verified};
use logd_storage::vfs::{SimFs, Vfs};
use logd_storage::{Disk, OpenError};
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;

fn directory(fs: &SimFs) -> Directory {
    let fs: Arc<dyn Vfs> = Arc::new(fs.clone());
    Directory::open(fs, Path::new(ROOT), IfRunning::Refuse).unwrap()
}

fn verify(fs: &SimFs) -> (Verified, Vec<Finding>) {
    let mut findings = Vec::new();
    let done = directory(fs).verify(&mut |_| None, &mut |f| findings.push(f));
    (done, findings)
}

fn damages(findings: &[Finding]) -> Vec<&Finding> {
    let all = findings.iter();
    all.filter(|f| f.severity == Severity::Damage).collect()
}

#[test]
fn what_nobody_damaged_has_no_findings_and_nothing_is_written() {
    for n in 0..SEEDS {
        let fs = disk_of(&made(n).files);
        let before = fs.operations();
        let (done, findings) = verify(&fs);
        assert!(damages(&findings).is_empty(), "workload {n}: {findings:#?}");
        assert!(
            done.logs > 0 && done.rows > 10 && done.segments > 3,
            "{done:?}"
        );
        assert_eq!(fs.operations(), before, "nothing is written");
        assert!(made(n).files == files_of(&fs));
    }
}

#[test]
fn a_directory_in_use_is_refused_unless_the_caller_insists() {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    let shared: Arc<dyn Vfs> = Arc::new(fs.clone());
    let refused = Directory::open(shared.clone(), Path::new(ROOT), IfRunning::Refuse);
    assert!(matches!(refused, Err(OpenError::Locked { .. })));
    let anyway = Directory::open(shared, Path::new(ROOT), IfRunning::ReadAnyway).unwrap();
    assert!(anyway.is_running());
    drop(disk);
    assert!(!directory(&fs).is_running());
}

#[test]
fn on_a_real_disk_a_lock_is_seen_and_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let fs: Arc<dyn Vfs> = Arc::new(logd_storage::vfs::RealFs);
    let look = || Directory::open(fs.clone(), dir.path(), IfRunning::Refuse);
    assert!(look().is_ok());
    assert!(!dir.path().join("LOCK").exists());
    let disk = Disk::open(fs.clone(), dir.path(), common::disk_options(), &|_| {}).unwrap();
    assert!(matches!(look(), Err(OpenError::Locked { .. })));
    drop(disk);
    assert!(look().is_ok());
}

#[test]
fn a_dump_tells_what_was_written() {
    let fs = SimFs::new(1);
    let disk = open(&fs).unwrap();
    let log = disk.open_log(key(0), log_options()).unwrap();
    for _ in 0..3 {
        append_one(&log, 2, 100);
    }
    while disk.pump() {}
    disk.checkpoint().unwrap();
    append_one(&log, 2, 100);
    log.truncate_after(Some(1), Box::new(|_| {})).unwrap();
    while disk.pump() {}
    drop((log, disk));
    let dir = directory(&fs);
    assert_eq!(dir.format(), Ok(1));
    assert_eq!(dir.identity().unwrap().start, 1);
    let checkpoint = dir.checkpoint().unwrap().unwrap();
    let logs: Vec<_> = checkpoint.logs().collect::<Result<_, _>>().unwrap();
    assert_eq!((logs[0].key, logs[0].end_offset), (key(0), 3));
    let mut changes = Vec::new();
    dir.groups(&mut |group| {
        let operations = group.operations.unwrap().into_iter();
        changes.extend(operations.map(|o| (group.needed, o.change)));
    })
    .unwrap();
    assert!(matches!(
        changes[..],
        [
            (false, Change::Entry { .. }),
            (false, Change::Entry { .. }),
            (false, Change::Entry { .. }),
            (true, Change::Entry { .. }),
            (
                true,
                Change::Truncate {
                    keep: Some(1),
                    end_offset: Some(2)
                }
            ),
        ]
    ));
    assert_eq!(dir.log_folders().unwrap(), [key(0)]);
    let segments = dir.segments(key(0)).unwrap();
    let segment = dir.segment(&segments[0].with_extension("log")).unwrap();
    let rows: Vec<u64> = segment.valid_rows().map(|r| r.row.index).collect();
    assert_eq!(rows, [0, 1, 2, 3], "what was cut is still in the file");
    let row = segment.valid_rows().nth(2).unwrap().row;
    assert_eq!(segment.payload(&row).unwrap(), vec![3; 100]);
}

#[test]
fn a_complaint_of_the_caller_is_a_finding_at_the_payload() {
    let fs = disk_of(&made(1).files);
    let (mut findings, mut seen) = (Vec::new(), 0);
    directory(&fs).verify(
        &mut |payload| {
            seen += 1;
            (payload.place == Place::Segment && payload.row.position == 0)
                .then(|| "not a batch".to_owned())
        },
        &mut |f| findings.push(f),
    );
    assert!(seen > findings.len() && !findings.is_empty());
    assert!(
        findings
            .iter()
            .all(|f| f.what == "not a batch" && f.position == 0)
    );
}

#[test]
fn a_damaged_payload_is_found_by_file_and_position() {
    let fs = disk_of(&made(1).files);
    let mut files = fs.files().into_iter();
    let log = files
        .find(|f| f.to_string_lossy().ends_with(".log"))
        .unwrap();
    fs.flip_bit(&log, 0, 0);
    let (_, findings) = verify(&fs);
    let found = damages(&findings);
    assert_eq!((&found[0].path, found[0].position), (&log, 0));
}

/// True if the disk opens and every log can be read to its end.
fn reads_whole(files: &Files) -> bool {
    let Ok(disk) = open(&disk_of(files)) else {
        return false;
    };
    while disk.pump() {}
    disk.logs().into_iter().all(|key| {
        let log = disk.open_log(key, log_options());
        log.is_ok_and(|log| read(&log).is_ok())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn whatever_is_refused_is_found_before(
        made_by in 0..SEEDS,
        damages_made in prop::collection::vec((any::<prop::sample::Index>(), damage()), 1..3),
    ) {
        let mut files = made(made_by).files.clone();
        for (which, damage) in &damages_made {
            apply(&mut files, which.index(1 << 20), damage);
        }
        let (_, findings) = verify(&disk_of(&files));
        prop_assert!(!damages(&findings).is_empty() || reads_whole(&files));
    }
}
