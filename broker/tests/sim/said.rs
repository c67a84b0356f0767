//! What brokers' compactions say in their log, for the trace: which run, what it did, why it was put off.
//!
//! Invariant: one run of the simulation is one thread, and hears only what is said on it.
//! Not here: everything else that brokers log.

use parking_lot::Mutex;
use std::fmt::{Debug, Write};
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Metadata, Subscriber, level_filters::LevelFilter};

const OF: &str = "logd::partition::compaction";

/// Fields that are worth a line; all of them follow from the seed.
const FIELDS: [&str; 7] = [
    "message",
    "partition",
    "from",
    "to",
    "done",
    "whole",
    "error",
];

#[derive(Clone, Default)]
pub struct Said(Arc<Mutex<Vec<String>>>);

impl Said {
    /// Hears what is said on this thread, as long as the guard lives.
    pub fn hear(&self) -> DefaultGuard {
        tracing::subscriber::set_default(self.clone())
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if FIELDS.contains(&field.name()) {
            // Writing to a string does not fail.
            let _ = write!(self.0, " {}={value:?}", field.name());
        }
    }
}

impl Subscriber for Said {
    fn enabled(&self, of: &Metadata<'_>) -> bool {
        of.is_event() && of.target() == OF && *of.level() <= Level::INFO
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().push(line.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
