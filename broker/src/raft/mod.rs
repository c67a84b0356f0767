//! openraft lives here alone: one [`Group`] is one replicated log with a state machine on top.
//!
//! Promise: an entry handed to [`Apply::apply`] is durable on a majority, is never taken back, and
//! is handed over exactly once per process, in index order, on one task. Entries are proposed in the
//! order of the calls to [`Group::propose`].
//! Not here: topics, offsets' meaning, sequences (see `partition`), what a metadata command says
//! (see `cluster`), and the bytes on disk (see `logd_storage`).

mod candidacy;
mod codec;
mod exchange;
mod files;
mod force;
mod group;
mod leadership;
mod log_store;
mod members;
mod mutants;
mod network;
mod runtime;
mod state_machine;
mod throttle;
mod types;
mod wire;

#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod suite_tests;
#[cfg(test)]
pub(crate) mod test_entries;

pub use codec::CodecError;
pub use exchange::{Exchange, Room};
pub use force::{ForceError, electorates, force_alone, force_alone_saying};
pub use group::{
    Group, GroupSpec, Links, OnRole, OpenError, Pending, ProposeError, Refusal, Role, Timers,
};
pub use leadership::Outlook;
pub use members::Members;
#[cfg(feature = "mutants")]
pub use mutants::restore_leaders;
pub use network::{Alone, CallError, Transport};
pub use runtime::{off_the_loop, off_the_loop_in_steps, seed_randomness};
pub use state_machine::{Apply, Committed};
pub use throttle::Throttle;
pub use types::{ControlKind, EntryKind, Outcome, Proposal, ReplicaId, Stamp, unstamped};
