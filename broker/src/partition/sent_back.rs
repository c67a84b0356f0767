//! Batches of idempotent producers that were sent back although they could have been next: what is behind them
//! leaves a gap that is ours.
//!
//! Promise: a client that left out no sequence is not told that it did. A batch may be refused because nobody leads
//! yet, or given up by its request's deadline, and the one behind it, which the client had sent already, be judged
//! a moment later by a leader that takes batches again. Told of a gap, librdkafka begins a new epoch and sends
//! everything that it has no word of once more, on all partitions: what was in their logs is there twice then.
//! Bounds: producers, batches of each, and time: a client that never sends the missing batch again is told in the end.
//! Not here: what the next sequence is (`producers`).

use super::producers::{REMEMBERED_BATCHES, Sequence, Verdict};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// A client that has not sent a batch again by then does not.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Beyond so many the next are not remembered: at worst their clients are told of a gap.
const PRODUCERS_MAX: usize = 1_024;

#[derive(Debug)]
struct Producer {
    epoch: i16,
    /// First sequences, and when each was sent back last: those behind a missing one come again and again, and
    /// must not keep it remembered.
    batches: VecDeque<(i32, Instant)>,
}

impl Producer {
    fn forget_old(&mut self, now: Instant) {
        self.batches.retain(|(_, at)| *at + REMEMBERED > now);
    }
}

#[derive(Debug, Default)]
pub(super) struct SentBack {
    by_id: Mutex<HashMap<i64, Producer>>,
}

impl SentBack {
    /// A batch is refused, or waits and may be given up.
    pub fn note(&self, batch: &Sequence, now: Instant) {
        let mut by_id = self.by_id.lock();
        if by_id.len() >= PRODUCERS_MAX && !by_id.contains_key(&batch.producer_id) {
            by_id.retain(|_, producer| {
                producer.forget_old(now);
                !producer.batches.is_empty()
            });
            if by_id.len() >= PRODUCERS_MAX {
                return;
            }
        }
        let fresh = || Producer {
            epoch: batch.epoch,
            batches: VecDeque::new(),
        };
        let producer = by_id.entry(batch.producer_id).or_insert_with(fresh);
        if producer.epoch != batch.epoch {
            *producer = fresh();
        }
        producer.forget_old(now);
        producer.batches.retain(|(first, _)| *first != batch.first);
        // Those in flight may all be sent back, and again while they are sent anew.
        if producer.batches.len() == 2 * REMEMBERED_BATCHES {
            producer.batches.pop_front();
        }
        producer.batches.push_back((batch.first, now));
    }

    /// A batch is in the log, or on its way into it.
    pub fn taken(&self, batch: &Sequence) {
        let mut by_id = self.by_id.lock();
        let Some(producer) = by_id.get_mut(&batch.producer_id) else {
            return;
        };
        producer.batches.retain(|(first, _)| *first != batch.first);
        if producer.batches.is_empty() || producer.epoch != batch.epoch {
            by_id.remove(&batch.producer_id);
        }
    }

    /// The verdict on a batch, with regard to what was sent back before it.
    pub fn weigh(&self, verdict: Verdict, batch: &Sequence, now: Instant) -> Verdict {
        let missing = match verdict {
            Verdict::OutOfOrder { expected } => self.find(batch, now, |first| first == expected),
            Verdict::Midway => self.find(batch, now, |first| first < batch.first),
            _ => return verdict,
        };
        match (missing, verdict) {
            (Some(missing), _) => Verdict::Behind { missing },
            (None, Verdict::Midway) => Verdict::Append,
            (None, verdict) => verdict,
        }
    }

    fn find(&self, batch: &Sequence, now: Instant, is: impl Fn(i32) -> bool) -> Option<i32> {
        let by_id = self.by_id.lock();
        let producer = by_id.get(&batch.producer_id)?;
        let recent = producer
            .batches
            .iter()
            .filter(|(_, at)| *at + REMEMBERED > now);
        let mut firsts = recent.map(|(first, _)| *first);
        firsts.find(|first| producer.epoch == batch.epoch && is(*first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(epoch: i16, first: i32) -> Sequence {
        Sequence::new(7, epoch, first, 1)
    }

    const GAP: Verdict = Verdict::OutOfOrder { expected: 4 };

    #[tokio::test]
    async fn a_gap_is_ours_until_the_missing_batch_is_taken() {
        let (sent_back, now) = (SentBack::default(), Instant::now());
        let weigh = |first| sent_back.weigh(GAP, &batch(0, first), now);
        assert_eq!(weigh(5), GAP);
        sent_back.note(&batch(0, 4), now);
        sent_back.note(&batch(0, 5), now);
        assert_eq!(weigh(6), Verdict::Behind { missing: 4 });
        sent_back.taken(&batch(0, 4));
        assert_eq!(weigh(6), GAP, "four is there: who says so is wrong");
        let next = Verdict::OutOfOrder { expected: 5 };
        let ours = sent_back.weigh(next, &batch(0, 6), now);
        assert_eq!(ours, Verdict::Behind { missing: 5 });
    }

    #[tokio::test]
    async fn a_gap_of_another_epoch_or_of_long_ago_is_the_clients() {
        let (sent_back, now) = (SentBack::default(), Instant::now());
        sent_back.note(&batch(0, 4), now);
        assert_eq!(sent_back.weigh(GAP, &batch(1, 5), now), GAP);
        assert_eq!(sent_back.weigh(GAP, &batch(0, 5), now + REMEMBERED), GAP);
    }

    #[tokio::test]
    async fn who_never_sends_the_missing_batch_again_is_told_of_the_gap_however_often_it_sends_the_next()
     {
        let (sent_back, begun) = (SentBack::default(), Instant::now());
        sent_back.note(&batch(0, 4), begun);
        for (quarter, ours) in [(1, true), (2, true), (3, true), (4, false)] {
            let now = begun + REMEMBERED * quarter / 4;
            let verdict = sent_back.weigh(GAP, &batch(0, 5), now);
            assert_eq!(verdict != GAP, ours, "after {quarter} quarters");
            sent_back.note(&batch(0, 5), now);
        }
    }

    #[tokio::test]
    async fn who_is_not_known_may_begin_midway_but_not_behind_what_was_sent_back() {
        let (sent_back, now) = (SentBack::default(), Instant::now());
        let weigh = |first| sent_back.weigh(Verdict::Midway, &batch(0, first), now);
        assert_eq!(weigh(5), Verdict::Append);
        sent_back.note(&batch(0, 4), now);
        assert_eq!(weigh(5), Verdict::Behind { missing: 4 });
        assert_eq!(weigh(4), Verdict::Append);
    }

    #[tokio::test]
    async fn no_more_producers_are_remembered_than_there_is_room_for_until_some_are_old() {
        let (sent_back, now) = (SentBack::default(), Instant::now());
        let of = |id: usize| Sequence::new(id as i64, 0, 4, 1);
        (0..=PRODUCERS_MAX).for_each(|id| sent_back.note(&of(id), now));
        assert_eq!(sent_back.by_id.lock().len(), PRODUCERS_MAX);
        sent_back.note(&of(PRODUCERS_MAX), now + REMEMBERED);
        assert_eq!(sent_back.by_id.lock().len(), 1);
    }
}
