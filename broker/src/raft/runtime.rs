//! The runtime as openraft sees it: tokio's, with randomness that a simulation can seed, and blocking work
//! that it can keep on its own thread.
//!
//! Invariant: on a thread that nobody seeded, randomness is the operating system's. openraft draws
//! only when a group opens (the phase of its ticks, its election timeout) and when it campaigns, so
//! a new generator each time costs nothing that matters.
//! Not here: time, which is tokio's and can be paused.

use openraft::impls::TokioRuntime;
use openraft::{AsyncRuntime, OptionalSend};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on, what openraft draws on this thread follows from the seed and the order of the draws.
pub fn seed_randomness(seed: u64) {
    SEED.set(Some(seed));
}

/// Runs what may block on a thread that may. In a simulation at once: how soon another thread is done
/// does not follow from any seed.
///
/// # Errors
/// If the work panicked, or the runtime is being shut down.
pub async fn off_the_loop<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<T> {
    if SEED.get().is_some() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(std::io::Error::other)
}

/// Runs work that blocks, and waits in between, on a thread that may block. Whoever drops this stops the work
/// at its next wait. In a simulation it is a task like any other, whose waits are simulated time.
///
/// # Errors
/// If the work panicked, or the runtime is being shut down.
pub async fn off_the_loop_in_steps<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> std::io::Result<T> {
    if SEED.get().is_some() {
        return Ok(work.await);
    }
    let (wanted, unwanted) = tokio::sync::oneshot::channel::<()>();
    let runtime = tokio::runtime::Handle::current();
    let stoppable = async {
        tokio::select! {
            biased;
            _ = unwanted => None,
            done = work => Some(done),
        }
    };
    let done = tokio::task::spawn_blocking(move || runtime.block_on(stoppable)).await;
    drop(wanted);
    let done = done.map_err(std::io::Error::other)?;
    done.ok_or_else(|| std::io::Error::other("nobody wants it any more"))
}

/// See the module.
#[derive(Debug)]
pub struct Runtime(TokioRuntime);

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> SmallRng {
        match SEED.get() {
            Some(seed) => {
                // The golden ratio: every draw begins far from the one before.
                SEED.set(Some(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)));
                SmallRng::seed_from_u64(seed)
            }
            None => SmallRng::from_rng(&mut rand::rng()),
        }
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    fn draws() -> Vec<u64> {
        (0..4).map(|_| Runtime::thread_rng().next_u64()).collect()
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_any_more_stops_at_its_next_wait() {
        let (alive, gone) = tokio::sync::oneshot::channel::<()>();
        let (tell, began) = tokio::sync::oneshot::channel();
        let work = off_the_loop_in_steps(async move {
            let _alive = alive;
            tell.send(std::thread::current().id()).unwrap();
            std::future::pending::<()>().await;
        });
        let waiting = tokio::spawn(work);
        let thread = began.await.unwrap();
        assert_ne!(thread, std::thread::current().id(), "it may block there");
        waiting.abort();
        assert!(gone.await.is_err(), "what it held is dropped");
        let whole = off_the_loop_in_steps(async { 7 }).await;
        assert_eq!(whole.unwrap(), 7);
    }

    #[test]
    fn a_seeded_thread_draws_the_same_again_and_others_do_not() {
        let unseeded = std::thread::spawn(draws).join().unwrap();
        let seeded = || {
            seed_randomness(7);
            draws()
        };
        let (once, again) = (seeded(), seeded());
        assert_eq!(once, again);
        assert_ne!(once, unseeded);
        assert_ne!(once[0], once[1], "each draw is its own");
    }
}
