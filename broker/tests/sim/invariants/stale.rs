//! A leader that is cut off from the others acknowledges nothing that came after it was.

use super::{Invariant, Seen};

#[derive(Default)]
pub struct Stale;

impl Invariant for Stale {
    fn name(&self) -> &'static str {
        "a stale leader acknowledges nothing"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match *seen {
            Seen::Acked {
                broker,
                partition,
                batch,
                cut_off: true,
                ..
            } => Err(format!(
                "broker {broker}, cut off, acknowledged {batch:?} of p{partition}"
            )),
            _ => Ok(()),
        }
    }
}
