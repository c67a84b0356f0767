//! This broker's settings as Kafka's clients are shown them: under Kafka's names where it has one for them,
//! under `logd.` and our own where it has none.
//!
//! Promise: what is shown is what this broker goes by, with what would hold without it; what needs a restart is
//! read-only, and says so.

use super::now::Now;
use super::table::{Applies, FIXED, Row, TABLE};
use super::unused::{Unused, unused_of};
use crate::config::{Raw, texts};
use crate::topic_config::{Described, Kind, Layer, Source, names_of_broker, of_broker};
use std::collections::{BTreeMap, BTreeSet};

/// What a broker says that is no setting: some of it is found out at the start, some follows from settings.
const DERIVED: [&str; 6] = [
    "advertised.listeners",
    "broker.id",
    "delete.topic.enable",
    "listeners",
    "node.id",
    "offsets.topic.replication.factor",
];

pub(super) fn is_derived(name: &str) -> bool {
    DERIVED.contains(&name)
}

/// Every setting's value as text, by key: as it is, as the broker was started, as it is usually.
struct Values {
    now: BTreeMap<String, String>,
    started: BTreeMap<String, String>,
    usual: BTreeMap<String, String>,
}

impl Now {
    /// Every setting, and what else the broker says of itself, by name.
    pub fn described(&self, identity: &[Described]) -> Vec<Described> {
        let values = Values {
            now: texts(&self.raw),
            started: texts(&self.started),
            usual: texts(&Raw::default()),
        };
        let of_topics: Vec<&str> = names_of_broker().map(|(name, _)| name).collect();
        let own = TABLE.iter().filter(|row| !of_topics.contains(&row.name));
        let mut all: Vec<Described> = own.map(|row| self.describe(row, &values)).collect();
        all.extend(of_broker(&self.topics).into_iter().map(noted));
        all.extend(self.derived());
        all.extend(self.unused());
        all.extend_from_slice(identity);
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// What was set for all brokers while they ran, and nothing else.
    pub fn described_for_all(&self) -> Vec<Described> {
        let known = self.described(&[]);
        let set = self.said.all.iter();
        set.map(|(name, value)| {
            let known = known.iter().find(|d| d.name == *name);
            Described {
                name: name.clone(),
                kind: known.map_or(Kind::String, |d| d.kind),
                read_only: known.is_none_or(|d| d.read_only),
                documentation: known.map_or_else(
                    || "Not a setting of this broker's version.".to_owned(),
                    |d| d.documentation.clone(),
                ),
                layers: vec![layer(name, value, Source::AllBrokersNow)],
            }
        })
        .collect()
    }

    fn describe(&self, row: &Row, values: &Values) -> Described {
        let set = [
            (self.one.get(row.name), Source::BrokerNow),
            (self.all.get(row.name), Source::AllBrokersNow),
            (
                values
                    .started
                    .get(row.key)
                    .filter(|v| Some(*v) != values.usual.get(row.key)),
                Source::Broker,
            ),
            (values.usual.get(row.key), Source::Default),
        ];
        let mut layers: Vec<Layer> = set
            .into_iter()
            .filter_map(|(value, source)| Some(layer(row.name, value?, source)))
            .collect();
        // It may be written otherwise, or be less than was asked for.
        if let (Some(first), Some(here)) = (layers.first_mut(), values.now.get(row.key)) {
            first.value.clone_from(here);
        }
        Described {
            name: row.name.to_owned(),
            kind: row.kind,
            read_only: row.applies == Applies::AtRestart,
            documentation: format!("{} {}", row.meaning, row.applies.note()),
            layers,
        }
    }

    /// What was set although it has no effect, and nothing that was not.
    fn unused(&self) -> impl Iterator<Item = Described> {
        let names: BTreeSet<&String> = self.one.keys().chain(self.all.keys()).collect();
        let unused = names.into_iter().filter_map(|name| unused_of(name));
        unused.map(|unused| self.describe_unused(unused))
    }

    fn describe_unused(&self, unused: &Unused) -> Described {
        let set = [
            (self.one.get(unused.name), Source::BrokerNow),
            (self.all.get(unused.name), Source::AllBrokersNow),
        ];
        let layers = set.into_iter();
        Described {
            name: unused.name.to_owned(),
            kind: unused.kind,
            read_only: false,
            documentation: unused.documentation(),
            layers: layers
                .filter_map(|(value, source)| Some(layer(unused.name, value?, source)))
                .collect(),
        }
    }

    fn derived(&self) -> [Described; 2] {
        let replication = self.config.topics.default_replication_factor.to_string();
        let given = |name: &str, kind, value: &str, meaning: &str| Described {
            name: name.to_owned(),
            kind,
            read_only: true,
            documentation: format!("{meaning} {FIXED}"),
            layers: vec![layer(name, value, Source::Default)],
        };
        [
            given(
                "delete.topic.enable",
                Kind::Boolean,
                "true",
                "Topics can be deleted, always.",
            ),
            given(
                "offsets.topic.replication.factor",
                Kind::Short,
                &replication,
                "Replicas of __consumer_offsets, when it is created: default.replication.factor.",
            ),
        ]
    }
}

fn layer(name: &str, value: &str, source: Source) -> Layer {
    Layer {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    }
}

/// A topic's default says when a change of it applies, or that there is nothing to change.
fn noted(mut described: Described) -> Described {
    let note = match described.read_only {
        true => FIXED,
        false => Applies::AtOnce.note(),
    };
    described.documentation.push(' ');
    described.documentation.push_str(note);
    described
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::settings::Said;
    use std::sync::Arc;

    fn shown(change: impl FnOnce(&mut Raw), said: Said) -> Vec<Described> {
        let mut raw = Raw::default();
        change(&mut raw);
        let config = Config::try_from(raw).unwrap();
        let (now, left_out) = Now::resolve(&config, Some(3), Arc::new(said));
        assert_eq!(left_out, [""; 0]);
        now.described(&[])
    }

    fn of<'a>(all: &'a [Described], name: &str) -> Vec<(&'a str, Source)> {
        let found = all.iter().find(|d| d.name == name).unwrap();
        let layers = found.layers.iter();
        layers.map(|l| (l.value.as_str(), l.source)).collect()
    }

    fn set(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn what_was_set_is_told_from_what_is_usual() {
        let all = shown(|r| r.topics.default_partitions = 12, Said::default());
        assert_eq!(
            of(&all, "num.partitions"),
            [("12", Source::Broker), ("1", Source::Default)]
        );
        let usual = of(&all, "auto.create.topics.enable");
        assert_eq!(usual, [("true", Source::Default)]);
        let retention = shown(|r| r.topics.retention_ms = 1_000, Said::default());
        assert_eq!(
            of(&retention, "log.retention.ms")[0],
            ("1000", Source::Broker)
        );
    }

    #[test]
    fn each_layer_is_shown_in_the_order_in_which_they_hold() {
        let mut said = Said::default();
        said.set(
            None,
            set(&[("num.partitions", "05"), ("log.retention.ms", "9")]),
        );
        said.set(Some(3), set(&[("num.partitions", "7")]));
        let all = shown(|r| r.topics.default_partitions = 12, said);
        assert_eq!(
            of(&all, "num.partitions"),
            [
                ("7", Source::BrokerNow),
                ("05", Source::AllBrokersNow),
                ("12", Source::Broker),
                ("1", Source::Default),
            ]
        );
        assert_eq!(
            of(&all, "log.retention.ms")[0],
            ("9", Source::AllBrokersNow)
        );
    }

    #[test]
    fn no_name_is_shown_twice_and_what_needs_a_restart_is_read_only_and_says_so() {
        let all = shown(|_| {}, Said::default());
        let names: BTreeSet<_> = all.iter().map(|d| &d.name).collect();
        assert_eq!(names.len(), all.len());
        let notes = [Applies::AtOnce.note(), Applies::AtRestart.note(), FIXED];
        for shown in &all {
            let said = &shown.documentation;
            assert!(notes.iter().any(|note| said.ends_with(note)), "{said}");
        }
        for row in TABLE {
            let shown = all.iter().find(|d| d.name == row.name).unwrap();
            assert_eq!(
                shown.read_only,
                row.applies == Applies::AtRestart,
                "{row:?}"
            );
            let note = row.applies.note();
            assert!(shown.documentation.ends_with(note), "{shown:?}");
        }
    }
}
