//! The partitions that this broker holds. One owner adds and removes them: the cluster's reconciler.

use super::Partition;
use logd_proto::Uuid;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Debug, Default)]
pub struct Registry {
    by_key: RwLock<HashMap<(Uuid, i32), Arc<Partition>>>,
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

    pub fn is_empty(&self) -> bool {
        self.by_key.read().is_empty()
    }

    pub fn insert(&self, partition: Arc<Partition>) {
        self.by_key
            .write()
            .insert((partition.topic_id(), partition.index()), partition);
    }

    pub fn remove(&self, topic: &Uuid, index: i32) -> Option<Arc<Partition>> {
        self.by_key.write().remove(&(*topic, index))
    }
}
