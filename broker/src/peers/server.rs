//! What peers ask of us: the gRPC service.
//!
//! Invariant: an exchange is opened only to a broker of our own cluster that understands us, and whose disk is
//! not an older copy of one we know.

use super::fit::{Misfit, fit};
use super::{Served, replica_of};
use crate::raft::ReplicaId;
use futures_util::stream::poll_fn;
use futures_util::{FutureExt, Stream, StreamExt};
use logd_proto::rpc::v1::broker_server::Broker;
use logd_proto::rpc::v1::envelope::Body;
use logd_proto::rpc::v1::{
    Done, Envelope, GroupMessage, IdentifyRequest, IdentifyResponse, Identity, JoinRequest,
    JoinResponse, Lineage, ProposeRequest, ProposeResponse,
};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

/// Messages of one exchange that are being worked on; beyond it the peer's stream is not read.
const AT_ONCE: usize = 4_096;

/// Answers that wait to be written.
const ANSWERS: usize = 1_024;

/// Who opens an exchange says so in these headers.
pub(super) const CLUSTER: &str = "logd-cluster";
pub(super) const DISK: &str = "logd-disk";
pub(super) const START: &str = "logd-start";
/// The last start of the called broker that the caller knows of.
pub(super) const KNOWN_START: &str = "logd-known-start";
/// The version of the protocol, and the feature level, that the caller's build understands.
pub(super) const PROTOCOL: &str = "logd-protocol";
pub(super) const BUILD: &str = "logd-feature-version";
/// Where the caller's metadata comes from: generation, survivor and term; absent from builds that know of no recovery.
pub(super) const LINEAGE: &str = "logd-lineage";

pub(super) fn said(lineage: &Lineage) -> String {
    let Lineage {
        generation,
        survivor,
        term,
    } = lineage;
    format!("{generation}.{survivor}.{term}")
}

/// `None` if it is no lineage.
fn understood(said: &str) -> Option<Lineage> {
    let mut numbers = said.split('.');
    let lineage = Lineage {
        generation: numbers.next()?.parse().ok()?,
        survivor: numbers.next()?.parse().ok()?,
        term: numbers.next()?.parse().ok()?,
    };
    numbers.next().is_none().then_some(lineage)
}

pub(super) struct Service(Served);

impl Service {
    pub fn new(served: Served) -> Self {
        Self(served)
    }

    fn admit(&self, headers: &MetadataMap) -> Result<ReplicaId, Status> {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let number = |name: &str| text(name).and_then(|v| v.parse::<u64>().ok());
        let us = self.0.household.identity();
        let (ours, theirs) = (&us.cluster_id, text(CLUSTER).unwrap_or_default());
        if ours.is_empty() || ours != theirs {
            let why = format!("you belong to cluster `{theirs}`, this broker to `{ours}`");
            return Err(Status::failed_precondition(why));
        }
        // What it needs of us it has seen itself, when it was introduced.
        let version = |name: &str| text(name).and_then(|v| v.parse().ok()).unwrap_or(0);
        let lineage = text(LINEAGE).map(|said| {
            understood(said).ok_or_else(|| Status::invalid_argument("its lineage does not decode"))
        });
        let them = Identity {
            cluster_id: theirs.to_owned(),
            protocol_version: version(PROTOCOL),
            feature_version: version(BUILD),
            lineage: lineage.transpose()?,
            ..Identity::default()
        };
        if let Err(misfit) = fit(&us, &them) {
            if let Misfit::OurMetadata { theirs, .. } = misfit {
                self.0.household.surpassed_by(theirs);
            }
            return Err(Status::failed_precondition(misfit.to_string()));
        }
        let (Some(disk), Some(start)) = (number(DISK), number(START)) else {
            return Err(Status::invalid_argument(
                "who calls? disk and start are missing",
            ));
        };
        let known = self.0.household.known_start(disk);
        if start < known {
            let why = format!(
                "start {start} of this disk is over, start {known} has been seen: the disk is an older copy"
            );
            return Err(Status::failed_precondition(why));
        }
        self.0
            .household
            .known_of_us(number(KNOWN_START).unwrap_or(0));
        Ok(disk)
    }
}

/// What a peer's identity says about its disk.
pub(super) fn disk_of(identity: &Identity) -> Option<ReplicaId> {
    let bytes = <[u8; 16]>::try_from(&identity.disk_incarnation[..]).ok()?;
    Some(replica_of(u128::from_be_bytes(bytes)))
}

type Answers = Pin<Box<dyn Stream<Item = Result<Envelope, Status>> + Send>>;

#[tonic::async_trait]
impl Broker for Service {
    async fn identify(
        &self,
        request: Request<IdentifyRequest>,
    ) -> Result<Response<IdentifyResponse>, Status> {
        let caller = request.into_inner().caller;
        let disk = caller.as_ref().and_then(disk_of);
        let known_start = disk.map_or(0, |disk| self.0.household.known_start(disk));
        Ok(Response::new(IdentifyResponse {
            broker: Some(self.0.household.identity()),
            known_start,
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let answer = self.0.household.join(request.into_inner()).await;
        Ok(Response::new(answer))
    }

    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeResponse>, Status> {
        let answer = self.0.household.propose(request.into_inner()).await;
        Ok(Response::new(answer))
    }

    type ExchangeStream = Answers;

    async fn exchange(
        &self,
        request: Request<Streaming<Envelope>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let disk = self.admit(request.metadata())?;
        let (answers, mut written) = mpsc::channel(ANSWERS);
        info!(disk, "a peer opened an exchange");
        tokio::spawn(read(disk, self.0.clone(), request.into_inner(), answers));
        let written = poll_fn(move |cx| written.poll_recv(cx)).map(Ok);
        Ok(Response::new(Box::pin(written)))
    }
}

/// Reads until the peer is gone. Messages are handed to their groups in the order of their arrival, and
/// worked on beside each other.
async fn read(
    disk: ReplicaId,
    served: Served,
    mut from: Streaming<Envelope>,
    answers: mpsc::Sender<Envelope>,
) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let envelope = match from.message().await {
            Ok(Some(envelope)) => envelope,
            Ok(None) => return,
            Err(status) => {
                debug!(%status, "an exchange ended");
                return;
            }
        };
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let (id, answers) = (envelope.id, answers.clone());
        let answer = move |body| Envelope {
            id,
            body: Some(body),
        };
        match envelope.body {
            Some(Body::Group(message)) => {
                let mut taken = served.exchange.deliver(message);
                // A first step here, in the order of arrival, hands it to its group: a row of appends stays one.
                let ready = (&mut taken).now_or_never();
                tokio::spawn(async move {
                    let kind = Some(match ready {
                        Some(kind) => kind,
                        None => taken.await,
                    });
                    let body = Body::Group(GroupMessage {
                        kind,
                        ..GroupMessage::default()
                    });
                    // The peer may be gone.
                    let _ = answers.send(answer(body)).await;
                    drop(permit);
                });
            }
            Some(Body::Leaders(leaders)) => {
                served.household.leaders(leaders);
                let _ = answers.send(answer(Body::Done(Done {}))).await;
            }
            Some(Body::Orphans(orphans)) => {
                let outlooks = served.household.outlooks(orphans);
                let _ = answers.send(answer(Body::Outlooks(outlooks))).await;
            }
            Some(Body::Acknowledged(said)) => {
                let noted = served.household.acknowledged(disk, said);
                tokio::spawn(async move {
                    noted.await;
                    let _ = answers.send(answer(Body::Done(Done {}))).await;
                    drop(permit);
                });
            }
            Some(Body::Ping(ping)) => {
                served.hearing.heard(disk, ping.disk_is_slow, &ping.hears);
                let _ = answers.send(answer(Body::Done(Done {}))).await;
            }
            Some(other) => match served.household.asked(other) {
                Some(asked) => drop(tokio::spawn(async move {
                    let _ = answers.send(answer(asked.await)).await;
                    drop(permit);
                })),
                None => drop(answers.send(answer(Body::Done(Done {}))).await),
            },
            None => {
                let _ = answers.send(answer(Body::Done(Done {}))).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lineage_comes_back_as_it_was_said() {
        let lineage = Lineage {
            generation: 2,
            survivor: u64::MAX,
            term: 1_003,
        };
        assert_eq!(understood(&said(&lineage)), Some(lineage));
        for other in ["", "2", "2.7", "2.7.x", "2.7.1003.1", "-1.7.9"] {
            assert_eq!(understood(other), None, "{other}");
        }
    }
}
