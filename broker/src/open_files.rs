//! How many files may be open, and who gets how many.
//!
//! Promise: connections never take the descriptors that the disk needs, so clients can be refused but what
//! was accepted can always be written. Not here: what happens when they run out all the same (storage waits).

use crate::config::Config;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

/// Open files wanted: connections, segments, and room. The hard limit may give less.
const WANTED: u64 = 1 << 20;

/// For what is neither a connection nor a segment: listeners, the runtime, the write-ahead log, folders.
const OTHERS: u64 = 64;

/// An open segment has two files.
const PER_SEGMENT: u64 = 2;

/// A limit of open files, shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shares {
    connections: usize,
    segments: usize,
}

/// Half of what is not for [`OTHERS`] goes to connections, half to segments.
fn share(limit: u64) -> Shares {
    let half = limit.saturating_sub(OTHERS) / 2;
    let at_least_one = |n: u64| usize::try_from(n.max(1)).unwrap_or(usize::MAX);
    Shares {
        connections: at_least_one(half),
        segments: at_least_one(half / PER_SEGMENT),
    }
}

/// Lowers settings that would need more open files than there may be, and warns where somebody would notice.
pub fn fit(config: &mut Config, limit: u64) {
    let shares = share(limit);
    let connections = &mut config.limits.max_connections;
    if *connections > shares.connections {
        config.warnings.push(format!(
            "limits.max_connections is {connections}, but a limit of {limit} open files leaves room for {} beside \
             the disk's: raise it (ulimit -n, LimitNOFILE) or lower the setting",
            shares.connections
        ));
        *connections = shares.connections;
        config.written.limits.max_connections = shares.connections;
    }
    config.connections_room = shares.connections;
    config.storage.open_segments_max = shares.segments;
}

/// Raises the limit as far as allowed and returns it.
pub fn raise_limit() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let wanted = now.maximum.map_or(WANTED, |max| max.min(WANTED));
    // No limit at all is enough.
    let current = now.current.unwrap_or(WANTED);
    if current >= wanted {
        return current;
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: now.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => {
            info!(from = current, to = wanted, "limit of open files raised");
            wanted
        }
        Err(error) => {
            warn!(limit = current, %error, "limit of open files stays; many connections or partitions may not fit");
            current
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_limit_leaves_the_disk_its_half() {
        let shares = share(1_024);
        assert_eq!((shares.connections, shares.segments), (480, 240));
        let used = shares.connections as u64 + PER_SEGMENT * shares.segments as u64 + OTHERS;
        assert!(used <= 1_024);
    }

    #[test]
    fn a_limit_too_small_for_anything_still_lets_one_client_in() {
        let shares = share(10);
        assert_eq!((shares.connections, shares.segments), (1, 1));
    }
}
