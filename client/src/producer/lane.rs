//! One partition's batches on the wire: their order, their numbers, what may be sent next.
//!
//! Promise: batches of a partition are numbered and sent in order, and sent again in order: a batch is
//! repeated only when nothing behind it is still under way, and nothing new overtakes it. When a
//! batch fails for good, what follows it under the same producer id fails too, because the broker would
//! refuse the gap. Pure: the time is an argument.
//!
//! Not here: requests and brokers ([`super::sender`]).

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use logd_proto::ErrorCode;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::DeliveryResult;

/// Brokers remember the last five batches of a producer to recognise duplicates, no more.
pub(crate) const IN_FLIGHT_MAX: usize = 5;

/// Who numbers the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub id: i64,
    pub epoch: i16,
}

/// A batch on the wire, or waiting to be repeated.
#[derive(Debug)]
pub(crate) struct Flight {
    pub id: u64,
    pub bytes: Bytes,
    pub deliveries: Vec<oneshot::Sender<DeliveryResult>>,
    pub permits: usize,
    pub born: Instant,
    pub sent: bool,
}

#[derive(Debug)]
pub(crate) struct Lane {
    flights: VecDeque<Flight>,
    in_flight_max: usize,
    identity: Option<Identity>,
    /// The identity that a failed batch made useless.
    spent: Option<Identity>,
    next_sequence: i32,
    not_before: Option<Instant>,
    failures: u32,
    pub last_error: String,
}

/// What a broker's code means for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is in the log, from this answer or an earlier one.
    Stored,
    /// Send it again.
    Again,
    /// It will never be in the log.
    Refused,
}

impl Lane {
    pub fn new(idempotent: bool) -> Lane {
        Lane {
            flights: VecDeque::new(),
            // Without numbers, two batches on the wire could change places when one is repeated.
            in_flight_max: if idempotent { IN_FLIGHT_MAX } else { 1 },
            identity: None,
            spent: None,
            next_sequence: 0,
            not_before: None,
            failures: 0,
            last_error: String::from("none"),
        }
    }

    pub fn oldest(&self) -> Option<u64> {
        self.flights.front().map(|flight| flight.id)
    }

    /// Until when the lane rests after a failure.
    pub fn rests_until(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|at| *at > now)
    }

    /// Whether a new batch may be taken on.
    pub fn has_room(&self) -> bool {
        self.flights.len() < self.in_flight_max && self.flights.iter().all(|flight| flight.sent)
    }

    /// The first number for the next batch of `count` records under the producer's `current`
    /// identity, or none while that one is used up here, or batches of an older one are on the wire.
    pub fn number(&mut self, current: Identity, count: usize) -> Option<i32> {
        if self.spent == Some(current) {
            return None;
        }
        if self.identity != Some(current) {
            if !self.flights.is_empty() {
                return None;
            }
            self.identity = Some(current);
            self.next_sequence = 0;
        }
        let first = self.next_sequence;
        // Sequence numbers continue at 0 behind the largest.
        let next = (i64::from(first) + count as i64) % (i64::from(i32::MAX) + 1);
        self.next_sequence = next as i32;
        Some(first)
    }

    /// Whether only a new identity will do.
    pub fn needs_other_than(&self, current: Identity) -> bool {
        self.spent == Some(current)
    }

    /// Puts a batch on the wire.
    pub fn launch(&mut self, flight: Flight) {
        self.flights.push_back(flight);
    }

    /// The batch to be sent again now: the first of those that wait, if nothing behind is under way.
    pub fn relaunch(&mut self, now: Instant) -> Option<&Flight> {
        if self.rests_until(now).is_some() {
            return None;
        }
        let first = self.flights.iter().position(|flight| !flight.sent)?;
        if self.flights.range(first..).any(|flight| flight.sent) {
            return None;
        }
        let flight = self.flights.get_mut(first)?;
        flight.sent = true;
        Some(flight)
    }

    /// What a code means for a flight.
    pub fn judge(&self, id: u64, code: ErrorCode) -> Verdict {
        match code {
            ErrorCode::None | ErrorCode::DuplicateSequenceNumber => Verdict::Stored,
            // Something before it is missing, and is waiting to be repeated.
            ErrorCode::OutOfOrderSequenceNumber if self.oldest() != Some(id) => Verdict::Again,
            code if code.is_retriable() => Verdict::Again,
            _ => Verdict::Refused,
        }
    }

    /// Takes a stored flight out.
    pub fn stored(&mut self, id: u64) -> Option<Flight> {
        let at = self.flights.iter().position(|flight| flight.id == id)?;
        self.failures = 0;
        self.not_before = None;
        self.flights.remove(at)
    }

    /// Marks a flight to be repeated; says how many failures there were in a row.
    pub fn again(&mut self, id: u64, why: String) -> Option<u32> {
        let flight = self.flights.iter_mut().find(|flight| flight.id == id)?;
        flight.sent = false;
        self.last_error = why;
        self.failures = self.failures.saturating_add(1);
        Some(self.failures)
    }

    pub fn rest(&mut self, now: Instant, wait: Duration) {
        self.not_before = Some(now + wait);
    }

    /// Takes a refused flight out, and those behind it, whose numbers now follow a gap.
    pub fn refused(&mut self, id: u64) -> Option<(Flight, Vec<Flight>)> {
        let at = self.flights.iter().position(|flight| flight.id == id)?;
        let mut failed = self.flights.split_off(at);
        let first = failed.pop_front()?;
        self.spend();
        Some((first, failed.into()))
    }

    /// Takes everything out if the oldest waits to be repeated and is older than allowed.
    pub fn expire(&mut self, oldest: Instant) -> Vec<Flight> {
        if self.waiting_since().is_none_or(|born| born > oldest) {
            return Vec::new();
        }
        self.spend();
        self.failures = 0;
        self.not_before = None;
        self.flights.drain(..).collect()
    }

    /// When the oldest flight was begun, if it waits to be repeated.
    pub fn waiting_since(&self) -> Option<Instant> {
        self.flights
            .front()
            .filter(|flight| !flight.sent)
            .map(|flight| flight.born)
    }

    /// Gives the identity up: a number was used for nothing.
    pub fn spend(&mut self) {
        if self.identity.is_some() {
            self.spent = self.identity.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Identity = Identity { id: 7, epoch: 0 };

    fn fly(lane: &mut Lane, id: u64) {
        lane.launch(Flight {
            id,
            bytes: Bytes::new(),
            deliveries: Vec::new(),
            permits: 0,
            born: Instant::now(),
            sent: true,
        });
    }

    fn lane_with(flights: u64) -> Lane {
        let mut lane = Lane::new(true);
        for id in 0..flights {
            lane.number(US, 10).unwrap();
            fly(&mut lane, id);
        }
        lane
    }

    fn relaunched(lane: &mut Lane) -> Option<u64> {
        lane.relaunch(Instant::now()).map(|flight| flight.id)
    }

    #[test]
    fn five_are_under_way_and_no_more() {
        let mut lane = lane_with(4);
        assert!(lane.has_room());
        fly(&mut lane, 4);
        assert!(!lane.has_room());
        assert_eq!(lane.number(US, 1), Some(40));
    }

    #[test]
    fn numbers_go_on_at_zero_behind_the_largest() {
        let mut lane = lane_with(0);
        lane.number(US, i32::MAX as usize);
        assert_eq!(lane.number(US, 2), Some(i32::MAX));
        assert_eq!(lane.number(US, 1), Some(1));
    }

    #[test]
    fn repeats_wait_for_what_is_behind_and_keep_their_order() {
        let mut lane = lane_with(3);
        lane.again(0, "no leader".into());
        assert_eq!(relaunched(&mut lane), None, "1 and 2 are still under way");
        assert!(!lane.has_room(), "nothing new overtakes");
        assert_eq!(
            lane.judge(1, ErrorCode::OutOfOrderSequenceNumber),
            Verdict::Again
        );
        lane.again(1, String::new());
        lane.again(2, String::new());
        let order: Vec<u64> = std::iter::from_fn(|| relaunched(&mut lane)).collect();
        assert_eq!(order, [0, 1, 2]);
        assert!(lane.has_room());
    }

    #[test]
    fn a_refused_batch_takes_those_behind_it_along_and_the_identity() {
        let mut lane = lane_with(3);
        let (first, behind) = lane.refused(1).unwrap();
        assert_eq!((first.id, behind.len()), (1, 1));
        assert_eq!(lane.oldest(), Some(0), "the one before is unharmed");
        assert!(lane.needs_other_than(US));
        let fresh = Identity { id: 8, epoch: 0 };
        assert_eq!(
            lane.number(fresh, 1),
            None,
            "the old numbers are still on the wire"
        );
        lane.stored(0).unwrap();
        assert_eq!(lane.number(US, 1), None);
        assert_eq!(lane.number(fresh, 1), Some(0));
    }

    #[test]
    fn a_gap_at_the_front_is_nobodys_to_fill() {
        let lane = lane_with(2);
        assert_eq!(
            lane.judge(0, ErrorCode::OutOfOrderSequenceNumber),
            Verdict::Refused
        );
        assert_eq!(
            lane.judge(0, ErrorCode::DuplicateSequenceNumber),
            Verdict::Stored
        );
        assert_eq!(
            lane.judge(0, ErrorCode::NotLeaderOrFollower),
            Verdict::Again
        );
        assert_eq!(lane.judge(1, ErrorCode::MessageTooLarge), Verdict::Refused);
    }

    #[test]
    fn only_what_waits_expires() {
        let mut lane = lane_with(2);
        let later = Instant::now() + Duration::from_secs(1);
        assert!(lane.expire(later).is_empty(), "the answer may still come");
        lane.again(0, String::new());
        lane.again(1, String::new());
        assert_eq!(lane.expire(later).len(), 2);
        assert!(lane.needs_other_than(US));
    }

    #[test]
    fn a_lane_rests_after_a_failure() {
        let (mut lane, now) = (lane_with(1), Instant::now());
        assert_eq!(lane.again(0, String::new()), Some(1));
        lane.rest(now, Duration::from_secs(60));
        assert_eq!(relaunched(&mut lane), None);
        assert!(lane.rests_until(now).is_some());
    }
}
