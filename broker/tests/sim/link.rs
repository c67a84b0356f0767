//! A broker's ways to the others, as `peers` keeps them, on the simulated network: pings, who is alive,
//! calls only to whom it is connected.
//!
//! The timing is the product's; what a socket would say is said by the network.

use crate::FOUNDERS;
use crate::net::{Answer, Outbox, Outgoing, unreachable};
use futures_util::future::BoxFuture;
use logd::cluster::{BUILD, Neighbours};
use logd::partition::Partition;
use logd::peers::{Hearing, SILENCE, Standing, Standings};
use logd::raft::{CallError, ReplicaId, Transport};
use logd_proto::rpc::v1::envelope::Body;
use logd_proto::rpc::v1::group_message::Kind;
use logd_proto::rpc::v1::{self as rpc, GroupMessage, Ping};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

const PING_EVERY: Duration = Duration::from_millis(200);

/// Everything that the links of one broker share.
#[derive(Clone)]
pub struct Links {
    pub disk: ReplicaId,
    pub start: u64,
    pub outbox: Outbox,
    pub hearing: Hearing,
    pub standings: watch::Sender<Standings>,
    connected: Arc<Mutex<BTreeSet<ReplicaId>>>,
}

impl Links {
    pub fn new(disk: ReplicaId, start: u64) -> Self {
        Self {
            disk,
            start,
            outbox: Outbox::default(),
            hearing: Hearing::default(),
            standings: watch::channel(Standings::new()).0,
            connected: Arc::default(),
        }
    }

    fn ask(&self, to: ReplicaId, body: Body) -> oneshot::Receiver<Answer> {
        let (reply, answer) = oneshot::channel();
        self.outbox.put(Outgoing::Request { to, body, reply });
        answer
    }

    fn call_body(
        &self,
        to: ReplicaId,
        body: Body,
        patience: Duration,
    ) -> BoxFuture<'static, Answer> {
        if !self.connected.lock().contains(&to) {
            return Box::pin(std::future::ready(Err(unreachable(to))));
        }
        let answer = self.ask(to, body);
        Box::pin(async move {
            match tokio::time::timeout(patience, answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(unreachable(to)),
                Err(_) => Err(CallError::TimedOut { to, patience }),
            }
        })
    }

    fn stands(&self, of: ReplicaId, now: Standing) {
        self.standings
            .send_if_modified(|all| all.insert(of, now.clone()).as_ref() != Some(&now));
    }

    fn is_dead(&self, peer: ReplicaId, why: &str) {
        self.connected.lock().remove(&peer);
        let why = why.to_owned();
        self.stands(peer, Standing::Dead { why });
    }

    /// Pings one peer for ever.
    pub async fn keep(self, peer: ReplicaId) {
        self.stands(peer, Standing::Unknown);
        let mut ticks = tokio::time::interval(PING_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut heard, mut ticked) = (Instant::now(), Instant::now());
        let mut pinged: Option<(Instant, oneshot::Receiver<Answer>)> = None;
        let (mut connection, mut start) = (0, 0);
        loop {
            let answered = async {
                match &mut pinged {
                    Some((sent, answer)) => (*sent, answer.await),
                    None => std::future::pending().await,
                }
            };
            let (sent, answer) = tokio::select! {
                biased;
                answered = answered => answered,
                _ = ticks.tick() => {
                    // A process that was stopped for a while has heard nobody, and must not blame them.
                    if ticked.elapsed() > SILENCE / 2 {
                        heard = Instant::now();
                    }
                    ticked = Instant::now();
                    if heard.elapsed() > SILENCE {
                        self.is_dead(peer, "silent");
                    }
                    pinged = pinged.filter(|(sent, _)| sent.elapsed() < SILENCE);
                    if pinged.is_none() {
                        let start = self.start;
                        let ping = Body::Ping(Ping { start, ..Ping::default() });
                        pinged = Some((Instant::now(), self.ask(peer, ping)));
                    }
                    continue;
                }
            };
            pinged = None;
            match answer {
                Ok(Ok(Body::Ping(pong))) => {
                    heard = Instant::now();
                    if start != pong.start || self.connected.lock().insert(peer) {
                        connection += 1;
                        start = pong.start;
                        self.connected.lock().insert(peer);
                    }
                    self.hearing.answered(peer, sent);
                    let features = BUILD.number();
                    self.stands(
                        peer,
                        Standing::Alive {
                            connection,
                            start,
                            features,
                        },
                    );
                }
                // Its process has ended, so nothing that it said counts any more.
                Ok(Err(CallError::Refused { why, .. })) => {
                    self.hearing.gone(peer);
                    self.is_dead(peer, &why);
                }
                // The connection broke; it is dialled again.
                _ => {}
            }
        }
    }
}

impl Transport for Links {
    fn call(
        &self,
        message: GroupMessage,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Kind, CallError>> {
        let to = message.to;
        let answer = self.call_body(to, Body::Group(message), patience);
        Box::pin(async move {
            let kind = match answer.await? {
                Body::Group(answer) => answer.kind,
                _ => None,
            };
            match kind {
                Some(Kind::Refused(why)) => Err(CallError::Refused { to, why }),
                Some(kind) => Ok(kind),
                None => Err(unreachable(to)),
            }
        })
    }
}

impl Neighbours for Links {
    fn disk(&self) -> ReplicaId {
        self.disk
    }

    fn vetted(&self) -> bool {
        true
    }

    fn standings(&self) -> watch::Receiver<Standings> {
        self.standings.subscribe()
    }

    fn outlooks(
        &self,
        of: ReplicaId,
        orphans: rpc::Orphans,
        patience: Duration,
    ) -> BoxFuture<'static, Result<rpc::Outlooks, CallError>> {
        let answer = self.call_body(of, Body::Orphans(orphans), patience);
        Box::pin(async move {
            match answer.await? {
                Body::Outlooks(outlooks) => Ok(outlooks),
                _ => Err(unreachable(of)),
            }
        })
    }

    fn preference(&self, partition: &Partition) -> Vec<ReplicaId> {
        let mut disks = FOUNDERS.to_vec();
        disks.rotate_left(partition.index() as usize % FOUNDERS.len());
        disks
    }
}
