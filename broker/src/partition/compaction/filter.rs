//! What stays of one batch. Pure: a batch, what is known of its keys, and a time.
//!
//! A record goes if a later one has its key, or if it has no key. The last tombstone of a key stays for a
//! while: when it is first met, its batch is told until when, and readers that began before have seen it by
//! then. No replica can miss it and still have what it removes: what is compacted left the Raft log before, and
//! a replica that had not got so far is given the files instead of what it has.
//! A batch of which no record stays goes as a whole, unless it tells of a producer's numbers that are still
//! asked for: then its header stays. Batches of transactions and control batches are not looked into.
//! Source: Kafka's `LogCleaner` and KIP-534.

use super::keys::KeyMap;
use bytes::Bytes;
use logd_proto::record_batch::{BatchHeader, Record, RetainError, retain};
use std::collections::HashSet;

/// Records of one batch may inflate to this much while they are looked at: what Produce lets in at most.
pub const INFLATED_BYTES_MAX: usize = 256 << 20;

/// What a batch is judged by.
#[derive(Debug)]
pub struct Judge<'a> {
    /// Where each key was seen last, of the records below `mapped_to`.
    pub keys: &'a KeyMap,
    pub mapped_to: i64,
    /// First offsets of batches by which retries of producers are told.
    pub remembered: &'a HashSet<i64>,
    /// A tombstone goes that had to stay until an earlier time.
    pub now_ms: i64,
    /// Until when a tombstone has to stay that is met for the first time.
    pub horizon_ms: i64,
}

/// What a batch becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Nothing: the batch is gone.
    pub bytes: Bytes,
    /// Of its newest record; -1 for none.
    pub max_timestamp: i64,
    pub kept: u64,
    pub removed: u64,
}

/// True if compaction looks into a batch.
pub fn is_open(header: &BatchHeader) -> bool {
    !header.attributes.is_control() && !header.attributes.is_transactional()
}

impl Judge<'_> {
    /// `max_timestamp` is what is known of the batch so far.
    ///
    /// # Errors
    /// If the batch cannot be read.
    pub fn judge(&self, batch: &Bytes, max_timestamp: i64) -> Result<Left, RetainError> {
        let untouched = |kept: i32| Left {
            bytes: batch.clone(),
            max_timestamp,
            kept: kept.max(0) as u64,
            removed: 0,
        };
        if batch.is_empty() {
            return Ok(untouched(0));
        }
        let header =
            BatchHeader::parse(batch).map_err(logd_proto::record_batch::RecordsError::from)?;
        if !is_open(&header) || header.base_offset >= self.mapped_to {
            return Ok(untouched(header.record_count));
        }
        // The time is where the batch's first timestamp was.
        let expired = header.attributes.has_delete_horizon() && header.base_timestamp < self.now_ms;
        let mut keep = |record: &Record<'_>| {
            let buried = expired && record.value.is_none() && record.offset < self.mapped_to;
            !buried && self.keeps(record)
        };
        let left = retain(batch, INFLATED_BYTES_MAX, self.horizon_ms, &mut keep)?;
        let stays = left.kept > 0 || self.remembered.contains(&header.base_offset);
        Ok(Left {
            bytes: if stays { left.batch } else { Bytes::new() },
            max_timestamp: left.max_timestamp,
            kept: left.kept.max(0) as u64,
            removed: left.removed.max(0) as u64,
        })
    }

    fn keeps(&self, record: &Record<'_>) -> bool {
        let is_last = |key| self.keys.get(key).is_none_or(|last| last <= record.offset);
        record.offset >= self.mapped_to || record.key.is_some_and(is_last)
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::KeyHasher;
    use super::*;
    use logd_proto::record_batch::{BatchBuilder, Records};

    const HORIZON: i64 = 1_050;

    fn keys(of: &[(&str, i64)]) -> KeyMap {
        let mut keys = KeyMap::new(1 << 12, 64, KeyHasher([1, 2]));
        for (key, offset) in of {
            keys.put(key.as_bytes(), *offset).unwrap();
        }
        keys
    }

    fn batch(builder: BatchBuilder, records: &[(Option<&str>, Option<&str>)]) -> Bytes {
        let mut builder = builder.base_offset(10);
        for (n, (key, value)) in records.iter().enumerate() {
            let (key, value) = (key.map(str::as_bytes), value.map(str::as_bytes));
            builder.push(100 + n as i64, key, value, &[]).unwrap();
        }
        builder.build().unwrap()
    }

    fn offsets(batch: &Bytes) -> Vec<i64> {
        let records = Records::open(batch, 1 << 20).unwrap();
        records.iter().map(|r| r.unwrap().offset).collect()
    }

    struct Case {
        keys: KeyMap,
        mapped_to: i64,
        remembered: HashSet<i64>,
        now_ms: i64,
    }

    fn case(of: &[(&str, i64)]) -> Case {
        Case {
            keys: keys(of),
            mapped_to: 100,
            remembered: HashSet::new(),
            now_ms: 0,
        }
    }

    impl Case {
        fn left(&self, batch: &Bytes) -> Left {
            let judge = Judge {
                keys: &self.keys,
                mapped_to: self.mapped_to,
                remembered: &self.remembered,
                now_ms: self.now_ms,
                horizon_ms: HORIZON,
            };
            judge.judge(batch, 107).unwrap()
        }
    }

    #[test]
    fn of_each_key_the_last_record_stays() {
        let given = [
            (Some("a"), Some("1")),
            (Some("b"), Some("2")),
            (Some("c"), Some("3")),
            (None, Some("4")),
        ];
        let left = case(&[("a", 50), ("b", 11)]).left(&batch(BatchBuilder::new(), &given));
        assert_eq!(
            offsets(&left.bytes),
            [11, 12],
            "b is the last one, c is not in the map"
        );
        assert_eq!((left.kept, left.removed, left.max_timestamp), (2, 2, 102));
    }

    #[test]
    fn what_was_not_mapped_stays_as_it_is() {
        let given = batch(
            BatchBuilder::new(),
            &[(Some("a"), Some("1")), (Some("a"), None)],
        );
        let mut case = case(&[("a", 50)]);
        case.mapped_to = 11;
        assert_eq!(offsets(&case.left(&given).bytes), [11]);
        case.mapped_to = 10;
        assert_eq!(case.left(&given).bytes, given);
    }

    #[test]
    fn trap_29_the_last_tombstone_of_a_key_stays_until_the_time_that_was_set_for_it() {
        let given = batch(
            BatchBuilder::new(),
            &[(Some("a"), None), (Some("b"), Some("2"))],
        );
        let mut case = case(&[("a", 10)]);
        let first = case.left(&given);
        assert_eq!(offsets(&first.bytes), [10, 11]);
        let header = BatchHeader::parse(&first.bytes).unwrap();
        assert!(header.attributes.has_delete_horizon());
        assert_eq!(header.base_timestamp, HORIZON);
        case.now_ms = HORIZON;
        assert_eq!(case.left(&first.bytes).bytes, first.bytes, "once for all");
        case.now_ms = HORIZON + 1;
        let later = case.left(&first.bytes);
        assert_eq!(offsets(&later.bytes), [11], "its time is over");
        case.mapped_to = 10;
        let unmapped = case.left(&first.bytes);
        assert_eq!(
            unmapped.bytes, first.bytes,
            "a later record of its key may come"
        );
    }

    #[test]
    fn a_later_tombstone_removes_what_came_before_it() {
        let given = [(Some("a"), Some("1")), (Some("a"), None)];
        let left = case(&[("a", 11)]).left(&batch(BatchBuilder::new(), &given));
        assert_eq!(offsets(&left.bytes), [11]);
    }

    #[test]
    fn a_batch_of_nothing_goes_unless_its_producer_may_ask_for_it() {
        let numbered = BatchBuilder::new().producer(9, 0, 40);
        let given = batch(numbered, &[(Some("a"), Some("1")), (Some("a"), Some("2"))]);
        let mut case = case(&[("a", 50)]);
        assert_eq!(case.left(&given).bytes, Bytes::new());
        case.remembered.insert(10);
        let kept = case.left(&given);
        let header = BatchHeader::parse(&kept.bytes).unwrap();
        assert_eq!((header.record_count, header.last_sequence()), (0, 41));
        assert_eq!((kept.kept, kept.removed, kept.max_timestamp), (0, 2, -1));
        assert_eq!(case.left(&kept.bytes).bytes, kept.bytes, "and again");
        case.remembered.clear();
        assert_eq!(case.left(&kept.bytes).bytes, Bytes::new());
        assert_eq!(case.left(&Bytes::new()).bytes, Bytes::new());
    }

    #[test]
    fn transactions_and_markers_are_not_looked_into() {
        let case = case(&[("a", 50)]);
        for builder in [
            BatchBuilder::new().producer(9, 0, 0).transactional(),
            BatchBuilder::new().control(),
        ] {
            let given = batch(builder, &[(Some("a"), Some("1"))]);
            let left = case.left(&given);
            assert_eq!((left.bytes, left.max_timestamp), (given, 107));
        }
    }
}
