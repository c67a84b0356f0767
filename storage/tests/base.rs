//! What lies below the Raft log: segments that stay, are read by offset, and go to another disk as files.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests say what they expect by panicking"
)]

mod common;

use bytes::Bytes;
use common::{append_one, key, log_options, open};
use logd_storage::vfs::{Fault, SimFs};
use logd_storage::{Disk, Done, EntryId, FilesError, Incoming, Log, Outgoing, Part, Want};

fn nothing() -> Done {
    Box::new(|_| {})
}

/// A log of which the first entries, up to the end of a segment, are the base's.
fn with_base(disk: &Disk) -> Log {
    let log = disk.open_log(key(0), log_options()).unwrap();
    log.set_floor(0);
    for term in [1, 2] {
        for _ in 0..12 {
            append_one(&log, term, 700);
        }
    }
    log.roll();
    append_one(&log, 2, 700);
    disk.checkpoint().unwrap();
    let last = log.bounds().last.unwrap();
    log.purge_to(last, nothing()).unwrap();
    disk.checkpoint().unwrap();
    assert_eq!(log.base_segments().last().unwrap().info().next_offset, 24);
    log
}

fn records(log: &Log, from: i64) -> Bytes {
    let end = log.bounds().end_offset;
    let plan = log.read(from, end, usize::MAX, true).unwrap();
    plan.warm().unwrap();
    plan.slices.concat().into()
}

fn purged(log: &Log) -> EntryId {
    log.bounds().purged.unwrap()
}

/// Copies until all is there, or so many pieces.
fn copy(from: &Outgoing, to: &mut Incoming, pieces: usize) -> Result<(), FilesError> {
    for _ in 0..pieces {
        let Some(want) = to.want() else { break };
        to.take(want, &from.piece(want, 300)?)?;
    }
    Ok(())
}

#[test]
fn what_was_purged_above_the_floor_is_read_by_offset_and_has_no_entries() {
    let fs = SimFs::new(1);
    let log = with_base(&open(&fs).unwrap());
    let bounds = log.bounds();
    assert_eq!((bounds.start_offset, bounds.first_index), (0, 24));
    assert_eq!(records(&log, 0).len(), 25 * 700);
    assert_eq!(records(&log, 23).len(), 2 * 700);
    assert!(log.entries(23, 24, 1).is_err(), "it is no entry any more");
    assert_eq!(log.row_at_time(95, 0).unwrap().base_offset, 10);
}

#[test]
fn below_the_floor_the_base_goes() {
    let fs = SimFs::new(2);
    let disk = open(&fs).unwrap();
    let log = with_base(&disk);
    let files = fs.files().len();
    assert!(
        !log.drop_below_floor(nothing()).unwrap(),
        "nothing is below"
    );
    log.set_floor(13);
    assert!(log.drop_below_floor(nothing()).unwrap());
    disk.checkpoint().unwrap();
    let start = log.bounds().start_offset;
    assert!((1..=13).contains(&start), "{start}");
    assert!(fs.files().len() < files, "files went");
    assert!(log.read(start - 1, 25, 1, true).is_err());
    assert_eq!(log.terms().first().unwrap().offset, start);
}

#[test]
fn another_disk_gets_the_files_and_goes_on_behind_them() {
    let (here, there) = (SimFs::new(3), SimFs::new(4));
    let log = with_base(&open(&here).unwrap());
    let disk = open(&there).unwrap();
    let copied = disk.open_log(key(0), log_options()).unwrap();
    copied.set_floor(0);
    append_one(&copied, 1, 10);
    let upto = purged(&log);
    let out = log.outgoing(upto, 24).unwrap().unwrap();
    assert_eq!(out.bytes(), 24 * 700);
    let mut files = copied.incoming(upto, out.offer()).unwrap();
    copy(&out, &mut files, usize::MAX).unwrap();
    assert_eq!(files.want(), None);
    let state = Bytes::from_static(b"state");
    copied
        .install_snapshot(upto, 24, state, Some(files), nothing())
        .unwrap();
    append_one(&copied, 2, 700);
    disk.pump();
    assert_eq!(records(&copied, 0), records(&log, 0));
    assert_eq!(copied.terms(), log.terms());
    assert_eq!(copied.bounds().purged, log.bounds().purged);
    // From the write-ahead log alone, then from a checkpoint.
    for checkpoint in [false, true] {
        drop(open_again(&there, checkpoint));
    }
    let disk = open_again(&there, true);
    let copied = disk.open_log(key(0), log_options()).unwrap();
    assert_eq!(records(&copied, 0), records(&log, 0));
    assert_eq!(copied.recovered_state().unwrap().applied, upto);
}

fn open_again(fs: &SimFs, checkpoint: bool) -> Disk {
    fs.reboot();
    let disk = open(fs).unwrap();
    if checkpoint {
        disk.checkpoint().unwrap();
    }
    disk
}

#[test]
fn a_piece_that_is_not_wanted_is_let_pass_and_one_that_differs_is_refused() {
    let (here, there) = (SimFs::new(5), SimFs::new(6));
    let log = with_base(&open(&here).unwrap());
    let disk = open(&there).unwrap();
    let copied = disk.open_log(key(0), log_options()).unwrap();
    let upto = purged(&log);
    let out = log.outgoing(upto, 24).unwrap().unwrap();
    let mut files = copied.incoming(upto, out.offer()).unwrap();
    let first = files.want().unwrap();
    copy(&out, &mut files, 3).unwrap();
    let next = files.want().unwrap();
    files.take(first, &out.piece(first, 300).unwrap()).unwrap();
    assert_eq!(files.want(), Some(next), "it came twice");
    let outcome = loop {
        let Some(want) = files.want() else {
            break Ok(());
        };
        let mut piece = out.piece(want, 300).unwrap().to_vec();
        if want.part == Part::Log {
            piece[0] ^= 1;
        }
        if let Err(error) = files.take(want, &piece) {
            break Err(error);
        }
    };
    assert!(matches!(outcome, Err(FilesError::Read(_))), "{outcome:?}");
    assert!(disk.space().poisoned.is_none() && copied.fenced().is_none());
    drop(files);
    let left = there.files();
    let left: Vec<_> = left
        .iter()
        .filter(|f| f.starts_with("/data/logs"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_offer_that_makes_no_sense_is_refused() {
    let fs = SimFs::new(7);
    let log = with_base(&open(&fs).unwrap());
    let upto = purged(&log);
    let out = log.outgoing(upto, 24).unwrap().unwrap();
    for bytes in [&b"nonsense"[..], &out.offer()[..out.offer().len() - 1]] {
        let offer = Bytes::copy_from_slice(bytes);
        assert!(matches!(
            log.incoming(upto, &offer),
            Err(FilesError::Offer(_))
        ));
    }
    // The number of rows of its first segment, which follows the count of segments, id, offset and index.
    let mut flood = out.offer().to_vec();
    flood[4 + 24..4 + 32].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(
        log.incoming(upto, &flood.into()),
        Err(FilesError::Offer(_))
    ));
    let nowhere = Want {
        segment: 9_999,
        part: Part::Ledger,
        position: 0,
    };
    assert!(out.piece(nowhere, 1).is_err());
    let inside = EntryId {
        index: upto.index - 1,
        ..upto
    };
    // Rewritten or not, the base is not cut.
    assert!(matches!(
        log.outgoing(inside, 23),
        Err(FilesError::Outdated { .. })
    ));
}

#[test]
fn an_entry_amid_a_segment_of_the_raft_log_may_be_where_a_copy_ends() {
    let (here, there) = (SimFs::new(9), SimFs::new(10));
    let disk = open(&here).unwrap();
    let log = with_base(&disk);
    for _ in 0..3 {
        append_one(&log, 2, 700);
    }
    let upto = EntryId { term: 2, index: 25 };
    let too_early = log.outgoing(upto, 26);
    assert!(matches!(too_early, Err(FilesError::Read(_))), "in memory");
    disk.checkpoint().unwrap();
    let out = log.outgoing(upto, 26).unwrap().unwrap();
    let disk = open(&there).unwrap();
    let copied = disk.open_log(key(0), log_options()).unwrap();
    copied.set_floor(0);
    let mut files = copied.incoming(upto, out.offer()).unwrap();
    copy(&out, &mut files, usize::MAX).unwrap();
    let state = Bytes::from_static(b"state");
    copied
        .install_snapshot(upto, 26, state, Some(files), nothing())
        .unwrap();
    append_one(&copied, 2, 700);
    append_one(&copied, 2, 700);
    assert_eq!(records(&copied, 0), records(&log, 0));
}

#[test]
fn power_may_go_at_any_step_of_a_copy_and_the_old_log_or_the_new_one_is_there() {
    let here = SimFs::new(8);
    let log = with_base(&open(&here).unwrap());
    let upto = purged(&log);
    let out = log.outgoing(upto, 24).unwrap().unwrap();
    let whole = records(&log, 0).slice(..24 * 700);
    let mut installed = 0;
    for n in 1..400 {
        let there = SimFs::new(n);
        {
            let disk = open(&there).unwrap();
            let copied = disk.open_log(key(0), log_options()).unwrap();
            copied.set_floor(0);
            append_one(&copied, 1, 10);
            disk.checkpoint().unwrap();
            there.inject(Fault::PowerAfter(n));
            let Ok(mut files) = copied.incoming(upto, out.offer()) else {
                continue;
            };
            if copy(&out, &mut files, usize::MAX).is_ok() {
                let state = Bytes::from_static(b"state");
                let _ = copied.install_snapshot(upto, 24, state, Some(files), nothing());
                disk.pump();
                let _ = disk.checkpoint();
            }
        }
        let disk = open_again(&there, true);
        let copied = disk.open_log(key(0), log_options()).unwrap();
        match copied.bounds().purged {
            Some(_) => {
                installed += 1;
                assert_eq!(records(&copied, 0), whole, "power cut at {n}");
            }
            None => assert_eq!(records(&copied, 0).len(), 10, "power cut at {n}"),
        }
        assert!(copied.fenced().is_none());
    }
    assert!((1..400).contains(&installed), "{installed}");
}
