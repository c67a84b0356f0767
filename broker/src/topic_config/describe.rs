//! Configurations as clients are shown them: the value that holds, and what would hold without it.
//!
//! Promise: the first layer of a [`Described`] is the value this broker goes by.
//! Not here: Kafka's numbers for kinds and sources.

use super::table::{Kind, Row, Rule, TABLE};
use super::{TopicConfig, TopicDefaults, static_default_of};

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The topic says so.
    Topic,
    /// The group says so.
    Group,
    /// It was set for this broker while it ran.
    BrokerNow,
    /// It was set for all brokers while they ran.
    AllBrokersNow,
    /// This broker's settings say so, since it started.
    Broker,
    /// Nobody says anything.
    Default,
}

/// One of the values that a configuration has or would have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its name there: brokers have other names for most.
    pub name: String,
    pub value: String,
    pub source: Source,
}

/// One configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub name: String,
    pub kind: Kind,
    /// No other value can be set.
    pub read_only: bool,
    pub documentation: String,
    /// What holds, then what would hold without that, and so on; at least one.
    pub layers: Vec<Layer>,
}

impl Described {
    /// What holds.
    pub fn value(&self) -> &str {
        self.layers.first().map_or("", |l| &l.value)
    }

    /// Where that comes from.
    pub fn source(&self) -> Source {
        self.layers.first().map_or(Source::Default, |l| l.source)
    }
}

impl TopicConfig {
    /// Every configuration of the topic, by name.
    pub fn described(&self) -> Vec<Described> {
        TABLE.iter().map(|row| self.describe(row)).collect()
    }

    fn describe(&self, row: &Row) -> Described {
        let own = self.asked.get(row.name).map(|value| Layer {
            name: row.name.to_owned(),
            value: value.clone(),
            source: Source::Topic,
        });
        Described {
            name: row.name.to_owned(),
            kind: row.kind,
            read_only: matches!(row.rule, Rule::Only(..)),
            documentation: documentation(row),
            layers: own
                .into_iter()
                .chain(broker_layers(row, &self.defaults))
                .collect(),
        }
    }
}

/// What topics of this broker have that say nothing, under the names that Kafka's brokers have for it.
pub fn of_broker(defaults: &TopicDefaults) -> Vec<Described> {
    let named = TABLE.iter().filter(|row| !row.broker_name.is_empty());
    named
        .map(|row| Described {
            name: row.broker_name.to_owned(),
            kind: row.kind,
            read_only: matches!(row.rule, Rule::Only(..)),
            documentation: documentation(row),
            layers: broker_layers(row, defaults),
        })
        .collect()
}

fn broker_layers(row: &Row, defaults: &TopicDefaults) -> Vec<Layer> {
    let name = match row.broker_name {
        "" => row.name,
        known => known,
    };
    let layer = |value: String, source| Layer {
        name: name.to_owned(),
        value,
        source,
    };
    let set = defaults.overlay.layers(row.name).iter();
    let set = set.map(|(source, value)| layer(value.clone(), *source));
    let (here, anywhere) = (
        static_default_of(row.name, defaults),
        row.default.to_owned(),
    );
    let set_here = (here != anywhere).then(|| layer(here, Source::Broker));
    set.chain(set_here)
        .chain([layer(anywhere, Source::Default)])
        .collect()
}

fn documentation(row: &Row) -> String {
    let what = match row.rule {
        Rule::Only(_, why) => why,
        _ => row.meaning,
    };
    format!("{what}. It takes {}.", row.rule.takes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn of(asked: &[(&str, &str)], defaults: TopicDefaults, name: &str) -> Described {
        let asked: BTreeMap<String, String> = asked
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let config = TopicConfig::parse(&asked).unwrap().over(&defaults);
        let mut all = config.described();
        all.retain(|d| d.name == name);
        all.remove(0)
    }

    fn layers(described: &Described) -> Vec<(&str, &str, Source)> {
        let layers = described.layers.iter();
        layers
            .map(|l| (l.name.as_str(), l.value.as_str(), l.source))
            .collect()
    }

    #[test]
    fn each_layer_shows_what_would_hold_without_those_before_it() {
        let broker = TopicDefaults {
            retention_ms: 5,
            ..TopicDefaults::default()
        };
        let described = of(&[("retention.ms", "7")], broker, "retention.ms");
        assert_eq!(
            (described.value(), described.source()),
            ("7", Source::Topic)
        );
        assert_eq!(
            layers(&described),
            [
                ("retention.ms", "7", Source::Topic),
                ("log.retention.ms", "5", Source::Broker),
                ("log.retention.ms", "604800000", Source::Default),
            ]
        );
    }

    #[test]
    fn a_default_is_one_layer_also_if_the_topic_says_the_same() {
        let untouched = of(&[], TopicDefaults::default(), "segment.bytes");
        assert_eq!(untouched.source(), Source::Default);
        assert_eq!(untouched.layers.len(), 1);
        let said = of(
            &[("segment.bytes", "134217728")],
            TopicDefaults::default(),
            "segment.bytes",
        );
        assert_eq!(said.source(), Source::Topic);
    }

    #[test]
    fn what_takes_one_value_only_is_read_only_and_says_why() {
        let fixed = of(&[], TopicDefaults::default(), "preallocate");
        assert!(fixed.read_only);
        assert!(fixed.documentation.contains("full disk"), "{fixed:?}");
        assert!(!of(&[], TopicDefaults::default(), "retention.ms").read_only);
    }

    #[test]
    fn everything_is_documented_and_of_a_kind_that_its_default_has() {
        for described in TopicConfig::default().described() {
            assert!(described.documentation.len() > 20, "{described:?}");
            let value = described.value();
            let fits = match described.kind {
                Kind::Boolean => value.parse::<bool>().is_ok(),
                Kind::Int => value.parse::<i32>().is_ok(),
                Kind::Short => value.parse::<i16>().is_ok(),
                Kind::Long => value.parse::<i64>().is_ok(),
                Kind::Double => value.parse::<f64>().is_ok(),
                Kind::String | Kind::List => true,
            };
            assert!(fits, "{described:?}");
        }
    }

    #[test]
    fn brokers_show_their_topics_defaults_under_their_own_names() {
        let all = of_broker(&TopicDefaults::default());
        let value = |name: &str| all.iter().find(|d| d.name == name).map(Described::value);
        assert_eq!(value("message.max.bytes"), Some("1048588"));
        assert_eq!(value("min.insync.replicas"), Some("1"));
        assert_eq!(value("remote.storage.enable"), None);
    }
}
