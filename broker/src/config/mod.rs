//! Settings: defaults, then the file, then `LOGD_SECTION__KEY`, then flags; resolved once into plain values.
//!
//! Promise: a key nobody knows is an error with a suggestion, a value that cannot work says why and what
//! to do, and every value knows where it came from. Nothing else in the broker reads the environment.

mod layers;
mod ranges;
mod raw;
mod resolve;

pub use layers::{LoadError, Loaded, Origin, OverlayError, Overrides, load, overlay, texts};
pub use raw::{Raw, Topics};
pub use resolve::{
    Config, ConfigError, GroupConfig, KafkaConfig, LimitsConfig, ListenerConfig, LogFormat,
    NodeConfig, ReplicaSelector, StorageConfig,
};
