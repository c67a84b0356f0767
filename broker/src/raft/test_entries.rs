//! Entries for tests that need a log with something in it.

use bytes::Bytes;
use logd_storage::{Entry, EntryId, Kind};
use std::ops::Range;

/// One record each, at the offset that is the entry's index.
pub(crate) fn records(term: u64, indexes: Range<u64>) -> Vec<Entry> {
    let record = |index| Entry {
        id: EntryId { term, index },
        kind: Kind::Data,
        base_offset: index as i64,
        records: 1,
        max_timestamp: -1,
        head: Bytes::new(),
        body: Bytes::from_static(b"record"),
    };
    indexes.map(record).collect()
}
