//! Shared by the tests. [`Inventor`] is a source of random messages: a buffer that invents plausible bytes as a decoder asks for them.
//!
//! The other library's decoder knows every schema. Reading from a buffer that answers each "next
//! integer", "next string" with something small and legal makes it build random values of every
//! message, without a generator written for each.

// Each test file uses its part.
#![allow(dead_code, unused_macros, unused_imports)]

pub mod by_hand;

use std::ops::Range;

use bytes::{Buf, Bytes, TryGetError};
use kafka_protocol::protocol::buf::ByteBuf;

/// Reads allowed before the source runs dry, so that no nest of arrays grows forever.
const READS_MAX: usize = 2_000;

pub struct Inventor {
    state: u64,
    reads_left: usize,
}

impl Inventor {
    pub fn new(seed: u64) -> Inventor {
        Inventor {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            reads_left: READS_MAX,
        }
    }

    fn next(&mut self) -> u64 {
        // xorshift64*: small, good enough, the same everywhere.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn read(&mut self) -> Result<u64, TryGetError> {
        let dry = TryGetError {
            requested: 1,
            available: 0,
        };
        self.reads_left = self.reads_left.checked_sub(1).ok_or(dry)?;
        Ok(self.next() >> 16)
    }

    /// A number that may be a length, a count, or a value of its own.
    fn small(&mut self) -> Result<i8, TryGetError> {
        const SMALL: [i8; 16] = [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 7, -1];
        self.read().map(|random| SMALL[(random % 16) as usize])
    }
}

impl Buf for Inventor {
    fn remaining(&self) -> usize {
        self.reads_left * 16
    }

    fn chunk(&self) -> &[u8] {
        panic!("only whole values are invented")
    }

    fn advance(&mut self, _count: usize) {
        panic!("only whole values are invented")
    }

    fn try_copy_to_slice(&mut self, into: &mut [u8]) -> Result<(), TryGetError> {
        for byte in into {
            *byte = self.read()? as u8;
        }
        Ok(())
    }

    fn try_get_u8(&mut self) -> Result<u8, TryGetError> {
        Ok(self.small()?.unsigned_abs())
    }

    fn try_get_i8(&mut self) -> Result<i8, TryGetError> {
        self.small()
    }

    fn try_get_u16(&mut self) -> Result<u16, TryGetError> {
        Ok(self.read()? as u16)
    }

    fn try_get_i16(&mut self) -> Result<i16, TryGetError> {
        Ok(i16::from(self.small()?))
    }

    fn try_get_i32(&mut self) -> Result<i32, TryGetError> {
        Ok(i32::from(self.small()?))
    }

    fn try_get_u32(&mut self) -> Result<u32, TryGetError> {
        Ok(self.read()? as u32)
    }

    fn try_get_i64(&mut self) -> Result<i64, TryGetError> {
        Ok(self.read()? as i64)
    }

    fn try_get_f64(&mut self) -> Result<f64, TryGetError> {
        Ok(self.read()? as f64)
    }
}

impl ByteBuf for Inventor {
    fn peek_bytes(&mut self, _range: Range<usize>) -> Bytes {
        panic!("nobody looks ahead")
    }

    fn get_bytes(&mut self, size: usize) -> Bytes {
        (0..size).map(|_| b'a' + (self.next() % 26) as u8).collect()
    }
}

/// Calls `$visit!(api, their request, their response, our request, conversion of our response)`.
macro_rules! every_api {
    ($visit:ident) => {
        $visit!(Produce, ProduceRequest, ProduceResponse, by_hand_produce);
        $visit!(Fetch, FetchRequest, FetchResponse, by_hand_fetch);
        $visit!(
            ListOffsets,
            ListOffsetsRequest,
            ListOffsetsResponse,
            generated
        );
        $visit!(Metadata, MetadataRequest, MetadataResponse, generated);
        $visit!(
            OffsetCommit,
            OffsetCommitRequest,
            OffsetCommitResponse,
            generated
        );
        $visit!(
            OffsetFetch,
            OffsetFetchRequest,
            OffsetFetchResponse,
            generated
        );
        $visit!(
            FindCoordinator,
            FindCoordinatorRequest,
            FindCoordinatorResponse,
            generated
        );
        $visit!(JoinGroup, JoinGroupRequest, JoinGroupResponse, generated);
        $visit!(Heartbeat, HeartbeatRequest, HeartbeatResponse, generated);
        $visit!(LeaveGroup, LeaveGroupRequest, LeaveGroupResponse, generated);
        $visit!(SyncGroup, SyncGroupRequest, SyncGroupResponse, generated);
        $visit!(
            DescribeGroups,
            DescribeGroupsRequest,
            DescribeGroupsResponse,
            generated
        );
        $visit!(ListGroups, ListGroupsRequest, ListGroupsResponse, generated);
        $visit!(
            DescribeConfigs,
            DescribeConfigsRequest,
            DescribeConfigsResponse,
            generated
        );
        $visit!(
            AlterConfigs,
            AlterConfigsRequest,
            AlterConfigsResponse,
            generated
        );
        $visit!(
            IncrementalAlterConfigs,
            IncrementalAlterConfigsRequest,
            IncrementalAlterConfigsResponse,
            generated
        );
        $visit!(
            CreatePartitions,
            CreatePartitionsRequest,
            CreatePartitionsResponse,
            generated
        );
        $visit!(
            DeleteRecords,
            DeleteRecordsRequest,
            DeleteRecordsResponse,
            generated
        );
        $visit!(
            DeleteGroups,
            DeleteGroupsRequest,
            DeleteGroupsResponse,
            generated
        );
        $visit!(
            OffsetDelete,
            OffsetDeleteRequest,
            OffsetDeleteResponse,
            generated
        );
        $visit!(
            DescribeAcls,
            DescribeAclsRequest,
            DescribeAclsResponse,
            generated
        );
        $visit!(CreateAcls, CreateAclsRequest, CreateAclsResponse, generated);
        $visit!(DeleteAcls, DeleteAclsRequest, DeleteAclsResponse, generated);
        $visit!(
            DescribeClientQuotas,
            DescribeClientQuotasRequest,
            DescribeClientQuotasResponse,
            generated
        );
        $visit!(
            DescribeUserScramCredentials,
            DescribeUserScramCredentialsRequest,
            DescribeUserScramCredentialsResponse,
            generated
        );
        $visit!(
            DescribeLogDirs,
            DescribeLogDirsRequest,
            DescribeLogDirsResponse,
            generated
        );
        $visit!(
            DescribeProducers,
            DescribeProducersRequest,
            DescribeProducersResponse,
            generated
        );
        $visit!(
            UnregisterBroker,
            UnregisterBrokerRequest,
            UnregisterBrokerResponse,
            generated
        );
        $visit!(
            ListConfigResources,
            ListConfigResourcesRequest,
            ListConfigResourcesResponse,
            generated
        );
        $visit!(
            DescribeTopicPartitions,
            DescribeTopicPartitionsRequest,
            DescribeTopicPartitionsResponse,
            generated
        );
        $visit!(
            ElectLeaders,
            ElectLeadersRequest,
            ElectLeadersResponse,
            generated
        );
        $visit!(
            AlterPartitionReassignments,
            AlterPartitionReassignmentsRequest,
            AlterPartitionReassignmentsResponse,
            generated
        );
        $visit!(
            ListPartitionReassignments,
            ListPartitionReassignmentsRequest,
            ListPartitionReassignmentsResponse,
            generated
        );
        $visit!(
            DescribeQuorum,
            DescribeQuorumRequest,
            DescribeQuorumResponse,
            generated
        );
        $visit!(
            DescribeCluster,
            DescribeClusterRequest,
            DescribeClusterResponse,
            generated
        );
        $visit!(
            ApiVersions,
            ApiVersionsRequest,
            ApiVersionsResponse,
            generated
        );
        $visit!(
            CreateTopics,
            CreateTopicsRequest,
            CreateTopicsResponse,
            generated
        );
        $visit!(
            DeleteTopics,
            DeleteTopicsRequest,
            DeleteTopicsResponse,
            generated
        );
        $visit!(
            InitProducerId,
            InitProducerIdRequest,
            InitProducerIdResponse,
            generated
        );
        $visit!(
            OffsetForLeaderEpoch,
            OffsetForLeaderEpochRequest,
            OffsetForLeaderEpochResponse,
            generated
        );
    };
}
pub(crate) use every_api;
