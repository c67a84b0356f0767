//! The metadata is a function of what is applied: all brokers have the same at the same index.

use super::{Invariant, Seen};
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Metadata {
    states: BTreeMap<u64, (usize, Vec<u8>)>,
}

impl Invariant for Metadata {
    fn name(&self) -> &'static str {
        "metadata is equal at equal indexes"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Metadata {
            broker,
            applied,
            state,
            ..
        } = *seen
        else {
            return Ok(());
        };
        let known = self
            .states
            .entry(applied)
            .or_insert_with(|| (broker, state.to_vec()));
        if known.1 == state {
            Ok(())
        } else {
            let (theirs, ours) = (
                String::from_utf8_lossy(&known.1),
                String::from_utf8_lossy(state),
            );
            Err(format!(
                "at {applied} broker {} has {theirs}, broker {broker} {ours}",
                known.0
            ))
        }
    }
}
