//! Reasons to end that come from outside: Ctrl-C, SIGTERM, a reader that went away.
//!
//! Promise: a signal that arrives while nobody waits is not lost.

use crate::failure::Exit;

pub use system::{Signals, reader_gone};

#[cfg(unix)]
mod system {
    use std::future::pending;

    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::Errno;
    use tokio::signal::unix::{Signal, SignalKind, signal};
    use tokio::sync::oneshot;

    use super::Exit;

    /// From its creation on, signals no longer end the process by themselves.
    pub struct Signals {
        interrupt: Option<Signal>,
        terminate: Option<Signal>,
    }

    impl Signals {
        pub fn new() -> Signals {
            // Without a handler a signal does what it does anyway: end the process.
            Signals {
                interrupt: signal(SignalKind::interrupt()).ok(),
                terminate: signal(SignalKind::terminate()).ok(),
            }
        }

        /// Resolves when somebody wants the command to end. Cancel safe.
        pub async fn next(&mut self) -> Exit {
            tokio::select! {
                () = recv(&mut self.interrupt) => Exit::Interrupted,
                () = recv(&mut self.terminate) => Exit::Terminated,
            }
        }
    }

    async fn recv(signal: &mut Option<Signal>) {
        match signal {
            Some(signal) => drop(signal.recv().await),
            None => pending().await,
        }
    }

    /// Resolves when stdout is a pipe and its reader is gone. Otherwise a command that waits for records
    /// would find out with the next one only, which may never come.
    pub async fn reader_gone() {
        let (gone, wait) = oneshot::channel();
        // Polling blocks for ever as a rule; the process does not wait for the thread.
        std::thread::spawn(move || {
            let stdout = std::io::stdout();
            // No event asked for: errors are reported unasked.
            let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
            while poll(&mut watched, None) == Err(Errno::INTR) {}
            if watched[0].revents().contains(PollFlags::ERR) {
                gone.send(()).ok();
            }
        });
        if wait.await.is_err() {
            pending::<()>().await;
        }
    }
}

#[cfg(not(unix))]
mod system {
    use std::future::pending;

    use super::Exit;

    pub struct Signals;

    impl Signals {
        pub fn new() -> Signals {
            Signals
        }

        pub async fn next(&mut self) -> Exit {
            match tokio::signal::ctrl_c().await {
                Ok(()) => Exit::Interrupted,
                Err(_) => pending().await,
            }
        }
    }

    /// The next write finds out.
    pub async fn reader_gone() {
        pending().await
    }
}
