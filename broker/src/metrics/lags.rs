//! How far consumer groups are behind, with a bound on how many series that makes.
//!
//! Promise: no more series than allowed, whatever groups clients make; those furthest behind are shown, and
//! how many are not is. A group that is gone vanishes.
//! Not here: finding out (the groups' room).

use super::table::{GROUP_LAG, GROUP_LAG_HIDDEN};
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::fmt::Write;

/// What a group has still to read of a partition, by what it has committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupLag {
    pub group: String,
    pub topic: String,
    pub partition: i32,
    pub records: u64,
}

/// Lags that are known and not shown, and committed offsets of which no lag is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HiddenLags {
    pub over_limit: usize,
    /// No replica of the partition is on this broker.
    pub elsewhere: usize,
}

#[derive(Debug, Default)]
pub struct Lags(Mutex<(Vec<GroupLag>, HiddenLags)>);

/// Those furthest behind, by name; and how many others there are.
fn furthest(mut lags: Vec<GroupLag>, shown_max: usize) -> (Vec<GroupLag>, usize) {
    let name = |l: &GroupLag| (l.group.clone(), l.topic.clone(), l.partition);
    let over = lags.len().saturating_sub(shown_max);
    if over > 0 {
        lags.sort_by_cached_key(|l| (Reverse(l.records), name(l)));
        lags.truncate(shown_max);
    }
    lags.sort_by_cached_key(name);
    (lags, over)
}

/// A group's id is any text; a label's value has three bytes that must be written otherwise.
fn escaped(text: &str) -> String {
    let whole = text.replace('\\', "\\\\");
    whole.replace('"', "\\\"").replace('\n', "\\n")
}

impl Lags {
    /// Replaces what is shown.
    pub fn set(&self, lags: Vec<GroupLag>, mut hidden: HiddenLags, shown_max: usize) {
        let (shown, over) = furthest(lags, shown_max);
        hidden.over_limit += over;
        *self.0.lock() = (shown, hidden);
    }

    /// The series in Prometheus' text form.
    pub fn render(&self, out: &mut String) {
        let state = self.0.lock();
        let (shown, hidden) = &*state;
        for metric in [GROUP_LAG, GROUP_LAG_HIDDEN] {
            let name = metric.name;
            let _ = writeln!(out, "# HELP {name} {}", metric.help);
            let _ = writeln!(out, "# TYPE {name} gauge");
            if name == GROUP_LAG.name {
                for l in shown {
                    let (group, topic) = (escaped(&l.group), escaped(&l.topic));
                    let _ = writeln!(
                        out,
                        "{name}{{group=\"{group}\",topic=\"{topic}\",partition=\"{}\"}} {}",
                        l.partition, l.records
                    );
                }
            } else {
                let (limit, elsewhere) = (hidden.over_limit, hidden.elsewhere);
                let _ = writeln!(out, "{name}{{reason=\"limit\"}} {limit}");
                let _ = writeln!(out, "{name}{{reason=\"elsewhere\"}} {elsewhere}");
            }
            out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(group: &str, partition: i32, records: u64) -> GroupLag {
        GroupLag {
            group: group.into(),
            topic: "t".into(),
            partition,
            records,
        }
    }

    #[test]
    fn those_furthest_behind_are_shown_in_the_order_of_their_names() {
        let all = vec![
            lag("b", 0, 9),
            lag("a", 1, 3),
            lag("a", 0, 7),
            lag("c", 0, 0),
        ];
        let (shown, over) = furthest(all.clone(), 2);
        assert_eq!((shown, over), (vec![lag("a", 0, 7), lag("b", 0, 9)], 2));
        assert_eq!(furthest(all.clone(), 4).1, 0);
        assert_eq!(furthest(all, 0), (vec![], 4));
    }

    #[test]
    fn a_group_of_any_name_is_a_label_and_what_is_hidden_is_counted() {
        let lags = Lags::default();
        let hidden = HiddenLags {
            over_limit: 1,
            elsewhere: 2,
        };
        lags.set(vec![lag("a\"b\\c\nd", 3, 5), lag("x", 0, 1)], hidden, 1);
        let mut text = String::new();
        lags.render(&mut text);
        let line = r#"logd_group_lag_records{group="a\"b\\c\nd",topic="t",partition="3"} 5"#;
        assert!(text.contains(line), "{text}");
        assert!(text.contains("logd_group_lag_hidden{reason=\"limit\"} 2\n"));
        assert!(text.contains("logd_group_lag_hidden{reason=\"elsewhere\"} 2\n"));
        lags.set(vec![], HiddenLags::default(), 1);
        let mut text = String::new();
        lags.render(&mut text);
        assert!(!text.contains("group="), "it is gone: {text}");
    }
}
