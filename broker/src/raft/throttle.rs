//! A rate for what replicas are sent that do not vote yet: filling them can wait, clients do not.
//!
//! Promise: over all groups of a broker, a second carries no more than the rate and one piece. Voters are
//! never held back: the group waits for them, and one that stays behind could not catch up.

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Clones share the rate.
#[derive(Debug, Clone)]
pub struct Throttle(Option<Arc<Rate>>);

#[derive(Debug)]
struct Rate {
    bytes_per_second: u64,
    /// When the last piece that was let through has had its time.
    free_at: Mutex<Instant>,
}

impl Throttle {
    /// 0: no limit.
    pub fn new(bytes_per_second: u64) -> Self {
        let rate = (bytes_per_second > 0).then(|| Rate {
            bytes_per_second,
            free_at: Mutex::new(Instant::now()),
        });
        Self(rate.map(Arc::new))
    }

    /// Waits until a piece may go. Whoever asks first goes first.
    pub async fn take(&self, bytes: u64) {
        let Some(rate) = &self.0 else { return };
        let turn = {
            let mut free_at = rate.free_at.lock();
            let turn = (*free_at).max(Instant::now());
            let time = bytes as f64 / rate.bytes_per_second as f64;
            *free_at = turn + Duration::from_secs_f64(time);
            turn
        };
        tokio::time::sleep_until(turn).await;
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
    async fn without_a_rate_nobody_waits() {
        let begun = Instant::now();
        Throttle::new(0).take(u64::MAX).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
