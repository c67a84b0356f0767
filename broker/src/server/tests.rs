//! Connections over an in-memory pipe, with a handler that answers when it is told to.

use super::connection::{Connection, ConnectionLimits};
use super::deadlines::Patience;
use super::limits::{FREE_BYTES, Limits};
use crate::api::{Answer, Answering, Context, Handler};
use logd_proto::api::{Request, encode_request};
use logd_proto::message;
use logd_proto::messages::{
    DeleteTopicsRequest, DeleteTopicsResponse, HeartbeatRequest, HeartbeatResponse,
};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{oneshot, watch};

/// What may lie between a client and its connection.
const PIPE_BYTES: usize = 64 * 1024;

/// Holds each answer until the test releases it by the number in the request.
#[derive(Default)]
struct Held {
    taken: Mutex<Vec<i32>>,
    releases: Mutex<HashMap<i32, oneshot::Sender<Answer>>>,
}

impl Held {
    fn release(&self, id: i32) {
        self.release_with(
            id,
            Answer::Respond(
                message!(HeartbeatResponse {
                    error_code: id as i16
                })
                .into(),
            ),
        );
    }

    fn release_with(&self, id: i32, answer: Answer) {
        let sender = self
            .releases
            .lock()
            .remove(&id)
            .expect("a request of this id is in flight");
        sender.send(answer).expect("its connection lives");
    }

    async fn has_taken(&self, count: usize) {
        while self.taken.lock().len() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Handler for Held {
    async fn take(&self, _context: Context, request: Request) -> Answering {
        let id = match request {
            Request::Heartbeat(heartbeat) => heartbeat.generation_id,
            Request::DeleteTopics(deletion) => deletion.timeout_ms,
            other => panic!("the tests send heartbeats and deletions, not {other:?}"),
        };
        let (tx, rx) = oneshot::channel();
        self.taken.lock().push(id);
        self.releases.lock().insert(id, tx);
        Box::pin(async move { rx.await.unwrap_or(Answer::Close) })
    }
}

struct Client {
    pipe: DuplexStream,
    handler: Arc<Held>,
    stop: watch::Sender<bool>,
    served: tokio::task::JoinHandle<()>,
}

fn bounds() -> ConnectionLimits {
    ConnectionLimits {
        frame_bytes_max: 1 << 20,
        in_flight_max: 3,
        patience: Patience {
            idle: Duration::from_secs(60),
            handshake: Duration::from_secs(60),
            stalled: Duration::from_secs(5),
            frame_bytes_per_second: 100,
        },
    }
}

fn connect(bounds: ConnectionLimits) -> Client {
    connect_within(bounds, Limits::new(10, 10, 1 << 20))
}

fn connect_within(bounds: ConnectionLimits, limits: Limits) -> Client {
    let (pipe, socket) = tokio::io::duplex(PIPE_BYTES);
    let handler = Arc::new(Held::default());
    let (stop, stopping) = watch::channel(false);
    let connection = Connection {
        socket,
        peer: "127.0.0.1:1".parse().expect("an address"),
        listener: "test".into(),
        handler: handler.clone(),
        limits,
        bounds: watch::channel(bounds).1,
        stopping,
    };
    let served = tokio::spawn(connection.serve());
    Client {
        pipe,
        handler,
        stop,
        served,
    }
}

impl Client {
    async fn send(&mut self, id: i32) {
        let request = message!(HeartbeatRequest {
            group_id: "g".into(),
            generation_id: id,
            member_id: "m".into()
        });
        let frame = encode_request(&request, 0, id, None).expect("it encodes");
        self.write(&frame.to_bytes()).await;
    }

    async fn send_deletion(&mut self, id: i32) {
        let request = message!(DeleteTopicsRequest { timeout_ms: id });
        let frame = encode_request(&request, 1, id, None).expect("it encodes");
        self.write(&frame.to_bytes()).await;
    }

    async fn write(&mut self, frame: &[u8]) {
        self.pipe
            .write_all(frame)
            .await
            .expect("the connection lives");
    }

    /// The correlation id of the next answer.
    async fn answered(&mut self) -> i32 {
        let size = self.pipe.read_u32().await.expect("an answer");
        let mut frame = vec![0; size as usize];
        self.pipe
            .read_exact(&mut frame)
            .await
            .expect("the whole answer");
        i32::from_be_bytes(frame[..4].try_into().expect("four bytes"))
    }

    async fn ended(self) -> Vec<u8> {
        let Self { mut pipe, .. } = self;
        let mut rest = Vec::new();
        pipe.read_to_end(&mut rest).await.expect("a clean end");
        rest
    }
}

#[tokio::test]
async fn trap_20_answers_leave_in_the_order_of_the_requests() {
    let mut client = connect(bounds());
    for id in 1..=3 {
        client.send(id).await;
    }
    client.handler.has_taken(3).await;
    for id in [3, 2, 1] {
        client.handler.release(id);
    }
    for id in 1..=3 {
        assert_eq!(client.answered().await, id);
    }
}

#[tokio::test(start_paused = true)]
async fn what_changes_topics_is_worked_on_by_itself() {
    let mut client = connect(bounds());
    client.send(1).await;
    client.send_deletion(2).await;
    client.send(3).await;
    let deleted = || Answer::Respond(message!(DeleteTopicsResponse {}).into());
    for (taken, id) in [(1, 1), (2, 2), (3, 3)] {
        client.handler.has_taken(taken).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(
            client.handler.taken.lock().len(),
            taken,
            "before {id} ended"
        );
        match id {
            2 => client.handler.release_with(id, deleted()),
            _ => client.handler.release(id),
        }
        assert_eq!(client.answered().await, id);
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_requests_are_taken_than_may_be_in_flight() {
    let mut client = connect(bounds());
    for id in 1..=5 {
        client.send(id).await;
    }
    client.handler.has_taken(3).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*client.handler.taken.lock(), [1, 2, 3]);
    client.handler.release(1);
    assert_eq!(client.answered().await, 1);
    client.handler.has_taken(4).await;
}

#[tokio::test]
async fn a_frame_may_arrive_byte_by_byte() {
    let mut client = connect(bounds());
    let request = message!(HeartbeatRequest {
        group_id: "g".into(),
        generation_id: 1,
        member_id: "m".into()
    });
    for byte in encode_request(&request, 0, 1, None)
        .expect("it encodes")
        .to_bytes()
    {
        client
            .pipe
            .write_all(&[byte])
            .await
            .expect("the connection lives");
    }
    client.handler.has_taken(1).await;
    client.handler.release(1);
    assert_eq!(client.answered().await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_stalls_half_way_ends_the_connection() {
    let mut client = connect(bounds());
    client
        .pipe
        .write_all(&[0, 0, 0, 100, 0, 12])
        .await
        .expect("the connection lives");
    assert_eq!(client.ended().await, b"");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_and_a_waiting_one_does_not() {
    let idle = connect(bounds());
    let mut waiting = connect(bounds());
    waiting.send(1).await;
    waiting.handler.has_taken(1).await;
    assert_eq!(idle.ended().await, b"");
    tokio::time::sleep(Duration::from_secs(300)).await;
    waiting.handler.release(1);
    assert_eq!(waiting.answered().await, 1);
}

#[tokio::test]
async fn trap_31_strangers_are_let_go_without_an_answer() {
    for hello in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0x16, 3, 1, 0, 200, 1],
        &[0x7f, 0xff, 0xff, 0xff],
        &[0xff; 8],
        &[0; 8],
    ] {
        let mut client = connect(bounds());
        client
            .pipe
            .write_all(hello)
            .await
            .expect("the pipe takes it");
        assert_eq!(client.ended().await, b"", "{hello:?}");
    }
}

#[tokio::test]
async fn trap_02_an_unknown_api_or_version_ends_the_connection() {
    for (key, version) in [(999i16, 0i16), (12, 99)] {
        let mut client = connect(bounds());
        let mut frame = vec![0, 0, 0, 10];
        frame.extend(key.to_be_bytes());
        frame.extend(version.to_be_bytes());
        frame.extend([0, 0, 0, 5, 0xff, 0xff]);
        client
            .pipe
            .write_all(&frame)
            .await
            .expect("the pipe takes it");
        assert_eq!(client.ended().await, b"", "key {key} version {version}");
    }
}

#[tokio::test]
async fn trap_01_an_unknown_version_of_api_versions_is_answered_in_version_0() {
    let mut client = connect(bounds());
    // The body of a version nobody knows is not looked at.
    client
        .pipe
        .write_all(&[
            0, 0, 0, 12, 0, 18, 0, 99, 0, 0, 0, 5, 0xde, 0xad, 0xbe, 0xef,
        ])
        .await
        .expect("the pipe takes it");
    let size = client.pipe.read_u32().await.expect("an answer");
    let mut frame = vec![0; size as usize];
    client
        .pipe
        .read_exact(&mut frame)
        .await
        .expect("the whole answer");
    assert_eq!(frame, [0, 0, 0, 5, 0, 35, 0, 0, 0, 1, 0, 18, 0, 0, 0, 4]);
}

#[tokio::test]
async fn an_answer_that_cannot_be_told_ends_the_connection() {
    let mut client = connect(bounds());
    client.send(1).await;
    client.handler.has_taken(1).await;
    client.handler.release_with(1, Answer::Close);
    assert_eq!(client.ended().await, b"");
}

#[tokio::test]
async fn stopping_finishes_what_is_in_flight_and_takes_no_more() {
    let mut client = connect(bounds());
    client.send(1).await;
    client.handler.has_taken(1).await;
    client.stop.send_replace(true);
    client.handler.release(1);
    assert_eq!(client.answered().await, 1);
    client.served.await.expect("the connection ends by itself");
}

#[tokio::test]
async fn frames_that_are_half_here_do_not_wait_for_each_other() {
    let limits = Limits::new(10, 10, 2_500_000);
    let bounds = ConnectionLimits {
        frame_bytes_max: 8 << 20,
        ..bounds()
    };
    let frame = padded(1, 2 << 20);
    let mut clients = [(); 2].map(|()| connect_within(bounds, limits.clone()));
    for client in &mut clients {
        client
            .pipe
            .write_all(&frame[..100_000])
            .await
            .expect("the beginning is read");
    }
    let rests = clients.iter_mut().map(|client| async {
        client
            .pipe
            .write_all(&frame[100_000..])
            .await
            .expect("the rest is read");
        client.handler.has_taken(1).await;
        client.handler.release(1);
        assert_eq!(client.answered().await, 1);
    });
    let all = futures_util::future::join_all(rests);
    tokio::time::timeout(Duration::from_secs(4), all)
        .await
        .expect("all are answered");
}

/// A heartbeat whose frame has so many bytes after its size: those behind a request are ignored.
fn padded(id: i32, bytes: usize) -> Vec<u8> {
    let request = message!(HeartbeatRequest { generation_id: id });
    let heartbeat = encode_request(&request, 0, id, None).expect("it encodes");
    let mut frame = heartbeat.to_bytes().to_vec();
    frame.resize(bytes + 4, 0);
    let size = u32::try_from(bytes).expect("a frame's size");
    frame[..4].copy_from_slice(&size.to_be_bytes());
    frame
}

#[tokio::test]
async fn a_request_is_counted_by_its_size_however_it_arrives() {
    let limits = Limits::new(10, 10, 8 << 20);
    let mut client = connect_within(bounds(), limits.clone());
    // One that is nearly whole when its size is read, and one that comes in the wake of a larger one.
    for (id, bytes, held) in [
        (1, 20_000, 20_000),
        (2, 900_000, 920_000),
        (3, 20_000, 940_000),
    ] {
        client
            .pipe
            .write_all(&padded(id, bytes))
            .await
            .expect("it is read");
        client.handler.has_taken(id as usize).await;
        let now = limits.bytes_held();
        assert!((held..held + 4096).contains(&now), "{now} bytes after {id}");
    }
    for id in 1..=3 {
        client.handler.release(id);
        assert_eq!(client.answered().await, id);
    }
    assert_eq!(limits.bytes_held(), 0);
}

#[tokio::test(start_paused = true)]
async fn small_requests_are_bounded_by_how_many_may_be_in_flight() {
    // No room for anything that is counted.
    let limits = Limits::new(10, 10, 0);
    let mut client = connect_within(bounds(), limits);
    let frames: Vec<u8> = (1..=20).flat_map(|id| padded(id, FREE_BYTES)).collect();
    let mut written = 0;
    let writing = async {
        loop {
            let rest = &frames[written..];
            written += client.pipe.write(rest).await.expect("it lives");
        }
    };
    let full = tokio::time::timeout(Duration::from_secs(1), writing).await;
    assert!(full.is_err(), "it reads without end");
    client.handler.has_taken(bounds().in_flight_max).await;
    let taken = bounds().in_flight_max * frames.len() / 20;
    let bound = taken + FREE_BYTES + PIPE_BYTES;
    assert!((taken..=bound).contains(&written), "{written} of {bound}");
}
