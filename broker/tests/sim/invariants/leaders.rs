//! At most one leader serves in a term.

use super::{Invariant, Seen};
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Leaders {
    by_term: BTreeMap<(Option<u32>, i64), usize>,
}

impl Invariant for Leaders {
    fn name(&self) -> &'static str {
        "one leader a term"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Serves {
            broker,
            partition,
            term,
            ..
        } = *seen
        else {
            return Ok(());
        };
        let first = *self.by_term.entry((partition, term)).or_insert(broker);
        if first == broker {
            Ok(())
        } else {
            Err(format!(
                "{partition:?} has the leaders {first} and {broker} in term {term}"
            ))
        }
    }
}
