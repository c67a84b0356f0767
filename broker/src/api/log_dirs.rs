//! DescribeLogDirs: this broker's one disk, and how much of it each of its partitions takes.

use super::{Context, Services, errors};
use crate::partition::Partition;
use logd_proto::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use logd_proto::messages::{DescribeLogDirsRequest, DescribeLogDirsResponse};
use logd_proto::{ErrorCode, message};
use std::collections::{BTreeMap, BTreeSet};

/// The disk's own size has a place from here on.
const SAYS_SPACE: i16 = 4;

/// Not known, or not asked for.
const UNKNOWN: i64 = -1;

pub fn describe(
    services: &Services,
    context: &Context,
    request: DescribeLogDirsRequest,
) -> DescribeLogDirsResponse {
    let space = services.disk.space();
    // A disk that failed takes the process with it; a client may still come between the two.
    let code = match space.poisoned {
        None => ErrorCode::None,
        Some(_) => ErrorCode::KafkaStorageError,
    };
    let says_space = context.version >= SAYS_SPACE;
    let bytes = |bytes: u64| match says_space {
        true => i64::try_from(bytes).unwrap_or(i64::MAX),
        false => UNKNOWN,
    };
    let dir = message!(DescribeLogDirsResult {
        error_code: errors::told(code),
        log_dir: services.identity.log_dir.as_str().into(),
        topics: topics(services, request),
        total_bytes: bytes(space.total_bytes),
        usable_bytes: bytes(space.free_bytes),
    });
    message!(DescribeLogDirsResponse { results: vec![dir] })
}

/// What is here of what is asked for; the rest is left out.
fn topics(services: &Services, request: DescribeLogDirsRequest) -> Vec<DescribeLogDirsTopic> {
    let wanted = request.topics.map(|topics| {
        let each = topics.into_iter().flat_map(|t| {
            let topic = t.topic.to_string();
            t.partitions
                .into_iter()
                .map(move |index| (topic.clone(), index))
        });
        each.collect::<BTreeSet<(String, i32)>>()
    });
    let is_wanted = |p: &Partition| {
        let wanted = wanted.as_ref();
        wanted.is_none_or(|w| w.contains(&(p.topic().to_owned(), p.index())))
    };
    let mut topics: BTreeMap<String, Vec<DescribeLogDirsPartition>> = BTreeMap::new();
    for partition in services.partitions.all() {
        if is_wanted(&partition) {
            let size = i64::try_from(partition.size_bytes()).unwrap_or(i64::MAX);
            let row = message!(DescribeLogDirsPartition {
                partition_index: partition.index(),
                partition_size: size,
            });
            let topic = partition.topic().to_owned();
            topics.entry(topic).or_default().push(row);
        }
    }
    let rows = topics.into_iter().map(|(name, partitions)| {
        message!(DescribeLogDirsTopic {
            name: name.into(),
            partitions
        })
    });
    rows.collect()
}
