//! What clients ask of a broker, and what it answers: the partition's own door, without the wire format.

use logd::cluster::{Answer, Command};
use logd::partition::{
    AppendError, Appended, Leadership, Partition, ReadError, ReadOutcome, ReadRequest, ValidBatch,
};
use logd::raft::ProposeError;
use std::sync::Arc;

/// Who asked, so that the answer goes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asker {
    Producer(usize),
    Reader(usize),
    Operator,
}

#[derive(Debug, Clone)]
pub enum Ask {
    Produce {
        partition: u32,
        batch: ValidBatch,
    },
    Read {
        partition: u32,
        request: ReadRequest,
    },
    Leadership {
        partition: u32,
    },
    Propose(Command),
    /// The feature level is to rise, if everybody understands the next one.
    Raise,
}

impl Ask {
    pub fn partition(&self) -> u32 {
        match self {
            Ask::Produce { partition, .. }
            | Ask::Read { partition, .. }
            | Ask::Leadership { partition } => *partition,
            Ask::Propose(_) | Ask::Raise => u32::MAX,
        }
    }
}

/// A question in a few words, for the trace.
pub fn describe_ask(ask: &Ask) -> String {
    match ask {
        Ask::Produce { partition, batch } => {
            let (h, last) = (&batch.header, batch.header.last_sequence());
            format!(
                "p{partition}: take {}/{}..={last}",
                h.producer_id, h.base_sequence
            )
        }
        Ask::Read { partition, request } => {
            format!(
                "p{partition}: read from {} in {}",
                request.offset, request.current_leader_epoch
            )
        }
        Ask::Leadership { partition } => format!("p{partition}: who leads"),
        Ask::Propose(command) => format!("{command:?}"),
        Ask::Raise => "raise".into(),
    }
}

#[derive(Debug, Clone)]
pub enum Reply {
    Appended(Result<Appended, AppendError>),
    Read(Result<ReadOutcome, ReadError>),
    Leadership(Leadership),
    Proposed(Result<Answer, ProposeError>),
    /// The broker is there and has no such group open yet.
    NotOpen,
    /// There is nobody at the address.
    Down,
}

/// Carries out what was asked of a partition.
pub async fn serve(partition: Arc<Partition>, ask: Ask) -> Reply {
    match ask {
        Ask::Produce { batch, .. } => Reply::Appended(match partition.append(batch).await {
            Ok(appending) => appending.await,
            Err(refused) => Err(refused),
        }),
        Ask::Read { request, .. } => Reply::Read(partition.read(request).await),
        Ask::Leadership { .. } => Reply::Leadership(partition.leadership()),
        Ask::Propose(_) | Ask::Raise => Reply::NotOpen,
    }
}

/// A reply in a few words, for the trace.
pub fn describe(reply: &Reply) -> String {
    match reply {
        Reply::Appended(Ok(a)) => {
            let again = if a.duplicate_of.is_some() {
                " again"
            } else {
                ""
            };
            format!("appended at {}{again}", a.base_offset)
        }
        Reply::Appended(Err(e)) => format!("not appended: {e}"),
        Reply::Read(Ok(r)) => {
            let o = r.offsets;
            format!("{} bytes of {}..{}", r.bytes, o.log_start, o.high_watermark)
        }
        Reply::Read(Err(e)) => format!("not read: {e}"),
        Reply::Leadership(l) => format!("led by {:?} in {} ({})", l.leader, l.epoch, l.serving),
        Reply::Proposed(Ok(a)) => format!("proposed: {a:?}"),
        Reply::Proposed(Err(e)) => format!("not proposed: {e}"),
        Reply::NotOpen => "not open".into(),
        Reply::Down => "down".into(),
    }
}
