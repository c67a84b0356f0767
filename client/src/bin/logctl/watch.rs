//! Waits for something that goes on in the cluster, and says how far it is.
//!
//! Promise: a wait ends when it is over, when its time is up, or when somebody interrupts it; brokers that do
//! not answer meanwhile do not end it. Progress goes to stderr, once per change.
//!
//! Not here: what is waited for.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::failure::{Exit, Failure};
use crate::output::Out;
use crate::signals::Signals;

/// Often enough for somebody who watches.
const PAUSE: Duration = Duration::from_millis(300);

/// What a look has shown.
#[derive(Debug)]
pub enum Step<T> {
    Over(T),
    /// How far it is.
    Going(String),
}

/// # Errors
/// If it is not over in time, if it was interrupted, or if a look says that it will never be over.
pub async fn until_over<T>(
    out: Out,
    what: &str,
    limit: Duration,
    look: impl AsyncFnMut() -> Result<Step<T>, Failure>,
) -> Result<T, Failure> {
    let mut signals = Signals::new();
    tokio::select! {
        over = looking(out, what, limit, look) => over,
        exit = signals.next() => Err(Failure::new(exit, format!("{what}: no longer watched"))),
    }
}

async fn looking<T>(
    out: Out,
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Step<T>, Failure>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + limit;
    let mut said = String::new();
    loop {
        let now = match timeout_at(deadline, look()).await {
            Ok(Ok(Step::Over(value))) => return Ok(value),
            Ok(Ok(Step::Going(now))) => now,
            Ok(Err(Failure::Told {
                exit: Exit::Unreachable,
                message,
                ..
            })) => message,
            Ok(Err(failure)) => return Err(failure),
            Err(_) => return Err(late(what, limit, &said)),
        };
        if now != said {
            out.note(&now);
            said = now;
        }
        if within(deadline, sleep(PAUSE)).await.is_none() {
            return Err(late(what, limit, &said));
        }
    }
}

async fn within<T>(deadline: Instant, done: impl Future<Output = T>) -> Option<T> {
    timeout_at(deadline, done).await.ok()
}

fn late(what: &str, limit: Duration, last: &str) -> Failure {
    let last = match last {
        "" => "nobody has answered",
        last => last,
    };
    let message = format!("{what}: not over after {limit:?}; last seen: {last}");
    Failure::new(Exit::Unreachable, message).hint("--timeout waits longer; brokers go on meanwhile")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    const OUT: Out = Out {
        format: Format::Table,
        quiet: true,
    };

    #[tokio::test]
    async fn a_broker_that_is_away_for_a_moment_does_not_end_a_wait() {
        let mut looks = 0;
        let over = until_over(OUT, "it", Duration::from_secs(60), async || {
            looks += 1;
            match looks {
                1 => Err(Failure::new(Exit::Unreachable, "away")),
                2 => Ok(Step::Going("half".to_owned())),
                _ => Ok(Step::Over(looks)),
            }
        });
        assert_eq!(over.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_wait_that_is_not_over_in_time_says_how_far_it_was() {
        let limit = Duration::from_millis(20);
        let over = until_over::<()>(OUT, "it", limit, async || {
            Ok(Step::Going("half".to_owned()))
        });
        let failure = over.await.unwrap_err();
        assert_eq!(failure.exit(), Exit::Unreachable);
        assert!(format!("{failure:?}").contains("last seen: half"));
    }

    #[tokio::test]
    async fn a_refusal_ends_a_wait() {
        let over = until_over::<()>(OUT, "it", Duration::from_secs(60), async || {
            Err(Failure::not_found("gone"))
        });
        assert_eq!(over.await.unwrap_err().exit(), Exit::NotFound);
    }
}
