//! One TCP connection to one broker: requests go out in the order they were started, answers find
//! their request by its number.
//!
//! Promise: every wait has a deadline, and a frame is never larger than the limit. An answer that does
//! not come in time closes the connection, since everything behind it would be late too.
//!
//! Not here: which broker to talk to, and whether to try again ([`crate::cluster`]).

use std::collections::HashMap;
use std::io;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use logd_proto::api::{self, ApiKey};
use logd_proto::frame::{FRAME_BYTES_MAX, FrameError, SIZE_BYTES, check_size};
use logd_proto::messages::{ApiVersionsRequest, RequestResponsePair};
use logd_proto::{ErrorCode, message};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::error::RequestError;

/// Requests waiting for the socket. Callers bound what is in flight; this only decouples them from
/// a socket that is busy for a moment.
const OUTBOX_REQUESTS: usize = 64;

/// A broker's announcement of a large frame is believed only this far before its bytes arrive.
const READ_AHEAD_BYTES: usize = 4 << 20;

/// What every connection of a client has in common.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub client_id: Arc<str>,
    pub connect_timeout: Duration,
    pub request_timeout: Duration,
}

/// An open connection. Dropping it closes the socket.
#[derive(Debug)]
pub(crate) struct Connection {
    addr: Arc<str>,
    client_id: Arc<str>,
    /// By API key, what the broker announced.
    versions: HashMap<i16, RangeInclusive<i16>>,
    next_correlation: AtomicI32,
    outbox: mpsc::Sender<Vec<Bytes>>,
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    answers: HashMap<i32, oneshot::Sender<Bytes>>,
    closed: Option<Arc<str>>,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first reason is the one that explains; dropping the senders wakes everybody who waits.
    fn close(&self, reason: &str) {
        let mut waiting = self.lock();
        waiting.closed.get_or_insert_with(|| reason.into());
        waiting.answers.clear();
    }
}

/// A request that is on its way.
#[derive(Debug)]
pub(crate) struct Reply<R> {
    addr: Arc<str>,
    answer: oneshot::Receiver<Bytes>,
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
    version: i16,
    deadline: tokio::time::Instant,
    timeout: Duration,
    of: PhantomData<fn() -> R>,
}

impl Connection {
    /// Connects and learns which versions the broker speaks.
    ///
    /// # Errors
    /// When there is no broker that speaks Kafka at `addr`.
    pub async fn open(addr: &str, settings: &Settings) -> Result<Connection, RequestError> {
        let addr: Arc<str> = addr.into();
        let stream = connect(&addr, settings.connect_timeout).await?;
        let shared = Arc::new(Shared::default());
        let (reader, writer) = stream.into_split();
        let (outbox, queue) = mpsc::channel(OUTBOX_REQUESTS);
        let read = tokio::spawn(read_answers(reader, Arc::clone(&shared)));
        let write = tokio::spawn(write_requests(writer, queue, Arc::clone(&shared)));
        let mut connection = Connection {
            addr,
            client_id: Arc::clone(&settings.client_id),
            versions: HashMap::new(),
            next_correlation: AtomicI32::new(0),
            outbox,
            shared,
            tasks: [read.abort_handle(), write.abort_handle()],
        };
        connection.versions = connection.negotiate(settings.request_timeout).await?;
        tracing::debug!(addr = %connection.addr, "connected");
        Ok(connection)
    }

    pub fn is_closed(&self) -> bool {
        self.shared.lock().closed.is_some()
    }

    /// Asks for versions. A broker that does not know our version of the question answers in version
    /// 0 with the versions it does know.
    async fn negotiate(
        &self,
        timeout: Duration,
    ) -> Result<HashMap<i16, RangeInclusive<i16>>, RequestError> {
        let request = message!(ApiVersionsRequest {
            client_software_name: "logd-client".into(),
            client_software_version: env!("CARGO_PKG_VERSION").into(),
        });
        // Version 3 is what every broker since Kafka 2.4 answers; later ones add what we do not use.
        for version in [3, 0] {
            let reply = self.start_at(&request, version, timeout).await?;
            let response = match reply.wait().await {
                Err(RequestError::Malformed { .. }) if version != 0 => continue,
                answer => answer?,
            };
            match ErrorCode::from_code(response.error_code) {
                ErrorCode::None => {
                    let announced = response.api_keys.iter();
                    return Ok(announced
                        .map(|api| (api.api_key, api.min_version..=api.max_version))
                        .collect());
                }
                ErrorCode::UnsupportedVersion if version != 0 => {}
                code => return Err(self.refused("ApiVersions", code)),
            }
        }
        Err(self.unsupported("ApiVersions"))
    }

    /// The highest version of an API that both sides speak, not above `cap`.
    pub fn version(&self, api: ApiKey, cap: i16) -> Result<i16, RequestError> {
        let announced = self.versions.get(&api.code());
        let capped = announced.map(|range| *range.start()..=cap.min(*range.end()));
        capped
            .and_then(|range| api::negotiate(api, range))
            .ok_or_else(|| self.unsupported(api.name()))
    }

    /// Sends a request and waits for its answer.
    pub async fn call<R: RequestResponsePair>(
        &self,
        request: &R,
        cap: i16,
        timeout: Duration,
    ) -> Result<R::Response, RequestError> {
        self.start(request, cap, timeout).await?.wait().await
    }

    /// Queues a request; requests started one after the other reach the broker in that order.
    ///
    /// `cap` is the highest version whose fields the caller fills.
    pub async fn start<R: RequestResponsePair>(
        &self,
        request: &R,
        cap: i16,
        timeout: Duration,
    ) -> Result<Reply<R>, RequestError> {
        let Some(api) = ApiKey::from_code(R::API_KEY.value()) else {
            return Err(self.unsupported(R::NAME));
        };
        let version = self.version(api, cap)?;
        self.start_at(request, version, timeout).await
    }

    async fn start_at<R: RequestResponsePair>(
        &self,
        request: &R,
        version: i16,
        timeout: Duration,
    ) -> Result<Reply<R>, RequestError> {
        tracing::trace!(addr = %self.addr, request = R::NAME, version, "asks");
        let deadline = tokio::time::Instant::now() + timeout;
        let correlation = self.next_correlation.fetch_add(1, Ordering::Relaxed);
        let frame = api::encode_request(request, version, correlation, Some(&self.client_id))
            .map_err(RequestError::Encode)?;
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = self.shared.lock();
            if let Some(reason) = &waiting.closed {
                return Err(closed(&self.addr, reason));
            }
            waiting.answers.insert(correlation, sender);
        }
        let sent = self.outbox.send(frame.into_chunks());
        match tokio::time::timeout_at(deadline, sent).await {
            Ok(Ok(())) => {}
            // The writer is gone; waiting for the answer tells why.
            Ok(Err(_)) => {}
            Err(_) => self.shared.close("the broker does not read"),
        }
        Ok(Reply {
            addr: Arc::clone(&self.addr),
            answer,
            shared: Arc::clone(&self.shared),
            tasks: self.tasks.clone(),
            version,
            deadline,
            timeout,
            of: PhantomData,
        })
    }

    pub fn refused(&self, api: &'static str, code: ErrorCode) -> RequestError {
        let addr = Arc::clone(&self.addr);
        RequestError::Refused { addr, api, code }
    }

    fn unsupported(&self, api: &'static str) -> RequestError {
        let addr = Arc::clone(&self.addr);
        RequestError::Unsupported { addr, api }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.close("closed by this client");
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl<R: RequestResponsePair> Reply<R> {
    /// Waits for the answer.
    pub async fn wait(self) -> Result<R::Response, RequestError> {
        match tokio::time::timeout_at(self.deadline, self.answer).await {
            Ok(Ok(frame)) => {
                let decoded = api::decode_response::<R>(frame, self.version);
                decoded.map(|(_, response)| response).map_err(|source| {
                    let addr = Arc::clone(&self.addr);
                    RequestError::Malformed { addr, source }
                })
            }
            Ok(Err(_)) => {
                let reason = self.shared.lock().closed.clone();
                let reason = reason.unwrap_or_else(|| "the answer was lost".into());
                Err(closed(&self.addr, &reason))
            }
            Err(_) => {
                self.shared.close("an answer did not come in time");
                for task in &self.tasks {
                    task.abort();
                }
                Err(RequestError::Timeout {
                    addr: self.addr,
                    api: R::NAME.trim_end_matches("Request"),
                    after: self.timeout,
                })
            }
        }
    }
}

fn closed(addr: &Arc<str>, reason: &Arc<str>) -> RequestError {
    RequestError::Closed {
        addr: Arc::clone(addr),
        reason: Arc::clone(reason),
    }
}

async fn connect(addr: &Arc<str>, timeout: Duration) -> Result<TcpStream, RequestError> {
    let failed = |source: io::Error| RequestError::Connect {
        addr: Arc::clone(addr),
        source: Arc::new(source),
    };
    let connecting = TcpStream::connect(&**addr);
    let stream = match tokio::time::timeout(timeout, connecting).await {
        Ok(connected) => connected.map_err(failed)?,
        Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
    };
    // A request is written whole; waiting to fill a packet would only add latency.
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

async fn write_requests(
    mut socket: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Vec<Bytes>>,
    shared: Arc<Shared>,
) {
    while let Some(chunks) = queue.recv().await {
        for chunk in chunks {
            if let Err(error) = socket.write_all(&chunk).await {
                shared.close(&error.to_string());
                return;
            }
        }
    }
}

async fn read_answers(socket: OwnedReadHalf, shared: Arc<Shared>) {
    let mut socket = BufReader::with_capacity(16 << 10, socket);
    let reason = loop {
        let frame = match read_frame(&mut socket).await {
            Ok(frame) => frame,
            Err(reason) => break reason,
        };
        let Some(correlation) = frame.first_chunk::<4>().copied().map(i32::from_be_bytes) else {
            break "a frame without a correlation id".to_owned();
        };
        let Some(answer) = shared.lock().answers.remove(&correlation) else {
            break format!("an answer to request {correlation}, which was never sent");
        };
        // Whoever asked may have stopped waiting.
        answer.send(frame).ok();
    };
    shared.close(&reason);
}

/// Reads one frame without its size.
async fn read_frame(socket: &mut (impl AsyncRead + Unpin)) -> Result<Bytes, String> {
    let mut prefix = [0; SIZE_BYTES];
    if let Err(error) = socket.read_exact(&mut prefix).await {
        return Err(match error.kind() {
            io::ErrorKind::UnexpectedEof => "the broker closed it".to_owned(),
            _ => error.to_string(),
        });
    }
    let size = check_size(prefix, FRAME_BYTES_MAX).map_err(|error| not_kafka(&error))?;
    let mut frame = BytesMut::with_capacity(size.min(READ_AHEAD_BYTES));
    let mut body = socket.take(size as u64);
    while frame.len() < size {
        match body.read_buf(&mut frame).await {
            Ok(0) => return Err("the broker closed it in the middle of an answer".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(frame.freeze())
}

fn not_kafka(error: &FrameError) -> String {
    let what = match error {
        FrameError::Http => "the peer is an HTTP server".to_owned(),
        FrameError::Tls => "the peer expects TLS".to_owned(),
        other => other.to_string(),
    };
    format!("not Kafka's protocol: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn settings() -> Settings {
        Settings {
            client_id: "test".into(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_millis(300),
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_told_with_the_address() {
        let error = Connection::open("127.0.0.1:1", &settings())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
        assert!(error.is_retriable() && error.is_unreachable());
    }

    #[tokio::test]
    async fn a_silent_peer_costs_no_more_than_the_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let error = Connection::open(&addr, &settings()).await.unwrap_err();
        assert!(matches!(error, RequestError::Timeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_web_server_is_recognised() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
        });
        let error = Connection::open(&addr, &settings()).await.unwrap_err();
        assert!(error.to_string().contains("HTTP server"), "{error}");
    }

    #[tokio::test]
    async fn a_frame_larger_than_the_limit_is_not_read() {
        let mut bytes: &[u8] = &[0x7f, 0xff, 0xff, 0xff, 0];
        let error = read_frame(&mut bytes).await.unwrap_err();
        assert!(error.contains("limit"), "{error}");
        let mut cut: &[u8] = &[0, 0, 0, 9, 1, 2];
        assert!(read_frame(&mut cut).await.unwrap_err().contains("middle"));
    }
}
