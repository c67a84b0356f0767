//! Turns to pack batches anew: each may be large inside, and clients decide how many come at once.
//!
//! Promise: no more are worked on at a time than there are turns, and no connection waits on its own task
//! while one is.
//! Invariant: whoever has a turn only computes, so it ends by itself, also when nobody waits for it any more.
//! Not here: what is done with a batch.

use crate::metrics;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;

#[derive(Debug)]
pub struct Repacking(Arc<Semaphore>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker stops before the batch is packed anew")]
pub struct Stopped;

impl Repacking {
    pub fn new(turns: usize) -> Self {
        Self(Arc::new(Semaphore::new(turns)))
    }

    /// Works when it is its turn, beside the tasks of connections: it may take some milliseconds.
    ///
    /// # Errors
    /// If the runtime ends first.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let asked = Instant::now();
        let turn = self.0.clone().acquire_owned().await;
        let turn = turn.map_err(|_| Stopped)?;
        let work = move || {
            let (_until_done, begun) = (turn, Instant::now());
            let done = work();
            metrics::batch_repacked(begun - asked, begun.elapsed());
            done
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::mpsc;
    use std::time::Duration;

    const TURNS: usize = 2;
    const CALLERS: usize = 10;
    const PATIENCE: Duration = Duration::from_secs(20);

    /// How many work now, and worked at once at most.
    #[derive(Debug, Default)]
    struct Workers {
        now: AtomicUsize,
        most: AtomicUsize,
    }

    impl Workers {
        fn work(&self, until: &parking_lot::Mutex<mpsc::Receiver<()>>) {
            let now = self.now.fetch_add(1, SeqCst) + 1;
            self.most.fetch_max(now, SeqCst);
            let told = until.lock().recv_timeout(PATIENCE);
            self.now.fetch_sub(1, SeqCst);
            told.expect("it is told to end");
        }

        async fn are(&self, count: usize) {
            let reached = async {
                while self.now.load(SeqCst) != count {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let reached = tokio::time::timeout(PATIENCE, reached).await;
            reached.unwrap_or_else(|_| panic!("{self:?} instead of {count} now"));
        }
    }

    #[tokio::test]
    async fn no_more_batches_are_packed_at_once_than_there_are_turns() {
        let (repacking, workers) = (Repacking::new(TURNS), Arc::new(Workers::default()));
        let (end, until) = mpsc::channel();
        let until = Arc::new(parking_lot::Mutex::new(until));
        let work = |n: usize| {
            let (workers, until) = (workers.clone(), until.clone());
            repacking.work(move || {
                workers.work(&until);
                n
            })
        };
        let given_up = tokio::time::timeout(Duration::from_millis(1), work(99)).await;
        assert!(given_up.is_err(), "it works until it is told to end");
        let all = join_all((0..CALLERS).map(work));
        let ending = async {
            // Nobody waits for the first, and it has its turn all the same.
            workers.are(TURNS).await;
            for _ in 0..=CALLERS {
                end.send(()).expect("somebody works");
            }
        };
        let (done, ()) = tokio::join!(all, ending);
        let expected: Vec<_> = (0..CALLERS).map(Ok).collect();
        assert_eq!(done, expected);
        assert_eq!(workers.most.load(SeqCst), TURNS);
    }
}
