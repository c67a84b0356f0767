//! Whether a setting can be set while brokers run, and what a set of them comes to. Pure.

use super::now::Now;
use super::said::Said;
use super::table::{Applies, Row, TABLE};
use super::unused::unused_of;
use crate::config::{Config, Raw, overlay, texts};
use crate::topic_config::{self, check_default, names_of_broker};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Why a setting is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    #[error("Unknown broker config name: {name}{}", did_you_mean(.suggestion))]
    Unknown {
        name: String,
        suggestion: Option<&'static str>,
    },
    #[error(
        "{name} takes effect with a restart only and cannot be set while brokers run: write `{key}` to the file given \
         with --config, or {variable} to the environment, of each broker concerned, and restart it"
    )]
    NeedsRestart {
        name: &'static str,
        key: &'static str,
        variable: String,
    },
    #[error("{0} is what this broker is; it is not set but follows from other settings")]
    Fixed(String),
    #[error(transparent)]
    Topic(#[from] topic_config::ConfigError),
    #[error("Invalid value {value:?} for configuration {name}: {why}")]
    Invalid {
        name: String,
        value: String,
        why: String,
    },
    #[error("{0} is no list, so nothing can be appended to it or subtracted from it; set it")]
    NotAList(String),
}

fn did_you_mean(suggestion: &Option<&'static str>) -> String {
    suggestion.map_or_else(String::new, |s| format!(" (did you mean {s}?)"))
}

/// The name that a setting is kept and shown under: Kafka's where it has one. Our own, as it stands in the
/// file, is taken too.
pub fn name_of(asked: &str) -> &str {
    let own = asked.strip_prefix("logd.").unwrap_or(asked);
    let row = TABLE.iter().find(|row| row.key == own);
    row.map_or(asked, |row| row.name)
}

fn row_of(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == name)
}

/// Every name there is.
fn names() -> impl Iterator<Item = &'static str> {
    let own = TABLE.iter().map(|row| row.name);
    own.chain(names_of_broker().map(|(name, _)| name))
}

fn unknown(name: &str) -> SettingError {
    let scored = names().map(|known| (strsim::jaro_winkler(known, name), known));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
    SettingError::Unknown {
        name: name.to_owned(),
        suggestion: best
            .filter(|(likeness, _)| *likeness > 0.85)
            .map(|(_, s)| s),
    }
}

/// What a value comes to that has no effect here; `None` if the setting is none of those.
fn check_unused(name: &str, value: &str) -> Option<Result<String, SettingError>> {
    let unused = unused_of(name)?;
    Some(unused.checked(value).map_err(|why| SettingError::Invalid {
        name: name.to_owned(),
        value: value.to_owned(),
        why,
    }))
}

/// The key in the file of a setting that changes at once; `None` for what topics have by default, and for what has no
/// effect here.
fn key_of(name: &str, value: &str) -> Result<Option<&'static str>, SettingError> {
    if let Some(checked) = check_default(name, value) {
        checked?;
        return Ok(None);
    }
    if let Some(checked) = check_unused(name, value) {
        checked?;
        return Ok(None);
    }
    match row_of(name) {
        Some(row) => match row.applies {
            Applies::AtOnce => Ok(Some(row.key)),
            Applies::AtRestart => Err(SettingError::NeedsRestart {
                name: row.name,
                key: row.key,
                variable: format!("LOGD_{}", row.key.to_uppercase().replace('.', "__")),
            }),
        },
        None if super::describe::is_derived(name) => Err(SettingError::Fixed(name.to_owned())),
        None => Err(unknown(name)),
    }
}

/// A broker's settings with others laid over, and what of those cannot hold.
pub(super) struct LaidOver {
    pub raw: Raw,
    pub config: Config,
    pub left_out: BTreeMap<String, SettingError>,
}

/// Lays values over what the broker was started with: all of them if they can hold together, or else as many as can.
pub(super) fn lay_over(base: &Config, values: &BTreeMap<String, String>) -> LaidOver {
    let mut left_out = BTreeMap::new();
    let mut waiting = Vec::new();
    for (name, value) in values {
        match key_of(name, value) {
            Ok(Some(key)) => waiting.push((name, key, value)),
            Ok(None) => {}
            Err(why) => drop(left_out.insert(name.clone(), why)),
        }
    }
    let mut laid = (base.written.clone(), base.clone());
    if let Ok(all) = try_over(base, &base.written, &waiting) {
        laid = all;
        waiting.clear();
    }
    // Some that do not fit keep others from nothing. One may wait for another, so each is tried until none moves.
    let mut moved = true;
    while moved {
        moved = false;
        waiting.retain(|one| match try_over(base, &laid.0, &[*one]) {
            Ok(next) => {
                (laid, moved) = (next, true);
                false
            }
            Err(_) => true,
        });
    }
    for one in waiting {
        if let Err(why) = try_over(base, &laid.0, &[one]) {
            let (name, _, value) = one;
            let (name, value) = (name.clone(), value.clone());
            left_out.insert(name.clone(), SettingError::Invalid { name, value, why });
        }
    }
    let (raw, config) = laid;
    LaidOver {
        raw,
        config,
        left_out,
    }
}

fn try_over(
    base: &Config,
    below: &Raw,
    values: &[(&String, &'static str, &String)],
) -> Result<(Raw, Config), String> {
    let pairs = values.iter().map(|(_, key, value)| (*key, value.as_str()));
    let raw = overlay(below, pairs).map_err(|e| e.to_string())?;
    let config = base.changed(&raw).map_err(|e| e.to_string())?;
    Ok((raw, config))
}

/// What may be written to a file but not set while brokers run: less, and whoever could take it back might not get in.
const LEAST: [(&str, u64); 4] = [
    ("connections.max.idle.ms", 1_000),
    ("logd.limits.handshake_timeout_ms", 1_000),
    ("logd.limits.stalled_timeout_ms", 1_000),
    ("max.connections", 10),
];

fn check_least(name: &str, value: &str) -> Result<(), SettingError> {
    let least = LEAST.iter().find(|(known, _)| *known == name);
    match least {
        Some((_, least)) if value.parse::<u64>().is_ok_and(|v| v < *least) => {
            Err(SettingError::Invalid {
                name: name.to_owned(),
                value: value.to_owned(),
                why: format!(
                    "must be at least {least} if it is set while brokers run, or nobody might come in to take it back"
                ),
            })
        }
        _ => Ok(()),
    }
}

/// Whether the named settings can be what they are in `after`, for one broker or for all, as far as this broker can
/// tell: others may have been started with other settings. Returns them in the form in which they are kept.
///
/// # Errors
/// The first that cannot, and why.
pub fn check(
    now: &Now,
    broker: Option<i32>,
    named: &BTreeSet<String>,
    after: &Said,
) -> Result<BTreeMap<String, String>, SettingError> {
    let base = Config {
        written: now.started.clone(),
        ..now.config.clone()
    };
    // Nobody is broker -1: what is set for all stands alone.
    let node = broker.unwrap_or(-1);
    let mut values = after.of(None);
    values.extend(after.of(Some(node)));
    let mut laid = lay_over(&base, &values);
    let texts = texts(&laid.raw);
    let mut kept = BTreeMap::new();
    for (name, value) in after.of(broker) {
        if !named.contains(&name) {
            continue;
        }
        if let Some(why) = laid.left_out.remove(&name) {
            return Err(why);
        }
        check_least(&name, &value)?;
        let kept_as = match (check_default(&name, &value), row_of(&name)) {
            (Some(checked), _) => checked?,
            (None, Some(row)) => texts.get(row.key).cloned().unwrap_or(value),
            (None, None) => match check_unused(&name, &value) {
                Some(checked) => checked?,
                None => value,
            },
        };
        kept.insert(name, kept_as);
    }
    Ok(kept)
}

/// The words of a list as they are for one broker, or for all: what is appended goes behind them.
///
/// # Errors
/// If it is no list.
pub fn list_here(
    said: &Arc<Said>,
    broker: Option<i32>,
    name: &str,
) -> Result<String, SettingError> {
    let Some(usual) = topic_config::list_of(name) else {
        let known = names().any(|known| known == name) || unused_of(name).is_some();
        return Err(match known {
            true => SettingError::NotAList(name.to_owned()),
            false => unknown(name),
        });
    };
    let own = said.of(broker).remove(name);
    let list = own.or_else(|| said.all.get(name).cloned());
    Ok(list.unwrap_or_else(|| usual.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Keeper;

    fn set(name: &str, value: &str) -> Result<String, SettingError> {
        let (_keeper, live) = Keeper::new(Config::try_from(Raw::default()).unwrap());
        let mut after = Said::default();
        after.set(None, BTreeMap::from([(name.to_owned(), value.to_owned())]));
        let named = BTreeSet::from([name.to_owned()]);
        check(&live.now(), None, &named, &after).map(|mut kept| kept.remove(name).unwrap())
    }

    #[test]
    fn what_needs_a_restart_is_refused_and_says_where_to_set_it() {
        let why = set("logd.storage.wal_budget_bytes", "2147483648").unwrap_err();
        assert!(matches!(why, SettingError::NeedsRestart { .. }));
        let why = why.to_string();
        for part in [
            "restart",
            "`storage.wal_budget_bytes`",
            "LOGD_STORAGE__WAL_BUDGET_BYTES",
        ] {
            assert!(why.contains(part), "{why}");
        }
        assert!(matches!(set("broker.id", "9"), Err(SettingError::Fixed(_))));
    }

    #[test]
    fn an_unknown_name_is_refused_with_what_was_probably_meant() {
        let why = set("num.partition", "3").unwrap_err().to_string();
        assert!(why.contains("did you mean num.partitions?"), "{why}");
        let why = set("colour", "blue").unwrap_err().to_string();
        assert_eq!(why, "Unknown broker config name: colour");
    }

    #[test]
    fn a_value_out_of_its_range_is_refused_with_the_range() {
        let why = set("num.partitions", "0").unwrap_err().to_string();
        assert!(why.contains("must be from 1 to 10000"), "{why}");
        let why = set("log.retention.ms", "-2").unwrap_err().to_string();
        assert!(why.contains("a whole number from -1"), "{why}");
        let why = set("auto.create.topics.enable", "maybe").unwrap_err();
        assert!(why.to_string().contains("true or false"), "{why}");
        let why = set("group.max.session.timeout.ms", "5").unwrap_err();
        assert!(why.to_string().contains("at least 6000"), "{why}");
        let why = set("unclean.leader.election.enable", "true").unwrap_err();
        assert!(why.to_string().contains("can never lead"), "{why}");
    }

    #[test]
    fn nothing_is_set_that_could_keep_everybody_out() {
        for (name, least) in LEAST {
            let why = set(name, &(least - 1).to_string()).unwrap_err();
            assert!(why.to_string().contains("take it back"), "{why}");
            assert!(set(name, &least.to_string()).is_ok());
        }
    }

    #[test]
    fn a_level_that_is_no_filter_is_refused() {
        assert!(set("logd.log.level", "debug,logd::raft=trace").is_ok());
        let why = set("logd.log.level", "=loud=").unwrap_err();
        assert!(why.to_string().contains("a level such as info"), "{why}");
        assert!(set("logd.log.level", &"info,".repeat(300)).is_err());
    }

    #[test]
    fn what_can_be_set_is_taken_under_kafkas_name_and_ours() {
        for (name, value) in [
            ("num.partitions", "3"),
            ("log.retention.ms", "-1"),
            ("message.max.bytes", "2000000"),
            ("compression.type", "zstd"),
            ("log.cleanup.policy", "compact,delete"),
            ("logd.limits.requests_in_flight", "9"),
        ] {
            assert_eq!(set(name, value), Ok(value.to_owned()), "{name}");
        }
        assert_eq!(set("num.partitions", "007").unwrap(), "7");
        assert_eq!(set("log.retention.ms", "007").unwrap(), "7");
        assert_eq!(name_of("topics.retention_ms"), "log.retention.ms");
        assert_eq!(name_of("logd.topics.default_partitions"), "num.partitions");
        assert_eq!(
            name_of("limits.requests_in_flight"),
            "logd.limits.requests_in_flight"
        );
        assert_eq!(name_of("log.retention.ms"), "log.retention.ms");
    }

    #[test]
    fn a_value_that_was_wrong_before_does_not_stand_in_the_way_of_others() {
        let (_keeper, live) = Keeper::new(Config::try_from(Raw::default()).unwrap());
        let mut after = Said::default();
        let pairs = [("of.a.later.version", "1"), ("num.partitions", "3")];
        let values = pairs.map(|(k, v)| (k.to_owned(), v.to_owned()));
        after.set(None, BTreeMap::from(values));
        let named = BTreeSet::from(["num.partitions".to_owned()]);
        assert!(check(&live.now(), None, &named, &after).is_ok());
    }
}
