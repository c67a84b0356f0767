//! What is written to the compacted partition: of every producer's every record, its key and its value.
//!
//! Invariant: both follow from who wrote and the record's number alone, so whoever meets a record anywhere
//! knows what it must say. A few keys are written all the time, others once in a while; one in four records is
//! a tombstone.
//! Not here: where a record stands.

use crate::dice::Dice;
use bytes::Bytes;
use logd_proto::record_batch::{Records, batches};

const HOT_KEYS: u64 = 6;
const COLD_KEYS: u64 = 90;

/// No batch here is larger.
const BATCH_BYTES_MAX: usize = 64 << 10;

/// `None`: a tombstone.
pub fn written(producer: i64, sequence: i64) -> (String, Option<Vec<u8>>) {
    let mut dice = Dice::new((producer as u64) << 32 | sequence as u64);
    let key = match dice.chance(600) {
        true => format!("hot-{}", dice.range(0..HOT_KEYS)),
        false => format!("cold-{}", dice.range(0..COLD_KEYS)),
    };
    let value = (!dice.chance(250)).then(|| {
        let mut value = format!("{producer}/{sequence}").into_bytes();
        value.resize(dice.range(16..1_500) as usize, b'.');
        value
    });
    (key, value)
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub offset: i64,
    pub producer: i64,
    /// Its number, by its batch's first and its place in it.
    pub sequence: i64,
    pub key: String,
    pub value: Option<Bytes>,
}

impl Record {
    pub fn is_tombstone(&self) -> bool {
        self.value.is_none()
    }

    /// Whether it says what its writer wrote.
    pub fn is_whole(&self) -> bool {
        let (key, value) = written(self.producer, self.sequence);
        (self.key == key) && self.value.as_deref() == value.as_deref()
    }
}

/// The records of whole batches.
///
/// # Errors
/// If they cannot be read.
pub fn records(bytes: &Bytes) -> Result<Vec<Record>, String> {
    let mut found = Vec::new();
    for batch in batches(bytes.clone()) {
        let (header, batch) = batch.map_err(|e| e.to_string())?;
        let opened = Records::open(&batch, BATCH_BYTES_MAX).map_err(|e| e.to_string())?;
        for record in &opened {
            let record = record.map_err(|e| e.to_string())?;
            let key = record.key.ok_or("a record without a key")?;
            found.push(Record {
                offset: record.offset,
                producer: header.producer_id,
                sequence: i64::from(header.base_sequence) + i64::from(record.offset_delta),
                key: String::from_utf8_lossy(key).into_owned(),
                value: record.value.map(|v| opened.share(v)),
            });
        }
    }
    Ok(found)
}
