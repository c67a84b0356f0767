//! The cluster as one broker knows it: a replicated picture, and what this broker does about it.
//!
//! Promise: [`Cluster::view`] is a committed state; a topic whose creation was answered serves.
//! Not here: bytes of the protocol, and how a partition works.

mod alter;
mod away;
mod back;
mod card;
mod claims;
mod controller;
mod door;
mod duty;
mod features;
mod formation;
mod generations;
mod group_settings;
mod grow;
mod heal;
mod keep;
mod leaders;
mod lineage;
mod metadata;
mod moves;
mod notes;
mod operate;
mod placement;
mod plan;
mod preferred;
mod rebalance;
mod reconcile;
mod recover;
mod recovery;
mod register;
mod rescue;
mod retire;
mod settings;
mod slow_disk;
mod start;
mod state;
mod takeover;
mod targets;
mod vetting;
mod voters;

pub use alter::{AlterTopicError, Alteration, ConfigChange};
pub use card::{Card, CardError, Unfinished};
pub use claims::Claims;
pub use controller::{BrokerSpec, Cluster, DeleteTopicError, ProducerIdError};
pub use door::Door;
pub use duty::Duty;
pub use features::{AboveLevel, BUILD, FeatureLevel, Told};
pub use group_settings::{AlterGroupError, GROUPS_MAX, GroupAlteration, GroupSettings};
pub use grow::{Addition, CreatePartitionsError, NewPartitions};
pub use keep::{follow_brokers, hand_over_all, keep_metadata_members};
pub use leaders::{Claim, Leaders, publish as publish_leaders};
pub use lineage::{Lineage, Surpassed};
pub use metadata::{METADATA_TOPIC, Metadata, Outgrown, View};
pub use moves::{MOVING_AT_ONCE, Moves};
pub use operate::{ElectError, MemberState, MoveError, QuorumState};
pub use placement::PlacementError;
pub use plan::{CreateTopicError, CreatedTopic, NewTopic};
pub use preferred::keep_preferred_leaders;
pub use reconcile::{Action, Reconciler, SpecOf, diff};
pub use recover::RecoverError;
pub use recovery::{Choice, Forced, Held, Recovery, RecoveryRefusal, decide as decide_recovery};
pub use rescue::{Refusal as RescueRefusal, Rescue, RescueError};
pub use retire::{DutyError, UnregisterError, retire_brokers};
pub use settings::{AlterBrokerError, BrokerAlteration};
pub use slow_disk::{Syncs, avoid_slow_disk};
pub use start::{StartError, Surroundings, start};
pub use state::{
    Answer, BrokerInfo, ClusterState, Command, PRODUCER_ID_BLOCK, Refusal, Topic, TopicId,
    TopicRecord,
};
pub use takeover::{Neighbours, Takeover, outlooks};
pub use targets::{Move, MoveRefusal, Moving};
pub use vetting::{Vetting, tell_acknowledged};
