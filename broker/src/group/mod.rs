//! Consumer groups by the classic protocol: membership, assignments, offsets.
//!
//! Promise: stock clients, eager or cooperative, static or dynamic, form groups here, and what
//! they were told survives the loss of this broker, because it was in the log before they were
//! told.
//! Invariant: each group has one owner, the task of its partition of `__consumer_offsets`, on the
//! broker that leads that partition; decisions are pure (`state`), the doing is in the shell.
//!
//! Not here: Kafka's messages and error codes (the API room), and where the partition lives
//! (`log` is the door).

// The shell, from the way in to the door out.
mod coordinator;
mod lag;
mod load;
mod worker;

// The pure part: the words, then the rules.
mod commit;
mod event;
mod join;
mod leave;
mod member;
mod offsets;
mod rebalance;
mod record;
mod state;
mod sync;

mod codec;
pub mod log;
mod replicated;

/// The topic in which groups live.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";

pub use coordinator::{Answer, Coordinator, Settings};
pub use event::*;
pub use lag::{EndOf, keep as keep_lags};
pub use record::{CommittedOffset, GroupRecord, MemberRecord, Record, TopicId};
pub use replicated::ReplicatedOffsets;
pub use state::{Group, Limits, Remembered};
pub use worker::Listed;

#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod shell_tests;
#[cfg(test)]
mod tests;
