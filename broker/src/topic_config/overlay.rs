//! What was set for topics' defaults while brokers ran, for all of them or for one.
//!
//! Invariant: every value has passed its table row. Not here: who set it, and where it is kept.

use super::table::{Kind, Row, Rule, TABLE};
use super::{ConfigError, Source};
use std::collections::BTreeMap;
use std::sync::Arc;

/// By the topics' names for them; what beats the other comes first. Clones share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay(Arc<BTreeMap<&'static str, Vec<(Source, String)>>>);

impl Overlay {
    /// Takes values under the brokers' names, layer by layer, the strongest layer first. What is no topic's
    /// default, or not a value of it, is left out: whoever sets it has been told.
    pub fn new<'a>(
        layers: impl IntoIterator<Item = (Source, &'a BTreeMap<String, String>)>,
    ) -> Self {
        let mut all: BTreeMap<&'static str, Vec<(Source, String)>> = BTreeMap::new();
        for (source, values) in layers {
            for (name, value) in values {
                let row = row_of(name);
                if let Some((row, Ok(value))) = row.map(|row| (row, row.check(value))) {
                    all.entry(row.name).or_default().push((source, value));
                }
            }
        }
        Self(Arc::new(all))
    }

    /// What holds for topics that say nothing, if anything was set.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.get(name)?.first()?;
        Some(value)
    }

    /// All that was set for one, what beats the other first.
    pub(super) fn layers(&self, name: &str) -> &[(Source, String)] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }
}

fn row_of(broker_name: &str) -> Option<&'static Row> {
    let named = TABLE.iter().filter(|row| !row.broker_name.is_empty());
    named.into_iter().find(|row| row.broker_name == broker_name)
}

/// The brokers' names for what topics have that say nothing, and whether another value can be set.
pub fn names_of_broker() -> impl Iterator<Item = (&'static str, bool)> {
    let named = TABLE.iter().filter(|row| !row.broker_name.is_empty());
    named.map(|row| (row.broker_name, !matches!(row.rule, Rule::Only(..))))
}

/// Whether a topic's default, under the brokers' name for it, can be this. `None`: it is no such name.
pub fn check_default(broker_name: &str, value: &str) -> Option<Result<String, ConfigError>> {
    row_of(broker_name).map(|row| row.check(value))
}

/// The words of a list of the brokers' where nobody says anything; `None` for what is no list.
pub fn list_of(broker_name: &str) -> Option<&'static str> {
    let list = row_of(broker_name).filter(|row| row.kind == Kind::List);
    list.map(|row| row.default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic_config::{TopicConfig, TopicDefaults};

    fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn over(one: &[(&str, &str)], all: &[(&str, &str)]) -> TopicDefaults {
        let (one, all) = (values(one), values(all));
        let layers = [(Source::BrokerNow, &one), (Source::AllBrokersNow, &all)];
        TopicDefaults {
            retention_ms: 5,
            overlay: Overlay::new(layers),
            ..TopicDefaults::default()
        }
    }

    #[test]
    fn what_is_set_for_one_broker_beats_what_is_set_for_all_beats_the_file() {
        let age = |defaults: &TopicDefaults| {
            let config = TopicConfig::default().over(defaults);
            config.retention_policy().and_then(|p| p.max_age_ms)
        };
        assert_eq!(age(&over(&[], &[])), Some(5));
        let all = [("log.retention.ms", "6")];
        assert_eq!(age(&over(&[], &all)), Some(6));
        let both = over(&[("log.retention.ms", "7")], &all);
        assert_eq!(age(&both), Some(7));
        let said = TopicConfig::parse(&values(&[("retention.ms", "8")])).unwrap();
        let policy = said.over(&both).retention_policy().unwrap();
        assert_eq!(policy.max_age_ms, Some(8), "the topic's own beats them all");
    }

    #[test]
    fn each_layer_shows_in_the_order_in_which_they_hold() {
        let both = over(&[("log.retention.ms", "7")], &[("log.retention.ms", "6")]);
        let all = TopicConfig::default().over(&both).described();
        let shown = all.iter().find(|d| d.name == "retention.ms").unwrap();
        let layers: Vec<_> = shown.layers.iter().map(|l| (&*l.value, l.source)).collect();
        assert_eq!(
            layers,
            [
                ("7", Source::BrokerNow),
                ("6", Source::AllBrokersNow),
                ("5", Source::Broker),
                ("604800000", Source::Default),
            ]
        );
    }

    #[test]
    fn what_no_topic_has_is_left_out_and_so_is_what_cannot_be() {
        let none = over(
            &[("log.retention.ms", "soon"), ("num.partitions", "3")],
            &[],
        );
        assert_eq!(none.overlay, Overlay::default());
    }

    #[test]
    fn words_beside_numbers_change_too() {
        let zstd = over(&[], &[("compression.type", "zstd")]);
        assert!(TopicConfig::default().over(&zstd).stored_as().is_some());
        let compact = over(&[], &[("log.cleanup.policy", "compact")]);
        assert!(TopicConfig::default().over(&compact).is_compacted());
    }
}
