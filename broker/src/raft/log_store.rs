//! A group's log and vote on the shared disk.
//!
//! Promise: entries are readable when `append` returns and durable when its callback fires; a vote
//! is durable, and so is every entry appended before it, when `save_vote` returns. Base offsets are
//! given here, serially per group, from the entry before: every replica derives the same number.
//! Not here: what is in a payload (the owner's [`Stamp`] patches it), and waiting for a disk.

use super::codec::{decode_membership, decode_vote, encode_membership, encode_vote};
use super::group::RoleCell;
use super::runtime::off_the_loop;
use super::types::{
    ControlKind, EntryKind, LogId, Payload, Proposal, RaftEntry, RaftVote, Stamp, TypeConfig,
    log_id,
};
use crate::metrics;
use bytes::Bytes;
use logd_storage::{Entry, EntryId, Kind, Log};
use openraft::entry::RaftEntry as _;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;
use std::time::Instant;

pub(super) const BLANK: u8 = 0;
pub(super) const MEMBERSHIP: u8 = 1;

/// Bytes of one answer to replication: large enough for one full batch, small enough for a frame between brokers.
const READ_BYTES_MAX: usize = 1 << 20;

#[derive(Clone)]
pub(super) struct LogStore {
    log: Log,
    stamp: Stamp,
    role: Arc<RoleCell>,
}

impl LogStore {
    pub fn new(log: Log, stamp: Stamp, role: Arc<RoleCell>) -> io::Result<Self> {
        let store = Self { log, stamp, role };
        if let Some(vote) = store.vote()? {
            store.role.saw_vote(&vote);
        }
        Ok(store)
    }

    fn vote(&self) -> io::Result<Option<RaftVote>> {
        Ok(self.log.vote().map(decode_vote).transpose()?)
    }

    fn to_stored(&self, entry: RaftEntry, base_offset: i64) -> io::Result<Entry> {
        let id = EntryId {
            term: entry.log_id.committed_leader_id().term,
            index: entry.log_id.index(),
        };
        let control = |number: u8, body: Bytes| Entry {
            id,
            kind: Kind::Control(number),
            base_offset,
            records: 0,
            max_timestamp: -1,
            head: Bytes::new(),
            body,
        };
        Ok(match entry.payload {
            Payload::Blank => control(BLANK, Bytes::new()),
            Payload::Membership(m) => control(MEMBERSHIP, encode_membership(&m)?),
            Payload::Normal(p) => match p.kind {
                EntryKind::Control(kind) => control(kind.number(), p.body),
                EntryKind::Data => {
                    // A proposal is one piece; an entry from a leader comes with its head already apart.
                    let (head, body) = if p.head.is_empty() {
                        (self.stamp)(&p.body, base_offset, id.term)
                    } else {
                        (p.head, p.body)
                    };
                    Entry {
                        id,
                        kind: Kind::Data,
                        base_offset,
                        records: p.records,
                        max_timestamp: p.max_timestamp,
                        head,
                        body,
                    }
                }
            },
        })
    }

    /// Entries from memory at once; from a disk on a thread that may block.
    async fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<RaftEntry>> {
        let log = self.log.clone();
        let read = move || -> io::Result<Vec<RaftEntry>> {
            let stored = log.entries(from, to, max_bytes).map_err(io::Error::other)?;
            stored.into_iter().map(from_stored).collect()
        };
        if self.log.is_in_memory(from) {
            return read();
        }
        off_the_loop(read).await?
    }
}

pub(super) fn from_stored(e: Entry) -> io::Result<RaftEntry> {
    let payload = match e.kind {
        Kind::Control(BLANK) => Payload::Blank,
        Kind::Control(MEMBERSHIP) => Payload::Membership(decode_membership(&e.body)?),
        Kind::Control(number) => normal(EntryKind::Control(ControlKind::new(number)), e.clone()),
        Kind::Data => normal(EntryKind::Data, e.clone()),
    };
    Ok(RaftEntry::new(log_id(e.id.term, e.id.index), payload))
}

fn normal(kind: EntryKind, e: Entry) -> Payload {
    Payload::Normal(Proposal {
        kind,
        head: e.head,
        body: e.body,
        records: e.records,
        max_timestamp: e.max_timestamp,
        base_offset: e.base_offset,
    })
}

fn to_log_id(id: EntryId) -> LogId {
    log_id(id.term, id.index)
}

/// Waits until storage says that the operation is durable.
pub(super) async fn durable(
    start: impl FnOnce(logd_storage::Done) -> io::Result<()>,
) -> io::Result<()> {
    let (tx, rx) = tokio::sync::oneshot::channel();
    start(Box::new(move |result| {
        // The waiter may be gone when the group is being shut down.
        let _ = tx.send(result);
    }))?;
    rx.await
        .unwrap_or_else(|_| Err(io::Error::other("the disk's committer stopped")))
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<RaftEntry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let bounds = self.log.bounds();
        let from = match range.start_bound() {
            Bound::Included(i) => *i,
            Bound::Excluded(i) => i + 1,
            Bound::Unbounded => 0,
        }
        .max(bounds.first_index);
        let end = bounds.last.map_or(0, |id| id.index + 1);
        let to = match range.end_bound() {
            Bound::Included(i) => i + 1,
            Bound::Excluded(i) => *i,
            Bound::Unbounded => end,
        }
        .min(end);
        if from >= to {
            Ok(Vec::new())
        } else {
            self.read(from, to, usize::MAX).await
        }
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        self.read(start, end, READ_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        self.vote()
    }

    async fn get_key_log_ids(
        &mut self,
        range: RangeInclusive<LogId>,
    ) -> Result<Vec<LogId>, io::Error> {
        let (first, last) = range.into_inner();
        let starts = self.log.terms();
        // The last id of each term: openraft 0.10.0-alpha.37 expects these, whatever its documentation says.
        let lasts = starts
            .iter()
            .zip(starts.iter().skip(1))
            .map(|(term, next)| log_id(term.term, next.index - 1));
        let mut ids: Vec<LogId> = lasts.filter(|id| *id >= first && *id < last).collect();
        ids.push(last);
        Ok(ids)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let bounds = self.log.bounds();
        Ok(LogState {
            last_purged_log_id: bounds.purged.map(to_log_id),
            last_log_id: bounds.last.map(to_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        let bytes = encode_vote(vote);
        durable(|done| self.log.save_vote(bytes, done).map_err(io::Error::other)).await?;
        self.role.saw_vote(vote);
        Ok(())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut end_offset = self.log.bounds().end_offset;
        let mut stored = Vec::new();
        for entry in entries {
            let entry = self.to_stored(entry, end_offset)?;
            end_offset += i64::from(entry.records);
            stored.push(entry);
        }
        let begun = Instant::now();
        let done = move |result| {
            metrics::storage_committed(begun.elapsed());
            callback.io_completed(result);
        };
        self.log
            .append(stored, Box::new(done))
            .map_err(io::Error::other)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let keep = last_log_id.map(|id| id.index());
        durable(|done| {
            self.log
                .truncate_after(keep, done)
                .map_err(io::Error::other)
        })
        .await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let upto = EntryId {
            term: upto.committed_leader_id().term,
            index: upto.index(),
        };
        durable(|done| self.log.purge_to(upto, done).map_err(io::Error::other)).await
    }
}
