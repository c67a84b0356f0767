//! What brokers of different builds have in common: the cluster's feature level. Pure, part of the state.
//!
//! Promise: a command is written only when every registered broker's build understands it, so an upgrade one
//! broker at a time stops nobody. The level rises when the last of them is upgraded, and never falls.
//! Invariant: what raises it names the starts of all brokers it was decided on, and is void if one has started
//! since. A leader or a snapshot from before there were levels hands on the starts, not what builds understand.
//! Not here: when the next level is asked for (`keep`), who is refused a connection (`peers`).
//!
//! | level | what it brought |
//! |---|---|
//! | 1 | all that was there before there were levels |
//! | 2 | the level itself; settings of groups |

use super::state::{Answer, ClusterState, Command, Refusal};
use crate::raft::ReplicaId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Of a build, the highest level it understands; of a cluster, the one in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FeatureLevel(u32);

/// What this build understands: the last line of the table above.
pub const BUILD: FeatureLevel = FeatureLevel(2);

impl FeatureLevel {
    /// Of whatever does not say it: it is from before there were levels.
    pub const FIRST: Self = Self(1);

    /// A level as it came from elsewhere; 0 is one that was not said.
    pub fn new(level: u32) -> Self {
        Self(level).max(Self::FIRST)
    }

    pub fn number(self) -> u32 {
        self.0
    }
}

impl Default for FeatureLevel {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for FeatureLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Command {
    /// The level from which every broker understands it. What a command may contain can depend on the level too:
    /// then it is asked here as well.
    pub fn since(&self) -> FeatureLevel {
        match self {
            Command::Found { .. }
            | Command::RegisterBroker(_)
            | Command::CreateTopic(_)
            | Command::DeleteTopic { .. }
            | Command::AlterConfig { .. }
            | Command::AlterBrokers(_)
            | Command::AddPartitions(_)
            | Command::Reaped { .. }
            | Command::AllocateProducerIds { .. }
            | Command::SetTargets { .. }
            | Command::MovesOver { .. }
            | Command::Recover(_)
            // A build that does not know it takes no part in a cluster whose metadata was recovered: it does not speak
            // the protocol that is needed there (`Door::descends_from`), nor read the card (`card`).
            | Command::MetadataRecovered { .. }
            | Command::SetDuty { .. }
            | Command::RemoveBroker { .. } => FeatureLevel::FIRST,
            Command::RaiseFeatureLevel { .. } | Command::AlterGroup(_) => FeatureLevel(2),
        }
    }
}

/// A command that some broker would not understand; it was not written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AboveLevel {
    pub needed: FeatureLevel,
    pub level: FeatureLevel,
    /// The brokers that hold it back, with what their builds understand.
    pub older: BTreeMap<i32, FeatureLevel>,
}

impl fmt::Display for AboveLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needed, level, .. } = self;
        write!(
            f,
            "this needs feature level {needed}, the cluster is at level {level}: "
        )?;
        if self.older.is_empty() {
            return f.write_str(
                "every broker understands it by now, and the level is about to rise; try again",
            );
        }
        for (nth, (node, build)) in self.older.iter().enumerate() {
            let comma = if nth == 0 { "" } else { ", " };
            write!(f, "{comma}the build of broker {node} understands {build}")?;
        }
        f.write_str("; start the newer binary there (or decommission the broker), and the level rises by itself")
    }
}

impl std::error::Error for AboveLevel {}

/// What brokers say of themselves while they are here: for each disk its start, and what its build understands.
pub type Told = BTreeMap<ReplicaId, (u64, FeatureLevel)>;

impl ClusterState {
    /// Brokers whose builds do not understand a level.
    fn older_than(&self, level: FeatureLevel) -> BTreeMap<i32, FeatureLevel> {
        let older = self.brokers.values().filter(|b| b.features < level);
        older.map(|b| (b.id, b.features)).collect()
    }

    /// Whether a command may be written now. The leader asks: its picture is as new as the log.
    ///
    /// # Errors
    /// If some broker's build would not understand it.
    pub fn admits(&self, command: &Command) -> Result<(), AboveLevel> {
        let since = command.since();
        let (needed, open) = match command {
            // The level cannot be asked for what raises it; the builds can.
            Command::RaiseFeatureLevel { level, .. } => {
                let needed = since.max(*level);
                (needed, self.older_than(needed).is_empty())
            }
            _ => (since, since <= self.features),
        };
        if open {
            return Ok(());
        }
        Err(AboveLevel {
            needed,
            level: self.features,
            older: self.older_than(needed),
        })
    }

    /// Why a command is not even sent to the leader: that one's build is among those that do not know it.
    pub fn unreadable_at(&self, leader: ReplicaId, command: &Command) -> Option<AboveLevel> {
        let why = self.admits(command).err()?;
        let leader = self.node_of(leader)?;
        why.older.contains_key(&leader).then_some(why)
    }

    /// What raises the level as far as every registered broker, here or away, and the build that decides understand it.
    pub fn next_level(&self, build: FeatureLevel, told: &Told) -> Option<Command> {
        let understood = self.brokers.values().map(|b| match told.get(&b.replica) {
            Some((start, build)) if *start == b.start => b.features.max(*build),
            _ => b.features,
        });
        let level = understood.min()?.min(build);
        (level > self.features).then(|| Command::RaiseFeatureLevel {
            level,
            starts: self.starts(),
        })
    }

    fn starts(&self) -> BTreeMap<ReplicaId, u64> {
        let brokers = self.brokers.values();
        brokers.map(|b| (b.replica, b.start)).collect()
    }

    pub(super) fn raise(
        &mut self,
        level: FeatureLevel,
        starts: &BTreeMap<ReplicaId, u64>,
    ) -> Answer {
        if level <= self.features {
            return Answer::Done;
        }
        if *starts != self.starts() {
            return Answer::Refused(Refusal::OtherBrokers);
        }
        self.features = level;
        // Now every state says it, whichever build handed it on.
        for broker in self.brokers.values_mut() {
            broker.features = broker.features.max(level);
        }
        Answer::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::register::tests::broker;
    use crate::cluster::state::BrokerInfo;

    const ONE: FeatureLevel = FeatureLevel::FIRST;
    const TWO: FeatureLevel = FeatureLevel(2);
    const THREE: FeatureLevel = FeatureLevel(3);

    /// Brokers 1, 2, .. on disks 10, 20, .. with these builds.
    fn cluster(builds: &[FeatureLevel]) -> ClusterState {
        let mut s = ClusterState::default();
        for (build, disk) in builds.iter().zip(1..) {
            start(&mut s, disk, 1, *build);
        }
        s
    }

    fn start(s: &mut ClusterState, n: u64, start: u64, features: FeatureLevel) -> Answer {
        s.apply(Command::RegisterBroker(BrokerInfo {
            features,
            ..broker(n * 10, start, &format!("b{n}:1"))
        }))
    }

    fn raised(s: &ClusterState, told: &[(u64, u64, FeatureLevel)]) -> Option<FeatureLevel> {
        let told = told.iter().map(|(disk, start, b)| (*disk, (*start, *b)));
        match s.next_level(BUILD, &told.collect())? {
            Command::RaiseFeatureLevel { level, .. } => Some(level),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_level_rises_when_the_last_broker_understands_it_and_stays() {
        let mut s = cluster(&[TWO, ONE, TWO]);
        assert_eq!(s.next_level(BUILD, &Told::new()), None);
        start(&mut s, 2, 2, TWO);
        let raise = s.next_level(BUILD, &Told::new()).unwrap();
        assert_eq!(s.apply(raise.clone()), Answer::Done);
        assert_eq!(s.features, TWO);
        assert_eq!(s.next_level(BUILD, &Told::new()), None, "once");
        assert_eq!(s.apply(raise), Answer::Done, "asked for twice");
        assert_eq!(s.features, TWO);
    }

    #[test]
    fn nothing_is_raised_beyond_the_build_that_decides() {
        let s = cluster(&[THREE, THREE]);
        assert_eq!(raised(&s, &[]), Some(TWO));
        assert_eq!(
            ClusterState::default().next_level(BUILD, &Told::new()),
            None
        );
    }

    #[test]
    fn a_broker_that_started_since_makes_a_raise_void() {
        let mut s = cluster(&[TWO, TWO]);
        let raise = s.next_level(BUILD, &Told::new()).unwrap();
        assert_eq!(
            start(&mut s, 2, 2, ONE),
            Answer::Registered { node: 2 },
            "until the level has risen, it may go back"
        );
        assert_eq!(
            s.apply(raise),
            Answer::Refused(Refusal::OtherBrokers),
            "nobody may be left behind"
        );
        assert_eq!(s.features, ONE);
    }

    #[test]
    fn a_state_that_came_by_an_older_build_is_made_whole_by_who_is_there() {
        // It has kept the starts, and not what the builds understand.
        let mut handed_on = cluster(&[ONE, TWO]);
        let mut whole = cluster(&[TWO, TWO]);
        assert_eq!(raised(&handed_on, &[]), None);
        assert_eq!(
            raised(&handed_on, &[(10, 9, TWO)]),
            None,
            "of another start"
        );
        let told = Told::from([(10, (1, TWO))]);
        let raise = handed_on.next_level(BUILD, &told).unwrap();
        for s in [&mut handed_on, &mut whole] {
            assert_eq!(s.apply(raise.clone()), Answer::Done);
        }
        assert_eq!(handed_on, whole, "whatever they differed in before");
    }

    #[test]
    fn a_decommissioned_broker_holds_nothing_back() {
        use crate::cluster::Duty;
        let mut s = cluster(&[TWO, ONE]);
        let (node, duty) = (2, Duty::Leaving);
        s.apply(Command::SetDuty { node, duty });
        assert_eq!(raised(&s, &[]), None, "it is still there");
        s.apply(Command::RemoveBroker { node });
        assert_eq!(raised(&s, &[]), Some(TWO));
    }

    #[test]
    fn a_build_below_the_level_is_not_registered() {
        let mut s = cluster(&[TWO]);
        s.apply(s.next_level(BUILD, &Told::new()).unwrap());
        for refused in [start(&mut s, 1, 2, ONE), start(&mut s, 2, 1, ONE)] {
            let (build, level) = (ONE, TWO);
            let why = Refusal::NewerBuildNeeded { build, level };
            assert_eq!(refused, Answer::Refused(why));
        }
        assert_eq!(start(&mut s, 2, 1, TWO), Answer::Registered { node: 2 });
    }

    #[test]
    fn what_somebody_does_not_understand_is_not_written() {
        let mut s = cluster(&[TWO, ONE, ONE]);
        let raise = |level| Command::RaiseFeatureLevel {
            level,
            starts: BTreeMap::new(),
        };
        let older = BTreeMap::from([(2, ONE), (3, ONE)]);
        let refused = AboveLevel {
            needed: TWO,
            level: ONE,
            older,
        };
        // Whatever it asks for, the command itself is none that all understand.
        assert_eq!(s.admits(&raise(ONE)), Err(refused.clone()));
        assert_eq!(s.admits(&raise(TWO)), Err(refused.clone()));
        assert_eq!(
            refused.to_string(),
            "this needs feature level 2, the cluster is at level 1: the build of broker 2 understands 1, the build \
             of broker 3 understands 1; start the newer binary there (or decommission the broker), and the level \
             rises by itself"
        );
        start(&mut s, 2, 2, TWO);
        start(&mut s, 3, 2, TWO);
        assert_eq!(s.admits(&raise(TWO)), Ok(()));
        assert!(s.admits(&raise(THREE)).is_err());
        let old = Command::AllocateProducerIds { node: 1 };
        assert_eq!(s.admits(&old), Ok(()));
    }

    #[test]
    fn settings_of_groups_wait_for_the_level_that_brought_them() {
        use crate::cluster::GroupAlteration;
        let mut s = cluster(&[TWO, ONE]);
        let settings = Command::AlterGroup(GroupAlteration {
            group: "g".into(),
            replace: false,
            values: BTreeMap::new(),
        });
        let why = s.admits(&settings).unwrap_err();
        assert_eq!(why.older, BTreeMap::from([(2, ONE)]));
        start(&mut s, 2, 2, TWO);
        let why = s.admits(&settings).unwrap_err();
        assert!(why.to_string().contains("try again"), "{why}");
        s.apply(s.next_level(BUILD, &Told::new()).unwrap());
        assert_eq!(s.admits(&settings), Ok(()));
    }

    #[test]
    fn what_the_leader_cannot_read_is_not_sent_to_it() {
        let s = cluster(&[TWO, ONE]);
        let (level, starts) = (TWO, BTreeMap::new());
        let raise = Command::RaiseFeatureLevel { level, starts };
        assert_eq!(s.unreadable_at(10, &raise), None, "it says no itself");
        let why = s.unreadable_at(20, &raise);
        assert!(why.is_some(), "it would not know what it says");
        assert_eq!(why, s.admits(&raise).err());
        let old = Command::AllocateProducerIds { node: 1 };
        assert_eq!(s.unreadable_at(20, &old), None);
    }

    #[test]
    fn what_logs_have_from_before_there_were_levels_is_of_the_first() {
        let old = r#"{"id":1,"replica":7,"start":1,"rack":null,"listeners":{}}"#;
        let old: BrokerInfo = serde_json::from_str(old).unwrap();
        assert_eq!(old.features, ONE);
        let saved =
            r#"{"cluster":"x","brokers":[],"topics":[],"tombstones":[],"next_producer_id":0}"#;
        let saved = ClusterState::decode(saved.as_bytes()).unwrap();
        assert_eq!(saved.features, ONE);
    }

    #[test]
    fn the_level_and_the_builds_survive_their_encoding() {
        let mut s = cluster(&[TWO, THREE]);
        s.apply(s.next_level(BUILD, &Told::new()).unwrap());
        assert_eq!(s.features, TWO);
        assert_eq!(ClusterState::decode(&s.encode().unwrap()).unwrap(), s);
    }

    #[test]
    fn a_raise_keeps_its_written_form() {
        let raise = Command::RaiseFeatureLevel {
            level: TWO,
            starts: BTreeMap::from([(10, 1)]),
        };
        assert_eq!(raise.since(), TWO);
        let written = serde_json::to_string(&raise).unwrap();
        let form = r#"{"raise_feature_level":{"level":2,"starts":{"10":1}}}"#;
        assert_eq!(written, form);
        assert_eq!(serde_json::from_str::<Command>(form).unwrap(), raise);
    }
}
