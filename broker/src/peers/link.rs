//! Our side of the way to one peer: dial, introduce, keep two exchanges open, dial again.
//!
//! Invariant: calls are made only while both exchanges are open; when they end, every call in flight
//! fails at once. Two lanes, so that votes and pings do not wait behind megabytes of records.
//! A peer is dead when its connection ended and nobody accepts a new one, or when it has been silent
//! for [`SILENCE`]; it is alive again when it has answered a ping.

use super::call::{Client, RpcError, endpoint, unreachable};
use super::fit::{Misfit, fit, past};
use super::hearing::{Hearing, SILENCE};
use super::server::{BUILD, CLUSTER, DISK, KNOWN_START, LINEAGE, PROTOCOL, START, disk_of, said};
use super::{Address, Household, MESSAGE_BYTES_MAX, Standings};
use crate::raft::{CallError, ReplicaId};
use futures_util::future::BoxFuture;
use futures_util::stream::poll_fn;
use logd_proto::rpc::v1::broker_client::BrokerClient;
use logd_proto::rpc::v1::envelope::Body;
use logd_proto::rpc::v1::group_message::Kind;
use logd_proto::rpc::v1::{Envelope, IdentifyRequest, Ping};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Streaming};
use tracing::{debug, info, warn};

/// A ping goes out this often.
const PING_EVERY: Duration = Duration::from_millis(200);

/// Pauses between two dials: short after a loss, so that a restart is noticed; longer for one who stays away.
const REDIAL_MIN: Duration = Duration::from_millis(50);
const REDIAL_MAX: Duration = Duration::from_secs(1);

/// How long an introduction may take.
const INTRODUCTION: Duration = Duration::from_secs(2);

/// Calls that wait to be written.
const CALLS: usize = 1_024;

/// How it stands with a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not heard of yet.
    Unknown,
    /// It answers. The connection's number tells one from the next; its start, one process from the next.
    Alive {
        connection: u64,
        start: u64,
        /// The feature level that its build understands.
        features: u32,
    },
    Dead {
        why: String,
    },
}

impl Standing {
    pub fn is_alive(&self) -> bool {
        matches!(self, Standing::Alive { .. })
    }
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Body>>>>;

/// The open connection: where calls are written, and who waits for answers.
#[derive(Clone)]
struct Lanes {
    urgent: mpsc::Sender<Envelope>,
    bulk: mpsc::Sender<Envelope>,
    waiting: Waiting,
}

/// What calls of one peer share.
pub(super) struct Caller {
    to: ReplicaId,
    next: AtomicU64,
    lanes: watch::Sender<Result<Lanes, String>>,
}

/// One peer. Dropping it hangs up.
pub(super) struct Link {
    address: Address,
    caller: Arc<Caller>,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
        let why = "it is no broker of this cluster any more".to_owned();
        drop(self.caller.lanes.send_replace(Err(why)));
    }
}

impl Link {
    pub fn open(
        to: ReplicaId,
        address: Address,
        household: Arc<dyn Household>,
        standings: watch::Sender<Standings>,
        hearing: Hearing,
    ) -> Self {
        let caller = Arc::new(Caller {
            to,
            next: AtomicU64::new(1),
            lanes: watch::channel(Err("not connected yet".to_owned())).0,
        });
        standings.send_modify(|s| {
            s.insert(to, Standing::Unknown);
        });
        let dialler = Dialler {
            address: address.clone(),
            caller: caller.clone(),
            household,
            standings,
            hearing,
        };
        Self {
            address,
            caller,
            task: tokio::spawn(dialler.run()),
        }
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    pub fn caller(&self) -> Arc<Caller> {
        self.caller.clone()
    }
}

impl Caller {
    /// Writes the message before it returns, if the lane has room, so calls made in order go out in order.
    pub fn call(
        &self,
        body: Body,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Body, CallError>> {
        let to = self.to;
        let unreachable = move |why: String| CallError::Unreachable { to, why };
        let lanes = match self.lanes.borrow().clone() {
            Ok(lanes) => lanes,
            Err(why) => return Box::pin(std::future::ready(Err(unreachable(why)))),
        };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answered, answer) = oneshot::channel();
        lanes.waiting.lock().insert(id, answered);
        // However this call ends, nobody waits for its answer any more.
        let forget = Forget(lanes.waiting.clone(), id);
        let lane = if is_bulk(&body) {
            lanes.bulk
        } else {
            lanes.urgent
        };
        let envelope = Envelope {
            id,
            body: Some(body),
        };
        let unsent = match lane.try_send(envelope) {
            Ok(()) => None,
            Err(TrySendError::Full(envelope) | TrySendError::Closed(envelope)) => Some(envelope),
        };
        let lost = move || unreachable("the connection was lost".into());
        let exchange = async move {
            if let Some(envelope) = unsent {
                lane.send(envelope).await.map_err(|_| lost())?;
            }
            answer.await.map_err(|_| lost())
        };
        Box::pin(async move {
            let _forget = forget;
            match tokio::time::timeout(patience, exchange).await {
                Ok(answer) => answer,
                Err(_) => Err(CallError::TimedOut { to, patience }),
            }
        })
    }
}

struct Forget(Waiting, u64);

impl Drop for Forget {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

fn is_bulk(body: &Body) -> bool {
    let Body::Group(message) = body else {
        return false;
    };
    match &message.kind {
        Some(Kind::Append(append)) => message.in_order || !append.entries.is_empty(),
        Some(Kind::Snapshot(_) | Kind::Offer(_) | Kind::Piece(_)) => true,
        _ => false,
    }
}

struct Dialler {
    address: Address,
    caller: Arc<Caller>,
    household: Arc<dyn Household>,
    standings: watch::Sender<Standings>,
    hearing: Hearing,
}

/// An open connection to a peer.
struct Opened {
    lanes: Lanes,
    answers: [Streaming<Envelope>; 2],
    /// The peer's start, and the feature level that its build understands.
    start: u64,
    features: u32,
}

impl Dialler {
    async fn run(self) {
        let mut pause = REDIAL_MIN;
        for connection in 1.. {
            let error = match self.dial().await {
                Ok(opened) => {
                    pause = REDIAL_MIN;
                    let why = self.keep(connection, opened).await;
                    info!(
                        node = self.address.node_id,
                        address = self.address.rpc,
                        why,
                        "a peer's connection ended"
                    );
                    // It may only have been the connection: dial at once, and see who accepts.
                    self.hang_up(&why);
                    continue;
                }
                Err(error) => error,
            };
            if matches!(error, RpcError::NobodyThere { .. }) {
                // Its process has ended, so nothing that it said counts any more.
                self.hearing.gone(self.caller.to);
            }
            let why = error.to_string();
            self.hang_up(&why);
            self.stands(Standing::Dead { why });
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REDIAL_MAX);
        }
    }

    /// The peers that answer this broker.
    fn who_answers(&self) -> Vec<ReplicaId> {
        let standings = self.standings.borrow();
        let alive = standings.iter().filter(|(_, s)| s.is_alive());
        alive.map(|(disk, _)| *disk).collect()
    }

    fn hang_up(&self, why: &str) {
        // Dropping the lanes' senders ends the exchanges; dropping the waiters' ends their calls.
        if let Ok(lanes) = self.caller.lanes.send_replace(Err(why.to_owned())) {
            lanes.waiting.lock().clear();
        }
    }

    fn stands(&self, now: Standing) {
        self.standings.send_if_modified(|all| {
            let before = all.insert(self.caller.to, now.clone());
            if before.as_ref() == Some(&now) {
                return false;
            }
            match &now {
                Standing::Alive { .. } => info!(node = self.address.node_id, "peer is alive"),
                Standing::Dead { why }
                    if before.is_none_or(|b| !matches!(b, Standing::Dead { .. })) =>
                {
                    warn!(
                        node = self.address.node_id,
                        address = self.address.rpc,
                        why,
                        "peer is dead"
                    );
                }
                _ => {}
            }
            true
        });
    }

    /// Connects, sees who is there, and opens both lanes.
    async fn dial(&self) -> Result<Opened, RpcError> {
        let (start, features) = self.introduce().await?;
        let address = &self.address.rpc;
        let channel = endpoint(address)?.connect().await;
        let channel = channel.map_err(|e| unreachable(address, &e))?;
        let (urgent, to_urgent) = mpsc::channel(CALLS);
        let (bulk, to_bulk) = mpsc::channel(CALLS);
        let opened = async {
            let urgent = self.exchange(channel.clone(), to_urgent).await?;
            let bulk = self.exchange(channel, to_bulk).await?;
            Ok::<_, String>([urgent, bulk])
        };
        let answers = tokio::time::timeout(INTRODUCTION, opened).await;
        let answers = answers.map_err(|_| RpcError::TimedOut {
            address: address.clone(),
            patience: INTRODUCTION,
        })?;
        let answers = answers.map_err(|why| self.unfit(why))?;
        let lanes = Lanes {
            urgent,
            bulk,
            waiting: Waiting::default(),
        };
        Ok(Opened {
            lanes,
            answers,
            start,
            features,
        })
    }

    fn unfit(&self, why: String) -> RpcError {
        let address = self.address.rpc.clone();
        RpcError::Refused { address, why }
    }

    /// Whoever answers must be the disk that is meant, of our cluster, and understand us as we do it. Says its start,
    /// and the feature level that its build understands.
    async fn introduce(&self) -> Result<(u64, u32), RpcError> {
        let us = self.household.identity();
        let client = Client::connect(&self.address.rpc).await?;
        let request = IdentifyRequest {
            caller: Some(us.clone()),
        };
        let answer = client.identify(request, INTRODUCTION).await?;
        let them = answer.broker.unwrap_or_default();
        if them.cluster_id != us.cluster_id {
            let (theirs, ours) = (them.cluster_id, us.cluster_id);
            return Err(self.unfit(format!("it belongs to cluster `{theirs}`, we to `{ours}`")));
        }
        if disk_of(&them) != Some(self.caller.to) {
            return Err(self.unfit("another disk answers at its address".into()));
        }
        if let Err(misfit) = fit(&us, &them) {
            if let Misfit::OurMetadata { theirs, .. } = misfit {
                self.household.surpassed_by(theirs);
            }
            return Err(self.unfit(misfit.to_string()));
        }
        if them.start < self.household.known_start(self.caller.to) {
            return Err(self.unfit("its disk is an older copy of the one we know".into()));
        }
        self.household.known_of_us(answer.known_start);
        Ok((them.start, them.feature_version))
    }

    async fn exchange(
        &self,
        channel: Channel,
        mut calls: mpsc::Receiver<Envelope>,
    ) -> Result<Streaming<Envelope>, String> {
        let us = self.household.identity();
        let lineage = said(&past(&us));
        let mut request = Request::new(poll_fn(move |cx| calls.poll_recv(cx)));
        let known = self.household.known_start(self.caller.to);
        let ours = disk_of(&us).unwrap_or(0);
        for (name, value) in [
            (CLUSTER, us.cluster_id),
            (DISK, ours.to_string()),
            (START, us.start.to_string()),
            (KNOWN_START, known.to_string()),
            (PROTOCOL, us.protocol_version.to_string()),
            (BUILD, us.feature_version.to_string()),
            (LINEAGE, lineage),
        ] {
            let value = value
                .parse()
                .map_err(|_| format!("{name} is no header value"))?;
            request.metadata_mut().insert(name, value);
        }
        let mut client = BrokerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        match client.exchange(request).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(status.message().to_owned()),
        }
    }

    /// Hands out answers and pings until the connection ends; says why it did.
    async fn keep(&self, connection: u64, opened: Opened) -> String {
        let Opened {
            lanes,
            answers: [mut urgent, mut bulk],
            start,
            features,
        } = opened;
        let ours = self.household.identity().start;
        let waiting = lanes.waiting.clone();
        let pings = lanes.urgent.clone();
        drop(self.caller.lanes.send_replace(Ok(lanes)));
        let mut ticks = tokio::time::interval(PING_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut heard, mut ticked) = (Instant::now(), Instant::now());
        // The ping that is on its way: its number, and when it was sent.
        let mut pinged: Option<(u64, Instant)> = None;
        loop {
            let answer = tokio::select! {
                answer = urgent.message() => answer,
                answer = bulk.message() => answer,
                _ = ticks.tick() => {
                    // A process that was stopped for a while has heard nobody, and must not blame them.
                    if ticked.elapsed() > SILENCE / 2 {
                        heard = Instant::now();
                    }
                    ticked = Instant::now();
                    if heard.elapsed() > SILENCE {
                        let why = format!("silent for {SILENCE:?}");
                        self.stands(Standing::Dead { why: why.clone() });
                        return why;
                    }
                    if pinged.is_none() {
                        let id = self.caller.next.fetch_add(1, Ordering::Relaxed);
                        let body = Some(Body::Ping(Ping {
                            start: ours,
                            disk_is_slow: self.hearing.own_disk_is_slow(),
                            hears: self.who_answers(),
                        }));
                        let at = Instant::now();
                        // A lane that is full is tried again at the next tick.
                        let sent = pings.try_send(Envelope { id, body }).is_ok();
                        pinged = sent.then_some((id, at));
                    }
                    continue;
                }
            };
            match answer {
                Ok(Some(envelope)) => {
                    heard = Instant::now();
                    if let Some((_, sent)) = pinged.take_if(|(id, _)| *id == envelope.id) {
                        self.hearing.answered(self.caller.to, sent);
                        self.stands(Standing::Alive {
                            connection,
                            start,
                            features,
                        });
                        continue;
                    }
                    let waiter = waiting.lock().remove(&envelope.id);
                    match (waiter, envelope.body) {
                        (Some(waiter), Some(body)) => drop(waiter.send(body)),
                        _ => debug!(id = envelope.id, "an answer nobody waits for any more"),
                    }
                }
                Ok(None) => return "the peer ended it".into(),
                Err(status) => return status.message().to_owned(),
            }
        }
    }
}
