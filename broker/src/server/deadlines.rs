//! When a connection is given up on.
//!
//! Promise: a peer that sends nothing, sends too slowly, or does not read is let go in bounded time, and is
//! not blamed for time in which the broker itself did not read. Pure: the caller has the clock.
//! Not here: sockets, and how many connections there may be.

use std::time::Duration;
use tokio::time::Instant;

/// How long a peer may take for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Without a request for this long, a connection is closed.
    pub idle: Duration,
    /// The first request must be here within this.
    pub handshake: Duration,
    /// In each such span a frame that has begun ends or moves on, and unread answers get fewer.
    pub stalled: Duration,
    /// What a frame that has begun must bring per second, over such a span.
    pub frame_bytes_per_second: u64,
}

/// What a peer was too late with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Late {
    #[error("idle for too long")]
    Idle,
    #[error("no request came after connecting")]
    Handshake,
    #[error("a frame stalled half way")]
    Stalled,
    #[error("a frame came too slowly")]
    Slow,
    #[error("a frame found no room among those of other connections")]
    Starved,
    #[error("the client does not read its answers")]
    Unread,
}

/// How things stand between broker and peer.
#[derive(Debug, Clone, Copy)]
pub struct Situation {
    /// Part of a frame is here, and more of it is read as it comes.
    pub arriving: bool,
    pub in_flight: bool,
    pub unread: bool,
}

/// A span in which a frame must bring something.
#[derive(Debug, Clone, Copy)]
struct Span {
    since: Instant,
    bytes: u64,
    /// Time that was not the peer's, since the frame began.
    excused: Duration,
}

#[derive(Debug)]
pub struct Deadlines {
    patience: Patience,
    opened: Instant,
    /// A request, an answer or a write was last done.
    progress: Instant,
    any_request: bool,
    frame: Option<Span>,
}

impl Deadlines {
    pub fn new(patience: Patience, now: Instant) -> Self {
        Self {
            patience,
            opened: now,
            progress: now,
            any_request: false,
            frame: None,
        }
    }

    /// From now on, another patience.
    pub fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// An answer was ready or written.
    pub fn progress(&mut self, now: Instant) {
        self.progress = now;
    }

    /// Bytes came.
    pub fn arrived(&mut self, now: Instant, bytes: usize) {
        self.progress = now;
        let span = self.frame.get_or_insert(Span {
            since: now,
            bytes: 0,
            excused: Duration::ZERO,
        });
        span.bytes += bytes as u64;
    }

    /// A request is whole; what lies behind it, if anything, begins now.
    pub fn request(&mut self, now: Instant, more: usize) {
        self.frame = None;
        self.any_request = true;
        self.progress = now;
        if more > 0 {
            self.arrived(now, more);
        }
    }

    /// For so long nothing was read, and that was not the peer's doing.
    pub fn excuse(&mut self, time: Duration) {
        if let Some(span) = &mut self.frame {
            span.since += time;
            span.excused += time;
        }
    }

    /// When [`Deadlines::late`] is to be asked again.
    pub fn next(&self, situation: Situation) -> Option<Instant> {
        let p = &self.patience;
        let arriving = self.frame.filter(|_| situation.arriving);
        let waits = [
            arriving.map(|span| span.since + p.stalled),
            situation.unread.then_some(self.progress + p.stalled),
            (!self.any_request).then_some(self.opened + p.handshake),
            (!situation.in_flight).then_some(self.progress + p.idle),
        ];
        waits.into_iter().flatten().min()
    }

    /// What the peer is too late with, if anything.
    pub fn late(&mut self, now: Instant, situation: Situation) -> Option<Late> {
        let p = self.patience;
        let passed = |since: Instant, wait: Duration| now.saturating_duration_since(since) >= wait;
        if situation.unread && passed(self.progress, p.stalled) {
            return Some(Late::Unread);
        }
        if let Some(span) = self.frame.as_mut().filter(|_| situation.arriving) {
            if span.excused >= p.idle {
                return Some(Late::Starved);
            }
            if passed(span.since, p.stalled) {
                let wanted = p.stalled.as_secs_f64() * p.frame_bytes_per_second as f64;
                match span.bytes {
                    0 => return Some(Late::Stalled),
                    bytes if (bytes as f64) < wanted => return Some(Late::Slow),
                    _ => (span.since, span.bytes) = (now, 0),
                }
            }
        }
        if !self.any_request && passed(self.opened, p.handshake) {
            return Some(Late::Handshake);
        }
        (!situation.in_flight && passed(self.progress, p.idle)).then_some(Late::Idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        idle: Duration::from_secs(600),
        handshake: Duration::from_secs(20),
        stalled: Duration::from_secs(10),
        frame_bytes_per_second: 100,
    };
    const ARRIVING: Situation = Situation {
        arriving: true,
        in_flight: false,
        unread: false,
    };
    const QUIET: Situation = Situation {
        arriving: false,
        ..ARRIVING
    };

    struct Peer {
        deadlines: Deadlines,
        now: Instant,
    }

    impl Peer {
        /// One that has sent its first request.
        fn new() -> Self {
            let now = Instant::now();
            let mut deadlines = Deadlines::new(PATIENCE, now);
            deadlines.request(now, 0);
            Self { deadlines, now }
        }

        fn after(&mut self, seconds: u64, situation: Situation) -> Option<Late> {
            self.now += Duration::from_secs(seconds);
            let due = self
                .deadlines
                .next(situation)
                .is_some_and(|at| at <= self.now);
            let late = self.deadlines.late(self.now, situation);
            assert!(due || late.is_none(), "{late:?} would be noticed too late");
            late
        }

        fn send(&mut self, bytes: usize) {
            self.deadlines.arrived(self.now, bytes);
        }
    }

    #[test]
    fn a_byte_a_second_is_too_slow_for_a_frame() {
        let mut peer = Peer::new();
        for _ in 0..10 {
            peer.send(1);
            assert_eq!(peer.after(0, ARRIVING), None);
            peer.now += Duration::from_secs(1);
        }
        assert_eq!(peer.after(0, ARRIVING), Some(Late::Slow));
    }

    #[test]
    fn a_frame_that_comes_fast_and_then_drips_is_cut_too() {
        let mut peer = Peer::new();
        peer.send(1_000_000);
        assert_eq!(peer.after(10, ARRIVING), None);
        peer.send(5);
        assert_eq!(peer.after(10, ARRIVING), Some(Late::Slow));
        let mut peer = Peer::new();
        peer.send(1_000_000);
        assert_eq!(peer.after(10, ARRIVING), None);
        assert_eq!(peer.after(10, ARRIVING), Some(Late::Stalled));
    }

    #[test]
    fn a_long_frame_at_the_least_rate_may_take_its_time() {
        let mut peer = Peer::new();
        for _ in 0..100 {
            peer.send(1_000);
            assert_eq!(peer.after(10, ARRIVING), None);
        }
    }

    #[test]
    fn time_in_which_the_broker_did_not_read_is_not_the_peers() {
        let mut peer = Peer::new();
        peer.send(1);
        peer.now += Duration::from_secs(500);
        peer.deadlines.excuse(Duration::from_secs(500));
        assert_eq!(peer.after(9, ARRIVING), None);
        assert_eq!(peer.after(1, ARRIVING), Some(Late::Slow));
        let mut peer = Peer::new();
        peer.send(1);
        peer.now += Duration::from_secs(600);
        peer.deadlines.excuse(Duration::from_secs(600));
        assert_eq!(peer.deadlines.late(peer.now, ARRIVING), Some(Late::Starved));
    }

    #[test]
    fn the_first_request_is_waited_for_less_than_later_ones() {
        let mut peer = Peer::new();
        peer.deadlines = Deadlines::new(PATIENCE, peer.now);
        assert_eq!(peer.after(19, QUIET), None);
        assert_eq!(peer.after(1, QUIET), Some(Late::Handshake));
        let mut peer = Peer::new();
        assert_eq!(peer.after(599, QUIET), None);
        assert_eq!(peer.after(1, QUIET), Some(Late::Idle));
    }

    #[test]
    fn who_waits_for_an_answer_is_not_idle_and_who_does_not_read_is_late() {
        let mut peer = Peer::new();
        let waiting = Situation {
            in_flight: true,
            ..QUIET
        };
        assert_eq!(peer.after(100_000, waiting), None);
        let mut peer = Peer::new();
        let unread = Situation {
            unread: true,
            ..waiting
        };
        assert_eq!(peer.after(9, unread), None);
        assert_eq!(peer.after(1, unread), Some(Late::Unread));
    }
}
