//! Settings of brokers that are set while they run: kept in the metadata, for all brokers or for one.
//!
//! Promise: a change is made as a whole or not at all, and is true here when it is answered. Changes of different
//! keys that are asked for at once all hold.
//! Invariant: what the state comes to depends on the commands alone, not on what this broker's version knows of
//! settings; whether a setting can hold is found out before it is proposed, and by each broker that goes by it.
//! Not here: what settings there are, and what goes by them (`settings`, `node`).

use super::alter::{
    APPLIED_PATIENCE, Alteration, ConfigChange, added, fewest_replicas, taken_from,
};
use super::controller::Cluster;
use super::features::AboveLevel;
use super::state::{Answer, ClusterState, Command, Refusal};
use crate::settings::{self, Said, SettingError};
use crate::topic_config::{self, TopicConfig, TopicDefaults};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tracing::{info, warn};

/// The one default that is a promise about a topic's replicas: brokers must not differ in it.
const MIN_INSYNC: &str = "min.insync.replicas";

/// What is to become of the settings of one broker, or of all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerAlteration {
    /// Absent: of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<i32>,
    pub alteration: Alteration,
    /// What lists that are appended to or subtracted from begin with, if nothing was set before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lists: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AlterBrokerError {
    #[error("there is no broker {0}")]
    UnknownBroker(i32),
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error(
        "min.insync.replicas is a promise of the whole cluster: set it for all brokers, or for topics"
    )]
    OfAllOnly,
    #[error("topic {topic}, which does not say it itself, could not keep it: {why}")]
    TopicCannot {
        topic: String,
        why: topic_config::ConfigError,
    },
    #[error(transparent)]
    AboveLevel(#[from] AboveLevel),
    #[error("{0}")]
    Unavailable(String),
}

/// What would be set then.
fn altered(said: &Said, wanted: &BrokerAlteration) -> BTreeMap<String, String> {
    let mut values = match wanted.alteration.replace {
        true => BTreeMap::new(),
        false => said.of(wanted.broker),
    };
    for (key, change) in &wanted.alteration.changes {
        let begin = || {
            let usual = wanted.lists.get(key).map_or("", String::as_str);
            values.get(key).map_or(usual, String::as_str)
        };
        let next = match change {
            ConfigChange::Set(value) => Some(value.trim().to_owned()),
            ConfigChange::Delete => None,
            ConfigChange::Append(words) => Some(added(begin(), words)),
            ConfigChange::Subtract(words) => Some(taken_from(begin(), words)),
        };
        match next {
            Some(value) => drop(values.insert(key.clone(), value)),
            None => drop(values.remove(key)),
        }
    }
    values
}

impl ClusterState {
    pub(super) fn alter_brokers(&mut self, wanted: &BrokerAlteration) -> Answer {
        if let Some(id) = wanted.broker
            && !self.brokers.contains_key(&id)
        {
            return Answer::Refused(Refusal::UnknownBroker(id));
        }
        let values = altered(&self.settings, wanted);
        if values != self.settings.of(wanted.broker) {
            Arc::make_mut(&mut self.settings).set(wanted.broker, values);
        }
        Answer::Done
    }
}

/// The same, by the names that settings are kept under, with what its lists begin with.
fn named(
    said: &Arc<Said>,
    broker: Option<i32>,
    wanted: Alteration,
) -> Result<BrokerAlteration, SettingError> {
    let changes = wanted.changes.into_iter();
    let changes: BTreeMap<String, ConfigChange> = changes
        .map(|(key, change)| (settings::name_of(&key).to_owned(), change))
        .collect();
    let mut lists = BTreeMap::new();
    for (key, change) in &changes {
        if matches!(change, ConfigChange::Append(_) | ConfigChange::Subtract(_)) {
            lists.insert(key.clone(), settings::list_here(said, broker, key)?);
        }
    }
    Ok(BrokerAlteration {
        broker,
        alteration: Alteration {
            replace: wanted.replace,
            changes,
        },
        lists,
    })
}

/// Whoever looks here for why a setting does nothing finds that it was known.
fn warn_of_unused(set: &[String]) {
    for unused in set.iter().filter_map(|name| settings::unused_of(name)) {
        let (name, why) = (unused.name, unused.meaning);
        warn!(
            name,
            why, "a setting was set that has no effect here; it is kept for tools"
        );
    }
}

/// Topics that say nothing themselves must be able to keep what is to hold for them.
fn check_topics(state: &ClusterState, defaults: &TopicDefaults) -> Result<(), AlterBrokerError> {
    for topic in state.topics.values() {
        let config = topic.config.over(defaults);
        if let Err(why) = config.check_replicas(fewest_replicas(topic)) {
            let topic = topic.name.clone();
            return Err(AlterBrokerError::TopicCannot { topic, why });
        }
    }
    Ok(())
}

impl Cluster {
    /// Sets and takes back settings of one broker, or of all; this broker goes by them when the answer comes, the
    /// others a moment later. `validate_only`: only says whether it could be done.
    ///
    /// # Errors
    /// If there is no such broker, the settings cannot be those, or the metadata group does not take it.
    pub async fn alter_brokers(
        &self,
        broker: Option<i32>,
        wanted: Alteration,
        validate_only: bool,
    ) -> Result<(), AlterBrokerError> {
        let view = self.view();
        if let Some(id) = broker.filter(|id| !view.brokers.contains_key(id)) {
            return Err(AlterBrokerError::UnknownBroker(id));
        }
        let mut wanted = named(&view.settings, broker, wanted)?;
        let kept = self.check_setting(&view, &wanted)?;
        for (name, change) in &mut wanted.alteration.changes {
            if let (ConfigChange::Set(value), Some(kept)) = (change, kept.get(name)) {
                value.clone_from(kept);
            }
        }
        if validate_only {
            return Ok(());
        }
        let keys: Vec<String> = wanted.alteration.changes.keys().cloned().collect();
        let set: Vec<String> = kept.into_keys().collect();
        match self.propose(Command::AlterBrokers(wanted)).await {
            Ok(Answer::Done) => {
                info!(?broker, ?keys, "settings of brokers changed");
                warn_of_unused(&set);
                self.goes_by_settings().await;
                Ok(())
            }
            Ok(Answer::Refused(Refusal::UnknownBroker(id))) => {
                Err(AlterBrokerError::UnknownBroker(id))
            }
            Ok(Answer::Refused(Refusal::AboveLevel(why))) => Err(why.into()),
            Ok(other) => Err(AlterBrokerError::Unavailable(format!(
                "unexpected answer {other:?}"
            ))),
            Err(error) => Err(AlterBrokerError::Unavailable(error.to_string())),
        }
    }

    /// What is to be set, in the form in which it is kept.
    fn check_setting(
        &self,
        view: &ClusterState,
        wanted: &BrokerAlteration,
    ) -> Result<BTreeMap<String, String>, AlterBrokerError> {
        let mut after = (*view.settings).clone();
        after.set(wanted.broker, altered(&view.settings, wanted));
        let keys = wanted.alteration.changes.keys();
        let named: BTreeSet<String> = keys.cloned().collect();
        let kept = settings::check(&self.settings.now(), wanted.broker, &named, &after)?;
        if !named.contains(MIN_INSYNC) || !after.of(wanted.broker).contains_key(MIN_INSYNC) {
            return Ok(kept);
        }
        if wanted.broker.is_some() {
            return Err(AlterBrokerError::OfAllOnly);
        }
        check_topics(view, &settings::topics_of_all(&after))?;
        Ok(kept)
    }

    /// Waits until this broker's replicas go by what was set, or for as long as that is worth.
    async fn goes_by_settings(&self) {
        let mut rounds = self.reconciled.clone();
        let mut next = self.settings.watch();
        let all_go_by = async {
            loop {
                rounds.mark_unchanged();
                next.mark_unchanged();
                if self.all_go_by_settings() {
                    return;
                }
                let gone = tokio::select! {
                    changed = rounds.changed() => changed.is_err(),
                    changed = next.changed() => changed.is_err(),
                };
                if gone {
                    return;
                }
            }
        };
        // The change is made; whoever asks does not wait for a broker that is busy.
        drop(tokio::time::timeout(APPLIED_PATIENCE, all_go_by).await);
    }

    fn all_go_by_settings(&self) -> bool {
        let now = self.settings.now();
        let mut here = self.registry.all().into_iter();
        *now.said == *self.view().settings && here.all(|p| *p.config().defaults() == now.topics)
    }

    /// A topic's configuration as this broker would have it.
    pub(super) fn over_defaults(&self, config: &TopicConfig) -> TopicConfig {
        config.over(&self.settings.now().topics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::targets::tests::cluster;

    fn alter(s: &mut ClusterState, broker: Option<i32>, pairs: &[(&str, ConfigChange)]) -> Answer {
        let pairs = pairs.iter();
        let changes = pairs.map(|(k, c)| ((*k).to_owned(), c.clone())).collect();
        let alteration = Alteration {
            replace: false,
            changes,
        };
        s.apply(Command::AlterBrokers(BrokerAlteration {
            broker,
            alteration,
            lists: BTreeMap::from([("log.cleanup.policy".to_owned(), "delete".to_owned())]),
        }))
    }

    fn set(value: &str) -> ConfigChange {
        ConfigChange::Set(value.into())
    }

    #[test]
    fn what_is_set_for_one_and_for_all_is_kept_apart_and_in_the_snapshot() {
        let mut s = cluster(&[1, 2]);
        assert_eq!(
            alter(&mut s, None, &[("a", set("1")), ("b", set("2"))]),
            Answer::Done
        );
        assert_eq!(alter(&mut s, Some(2), &[("a", set("3"))]), Answer::Done);
        assert_eq!(s.settings.all["a"], "1");
        assert_eq!(s.settings.each[&2]["a"], "3");
        assert_eq!(ClusterState::decode(&s.encode().unwrap()).unwrap(), s);
        alter(&mut s, Some(2), &[("a", ConfigChange::Delete)]);
        alter(&mut s, None, &[("a", ConfigChange::Delete)]);
        assert_eq!(s.settings.all.len(), 1);
        assert!(s.settings.each.is_empty(), "{:?}", s.settings);
    }

    #[test]
    fn lists_grow_from_what_they_are_and_shrink() {
        let mut s = cluster(&[1]);
        let key = "log.cleanup.policy";
        alter(
            &mut s,
            None,
            &[(key, ConfigChange::Append("compact".into()))],
        );
        assert_eq!(s.settings.all[key], "delete,compact");
        alter(
            &mut s,
            None,
            &[(key, ConfigChange::Subtract("delete".into()))],
        );
        assert_eq!(s.settings.all[key], "compact");
    }

    #[test]
    fn a_broker_there_is_not_has_no_settings_and_one_that_left_has_none_any_more() {
        let mut s = cluster(&[1]);
        let refused = alter(&mut s, Some(9), &[("a", set("1"))]);
        assert_eq!(refused, Answer::Refused(Refusal::UnknownBroker(9)));
        assert!(s.settings.is_empty());
    }

    #[test]
    fn replacing_forgets_what_is_not_named() {
        let mut s = cluster(&[1]);
        alter(&mut s, None, &[("a", set("1"))]);
        s.apply(Command::AlterBrokers(BrokerAlteration {
            broker: None,
            alteration: Alteration {
                replace: true,
                changes: BTreeMap::from([("b".to_owned(), set("2"))]),
            },
            lists: BTreeMap::new(),
        }));
        assert_eq!(s.settings.all.keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn the_command_keeps_its_written_form_and_older_snapshots_decode() {
        let command = Command::AlterBrokers(BrokerAlteration {
            broker: Some(2),
            alteration: Alteration {
                replace: false,
                changes: BTreeMap::from([("a".to_owned(), set("1"))]),
            },
            lists: BTreeMap::new(),
        });
        let text = serde_json::to_string(&command).unwrap();
        assert_eq!(
            text,
            r#"{"alter_brokers":{"broker":2,"alteration":{"replace":false,"changes":{"a":{"set":"1"}}}}}"#
        );
        assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), command);
        let older =
            r#"{"cluster":null,"brokers":[],"topics":[],"tombstones":[],"next_producer_id":0}"#;
        let decoded = ClusterState::decode(older.as_bytes()).unwrap();
        assert!(decoded.settings.is_empty());
        let again = String::from_utf8(decoded.encode().unwrap()).unwrap();
        assert!(
            !again.contains("settings"),
            "nothing is written where nothing is set: {again}"
        );
    }

    #[test]
    fn a_promise_that_a_topic_cannot_keep_is_not_made_for_it() {
        let s = cluster(&[1]);
        let all = |value: &str| {
            let mut said = Said::default();
            said.all.insert(MIN_INSYNC.into(), value.into());
            settings::topics_of_all(&said)
        };
        assert_eq!(check_topics(&s, &all("1")), Ok(()));
        let refused = check_topics(&s, &all("2"));
        assert!(
            matches!(refused, Err(AlterBrokerError::TopicCannot { .. })),
            "{refused:?}"
        );
    }
}
