//! The partitions that this broker holds. One owner adds and removes them: the cluster's reconciler.

use super::Partition;
use logd_proto::Uuid;
use parking_lot::RwLock;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// A look at one partition takes two to four microseconds, most of it waiting for memory: whoever looks at
/// all of them no more often than this takes a 500th of a core.
const PAUSE_PER_PARTITION: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
pub struct Registry {
    /// In order, so that whoever goes through all does so in the same order every time.
    by_key: RwLock<BTreeMap<(Uuid, i32), Arc<Partition>>>,
    /// Partitions that should be here and cannot be opened, and why.
    failed: RwLock<HashMap<(Uuid, i32), String>>,
}

impl Registry {
    pub fn get(&self, topic: &Uuid, index: i32) -> Option<Arc<Partition>> {
        self.by_key.read().get(&(*topic, index)).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Partition>> {
        self.by_key.read().values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.by_key.read().len()
    }

    /// How long to wait before all partitions are looked at again: `least`, or longer if there are many.
    pub fn pause(&self, least: Duration) -> Duration {
        pause(self.len(), least)
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.read().is_empty()
    }

    /// Why a partition that belongs here is not: its files are damaged, most likely.
    pub fn failure(&self, topic: &Uuid, index: i32) -> Option<String> {
        self.failed.read().get(&(*topic, index)).cloned()
    }

    pub fn fail(&self, topic: Uuid, index: i32, why: String) {
        self.failed.write().insert((topic, index), why);
    }

    pub fn failures(&self) -> usize {
        self.failed.read().len()
    }

    pub fn insert(&self, partition: Arc<Partition>) {
        let key = (partition.topic_id(), partition.index());
        self.failed.write().remove(&key);
        self.by_key.write().insert(key, partition);
    }

    pub fn remove(&self, topic: &Uuid, index: i32) -> Option<Arc<Partition>> {
        self.failed.write().remove(&(*topic, index));
        self.by_key.write().remove(&(*topic, index))
    }
}

fn pause(partitions: usize, least: Duration) -> Duration {
    let partitions = u32::try_from(partitions).unwrap_or(u32::MAX);
    least.max(PAUSE_PER_PARTITION.saturating_mul(partitions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_partitions_are_looked_at_as_often_as_wanted_and_many_more_seldom() {
        let least = Duration::from_secs(2);
        assert_eq!(pause(0, least), least);
        assert_eq!(pause(1_000, least), least);
        assert_eq!(pause(4_000, least), Duration::from_secs(8));
    }
}
