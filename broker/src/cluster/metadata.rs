//! The metadata group's state machine: commands in JSON, one per entry, and the picture they make.
//!
//! Invariant: it stops where the cluster has come to a feature level that this build does not understand. What
//! follows would be misread.

use super::features::FeatureLevel;
use super::state::{Answer, ClusterState, Command};
use crate::raft::{Apply, Committed, EntryKind};
use bytes::Bytes;
use logd_storage::EntryId;
use serde::Deserialize;
use std::io;
use std::sync::Arc;
use tokio::sync::watch;
use tracing::error;

/// The metadata log's directory name: Kafka reserves the id 1 for it.
pub const METADATA_TOPIC: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Commands between two snapshots: a restart replays at most this many, whatever the cluster's age.
const SNAPSHOT_EVERY: u64 = 10_000;

/// Everybody's view of the cluster on this broker.
pub type View = watch::Receiver<Arc<ClusterState>>;

/// The state machine. Its [`View`] shows what it has come to.
pub struct Metadata {
    /// What this build understands.
    build: FeatureLevel,
    state: ClusterState,
    view: watch::Sender<Arc<ClusterState>>,
    snapshot: Option<(EntryId, Bytes)>,
}

impl Metadata {
    pub fn new(build: FeatureLevel) -> (Self, View) {
        let (view, viewer) = watch::channel(Arc::new(ClusterState::default()));
        (
            Self {
                build,
                state: ClusterState::default(),
                view,
                snapshot: None,
            },
            viewer,
        )
    }

    fn publish(&self) {
        self.view.send_replace(Arc::new(self.state.clone()));
    }

    /// Shows a level that this build does not understand, and stops. The state that is kept stays as it was: the
    /// newer build that comes next goes on from there.
    fn check(&self, level: FeatureLevel) -> io::Result<()> {
        if level <= self.build {
            return Ok(());
        }
        let mut shown = self.state.clone();
        shown.features = level;
        self.view.send_replace(Arc::new(shown));
        let build = self.build;
        Err(invalid("metadata", Outgrown { build, level }))
    }

    fn maybe_snapshot(&mut self, id: EntryId) {
        let last = self.snapshot.as_ref().map_or(0, |(point, _)| point.index);
        if id.index >= last + SNAPSHOT_EVERY {
            self.snapshot = Some((id, self.capture()));
        }
    }
}

/// The cluster has come further than a build understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this build understands feature level {build}, the cluster is at level {level}: a downgrade is not possible; \
     start the newer binary"
)]
pub struct Outgrown {
    pub build: FeatureLevel,
    pub level: FeatureLevel,
}

/// Of a captured state, what says whether the rest can be read.
#[derive(Deserialize)]
struct Level {
    #[serde(default)]
    features: FeatureLevel,
}

fn invalid(what: &str, why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {why}"))
}

/// The payload of a command's entry.
pub(super) fn encode(command: &Command) -> Result<Bytes, serde_json::Error> {
    serde_json::to_vec(command).map(Bytes::from)
}

impl Apply for Metadata {
    fn apply(&mut self, entry: Committed<'_>) -> io::Result<Bytes> {
        if entry.kind != EntryKind::Data {
            return Err(invalid(
                "metadata entry",
                "a control command of a later version",
            ));
        }
        let parts = [&entry.head[..], &entry.body[..]].concat();
        let command: Command =
            serde_json::from_slice(&parts).map_err(|e| invalid("metadata command", e))?;
        let ends_here = matches!(command, Command::MetadataRecovered { .. });
        let answer: Answer = self.state.apply(command);
        self.state.applied = entry.index;
        self.check(self.state.features)?;
        self.publish();
        let id = EntryId {
            term: entry.term,
            index: entry.index,
        };
        match ends_here {
            // What lies below names voters who have forgotten what they had: nobody is sent it (`keep`).
            true => self.snapshot = Some((id, self.capture())),
            false => self.maybe_snapshot(id),
        }
        serde_json::to_vec(&answer)
            .map(Bytes::from)
            .map_err(|e| invalid("answer", e))
    }

    fn term_began(&mut self, _term: u64, _end_offset: i64) {
        self.publish();
    }

    fn capture(&self) -> Bytes {
        match self.state.encode() {
            Ok(bytes) => Bytes::from(bytes),
            Err(why) => {
                // Strings and numbers encode; if they ever do not, restoring must fail loudly, not start empty.
                error!(%why, "the cluster's state does not encode");
                Bytes::from_static(b"unencodable")
            }
        }
    }

    fn restore(&mut self, state: Bytes, applied: Option<EntryId>) -> io::Result<()> {
        // First of all: of the rest, a later level's may be unknown here.
        let level: Level = serde_json::from_slice(&state)
            .map_err(|e| invalid("the cluster's captured state", e))?;
        self.check(level.features)?;
        self.state =
            ClusterState::decode(&state).map_err(|e| invalid("the cluster's captured state", e))?;
        self.state.applied = applied.map_or(0, |id| id.index);
        self.snapshot = applied.map(|id| (id, state));
        self.publish();
        Ok(())
    }

    fn snapshot_point(&self) -> Option<EntryId> {
        self.snapshot.as_ref().map(|(point, _)| *point)
    }

    fn snapshot_at(&self, point: EntryId) -> Bytes {
        match &self.snapshot {
            Some((at, state)) if *at == point => state.clone(),
            _ => self.capture(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::BUILD;
    use crate::cluster::register::tests::broker;
    use crate::cluster::state::BrokerInfo;
    use std::collections::BTreeMap;

    const NEXT: u32 = 9;

    #[test]
    fn a_forced_recovery_is_where_the_log_can_be_cut() {
        let (mut metadata, _) = Metadata::new(BUILD);
        apply(
            &mut metadata,
            1,
            &Command::RegisterBroker(broker(7, 1, "a:1")),
        )
        .unwrap();
        assert_eq!(metadata.snapshot_point(), None);
        let recovered = Command::MetadataRecovered { generation: 1 };
        apply(&mut metadata, 2, &recovered).unwrap();
        let point = EntryId { term: 1, index: 2 };
        assert_eq!(metadata.snapshot_point(), Some(point));
        apply(
            &mut metadata,
            3,
            &Command::RegisterBroker(broker(8, 1, "b:1")),
        )
        .unwrap();
        let state = ClusterState::decode(&metadata.snapshot_at(point)).unwrap();
        assert_eq!((state.brokers.len(), state.generation), (1, 1));
    }

    fn apply(metadata: &mut Metadata, index: u64, command: &Command) -> io::Result<Bytes> {
        let payload = encode(command).unwrap();
        metadata.apply(Committed {
            term: 1,
            index,
            kind: EntryKind::Data,
            base_offset: 0,
            records: 1,
            max_timestamp: -1,
            head: &Bytes::new(),
            body: &payload,
        })
    }

    /// A broker of a later build registers, and is alone in raising the level.
    fn outgrow(metadata: &mut Metadata) -> io::Result<Bytes> {
        let features = FeatureLevel::new(NEXT);
        let info = BrokerInfo {
            features,
            ..broker(7, 1, "a:1")
        };
        apply(metadata, 1, &Command::RegisterBroker(info)).unwrap();
        let raise = Command::RaiseFeatureLevel {
            level: features,
            starts: BTreeMap::from([(7, 1)]),
        };
        apply(metadata, 2, &raise)
    }

    fn says_why(outcome: io::Result<impl Sized>, view: &View) {
        let why = outcome.err().unwrap().to_string();
        let numbers = format!("understands feature level {BUILD}, the cluster is at level {NEXT}");
        assert!(
            why.contains(&numbers) && why.contains("newer binary"),
            "{why}"
        );
        // Whoever looks for it does not go by the error alone.
        assert_eq!(view.borrow().features, FeatureLevel::new(NEXT));
    }

    #[test]
    fn a_level_beyond_this_build_stops_it_where_it_is_applied() {
        let (mut metadata, view) = Metadata::new(BUILD);
        says_why(outgrow(&mut metadata), &view);
        let (mut newer, _) = Metadata::new(FeatureLevel::new(NEXT));
        assert!(outgrow(&mut newer).is_ok());
    }

    #[test]
    fn a_level_beyond_this_build_stops_it_before_the_rest_of_a_state_is_read() {
        let (mut metadata, view) = Metadata::new(BUILD);
        let unreadable = format!(r#"{{"features":{NEXT},"brokers":"otherwise"}}"#);
        says_why(metadata.restore(unreadable.into(), None), &view);
    }
}
