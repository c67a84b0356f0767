//! Where a broker's metadata comes from: how often its group was recovered by force, and whose log went on.
//!
//! Invariant: two brokers whose lineages differ exchange nothing but introductions (`peers::fit`): each has
//! metadata that the other's pasts do not lead to. A number alone would not do, as two survivors may be recovered
//! apart from each other.
//! Not here: how it is recovered (`rescue`), and who gives its metadata up (`start`).

use crate::raft::ReplicaId;
use logd_proto::rpc::v1 as rpc;
use serde::{Deserialize, Serialize};

/// The last forced recovery of the metadata group; all zeros where there was none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lineage {
    /// How often it was recovered by now.
    pub generation: u32,
    /// The disk whose log went on.
    pub survivor: ReplicaId,
    /// The term in which it began.
    pub term: u64,
}

impl Lineage {
    /// The metadata group was never recovered by force.
    pub fn is_first(&self) -> bool {
        self.generation == 0
    }

    pub(super) fn of(said: Option<rpc::Lineage>) -> Self {
        said.map_or_else(Self::default, |l| Self {
            generation: l.generation,
            survivor: l.survivor,
            term: l.term,
        })
    }

    pub(super) fn said(self) -> Option<rpc::Lineage> {
        (!self.is_first()).then_some(rpc::Lineage {
            generation: self.generation,
            survivor: self.survivor,
            term: self.term,
        })
    }
}

/// The metadata group was recovered by force without this broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this broker's metadata is of generation {ours}, and another broker's of generation {theirs}: the metadata group \
     was recovered by force without this one. A restart takes it in again: it gives its metadata up for theirs and \
     keeps its partitions"
)]
pub struct Surpassed {
    pub ours: u32,
    pub theirs: u32,
}
