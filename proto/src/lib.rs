//! Kafka's and logd's wire formats: bytes to values and back.
//!
//! A broker reads a frame ([`frame::check_size`]), takes its header off ([`frame::split_request`]),
//! decodes a [`api::Request`] and answers with a [`api::Response`]. Record batches inside are checked
//! and read by [`record_batch`]. A client uses [`api::encode_request`] and [`api::decode_response`].
//!
//! Invariants: no I/O, no clock, no runtime (outside [`rpc`]); no panic on any input; no length from a
//! peer allocates more than a small multiple of the bytes that arrived.
//!
//! Not here: what requests mean. Nobody else names the crate that generates the messages: they are
//! [`messages`].

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod api;
pub mod error_code;
pub mod frame;

pub mod fetch;
pub mod leader;
pub mod produce;
pub mod record_batch;

pub mod consumer_protocol;
pub mod offsets_topic;
pub mod rpc;

mod wire;

pub use error_code::ErrorCode;
pub use kafka_wire_core::{StrBytes, TaggedFields, Uuid};
pub use wire::ReadError;

/// Kafka's messages, generated from its schemas: requests and responses by their names, the structures
/// inside them in modules such as `metadata_response`.
///
/// All are `#[non_exhaustive]`; build them with [`message!`](crate::message!). For Produce and Fetch a
/// broker uses [`produce`] and [`fetch`] instead.
///
/// Strings and bytes in a decoded message share the memory of its frame: a state that outlives the
/// request copies what it keeps (`StrBytes::from(&*name)`), or it keeps the whole frame.
pub mod messages {
    pub use kafka_wire::*;
}

/// Builds a generated message: the fields named get their values, the others the protocol's defaults.
///
/// ```
/// use logd_proto::message;
/// use logd_proto::messages::{MetadataResponse, metadata_response::MetadataResponseBroker};
///
/// let node_id = 1;
/// let broker = message!(MetadataResponseBroker { node_id, host: "localhost".into(), port: 9092 });
/// let response = message!(MetadataResponse { brokers: vec![broker], controller_id: 1 });
/// assert_eq!(response.brokers[0].port, 9092);
/// ```
#[macro_export]
macro_rules! message {
    ($type:path { $($field:ident $(: $value:expr)?),* $(,)? }) => {{
        #[allow(unused_mut)]
        let mut message = <$type as ::core::default::Default>::default();
        $(message.$field = $crate::message!(@value $field $($value)?);)*
        message
    }};
    (@value $field:ident $value:expr) => { $value };
    (@value $field:ident) => { $field };
}
