//! Which requests of a connection are worked on at the same time.
//!
//! Promise: a request that shows or changes what others of the connection change begins when all before it
//! are done, and what comes after it begins when it is done: a client may send "create" behind "delete", or ask
//! for an offset behind its commit, without waiting for the answer. Kafka works on one request of a
//! connection at a time. Here produces, which queue in order by themselves, fetches and what keeps a member in
//! its group overlap: a fetch that waits for records does not hold up a produce.
//! Not here: how many may be in flight, and the order of the answers.

use super::limits::Held;
use bytes::Bytes;
use logd_proto::api::ApiKey;

/// The next request of a connection, and what it may have to wait for.
#[derive(Default)]
pub(super) struct Turns {
    next: Option<(Bytes, Held)>,
    /// What is in flight is by itself.
    alone: bool,
}

impl Turns {
    /// Whether a request waits for those before it.
    pub fn is_taken(&self) -> bool {
        self.next.is_some()
    }

    pub fn put(&mut self, frame: Bytes, held: Held) {
        self.next = Some((frame, held));
    }

    /// The request, if it may begin. `resting`: nothing is in flight.
    pub fn begin(&mut self, resting: bool) -> Option<(Bytes, Held)> {
        let overlaps = self.next.as_ref().is_some_and(|(f, _)| overlaps(f));
        if !resting && (self.alone || !overlaps) {
            return None;
        }
        self.alone = !overlaps;
        self.next.take()
    }
}

/// By the request's kind, which its first two bytes tell.
fn overlaps(frame: &[u8]) -> bool {
    let key = frame.first_chunk().map(|key| i16::from_be_bytes(*key));
    matches!(
        key.and_then(ApiKey::from_code),
        Some(
            ApiKey::Produce
                | ApiKey::Fetch
                | ApiKey::JoinGroup
                | ApiKey::SyncGroup
                | ApiKey::Heartbeat
                | ApiKey::LeaveGroup
        )
    )
}
