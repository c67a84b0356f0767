//! The feature level never falls, and no registered broker's build is below it.

use super::{Invariant, Seen};
use crate::tally::Tally;
use logd::cluster::FeatureLevel;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Features {
    /// The first and the last entry after which each level was seen.
    seen: BTreeMap<FeatureLevel, (u64, u64)>,
}

impl Invariant for Features {
    fn name(&self) -> &'static str {
        "the feature level is everybody's, for good"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Metadata {
            broker,
            applied,
            level,
            oldest,
            ..
        } = *seen
        else {
            return Ok(());
        };
        if oldest.is_some_and(|build| build < level) {
            return Err(format!(
                "broker {broker} is at level {level}, and has a broker of {oldest:?}"
            ));
        }
        let (first, last) = self.seen.entry(level).or_insert((applied, applied));
        (*first, *last) = (applied.min(*first), applied.max(*last));
        let mut levels = self.seen.iter().zip(self.seen.iter().skip(1));
        match levels.find(|((_, (_, last)), (_, (first, _)))| last >= first) {
            Some((lower, higher)) => Err(format!("{lower:?} was seen after {higher:?}")),
            None => Ok(()),
        }
    }

    fn count(&self, tally: &mut Tally) {
        tally.raised += self.seen.len().saturating_sub(1) as u64;
    }
}
