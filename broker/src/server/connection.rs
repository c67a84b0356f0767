//! One connection: reads frames, hands requests over in order, writes the answers in order.
//!
//! Everything happens on the connection's own task, so that an answer needs no hop to be written.
//! Bounds: requests in flight, bytes held while a large frame arrives and is worked on (the broker's budget;
//! small ones by their number), bytes waiting to be written (no more requests are read until they are), and time: idle, mid-frame, and unread answers.

use super::deadlines::{Deadlines, Late, Patience, Situation};
use super::limits::{FREE_BYTES, Held, Limits};
use super::turns::Turns;
use crate::api::{Answer, Context, Handler};
use crate::metrics;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::stream::{FuturesOrdered, StreamExt};
use logd_proto::api::{ApiKey, Request, unsupported_api_versions};
use logd_proto::frame::{
    FrameError, HeaderError, RequestHeader, SIZE_BYTES, check_size, split_request,
};
use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, warn};

/// Answers that may wait to be written before no more requests are read.
const UNWRITTEN_BYTES_MAX: usize = 1 << 20;

/// How far the buffer grows ahead of the bytes that have arrived.
const READ_AHEAD_BYTES: usize = 1 << 20;

/// Slices handed to one vectored write: the kernel takes 1,024 at most.
const SLICES_PER_WRITE: usize = 64;

/// How long a stop waits for a client to notice and close, too.
const PARTING: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    pub frame_bytes_max: usize,
    pub in_flight_max: usize,
    pub patience: Patience,
}

#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("closed by the client")]
    ByClient,
    #[error("the broker is stopping")]
    Stopping,
    #[error(transparent)]
    Late(#[from] Late),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("{0}")]
    Request(#[from] logd_proto::api::DecodeError),
    #[error("an answer does not encode: {0}")]
    Encode(#[from] logd_proto::api::EncodeError),
    #[error("a request of a kind that gets no answer failed")]
    Refused,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Ended {
    /// What metrics call it, where the broker ended the connection and nothing else tells why.
    fn label(&self) -> Option<&'static str> {
        Some(match self {
            Ended::Late(Late::Idle) => "idle",
            Ended::Late(Late::Handshake) => "handshake",
            Ended::Late(Late::Stalled) => "stalled",
            Ended::Late(Late::Slow) => "slow",
            Ended::Late(Late::Starved) => "starved",
            Ended::Late(Late::Unread) => "unread",
            Ended::Frame(_) => "frame_size",
            Ended::Header(_) | Ended::Request(_) => "malformed",
            Ended::ByClient
            | Ended::Stopping
            | Ended::Encode(_)
            | Ended::Refused
            | Ended::Io(_) => return None,
        })
    }
}

/// An encoded answer, which may have to wait for its turn.
struct Ready {
    chunks: Vec<Bytes>,
    /// When a produce's fate was settled.
    settled: Option<Instant>,
}

type InFlight = Pin<Box<dyn Future<Output = Result<Option<Ready>, Ended>> + Send>>;

/// What of a frame has arrived.
struct Inbox {
    buffer: BytesMut,
    /// Size of the frame whose prefix has been read.
    frame: Option<usize>,
    held: Held,
    /// How long the frame waited for room in the broker's budget, since that was last asked for.
    waited: Duration,
}

/// Counts how long a frame waits, also when the wait is broken off.
struct Waiting<'a> {
    waited: &'a mut Duration,
    since: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.waited += self.since.elapsed();
    }
}

impl Inbox {
    fn new() -> Self {
        Self {
            buffer: BytesMut::with_capacity(FREE_BYTES),
            frame: None,
            held: Held::default(),
            waited: Duration::ZERO,
        }
    }

    /// Cuts a whole frame off the front, with the bytes of the budget it holds.
    fn next(&mut self, limit: usize) -> Result<Option<(Bytes, Held)>, FrameError> {
        if self.frame.is_none()
            && let Some(prefix) = self.buffer.first_chunk::<SIZE_BYTES>()
        {
            self.frame = Some(check_size(*prefix, limit)?);
            self.buffer.advance(SIZE_BYTES);
        }
        match self.frame {
            Some(size) if self.buffer.len() >= size => {
                self.frame = None;
                let held = std::mem::take(&mut self.held);
                let frame = match is_counted(size) {
                    // Nothing lies behind it. What comes next must not keep its memory when it gives its bytes back.
                    true => {
                        std::mem::replace(&mut self.buffer, BytesMut::with_capacity(FREE_BYTES))
                    }
                    false => self.buffer.split_to(size),
                };
                Ok(Some((frame.freeze(), held)))
            }
            _ => Ok(None),
        }
    }

    fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.frame.is_none()
    }

    /// Reads what there is, growing with what has arrived and not with what was announced. Of a frame that is
    /// counted no more than its own bytes, so that nothing arrives under its name.
    async fn fill(
        &mut self,
        socket: &mut (impl AsyncRead + Unpin),
        limits: &Limits,
    ) -> Result<usize, Ended> {
        let arrived = self.buffer.len();
        let missing = self.frame.map_or(0, |size| size.saturating_sub(arrived));
        let (room, needed) = match self.frame.is_some_and(is_counted) {
            true => {
                let room = missing.min(READ_AHEAD_BYTES);
                self.wait_for_room(limits, arrived + room).await;
                (room, room)
            }
            false => (FREE_BYTES, missing.max(1)),
        };
        if self.buffer.capacity() - arrived < needed {
            self.buffer.reserve(room);
        }
        match socket.read_buf(&mut (&mut self.buffer).limit(room)).await? {
            0 => Err(Ended::ByClient),
            bytes => Ok(bytes),
        }
    }

    async fn wait_for_room(&mut self, limits: &Limits, bytes: usize) {
        if !limits.try_hold(&mut self.held, bytes) {
            let _waiting = Waiting {
                waited: &mut self.waited,
                since: Instant::now(),
            };
            limits.hold(&mut self.held, bytes).await;
        }
    }
}

/// Whether a frame's bytes are held of the broker's budget. Smaller ones are bounded by how many requests a
/// connection may have in flight: a heartbeat does not wait for others' records.
fn is_counted(frame_bytes: usize) -> bool {
    frame_bytes > FREE_BYTES
}

/// Answers on their way to the client.
#[derive(Default)]
struct Outbox {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Outbox {
    fn push(&mut self, chunks: Vec<Bytes>) {
        self.bytes += chunks.iter().map(Bytes::len).sum::<usize>();
        self.chunks
            .extend(chunks.into_iter().filter(|c| !c.is_empty()));
    }

    async fn write(&mut self, socket: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let slices: Vec<IoSlice<'_>> = self
            .chunks
            .iter()
            .take(SLICES_PER_WRITE)
            .map(|c| IoSlice::new(c))
            .collect();
        let mut written = socket.write_vectored(&slices).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        metrics::bytes_sent(written);
        self.bytes -= written;
        while let Some(front) = self.chunks.front_mut() {
            if written < front.len() {
                front.advance(written);
                break;
            }
            written -= front.len();
            self.chunks.pop_front();
        }
        Ok(())
    }
}

/// A connection and everything it holds.
pub struct Connection<S, H> {
    pub socket: S,
    pub peer: SocketAddr,
    pub listener: std::sync::Arc<str>,
    pub handler: std::sync::Arc<H>,
    pub limits: Limits,
    /// Gone by from each change on.
    pub bounds: watch::Receiver<ConnectionLimits>,
    /// Turns true when the broker stops: no new requests, then a clean end.
    pub stopping: watch::Receiver<bool>,
}

impl<S, H> Connection<S, H>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    /// Serves the connection until it ends, and says why in the log.
    pub async fn serve(self) {
        let (peer, listener) = (self.peer, self.listener.clone());
        let ended = self.run().await;
        if let Some(reason) = ended.label() {
            metrics::connection_closed(reason);
        }
        match ended {
            Ended::ByClient | Ended::Stopping | Ended::Late(Late::Idle) | Ended::Io(_) => {
                debug!(%peer, %listener, reason = %ended, "connection ended")
            }
            Ended::Encode(_) => warn!(%peer, %listener, reason = %ended, "connection closed"),
            _ => crate::server::listener::strangers().note(peer, &listener, &ended.to_string()),
        }
    }

    async fn run(self) -> Ended {
        let Self {
            socket,
            peer,
            listener,
            handler,
            limits,
            bounds: mut changing,
            mut stopping,
        } = self;
        let mut bounds = *changing.borrow_and_update();
        let (mut reader, mut writer) = tokio::io::split(socket);
        let (mut inbox, mut outbox) = (Inbox::new(), Outbox::default());
        let mut in_flight: FuturesOrdered<InFlight> = FuturesOrdered::new();
        let mut turns = Turns::default();
        let mut deadlines = Deadlines::new(bounds.patience, Instant::now());
        let mut held_back: Option<Instant> = None;
        loop {
            if changing.has_changed().unwrap_or(false) {
                bounds = *changing.borrow_and_update();
                deadlines.set_patience(bounds.patience);
            }
            let draining = *stopping.borrow();
            if draining && in_flight.is_empty() && outbox.chunks.is_empty() {
                part(reader, writer).await;
                return Ended::Stopping;
            }
            let takes = !draining
                && in_flight.len() < bounds.in_flight_max
                && outbox.bytes <= UNWRITTEN_BYTES_MAX;
            if takes && let Some((frame, held)) = turns.begin(in_flight.is_empty()) {
                match take(&*handler, peer, &listener, frame, held).await {
                    Ok(answer) => in_flight.push_back(answer),
                    Err(ended) => return ended,
                }
                continue;
            }
            let takes = takes && !turns.is_taken();
            if takes {
                match inbox.next(bounds.frame_bytes_max) {
                    Ok(Some((frame, held))) => {
                        deadlines.request(Instant::now(), inbox.buffer.len());
                        metrics::bytes_received(SIZE_BYTES + frame.len());
                        turns.put(frame, held);
                        continue;
                    }
                    Ok(None) => {}
                    Err(e) => return e.into(),
                }
            }
            if takes {
                let unread = held_back.take().map_or(Duration::ZERO, |t| t.elapsed());
                deadlines.excuse(std::mem::take(&mut inbox.waited) + unread);
            } else {
                held_back.get_or_insert_with(Instant::now);
            }
            let situation = Situation {
                arriving: takes && !inbox.is_empty(),
                in_flight: !in_flight.is_empty(),
                unread: !outbox.chunks.is_empty(),
            };
            let deadline = deadlines.next(situation);
            if deadline.is_some_and(|at| at <= Instant::now())
                && let Some(late) = deadlines.late(Instant::now(), situation)
            {
                return late.into();
            }
            // One that is past was looked at just now, and moved on.
            let deadline = deadlines.next(situation);
            let due = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                written = outbox.write(&mut writer), if !outbox.chunks.is_empty() => match written {
                    Ok(()) => deadlines.progress(Instant::now()),
                    Err(e) => return e.into(),
                },
                Some(answer) = in_flight.next(), if !in_flight.is_empty() => match answer {
                    Ok(Some(ready)) => {
                        let now = Instant::now();
                        deadlines.progress(now);
                        if let Some(settled) = ready.settled {
                            metrics::produce_stage(metrics::Stage::Respond, now - settled);
                        }
                        outbox.push(ready.chunks);
                    }
                    Ok(None) => {}
                    Err(ended) => return ended,
                },
                read = inbox.fill(&mut reader, &limits), if takes => match read {
                    Ok(bytes) => deadlines.arrived(Instant::now(), bytes),
                    Err(ended) => return ended,
                },
                _ = stopping.changed(), if !draining => {}
                Ok(()) = changing.changed() => changing.mark_changed(),
                () = due => {}
            }
        }
    }
}

/// Ends a connection so that what was answered arrives. To close a socket in which requests lie unread is to
/// reset it, and a reset takes back answers that are still on their way.
async fn part(mut reader: impl AsyncRead + Unpin, mut writer: impl AsyncWrite + Unpin) {
    let mut unread = [0; 4096];
    let until_the_end = async {
        writer.shutdown().await?;
        while reader.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    // A client that stays is left; one that went has what it came for.
    let _ = tokio::time::timeout(PARTING, until_the_end).await;
}

/// Decodes a frame and hands the request over.
async fn take<H: Handler>(
    handler: &H,
    peer: SocketAddr,
    listener: &std::sync::Arc<str>,
    frame: Bytes,
    held: Held,
) -> Result<InFlight, Ended> {
    let (header, body) = match split_request(frame) {
        Err(HeaderError::UnsupportedVersion {
            api: ApiKey::ApiVersions,
            correlation_id,
            ..
        }) => {
            let ready = Ready {
                chunks: unsupported_api_versions(correlation_id)?.into_chunks(),
                settled: None,
            };
            return Ok(Box::pin(std::future::ready(Ok(Some(ready)))));
        }
        other => other?,
    };
    let RequestHeader {
        api,
        version,
        correlation_id,
        client_id,
    } = header;
    let request = Request::decode(api, version, body)?;
    let context = Context {
        client_id,
        peer,
        listener: listener.clone(),
        api,
        version,
    };
    let begun = Instant::now();
    let answer = handler.take(context, request).await;
    Ok(Box::pin(async move {
        let answer = answer.await;
        if api != ApiKey::Fetch {
            // A fetch says itself how long it worked: it may have been parked for most of the time.
            metrics::request_answered(api, begun.elapsed());
        }
        drop(held);
        match answer {
            Answer::Respond(response) => Ok(Some(Ready {
                settled: (api == ApiKey::Produce).then(Instant::now),
                chunks: response.encode(version, correlation_id)?.into_chunks(),
            })),
            Answer::Nothing => Ok(None),
            Answer::Close => Err(Ended::Refused),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_small_request_does_not_keep_the_memory_of_the_large_one_before_it() {
        const LARGE: usize = 3 << 20;
        let mut sent = Vec::new();
        for size in [LARGE, 100] {
            sent.extend_from_slice(&(size as u32).to_be_bytes());
            sent.resize(sent.len() + size, 0);
        }
        let (mut socket, limits) = (&sent[..], Limits::new(1, 1, 8 << 20));
        let (mut inbox, mut frames) = (Inbox::new(), Vec::new());
        while frames.len() < 2 {
            match inbox.next(LARGE).expect("sizes are allowed") {
                Some((frame, _held)) => frames.push(frame),
                None => drop(inbox.fill(&mut socket, &limits).await.expect("it is read")),
            }
        }
        assert_eq!((frames[0].len(), frames[1].len()), (LARGE, 100));
        let large = frames.remove(0).try_into_mut();
        assert!(large.is_ok(), "the other is a part of its buffer");
    }
}
