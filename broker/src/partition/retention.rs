//! Retention: the leader proposes where the log starts; every replica then drops what lies below.
//!
//! What is old or too much is decided by a pure function of storage's; proposing it through the log
//! is what makes all replicas, and clients that fetch, agree.

use super::replica::{Clock, LOG_START};
use super::{Partition, Registry};
use crate::raft::{Proposal, ProposeError};
use bytes::Bytes;
use logd_storage::retention::expired;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

/// Applies every topic's retention, round after round, until it is dropped. A round that was to come much later
/// comes sooner when the interval gets shorter.
pub async fn keep(registry: Arc<Registry>, mut every: watch::Receiver<Duration>, clock: Clock) {
    loop {
        let begun = Instant::now();
        loop {
            let due = begun + *every.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep_until(due) => break,
                Ok(()) = every.changed() => {}
            }
        }
        for partition in registry.all() {
            if let Err(error) = partition.retain(clock()).await {
                warn!(topic = partition.topic(), partition = partition.index(), %error, "retention put off");
            }
        }
    }
}

impl Partition {
    /// Applies the topic's retention once: whoever leads says where the log starts, and every replica drops
    /// its own files below.
    ///
    /// # Errors
    /// If the group has stopped, or the command's outcome is unknown: the next round tries again.
    pub async fn retain(&self, now_ms: i64) -> Result<(), ProposeError> {
        if self.leadership().serving {
            self.expire(now_ms).await?;
        }
        self.group.compact().await?;
        self.drop_below_log_start();
        Ok(())
    }

    /// Files below the log start that are no entries any more: nobody else needs to know.
    fn drop_below_log_start(&self) {
        let done = |result: std::io::Result<()>| {
            if let Err(error) = result {
                warn!(%error, "dropping old segments");
            }
        };
        match self.log.drop_below_floor(Box::new(done)) {
            Ok(_) => {}
            Err(error) => {
                warn!(topic = self.topic, partition = self.index, %error, "old segments stay");
            }
        }
    }

    async fn expire(&self, now_ms: i64) -> Result<(), ProposeError> {
        if let Some(policy) = self.config().retention_policy()
            && let Some(start) = expired(&self.log.segments(), policy, now_ms)
        {
            let start = start.min(self.offsets().high_watermark);
            if start > self.offsets().log_start {
                self.move_log_start(start).await?;
                info!(
                    topic = self.topic,
                    partition = self.index,
                    log_start = start,
                    "old segments dropped"
                );
            }
        }
        Ok(())
    }

    /// Moves it in the whole group.
    pub(super) async fn move_log_start(&self, start: i64) -> Result<(), ProposeError> {
        let payload = Bytes::copy_from_slice(&start.to_be_bytes());
        self.group
            .propose_seldom(Proposal::control(LOG_START, payload))
            .await?;
        Ok(())
    }
}
