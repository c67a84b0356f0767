//! How far the groups of this broker are behind what they read, for whoever watches them.
//!
//! Promise: a look every few seconds, off every request's way; the offsets that one look takes are bounded.
//! Not here: how many are shown (`metrics`), and a partition's end on another broker: where no replica is
//! here that is counted, and not guessed.

use super::coordinator::Coordinator;
use super::event::{Name, Refusal};
use crate::metrics::{self, GroupLag, HiddenLags};
use std::sync::Arc;
use std::time::Duration;

/// As groups are counted.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Committed offsets in one look: some megabytes.
pub(super) const LOOKED_AT_MAX: usize = 50_000;

/// The end of a topic's partition, where a replica of it is here.
pub type EndOf = Arc<dyn Fn(&str, i32) -> Option<i64> + Send + Sync>;

/// What a group has committed for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    pub group: Name,
    pub topic: Name,
    pub partition: i32,
    pub offset: i64,
}

/// Committed offsets, and how many more there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Looked {
    pub committed: Vec<Committed>,
    pub more: usize,
}

fn lags(looked: Looked, end_of: &EndOf) -> (Vec<GroupLag>, HiddenLags) {
    let mut hidden = HiddenLags {
        over_limit: looked.more,
        elsewhere: 0,
    };
    let mut lags = Vec::with_capacity(looked.committed.len());
    for c in looked.committed {
        let Some(end) = end_of(&c.topic, c.partition) else {
            hidden.elsewhere += 1;
            continue;
        };
        lags.push(GroupLag {
            group: c.group.to_string(),
            topic: c.topic.to_string(),
            partition: c.partition,
            // A replica that follows may be a moment behind what the group has read from its leader.
            records: u64::try_from(end.saturating_sub(c.offset)).unwrap_or(0),
        });
    }
    (lags, hidden)
}

/// Keeps the metrics true to within ten seconds, until it is dropped.
pub async fn keep(
    coordinator: Arc<Coordinator>,
    end_of: EndOf,
    shown_max: impl Fn() -> usize + Send,
) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match coordinator.committed(LOOKED_AT_MAX).await {
            Ok(looked) => {
                let (lags, hidden) = lags(looked, &end_of);
                metrics::set_group_lags(lags, hidden, shown_max());
            }
            // While groups are loaded, the last look stands.
            Err(Refusal::Loading) => {}
            Err(why) => tracing::debug!(?why, "no look at what groups have committed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_is_what_is_between_the_commit_and_the_end_as_far_as_it_is_known_here() {
        let committed = |partition, offset| Committed {
            group: "g".into(),
            topic: "t".into(),
            partition,
            offset,
        };
        let looked = Looked {
            committed: vec![committed(0, 40), committed(1, 100), committed(2, 120)],
            more: 3,
        };
        let end_of: EndOf = Arc::new(|_, partition| (partition != 1).then_some(100));
        let (lags, hidden) = lags(looked, &end_of);
        let records: Vec<_> = lags.iter().map(|l| (l.partition, l.records)).collect();
        assert_eq!(records, [(0, 60), (2, 0)]);
        let expected = HiddenLags {
            over_limit: 3,
            elsewhere: 1,
        };
        assert_eq!(hidden, expected);
    }
}
