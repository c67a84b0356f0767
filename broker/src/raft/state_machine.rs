//! What committed entries do: hands them to the owner, in order, and answers who proposed them.
//!
//! Invariant: `applied`, the membership and the owner's state move together under one lock, so that
//! a capture for the checkpoint is a point in the log. The lock is never held across an await.
//! A snapshot is not made at last-applied but at the point the owner names (the end of what
//! retention has dropped); its payload is the owner's state.

use super::codec::{Image, decode_image, decode_membership, encode_image};
use super::files::{Inbox, Travelling};
use super::group::RoleCell;
use super::log_store::{MEMBERSHIP, durable};
use super::types::{
    EntryKind, LogId, Outcome, Payload, Proposal, StoredMembership, TypeConfig, log_id,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use logd_storage::{Captured, EntryId, Log, StateSource, WriteError};
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::entry::RaftEntry as _;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// A committed entry as its owner sees it.
#[derive(Debug)]
pub struct Committed<'a> {
    pub term: u64,
    pub index: u64,
    pub kind: EntryKind,
    pub base_offset: i64,
    pub records: u32,
    pub max_timestamp: i64,
    /// The payload in two contiguous parts; the first may be empty.
    pub head: &'a Bytes,
    pub body: &'a Bytes,
}

/// The owner of a group: a deterministic state machine over its committed entries.
pub trait Apply: Send + 'static {
    /// Takes one committed entry.
    ///
    /// # Errors
    /// Only if the entry cannot be understood: the group then stops for good.
    fn apply(&mut self, entry: Committed<'_>) -> io::Result<Bytes>;

    /// A leader of `term` has begun: its blank is applied. `end_offset` is where it stands.
    fn term_began(&mut self, term: u64, end_offset: i64);

    /// The state after the last applied entry, to be given to [`Apply::restore`] after a restart.
    fn capture(&self) -> Bytes;

    /// Takes up a captured state, or a snapshot's.
    ///
    /// # Errors
    /// If the bytes are neither.
    fn restore(&mut self, state: Bytes, applied: Option<EntryId>) -> io::Result<()>;

    /// The last entry that a snapshot may stand for, if anything below is not needed any more.
    fn snapshot_point(&self) -> Option<EntryId>;

    /// The state after the entry `point`, not a later one: entries behind it will be applied again.
    fn snapshot_at(&self, point: EntryId) -> Bytes;
}

struct Inner<A> {
    owner: A,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// As of the last snapshot's point: what named the members then is no entry any more.
    below: StoredMembership,
    /// The last one built or installed in this process; after a restart it is made again when asked for.
    current: Option<(SnapshotMetaOf<TypeConfig>, Bytes)>,
}

pub(super) struct Machine<A> {
    inner: Arc<Mutex<Inner<A>>>,
    log: Log,
    role: Arc<RoleCell>,
    inbox: Inbox,
}

impl<A> Clone for Machine<A> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            log: self.log.clone(),
            role: self.role.clone(),
            inbox: self.inbox.clone(),
        }
    }
}

impl<A: Apply> Machine<A> {
    /// Takes up where the checkpoint left it; registers for the next ones.
    pub fn open(mut owner: A, log: Log, role: Arc<RoleCell>) -> io::Result<Self> {
        let mut applied = None;
        let mut membership = StoredMembership::default();
        let mut below = StoredMembership::default();
        if let Some(captured) = log.recovered_state() {
            let image = decode_image(captured.state)?;
            owner.restore(image.owner, image.applied.as_ref().map(entry_id))?;
            (applied, membership, below) = (image.applied, image.membership, image.below);
        }
        let machine = Self {
            inner: Arc::new(Mutex::new(Inner {
                owner,
                applied,
                membership,
                below,
                current: None,
            })),
            log: log.clone(),
            role,
            inbox: Inbox::new(log.clone()),
        };
        log.set_state_source(Arc::new(Source(machine.inner.clone())));
        Ok(machine)
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// The owner's snapshot point, once it is applied.
    pub fn point(&self) -> Option<EntryId> {
        self.inner.lock().point()
    }

    pub fn with<T>(&self, f: impl FnOnce(&A) -> T) -> T {
        f(&self.inner.lock().owner)
    }

    fn apply_one(&self, id: LogId, payload: &Payload) -> io::Result<Outcome> {
        let mut inner = self.inner.lock();
        let (term, index) = (id.committed_leader_id().term, id.index());
        let outcome = match payload {
            Payload::Blank => {
                let end = self
                    .log
                    .entry_row(index)
                    .map_or_else(|| self.log.bounds().end_offset, |row| row.base_offset);
                inner.owner.term_began(term, end);
                self.role.term_began(term);
                Outcome::default()
            }
            Payload::Membership(m) => {
                inner.membership = StoredMembership::new(Some(id), m.clone());
                Outcome::default()
            }
            Payload::Normal(p) => apply_normal(&mut inner.owner, term, index, p)?,
        };
        inner.applied = Some(id);
        Ok(outcome)
    }

    /// The offset of the first entry behind `point`: where a log begins that has the snapshot below it.
    fn offset_after(&self, point: EntryId) -> i64 {
        match self.log.entry_row(point.index + 1) {
            Some(row) => row.base_offset,
            None => self.log.bounds().end_offset,
        }
    }

    /// Has the state as of now kept for the next start, before anything that is done to the log afterwards.
    pub fn keep_state(&self) -> Result<(), WriteError> {
        match Source(self.inner.clone()).capture() {
            Some(captured) => self.log.save_state(captured, Box::new(|_| {})),
            None => Ok(()),
        }
    }

    fn take_up(
        &self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: Bytes,
        state: Bytes,
    ) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.current = Some((meta.clone(), snapshot));
        let applied = meta.last_log_id.as_ref().map(entry_id);
        inner.owner.restore(state, applied)?;
        inner.applied = meta.last_log_id;
        inner.membership = meta.last_membership.clone();
        inner.below = meta.last_membership.clone();
        Ok(())
    }

    /// The members as of an applied entry: a snapshot must not tell of what lies behind it.
    fn membership_at(&self, inner: &Inner<A>, point: EntryId) -> StoredMembership {
        let is_older = |m: &StoredMembership| {
            m.log_id()
                .as_ref()
                .map(entry_id)
                .is_none_or(|id| id.index <= point.index)
        };
        if is_older(&inner.membership) {
            return inner.membership.clone();
        }
        let entry = self.log.last_control(MEMBERSHIP, point.index);
        let named = entry.and_then(|(id, body)| {
            let membership = decode_membership(&body).ok()?;
            let id = log_id(id.term, id.index);
            Some(StoredMembership::new(Some(id), membership))
        });
        match named {
            Some(named) => named,
            None if inner.below.log_id().is_some() && is_older(&inner.below) => inner.below.clone(),
            // An older version's checkpoint does not say. The newest is committed, too.
            None => inner.membership.clone(),
        }
    }

    /// A snapshot at the owner's point; at the last applied entry if the owner names none.
    fn snapshot(&self) -> SnapshotOf<TypeConfig, Bytes> {
        let mut inner = self.inner.lock();
        let applied = inner.applied.as_ref().map(entry_id);
        let point = inner.point().max(self.log.bounds().purged).or(applied);
        let snapshot = point.map_or_else(Bytes::new, |point| {
            let state = if point == applied.unwrap_or(point) {
                inner.owner.capture()
            } else {
                inner.owner.snapshot_at(point)
            };
            let travelling = Travelling {
                with_files: false,
                next_offset: self.offset_after(point),
                state,
            };
            travelling.encode()
        });
        if let Some(point) = point {
            inner.below = self.membership_at(&inner, point);
        }
        let meta = SnapshotMetaOf::<TypeConfig> {
            last_log_id: point.map(|p| log_id(p.term, p.index)),
            last_membership: inner.below.clone(),
        };
        inner.current = Some((meta.clone(), snapshot.clone()));
        Snapshot { meta, snapshot }
    }
}

impl<A: Apply> Inner<A> {
    fn point(&self) -> Option<EntryId> {
        let applied = self.applied.as_ref().map(entry_id);
        let point = self.owner.snapshot_point();
        point.filter(|p| applied.is_some_and(|a| p.index <= a.index))
    }
}

pub(super) fn entry_id(id: &LogId) -> EntryId {
    EntryId {
        term: id.committed_leader_id().term,
        index: id.index(),
    }
}

fn apply_normal<A: Apply>(
    owner: &mut A,
    term: u64,
    index: u64,
    p: &Proposal,
) -> io::Result<Outcome> {
    let entry = Committed {
        term,
        index,
        kind: p.kind,
        base_offset: p.base_offset,
        records: p.records,
        max_timestamp: p.max_timestamp,
        head: &p.head,
        body: &p.body,
    };
    let answer = owner.apply(entry)?;
    Ok(Outcome {
        index,
        base_offset: p.base_offset,
        answer,
    })
}

/// Lets the disk's checkpoint ask for a group's state.
struct Source<A>(Arc<Mutex<Inner<A>>>);

impl<A: Apply> StateSource for Source<A> {
    fn capture(&self) -> Option<Captured> {
        let inner = self.0.lock();
        let applied = inner.applied?;
        let image = Image {
            applied: Some(applied),
            membership: inner.membership.clone(),
            below: inner.below.clone(),
            owner: inner.owner.capture(),
        };
        match encode_image(&image) {
            Ok(state) => Some(Captured {
                applied: entry_id(&applied),
                state,
            }),
            Err(error) => {
                tracing::error!(%error, "a group's state does not encode; the checkpoint keeps the older one");
                None
            }
        }
    }
}

impl<A: Apply> RaftStateMachine<TypeConfig> for Machine<A> {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let inner = self.inner.lock();
        Ok((inner.applied, inner.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let outcome = self.apply_one(entry.log_id(), &entry.payload)?;
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Self::SnapshotBuilder> {
        Some(self.clone())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: Bytes,
    ) -> Result<(), io::Error> {
        let upto = meta.last_log_id.as_ref().map(entry_id);
        let upto = upto.ok_or_else(|| io::Error::other("a snapshot of nothing"))?;
        let Travelling {
            with_files,
            next_offset,
            state,
        } = Travelling::decode(&snapshot)?;
        let image = Image {
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
            below: meta.last_membership.clone(),
            owner: state.clone(),
        };
        let image = encode_image(&image)?;
        let files = self.inbox.take(upto);
        if with_files && files.is_none() && self.inbox.needs(upto).map_err(io::Error::other)? {
            return Err(io::Error::other("a snapshot without its files"));
        }
        // The log first: a crash between the two finds the new state with the log that fits it. Readers have the
        // new log from then on, and need the state that goes with it: a disk may take its time.
        durable(|done| {
            self.log
                .install_snapshot(upto, next_offset, image, files, done)
                .map_err(io::Error::other)?;
            self.take_up(meta, snapshot, state)
        })
        .await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, Bytes>>, io::Error> {
        if let Some((meta, snapshot)) = self.inner.lock().current.clone() {
            return Ok(Some(Snapshot { meta, snapshot }));
        }
        Ok(self.log.bounds().purged.map(|_| self.snapshot()))
    }
}

impl<A: Apply> RaftSnapshotBuilder<TypeConfig> for Machine<A> {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, Bytes>, io::Error> {
        Ok(self.snapshot())
    }
}
