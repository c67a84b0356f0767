//! Traffic per topic, with a bound on how many topics are told apart.
//!
//! Promise: no more than the limit of series, whatever clients create; `_other` never goes back; a deleted
//! topic vanishes.
//! Not here: anything but counting.

use super::table::{Metric, TOPIC_BYTES, TOPIC_RECORDS};
use parking_lot::Mutex;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

/// A topic's counters, held by whoever carries its traffic. The last holder gone, the topic is forgotten.
#[derive(Debug, Default)]
pub struct TopicTraffic {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    records_in: AtomicU64,
}

impl TopicTraffic {
    pub fn produced(&self, records: u64, bytes: u64) {
        self.records_in.fetch_add(records, Relaxed);
        self.bytes_in.fetch_add(bytes, Relaxed);
    }

    pub fn fetched(&self, bytes: u64) {
        self.bytes_out.fetch_add(bytes, Relaxed);
    }

    fn counts(&self) -> Counts {
        Counts {
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            records_in: self.records_in.load(Relaxed),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    bytes_in: u64,
    bytes_out: u64,
    records_in: u64,
}

impl Counts {
    fn add(&mut self, more: Counts) {
        self.bytes_in += more.bytes_in;
        self.bytes_out += more.bytes_out;
        self.records_in += more.records_in;
    }

    fn since(self, before: Counts) -> Counts {
        Counts {
            bytes_in: self.bytes_in - before.bytes_in,
            bytes_out: self.bytes_out - before.bytes_out,
            records_in: self.records_in - before.records_in,
        }
    }
}

#[derive(Debug)]
struct Known {
    name: String,
    traffic: Weak<TopicTraffic>,
    /// Has a series of its own; keeps it as long as it lives, since a series that moves in and out of
    /// `_other` makes every rate wrong.
    shown: bool,
    /// What of it has gone into `_other` already.
    in_other: Counts,
}

#[derive(Debug)]
pub struct Topics {
    shown_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: Vec<Known>,
    other: Counts,
}

impl Topics {
    pub fn new(shown_max: usize) -> Self {
        Self {
            shown_max,
            state: Mutex::default(),
        }
    }

    /// The counters of a topic, shared by all its partitions.
    pub fn traffic(&self, name: &str) -> Arc<TopicTraffic> {
        let mut state = self.state.lock();
        let alive = |k: &Known| (k.name == name).then(|| k.traffic.upgrade()).flatten();
        if let Some(traffic) = state.known.iter().find_map(alive) {
            return traffic;
        }
        let traffic = Arc::new(TopicTraffic::default());
        state.known.push(Known {
            name: name.to_owned(),
            traffic: Arc::downgrade(&traffic),
            shown: false,
            in_other: Counts::default(),
        });
        traffic
    }

    /// The series in Prometheus' text form.
    pub fn render(&self, out: &mut String) {
        let rows = self.sample();
        let mut write = |metric: &Metric, lines: &dyn Fn(&mut String, &str, Counts)| {
            let _ = writeln!(out, "# HELP {} {}", metric.name, metric.help);
            let _ = writeln!(out, "# TYPE {} counter", metric.name);
            for (topic, counts) in &rows {
                lines(out, topic, *counts);
            }
            out.push('\n');
        };
        // Topic names are letters, digits, dots, underscores and dashes: nothing to escape.
        write(&TOPIC_BYTES, &|out, topic, c| {
            let name = TOPIC_BYTES.name;
            let _ = writeln!(
                out,
                "{name}{{topic=\"{topic}\",direction=\"in\"}} {}",
                c.bytes_in
            );
            let _ = writeln!(
                out,
                "{name}{{topic=\"{topic}\",direction=\"out\"}} {}",
                c.bytes_out
            );
        });
        write(&TOPIC_RECORDS, &|out, topic, c| {
            let _ = writeln!(
                out,
                "{}{{topic=\"{topic}\"}} {}",
                TOPIC_RECORDS.name, c.records_in
            );
        });
    }

    /// Who is shown, with what; the last row is `_other`.
    fn sample(&self) -> Vec<(String, Counts)> {
        let mut state = self.state.lock();
        let State { known, other } = &mut *state;
        known.retain(|k| k.traffic.strong_count() > 0);
        let counts = |k: &Known| {
            k.traffic
                .upgrade()
                .map(|t| t.counts())
                .unwrap_or(k.in_other)
        };
        let shown = known.iter().filter(|k| k.shown).count();
        let mut waiting: Vec<&mut Known> = known
            .iter_mut()
            .filter(|k| !k.shown && counts(k) != Counts::default())
            .collect();
        waiting.sort_by_key(|k| {
            let c = counts(k);
            std::cmp::Reverse(c.bytes_in + c.bytes_out)
        });
        for promoted in waiting
            .into_iter()
            .take(self.shown_max.saturating_sub(shown))
        {
            promoted.shown = true;
        }
        let mut rows = Vec::new();
        for topic in known.iter_mut() {
            let now = counts(topic);
            if topic.shown {
                rows.push((topic.name.clone(), now.since(topic.in_other)));
            } else {
                other.add(now.since(topic.in_other));
                topic.in_other = now;
            }
        }
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        rows.push(("_other".to_owned(), *other));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(rows: &[(String, Counts)], topic: &str) -> Option<u64> {
        rows.iter()
            .find(|(name, _)| name == topic)
            .map(|(_, c)| c.bytes_in)
    }

    #[test]
    fn the_busiest_topics_are_told_apart_and_the_rest_are_together() {
        let topics = Topics::new(2);
        let held: Vec<_> = [("a", 10), ("b", 30), ("c", 20)]
            .map(|(name, bytes)| {
                let t = topics.traffic(name);
                t.produced(1, bytes);
                t
            })
            .into();
        let rows = topics.sample();
        assert_eq!(row(&rows, "b"), Some(30));
        assert_eq!(row(&rows, "c"), Some(20));
        assert_eq!((row(&rows, "a"), row(&rows, "_other")), (None, Some(10)));
        held[0].produced(1, 5);
        assert_eq!(row(&topics.sample(), "_other"), Some(15));
    }

    #[test]
    fn a_deleted_topic_vanishes_and_its_place_is_taken_without_a_step_back() {
        let topics = Topics::new(1);
        let (a, b) = (topics.traffic("a"), topics.traffic("b"));
        a.produced(1, 100);
        b.produced(1, 7);
        assert_eq!(row(&topics.sample(), "_other"), Some(7));
        drop(a);
        b.produced(1, 3);
        let rows = topics.sample();
        assert_eq!(row(&rows, "a"), None);
        assert_eq!(
            row(&rows, "b"),
            Some(3),
            "what was counted in _other stays there"
        );
        assert_eq!(row(&rows, "_other"), Some(7));
    }

    #[test]
    fn partitions_of_a_topic_share_its_counters() {
        let topics = Topics::new(1);
        let (one, two) = (topics.traffic("a"), topics.traffic("a"));
        one.produced(1, 1);
        two.produced(1, 1);
        assert_eq!(row(&topics.sample(), "a"), Some(2));
    }

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let topics = Topics::new(1);
        let a = topics.traffic("a.b-c");
        a.produced(2, 10);
        a.fetched(4);
        let mut text = String::new();
        topics.render(&mut text);
        assert!(text.contains("logd_topic_bytes_total{topic=\"a.b-c\",direction=\"in\"} 10\n"));
        assert!(text.contains("logd_topic_bytes_total{topic=\"a.b-c\",direction=\"out\"} 4\n"));
        assert!(text.contains("logd_topic_records_total{topic=\"a.b-c\"} 2\n"));
    }
}
