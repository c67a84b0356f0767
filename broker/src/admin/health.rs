//! How far the node is. One writer, the composition root; probes read.

use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Recovering {
        done: usize,
        total: usize,
        bytes: u64,
    },
    Ready,
    Draining,
    Failed,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Recovering { .. } => "recovering",
            Phase::Ready => "ready",
            Phase::Draining => "draining",
            Phase::Failed => "failed",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Phase::Recovering { done, total, bytes } => write!(
                f,
                "recovering {done}/{total} partitions, {} MiB replayed",
                bytes >> 20
            ),
            other => f.write_str(other.name()),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Health {
    phase: Arc<Mutex<Phase>>,
    born: Instant,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            phase: Arc::new(Mutex::new(Phase::Starting)),
            born: Instant::now(),
        }
    }
}

impl Health {
    pub fn phase(&self) -> Phase {
        *self.phase.lock()
    }

    pub fn set(&self, phase: Phase) {
        *self.phase.lock() = phase;
    }

    pub fn uptime(&self) -> Duration {
        self.born.elapsed()
    }
}
