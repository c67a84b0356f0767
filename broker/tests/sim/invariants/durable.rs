//! Nothing counts as committed before a majority has synced it.
//!
//! A replica that is down may have synced anything; as long as one is, little can be said.

use super::{Invariant, Seen};

#[derive(Default)]
pub struct Durable;

impl Invariant for Durable {
    fn name(&self) -> &'static str {
        "a majority has synced what is committed"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Synced {
            partition,
            replicas,
        } = *seen
        else {
            return Ok(());
        };
        let mut synced = replicas.map(|r| r.map_or(i64::MAX, |(synced, _)| synced));
        synced.sort_unstable();
        let by_majority = synced[synced.len() / 2];
        let ahead = replicas
            .iter()
            .position(|r| r.is_some_and(|(_, high_watermark)| high_watermark > by_majority));
        match ahead {
            Some(broker) => Err(format!(
                "p{partition} on broker {broker}: {replicas:?} are what is synced and what counts as committed"
            )),
            None => Ok(()),
        }
    }
}
