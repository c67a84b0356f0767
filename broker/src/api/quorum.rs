//! DescribeQuorum: the metadata group, as its leader sees it, in KRaft's terms.

use super::{Context, Services, errors};
use crate::cluster::{ClusterState, MemberState, QuorumState};
use logd_proto::messages::describe_quorum_request::TopicData as Wanted;
use logd_proto::messages::describe_quorum_response::{
    Listener, Node, PartitionData, ReplicaState, TopicData,
};
use logd_proto::messages::{DescribeQuorumRequest, DescribeQuorumResponse};
use logd_proto::{ErrorCode, StrBytes, Uuid, message};
use std::sync::Arc;

/// KRaft's name for its metadata log, whose partition is 0.
const METADATA: &str = "__cluster_metadata";

/// Not known: followers are told, they do not fetch.
const UNKNOWN_TIME: i64 = -1;

/// From here on it says why, which disks, and where the members are (KIP-853).
const SAYS_MORE: i16 = 2;

pub async fn describe(
    services: Arc<Services>,
    context: Context,
    request: DescribeQuorumRequest,
) -> DescribeQuorumResponse {
    let more = context.version >= SAYS_MORE;
    let quorum = services.cluster.quorum().await;
    let view = services.cluster.view();
    let topics = request.topics.iter().map(|t| topic(t, &quorum, more));
    let members = quorum.iter().flat_map(|q| &q.members).filter(|_| more);
    let nodes = members.filter_map(|m| node(&view, m.node?));
    message!(DescribeQuorumResponse {
        error_message: None,
        topics: topics.collect(),
        nodes: nodes.collect(),
    })
}

fn topic(wanted: &Wanted, quorum: &Result<QuorumState, String>, more: bool) -> TopicData {
    let partitions = wanted.partitions.iter().map(|p| {
        let index = p.partition_index;
        let failed = |index, code, why: String| failed(index, code, Some(why).filter(|_| more));
        match quorum {
            _ if wanted.topic_name.as_str() != METADATA || index != 0 => {
                let why = format!("only {METADATA}-0 can be described");
                failed(index, ErrorCode::UnknownTopicOrPartition, why)
            }
            Ok(quorum) => partition(quorum, more),
            Err(why) => failed(index, ErrorCode::NotLeaderOrFollower, why.clone()),
        }
    });
    message!(TopicData {
        topic_name: wanted.topic_name.clone(),
        partitions: partitions.collect(),
    })
}

fn failed(partition_index: i32, code: ErrorCode, why: Option<String>) -> PartitionData {
    message!(PartitionData {
        partition_index,
        error_code: errors::told(code),
        error_message: why.map(StrBytes::from),
        leader_id: -1,
        leader_epoch: -1,
        high_watermark: -1,
    })
}

fn partition(quorum: &QuorumState, more: bool) -> PartitionData {
    let of = |votes: bool| {
        let members = quorum.members.iter().filter(|m| m.votes == votes);
        members.map(|m| replica(m, more)).collect::<Vec<_>>()
    };
    message!(PartitionData {
        partition_index: 0,
        error_message: None,
        leader_id: quorum.leader,
        leader_epoch: i32::try_from(quorum.term).unwrap_or(i32::MAX),
        // Offsets are what comes next; the group counts entries from 0.
        high_watermark: quorum.committed as i64 + 1,
        current_voters: of(true),
        observers: of(false),
    })
}

fn replica(member: &MemberState, more: bool) -> ReplicaState {
    let mut directory = [0; 16];
    if let Some(half) = directory.last_chunk_mut().filter(|_| more) {
        *half = member.disk.to_be_bytes();
    }
    message!(ReplicaState {
        replica_id: member.node.unwrap_or(-1),
        replica_directory_id: Uuid::from_bytes(directory),
        log_end_offset: member.last_index as i64 + 1,
        last_fetch_timestamp: UNKNOWN_TIME,
        last_caught_up_timestamp: UNKNOWN_TIME,
    })
}

fn node(view: &ClusterState, id: i32) -> Option<Node> {
    let broker = view.brokers.get(&id)?;
    let listeners = broker.listeners.iter().map(|(name, (host, port))| {
        message!(Listener {
            // Kafka's tools take no other names for the endpoints of a quorum's members.
            name: name.to_ascii_uppercase().into(),
            host: StrBytes::from(host.as_str()),
            port: *port,
        })
    });
    Some(message!(Node {
        node_id: id,
        listeners: listeners.collect(),
    }))
}
