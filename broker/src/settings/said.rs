//! What was set while brokers ran, by Kafka's names for it: the part of it that the cluster keeps.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// For all brokers, and for single ones by their number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub all: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub each: BTreeMap<i32, BTreeMap<String, String>>,
}

impl Said {
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.each.is_empty()
    }

    /// What was set for one broker, or for all.
    pub fn of(&self, broker: Option<i32>) -> BTreeMap<String, String> {
        match broker {
            None => self.all.clone(),
            Some(id) => self.each.get(&id).cloned().unwrap_or_default(),
        }
    }

    pub fn set(&mut self, broker: Option<i32>, values: BTreeMap<String, String>) {
        match broker {
            None => self.all = values,
            Some(id) if values.is_empty() => drop(self.each.remove(&id)),
            Some(id) => drop(self.each.insert(id, values)),
        }
    }
}
