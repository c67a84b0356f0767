//! A broker whose disk is slow, or has no room, leads nothing while others can.
//!
//! Every acknowledgement of a leader waits for its own disk only if it is among the majority; a slow
//! leader is behind for all its partitions, a slow follower for none. So leadership moves to where disks
//! keep up, and the pings say who had better not be given any.
//! Not here: a disk that has failed (the process ends).

use super::controller::Cluster;
use futures_util::StreamExt;
use logd_storage::Disk;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// A sync that takes this long is slow: a hundred times what disks that work take.
const SLOW: Duration = Duration::from_millis(200);

/// So many of the last syncs must be slow for the disk to be, and so many must not be for it to be well again.
const OF: usize = 8;
const MANY: usize = 5;

/// Syncs older than this say nothing.
const REMEMBERED: Duration = Duration::from_secs(10);

/// How often leaderships are looked at while the disk is slow.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Partitions handed over at once; each waits for what is in flight on the slow disk.
const AT_ONCE: usize = 64;

/// The last syncs of this broker's disk.
#[derive(Debug, Default)]
pub struct Syncs(Mutex<VecDeque<(Instant, bool)>>);

impl Syncs {
    /// A sync has ended. Called on the committer's thread: quick.
    pub fn took(&self, time: Duration) {
        let mut last = self.0.lock();
        if last.len() == OF {
            last.pop_front();
        }
        last.push_back((Instant::now(), time >= SLOW));
    }

    fn are_slow(&self) -> bool {
        let last = self.0.lock();
        let recent = last.iter().filter(|(at, _)| at.elapsed() < REMEMBERED);
        recent.filter(|(_, slow)| *slow).count() >= MANY
    }
}

/// Hands over what this broker leads while its disk is slow or full and another's is not.
pub async fn avoid_slow_disk(cluster: Arc<Cluster>, syncs: Arc<Syncs>, disk: Disk) {
    let hearing = cluster.hearing().clone();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let full = !disk.space().accepting;
        let (slow, was) = (full || syncs.are_slow(), hearing.own_disk_is_slow());
        hearing.set_own_disk_slow(slow);
        match (was, slow) {
            (false, true) => warn!(
                full,
                slower_than_ms = SLOW.as_millis() as u64,
                "the disk is slow or full: what this broker leads is handed to others"
            ),
            (true, false) => info!("the disk keeps up again"),
            _ => {}
        }
        if slow {
            let led: Vec<_> = cluster
                .registry
                .all()
                .into_iter()
                .filter(|p| p.outlook().leads && !p.is_alone())
                .collect();
            futures_util::stream::iter(led)
                .for_each_concurrent(AT_ONCE, |partition| {
                    let hearing = &hearing;
                    async move {
                        // Nobody fit may be there; it is tried again.
                        let _ = partition.hand_over(|disk| hearing.may_lead(disk)).await;
                    }
                })
                .await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_disk_is_slow_when_most_of_its_last_syncs_are_and_for_a_while() {
        let syncs = Syncs::default();
        for _ in 0..OF {
            syncs.took(Duration::from_millis(1));
        }
        for n in 1..=MANY {
            syncs.took(SLOW);
            assert_eq!(syncs.are_slow(), n >= MANY);
        }
        tokio::time::advance(REMEMBERED).await;
        assert!(!syncs.are_slow());
    }

    #[tokio::test(start_paused = true)]
    async fn one_slow_sync_among_many_is_nothing() {
        let syncs = Syncs::default();
        for _ in 0..10 {
            syncs.took(SLOW);
            syncs.took(Duration::from_millis(1));
            assert!(!syncs.are_slow());
        }
    }
}
