//! Who has been heard, and who has heard us, a moment ago.
//!
//! Two clocks per peer. *Heard* is when its last ping came: for so long we vote for nobody against it.
//! *Answered* is when the last of our pings that it answered was sent: for so long it votes for nobody
//! against us, as it got that ping later than that. Both last [`SILENCE`], so a leader that is still
//! answered by a majority cannot have been replaced.
//! Monotonic time of this machine alone; it runs on while the process is stopped.

use crate::raft::ReplicaId;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A peer that has said nothing for this long is dead to us.
pub(super) const SILENCE: Duration = Duration::from_millis(1_500);

#[derive(Debug, Clone, Copy, Default)]
struct Times {
    heard: Option<Instant>,
    answered: Option<Instant>,
}

/// Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Hearing(Arc<RwLock<HashMap<ReplicaId, Times>>>);

impl Hearing {
    /// The peer's ping came.
    pub(super) fn heard(&self, disk: ReplicaId) {
        self.0.write().entry(disk).or_default().heard = Some(Instant::now());
    }

    /// The peer answered a ping that was sent then.
    pub(super) fn answered(&self, disk: ReplicaId, sent: Instant) {
        let mut times = self.0.write();
        let answered = &mut times.entry(disk).or_default().answered;
        *answered = (*answered).max(Some(sent));
    }

    /// The peer's process has ended: nothing it said counts any more.
    pub(super) fn gone(&self, disk: ReplicaId) {
        self.0.write().remove(&disk);
    }

    /// We have heard it within [`SILENCE`].
    pub fn hears(&self, disk: ReplicaId) -> bool {
        recent(self.0.read().get(&disk).and_then(|t| t.heard))
    }

    /// It has heard us within [`SILENCE`], and we know.
    pub fn is_heard_by(&self, disk: ReplicaId) -> bool {
        recent(self.0.read().get(&disk).and_then(|t| t.answered))
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
        hearing.heard(1);
        tokio::time::advance(SILENCE / 2).await;
        hearing.answered(1, Instant::now());
        // An answer that comes late says nothing new.
        hearing.answered(1, Instant::now() - SILENCE);
        assert!(hearing.hears(1) && hearing.is_heard_by(1));
        tokio::time::advance(SILENCE / 2).await;
        assert!(!hearing.hears(1) && hearing.is_heard_by(1));
        hearing.gone(1);
        assert!(!hearing.is_heard_by(1));
    }
}
