//! Planted bugs: what a broker would do that breaks its promises, done to it from outside. The simulation
//! must notice each of them, or it would not notice the real thing.

use crate::broker::Broker;
use crate::net::BROKERS;
use logd_proto::rpc::v1::envelope::Body;
use logd_proto::rpc::v1::group_message::Kind;
use logd_proto::rpc::v1::{
    AppendResponse, GroupMessage, LogId, VoteResponse, append_response::Outcome,
};
use logd_storage::vfs::{Mapped, Open, SimFs, Vfs, VfsFile};
use std::any::Any;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    None,
    /// Disks say that they have synced the write-ahead log and have not: acknowledged before it is durable.
    NoSync,
    /// One broker says that it has taken entries and throws them away.
    StoresNothing,
    /// Followers are told that everything sent to them is committed: high watermarks too early.
    EarlyCommit,
    /// Every vote is granted, whoever asks, and not remembered.
    VotesForAll,
    /// A leader that has restarted goes on in its old term.
    #[cfg(feature = "mutants")]
    LeadersRestored,
    /// No lie, but bad luck: no message that hands leadership over arrives. It must be survived.
    HandOversLost,
    /// A disk that was lost is replaced by an empty one that votes under the old name.
    WipedDisk,
    /// One broker's compaction drops the last value of a key.
    LosesLast,
    /// One broker's compaction drops tombstones before what they remove.
    BuriesEarly,
    /// One broker's compaction gives a batch another offset.
    Renumbers,
}

/// What becomes of a message that the network would deliver.
pub enum Delivery {
    Arrives(Body),
    /// It does not, and this is the answer.
    Answered(Body),
}

/// The broker that lies, where it is one.
pub const LIAR: usize = BROKERS - 1;

impl Lie {
    /// Begins before the first broker does, on the thread of the run.
    pub fn begin(self) {
        #[cfg(feature = "mutants")]
        logd::raft::restore_leaders(self == Lie::LeadersRestored);
    }

    pub fn file_system(self, fs: &SimFs, _broker: usize) -> Arc<dyn Vfs> {
        match self {
            Lie::NoSync => Arc::new(Unsynced(fs.clone())),
            _ => Arc::new(fs.clone()),
        }
    }

    /// Whether the liar's compaction is not what it should be (`forged`).
    pub fn forges(self) -> bool {
        matches!(self, Lie::LosesLast | Lie::BuriesEarly | Lie::Renumbers)
    }

    /// What arrives instead of a message, or is answered instead.
    pub fn intercept(self, to: usize, mut body: Body) -> Delivery {
        let Body::Group(message) = &mut body else {
            return Delivery::Arrives(body);
        };
        match (&mut message.kind, self) {
            (Some(Kind::Append(append)), Lie::StoresNothing)
                if to == LIAR && !append.entries.is_empty() =>
            {
                let outcome = Some(Outcome::Success(true));
                return Delivery::Answered(group(Kind::Appended(AppendResponse { outcome })));
            }
            (Some(Kind::Append(append)), Lie::EarlyCommit) => {
                let last = append.entries.last();
                let last = last.map(|e| LogId {
                    term: e.term,
                    index: e.index,
                });
                append.committed = last.or(append.committed);
            }
            (Some(Kind::Vote(vote)), Lie::VotesForAll) => {
                return Delivery::Answered(group(Kind::Voted(VoteResponse {
                    vote: vote.vote,
                    last: None,
                    granted: true,
                })));
            }
            _ => {}
        }
        Delivery::Arrives(body)
    }

    /// Whether a message gets lost that the weather would let through.
    pub fn loses(self, body: &Body) -> bool {
        let hands_over =
            matches!(body, Body::Group(m) if matches!(m.kind, Some(Kind::Transfer(_))));
        self == Lie::HandOversLost && hands_over
    }

    pub fn went_down(self, broker: &mut Broker) {
        if self == Lie::WipedDisk {
            let fs = SimFs::new(broker.start);
            broker.seen_fs = Arc::new(fs.clone());
            broker.fs = fs;
        }
    }
}

fn group(kind: Kind) -> Body {
    Body::Group(GroupMessage {
        kind: Some(kind),
        ..GroupMessage::default()
    })
}

/// A file system that syncs no file of the write-ahead log.
#[derive(Debug)]
struct Unsynced(SimFs);

/// A file whose head is synced and whose groups are not.
#[derive(Debug)]
struct UnsyncedFile {
    file: Arc<dyn VfsFile>,
    has_groups: AtomicBool,
}

impl Vfs for Unsynced {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn VfsFile>> {
        if path.parent() != Some(Path::new("/data/wal")) {
            return self.0.open(path, how);
        }
        let how = Open {
            direct: false,
            ..how
        };
        Ok(Arc::new(UnsyncedFile {
            file: self.0.open(path, how)?,
            has_groups: AtomicBool::new(false),
        }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.remove_dir_all(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        self.0.read_dir(path)
    }

    fn exists(&self, path: &Path) -> bool {
        self.0.exists(path)
    }

    fn file_len(&self, path: &Path) -> io::Result<u64> {
        self.0.file_len(path)
    }

    fn free_space(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.0.free_space(path)
    }

    fn try_lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        self.0.try_lock(path)
    }

    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        self.0.is_locked(path)
    }
}

impl VfsFile for UnsyncedFile {
    fn read_exact_at(&self, buf: &mut [u8], pos: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, pos)
    }

    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        self.file.read_at(buf, pos)
    }

    fn write_all_at(&self, bufs: &[IoSlice<'_>], pos: u64) -> io::Result<()> {
        self.has_groups.fetch_or(pos > 0, Ordering::Relaxed);
        self.file.write_all_at(bufs, pos)
    }

    fn write_aligned_at(&self, buf: &[u8], pos: u64) -> io::Result<()> {
        self.has_groups.fetch_or(pos > 0, Ordering::Relaxed);
        self.file.write_aligned_at(buf, pos)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.has_groups.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.file.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.file.reserve(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn map(&self, len: u64) -> io::Result<Mapped> {
        self.file.map(len)
    }
}
