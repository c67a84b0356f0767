//! What this broker goes by now: its own settings, and over them what was set while it ran.
//!
//! Promise: what was set for this broker beats what was set for all, which beats the flags, the environment
//! and the file it was started with; what cannot hold here is left out and said, and everything else holds.
//! Invariant: one [`Keeper`] makes each [`Now`]; whoever acts on a setting asks [`Live::now`] then, or is told.
//! Not here: who may set what, and how that reaches all brokers (`cluster`).

mod check;
mod describe;
mod now;
mod said;
mod table;
mod unused;

pub use crate::config::ReplicaSelector;
pub use check::{SettingError, check, list_here, name_of};
pub use now::{Keeper, Live, Now, topics_of_all};
pub use said::Said;
pub use table::{Applies, FIXED, Row, TABLE};
pub use unused::unused_of;
