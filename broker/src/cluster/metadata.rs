//! The metadata group's state machine: commands in JSON, one per entry, and the picture they make.

use super::state::{Answer, ClusterState, Command};
use crate::raft::{Apply, Committed, EntryKind};
use bytes::Bytes;
use logd_storage::EntryId;
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
    state: ClusterState,
    view: watch::Sender<Arc<ClusterState>>,
    snapshot: Option<(EntryId, Bytes)>,
}

impl Metadata {
    pub fn new() -> (Self, View) {
        let (view, viewer) = watch::channel(Arc::new(ClusterState::default()));
        (
            Self {
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

    fn maybe_snapshot(&mut self, id: EntryId) {
        let last = self.snapshot.as_ref().map_or(0, |(point, _)| point.index);
        if id.index >= last + SNAPSHOT_EVERY {
            self.snapshot = Some((id, self.capture()));
        }
    }
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
        let answer: Answer = self.state.apply(command);
        self.state.applied = entry.index;
        self.publish();
        self.maybe_snapshot(EntryId {
            term: entry.term,
            index: entry.index,
        });
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
