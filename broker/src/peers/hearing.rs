//! Who has been heard, and who has heard us, a moment ago.
//!
//! Two clocks per peer. *Heard* is when its last ping came: for so long we vote for nobody against it.
//! *Answered* is when the last of our pings that it answered was sent: for so long it votes for nobody
//! against us, as it got that ping later than that. Both last [`SILENCE`], so a leader that is still
//! answered by a majority, without a lapse since it last made sure of that majority, cannot have been
//! replaced.
//! Monotonic time of this machine alone; it runs on while the process is stopped.

use crate::raft::ReplicaId;
use parking_lot::RwLock;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// A peer that has said nothing for this long is dead to us.
pub const SILENCE: Duration = Duration::from_millis(1_500);

/// Of the brokers that a peer says answer it, so many are kept.
const HEARD_MAX: usize = 1_024;

#[derive(Debug, Clone, Default)]
struct Times {
    heard: Option<Instant>,
    answered: Option<Instant>,
    /// Its last ping said that its disk is slow, or has no room.
    slow: bool,
    /// The disks of which its last ping said that they answer it.
    hears: BTreeSet<ReplicaId>,
}

/// Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Hearing {
    peers: Arc<RwLock<HashMap<ReplicaId, Times>>>,
    own_disk_is_slow: Arc<AtomicBool>,
    /// How often a peer was without our word for so long that it may have voted for somebody else.
    lapses: Arc<AtomicU64>,
}

impl Hearing {
    /// The peer's ping came.
    pub fn heard(&self, disk: ReplicaId, slow: bool, hears: &[ReplicaId]) {
        let mut peers = self.peers.write();
        let times = peers.entry(disk).or_default();
        times.heard = Some(Instant::now());
        times.slow = slow;
        times.hears = hears.iter().copied().take(HEARD_MAX).collect();
    }

    /// A peer that we hear says that this one answers it.
    pub fn is_heard_elsewhere(&self, disk: ReplicaId) -> bool {
        let peers = self.peers.read();
        let mut others = peers.iter().filter(|(peer, _)| **peer != disk);
        others.any(|(_, times)| recent(times.heard) && times.hears.contains(&disk))
    }

    /// What our own pings say of our disk.
    pub fn set_own_disk_slow(&self, slow: bool) {
        self.own_disk_is_slow.store(slow, Ordering::Release);
    }

    pub fn own_disk_is_slow(&self) -> bool {
        self.own_disk_is_slow.load(Ordering::Acquire)
    }

    /// A peer's last ping said that its disk is slow, or has no room.
    pub fn disk_is_slow(&self, disk: ReplicaId) -> bool {
        self.peers.read().get(&disk).is_some_and(|t| t.slow)
    }

    /// We hear each other, and its disk keeps up: it may be handed something to lead.
    pub fn may_lead(&self, disk: ReplicaId) -> bool {
        let slow = self.peers.read().get(&disk).is_none_or(|t| t.slow);
        !slow && self.hears(disk) && self.is_heard_by(disk)
    }

    /// The peer answered a ping that was sent then.
    pub fn answered(&self, disk: ReplicaId, sent: Instant) {
        let mut times = self.peers.write();
        let answered = &mut times.entry(disk).or_default().answered;
        if !recent(*answered) {
            // Before the answer counts: who sees that it is heard sees the lapse too.
            self.lapses.fetch_add(1, Ordering::AcqRel);
        }
        *answered = (*answered).max(Some(sent));
    }

    /// Rises whenever a peer hears us again that may have voted for somebody else meanwhile: what was known
    /// of its allegiance counts no more.
    pub fn lapses(&self) -> u64 {
        self.lapses.load(Ordering::Acquire)
    }

    /// The peer's process has ended: nothing it said counts any more.
    pub fn gone(&self, disk: ReplicaId) {
        self.peers.write().remove(&disk);
    }

    /// We have heard it within `SILENCE`.
    pub fn hears(&self, disk: ReplicaId) -> bool {
        recent(self.peers.read().get(&disk).and_then(|t| t.heard))
    }

    /// It has heard us within `SILENCE`, and we know.
    pub fn is_heard_by(&self, disk: ReplicaId) -> bool {
        recent(self.peers.read().get(&disk).and_then(|t| t.answered))
    }
}

fn recent(at: Option<Instant>) -> bool {
    at.is_some_and(|at| at.elapsed() < SILENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_heard_counts_for_a_while() {
        let hearing = Hearing::default();
        assert!(!hearing.hears(1) && !hearing.is_heard_by(1));
        hearing.heard(1, true, &[]);
        assert!(hearing.disk_is_slow(1) && !hearing.disk_is_slow(2));
        hearing.heard(1, false, &[]);
        assert!(!hearing.disk_is_slow(1));
        tokio::time::advance(SILENCE / 2).await;
        hearing.answered(1, Instant::now());
        // An answer that comes late says nothing new.
        hearing.answered(1, Instant::now() - SILENCE);
        assert!(hearing.hears(1) && hearing.is_heard_by(1));
        tokio::time::advance(SILENCE / 2).await;
        assert!(!hearing.hears(1) && hearing.is_heard_by(1));
        assert_eq!(hearing.lapses(), 1, "it was never heard before");
        hearing.answered(1, Instant::now());
        assert_eq!(hearing.lapses(), 1);
        tokio::time::advance(SILENCE).await;
        hearing.answered(1, Instant::now());
        assert_eq!(hearing.lapses(), 2);
        hearing.gone(1);
        assert!(!hearing.is_heard_by(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peers_word_for_another_counts_as_long_as_the_peer_is_heard() {
        let hearing = Hearing::default();
        hearing.heard(1, false, &[1, 2]);
        assert!(hearing.is_heard_elsewhere(2));
        assert!(!hearing.is_heard_elsewhere(1), "its word for itself");
        hearing.heard(1, false, &[]);
        assert!(!hearing.is_heard_elsewhere(2));
        hearing.heard(1, false, &[2]);
        tokio::time::advance(SILENCE).await;
        assert!(!hearing.is_heard_elsewhere(2), "it has fallen silent");
    }
}
