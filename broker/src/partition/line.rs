//! Batches that wait for flights before them stand in line: one line per producer, in the order they came.
//!
//! Invariant: a producer's batch is judged only while none of its batches that came earlier stands in
//! line. Judged before them it would look like a gap in the sequence, and a client that is told of a gap
//! where it left none gives up for good.
//! Whoever stands in line is woken in the order of arrival, so a simulation sees the same each time.
//! Not here: what is judged, and when a flight has landed.

use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

#[derive(Debug, Default)]
pub(super) struct Lines {
    standing: Mutex<Standing>,
    moved: Notify,
}

#[derive(Debug, Default)]
struct Standing {
    /// No empty line is kept.
    by_producer: HashMap<i64, VecDeque<u64>>,
    joined: u64,
}

impl Lines {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn has(&self, producer_id: i64) -> bool {
        self.standing.lock().by_producer.contains_key(&producer_id)
    }

    /// Goes to the end of the producer's line. Dropping the place leaves it.
    pub fn join(self: &Arc<Self>, producer_id: i64) -> Place {
        let mut standing = self.standing.lock();
        standing.joined += 1;
        let ticket = standing.joined;
        let line = standing.by_producer.entry(producer_id).or_default();
        line.push_back(ticket);
        Place {
            lines: self.clone(),
            producer_id,
            ticket,
        }
    }

    /// Something was committed, somebody else leads: whoever is first looks again.
    pub fn wake(&self) {
        self.moved.notify_waiters();
    }
}

/// A batch's place in its producer's line.
#[derive(Debug)]
pub(super) struct Place {
    lines: Arc<Lines>,
    producer_id: i64,
    ticket: u64,
}

impl Place {
    pub fn is_first(&self) -> bool {
        let standing = self.lines.standing.lock();
        let line = standing.by_producer.get(&self.producer_id);
        line.and_then(VecDeque::front) == Some(&self.ticket)
    }

    /// Ends when there may be something new to see since this call.
    pub fn moved(&self) -> Notified<'_> {
        self.lines.moved.notified()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut standing = self.lines.standing.lock();
        if let Some(line) = standing.by_producer.get_mut(&self.producer_id) {
            line.retain(|ticket| *ticket != self.ticket);
            if line.is_empty() {
                standing.by_producer.remove(&self.producer_id);
            }
        }
        drop(standing);
        self.lines.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_leaves_lets_the_next_of_the_line_see() {
        let lines = Lines::new();
        let (first, second, other) = (lines.join(1), lines.join(1), lines.join(2));
        let seen = || (first.is_first(), second.is_first(), other.is_first());
        assert_eq!(seen(), (true, false, true));
        let moved = second.moved();
        drop(first);
        moved.await;
        assert!(second.is_first());
        drop(second);
        assert!(!lines.has(1), "nobody stands there");
        assert!(lines.has(2));
    }

    #[tokio::test]
    async fn one_who_gives_up_in_the_middle_holds_nobody_up() {
        let lines = Lines::new();
        let (first, second, third) = (lines.join(1), lines.join(1), lines.join(1));
        drop(second);
        assert!(!third.is_first());
        drop(first);
        assert!(third.is_first());
    }
}
