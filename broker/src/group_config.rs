//! A group's configuration under Kafka's own names.
//!
//! Promise: what is taken is what Kafka takes by default, and wherever it is said at all it is said whom it is for:
//! members that speak the `consumer` protocol (KIP-848), of which there are none here yet. Classic members say their
//! timeouts when they join, and go by those, in Kafka too.
//! Not here: settings of share groups and of streams groups. There are no such groups, so that each would promise
//! something that is not kept (how often a record is delivered, how many replicas stand by); they are refused. Nor who
//! may set what, and where it is kept (`cluster`).

use crate::topic_config::{Described, Kind, Layer, Source};
use std::collections::BTreeMap;

/// For whoever reads about one of them, or finds in the log that it was set.
pub const NOTE: &str = "For members that speak the consumer protocol (KIP-848), which logd does not serve yet; without effect \
                        on classic members, whose timeouts are what they say when they join.";

/// One of them; each is a whole number.
struct Row {
    name: &'static str,
    /// Where a group says nothing. Kafka's brokers have it under the same name behind `group.`.
    default: i64,
    /// What Kafka's brokers take if their own limits are the usual ones.
    least: i64,
    most: i64,
    meaning: &'static str,
}

const fn row(
    name: &'static str,
    default: i64,
    least: i64,
    most: i64,
    meaning: &'static str,
) -> Row {
    Row {
        name,
        default,
        least,
        most,
        meaning,
    }
}

/// In the order of their names.
const TABLE: &[Row] = &[
    row(
        "consumer.assignment.interval.ms",
        1_000,
        0,
        15_000,
        "The least time between two assignments of the group.",
    ),
    row(
        "consumer.heartbeat.interval.ms",
        5_000,
        5_000,
        15_000,
        "How often members are told to say that they live.",
    ),
    row(
        "consumer.session.timeout.ms",
        45_000,
        45_000,
        60_000,
        "A member that is silent for so long is taken out of the group.",
    ),
];

/// What settings of other kinds of groups begin with.
const OF_OTHER_GROUPS: [(&str, &str); 2] = [("share.", "share"), ("streams.", "streams")];

/// Why a setting is refused: INVALID_CONFIG with this text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupConfigError {
    #[error("Unknown group config name: {name}; a group has {known}")]
    Unknown { name: String, known: String },
    #[error("Unknown group config name: {name}; there are no {kind} groups here")]
    OfOtherGroups { name: String, kind: &'static str },
    #[error(
        "Invalid value {value:?} for configuration {name}: a whole number from {least} to {most} is needed"
    )]
    Invalid {
        name: &'static str,
        value: String,
        least: i64,
        most: i64,
    },
    #[error("{0} is no list, so nothing can be appended to it or subtracted from it; set it")]
    NotAList(&'static str),
}

fn row_of(name: &str) -> Result<&'static Row, GroupConfigError> {
    let known = TABLE.iter().find(|row| row.name == name);
    known.ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> GroupConfigError {
    let mut others = OF_OTHER_GROUPS.into_iter();
    let name = name.to_owned();
    match others.find(|(prefix, _)| name.starts_with(prefix)) {
        Some((_, kind)) => GroupConfigError::OfOtherGroups { name, kind },
        None => {
            let known: Vec<&str> = TABLE.iter().map(|row| row.name).collect();
            let known = known.join(", ");
            GroupConfigError::Unknown { name, known }
        }
    }
}

/// The value in the form in which it is kept.
///
/// ```
/// use logd::group_config::check;
///
/// assert_eq!(check("consumer.session.timeout.ms", " 050000 ").unwrap(), "50000");
/// let why = check("consumer.session.timeout.ms", "6000").unwrap_err();
/// assert!(why.to_string().contains("from 45000 to 60000"));
/// ```
///
/// # Errors
/// If no group has such a setting, or it cannot be this.
pub fn check(name: &str, value: &str) -> Result<String, GroupConfigError> {
    let row = row_of(name)?;
    let number = value.trim().parse::<i64>().ok();
    let number = number.filter(|n| (row.least..=row.most).contains(n));
    let number = number.ok_or_else(|| GroupConfigError::Invalid {
        name: row.name,
        value: value.to_owned(),
        least: row.least,
        most: row.most,
    })?;
    Ok(number.to_string())
}

/// Why nothing is appended to a setting or subtracted from it: none of them is a list.
pub fn not_a_list(name: &str) -> GroupConfigError {
    match row_of(name) {
        Ok(row) => GroupConfigError::NotAList(row.name),
        Err(unknown) => unknown,
    }
}

/// Every setting of a group for which these were set, by name.
pub fn described(set: &BTreeMap<String, String>) -> Vec<Described> {
    let known = TABLE.iter().map(|row| describe(row, set.get(row.name)));
    let of_others = set.iter().filter(|(name, _)| row_of(name).is_err());
    let of_others = of_others.map(|(name, value)| Described {
        name: name.clone(),
        kind: Kind::String,
        read_only: false,
        documentation: "Not a setting of this broker's version.".to_owned(),
        layers: vec![layer(name.clone(), value, Source::Group)],
    });
    let mut all: Vec<Described> = known.chain(of_others).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn describe(row: &Row, set: Option<&String>) -> Described {
    let own = set.map(|value| layer(row.name.to_owned(), value, Source::Group));
    let usual = layer(
        format!("group.{}", row.name),
        &row.default.to_string(),
        Source::Default,
    );
    Described {
        name: row.name.to_owned(),
        kind: Kind::Int,
        read_only: false,
        documentation: format!(
            "{} It takes a whole number from {} to {}. {NOTE}",
            row.meaning, row.least, row.most
        ),
        layers: own.into_iter().chain([usual]).collect(),
    }
}

fn layer(name: String, value: &str, source: Source) -> Layer {
    Layer {
        name,
        value: value.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn each_takes_its_range_and_nothing_beyond() {
        for row in TABLE {
            for fits in [row.least, row.default, row.most] {
                assert_eq!(check(row.name, &fits.to_string()), Ok(fits.to_string()));
            }
            for wrong in [row.least - 1, row.most + 1] {
                let why = check(row.name, &wrong.to_string()).unwrap_err().to_string();
                let range = format!("from {} to {}", row.least, row.most);
                assert!(why.contains(&range) && why.contains(row.name), "{why}");
            }
            for wrong in ["", "soon", "1.5", "99999999999999999999"] {
                assert!(check(row.name, wrong).is_err(), "{}={wrong}", row.name);
            }
        }
    }

    #[test]
    fn a_session_outlasts_every_interval_between_heartbeats() {
        let row = |name| row_of(name).unwrap();
        let session = row("consumer.session.timeout.ms");
        let heartbeat = row("consumer.heartbeat.interval.ms");
        assert!(
            heartbeat.most < session.least,
            "else the two must be checked together, as Kafka does"
        );
    }

    #[test]
    fn an_unknown_name_is_answered_with_those_that_there_are() {
        let why = check("session.timeout.ms", "50000")
            .unwrap_err()
            .to_string();
        for row in TABLE {
            assert!(why.contains(row.name), "{why}");
        }
        for (name, kind) in [
            ("share.session.timeout.ms", "no share groups"),
            ("streams.num.standby.replicas", "no streams groups"),
        ] {
            let why = check(name, "1").unwrap_err().to_string();
            assert!(why.contains(name) && why.contains(kind), "{why}");
        }
    }

    #[test]
    fn none_is_a_list() {
        for row in TABLE {
            assert_eq!(not_a_list(row.name), GroupConfigError::NotAList(row.name));
        }
        let unknown = not_a_list("colour");
        assert!(matches!(unknown, GroupConfigError::Unknown { .. }));
    }

    #[test]
    fn what_is_set_stands_before_what_would_hold_without_it() {
        let name = "consumer.session.timeout.ms";
        let all = described(&set(&[(name, "50000")]));
        assert_eq!(all.len(), TABLE.len());
        let shown = all.iter().find(|d| d.name == name).unwrap();
        let layers = shown.layers.iter();
        let layers: Vec<_> = layers.map(|l| (&*l.name, &*l.value, l.source)).collect();
        assert_eq!(
            layers,
            [
                (name, "50000", Source::Group),
                (
                    "group.consumer.session.timeout.ms",
                    "45000",
                    Source::Default
                ),
            ]
        );
        let others = all.iter().filter(|d| d.name != name);
        assert!(others.clone().all(|d| d.source() == Source::Default));
    }

    #[test]
    fn each_says_whom_it_is_for_and_stands_in_the_order_of_names() {
        let all = described(&BTreeMap::new());
        assert!(all.is_sorted_by_key(|d| &d.name));
        for shown in &all {
            assert!(shown.documentation.ends_with(NOTE), "{shown:?}");
            assert!(!shown.read_only, "{shown:?}");
        }
    }

    #[test]
    fn what_another_version_kept_is_shown_so_that_it_can_be_deleted() {
        let all = described(&set(&[("a.later.one", "x")]));
        assert_eq!(all.len(), TABLE.len() + 1);
        assert_eq!((all[0].name.as_str(), all[0].value()), ("a.later.one", "x"));
    }
}
