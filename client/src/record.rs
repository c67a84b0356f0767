//! A record: on its way in as [`Record`], on its way out as [`ConsumedRecord`].

use bytes::Bytes;

/// A name and a value beside a record; names may repeat.
pub type RecordHeader = (String, Option<Bytes>);

/// A record to be sent.
///
/// ```
/// use logd_client::Record;
/// let record = Record::value("42 cents").key("order-7").header("source", "shop");
/// let tombstone = Record::tombstone("order-7");
/// # let _ = (record, tombstone);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub(crate) key: Option<Bytes>,
    pub(crate) value: Option<Bytes>,
    pub(crate) headers: Vec<RecordHeader>,
    pub(crate) timestamp: Option<i64>,
    pub(crate) partition: Option<i32>,
}

impl Record {
    /// A record with a value.
    pub fn value(value: impl Into<Bytes>) -> Record {
        let value = Some(value.into());
        Record {
            value,
            ..Record::default()
        }
    }

    /// A record that deletes its key in a compacted topic.
    pub fn tombstone(key: impl Into<Bytes>) -> Record {
        Record::default().key(key)
    }

    /// Gives it a key; records of one key go to one partition and stay in order.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), Some(value.into())));
        self
    }

    /// Milliseconds since 1970; the time of sending unless said.
    #[must_use]
    pub fn timestamp(mut self, timestamp_ms: i64) -> Self {
        self.timestamp = Some(timestamp_ms);
        self
    }

    /// Chooses the partition instead of leaving it to the key.
    #[must_use]
    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// What it takes in a batch, at most: the lengths and deltas around the bytes are up to 40 bytes,
    /// those of a header up to 10.
    pub(crate) fn encoded_bytes_max(&self) -> usize {
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len) + 10);
        let key = self.key.as_ref().map_or(0, Bytes::len);
        let value = self.value.as_ref().map_or(0, Bytes::len);
        key + value + headers.sum::<usize>() + 40
    }
}

/// A record as it was read. Its bytes share the memory of the batch it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumedRecord {
    /// The topic.
    pub topic: std::sync::Arc<str>,
    /// The partition.
    pub partition: i32,
    /// Its place in the partition.
    pub offset: i64,
    /// Milliseconds since 1970, by the producer's clock or the broker's as the topic says.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value; none is a tombstone.
    pub value: Option<Bytes>,
    /// Its headers, in order.
    pub headers: Vec<RecordHeader>,
}
