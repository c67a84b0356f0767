//! logd, the broker: Kafka's protocol outside, one Raft group per partition inside.
//!
//! Modules in the order of the way in; each depends on those below it only.

pub mod admin;
pub mod api;
pub mod cluster;
pub mod config;
pub mod group;
pub mod metrics;
pub mod node;
pub mod partition;
pub mod raft;
pub mod server;
pub mod topic_config;
