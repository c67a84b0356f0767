//! A replica whose files were damaged: thrown away, and written again by its group's leader, as `cluster/heal`
//! does it. What that keeps in a note on the disk the world keeps here, whatever becomes of the broker.
//!
//! Invariant: of a partition one replica at most is not whole; two that are not could elect nobody.
//! Not here: what damage looks like, and how it is found.

use crate::broker::partition_key;
use crate::net::BROKERS;
use crate::world::World;
use bytes::Bytes;
use logd_storage::{Disk, Log, LogOptions};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What a replica that is written again must not forget.
#[derive(Debug, Clone)]
pub struct Note {
    /// The last index that it acknowledged.
    pub floor: u64,
    vote: Option<Bytes>,
    /// The damaged log is gone, and the vote is in the new one.
    replaced: bool,
}

/// Of one broker, by partition.
pub type Notes = Arc<Mutex<BTreeMap<u32, Note>>>;

/// How soon what a full disk did not take is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// Opens a partition's log; one that is to be written again is thrown away first.
///
/// # Errors
/// If the log does not open.
pub async fn open(
    disk: &Disk,
    partition: u32,
    options: LogOptions,
    notes: &Notes,
) -> Result<Log, String> {
    let key = partition_key(partition);
    let note = notes.lock().get(&partition).cloned();
    let Some(note) = note.filter(|note| !note.replaced) else {
        return disk.open_log(key, options).map_err(|e| e.to_string());
    };
    loop {
        match replace(disk, partition, options, &note).await {
            Ok(log) => {
                let replaced = true;
                notes.lock().insert(partition, Note { replaced, ..note });
                return Ok(log);
            }
            Err(_) => tokio::time::sleep(TRY_AGAIN).await,
        }
    }
}

async fn replace(
    disk: &Disk,
    partition: u32,
    options: LogOptions,
    note: &Note,
) -> Result<Log, String> {
    let key = partition_key(partition);
    disk.delete_log(key).map_err(|e| e.to_string())?;
    let log = disk.open_log(key, options).map_err(|e| e.to_string())?;
    if let Some(vote) = &note.vote {
        let (tell, told) = tokio::sync::oneshot::channel();
        // Whoever waited may be gone with its broker.
        let done = move |result| drop(tell.send(result));
        log.save_vote(vote.clone(), Box::new(done))
            .map_err(|e| e.to_string())?;
        let told = told.await.map_err(|e| e.to_string())?;
        told.map_err(|e| e.to_string())?;
    }
    Ok(log)
}

impl World {
    /// Damages a replica, if it follows somebody and all others are whole; says whether it did.
    pub fn damage(&mut self, broker: usize, partition: u32) -> bool {
        let whole = |b: usize| !self.brokers[b].notes.lock().contains_key(&partition);
        let Some(replica) = self.brokers[broker].partition(partition) else {
            return false;
        };
        let outlook = replica.outlook();
        if !(0..BROKERS).all(whole) || outlook.leads || outlook.leader.is_none() {
            return false;
        }
        let Some(log) = self.brokers[broker].log(partition) else {
            return false;
        };
        let Some(last) = log.bounds().last.filter(|id| id.index > 0) else {
            return false;
        };
        let note = Note {
            floor: last.index,
            vote: log.vote(),
            replaced: false,
        };
        self.trace.say(format_args!(
            "-- p{partition} is damaged on {broker}, up to {}",
            note.floor
        ));
        self.brokers[broker].notes.lock().insert(partition, note);
        true
    }

    /// Forgets the notes of replicas that are whole again.
    pub fn note_whole(&mut self, broker: usize) {
        let notes = self.brokers[broker].notes.clone();
        notes.lock().retain(|partition, note| {
            let replica = self.brokers[broker].partition(*partition);
            let is_whole = replica.is_some_and(|r| note.replaced && r.is_whole_again());
            if is_whole {
                self.trace
                    .say(format_args!("-- p{partition} is whole again on {broker}"));
                self.healed += 1;
            }
            !is_whole
        });
    }
}
