//! What a member of a group says to its coordinator: join, sync, beat, commit, leave.
//!
//! Promise: one request each, its codes kept; joins and heartbeats use connections of their own, so
//! that neither waits behind the other.
//!
//! Not here: when to say what ([`super::group`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use logd_proto::messages::join_group_request::JoinGroupRequestProtocol;
use logd_proto::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use logd_proto::messages::offset_fetch_request::OffsetFetchRequestTopic;
use logd_proto::messages::sync_group_request::SyncGroupRequestAssignment;
use logd_proto::messages::{
    HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, OffsetCommitRequest,
    OffsetFetchRequest, RequestResponsePair, SyncGroupRequest,
};
use logd_proto::{ErrorCode, message};

use super::PartitionKey;
use crate::assignment::RANGE;
use crate::cluster::{Cluster, Purpose, cap};
use crate::error::ConsumeError;

const PROTOCOL_TYPE: &str = "consumer";

/// A place in a generation of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub id: String,
    pub generation: i32,
}

/// The group's coordinator, as far as this member knows it.
#[derive(Clone, Debug)]
pub(super) struct Coordinator {
    pub cluster: Arc<Cluster>,
    pub group: Arc<str>,
    pub session_timeout: Duration,
    pub rebalance_timeout: Duration,
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

impl Coordinator {
    async fn ask<R: RequestResponsePair>(
        &self,
        request: &R,
        cap: i16,
        purpose: Purpose,
        timeout: Duration,
    ) -> Result<R::Response, ConsumeError> {
        let addr = self.cluster.coordinator(&self.group).await?;
        let connection = self.cluster.connection_to(&addr, purpose).await?;
        Ok(connection.call(request, cap, timeout).await?)
    }

    fn check(&self, code: i16) -> Result<(), ConsumeError> {
        match ErrorCode::from_code(code) {
            ErrorCode::None => Ok(()),
            code => {
                let group = Arc::clone(&self.group);
                Err(ConsumeError::Group { group, code })
            }
        }
    }

    fn usual(&self) -> Duration {
        self.cluster.settings.request_timeout
    }

    /// Joins; answers when the group is complete. A refusal may carry the id to join with.
    pub async fn join(
        &self,
        id: &str,
        subscription: Bytes,
    ) -> Result<JoinGroupResponse, ConsumeError> {
        let request = message!(JoinGroupRequest {
            group_id: (&*self.group).into(),
            session_timeout_ms: millis(self.session_timeout),
            rebalance_timeout_ms: millis(self.rebalance_timeout),
            member_id: id.into(),
            protocol_type: PROTOCOL_TYPE.into(),
            protocols: vec![message!(JoinGroupRequestProtocol {
                name: RANGE.into(),
                metadata: subscription,
            })],
        });
        // The coordinator holds the answer back until everybody has joined, or the time for it is over.
        let timeout = self.rebalance_timeout + self.usual();
        self.ask(&request, cap::NEWEST, Purpose::Group, timeout)
            .await
    }

    /// Says (as leader) or learns who got what.
    pub async fn sync(
        &self,
        member: &Member,
        assignments: BTreeMap<String, Bytes>,
    ) -> Result<Bytes, ConsumeError> {
        let assignments = assignments.into_iter().map(|(id, assignment)| {
            message!(SyncGroupRequestAssignment {
                member_id: id.into(),
                assignment: assignment,
            })
        });
        let request = message!(SyncGroupRequest {
            group_id: (&*self.group).into(),
            generation_id: member.generation,
            member_id: member.id.as_str().into(),
            protocol_type: Some(PROTOCOL_TYPE.into()),
            protocol_name: Some(RANGE.into()),
            assignments: assignments.collect(),
        });
        let timeout = self.rebalance_timeout + self.usual();
        let response = self
            .ask(&request, cap::NEWEST, Purpose::Group, timeout)
            .await?;
        self.check(response.error_code)?;
        Ok(response.assignment)
    }

    /// Says that the member is alive.
    pub async fn beat(&self, member: &Member) -> Result<(), ConsumeError> {
        let request = message!(HeartbeatRequest {
            group_id: (&*self.group).into(),
            generation_id: member.generation,
            member_id: member.id.as_str().into(),
        });
        let timeout = self.usual().min(self.session_timeout);
        let response = self
            .ask(&request, cap::NEWEST, Purpose::Heartbeat, timeout)
            .await?;
        self.check(response.error_code)
    }

    /// Leaves, so that the others need not wait for the session to end.
    pub async fn leave(&self, id: &str) -> Result<(), ConsumeError> {
        let request = message!(LeaveGroupRequest {
            group_id: (&*self.group).into(),
            member_id: id.into(),
        });
        let ask = self.ask(&request, cap::LEAVE_GROUP, Purpose::Heartbeat, self.usual());
        self.check(ask.await?.error_code)
    }

    /// Commits where the group has got to. `offsets` come ordered by topic.
    pub async fn commit(
        &self,
        member: &Member,
        offsets: &BTreeMap<PartitionKey, i64>,
    ) -> Result<(), ConsumeError> {
        let mut topics: Vec<OffsetCommitRequestTopic> = Vec::new();
        for ((topic, partition), offset) in offsets {
            let partition = message!(OffsetCommitRequestPartition {
                partition_index: *partition,
                committed_offset: *offset,
                committed_leader_epoch: -1,
                committed_metadata: Some("".into()),
            });
            match topics.last_mut().filter(|last| *last.name == **topic) {
                Some(last) => last.partitions.push(partition),
                None => topics.push(message!(OffsetCommitRequestTopic {
                    name: (&**topic).into(),
                    partitions: vec![partition],
                })),
            }
        }
        let request = message!(OffsetCommitRequest {
            group_id: (&*self.group).into(),
            generation_id_or_member_epoch: member.generation,
            member_id: member.id.as_str().into(),
            retention_time_ms: -1,
            topics: topics,
        });
        let ask = self.ask(
            &request,
            cap::OFFSET_COMMIT,
            Purpose::Heartbeat,
            self.usual(),
        );
        for topic in ask.await?.topics {
            for partition in topic.partitions {
                self.check(partition.error_code)?;
            }
        }
        Ok(())
    }

    /// Where the group has got to in some partitions; those without a commit are left out.
    pub async fn committed(
        &self,
        partitions: &[(String, i32)],
    ) -> Result<BTreeMap<(String, i32), i64>, ConsumeError> {
        let mut topics: Vec<OffsetFetchRequestTopic> = Vec::new();
        for (topic, partition) in partitions {
            match topics
                .iter_mut()
                .find(|known| *known.name == *topic.as_str())
            {
                Some(known) => known.partition_indexes.push(*partition),
                None => topics.push(message!(OffsetFetchRequestTopic {
                    name: topic.as_str().into(),
                    partition_indexes: vec![*partition],
                })),
            }
        }
        let request = message!(OffsetFetchRequest {
            group_id: (&*self.group).into(),
            topics: Some(topics),
        });
        let ask = self.ask(
            &request,
            cap::OFFSET_FETCH,
            Purpose::Heartbeat,
            self.usual(),
        );
        let response = ask.await?;
        self.check(response.error_code)?;
        let mut committed = BTreeMap::new();
        for topic in response.topics {
            for partition in topic.partitions {
                self.check(partition.error_code)?;
                if partition.committed_offset >= 0 {
                    let key = (topic.name.to_string(), partition.partition_index);
                    committed.insert(key, partition.committed_offset);
                }
            }
        }
        Ok(committed)
    }
}
