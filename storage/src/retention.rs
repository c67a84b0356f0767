//! What of a log is old or too much: a pure function of its segments, a policy and a time.
//!
//! Promise: it only names a new start; dropping is the owner's, who may have to ask others first.
//! Not here: clocks, files.

use crate::SegmentInfo;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    pub max_bytes: Option<u64>,
    pub max_age_ms: Option<i64>,
}

/// The offset where the log may start after dropping whole segments; `None` if all must stay.
/// A segment goes by age when its newest record is too old, the growing one too; by size only if
/// what stays still holds `max_bytes`.
pub fn expired(segments: &[SegmentInfo], policy: Policy, now_ms: i64) -> Option<i64> {
    let by_age = segments.iter().take_while(|s| is_old(s, policy, now_ms));
    let by_size = too_much(segments, policy);
    let drop = by_age.count().max(by_size);
    drop.checked_sub(1).map(|last| segments[last].next_offset)
}

fn is_old(segment: &SegmentInfo, policy: Policy, now_ms: i64) -> bool {
    // A segment without any timestamp is of unknown age: it stays.
    policy.max_age_ms.is_some_and(|age| {
        segment.max_timestamp >= 0 && now_ms.saturating_sub(segment.max_timestamp) > age
    })
}

fn too_much(segments: &[SegmentInfo], policy: Policy) -> usize {
    let Some(max_bytes) = policy.max_bytes else {
        return 0;
    };
    let mut left: u64 = segments.iter().map(|s| s.bytes).sum();
    segments
        .iter()
        .take_while(|s| {
            let goes = s.sealed && left.saturating_sub(s.bytes) >= max_bytes;
            left = left.saturating_sub(s.bytes);
            goes
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EntryId;

    fn segment(from: i64, bytes: u64, max_timestamp: i64, sealed: bool) -> SegmentInfo {
        SegmentInfo {
            base_offset: from,
            last: EntryId {
                term: 1,
                index: from as u64 + 9,
            },
            next_offset: from + 10,
            bytes,
            max_timestamp,
            first_timestamp: max_timestamp,
            sealed,
            clean: false,
        }
    }

    fn three() -> Vec<SegmentInfo> {
        vec![
            segment(0, 100, 1_000, true),
            segment(10, 100, 2_000, true),
            segment(20, 50, 3_000, false),
        ]
    }

    fn age(ms: i64) -> Policy {
        Policy {
            max_age_ms: Some(ms),
            max_bytes: None,
        }
    }

    fn size(bytes: u64) -> Policy {
        Policy {
            max_age_ms: None,
            max_bytes: Some(bytes),
        }
    }

    #[test]
    fn without_a_policy_everything_stays() {
        assert_eq!(expired(&three(), Policy::default(), i64::MAX), None);
        assert_eq!(expired(&[], age(0), 0), None);
    }

    #[test]
    fn what_is_older_than_the_age_goes_whole_segments_at_a_time() {
        assert_eq!(expired(&three(), age(1_000), 2_000), None);
        assert_eq!(expired(&three(), age(1_000), 2_001), Some(10));
        assert_eq!(expired(&three(), age(1_000), 9_000), Some(30));
    }

    #[test]
    fn a_younger_segment_in_front_protects_those_behind_it() {
        let mut segments = three();
        segments[0].max_timestamp = 8_500;
        assert_eq!(expired(&segments, age(1_000), 9_000), None);
    }

    #[test]
    fn a_segment_goes_by_size_only_if_enough_is_left() {
        assert_eq!(expired(&three(), size(250), 0), None);
        assert_eq!(expired(&three(), size(151), 0), None);
        assert_eq!(expired(&three(), size(150), 0), Some(10));
        assert_eq!(
            expired(&three(), size(0), 0),
            Some(20),
            "the growing one stays"
        );
    }

    #[test]
    fn records_without_a_time_never_grow_old() {
        let segments = [segment(0, 1, -1, true)];
        assert_eq!(expired(&segments, age(1), i64::MAX), None);
    }
}
