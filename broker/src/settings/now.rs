//! The settings at one moment, who makes them, and how they are read.

use super::check::{LaidOver, lay_over};
use super::said::Said;
use crate::config::{Config, Raw};
use crate::topic_config::{Overlay, Source, TopicDefaults};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;
use tracing::{info, warn};

/// What this broker goes by. Immutable: the next one takes its place.
#[derive(Debug, Clone)]
pub struct Now {
    pub config: Config,
    /// What topics have that say nothing themselves.
    pub topics: TopicDefaults,
    /// What all of the cluster's brokers were told, this one among them.
    pub said: Arc<Said>,
    /// What was set for this broker alone, and for all, without what cannot hold here.
    pub(super) one: BTreeMap<String, String>,
    pub(super) all: BTreeMap<String, String>,
    /// What the broker was started with, and with all that was set laid over it.
    pub(super) started: Raw,
    pub(super) raw: Raw,
}

impl Now {
    /// What a broker that was started like this goes by when so much was said, and what of it it leaves out.
    pub(super) fn resolve(
        config: &Config,
        node: Option<i32>,
        said: Arc<Said>,
    ) -> (Self, Vec<String>) {
        let (mut one, mut all) = (
            node.map(|id| said.of(Some(id))).unwrap_or_default(),
            said.of(None),
        );
        let effective = all.iter().chain(&one);
        let effective = effective.map(|(k, v)| (k.clone(), v.clone())).collect();
        let LaidOver {
            mut raw,
            config: changed,
            left_out,
        } = lay_over(config, &effective);
        raw.limits.max_connections = changed.limits.max_connections;
        one.retain(|name, _| !left_out.contains_key(name));
        all.retain(|name, _| !left_out.contains_key(name));
        let layers = [(Source::BrokerNow, &one), (Source::AllBrokersNow, &all)];
        let t = &config.topics;
        let topics = TopicDefaults {
            max_message_bytes: t.max_message_bytes,
            segment_bytes: t.segment_bytes,
            retention_ms: t.retention_ms,
            retention_bytes: t.retention_bytes,
            overlay: Overlay::new(layers),
        };
        let now = Self {
            config: changed,
            topics,
            said,
            one,
            all,
            started: config.written.clone(),
            raw,
        };
        (now, left_out.into_values().map(|e| e.to_string()).collect())
    }
}

/// What topics have that say nothing, as far as that was set for all brokers.
pub fn topics_of_all(said: &Said) -> TopicDefaults {
    TopicDefaults {
        overlay: Overlay::new([(Source::AllBrokersNow, &said.all)]),
        ..TopicDefaults::default()
    }
}

/// Makes the broker's settings. There is one.
#[derive(Debug)]
pub struct Keeper {
    /// What the broker was started with.
    config: Config,
    live: watch::Sender<Arc<Now>>,
}

impl Keeper {
    /// The settings of a broker that has not heard from its cluster yet.
    pub fn new(config: Config) -> (Self, Live) {
        let (now, _) = Now::resolve(&config, None, Arc::default());
        let (live, reader) = watch::channel(Arc::new(now));
        (Self { config, live }, Live(reader))
    }

    /// Goes by what the cluster says now; false if that is what it said before. `tell` is called with the settings
    /// before anybody can read them.
    pub fn hear(&self, node: i32, said: &Arc<Said>, tell: impl FnOnce(&Now)) -> bool {
        if *self.live.borrow().said == **said {
            return false;
        }
        let (now, left_out) = Now::resolve(&self.config, Some(node), said.clone());
        for why in left_out {
            warn!(
                why,
                "a setting of the cluster cannot hold on this broker and is left out here"
            );
        }
        tell(&now);
        let before = self.live.send_replace(Arc::new(now.clone()));
        if (&before.one, &before.all) != (&now.one, &now.all) {
            info!(of_this_broker = ?now.one, of_all = ?now.all, "settings as the cluster has them");
        }
        true
    }
}

/// The settings, to read. Clones read the same.
#[derive(Debug, Clone)]
pub struct Live(watch::Receiver<Arc<Now>>);

impl Live {
    pub fn now(&self) -> Arc<Now> {
        self.0.borrow().clone()
    }

    /// To be told of the next.
    pub fn watch(&self) -> watch::Receiver<Arc<Now>> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(all: &[(&str, &str)], of_two: &[(&str, &str)]) -> Arc<Said> {
        let map = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            pairs
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        let mut said = Said::default();
        said.set(None, map(all));
        said.set(Some(2), map(of_two));
        Arc::new(said)
    }

    fn now(node: i32, all: &[(&str, &str)], of_two: &[(&str, &str)]) -> (Now, Vec<String>) {
        let mut raw = Raw::default();
        raw.topics.default_partitions = 3;
        let config = Config::try_from(raw).unwrap();
        Now::resolve(&config, Some(node), said(all, of_two))
    }

    #[test]
    fn one_brokers_setting_beats_that_of_all_beats_the_file_beats_the_default() {
        let partitions = |node, all: &[_], of_two: &[_]| {
            let (now, left_out) = now(node, all, of_two);
            assert_eq!(left_out, [""; 0]);
            now.config.topics.default_partitions
        };
        let (all, one) = (&[("num.partitions", "5")], &[("num.partitions", "7")]);
        assert_eq!(partitions(2, &[], &[]), 3);
        assert_eq!(partitions(2, all, &[]), 5);
        assert_eq!(partitions(2, all, one), 7);
        assert_eq!(partitions(1, all, one), 5, "broker 2's is not broker 1's");
    }

    #[test]
    fn what_cannot_hold_here_is_left_out_and_everything_else_holds() {
        let (now, left_out) = now(
            1,
            &[
                ("group.max.session.timeout.ms", "5"),
                ("num.partitions", "4"),
                ("of.a.later.version", "1"),
                ("logd.storage.wal_budget_bytes", "1"),
            ],
            &[],
        );
        assert_eq!(now.config.topics.default_partitions, 4);
        assert_eq!(now.config.group.max_session_timeout_ms, 1_800_000);
        assert_eq!(left_out.len(), 3, "{left_out:?}");
        assert_eq!(now.all.len(), 1);
    }

    #[test]
    fn values_that_only_fit_together_are_taken_together() {
        let both = [
            ("group.max.session.timeout.ms", "3000000"),
            ("group.min.session.timeout.ms", "2000000"),
        ];
        let (now, left_out) = now(1, &both, &[]);
        assert_eq!(left_out, [""; 0]);
        assert_eq!(now.config.group.min_session_timeout_ms, 2_000_000);
    }

    #[test]
    fn who_reads_sees_the_next_settings_and_the_same_are_not_made_twice() {
        let (keeper, live) = Keeper::new(Config::try_from(Raw::default()).unwrap());
        let heard = said(&[("auto.create.topics.enable", "false")], &[]);
        assert!(live.now().config.topics.auto_create);
        let mut told = 0;
        assert!(keeper.hear(1, &heard, |now| {
            assert!(!now.config.topics.auto_create);
            assert!(live.now().config.topics.auto_create, "not yet");
            told += 1;
        }));
        assert!(!live.now().config.topics.auto_create);
        assert!(!keeper.hear(1, &heard, |_| told += 1));
        assert_eq!(told, 1);
        assert!(keeper.hear(1, &Arc::default(), |_| {}));
        assert!(live.now().config.topics.auto_create, "the default again");
    }

    #[test]
    fn more_connections_than_open_files_have_room_for_are_not_promised() {
        let mut config = Config::try_from(Raw::default()).unwrap();
        config.connections_room = 100;
        let (now, _) = Now::resolve(&config, Some(1), said(&[("max.connections", "5000")], &[]));
        assert_eq!(now.config.limits.max_connections, 100);
    }
}
