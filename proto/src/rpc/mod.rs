//! What brokers say to each other, over gRPC: types and stubs generated from `proto/*.proto`.
//!
//! Invariant: fields are only added; [`PROTOCOL_VERSION`] rises when an old broker would misread.
//!
//! Not here: connections, deadlines, and what the calls do.

/// The version of the broker-to-broker protocol this build speaks. 2 knows that the metadata group may have been
/// recovered by force.
pub const PROTOCOL_VERSION: u32 = 2;

/// The version that is needed where it was.
pub const PROTOCOL_OF_LINEAGES: u32 = 2;

/// The oldest version it still understands.
pub const PROTOCOL_VERSION_MIN: u32 = 1;

/// Version 1 of the protocol.
#[allow(
    missing_docs,
    missing_debug_implementations,
    clippy::all,
    clippy::pedantic
)]
#[allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing
)]
pub mod v1 {
    tonic::include_proto!("logd.rpc.v1");
}

/// What an operator asks of a cluster, version 1.
#[allow(
    missing_docs,
    missing_debug_implementations,
    clippy::all,
    clippy::pedantic
)]
#[allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing
)]
pub mod admin {
    tonic::include_proto!("logd.admin.v1");
}

#[cfg(test)]
mod tests {
    use super::v1::{IdentifyRequest, Identity};
    use prost::Message;

    #[test]
    fn an_empty_broker_has_no_number_rather_than_number_zero() {
        let caller = Some(Identity {
            seeds: vec!["a:9645".into()],
            ..Identity::default()
        });
        let bytes = IdentifyRequest { caller }.encode_to_vec();
        let read = IdentifyRequest::decode(bytes.as_slice())
            .unwrap()
            .caller
            .unwrap();
        assert_eq!((read.node_id, read.seeds.len()), (None, 1));
        let zero = Identity {
            node_id: Some(0),
            ..Identity::default()
        };
        assert_eq!(
            Identity::decode(zero.encode_to_vec().as_slice())
                .unwrap()
                .node_id,
            Some(0)
        );
    }
}
