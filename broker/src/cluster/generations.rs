//! What a disk does about a partition that was recovered by force: it goes on with its replica, or throws it away.
//!
//! Promise: a replica of an earlier generation is never opened again. Only the survivor's is brought into
//! the new one, by making it the group's only voter; any other is as good as a wiped disk, and goes to the
//! trash when the new generation is led. Until then it is kept and serves nothing: the survivor may be
//! lost too, and then it is the next best.
//! Invariant: a note on the disk says which generation a replica is of, and is written before the replica is
//! opened in it. A crash at any point finds either the older note, and all is done again, or the new one.
//! A broker opens nothing before its metadata is as new as its own start, so one that was away during a
//! recovery knows of it first; one that was there closes its replica here, and what it says meanwhile is
//! of the wrong generation for whoever knows (`raft::exchange`).
//! Not here: whether to recover, and from what (`recovery`).

use super::heal;
use super::notes;
use super::recovery::Recovery;
use crate::metrics;
use crate::raft::{ReplicaId, force_alone};
use logd_storage::{Disk, Log, LogKey, LogOptions};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::warn;

const FOLDER: &str = "generations";

/// Two writes, on a disk that may be slow or full: other partitions wait to be opened meanwhile.
pub(super) const FORCE_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    generation: u32,
}

/// What is to be done with a replica before it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Open,
    /// Nothing of it is here: it begins in the new generation.
    Begin,
    /// It survives: it becomes the only voter, in this term or a later one.
    Survive {
        term: u64,
    },
    /// It is of the past, and the new generation is not led yet.
    Wait,
    /// It is of the past.
    Replace,
}

/// A replica that is to be opened, and what is known of its partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replica {
    pub key: LogKey,
    pub disk: ReplicaId,
    pub recovery: Option<Recovery>,
    /// The generation that somebody says they lead.
    pub led: Option<u32>,
    /// It is to be here; else it only lies here.
    pub wanted: bool,
}

fn judge(replica: &Replica, noted: u32, lies: bool) -> Verdict {
    let generation = replica.recovery.map_or(0, |r| r.generation);
    if noted > generation {
        // What decided so was metadata that is lost: the group that this one knows goes on, if it can.
        return match (lies, replica.led == Some(generation)) {
            (false, _) => Verdict::Begin,
            (true, true) => Verdict::Replace,
            (true, false) => Verdict::Wait,
        };
    }
    let Some(recovery) = replica.recovery.filter(|r| r.generation > noted) else {
        return Verdict::Open;
    };
    match (replica.disk == recovery.survivor, lies) {
        (true, true) => Verdict::Survive {
            term: recovery.term,
        },
        // It had a log when it was chosen: somebody has taken that away.
        (true, false) => Verdict::Wait,
        (false, false) => Verdict::Begin,
        (false, true) if replica.led.is_some_and(|led| led >= recovery.generation) => {
            Verdict::Replace
        }
        (false, true) => Verdict::Wait,
    }
}

/// The generation of a replica, as its disk has noted it.
///
/// # Errors
/// If there is a note and it cannot be read.
pub(super) fn noted(data_dir: &Path, key: LogKey) -> io::Result<u32> {
    let note: Option<Note> = notes::read(&notes::path_of(data_dir, FOLDER, key))?;
    Ok(note.map_or(0, |n| n.generation))
}

fn note(data_dir: &Path, key: LogKey, generation: u32) -> io::Result<()> {
    notes::write(&notes::path_of(data_dir, FOLDER, key), &Note { generation })
}

/// Forgets a partition whose topic is deleted. One that is elsewhere now may come back, and is remembered.
pub(super) fn forget(data_dir: &Path, key: LogKey) {
    if let Err(error) = notes::remove(&notes::path_of(data_dir, FOLDER, key)) {
        warn!(log = %key, %error, "a note about a deleted partition stays; nobody will read it");
    }
}

/// A log that may be opened, with the index it must reach before it votes.
pub(super) type Ready = (Log, u64);

enum Prepared {
    Ready(Ready),
    Survivor { log: Log, term: u64 },
    Nothing,
}

/// Brings a replica's log into its partition's generation; `None` if it is not to be opened, or not yet.
///
/// # Errors
/// If the log or its notes cannot be read or written: all of it is tried again.
pub(super) async fn bring(
    data_dir: PathBuf,
    disk: Disk,
    options: LogOptions,
    replica: Replica,
) -> Result<Option<Ready>, String> {
    let (dir, on) = (data_dir.clone(), disk.clone());
    let prepared = off_the_loop(move || prepare(&dir, &on, options, &replica)).await?;
    let (log, term) = match prepared {
        Prepared::Ready(ready) => return Ok(Some(ready)),
        Prepared::Nothing => return Ok(None),
        Prepared::Survivor { log, term } => (log, term),
    };
    let forced = force_alone(&log, replica.disk, term);
    // What was written by then does no harm: all of it is done again.
    let forced = tokio::time::timeout(FORCE_PATIENCE, forced).await;
    let forced = forced.map_err(|_| format!("its disk took more than {FORCE_PATIENCE:?}"))?;
    let term = forced.map_err(|e| format!("it cannot survive alone: {e}"))?;
    let generation = replica.recovery.map_or(0, |r| r.generation);
    let bounds = log.bounds();
    off_the_loop(move || {
        // What it once had and lost is lost to all: it need not come that far again.
        heal::forget(&data_dir, replica.key);
        note(&data_dir, replica.key, generation).map_err(said)
    })
    .await?;
    metrics::partition_forced();
    warn!(log = %replica.key, generation, term, end_offset = bounds.end_offset, "a partition goes on with what this replica has, by force: what only the others had is lost");
    Ok(Some((log, 0)))
}

async fn off_the_loop<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(e.to_string()))
}

fn said(error: io::Error) -> String {
    format!("its note about its generation: {error}")
}

fn prepare(
    data_dir: &Path,
    disk: &Disk,
    options: LogOptions,
    replica: &Replica,
) -> Result<Prepared, String> {
    let key = replica.key;
    let known = noted(data_dir, key).map_err(said)?;
    let generation = replica.recovery.map_or(0, |r| r.generation);
    let open = || heal::open(data_dir, disk, key, options).map(Prepared::Ready);
    match judge(replica, known, disk.log(key).is_some()) {
        Verdict::Open => open(),
        Verdict::Begin => {
            note(data_dir, key, generation).map_err(said)?;
            open()
        }
        Verdict::Survive { term } => {
            let log = disk.open_log(key, options).map_err(|e| e.to_string())?;
            // If it was open until now: it begins where it stood, not at the last checkpoint.
            disk.checkpoint().map_err(|e| e.to_string())?;
            Ok(Prepared::Survivor { log, term })
        }
        Verdict::Wait => Ok(Prepared::Nothing),
        Verdict::Replace => {
            disk.delete_log(key).map_err(|e| e.to_string())?;
            note(data_dir, key, generation).map_err(said)?;
            warn!(log = %key, generation, "a replica from before a forced recovery moved to the trash");
            if replica.wanted {
                open()
            } else {
                Ok(Prepared::Nothing)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::test_entries::records;
    use logd_storage::vfs::RealFs;
    use logd_storage::{DiskOptions, EntryId};
    use std::sync::Arc;

    const KEY: LogKey = LogKey {
        topic: [4; 16],
        partition: 2,
    };

    fn replica(disk: ReplicaId, led: Option<u32>) -> Replica {
        Replica {
            key: KEY,
            disk,
            recovery: Some(Recovery {
                generation: 2,
                survivor: 1,
                term: 1_000,
            }),
            led,
            wanted: true,
        }
    }

    #[test]
    fn only_the_survivor_goes_on_and_only_once() {
        let survives = Verdict::Survive { term: 1_000 };
        assert_eq!(judge(&replica(1, None), 0, true), survives);
        assert_eq!(judge(&replica(1, None), 1, true), survives);
        assert_eq!(judge(&replica(1, None), 2, true), Verdict::Open);
        assert_eq!(judge(&replica(1, None), 0, false), Verdict::Wait, "robbed");
        assert_eq!(
            judge(&replica(1, None), 2, false),
            Verdict::Open,
            "it moved back"
        );
    }

    #[test]
    fn what_is_of_the_past_is_kept_until_the_new_generation_is_led() {
        assert_eq!(judge(&replica(3, None), 0, true), Verdict::Wait);
        assert_eq!(judge(&replica(3, Some(1)), 0, true), Verdict::Wait);
        assert_eq!(judge(&replica(3, Some(2)), 0, true), Verdict::Replace);
        assert_eq!(judge(&replica(3, None), 0, false), Verdict::Begin);
        assert_eq!(judge(&replica(3, None), 2, true), Verdict::Open);
        let never = Replica {
            recovery: None,
            ..replica(3, None)
        };
        assert_eq!(judge(&never, 0, true), Verdict::Open);
    }

    #[test]
    fn what_lost_metadata_had_decided_is_kept_until_the_group_before_it_is_led() {
        let never = |led| Replica {
            recovery: None,
            ..replica(3, led)
        };
        assert_eq!(judge(&never(None), 1, true), Verdict::Wait);
        assert_eq!(judge(&never(Some(0)), 1, true), Verdict::Replace);
        assert_eq!(judge(&never(None), 1, false), Verdict::Begin);
        // Somebody decides on it again: numbers of later metadata are above all of those.
        let later = Replica {
            recovery: Some(Recovery {
                generation: (1 << 16) + 1,
                survivor: 3,
                term: 2_000,
            }),
            ..replica(3, None)
        };
        let survives = Verdict::Survive { term: 2_000 };
        assert_eq!(judge(&later, 1, true), survives);
    }

    fn disk_at(dir: &Path) -> Disk {
        Disk::open(Arc::new(RealFs), dir, DiskOptions::default(), &|_| {}).unwrap()
    }

    async fn with_entries(disk: &Disk) {
        let log = disk.open_log(KEY, LogOptions::default()).unwrap();
        let (tell, told) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result: io::Result<()>| tell.send(result).unwrap());
        log.append(records(3, 0..10), done).unwrap();
        told.await.unwrap().unwrap();
    }

    async fn bring(dir: &Path, disk: &Disk, replica: Replica) -> Option<Ready> {
        let brought = super::bring(dir.into(), disk.clone(), LogOptions::default(), replica);
        brought.await.unwrap()
    }

    #[tokio::test]
    async fn a_survivor_keeps_its_log_behind_which_it_stands_alone() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk_at(dir.path());
        with_entries(&disk).await;
        heal::set_floor(dir.path(), KEY, 50).unwrap();
        let (log, floor) = bring(dir.path(), &disk, replica(1, None)).await.unwrap();
        let last = EntryId {
            term: 1_000,
            index: 10,
        };
        assert_eq!((log.bounds().last, floor), (Some(last), 0));
        assert_eq!(log.bounds().end_offset, 10);
        // A crash before the note was made: all of it once more, and no harm done.
        forget(dir.path(), KEY);
        bring(dir.path(), &disk, replica(1, None)).await.unwrap();
        let last = EntryId {
            term: 1_001,
            index: 11,
        };
        assert_eq!(log.bounds().last, Some(last));
        bring(dir.path(), &disk, replica(1, None)).await.unwrap();
        assert_eq!(log.bounds().last, Some(last), "once it is noted it is over");
    }

    #[tokio::test]
    async fn a_replica_of_the_past_waits_and_is_then_thrown_away_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk_at(dir.path());
        with_entries(&disk).await;
        assert!(bring(dir.path(), &disk, replica(3, None)).await.is_none());
        assert!(
            disk.log(KEY).is_some(),
            "kept: the survivor may be lost too"
        );
        let elsewhere = Replica {
            wanted: false,
            ..replica(3, Some(2))
        };
        assert!(bring(dir.path(), &disk, elsewhere).await.is_none());
        assert!(disk.log(KEY).is_none());
        let (log, _) = bring(dir.path(), &disk, replica(3, None)).await.unwrap();
        assert_eq!(log.bounds().last, None);
        // What it writes from now on is of the new generation.
        with_entries(&disk).await;
        let (log, _) = bring(dir.path(), &disk, replica(3, Some(2))).await.unwrap();
        assert_eq!(log.bounds().end_offset, 10);
    }
}
