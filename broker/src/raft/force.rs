//! A group that has lost its majority for good goes on with what one replica has.
//!
//! Promise: on return the replica's disk says that this replica is the group's only voter, in a later term
//! than any it knows of, and everything that its log holds is kept. Opened again, the group elects itself
//! and commits all of it, what nobody had acknowledged too.
//! Invariant: the group is closed here. A crash at any point leaves a log with which this can be done
//! again: first the vote, as if this replica had been elected alone, then the entry that says so.
//! Not here: whether it may be done. Raft's promises end here for what the other replicas had, so the
//! metadata decides that once, and numbers what comes after by generation (`cluster::generations`).

use super::codec::{
    CodecError, decode_image, decode_membership, decode_vote, encode_membership, encode_vote,
};
use super::log_store::{MEMBERSHIP, durable, from_stored};
use super::types::{LeaderId, Membership, RaftVote, ReplicaId};
use bytes::Bytes;
use logd_storage::{Entry, EntryId, Kind, Log};
use openraft::impls::BasicNode;
use openraft::vote::RaftLeaderId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

#[derive(Debug, thiserror::Error)]
pub enum ForceError {
    #[error("its log is empty: there is nothing to go on with")]
    Empty,
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("writing to its log: {0}")]
    Disk(#[from] io::Error),
    #[error("replica {0} alone is no membership: {1}")]
    Illegal(ReplicaId, String),
}

/// Makes this replica the only voter of its group; the term in which it says so, which is at least `least`.
///
/// # Errors
/// If the log is empty, or cannot be written.
pub async fn force_alone(log: &Log, me: ReplicaId, least: u64) -> Result<u64, ForceError> {
    force_alone_saying(log, me, least, None).await
}

/// As [`force_alone`], with a first entry of the new term that says something to the group's owner.
///
/// # Errors
/// As [`force_alone`].
pub async fn force_alone_saying(
    log: &Log,
    me: ReplicaId,
    least: u64,
    first: Option<Bytes>,
) -> Result<u64, ForceError> {
    let bounds = log.bounds();
    let last = bounds.last.ok_or(ForceError::Empty)?;
    let voted = log.vote().map(decode_vote).transpose()?;
    let voted = voted.map_or(0, |vote| vote.leader_id.term);
    let term = least.max(voted.max(last.term) + 1);
    let vote = RaftVote {
        leader_id: LeaderId::new(term, me),
        committed: true,
    };
    let vote = encode_vote(&vote);
    durable(|done| log.save_vote(vote, done).map_err(io::Error::other)).await?;
    let nodes = BTreeMap::from([(me, BasicNode::default())]);
    let alone = Membership::new(vec![BTreeSet::from([me])], nodes)
        .map_err(|e| ForceError::Illegal(me, e.to_string()))?;
    let entry = Entry {
        id: EntryId {
            term,
            index: last.index + 1,
        },
        kind: Kind::Control(MEMBERSHIP),
        base_offset: bounds.end_offset,
        records: 0,
        max_timestamp: -1,
        head: Bytes::new(),
        body: encode_membership(&alone)?,
    };
    let first = first.map(|body| Entry {
        id: EntryId {
            term,
            index: last.index + 2,
        },
        kind: Kind::Data,
        records: 1,
        body,
        ..entry.clone()
    });
    let entries = std::iter::once(entry).chain(first).collect();
    durable(|done| log.append(entries, done).map_err(io::Error::other)).await?;
    Ok(term)
}

/// Entries that are looked at in one go.
const LOOKED_AT: u64 = 1_000;

/// The voters that a closed group's log names last, committed or not: of both halves while they change. Every entry
/// is read on the way.
///
/// # Errors
/// If what the log holds cannot be read, or does not decode.
pub fn electorates(log: &Log) -> io::Result<Vec<BTreeSet<ReplicaId>>> {
    let bounds = log.bounds();
    let end = bounds.last.map_or(bounds.first_index, |id| id.index + 1);
    let mut from = bounds.first_index;
    while from < end {
        let to = end.min(from + LOOKED_AT);
        let entries = log.entries(from, to, usize::MAX);
        let entries = entries.map_err(io::Error::other)?;
        if entries.len() as u64 != to - from {
            return Err(io::Error::other("entries are missing"));
        }
        for entry in entries {
            from_stored(entry)?;
        }
        from = to;
    }
    let membership = match log.last_control(MEMBERSHIP, u64::MAX) {
        Some((_, body)) => decode_membership(&body)?,
        None => match log.recovered_state() {
            Some(captured) => {
                let image = decode_image(captured.state)?;
                image.membership.membership().clone()
            }
            None => Membership::default(),
        },
    };
    Ok(membership.get_joint_config().clone())
}

#[cfg(test)]
mod tests {
    use super::super::codec::decode_membership;
    use super::super::exchange::Exchange;
    use super::super::group::{Group, GroupSpec, Links, Timers};
    use super::super::network::Alone;
    use super::super::state_machine::{Apply, Committed};
    use super::super::test_entries::records;
    use super::super::throttle::Throttle;
    use super::super::types::unstamped;
    use super::*;
    use logd_storage::vfs::{Fault, RealFs, SimFs};
    use logd_storage::{Disk, DiskOptions, LogKey, LogOptions, Pump};
    use std::future::Future;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    const ME: ReplicaId = 5;
    const LEAST: u64 = 1_000;

    fn open(fs: &SimFs) -> (Disk, Log) {
        let options = DiskOptions {
            pump: Pump::Manual,
            wal_file_bytes: 128 << 10,
            wal_budget_bytes: 4 << 20,
            ..DiskOptions::default()
        };
        let disk = Disk::open(Arc::new(fs.clone()), Path::new("/data"), options, &|_| {}).unwrap();
        let key = LogKey {
            topic: [7; 16],
            partition: 0,
        };
        let log = disk.open_log(key, LogOptions::default()).unwrap();
        (disk, log)
    }

    /// The disk works until this is over; without power, what waits for it fails.
    async fn pumped<T>(disk: &Disk, work: impl Future<Output = T>) -> T {
        let pumping = async {
            loop {
                disk.pump();
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            done = work => done,
            () = pumping => unreachable!("it goes on"),
        }
    }

    async fn write_ten(disk: &Disk, log: &Log) {
        let written = durable(|done| {
            log.append(records(3, 0..10), done)
                .map_err(io::Error::other)
        });
        pumped(disk, written).await.unwrap();
    }

    /// What the log says of its last entry, whose entries before are all there.
    fn last_of(log: &Log) -> EntryId {
        let last = log.bounds().last.unwrap();
        let entries = log.entries(0, last.index + 1, usize::MAX).unwrap();
        let data = entries.iter().filter(|e| e.kind == Kind::Data);
        assert!(
            data.map(|e| (e.id.term, e.id.index))
                .eq((0..10).map(|i| (3, i)))
        );
        assert_eq!(log.bounds().end_offset, 10);
        last
    }

    #[tokio::test]
    async fn power_that_goes_at_any_write_leaves_it_not_begun_or_to_be_done_again() {
        for cut_at in 1.. {
            let fs = SimFs::new(cut_at);
            let (disk, log) = open(&fs);
            write_ten(&disk, &log).await;
            fs.inject(Fault::PowerAfter(cut_at));
            let forced = pumped(&disk, force_alone(&log, ME, LEAST)).await;
            drop((disk, log));
            fs.reboot();
            let (disk, log) = open(&fs);
            let after = last_of(&log);
            if let Ok(term) = &forced {
                assert_eq!((after.term, after.index), (*term, 10), "it said so");
            }
            // Nobody has noted that it was done, so it is done again.
            let term = pumped(&disk, force_alone(&log, ME, LEAST)).await.unwrap();
            let last = last_of(&log);
            assert!(term >= LEAST && (last.term, last.index) == (term, after.index + 1));
            let vote = decode_vote(log.vote().unwrap()).unwrap();
            assert_eq!((vote.leader_id.term, vote.leader_id.voted_for), (term, ME));
            let entry = log.entries(last.index, last.index + 1, usize::MAX).unwrap();
            let members = decode_membership(&entry[0].body).unwrap();
            assert_eq!(*members.get_joint_config(), [BTreeSet::from([ME])]);
            if forced.is_ok() {
                assert!(cut_at > 2, "power went in the middle of it");
                return;
            }
        }
    }

    #[tokio::test]
    async fn an_empty_log_is_nothing_to_go_on_with() {
        let (disk, log) = open(&SimFs::new(1));
        let forced = pumped(&disk, force_alone(&log, ME, LEAST)).await;
        assert!(matches!(forced, Err(ForceError::Empty)));
    }

    /// Takes note of nothing.
    struct Deaf;

    impl Apply for Deaf {
        fn apply(&mut self, _: Committed<'_>) -> io::Result<Bytes> {
            Ok(Bytes::new())
        }

        fn term_began(&mut self, _: u64, _: i64) {}

        fn capture(&self) -> Bytes {
            Bytes::new()
        }

        fn restore(&mut self, _: Bytes, _: Option<EntryId>) -> io::Result<()> {
            Ok(())
        }

        fn snapshot_point(&self) -> Option<EntryId> {
            None
        }

        fn snapshot_at(&self, _: EntryId) -> Bytes {
            Bytes::new()
        }
    }

    /// Whether a replica whose log says that it is alone leads, of a generation that began in this term.
    async fn leads(log: &Log, begins: u64) -> bool {
        let spec = GroupSpec {
            name: "alone".into(),
            replica: ME,
            founders: None,
            stamp: unstamped,
            timers: Timers::None,
            floor: 0,
            generation: 1,
            begins,
            client_data: false,
            links: Links {
                transport: Arc::new(Alone),
                exchange: Exchange::new(Arc::new(|_| false), Arc::new(|| true), Arc::new(|| true)),
                throttle: Throttle::new(0),
            },
            on_role: Arc::new(|_| {}),
        };
        let group = Group::open(spec, log.clone(), Deaf).await.unwrap();
        let leads = group.serving(Duration::from_millis(500)).await.is_ok();
        group.close().await;
        leads
    }

    #[tokio::test]
    async fn who_was_alone_once_does_not_lead_what_it_is_only_sent() {
        let dir = tempfile::tempdir().unwrap();
        let options = DiskOptions::default();
        let disk = Disk::open(Arc::new(RealFs), dir.path(), options, &|_| {}).unwrap();
        let key = LogKey {
            topic: [7; 16],
            partition: 0,
        };
        let log = disk.open_log(key, LogOptions::default()).unwrap();
        let written = durable(|done| {
            log.append(records(3, 0..10), done)
                .map_err(io::Error::other)
        });
        written.await.unwrap();
        let term = force_alone(&log, ME, LEAST).await.unwrap();
        assert_eq!(electorates(&log).unwrap(), [BTreeSet::from([ME])]);
        assert!(!leads(&log, term + 1).await, "somebody else survived later");
        assert!(leads(&log, term).await);
    }
}
