//! Which segments of a log are to be compacted, and whether it is time. Pure: segments, rules and a time.
//!
//! Segments that were compacted carry a mark, so no other file has to tell how far it came: the log is clean
//! up to the first segment without it. What lies behind is dirty up to where compaction may go at all.
//! Source: Kafka's `LogCleanerManager` for when a log is due.
//!
//! The segment that holds the newest records is never compacted, nor what follows it.

use logd_storage::SegmentInfo;
use std::ops::Range;

/// A topic's rules.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// It is worth it if a larger part of a log than this is dirty: 1 is never.
    pub dirty_ratio_min: f64,
    /// Records younger than this stay as they are.
    pub lag_min_ms: i64,
    /// Records older than this are compacted, however little is dirty.
    pub lag_max_ms: i64,
}

/// What there is to compact.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dirt {
    /// Where the first dirty segment begins.
    pub from: i64,
    /// Where the last one ends.
    pub to: i64,
    pub bytes: u64,
    /// Of all that may be compacted.
    pub ratio: f64,
    /// It is worth it, or cannot wait.
    pub due: bool,
}

/// How far compaction may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Records below it are committed.
    pub offset: i64,
    /// Entries up to it are nobody's to be sent any more.
    pub index: u64,
}

/// What of a log's segments may be compacted now. `None` if nothing is dirty.
pub fn dirt(segments: &[SegmentInfo], limits: &Limits, rules: &Rules, now_ms: i64) -> Option<Dirt> {
    let newest = segments
        .iter()
        .rposition(|s| s.next_offset > s.base_offset)?;
    let segments = segments.get(..newest).unwrap_or_default();
    let clean = segments.iter().take_while(|s| s.clean).count();
    let old_enough = |s: &&SegmentInfo| {
        let done = s.sealed && s.next_offset <= limits.offset && s.last.index <= limits.index;
        done && may_change(s, rules, now_ms)
    };
    let dirty = segments.get(clean..).unwrap_or_default();
    let dirty: Vec<_> = dirty.iter().take_while(old_enough).collect();
    let (first, last) = (dirty.first()?, dirty.last()?);
    let bytes: u64 = dirty.iter().map(|s| s.bytes).sum();
    let clean_bytes: u64 = segments.iter().take(clean).map(|s| s.bytes).sum();
    let ratio = bytes as f64 / (bytes + clean_bytes).max(1) as f64;
    let cannot_wait = dirty.iter().any(|s| {
        s.first_timestamp >= 0 && now_ms.saturating_sub(s.first_timestamp) > rules.lag_max_ms
    });
    Some(Dirt {
        from: first.base_offset,
        to: last.next_offset,
        bytes,
        ratio,
        due: cannot_wait || (bytes > 0 && ratio > rules.dirty_ratio_min),
    })
}

/// A segment without any timestamp is of unknown age: where age counts, it stays.
fn may_change(segment: &SegmentInfo, rules: &Rules, now_ms: i64) -> bool {
    rules.lag_min_ms == 0
        || (segment.max_timestamp >= 0
            && now_ms.saturating_sub(segment.max_timestamp) >= rules.lag_min_ms)
}

/// Neighbours that fit into one segment together, so that small ones do not pile up.
pub fn groups(segments: &[SegmentInfo], segment_bytes_max: u64) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0u64;
    for (at, segment) in segments.iter().enumerate() {
        let fits = bytes.saturating_add(segment.bytes) <= segment_bytes_max;
        match groups.last_mut().filter(|_| fits) {
            Some(group) => {
                group.end = at + 1;
                bytes += segment.bytes;
            }
            None => {
                groups.push(at..at + 1);
                bytes = segment.bytes;
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use logd_storage::EntryId;

    const RULES: Rules = Rules {
        dirty_ratio_min: 0.5,
        lag_min_ms: 0,
        lag_max_ms: i64::MAX,
    };

    fn segment(from: i64, bytes: u64, time: i64, clean: bool) -> SegmentInfo {
        SegmentInfo {
            base_offset: from,
            last: EntryId {
                term: 1,
                index: from as u64 + 9,
            },
            next_offset: from + 10,
            bytes,
            max_timestamp: time + 5,
            first_timestamp: time,
            sealed: true,
            clean,
        }
    }

    fn limits(offset: i64) -> Limits {
        Limits {
            offset,
            index: u64::MAX,
        }
    }

    /// And a fourth, which grows.
    fn three() -> [SegmentInfo; 4] {
        [
            segment(0, 100, 1_000, true),
            segment(10, 60, 2_000, false),
            segment(20, 50, 3_000, false),
            segment(30, 10, 4_000, false),
        ]
    }

    #[test]
    fn what_is_dirty_begins_behind_the_last_clean_segment() {
        let found = dirt(&three(), &limits(30), &RULES, 9_000).unwrap();
        assert_eq!((found.from, found.to, found.bytes), (10, 30, 110));
        assert!((found.ratio - 110.0 / 210.0).abs() < 1e-9);
        assert!(found.due);
        let mut rules = RULES;
        rules.dirty_ratio_min = 1.0;
        let new = [&three()[1..3], &three()[3..]].concat();
        let never = dirt(&new, &limits(30), &rules, 9_000).unwrap();
        assert!(!never.due, "all of it is dirty, which is not more than all");
    }

    #[test]
    fn a_log_that_is_mostly_clean_can_wait_but_not_for_ever() {
        let mut rules = RULES;
        rules.dirty_ratio_min = 0.6;
        assert!(!dirt(&three(), &limits(30), &rules, 9_000).unwrap().due);
        rules.lag_max_ms = 6_999;
        assert!(
            dirt(&three(), &limits(30), &rules, 9_000).unwrap().due,
            "the first dirty record is 7 s old"
        );
        rules.lag_max_ms = 7_000;
        assert!(!dirt(&three(), &limits(30), &rules, 9_000).unwrap().due);
    }

    #[test]
    fn what_is_not_committed_or_too_young_is_left_alone() {
        assert_eq!(dirt(&three(), &limits(29), &RULES, 9_000).unwrap().to, 20);
        assert_eq!(dirt(&three(), &limits(19), &RULES, 9_000), None);
        let mut rules = RULES;
        rules.lag_min_ms = 6_000;
        assert_eq!(dirt(&three(), &limits(30), &rules, 9_000).unwrap().to, 20);
        let mut timeless = three();
        timeless[1].max_timestamp = -1;
        assert_eq!(
            dirt(&timeless, &limits(30), &rules, i64::MAX),
            None,
            "who knows"
        );
        assert!(dirt(&timeless, &limits(30), &RULES, 9_000).is_some());
    }

    #[test]
    fn what_somebody_may_still_be_sent_waits() {
        let mut limits = limits(30);
        limits.index = 28;
        assert_eq!(dirt(&three(), &limits, &RULES, 9_000).unwrap().to, 20);
        limits.index = 18;
        assert_eq!(dirt(&three(), &limits, &RULES, 9_000), None);
    }

    #[test]
    fn a_clean_log_has_no_dirt() {
        assert_eq!(dirt(&three()[..2], &limits(30), &RULES, 9_000), None);
        assert_eq!(dirt(&[], &limits(30), &RULES, 9_000), None);
    }

    #[test]
    fn small_neighbours_become_one_segment_and_large_ones_stay_alone() {
        let mut segments = three()[..3].to_vec();
        segments.push(segment(30, 500, 4_000, false));
        segments.push(segment(40, 1, 4_000, false));
        assert_eq!(groups(&segments, 160), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(groups(&segments, 210), [0..3, 3..4, 4..5]);
        assert_eq!(groups(&segments, 0), [0..1, 1..2, 2..3, 3..4, 4..5]);
        assert!(groups(&[], 9).is_empty());
    }
}
