//! The table of APIs: what we serve, in which versions, and the two closed enums a broker matches on.
//!
//! Adding an API is one row at the end of this file.
//!
//! Invariant: a [`Request`] was decoded in a version of its row, completely, and holds no more memory
//! than a small multiple of the bytes that arrived.
//!
//! Not here: what a request means. Messages other than Produce and Fetch are generated
//! ([`crate::messages`]).

use std::ops::RangeInclusive;

use bytes::Bytes;
use kafka_wire::{KafkaMessage, KafkaRequest, KafkaResponse, RequestResponsePair};
use kafka_wire_core::{ApiVersion, DecodeLimits, Decoder};

use crate::fetch::{FetchRequest, FetchResponse};
use crate::frame::{EncodedFrame, put_response_header, split_response};
use crate::messages::*;
use crate::produce::{ProduceRequest, ProduceResponse};
use crate::wire::{Gather, ReadError};
use crate::{ErrorCode, message};

/// Why the bytes are not the message they claim to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A hand-written message could not be read.
    #[error("malformed {message} version {version}: {source}")]
    Malformed {
        message: &'static str,
        version: i16,
        source: ReadError,
    },
    /// A generated message could not be read.
    #[error("malformed {message} version {version}: {source}")]
    MalformedMessage {
        message: &'static str,
        version: i16,
        source: kafka_wire_core::DecodeError,
    },
    /// Only messages that carry records may be this long.
    #[error("{message} of {bytes} bytes, the limit is {limit}")]
    TooLarge {
        message: &'static str,
        bytes: usize,
        limit: usize,
    },
}

/// Why a value cannot be written in the version asked for. This is our bug, not the peer's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A field holds something that the version has no place for.
    #[error("cannot write {message} version {version}: {source}")]
    Unrepresentable {
        message: &'static str,
        version: i16,
        source: kafka_wire_core::EncodeError,
    },
    /// The frame would be larger than its size field can say.
    #[error("{message} version {version} is larger than a frame can be")]
    TooLarge { message: &'static str, version: i16 },
}

/// Requests without records are at most this long. The largest seen in the field, assignments of
/// groups with thousands of members, are a quarter of it; and small elements become structures
/// forty times their size, so a frame as large as Produce may send would be a way to take memory.
pub const CONTROL_BYTES_MAX: usize = 16 * 1024 * 1024;

/// No array of a request holds more elements, whatever the frame has room for.
const REQUEST_ELEMENTS_MAX: usize = 100_000;

/// Metadata of very large clusters is the longest array a client receives.
const RESPONSE_ELEMENTS_MAX: usize = 4_000_000;

/// Unknown tagged fields kept per structure; Kafka itself defines at most a handful.
const TAGS_MAX: usize = 16;

pub(crate) fn limits(bytes: usize, elements_max: usize) -> DecodeLimits {
    let mut limits = DecodeLimits::default();
    limits.max_frame_bytes = bytes;
    limits.max_string_bytes = bytes;
    limits.max_bytes_bytes = bytes;
    limits.max_array_elements = bytes.min(elements_max);
    limits.max_tagged_fields = TAGS_MAX;
    limits.max_tag_bytes = bytes;
    limits.max_total_tag_bytes = bytes;
    limits
}

/// How a request's body is read.
trait DecodeBody: Sized {
    fn decode_body(body: Bytes, version: i16) -> Result<Self, DecodeError>;
}

/// How a response's body is written.
trait EncodeBody {
    fn encode_body(self, out: &mut Gather, version: i16) -> Result<(), EncodeError>;
}

impl<M: KafkaMessage + KafkaRequest> DecodeBody for M {
    fn decode_body(body: Bytes, version: i16) -> Result<M, DecodeError> {
        let bytes = body.len();
        if bytes > CONTROL_BYTES_MAX {
            let limit = CONTROL_BYTES_MAX;
            return Err(DecodeError::TooLarge {
                message: M::NAME,
                bytes,
                limit,
            });
        }
        decode_message(body, version, limits(bytes, REQUEST_ELEMENTS_MAX))
    }
}

impl<M: KafkaResponse> EncodeBody for M {
    fn encode_body(self, out: &mut Gather, version: i16) -> Result<(), EncodeError> {
        put_message(&self, out, version)
    }
}

fn decode_message<M: KafkaMessage>(
    body: Bytes,
    version: i16,
    limits: DecodeLimits,
) -> Result<M, DecodeError> {
    // Bytes behind the message are ignored, as Kafka does: librdkafka leaves three behind a Metadata
    // request for all topics in version 13.
    let decoded = Decoder::new(body, limits)
        .and_then(|mut decoder| M::decode(&mut decoder, ApiVersion::new(version)));
    decoded.map_err(|source| DecodeError::MalformedMessage {
        message: M::NAME,
        version,
        source,
    })
}

fn put_message<M: KafkaMessage>(
    message: &M,
    out: &mut Gather,
    version: i16,
) -> Result<(), EncodeError> {
    let written = message.encode_into(out.own(), ApiVersion::new(version));
    let unrepresentable = |source| EncodeError::Unrepresentable {
        message: M::NAME,
        version,
        source,
    };
    written.map(|_bytes| ()).map_err(unrepresentable)
}

impl DecodeBody for ProduceRequest {
    fn decode_body(body: Bytes, version: i16) -> Result<Self, DecodeError> {
        let message = "ProduceRequest";
        ProduceRequest::read(body, version).map_err(|source| DecodeError::Malformed {
            message,
            version,
            source,
        })
    }
}

impl DecodeBody for FetchRequest {
    fn decode_body(body: Bytes, version: i16) -> Result<Self, DecodeError> {
        let message = "FetchRequest";
        let (bytes, limit) = (body.len(), CONTROL_BYTES_MAX);
        if bytes > limit {
            return Err(DecodeError::TooLarge {
                message,
                bytes,
                limit,
            });
        }
        FetchRequest::read(body, version).map_err(|source| DecodeError::Malformed {
            message,
            version,
            source,
        })
    }
}

impl EncodeBody for ProduceResponse {
    fn encode_body(self, out: &mut Gather, version: i16) -> Result<(), EncodeError> {
        self.put(out, version);
        Ok(())
    }
}

impl EncodeBody for FetchResponse {
    fn encode_body(self, out: &mut Gather, version: i16) -> Result<(), EncodeError> {
        self.put(out, version);
        Ok(())
    }
}

macro_rules! apis {
    ($($api:ident = $key:literal, serves $min:literal..=$max:literal,
       flexible from $flexible:literal, $request:ident => $response:ident;)+) => {
        /// An API we serve.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(i16)]
        #[allow(missing_docs)]
        pub enum ApiKey {
            $($api = $key,)+
        }

        impl ApiKey {
            /// Every API we serve, in the order of their keys.
            pub const ALL: &'static [ApiKey] = &[$(ApiKey::$api,)+];

            /// The API a key stands for, if we serve it.
            pub const fn from_code(key: i16) -> Option<ApiKey> {
                match key {
                    $($key => Some(ApiKey::$api),)+
                    _ => None,
                }
            }

            /// Kafka's name for it; also what metrics call it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(ApiKey::$api => stringify!($api),)+
                }
            }

            /// The versions we decode and encode.
            pub const fn versions(self) -> RangeInclusive<i16> {
                match self {
                    $(ApiKey::$api => $min..=$max,)+
                }
            }

            /// Whether a version uses compact lengths and tagged fields.
            pub const fn is_flexible(self, version: i16) -> bool {
                match self {
                    $(ApiKey::$api => version >= $flexible,)+
                }
            }
        }

        /// A request, whole and well-formed.
        #[derive(Clone, Debug, PartialEq)]
        // One value per request in flight, moved a few times: boxing would cost more than it saves.
        #[allow(clippy::large_enum_variant, missing_docs)]
        pub enum Request {
            $($api($request),)+
        }

        impl Request {
            /// Reads the body that [`crate::frame::split_request`] left.
            ///
            /// # Errors
            /// When the bytes are not that message; Kafka then closes the connection.
            pub fn decode(api: ApiKey, version: i16, body: Bytes) -> Result<Request, DecodeError> {
                match api {
                    $(ApiKey::$api =>
                        <$request as DecodeBody>::decode_body(body, version).map(Request::$api),)+
                }
            }

            /// Which API it belongs to.
            pub const fn api(&self) -> ApiKey {
                match self {
                    $(Request::$api(_) => ApiKey::$api,)+
                }
            }
        }

        $(impl From<$request> for Request {
            fn from(request: $request) -> Request {
                Request::$api(request)
            }
        })+

        /// The answer to a request.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(clippy::large_enum_variant, missing_docs)]
        pub enum Response {
            $($api($response),)+
        }

        impl Response {
            /// Which API it belongs to.
            pub const fn api(&self) -> ApiKey {
                match self {
                    $(Response::$api(_) => ApiKey::$api,)+
                }
            }

            fn put(self, out: &mut Gather, version: i16) -> Result<(), EncodeError> {
                match self {
                    $(Response::$api(response) => response.encode_body(out, version),)+
                }
            }
        }

        $(impl From<$response> for Response {
            fn from(response: $response) -> Response {
                Response::$api(response)
            }
        })+

        #[cfg(test)]
        mod table {
            use super::*;

            #[test]
            fn the_table_agrees_with_kafkas_schemas() {
                $({
                    let schema = <crate::messages::$request as KafkaRequest>::API_DESCRIPTOR;
                    assert_eq!(schema.api_key.value(), $key, stringify!($api));
                    assert!(schema.supported_versions.contains(ApiVersion::new($min)));
                    assert!(schema.supported_versions.contains(ApiVersion::new($max)));
                    let flexible = schema.flexible_versions.map(|range| range.min().value());
                    assert_eq!(flexible.unwrap_or(i16::MAX), $flexible, stringify!($api));
                })+
            }
        }
    };
}

impl ApiKey {
    /// The number on the wire.
    pub const fn code(self) -> i16 {
        self as i16
    }

    /// The versions to announce. For Produce that is more than we serve: librdkafka takes a missing
    /// version 0 as a sign that nothing newer works, and sends everything uncompressed.
    pub fn advertised(self) -> RangeInclusive<i16> {
        match self {
            ApiKey::Produce => 0..=*self.versions().end(),
            _ => self.versions(),
        }
    }

    /// Whether the response header ends in tagged fields. ApiVersions never does: its reader does not
    /// know yet which version it will get.
    pub const fn has_flexible_response_header(self, version: i16) -> bool {
        !matches!(self, ApiKey::ApiVersions) && self.is_flexible(version)
    }
}

impl Response {
    /// Writes the response with its header and size.
    ///
    /// ```
    /// use logd_proto::api::Response;
    /// use logd_proto::messages::HeartbeatResponse;
    /// let frame = Response::from(HeartbeatResponse::default()).encode(0, 7)?;
    /// assert_eq!(frame.to_bytes().as_ref(), [0, 0, 0, 6, 0, 0, 0, 7, 0, 0]);
    /// # Ok::<(), logd_proto::api::EncodeError>(())
    /// ```
    ///
    /// # Errors
    /// When the value has no encoding in that version, which is a bug of whoever built it.
    pub fn encode(self, version: i16, correlation_id: i32) -> Result<EncodedFrame, EncodeError> {
        let api = self.api();
        let mut out = Gather::frame();
        let flexible = api.has_flexible_response_header(version);
        put_response_header(&mut out, correlation_id, flexible);
        self.put(&mut out, version)?;
        let too_large = EncodeError::TooLarge {
            message: api.name(),
            version,
        };
        out.finish().map(EncodedFrame::new).ok_or(too_large)
    }
}

/// What we announce: one entry per row of the table.
pub fn advertised_versions() -> Vec<api_versions_response::ApiVersion> {
    ApiKey::ALL
        .iter()
        .copied()
        .map(advertised_version)
        .collect()
}

fn advertised_version(api: ApiKey) -> api_versions_response::ApiVersion {
    let versions = api.advertised();
    message!(api_versions_response::ApiVersion {
        api_key: api.code(),
        min_version: *versions.start(),
        max_version: *versions.end(),
    })
}

/// The answer to an ApiVersions request of a version we do not know, in version 0, which everybody
/// can read: the error, and the versions of ApiVersions itself to choose from.
///
/// # Errors
/// Never in practice; as [`Response::encode`].
pub fn unsupported_api_versions(correlation_id: i32) -> Result<EncodedFrame, EncodeError> {
    let response = message!(ApiVersionsResponse {
        error_code: ErrorCode::UnsupportedVersion.code(),
        api_keys: vec![advertised_version(ApiKey::ApiVersions)],
    });
    Response::from(response).encode(0, correlation_id)
}

/// A client's side: one request as a frame, size and header included.
///
/// # Errors
/// When the request says something that the version cannot.
pub fn encode_request<R: RequestResponsePair>(
    request: &R,
    version: i16,
    correlation_id: i32,
    client_id: Option<&str>,
) -> Result<EncodedFrame, EncodeError> {
    let mut out = Gather::frame();
    out.i16(R::API_KEY.value());
    out.i16(version);
    out.i32(correlation_id);
    out.nullable_string(false, client_id);
    out.no_tags(R::is_flexible(ApiVersion::new(version)));
    put_message(request, &mut out, version)?;
    let too_large = EncodeError::TooLarge {
        message: R::NAME,
        version,
    };
    out.finish().map(EncodedFrame::new).ok_or(too_large)
}

/// A client's side: the response to an `R` of that version, from a frame without its size.
///
/// # Errors
/// When the bytes are not that response.
pub fn decode_response<R: RequestResponsePair>(
    frame: Bytes,
    version: i16,
) -> Result<(i32, R::Response), DecodeError> {
    let flexible = R::Response::is_flexible(ApiVersion::new(version));
    let header_is_flexible = flexible && R::API_KEY.value() != ApiKey::ApiVersions.code();
    let message = R::Response::NAME;
    let (correlation_id, body) =
        split_response(frame, header_is_flexible).map_err(|source| DecodeError::Malformed {
            message,
            version,
            source,
        })?;
    let limits = limits(body.len(), RESPONSE_ELEMENTS_MAX);
    Ok((correlation_id, decode_message(body, version, limits)?))
}

/// The highest version that both sides can speak, from a broker's announced range.
pub fn negotiate(api: ApiKey, announced: RangeInclusive<i16>) -> Option<i16> {
    let served = api.versions();
    let version = *served.end().min(announced.end());
    (version >= *served.start() && version >= *announced.start()).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_from_the_future_learns_what_it_may_ask() {
        let frame = unsupported_api_versions(7).unwrap().to_bytes();
        let (correlation, answer) =
            decode_response::<ApiVersionsRequest>(frame.slice(4..), 0).unwrap();
        assert_eq!((correlation, answer.error_code), (7, 35));
        let [only] = answer.api_keys.as_slice() else {
            panic!("{answer:?}")
        };
        assert_eq!(
            (only.api_key, only.min_version, only.max_version),
            (18, 0, 4)
        );
    }

    #[test]
    fn produce_is_announced_from_zero_and_served_from_three() {
        let announced = advertised_versions();
        assert_eq!(announced.len(), ApiKey::ALL.len());
        let produce = announced.iter().find(|api| api.api_key == 0).unwrap();
        assert_eq!((produce.min_version, produce.max_version), (0, 13));
        assert!(!ApiKey::Produce.versions().contains(&2));
    }

    #[test]
    fn both_sides_agree_on_the_highest_common_version() {
        assert_eq!(negotiate(ApiKey::Fetch, 0..=11), Some(11));
        assert_eq!(negotiate(ApiKey::Fetch, 4..=99), Some(18));
        assert_eq!(negotiate(ApiKey::Fetch, 0..=3), None);
        assert_eq!(negotiate(ApiKey::Fetch, 19..=20), None);
    }
}

// The rows. Kafka 4.3's full ranges; DeleteTopics and the like have lost their oldest versions there.
apis! {
    Produce = 0, serves 3..=13, flexible from 9, ProduceRequest => ProduceResponse;
    Fetch = 1, serves 4..=18, flexible from 12, FetchRequest => FetchResponse;
    ListOffsets = 2, serves 1..=11, flexible from 6, ListOffsetsRequest => ListOffsetsResponse;
    Metadata = 3, serves 0..=13, flexible from 9, MetadataRequest => MetadataResponse;
    OffsetCommit = 8, serves 2..=10, flexible from 8, OffsetCommitRequest => OffsetCommitResponse;
    OffsetFetch = 9, serves 1..=10, flexible from 6, OffsetFetchRequest => OffsetFetchResponse;
    FindCoordinator = 10, serves 0..=6, flexible from 3,
        FindCoordinatorRequest => FindCoordinatorResponse;
    JoinGroup = 11, serves 0..=9, flexible from 6, JoinGroupRequest => JoinGroupResponse;
    Heartbeat = 12, serves 0..=4, flexible from 4, HeartbeatRequest => HeartbeatResponse;
    LeaveGroup = 13, serves 0..=5, flexible from 4, LeaveGroupRequest => LeaveGroupResponse;
    SyncGroup = 14, serves 0..=5, flexible from 4, SyncGroupRequest => SyncGroupResponse;
    DescribeGroups = 15, serves 0..=6, flexible from 5,
        DescribeGroupsRequest => DescribeGroupsResponse;
    ListGroups = 16, serves 0..=5, flexible from 3, ListGroupsRequest => ListGroupsResponse;
    ApiVersions = 18, serves 0..=4, flexible from 3, ApiVersionsRequest => ApiVersionsResponse;
    CreateTopics = 19, serves 2..=7, flexible from 5, CreateTopicsRequest => CreateTopicsResponse;
    DeleteTopics = 20, serves 1..=6, flexible from 4, DeleteTopicsRequest => DeleteTopicsResponse;
    DeleteRecords = 21, serves 0..=2, flexible from 2,
        DeleteRecordsRequest => DeleteRecordsResponse;
    InitProducerId = 22, serves 0..=5, flexible from 2,
        InitProducerIdRequest => InitProducerIdResponse;
    OffsetForLeaderEpoch = 23, serves 2..=4, flexible from 4,
        OffsetForLeaderEpochRequest => OffsetForLeaderEpochResponse;
    DescribeAcls = 29, serves 1..=3, flexible from 2,
        DescribeAclsRequest => DescribeAclsResponse;
    CreateAcls = 30, serves 1..=3, flexible from 2, CreateAclsRequest => CreateAclsResponse;
    DeleteAcls = 31, serves 1..=3, flexible from 2, DeleteAclsRequest => DeleteAclsResponse;
    DescribeConfigs = 32, serves 1..=4, flexible from 4,
        DescribeConfigsRequest => DescribeConfigsResponse;
    AlterConfigs = 33, serves 0..=2, flexible from 2,
        AlterConfigsRequest => AlterConfigsResponse;
    DescribeLogDirs = 35, serves 1..=5, flexible from 2,
        DescribeLogDirsRequest => DescribeLogDirsResponse;
    CreatePartitions = 37, serves 0..=3, flexible from 2,
        CreatePartitionsRequest => CreatePartitionsResponse;
    DeleteGroups = 42, serves 0..=2, flexible from 2,
        DeleteGroupsRequest => DeleteGroupsResponse;
    ElectLeaders = 43, serves 0..=2, flexible from 2,
        ElectLeadersRequest => ElectLeadersResponse;
    IncrementalAlterConfigs = 44, serves 0..=1, flexible from 1,
        IncrementalAlterConfigsRequest => IncrementalAlterConfigsResponse;
    AlterPartitionReassignments = 45, serves 0..=1, flexible from 0,
        AlterPartitionReassignmentsRequest => AlterPartitionReassignmentsResponse;
    ListPartitionReassignments = 46, serves 0..=0, flexible from 0,
        ListPartitionReassignmentsRequest => ListPartitionReassignmentsResponse;
    OffsetDelete = 47, serves 0..=0, flexible from 32767,
        OffsetDeleteRequest => OffsetDeleteResponse;
    DescribeClientQuotas = 48, serves 0..=1, flexible from 1,
        DescribeClientQuotasRequest => DescribeClientQuotasResponse;
    DescribeUserScramCredentials = 50, serves 0..=0, flexible from 0,
        DescribeUserScramCredentialsRequest => DescribeUserScramCredentialsResponse;
    DescribeQuorum = 55, serves 0..=2, flexible from 0,
        DescribeQuorumRequest => DescribeQuorumResponse;
    DescribeCluster = 60, serves 0..=2, flexible from 0,
        DescribeClusterRequest => DescribeClusterResponse;
    DescribeProducers = 61, serves 0..=0, flexible from 0,
        DescribeProducersRequest => DescribeProducersResponse;
    UnregisterBroker = 64, serves 0..=0, flexible from 0,
        UnregisterBrokerRequest => UnregisterBrokerResponse;
    ListConfigResources = 74, serves 0..=1, flexible from 0,
        ListConfigResourcesRequest => ListConfigResourcesResponse;
    DescribeTopicPartitions = 75, serves 0..=0, flexible from 0,
        DescribeTopicPartitionsRequest => DescribeTopicPartitionsResponse;
}
