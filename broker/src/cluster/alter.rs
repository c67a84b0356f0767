//! Changes of topics' configurations: what they come to is pure, a function of the topic and the change.
//!
//! Promise: a change is made as a whole or not at all, and only to what `topic_config` takes. Changes of
//! different keys that are asked for at once all hold: a command says what is to change, not what comes of it.
//! Not here: who may ask, and what open partitions do about it (`reconcile`).

use super::controller::Cluster;
use super::features::AboveLevel;
use super::state::{Answer, ClusterState, Command, Refusal, Topic, TopicId};
use crate::topic_config::{self, Kind, TopicConfig};
use logd_proto::Uuid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::info;

/// How long an answer waits until this broker's own replicas go by the change: it is made either way.
pub(super) const APPLIED_PATIENCE: Duration = Duration::from_secs(5);

/// What is to become of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigChange {
    Set(String),
    /// Back to what holds where the topic says nothing.
    Delete,
    /// Words with commas between them, added to a list.
    Append(String),
    Subtract(String),
}

/// What is to become of a topic's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alteration {
    /// What is not named goes back to its default.
    #[serde(default)]
    pub replace: bool,
    pub changes: BTreeMap<String, ConfigChange>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AlterTopicError {
    #[error("there is no such topic")]
    UnknownTopic,
    #[error("{0}")]
    InvalidConfig(String),
    #[error("{0} is no list, so nothing can be appended to it or subtracted from it; set it")]
    NotAList(String),
    #[error(transparent)]
    AboveLevel(#[from] AboveLevel),
    #[error("{0}")]
    Unavailable(String),
}

impl From<topic_config::ConfigError> for AlterTopicError {
    fn from(error: topic_config::ConfigError) -> Self {
        Self::InvalidConfig(error.to_string())
    }
}

/// What the topic would say for itself, and what that means.
fn altered(
    topic: &Topic,
    wanted: &Alteration,
) -> Result<(BTreeMap<String, String>, TopicConfig), AlterTopicError> {
    let mut overrides = match wanted.replace {
        true => BTreeMap::new(),
        false => topic.overrides.clone(),
    };
    for (key, change) in &wanted.changes {
        match change {
            ConfigChange::Set(value) => drop(overrides.insert(key.clone(), value.clone())),
            ConfigChange::Delete => drop(overrides.remove(key)),
            ConfigChange::Append(words) => {
                let list = list(&overrides, key)?;
                overrides.insert(key.clone(), added(&list, words));
            }
            ConfigChange::Subtract(words) => {
                let list = list(&overrides, key)?;
                overrides.insert(key.clone(), taken_from(&list, words));
            }
        }
    }
    let config = TopicConfig::parse(&overrides)?;
    // A topic that lost replicas since may still have its other configurations changed.
    if config.min_insync_replicas() != topic.config.min_insync_replicas() {
        config.check_replicas(fewest_replicas(topic))?;
    }
    Ok((overrides, config))
}

/// Replicas of the partition that has the fewest.
pub(super) fn fewest_replicas(topic: &Topic) -> i16 {
    let fewest = topic.partitions.iter().map(Vec::len).min();
    let fewest = fewest.and_then(|f| i16::try_from(f).ok());
    fewest.unwrap_or(i16::MAX)
}

fn split(words: &str) -> impl Iterator<Item = String> {
    let words = words.split(',').map(str::trim);
    words.filter(|w| !w.is_empty()).map(str::to_owned)
}

/// The words of a list, and others behind them that were not among them.
pub(super) fn added(list: &str, words: &str) -> String {
    let mut all: Vec<String> = split(list).collect();
    let new: Vec<String> = split(words).filter(|w| !all.contains(w)).collect();
    all.extend(new);
    all.join(",")
}

pub(super) fn taken_from(list: &str, words: &str) -> String {
    let kept = split(list).filter(|word| !split(words).any(|w| w == *word));
    kept.collect::<Vec<_>>().join(",")
}

/// The list as it is now.
fn list(overrides: &BTreeMap<String, String>, key: &str) -> Result<String, AlterTopicError> {
    let (kind, default) = topic_config::usual(key)?;
    if kind != Kind::List {
        return Err(AlterTopicError::NotAList(key.to_owned()));
    }
    Ok(overrides.get(key).map_or(default.to_owned(), String::clone))
}

impl ClusterState {
    pub(super) fn alter_config(&mut self, id: Uuid, wanted: &Alteration) -> Answer {
        let Some(topic) = self.topics.get_mut(&id) else {
            return Answer::Refused(Refusal::UnknownTopic);
        };
        match altered(topic, wanted) {
            Ok((overrides, config)) => {
                let topic = Arc::make_mut(topic);
                topic.overrides = overrides;
                topic.config = Arc::new(config);
                Answer::Done
            }
            // Whoever asked has been told so before; this is a race that was lost.
            Err(why) => Answer::Refused(Refusal::Config(why.to_string())),
        }
    }
}

impl Cluster {
    /// Changes a topic's configuration, in the whole cluster; this broker's replicas go by it when the
    /// answer comes, the others' a moment later. `validate_only`: only says whether it could be done.
    ///
    /// # Errors
    /// If there is no such topic, the change cannot be honoured, or the metadata group does not take it.
    pub async fn alter_topic(
        &self,
        name: &str,
        wanted: Alteration,
        validate_only: bool,
    ) -> Result<(), AlterTopicError> {
        let view = self.view();
        let topic = view.topic(name).ok_or(AlterTopicError::UnknownTopic)?;
        let (_, config) = altered(topic, &wanted)?;
        // What the topic does not say any more is said by the brokers, who may ask for more.
        if config.min_insync_replicas() != topic.config.min_insync_replicas() {
            self.over_defaults(&config)
                .check_replicas(fewest_replicas(topic))?;
        }
        if validate_only {
            return Ok(());
        }
        let keys: Vec<String> = wanted.changes.keys().cloned().collect();
        let command = Command::AlterConfig {
            topic: TopicId(topic.id),
            alteration: wanted,
        };
        match self.propose(command).await {
            Ok(Answer::Done) => {
                info!(topic = name, ?keys, "topic configuration changed");
                self.gone_by(&topic.id).await;
                Ok(())
            }
            Ok(Answer::Refused(Refusal::UnknownTopic)) => Err(AlterTopicError::UnknownTopic),
            Ok(Answer::Refused(Refusal::AboveLevel(why))) => Err(why.into()),
            Ok(Answer::Refused(why)) => Err(AlterTopicError::InvalidConfig(why.to_string())),
            Ok(other) => Err(AlterTopicError::Unavailable(format!(
                "unexpected answer {other:?}"
            ))),
            Err(error) => Err(AlterTopicError::Unavailable(error.to_string())),
        }
    }

    /// Waits until the topic's replicas here go by what the metadata says, or for as long as that is worth.
    async fn gone_by(&self, id: &Uuid) {
        let mut rounds = self.reconciled.clone();
        let all_go_by = async {
            loop {
                rounds.mark_unchanged();
                if self.all_go_by(id) || rounds.changed().await.is_err() {
                    return;
                }
            }
        };
        // The change is made; whoever asks does not wait for a broker that is busy.
        drop(tokio::time::timeout(APPLIED_PATIENCE, all_go_by).await);
    }

    fn all_go_by(&self, id: &Uuid) -> bool {
        let view = self.view();
        let Some(topic) = view.topic_by_id(id) else {
            return true;
        };
        let indexes = 0..topic.partitions.len() as i32;
        let mut here = indexes.filter_map(|index| self.registry.get(id, index));
        here.all(|p| p.config().asks_as(&topic.config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::targets::tests::cluster;

    fn id() -> Uuid {
        Uuid::from_bytes([1; 16])
    }

    fn changes(pairs: &[(&str, ConfigChange)]) -> BTreeMap<String, ConfigChange> {
        let pairs = pairs.iter();
        pairs.map(|(k, c)| ((*k).to_owned(), c.clone())).collect()
    }

    fn alter(s: &mut ClusterState, replace: bool, pairs: &[(&str, ConfigChange)]) -> Answer {
        s.apply(Command::AlterConfig {
            topic: TopicId(id()),
            alteration: Alteration {
                replace,
                changes: changes(pairs),
            },
        })
    }

    fn set(value: &str) -> ConfigChange {
        ConfigChange::Set(value.into())
    }

    fn overrides(s: &ClusterState) -> Vec<(&str, &str)> {
        let all = &s.topic("t").unwrap().overrides;
        all.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
    }

    #[test]
    fn changes_of_different_keys_all_hold_and_one_can_be_taken_back() {
        let mut s = cluster(&[1]);
        assert_eq!(
            alter(&mut s, false, &[("retention.ms", set("5"))]),
            Answer::Done
        );
        assert_eq!(
            alter(&mut s, false, &[("segment.ms", set("7"))]),
            Answer::Done
        );
        assert_eq!(overrides(&s), [("retention.ms", "5"), ("segment.ms", "7")]);
        alter(&mut s, false, &[("retention.ms", ConfigChange::Delete)]);
        assert_eq!(overrides(&s), [("segment.ms", "7")]);
        let policy = s.topic("t").unwrap().config.retention_policy().unwrap();
        assert_eq!(policy.max_age_ms, Some(604_800_000), "the default again");
        assert_eq!(ClusterState::decode(&s.encode().unwrap()).unwrap(), s);
    }

    #[test]
    fn replacing_forgets_what_is_not_named() {
        let mut s = cluster(&[1]);
        alter(&mut s, false, &[("retention.ms", set("5"))]);
        alter(&mut s, true, &[("segment.ms", set("7"))]);
        assert_eq!(overrides(&s), [("segment.ms", "7")]);
    }

    #[test]
    fn lists_grow_from_their_default_and_shrink() {
        let mut s = cluster(&[1]);
        let key = "cleanup.policy";
        alter(
            &mut s,
            false,
            &[(key, ConfigChange::Append("compact,delete".into()))],
        );
        assert_eq!(overrides(&s), [(key, "delete,compact")]);
        alter(
            &mut s,
            false,
            &[(key, ConfigChange::Subtract("delete".into()))],
        );
        assert_eq!(overrides(&s), [(key, "compact")]);
        assert!(s.topic("t").unwrap().config.is_compacted());
    }

    #[test]
    fn trap_35_appending_to_what_is_no_list_is_refused_and_changes_nothing() {
        let mut s = cluster(&[1]);
        for change in [
            ConfigChange::Append("1".into()),
            ConfigChange::Subtract("1".into()),
        ] {
            let refused = alter(
                &mut s,
                false,
                &[("retention.ms", change), ("segment.ms", set("7"))],
            );
            assert!(matches!(refused, Answer::Refused(Refusal::Config(_))));
        }
        assert_eq!(overrides(&s), []);
    }

    #[test]
    fn a_change_is_made_as_a_whole_or_not_at_all() {
        let mut s = cluster(&[1]);
        for bad in [
            ("retention.ms", "soon"),
            ("no.such.key", "1"),
            ("min.insync.replicas", "2"),
            ("compression.type", "lzma"),
        ] {
            let pairs = [("segment.ms", set("7")), (bad.0, set(bad.1))];
            let refused = alter(&mut s, false, &pairs);
            assert!(
                matches!(&refused, Answer::Refused(Refusal::Config(why)) if why.contains(bad.0)),
                "{refused:?}"
            );
        }
        assert_eq!(overrides(&s), []);
    }

    #[test]
    fn what_is_not_there_can_be_deleted() {
        let mut s = cluster(&[1]);
        let deleted = alter(&mut s, false, &[("no.such.key", ConfigChange::Delete)]);
        assert_eq!(deleted, Answer::Done);
    }

    #[test]
    fn a_topic_that_is_gone_is_not_changed() {
        let mut s = cluster(&[1]);
        s.apply(Command::DeleteTopic { id: TopicId(id()) });
        let refused = alter(&mut s, false, &[("segment.ms", set("7"))]);
        assert_eq!(refused, Answer::Refused(Refusal::UnknownTopic));
    }

    #[test]
    fn the_command_keeps_its_written_form() {
        let command = Command::AlterConfig {
            topic: TopicId(id()),
            alteration: Alteration {
                replace: false,
                changes: changes(&[
                    ("a", set("1")),
                    ("b", ConfigChange::Delete),
                    ("c", ConfigChange::Append("x".into())),
                ]),
            },
        };
        let text = serde_json::to_string(&command).unwrap();
        assert_eq!(
            text,
            r#"{"alter_config":{"topic":"01010101010101010101010101010101","alteration":{"replace":false,"changes":{"a":{"set":"1"},"b":"delete","c":{"append":"x"}}}}}"#
        );
        assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), command);
    }
}
