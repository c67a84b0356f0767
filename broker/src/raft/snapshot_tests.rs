//! What a snapshot stands for, and what it takes along: on a real log, with an owner that names its point.

use super::files::Travelling;
use super::group::RoleCell;
use super::log_store::LogStore;
use super::state_machine::{Apply, Committed, Machine};
use super::types::{
    Membership, Payload, Proposal, RaftEntry, StoredMembership, TypeConfig, log_id, unstamped,
};
use bytes::Bytes;
use futures_util::future::FutureExt as _;
use logd_storage::vfs::{RealFs, SimFs};
use logd_storage::{Disk, DiskOptions, EntryId, Log, LogKey, LogOptions, Pump};
use openraft::alias::SnapshotMetaOf;
use openraft::entry::RaftEntry as _;
use openraft::impls::BasicNode;
use openraft::storage::{RaftLogStorageExt as _, RaftSnapshotBuilder as _, RaftStateMachine};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Its snapshots end with one entry.
struct Named {
    point: Option<u64>,
    restored: Bytes,
}

impl Apply for Named {
    fn apply(&mut self, _entry: Committed<'_>) -> io::Result<Bytes> {
        Ok(Bytes::new())
    }

    fn term_began(&mut self, _term: u64, _end_offset: i64) {}

    fn capture(&self) -> Bytes {
        Bytes::from_static(b"as of now")
    }

    fn restore(&mut self, state: Bytes, _applied: Option<EntryId>) -> io::Result<()> {
        self.restored = state;
        Ok(())
    }

    fn snapshot_point(&self) -> Option<EntryId> {
        self.point.map(|index| EntryId { term: 1, index })
    }

    fn snapshot_at(&self, point: EntryId) -> Bytes {
        format!("as of {}", point.index).into()
    }
}

fn open(dir: &std::path::Path, point: Option<u64>) -> (Disk, Log, Machine<Named>) {
    let disk = Disk::open(Arc::new(RealFs), dir, DiskOptions::default(), &|_| {}).unwrap();
    let (log, machine) = open_on(&disk, point);
    (disk, log, machine)
}

fn open_on(disk: &Disk, point: Option<u64>) -> (Log, Machine<Named>) {
    let key = LogKey {
        topic: [7; 16],
        partition: 0,
    };
    let log = disk.open_log(key, LogOptions::default()).unwrap();
    let role = Arc::new(RoleCell::new(0, 0, 0, Arc::new(|_| {})));
    let restored = Bytes::new();
    let machine = Machine::open(Named { point, restored }, log.clone(), role).unwrap();
    (log, machine)
}

fn members(of: &[u64]) -> Membership {
    let nodes: BTreeMap<u64, BasicNode> = of.iter().map(|n| (*n, BasicNode::default())).collect();
    Membership::new(vec![of.iter().copied().collect()], nodes).unwrap()
}

/// Ten entries: the members are 1 from entry 0 on, 1 and 2 from entry 6 on; the rest is data.
async fn fill(log: &Log, machine: &mut Machine<Named>) {
    let role = Arc::new(RoleCell::new(0, 0, 0, Arc::new(|_| {})));
    let mut store = LogStore::new(log.clone(), unstamped, role).unwrap();
    let payload = |index| match index {
        0 => Payload::Membership(members(&[1])),
        6 => Payload::Membership(members(&[1, 2])),
        _ => Payload::Normal(Proposal::data(Bytes::from_static(b"batch"), 1, -1)),
    };
    let entries = || (0..10).map(|index| RaftEntry::new(log_id(1, index), payload(index)));
    store.blocking_append(entries()).await.unwrap();
    let committed = entries().map(|entry| Ok((entry, None)));
    let committed = futures_util::stream::iter(committed);
    machine.apply(committed).await.unwrap();
}

async fn snapshot(machine: &mut Machine<Named>) -> (u64, StoredMembership, Travelling) {
    let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();
    let travelling = Travelling::decode(&snapshot.snapshot).unwrap();
    let last = snapshot.meta.last_log_id.unwrap().index();
    (last, snapshot.meta.last_membership, travelling)
}

#[tokio::test]
async fn members_that_came_later_do_not_move_the_point_of_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, log, mut machine) = open(dir.path(), Some(3));
    fill(&log, &mut machine).await;
    let mut builder = machine.get_snapshot_builder().await;
    builder.build_snapshot().await.unwrap();
    let (last, membership, travelling) = snapshot(&mut machine).await;
    assert_eq!(last, 3, "a replica that gets it lacks nothing behind it");
    assert_eq!(*membership.membership(), members(&[1]));
    assert_eq!(
        (travelling.next_offset, &travelling.state[..]),
        (3, &b"as of 3"[..])
    );

    let upto = EntryId { term: 1, index: 3 };
    super::log_store::durable(|done| log.purge_to(upto, done).map_err(io::Error::other))
        .await
        .unwrap();
    disk.checkpoint().unwrap();
    drop((machine, log));
    disk.close().unwrap();
    let (_disk, _log, mut machine) = open(dir.path(), None);
    let (last, membership, _) = snapshot(&mut machine).await;
    assert_eq!(last, 3, "after a restart, too");
    assert_eq!(*membership.membership(), members(&[1]));
}

#[tokio::test]
async fn a_later_point_has_the_members_of_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let (_disk, log, mut machine) = open(dir.path(), Some(7));
    fill(&log, &mut machine).await;
    let mut builder = machine.get_snapshot_builder().await;
    builder.build_snapshot().await.unwrap();
    let (last, membership, _) = snapshot(&mut machine).await;
    assert_eq!(last, 7);
    assert_eq!(*membership.membership(), members(&[1, 2]));
    let named_at = membership.log_id().as_ref().map(|id| id.index());
    assert_eq!(named_at, Some(6));
}

/// A follower would else show what is left of a compacted log up to an older high watermark: less than it had.
#[tokio::test]
async fn whoever_reads_an_installed_log_finds_its_state_before_the_disk_has_either() {
    let options = DiskOptions {
        pump: Pump::Manual,
        ..DiskOptions::default()
    };
    let root = std::path::Path::new("/data");
    let disk = Disk::open(Arc::new(SimFs::new(1)), root, options, &|_| {}).unwrap();
    let (log, mut machine) = open_on(&disk, None);
    let travelling = Travelling {
        with_files: false,
        next_offset: 40,
        state: Bytes::from_static(b"as of 9"),
    };
    let named = StoredMembership::new(Some(log_id(1, 0)), members(&[1]));
    let meta = SnapshotMetaOf::<TypeConfig> {
        last_log_id: Some(log_id(2, 9)),
        last_membership: named,
    };
    let reader = machine.clone();
    let mut install = std::pin::pin!(machine.install_snapshot(&meta, travelling.encode()));
    let early = install.as_mut().now_or_never();
    assert!(early.is_none(), "the disk has done nothing yet");
    assert_eq!(log.bounds().end_offset, 40);
    let restored = reader.with(|owner| owner.restored.clone());
    assert_eq!(restored, travelling.state);
    while disk.pump() {}
    let late = install.as_mut().now_or_never();
    late.expect("it is durable").unwrap();
}
