//! The cluster as one broker knows it: a replicated picture, and what this broker does about it.
//!
//! Promise: [`Cluster::view`] is a committed state; a topic whose creation was answered serves.
//! Not here: bytes of the protocol, and how a partition works.

mod controller;
mod metadata;
mod placement;
mod plan;
mod reconcile;
mod rpc;
mod state;

pub use controller::{BrokerSpec, Cluster, DeleteTopicError, ProducerIdError, StartError};
pub use metadata::View;
pub use placement::PlacementError;
pub use plan::{CreateTopicError, CreatedTopic, NewTopic};
pub use reconcile::{Action, Reconciler, SpecOf, diff};
pub use rpc::{Me, RpcListener};
pub use state::{
    Answer, BrokerInfo, ClusterState, Command, PRODUCER_ID_BLOCK, Refusal, Topic, TopicId,
    TopicRecord,
};
