//! openraft's own storage suite on our log store and state machine, over a real disk in a temporary folder.

use super::group::RoleCell;
use super::log_store::LogStore;
use super::state_machine::{Apply, Committed, Machine};
use super::types::{TypeConfig, unstamped};
use bytes::Bytes;
use logd_storage::vfs::RealFs;
use logd_storage::{Disk, DiskOptions, EntryId, LogKey, LogOptions};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use std::io;
use std::sync::Arc;

/// A state machine that only counts.
struct Counter;

impl Apply for Counter {
    fn apply(&mut self, _entry: Committed<'_>) -> io::Result<Bytes> {
        Ok(Bytes::new())
    }

    fn term_began(&mut self, _term: u64, _end_offset: i64) {}

    fn capture(&self) -> Bytes {
        Bytes::new()
    }

    fn restore(&mut self, _state: Bytes, _applied: Option<EntryId>) -> io::Result<()> {
        Ok(())
    }

    fn snapshot_point(&self) -> Option<EntryId> {
        None
    }

    fn snapshot_at(&self, _point: EntryId) -> Bytes {
        Bytes::new()
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine<Counter>, (tempfile::TempDir, Disk)> for Builder {
    async fn build(
        &self,
    ) -> Result<((tempfile::TempDir, Disk), LogStore, Machine<Counter>), StorageError<TypeConfig>>
    {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(
            Arc::new(RealFs),
            dir.path(),
            DiskOptions::default(),
            &|_| {},
        )
        .unwrap();
        let log = disk
            .open_log(
                LogKey {
                    topic: [7; 16],
                    partition: 0,
                },
                LogOptions::default(),
            )
            .unwrap();
        let role = Arc::new(RoleCell::new(0, 0, 0, Arc::new(|_| {})));
        let store = LogStore::new(log.clone(), unstamped, role.clone()).unwrap();
        let machine = Machine::open(Counter, log, role).unwrap();
        Ok(((dir, disk), store, machine))
    }
}

#[tokio::test]
async fn openrafts_storage_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}
