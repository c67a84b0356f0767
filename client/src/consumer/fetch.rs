//! One fetch from one leader, and the records taken out of its answer.
//!
//! Promise: every batch's checksum is verified before a record of it is handed out; records before
//! the offset asked for, and markers of transactions, are left out.
//!
//! Not here: what to fetch next ([`super::Consumer`]).

use std::sync::Arc;

use bytes::Bytes;
use logd_proto::messages::fetch_request::{FetchPartition, FetchTopic};
use logd_proto::messages::{FetchRequest, FetchResponse};
use logd_proto::record_batch::{Records, RecordsError, batches, verify_checksum};
use logd_proto::{ErrorCode, message};

use super::{FetchOptions, PartitionKey};
use crate::cluster::{Cluster, Purpose, cap};
use crate::error::RequestError;
use crate::record::ConsumedRecord;

/// A batch may not grow beyond this when decompressed.
const BATCH_BYTES_MAX: usize = 256 << 20;

/// What to read of one partition.
#[derive(Clone, Debug)]
pub(super) struct Want {
    pub key: PartitionKey,
    pub offset: i64,
    /// Tells an answer apart from one to an older question.
    pub epoch: u64,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Got {
    pub key: PartitionKey,
    pub epoch: u64,
    pub offset: i64,
    pub result: Result<Taken, Trouble>,
}

/// Records, and where to go on.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub records: Vec<ConsumedRecord>,
    pub next_offset: i64,
    pub high_watermark: i64,
}

impl Taken {
    /// Keeps the first `limit` records; the others, if there are any, go on from there.
    pub(super) fn split_off(&mut self, limit: usize) -> Option<Taken> {
        if self.records.len() <= limit {
            return None;
        }
        let records = self.records.split_off(limit);
        let (next_offset, high_watermark) = (self.next_offset, self.high_watermark);
        self.next_offset = records.first().map_or(next_offset, |first| first.offset);
        Some(Taken {
            records,
            next_offset,
            high_watermark,
        })
    }
}

#[derive(Debug)]
pub(super) enum Trouble {
    Refused(ErrorCode),
    Corrupt(RecordsError),
}

/// The answer of one leader.
#[derive(Debug)]
pub(super) struct Fetched {
    pub leader: i32,
    pub wants: Vec<Want>,
    pub result: Result<Vec<Got>, RequestError>,
}

/// Asks one leader for several partitions and waits as long as it may hold the answer back.
pub(super) async fn fetch(
    cluster: Arc<Cluster>,
    leader: i32,
    wants: Vec<Want>,
    options: FetchOptions,
) -> Fetched {
    let result = ask(&cluster, leader, &wants, &options).await;
    let result = result.map(|response| unpack(response, &wants));
    Fetched {
        leader,
        wants,
        result,
    }
}

async fn ask(
    cluster: &Cluster,
    leader: i32,
    wants: &[Want],
    options: &FetchOptions,
) -> Result<FetchResponse, RequestError> {
    let mut topics: Vec<FetchTopic> = Vec::new();
    for want in wants {
        let partition = message!(FetchPartition {
            partition: want.key.1,
            current_leader_epoch: -1,
            fetch_offset: want.offset,
            last_fetched_epoch: -1,
            log_start_offset: -1,
            partition_max_bytes: options.partition_bytes_max,
        });
        // Wants come ordered by topic.
        match topics.last_mut().filter(|last| *last.topic == *want.key.0) {
            Some(last) => last.partitions.push(partition),
            None => topics.push(message!(FetchTopic {
                topic: (&*want.key.0).into(),
                partitions: vec![partition],
            })),
        }
    }
    let request = message!(FetchRequest {
        replica_id: -1,
        max_wait_ms: i32::try_from(options.max_wait.as_millis()).unwrap_or(i32::MAX),
        min_bytes: options.min_bytes,
        max_bytes: options.bytes_max,
        session_epoch: -1,
        topics: topics,
    });
    let connection = cluster.connection(leader, Purpose::Fetch).await?;
    let timeout = cluster.settings.request_timeout + options.max_wait;
    let response = connection.call(&request, cap::FETCH, timeout).await?;
    match ErrorCode::from_code(response.error_code) {
        ErrorCode::None => Ok(response),
        code => Err(connection.refused("Fetch", code)),
    }
}

fn unpack(response: FetchResponse, wants: &[Want]) -> Vec<Got> {
    let mut got = Vec::with_capacity(wants.len());
    for topic in response.responses {
        for partition in topic.partitions {
            let index = partition.partition_index;
            let wanted = |want: &&Want| want.key.1 == index && *want.key.0 == *topic.topic;
            let Some(want) = wants.iter().find(wanted) else {
                continue;
            };
            let result = match ErrorCode::from_code(partition.error_code) {
                ErrorCode::None => {
                    let bytes = partition.records.unwrap_or_default();
                    let read = read_records(bytes, want).map_err(Trouble::Corrupt);
                    let high_watermark = partition.high_watermark;
                    read.map(|records| Taken {
                        high_watermark,
                        ..records
                    })
                }
                code => Err(Trouble::Refused(code)),
            };
            let Want { key, offset, epoch } = want.clone();
            got.push(Got {
                key,
                epoch,
                offset,
                result,
            });
        }
    }
    got
}

fn read_records(bytes: Bytes, want: &Want) -> Result<Taken, RecordsError> {
    let mut out = Taken {
        next_offset: want.offset,
        ..Taken::default()
    };
    for batch in batches(bytes) {
        let (header, bytes) = batch?;
        verify_checksum(&bytes, &header)?;
        if !header.attributes.is_control() {
            take_records(
                &Records::open(&bytes, BATCH_BYTES_MAX)?,
                want,
                &mut out.records,
            )?;
        }
        out.next_offset = out.next_offset.max(header.next_offset());
    }
    Ok(out)
}

fn take_records(
    records: &Records,
    want: &Want,
    out: &mut Vec<ConsumedRecord>,
) -> Result<(), RecordsError> {
    for record in records {
        let record = record?;
        if record.offset < want.offset {
            continue;
        }
        let headers = record.headers.iter().map(|header| {
            let name = String::from_utf8_lossy(header.key).into_owned();
            (name, header.value.map(|value| records.share(value)))
        });
        out.push(ConsumedRecord {
            topic: Arc::clone(&want.key.0),
            partition: want.key.1,
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.map(|key| records.share(key)),
            value: record.value.map(|value| records.share(value)),
            headers: headers.collect(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use logd_proto::record_batch::{BatchBuilder, Compression};

    fn batch(base: i64, values: &[&str], control: bool) -> Vec<u8> {
        let mut builder = BatchBuilder::new()
            .base_offset(base)
            .compression(Compression::Lz4);
        if control {
            builder = builder.control();
        }
        for value in values {
            builder
                .push(base, None, Some(value.as_bytes()), &[("h", None)])
                .unwrap();
        }
        builder.build().unwrap().to_vec()
    }

    fn want(offset: i64) -> Want {
        Want {
            key: ("t".into(), 0),
            offset,
            epoch: 0,
        }
    }

    #[test]
    fn records_before_the_offset_and_markers_are_left_out() {
        let bytes = [
            batch(10, &["a", "b", "c"], false),
            batch(13, &["commit"], true),
        ]
        .concat();
        let read = read_records(bytes.into(), &want(11)).unwrap();
        let offsets: Vec<i64> = read.records.iter().map(|record| record.offset).collect();
        assert_eq!((offsets, read.next_offset), (vec![11, 12], 14));
        assert_eq!(read.records[0].headers, [("h".to_owned(), None)]);
    }

    #[test]
    fn what_is_handed_out_in_parts_goes_on_where_it_stopped() {
        let bytes = [
            batch(5, &["a", "b", "c"], false),
            batch(8, &["commit"], true),
        ]
        .concat();
        let mut first = read_records(bytes.into(), &want(5)).unwrap();
        let rest = first.split_off(2).unwrap();
        assert_eq!((first.records.len(), first.next_offset), (2, 7));
        assert_eq!((rest.records.len(), rest.next_offset), (1, 9));
        assert!(first.split_off(2).is_none(), "two are not too many");
    }

    #[test]
    fn a_batch_cut_short_is_for_the_next_fetch() {
        let mut bytes = [batch(0, &["a"], false), batch(1, &["b"], false)].concat();
        bytes.truncate(bytes.len() - 1);
        let read = read_records(bytes.into(), &want(0)).unwrap();
        assert_eq!((read.records.len(), read.next_offset), (1, 1));
    }

    #[test]
    fn a_changed_byte_is_an_error_not_a_record() {
        let mut bytes = batch(0, &["abc"], false);
        *bytes.last_mut().unwrap() ^= 1;
        assert!(read_records(bytes.into(), &want(0)).is_err());
    }
}
