//! Settings of groups: kept in the metadata, whether there is such a group or not.
//!
//! Promise: a change is made as a whole or not at all, and what is kept has a bound: whoever may change one group's
//! settings may name any number of groups. What was set stays when its group is deleted, as in Kafka; it goes when it is
//! deleted itself.
//! Invariant: what the state comes to depends on the commands alone, not on what this broker's version knows of
//! settings; whether one can hold is found out before it is proposed.
//! Not here: what settings there are, and whom they are for (`group_config`).

use super::alter::{Alteration, ConfigChange};
use super::controller::Cluster;
use super::features::AboveLevel;
use super::state::{Answer, ClusterState, Command, Refusal};
use crate::group_config::{self, GroupConfigError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use tracing::{info, warn};

/// Groups that have settings. All of them are in each snapshot of the metadata, which is sent as a whole: with the longest
/// names these make some three megabytes. Brokers with another number come to another state: it is part of the format.
pub const GROUPS_MAX: usize = 10_000;

/// The longest name of a group that has settings; topics' names have about the same limit.
const NAME_BYTES_MAX: usize = 255;

/// What was set, by group.
pub type GroupSettings = BTreeMap<String, BTreeMap<String, String>>;

/// What is to become of one group's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupAlteration {
    pub group: String,
    /// What is not named goes.
    #[serde(default)]
    pub replace: bool,
    /// What has no value goes.
    pub values: BTreeMap<String, Option<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AlterGroupError {
    #[error("the group has no name; there are no settings for all groups together")]
    NoName,
    #[error(
        "the group's name has {0} bytes; a group that has settings has {NAME_BYTES_MAX} at most"
    )]
    NameTooLong(usize),
    #[error(transparent)]
    Config(#[from] GroupConfigError),
    #[error(
        "{GROUPS_MAX} groups have settings, which is as many as are kept; delete those of groups that need none \
         (ListConfigResources has their names)"
    )]
    TooManyGroups,
    #[error(transparent)]
    AboveLevel(#[from] AboveLevel),
    #[error("{0}")]
    Unavailable(String),
}

/// The change in the form in which it is kept, if it can hold.
fn checked(group: &str, wanted: Alteration) -> Result<GroupAlteration, AlterGroupError> {
    match group.len() {
        0 => return Err(AlterGroupError::NoName),
        length if length > NAME_BYTES_MAX => return Err(AlterGroupError::NameTooLong(length)),
        _ => {}
    }
    let mut values = BTreeMap::new();
    for (name, change) in wanted.changes {
        let value = match change {
            ConfigChange::Set(value) => Some(group_config::check(&name, &value)?),
            ConfigChange::Delete => None,
            ConfigChange::Append(_) | ConfigChange::Subtract(_) => {
                return Err(group_config::not_a_list(&name).into());
            }
        };
        values.insert(name, value);
    }
    Ok(GroupAlteration {
        group: group.to_owned(),
        replace: wanted.replace,
        values,
    })
}

/// What would be set for the group then; `None` if that is one group too many.
fn altered(groups: &GroupSettings, wanted: &GroupAlteration) -> Option<BTreeMap<String, String>> {
    let before = groups.get(&wanted.group);
    let kept = before.filter(|_| !wanted.replace);
    let mut values = kept.cloned().unwrap_or_default();
    for (name, value) in &wanted.values {
        match value {
            Some(value) => drop(values.insert(name.clone(), value.clone())),
            None => drop(values.remove(name)),
        }
    }
    let has_place = before.is_some() || values.is_empty() || groups.len() < GROUPS_MAX;
    has_place.then_some(values)
}

impl ClusterState {
    pub(super) fn alter_group(&mut self, wanted: GroupAlteration) -> Answer {
        let Some(values) = altered(&self.groups, &wanted) else {
            return Answer::Refused(Refusal::TooManyGroups);
        };
        if Some(&values) != self.groups.get(&wanted.group) {
            let groups = Arc::make_mut(&mut self.groups);
            match values.is_empty() {
                true => drop(groups.remove(&wanted.group)),
                false => drop(groups.insert(wanted.group, values)),
            }
        }
        Answer::Done
    }
}

/// Whoever looks here for why a setting does nothing finds that it was known.
fn tell(wanted: &GroupAlteration) {
    let GroupAlteration { group, values, .. } = wanted;
    let keys: Vec<&String> = values.keys().collect();
    info!(?group, ?keys, "settings of a group changed");
    let set = values.iter().filter(|(_, value)| value.is_some());
    for (name, _) in set {
        let why = group_config::NOTE;
        warn!(
            ?group,
            name, why, "a group's setting was set that has no effect here yet; it is kept"
        );
    }
}

impl Cluster {
    /// Sets and takes back settings of a group. `validate_only`: only says whether it could be done.
    ///
    /// # Errors
    /// If a group cannot have such a name or such settings, there are too many that have any, or the metadata group does
    /// not take it.
    pub async fn alter_group(
        &self,
        group: &str,
        wanted: Alteration,
        validate_only: bool,
    ) -> Result<(), AlterGroupError> {
        let wanted = checked(group, wanted)?;
        if altered(&self.view().groups, &wanted).is_none() {
            return Err(AlterGroupError::TooManyGroups);
        }
        if validate_only {
            return Ok(());
        }
        match self.propose(Command::AlterGroup(wanted.clone())).await {
            Ok(Answer::Done) => {
                tell(&wanted);
                Ok(())
            }
            Ok(Answer::Refused(Refusal::TooManyGroups)) => Err(AlterGroupError::TooManyGroups),
            Ok(Answer::Refused(Refusal::AboveLevel(why))) => Err(why.into()),
            Ok(other) => Err(AlterGroupError::Unavailable(format!(
                "unexpected answer {other:?}"
            ))),
            Err(error) => Err(AlterGroupError::Unavailable(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &str = "consumer.session.timeout.ms";
    const HEARTBEAT: &str = "consumer.heartbeat.interval.ms";

    fn wanted(group: &str, replace: bool, values: &[(&str, Option<&str>)]) -> GroupAlteration {
        let values = values.iter();
        GroupAlteration {
            group: group.into(),
            replace,
            values: values
                .map(|(k, v)| ((*k).to_owned(), v.map(str::to_owned)))
                .collect(),
        }
    }

    fn alter(s: &mut ClusterState, group: &str, values: &[(&str, Option<&str>)]) -> Answer {
        s.apply(Command::AlterGroup(wanted(group, false, values)))
    }

    fn set(name: &str, change: ConfigChange) -> Alteration {
        Alteration {
            replace: false,
            changes: BTreeMap::from([(name.to_owned(), change)]),
        }
    }

    #[test]
    fn each_group_keeps_its_own_and_a_snapshot_has_them_all() {
        let mut s = ClusterState::default();
        alter(&mut s, "a", &[(SESSION, Some("50000"))]);
        alter(&mut s, "a", &[(HEARTBEAT, Some("6000"))]);
        alter(&mut s, "b", &[(SESSION, Some("60000"))]);
        assert_eq!(s.groups["a"].len(), 2);
        assert_eq!(s.groups["b"][SESSION], "60000");
        assert_eq!(ClusterState::decode(&s.encode().unwrap()).unwrap(), s);
    }

    #[test]
    fn a_group_with_nothing_set_any_more_takes_no_place() {
        let mut s = ClusterState::default();
        alter(&mut s, "a", &[(SESSION, Some("50000"))]);
        assert_eq!(
            alter(&mut s, "a", &[(SESSION, None), ("x", None)]),
            Answer::Done
        );
        assert!(s.groups.is_empty());
        assert_eq!(alter(&mut s, "b", &[(SESSION, None)]), Answer::Done);
        assert!(s.groups.is_empty());
    }

    #[test]
    fn replacing_forgets_what_is_not_named() {
        let mut s = ClusterState::default();
        alter(&mut s, "a", &[(SESSION, Some("50000"))]);
        let replacing = wanted("a", true, &[(HEARTBEAT, Some("6000"))]);
        s.apply(Command::AlterGroup(replacing));
        assert_eq!(s.groups["a"].keys().collect::<Vec<_>>(), [HEARTBEAT]);
        s.apply(Command::AlterGroup(wanted("a", true, &[])));
        assert!(s.groups.is_empty());
    }

    #[test]
    fn one_group_too_many_is_refused_and_those_there_are_still_change() {
        let mut s = ClusterState::default();
        let full = (0..GROUPS_MAX).map(|n| (n.to_string(), BTreeMap::new()));
        s.groups = Arc::new(full.collect());
        let refused = alter(&mut s, "more", &[(SESSION, Some("50000"))]);
        assert_eq!(refused, Answer::Refused(Refusal::TooManyGroups));
        assert_eq!(alter(&mut s, "more", &[(SESSION, None)]), Answer::Done);
        assert_eq!(
            alter(&mut s, "7", &[(SESSION, Some("50000"))]),
            Answer::Done
        );
        assert_eq!(s.groups.len(), GROUPS_MAX);
        alter(&mut s, "7", &[(SESSION, None)]);
        assert_eq!(
            alter(&mut s, "more", &[(SESSION, Some("50000"))]),
            Answer::Done
        );
    }

    #[test]
    fn the_command_keeps_its_written_form_and_older_snapshots_decode() {
        let values = [(HEARTBEAT, None), (SESSION, Some("50000"))];
        let command = Command::AlterGroup(wanted("g", false, &values));
        let text = serde_json::to_string(&command).unwrap();
        assert_eq!(
            text,
            r#"{"alter_group":{"group":"g","replace":false,"values":{"consumer.heartbeat.interval.ms":null,"consumer.session.timeout.ms":"50000"}}}"#
        );
        assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), command);
        let older =
            r#"{"cluster":null,"brokers":[],"topics":[],"tombstones":[],"next_producer_id":0}"#;
        let decoded = ClusterState::decode(older.as_bytes()).unwrap();
        assert!(decoded.groups.is_empty());
        let again = String::from_utf8(decoded.encode().unwrap()).unwrap();
        assert!(!again.contains("groups"), "{again}");
    }

    #[test]
    fn only_what_can_hold_is_proposed_in_the_form_in_which_it_is_kept() {
        let kept = checked("g", set(SESSION, ConfigChange::Set(" 050000".into()))).unwrap();
        assert_eq!(kept, wanted("g", false, &[(SESSION, Some("50000"))]));
        // Tools clean up what they may have set before.
        let deleted = checked("g", set("no.such", ConfigChange::Delete)).unwrap();
        assert_eq!(deleted, wanted("g", false, &[("no.such", None)]));
        for (name, change) in [
            (SESSION, ConfigChange::Set("44999".into())),
            (SESSION, ConfigChange::Append("1".into())),
            (SESSION, ConfigChange::Subtract("1".into())),
            ("no.such", ConfigChange::Set("1".into())),
        ] {
            let refused = checked("g", set(name, change));
            assert!(matches!(refused, Err(AlterGroupError::Config(_))));
        }
    }

    #[test]
    fn a_group_has_a_name_of_a_bounded_length() {
        let named = |name: &str| checked(name, Alteration::default()).map(|_| ());
        assert_eq!(named(""), Err(AlterGroupError::NoName));
        assert_eq!(named(&"x".repeat(NAME_BYTES_MAX)), Ok(()));
        let refused = named(&"x".repeat(NAME_BYTES_MAX + 1));
        assert_eq!(refused, Err(AlterGroupError::NameTooLong(256)));
    }
}
