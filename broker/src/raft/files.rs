//! The files of a snapshot on their way from a leader to a replica that needs them.
//!
//! Promise: a leader offers what it has, and sends what the replica says it wants, one piece at a time; so a
//! copy that was interrupted goes on where it was, if the offer is the same. Nothing is installed before all
//! of it is there, durable, and equal to what was offered.
//! Invariant: an inbox holds the files of one snapshot at most, and gives them back when nothing comes for a
//! while.
//! Not here: the files themselves (storage), and when a snapshot is sent (openraft).

use super::network::CallError;
use super::runtime::off_the_loop;
use super::wire::entry_id_in;
use crate::metrics;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use logd_proto::rpc::v1::group_message::Kind;
use logd_proto::rpc::v1::{self as rpc};
use logd_storage::{EntryId, FilesError, Incoming, Log, Part, ReadError, Want};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of one piece: what one append may carry.
const PIECE_BYTES: usize = 1 << 20;

/// What was begun and not gone on with for so long is thrown away.
const PATIENCE: Duration = Duration::from_secs(300);

/// Why files were not sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("a snapshot's files: {0}")]
    Files(#[from] FilesError),
    #[error("reading a snapshot's files: {0}")]
    Task(#[from] io::Error),
    #[error("the replica answered {0} to a snapshot's files")]
    Unexpected(String),
    #[error("the replica does not take the piece at {0:?}")]
    Stuck(Want),
}

/// Sends what lies below a snapshot's last entry, if anything does. True if the replica has it by now.
///
/// `call` asks the replica, `pace` waits until so many bytes may go.
pub(super) async fn send<'a>(
    log: Log,
    upto: EntryId,
    next_offset: i64,
    call: impl Fn(Kind) -> BoxFuture<'a, Result<Kind, CallError>>,
    pace: impl Fn(u64) -> BoxFuture<'a, ()>,
) -> Result<bool, SendError> {
    let looked = off_the_loop(move || log.outgoing(upto, next_offset)).await?;
    let Some(outgoing) = looked?.map(Arc::new) else {
        return Ok(false);
    };
    let offer = rpc::FilesOffer {
        last: Some(id_out(upto)),
        files: outgoing.offer().clone(),
    };
    let mut wanted = wanted_in(call(Kind::Offer(offer)).await?)?;
    let mut before = None;
    while let Some(want) = wanted {
        if before == Some(want) {
            return Err(SendError::Stuck(want));
        }
        before = Some(want);
        let files = outgoing.clone();
        let bytes = off_the_loop(move || files.piece(want, PIECE_BYTES)).await??;
        pace(bytes.len() as u64).await;
        metrics::raft_files_sent(bytes.len());
        let piece = rpc::FilesPiece {
            last: Some(id_out(upto)),
            at: Some(place_out(want)),
            bytes,
        };
        wanted = wanted_in(call(Kind::Piece(piece)).await?)?;
    }
    Ok(true)
}

fn id_out(id: EntryId) -> rpc::LogId {
    rpc::LogId {
        term: id.term,
        index: id.index,
    }
}

fn id_in(id: Option<rpc::LogId>) -> Result<EntryId, String> {
    let id = id.ok_or("files without the entry that they end with")?;
    Ok(entry_id_in(id))
}

fn place_out(want: Want) -> rpc::FilePlace {
    rpc::FilePlace {
        segment: want.segment,
        log: want.part == Part::Log,
        position: want.position,
    }
}

fn place_in(place: rpc::FilePlace) -> Want {
    Want {
        segment: place.segment,
        part: if place.log { Part::Log } else { Part::Ledger },
        position: place.position,
    }
}

fn wanted_in(answer: Kind) -> Result<Option<Want>, SendError> {
    match answer {
        Kind::Wanted(wanted) => Ok(wanted.next.map(place_in)),
        other => Err(SendError::Unexpected(format!("{other:?}"))),
    }
}

struct Begun {
    files: Incoming,
    touched: Instant,
}

/// Where the files of a snapshot arrive. Clones share it.
#[derive(Clone)]
pub(super) struct Inbox {
    log: Log,
    begun: Arc<Mutex<Option<Begun>>>,
}

impl Inbox {
    pub fn new(log: Log) -> Self {
        Self {
            log,
            begun: Arc::default(),
        }
    }

    /// Takes up an offer, or goes on with it; says what it wants next. Blocks on the disk.
    pub fn offered(&self, offer: &rpc::FilesOffer) -> Result<rpc::FilesWanted, String> {
        let upto = id_in(offer.last)?;
        if !self.needs(upto).map_err(|e| e.to_string())? {
            return Ok(rpc::FilesWanted::default());
        }
        let mut begun = self.begun.lock();
        if begun
            .as_ref()
            .is_none_or(|b| !b.files.is_of(upto, &offer.files))
        {
            let files = self.log.incoming(upto, &offer.files);
            let files = files.map_err(|e| e.to_string())?;
            *begun = Some(Begun {
                files,
                touched: Instant::now(),
            });
        }
        Ok(wanted_out(begun.as_ref()))
    }

    /// Takes a piece; says what it wants next. Blocks on the disk.
    pub fn arrived(&self, piece: &rpc::FilesPiece) -> Result<rpc::FilesWanted, String> {
        let upto = id_in(piece.last)?;
        let at = place_in(piece.at.ok_or("a piece of no place")?);
        let mut held = self.begun.lock();
        let Some(begun) = held.as_mut().filter(|b| b.files.upto() == upto) else {
            return Err("these files are not on their way here: offer them".into());
        };
        begun.touched = Instant::now();
        metrics::raft_files_received(piece.bytes.len());
        if let Err(error) = begun.files.take(at, &piece.bytes) {
            *held = None;
            return Err(error.to_string());
        }
        Ok(wanted_out(held.as_ref()))
    }

    /// Whether a snapshot up to an entry is of no use here without its files.
    pub fn needs(&self, upto: EntryId) -> Result<bool, ReadError> {
        self.log.is_replaced_by(upto)
    }

    /// Whether all files of a snapshot are here.
    pub fn has(&self, upto: EntryId) -> bool {
        // Who holds it is writing a piece, which may take its disk a while: then something is still to come.
        let begun = self.begun.try_lock();
        begun.is_some_and(|begun| is_whole(begun.as_ref(), upto))
    }

    /// The files of a snapshot that is being installed.
    pub fn take(&self, upto: EntryId) -> Option<Incoming> {
        let mut begun = self.begun.try_lock()?;
        let whole = is_whole(begun.as_ref(), upto);
        begun.take_if(|_| whole).map(|b| b.files)
    }

    /// Throws away what nobody goes on with.
    pub fn sweep(&self) {
        // What is being written is not given up.
        if let Some(mut begun) = self.begun.try_lock() {
            begun.take_if(|b| b.touched.elapsed() > PATIENCE);
        }
    }
}

fn is_whole(begun: Option<&Begun>, upto: EntryId) -> bool {
    begun.is_some_and(|b| b.files.upto() == upto && b.files.want().is_none())
}

fn wanted_out(begun: Option<&Begun>) -> rpc::FilesWanted {
    let next = begun.and_then(|b| b.files.want()).map(place_out);
    rpc::FilesWanted { next }
}

/// A snapshot as it travels: `version u8 | its files count u8 | offset of the first entry behind it i64 | the
/// owner's state`. All numbers are big-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Travelling {
    /// Its files were sent before it.
    pub with_files: bool,
    pub next_offset: i64,
    pub state: Bytes,
}

const TRAVELLING_VERSION: u8 = 1;
const TRAVELLING_HEAD: usize = 10;

impl Travelling {
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(TRAVELLING_HEAD + self.state.len());
        out.extend_from_slice(&[TRAVELLING_VERSION, u8::from(self.with_files)]);
        out.extend_from_slice(&self.next_offset.to_be_bytes());
        out.extend_from_slice(&self.state);
        out.into()
    }

    pub fn decode(bytes: &Bytes) -> io::Result<Self> {
        let damaged = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let (head, _) = bytes
            .split_first_chunk::<TRAVELLING_HEAD>()
            .ok_or_else(|| damaged("a snapshot without its head".into()))?;
        let [version, files, offset @ ..] = *head;
        if version != TRAVELLING_VERSION || files > 1 {
            return Err(damaged(format!(
                "a snapshot of version {version}, this broker reads {TRAVELLING_VERSION}"
            )));
        }
        Ok(Self {
            with_files: files == 1,
            next_offset: i64::from_be_bytes(offset),
            state: bytes.slice(TRAVELLING_HEAD..),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_comes_back_as_it_was_and_a_cut_one_is_an_error() {
        let whole = Travelling {
            with_files: true,
            next_offset: 77,
            state: Bytes::from_static(b"state"),
        };
        let bytes = whole.encode();
        assert_eq!(Travelling::decode(&bytes).unwrap(), whole);
        for cut in 0..TRAVELLING_HEAD {
            assert!(Travelling::decode(&bytes.slice(..cut)).is_err());
        }
        let newer = [&[9u8][..], &bytes[1..]].concat();
        assert!(Travelling::decode(&newer.into()).is_err());
    }
}
