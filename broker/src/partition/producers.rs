//! Idempotence: which batches of which producer are in the log. Pure; the clock is an argument.
//!
//! Two views. [`Producers`] is what is committed: it is part of the partition's replicated state.
//! [`Flights`] is what the leader has proposed and not yet seen applied: it dies with the leader's
//! term. An answer, be it an ack or a refusal, is given from the committed view alone; where flights
//! could change it, the verdict is to wait.
//! Source: KIP-98; Kafka's `ProducerStateManager` and `ProducerAppendInfo` for the rules.

use crate::raft::Refusal;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::{HashMap, HashSet, VecDeque};

/// Batches remembered per producer: what a client may have in flight (KIP-98).
pub const REMEMBERED_BATCHES: usize = 5;

/// Who sent a batch, and which of its numbers the batch holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    pub producer_id: i64,
    pub epoch: i16,
    pub first: i32,
    pub last: i32,
}

impl Sequence {
    /// `count` records from `first` on; sequences wrap to 0 after `i32::MAX`.
    pub fn new(producer_id: i64, epoch: i16, first: i32, count: u32) -> Self {
        let last = (i64::from(first) + i64::from(count) - 1) % (i64::from(i32::MAX) + 1);
        Self {
            producer_id,
            epoch,
            first,
            last: last as i32,
        }
    }

    /// It begins before `expected`: a copy from long ago, of a connection that its client gave up and whose bytes
    /// came late. Half of the numbers, which wrap, are before any of them.
    pub fn is_before(&self, expected: i32) -> bool {
        let numbers = i64::from(i32::MAX) + 1;
        let behind = (i64::from(expected) - i64::from(self.first)).rem_euclid(numbers);
        (1..numbers / 2).contains(&behind)
    }
}

fn after(sequence: i32) -> i32 {
    if sequence == i32::MAX {
        0
    } else {
        sequence + 1
    }
}

/// A committed batch, as a duplicate is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub first: i32,
    pub last: i32,
    pub base_offset: i64,
    pub timestamp: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    seen_ms: i64,
    marks: VecDeque<Mark>,
}

/// What to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Append,
    /// Nothing is known of its producer, and it is not that one's first batch: it was forgotten, unless what
    /// came before is still to come.
    Midway,
    /// The batch before it was sent back by us: both are to come again.
    Behind {
        missing: i32,
    },
    /// It is in the log already.
    Duplicate(Mark),
    /// Only once the flights before it have landed can this be said.
    Wait,
    OutOfOrder {
        expected: i32,
    },
    Fenced {
        current: i16,
    },
}

/// The committed view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Producers {
    by_id: HashMap<i64, Producer>,
}

/// A producer as its partition remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActiveProducer {
    pub id: i64,
    pub epoch: i16,
    /// Of its last record.
    pub last_sequence: i32,
    /// The latest of its last batch, in milliseconds since the epoch.
    pub last_timestamp: i64,
}

impl Producers {
    /// Who has written lately, by id.
    pub fn active(&self) -> Vec<ActiveProducer> {
        let seen = self.by_id.iter().filter_map(|(id, p)| {
            let last = p.marks.back()?;
            Some(ActiveProducer {
                id: *id,
                epoch: p.epoch,
                last_sequence: last.last,
                last_timestamp: last.timestamp,
            })
        });
        let mut active: Vec<ActiveProducer> = seen.collect();
        active.sort_unstable_by_key(|p| p.id);
        active
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// First offsets of the batches by which a repeated one would be told.
    pub fn remembered(&self) -> HashSet<i64> {
        let marks = self.by_id.values().flat_map(|p| &p.marks);
        marks.map(|m| m.base_offset).collect()
    }

    /// A committed batch is in the log.
    pub fn record(&mut self, sequence: Sequence, base_offset: i64, timestamp: i64, now_ms: i64) {
        let mark = Mark {
            first: sequence.first,
            last: sequence.last,
            base_offset,
            timestamp,
        };
        let fresh = || Producer {
            epoch: sequence.epoch,
            seen_ms: now_ms,
            marks: VecDeque::with_capacity(REMEMBERED_BATCHES),
        };
        let producer = self.by_id.entry(sequence.producer_id).or_insert_with(fresh);
        if producer.epoch != sequence.epoch {
            *producer = fresh();
        }
        if producer.marks.len() == REMEMBERED_BATCHES {
            producer.marks.pop_front();
        }
        producer.marks.push_back(mark);
        producer.seen_ms = now_ms;
    }

    /// What was known before the offset `end`: for a snapshot whose later entries will be applied again.
    pub fn as_of(&self, end: i64) -> Self {
        let mut then = self.clone();
        for p in then.by_id.values_mut() {
            p.marks.retain(|m| m.base_offset < end);
        }
        then.by_id.retain(|_, p| !p.marks.is_empty());
        then
    }

    /// Forgets producers that were silent for `expiration_ms`.
    pub fn expire(&mut self, now_ms: i64, expiration_ms: i64) {
        self.by_id.retain(|_, p| now_ms - p.seen_ms < expiration_ms);
    }

    fn holds(&self, s: &Sequence) -> bool {
        self.by_id.get(&s.producer_id).is_some_and(|p| {
            p.epoch > s.epoch
                || (p.epoch == s.epoch
                    && p.marks
                        .iter()
                        .any(|m| m.first == s.first && m.last == s.last))
        })
    }

    fn judge(&self, s: &Sequence) -> Verdict {
        let Some(p) = self.by_id.get(&s.producer_id) else {
            return if s.first == 0 {
                Verdict::Append
            } else {
                Verdict::Midway
            };
        };
        if s.epoch < p.epoch {
            return Verdict::Fenced { current: p.epoch };
        }
        if s.epoch > p.epoch {
            return if s.first == 0 {
                Verdict::Append
            } else {
                Verdict::OutOfOrder { expected: 0 }
            };
        }
        if let Some(mark) = p
            .marks
            .iter()
            .find(|m| m.first == s.first && m.last == s.last)
        {
            return Verdict::Duplicate(*mark);
        }
        let expected = p.marks.back().map_or(0, |m| after(m.last));
        if s.first == expected {
            Verdict::Append
        } else {
            Verdict::OutOfOrder { expected }
        }
    }

    /// `count u32`, then per producer `id i64, epoch i16, seen i64, marks u8`, then per mark
    /// `first i32, last i32, base offset i64, timestamp i64`; big endian.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u32(self.by_id.len() as u32);
        for (id, p) in &self.by_id {
            out.put_i64(*id);
            out.put_i16(p.epoch);
            out.put_i64(p.seen_ms);
            out.put_u8(p.marks.len() as u8);
            for m in &p.marks {
                out.put_i32(m.first);
                out.put_i32(m.last);
                out.put_i64(m.base_offset);
                out.put_i64(m.timestamp);
            }
        }
    }

    /// # Errors
    /// `None` where the bytes end early or count more marks than are ever kept.
    pub fn decode(bytes: &mut Bytes) -> Option<Self> {
        let count = bytes.try_get_u32().ok()?;
        let mut by_id = HashMap::new();
        for _ in 0..count {
            let id = bytes.try_get_i64().ok()?;
            let epoch = bytes.try_get_i16().ok()?;
            let seen_ms = bytes.try_get_i64().ok()?;
            let marks = usize::from(bytes.try_get_u8().ok()?);
            if marks > REMEMBERED_BATCHES {
                return None;
            }
            let marks = (0..marks)
                .map(|_| decode_mark(bytes))
                .collect::<Option<_>>()?;
            by_id.insert(
                id,
                Producer {
                    epoch,
                    seen_ms,
                    marks,
                },
            );
        }
        Some(Self { by_id })
    }
}

fn decode_mark(bytes: &mut Bytes) -> Option<Mark> {
    Some(Mark {
        first: bytes.try_get_i32().ok()?,
        last: bytes.try_get_i32().ok()?,
        base_offset: bytes.try_get_i64().ok()?,
        timestamp: bytes.try_get_i64().ok()?,
    })
}

/// Producers with flights before those that have landed are looked for: a client that is gone asks
/// about its own no more.
const SWEEP_AT: usize = 1024;

/// A batch in flight, with its place among all flights: they land in that order.
#[derive(Debug, Clone)]
struct Flight {
    number: u64,
    sequence: Sequence,
    refusal: Refusal,
}

/// The leader's view of what it proposed and has not seen applied.
#[derive(Debug)]
pub struct Flights {
    term: u64,
    by_id: HashMap<i64, VecDeque<Flight>>,
    taken_off: u64,
    /// The latest flight that was seen landed; all before it have landed too.
    landed: u64,
    sweep_at: usize,
}

impl Default for Flights {
    fn default() -> Self {
        Self {
            term: 0,
            by_id: HashMap::new(),
            taken_off: 0,
            landed: 0,
            sweep_at: SWEEP_AT,
        }
    }
}

impl Flights {
    /// What to do with a batch, given what is committed and what flies. Landed flights are forgotten.
    pub fn judge(&mut self, term: u64, committed: &Producers, s: &Sequence) -> Verdict {
        if self.term != term {
            self.by_id.clear();
            self.term = term;
        }
        if self.by_id.len() >= self.sweep_at {
            self.sweep(committed);
        }
        let Some(last) = self.last_flying(committed, s.producer_id) else {
            return committed.judge(s);
        };
        let follows = (s.epoch == last.epoch && s.first == after(last.last))
            || (s.epoch > last.epoch && s.first == 0);
        if follows {
            Verdict::Append
        } else {
            Verdict::Wait
        }
    }

    /// A producer's latest batch that is still in the air.
    fn last_flying(&mut self, committed: &Producers, producer_id: i64) -> Option<Sequence> {
        let flying = self.by_id.get_mut(&producer_id)?;
        flying.retain(|f| !f.refusal.is_certain());
        // The latest that is committed: more may have landed than are remembered.
        let seen = flying.iter().rfind(|f| committed.holds(&f.sequence));
        self.landed = self.landed.max(seen.map_or(0, |f| f.number));
        while flying.front().is_some_and(|f| f.number <= self.landed) {
            flying.pop_front();
        }
        let last = flying.back().map(|f| f.sequence);
        if last.is_none() {
            self.by_id.remove(&producer_id);
        }
        last
    }

    fn sweep(&mut self, committed: &Producers) {
        let seen = self
            .by_id
            .values()
            .filter_map(|flying| flying.iter().rfind(|f| committed.holds(&f.sequence)));
        self.landed = seen.map(|f| f.number).fold(self.landed, u64::max);
        let landed = self.landed;
        self.by_id
            .retain(|_, flying| flying.back().is_some_and(|f| f.number > landed));
        self.sweep_at = SWEEP_AT.max(2 * self.by_id.len());
    }

    /// A batch was proposed; a flight that is refused lands nowhere, and is forgotten.
    pub fn took_off(&mut self, sequence: Sequence, refusal: Refusal) {
        self.taken_off += 1;
        let number = self.taken_off;
        self.by_id
            .entry(sequence.producer_id)
            .or_default()
            .push_back(Flight {
                number,
                sequence,
                refusal,
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const P: i64 = 9;

    fn seq(epoch: i16, first: i32, count: u32) -> Sequence {
        Sequence::new(P, epoch, first, count)
    }

    fn committed(batches: &[(i16, i32, u32)]) -> Producers {
        let mut p = Producers::default();
        for (n, (epoch, first, count)) in batches.iter().enumerate() {
            p.record(seq(*epoch, *first, *count), n as i64 * 100, 0, 0);
        }
        p
    }

    #[test]
    fn an_unknown_producer_may_begin_midway() {
        assert_eq!(
            Flights::default().judge(1, &Producers::default(), &seq(3, 77, 1)),
            Verdict::Midway
        );
    }

    #[test]
    fn trap_19_a_committed_batch_is_answered_with_its_first_offset() {
        let p = committed(&[(0, 0, 10), (0, 10, 5)]);
        let verdict = Flights::default().judge(1, &p, &seq(0, 10, 5));
        assert!(
            matches!(
                verdict,
                Verdict::Duplicate(Mark {
                    base_offset: 100,
                    ..
                })
            ),
            "{verdict:?}"
        );
    }

    #[test]
    fn trap_19_only_the_last_five_batches_are_remembered() {
        let p = committed(&[
            (0, 0, 1),
            (0, 1, 1),
            (0, 2, 1),
            (0, 3, 1),
            (0, 4, 1),
            (0, 5, 1),
        ]);
        assert_eq!(
            Flights::default().judge(1, &p, &seq(0, 0, 1)),
            Verdict::OutOfOrder { expected: 6 }
        );
        assert!(matches!(
            Flights::default().judge(1, &p, &seq(0, 1, 1)),
            Verdict::Duplicate(_)
        ));
    }

    #[test]
    fn trap_19_a_new_epoch_begins_at_zero_and_fences_the_old() {
        let p = committed(&[(1, 0, 4)]);
        let mut f = Flights::default();
        assert_eq!(
            f.judge(1, &p, &seq(2, 4, 1)),
            Verdict::OutOfOrder { expected: 0 }
        );
        assert_eq!(f.judge(1, &p, &seq(2, 0, 1)), Verdict::Append);
        assert_eq!(
            f.judge(1, &p, &seq(0, 4, 1)),
            Verdict::Fenced { current: 1 }
        );
    }

    #[test]
    fn trap_19_sequences_wrap_after_the_largest() {
        let p = committed(&[(0, i32::MAX - 1, 2)]);
        assert_eq!(seq(0, i32::MAX, 2).last, 0);
        assert_eq!(
            Flights::default().judge(1, &p, &seq(0, 0, 3)),
            Verdict::Append
        );
    }

    #[test]
    fn a_late_copy_is_told_from_a_gap_also_where_sequences_wrap() {
        assert!(seq(0, 4, 1).is_before(5));
        assert!(!seq(0, 6, 1).is_before(5));
        assert!(seq(0, i32::MAX, 1).is_before(3));
        assert!(!seq(0, 3, 1).is_before(i32::MAX));
    }

    #[test]
    fn five_in_flight_append_in_order_and_a_gap_waits_for_them() {
        let (mut f, none) = (Flights::default(), Producers::default());
        for first in 0..5 {
            assert_eq!(f.judge(1, &none, &seq(0, first, 1)), Verdict::Append);
            f.took_off(seq(0, first, 1), Refusal::default());
        }
        assert_eq!(
            f.judge(1, &none, &seq(0, 9, 1)),
            Verdict::Wait,
            "a refusal would tell of what may be lost"
        );
        assert_eq!(
            f.judge(1, &none, &seq(0, 2, 1)),
            Verdict::Wait,
            "a duplicate of what flies has no offset yet"
        );
        let landed = committed(&[(0, 0, 1), (0, 1, 1), (0, 2, 1), (0, 3, 1), (0, 4, 1)]);
        assert_eq!(
            f.judge(1, &landed, &seq(0, 9, 1)),
            Verdict::OutOfOrder { expected: 5 }
        );
        assert!(matches!(
            f.judge(1, &landed, &seq(0, 2, 1)),
            Verdict::Duplicate(_)
        ));
    }

    #[test]
    fn more_flights_may_land_unseen_than_are_remembered() {
        let (mut f, none) = (Flights::default(), Producers::default());
        for first in 0..8 {
            assert_eq!(f.judge(1, &none, &seq(0, first, 1)), Verdict::Append);
            f.took_off(seq(0, first, 1), Refusal::default());
        }
        let batches: Vec<_> = (0..8).map(|first| (0, first, 1)).collect();
        let landed = committed(&batches);
        assert!(
            matches!(
                f.judge(1, &landed, &seq(0, 7, 1)),
                Verdict::Duplicate(Mark {
                    base_offset: 700,
                    ..
                })
            ),
            "nothing flies any more, so there is nothing to wait for"
        );
        assert!(f.by_id.is_empty());
    }

    #[test]
    fn a_flight_that_landed_and_whose_producer_was_forgotten_is_not_waited_for() {
        let (mut f, mut p) = (Flights::default(), Producers::default());
        let other = Sequence::new(P + 1, 0, 0, 1);
        f.took_off(seq(0, 0, 1), Refusal::default());
        f.took_off(other, Refusal::default());
        p.record(seq(0, 0, 1), 0, 0, 0);
        p.record(other, 1, 0, 5_000);
        p.expire(5_000, 1_000);
        let _other_landed = f.judge(0, &p, &other);
        assert_eq!(f.judge(0, &p, &seq(0, 0, 1)), Verdict::Append);
    }

    #[test]
    fn clients_that_come_once_leave_no_flights_behind() {
        let (mut f, mut p) = (Flights::default(), Producers::default());
        for id in 0..10 * SWEEP_AT as i64 {
            let s = Sequence::new(id, 0, 0, 1);
            assert_eq!(f.judge(1, &p, &s), Verdict::Append);
            f.took_off(s, Refusal::default());
            p.record(s, id, 0, 0);
        }
        assert!(f.by_id.len() <= SWEEP_AT, "{} kept", f.by_id.len());
    }

    #[test]
    fn flights_die_with_the_leaders_term() {
        let (mut f, none) = (Flights::default(), Producers::default());
        assert_eq!(f.judge(1, &none, &seq(0, 0, 1)), Verdict::Append);
        f.took_off(seq(0, 0, 1), Refusal::default());
        assert_eq!(f.judge(2, &none, &seq(0, 0, 1)), Verdict::Append);
    }

    #[test]
    fn a_flight_that_was_refused_is_not_waited_for_and_what_follows_it_is_a_gap() {
        let (mut f, p) = (Flights::default(), committed(&[(0, 0, 1)]));
        let refusal = Refusal::default();
        f.took_off(seq(0, 1, 1), refusal.clone());
        assert_eq!(f.judge(0, &p, &seq(0, 1, 1)), Verdict::Wait);
        refusal.set();
        let gap = f.judge(0, &p, &seq(0, 2, 1));
        assert_eq!(gap, Verdict::OutOfOrder { expected: 1 });
        assert_eq!(f.judge(0, &p, &seq(0, 1, 1)), Verdict::Append);
    }

    #[test]
    fn a_snapshot_knows_nothing_of_what_comes_after_it() {
        let p = committed(&[(0, 0, 1), (0, 1, 1), (0, 2, 1)]);
        assert_eq!(
            Flights::default().judge(1, &p.as_of(150), &seq(0, 2, 1)),
            Verdict::Append
        );
        assert_eq!(p.as_of(0).len(), 0);
    }

    #[test]
    fn a_silent_producer_is_forgotten_after_its_time() {
        let mut p = committed(&[(0, 0, 1)]);
        p.expire(999, 1_000);
        assert_eq!(p.len(), 1);
        p.expire(1_000, 1_000);
        assert_eq!(p.len(), 0);
    }

    proptest! {
        #[test]
        fn the_committed_view_survives_its_encoding(batches in prop::collection::vec((0..4i64, 0..3i16, 0..100i32, 1..20u32), 0..40)) {
            let mut p = Producers::default();
            for (n, (id, epoch, first, count)) in batches.into_iter().enumerate() {
                p.record(Sequence::new(id, epoch, first, count), n as i64, n as i64, n as i64);
            }
            let mut out = BytesMut::new();
            p.encode(&mut out);
            prop_assert_eq!(Producers::decode(&mut out.freeze()), Some(p));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Producers::decode(&mut Bytes::from(bytes));
        }

        /// Retries in any pattern: each batch is appended once, in order, whatever the client repeats.
        #[test]
        fn repeats_and_losses_never_duplicate_or_reorder(picks in prop::collection::vec((0..8usize, any::<bool>()), 1..200)) {
            let (mut f, mut p) = (Flights::default(), Producers::default());
            let mut log: Vec<i32> = Vec::new();
            let mut flying: VecDeque<Sequence> = VecDeque::new();
            for (back, land) in picks {
                let next = (log.len() + flying.len()) as i32;
                let first = (next - back as i32).max(0);
                let s = seq(0, first, 1);
                if f.judge(1, &p, &s) == Verdict::Append {
                    prop_assert_eq!(first, next);
                    f.took_off(s, Refusal::default());
                    flying.push_back(s);
                }
                if land && let Some(s) = flying.pop_front() {
                    p.record(s, log.len() as i64, 0, 0);
                    log.push(s.first);
                }
            }
            prop_assert!(log.iter().enumerate().all(|(i, s)| i as i32 == *s));
        }
    }
}
