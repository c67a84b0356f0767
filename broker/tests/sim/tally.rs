//! How much of what a run is there for has happened in it: a run in which nothing did proves nothing.

use crate::world::World;
use logd_proto::rpc::v1::GroupMessage;
use logd_proto::rpc::v1::envelope::Body;
use logd_proto::rpc::v1::group_message::Kind;
use std::collections::BTreeSet;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub acked: u64,
    /// Records that the emptiest replica of the compacted partition lacked.
    pub removed: u64,
    /// Keys whose last record, a tombstone, was gone.
    pub buried: u64,
    /// How often a client has read the compacted partition from its start to its end.
    pub scans: u64,
    /// Snapshots with files that were installed.
    pub installed: u64,
    /// Damaged replicas that were written again.
    pub healed: u64,
    /// How often the feature level rose.
    pub raised: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.acked += other.acked;
        self.removed += other.removed;
        self.buried += other.buried;
        self.scans += other.scans;
        self.installed += other.installed;
        self.healed += other.healed;
        self.raised += other.raised;
    }

    /// What has not happened at all.
    pub fn missing(&self) -> Vec<&'static str> {
        let all = [
            (self.acked, "nothing was acknowledged"),
            (self.removed, "nothing was compacted away"),
            (self.buried, "no tombstone's time was over"),
            (self.scans, "nobody read the compacted partition to its end"),
            (self.installed, "no files were installed"),
            (self.healed, "no damaged replica was written again"),
            (self.raised, "the feature level never rose"),
        ];
        let missing = all.into_iter().filter(|(count, _)| *count == 0);
        missing.map(|(_, what)| what).collect()
    }
}

/// Snapshots whose files came before them.
#[derive(Default)]
pub struct Installs {
    /// Calls that bring one.
    under_way: BTreeSet<u64>,
    taken: u64,
}

impl Installs {
    pub fn heard(&mut self, call: u64, body: &Body) {
        if let Some(Kind::Snapshot(snapshot)) = kind(body)
            // As `raft/files.rs` says it.
            && snapshot.state.get(1) == Some(&1)
        {
            self.under_way.insert(call);
        }
    }

    /// Whether one was taken.
    pub fn answered(&mut self, call: u64, body: &Body) -> bool {
        let had = self.under_way.remove(&call);
        let taken = had && matches!(kind(body), Some(Kind::SnapshotTaken(_)));
        self.taken += u64::from(taken);
        taken
    }
}

fn kind(body: &Body) -> Option<&Kind> {
    match body {
        Body::Group(GroupMessage { kind, .. }) => kind.as_ref(),
        _ => None,
    }
}

impl World {
    /// How much has happened so far.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally {
            acked: self.producers.iter().map(|p| p.acked).sum(),
            installed: self.installs.taken,
            healed: self.healed,
            ..Tally::default()
        };
        self.invariants.count(&mut tally);
        tally
    }
}
