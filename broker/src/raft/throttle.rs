//! A rate for what replicas are sent that do not vote yet: filling them can wait, clients do not.
//!
//! Promise: over all groups of a broker, a second carries no more than the rate and one piece. Voters are
//! never held back: the group waits for them, and one that stays behind could not catch up.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Clones share the rate.
#[derive(Debug, Clone)]
pub struct Throttle(Arc<Rate>);

#[derive(Debug)]
struct Rate {
    /// 0: no limit.
    bytes_per_second: AtomicU64,
    /// When the last piece that was let through has had its time.
    free_at: Mutex<Instant>,
    changed: Notify,
}

impl Throttle {
    /// 0: no limit.
    pub fn new(bytes_per_second: u64) -> Self {
        Self(Arc::new(Rate {
            bytes_per_second: bytes_per_second.into(),
            free_at: Mutex::new(Instant::now()),
            changed: Notify::new(),
        }))
    }

    /// From the next piece on, at another rate; 0: without limit. Pieces that wait go now: at the old rate that
    /// might be long.
    pub fn set(&self, bytes_per_second: u64) {
        self.0
            .bytes_per_second
            .store(bytes_per_second, Ordering::Relaxed);
        *self.0.free_at.lock() = Instant::now();
        self.0.changed.notify_waiters();
    }

    /// Waits until a piece may go. Whoever asks first goes first.
    pub async fn take(&self, bytes: u64) {
        let changed = self.0.changed.notified();
        let rate = self.0.bytes_per_second.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let turn = {
            let mut free_at = self.0.free_at.lock();
            let turn = (*free_at).max(Instant::now());
            let time = bytes as f64 / rate as f64;
            *free_at = turn + Duration::from_secs_f64(time);
            turn
        };
        tokio::select! {
            () = tokio::time::sleep_until(turn) => {}
            () = changed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pieces_of_all_who_share_a_rate_take_their_time() {
        let throttle = Throttle::new(1_000);
        let begun = Instant::now();
        let other = throttle.clone();
        throttle.take(500).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "nobody was before");
        other.take(500).await;
        throttle.take(1).await;
        assert_eq!(begun.elapsed().as_millis(), 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_nobody_used_is_not_saved_up() {
        let throttle = Throttle::new(1_000);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let begun = Instant::now();
        throttle.take(2_000).await;
        throttle.take(1).await;
        assert_eq!(begun.elapsed().as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_changes_for_all_who_share_it() {
        let throttle = Throttle::new(0);
        let other = throttle.clone();
        throttle.set(1_000);
        let begun = Instant::now();
        other.take(500).await;
        other.take(500).await;
        assert_eq!(begun.elapsed().as_millis(), 500);
        throttle.set(0);
        other.take(1 << 40).await;
        assert_eq!(begun.elapsed().as_millis(), 500);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rate_nobody_waits() {
        let begun = Instant::now();
        Throttle::new(0).take(u64::MAX).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
