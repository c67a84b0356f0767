//! A replica whose files are damaged is thrown away and written again by its group's leader.
//!
//! Promise: until it holds everything that it ever acknowledged it votes for nobody: else the damage of
//! one disk and the absence of one broker together could undo what a majority had. Its vote survives, so
//! it promises nobody the same term twice.
//! Invariant: a note on the disk says how far it must come (its *floor*) before anything is thrown away,
//! and goes only when the replica is there. A crash at any point finds either the damaged log and the
//! note, or the new log and the note.
//! Not here: finding damage (reads, and the scrubber), and a group with one voter: there is nobody to
//! write it again, and what can still be read is worth more.

use super::notes;
use bytes::Bytes;
use logd_storage::{Disk, Log, LogKey, LogOptions};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use tracing::{info, warn};

const FOLDER: &str = "healing";

/// What a replica that is written again must not forget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// The last index that it acknowledged.
    floor: u64,
    /// Its vote, as the log kept it.
    vote: Option<Vec<u8>>,
    /// The damaged log is gone, and the vote is in the new one.
    replaced: bool,
}

fn path_of(data_dir: &Path, key: LogKey) -> PathBuf {
    notes::path_of(data_dir, FOLDER, key)
}

fn read(path: &Path) -> io::Result<Option<Note>> {
    notes::read(path)
}

fn write(path: &Path, note: &Note) -> io::Result<()> {
    notes::write(path, note)
}

/// Notes that a damaged log is to be written again. Durable on return.
///
/// # Errors
/// If the note cannot be written: then nothing is thrown away.
pub fn begin(data_dir: &Path, log: &Log) -> io::Result<()> {
    let path = path_of(data_dir, log.key());
    // A log that is damaged again before it is whole must still come as far as it had been.
    let floor = read(&path)?.map_or(0, |note| note.floor);
    let last = log.bounds().last.map_or(0, |id| id.index);
    write(
        &path,
        &Note {
            floor: floor.max(last),
            vote: log.vote().map(|v| v.to_vec()),
            replaced: false,
        },
    )
}

/// Notes how far a replica must come that is behind what it had acknowledged. Durable on return.
///
/// # Errors
/// If the note cannot be written.
pub fn set_floor(data_dir: &Path, key: LogKey, floor: u64) -> io::Result<()> {
    let path = path_of(data_dir, key);
    let known = read(&path)?;
    let note = Note {
        floor: floor.max(known.as_ref().map_or(0, |n| n.floor)),
        vote: known.as_ref().and_then(|n| n.vote.clone()),
        replaced: known.is_none_or(|n| n.replaced),
    };
    write(&path, &note)
}

/// Opens a replica's log; one that is to be written again is thrown away first. Says how far it must
/// come before it votes. Blocks.
///
/// # Errors
/// If the log cannot be opened, or the note or the vote cannot be read or written.
pub fn open(
    data_dir: &Path,
    disk: &Disk,
    key: LogKey,
    options: LogOptions,
) -> Result<(Log, u64), String> {
    let said = |e: io::Error| format!("its note about healing: {e}");
    let path = path_of(data_dir, key);
    let Some(note) = read(&path).map_err(said)? else {
        let log = disk.open_log(key, options).map_err(|e| e.to_string())?;
        return Ok((log, 0));
    };
    if !note.replaced {
        disk.delete_log(key).map_err(|e| e.to_string())?;
        warn!(log = %key, floor = note.floor, "a damaged replica is thrown away; the leader writes it again");
    }
    let log = disk.open_log(key, options).map_err(|e| e.to_string())?;
    if !note.replaced {
        if let Some(vote) = &note.vote {
            save_vote(&log, Bytes::copy_from_slice(vote))?;
        }
        let replaced = Note {
            replaced: true,
            ..note.clone()
        };
        write(&path, &replaced).map_err(said)?;
    }
    Ok((log, note.floor))
}

fn save_vote(log: &Log, vote: Bytes) -> Result<(), String> {
    let (tell, told) = std::sync::mpsc::channel();
    let done = move |result| drop(tell.send(result));
    log.save_vote(vote, Box::new(done))
        .map_err(|e| e.to_string())?;
    match told.recv() {
        Ok(result) => result.map_err(|e: io::Error| e.to_string()),
        Err(_) => Err("the disk's committer stopped".into()),
    }
}

/// Forgets a note whose replica is as far as it must be.
pub fn end(data_dir: &Path, key: LogKey) {
    if forget(data_dir, key) {
        info!(log = %key, "a replica is whole again");
    }
}

/// Forgets a note, also of a replica that is elsewhere now; false if there is none.
pub fn forget(data_dir: &Path, key: LogKey) -> bool {
    match notes::remove(&path_of(data_dir, key)) {
        Ok(there) => there,
        Err(error) => {
            warn!(%error, "a note about healing stays; the replica waits once more after a restart");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::test_entries::records;
    use logd_storage::DiskOptions;
    use logd_storage::vfs::RealFs;
    use std::sync::Arc;

    const KEY: LogKey = LogKey {
        topic: [3; 16],
        partition: 1,
    };

    fn disk_at(dir: &Path) -> Disk {
        Disk::open(Arc::new(RealFs), dir, DiskOptions::default(), &|_| {}).unwrap()
    }

    fn with_entries(disk: &Disk, last: u64) -> Log {
        let log = disk.open_log(KEY, LogOptions::default()).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let done = Box::new(move |result: io::Result<()>| tell.send(result).unwrap());
        log.append(records(1, 0..last + 1), done).unwrap();
        told.recv().unwrap().unwrap();
        save_vote(&log, Bytes::from_static(b"vote")).unwrap();
        log
    }

    #[test]
    fn a_replaced_log_is_empty_and_remembers_its_vote_and_how_far_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk_at(dir.path());
        begin(dir.path(), &with_entries(&disk, 9)).unwrap();
        for _ in 0..2 {
            let (log, floor) = open(dir.path(), &disk, KEY, LogOptions::default()).unwrap();
            assert_eq!((log.bounds().last, floor), (None, 9));
            assert_eq!(log.vote().as_deref(), Some(&b"vote"[..]));
        }
        end(dir.path(), KEY);
        let (_, floor) = open(dir.path(), &disk, KEY, LogOptions::default()).unwrap();
        assert_eq!(floor, 0);
    }

    #[test]
    fn damage_before_it_is_whole_again_does_not_lower_the_floor() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk_at(dir.path());
        begin(dir.path(), &with_entries(&disk, 9)).unwrap();
        let (log, _) = open(dir.path(), &disk, KEY, LogOptions::default()).unwrap();
        begin(dir.path(), &log).unwrap();
        let (_, floor) = open(dir.path(), &disk, KEY, LogOptions::default()).unwrap();
        assert_eq!(floor, 9);
    }

    #[test]
    fn a_healthy_log_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk_at(dir.path());
        with_entries(&disk, 4);
        let (log, floor) = open(dir.path(), &disk, KEY, LogOptions::default()).unwrap();
        assert_eq!((log.bounds().last.map(|id| id.index), floor), (Some(4), 0));
    }
}
