//! logd, the broker: Kafka's protocol outside, one Raft group per partition inside.
//!
//! Modules in the order of the way in; each depends on those below it only.

pub mod banner;
pub mod cli;
pub mod healthcheck;
pub mod node;
pub mod open_files;

pub mod admin;
pub mod control;
pub mod server;

pub mod api;
pub mod group;

pub mod cluster;
pub mod partition;
pub mod peers;
pub mod raft;

pub mod settings;

pub mod config;
pub mod group_config;
pub mod logging;
pub mod metrics;
pub mod topic_config;
