//! What an operator asks of the cluster, over gRPC on the broker-to-broker port.
//!
//! Promise: any broker answers; what it does not know itself it asks of the others, each within a
//! deadline, and says who was silent. What cannot be done is a status whose message says why.
//! Not here: deciding anything (`cluster`), HTTP (`admin`).

mod describe;
mod partitions;
mod recover;
mod status;

use crate::cluster::{Cluster, Duty, Move, Topic, TopicId};
use crate::partition::Registry;
use logd_proto::rpc::admin::admin_server::{Admin, AdminServer};
use logd_proto::rpc::admin::{self as api};
use std::sync::{Arc, OnceLock};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

/// The service. It refuses until the broker belongs to a cluster. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Control(Arc<OnceLock<Ready>>);

#[derive(Debug)]
struct Ready {
    cluster: Arc<Cluster>,
    registry: Arc<Registry>,
}

impl Control {
    pub fn routes(&self) -> Routes {
        Routes::new(AdminServer::new(self.clone()))
    }

    /// From here on it answers.
    pub fn open(&self, cluster: Arc<Cluster>, registry: Arc<Registry>) {
        // A second call could only bring the same ones.
        let _ = self.0.set(Ready { cluster, registry });
    }

    fn ready(&self) -> Result<&Ready, Status> {
        let not_yet = || Status::unavailable("this broker belongs to no cluster yet");
        self.0.get().ok_or_else(not_yet)
    }

    async fn set_duty(&self, request: Request<api::NodeRequest>, duty: Duty) -> Answer<api::Done> {
        let node = request.into_inner().node_id;
        let set = self.ready()?.cluster.set_duty(node, duty).await;
        set.map_err(|e| status::duty(&e))?;
        Ok(Response::new(api::Done {}))
    }
}

impl Ready {
    fn topic(&self, name: &str) -> Result<Arc<Topic>, Status> {
        let view = self.cluster.view();
        let topic = view.topic(name).cloned();
        topic.ok_or_else(|| Status::not_found(format!("there is no topic {name:?}")))
    }

    fn partition(&self, name: &str, index: i32) -> Result<Arc<Topic>, Status> {
        let topic = self.topic(name)?;
        match topic.target(index) {
            Some(_) => Ok(topic),
            None => {
                let why = format!("topic {name:?} has no partition {index}");
                Err(Status::not_found(why))
            }
        }
    }

    /// Moves as an operator reads them, against what is now.
    fn planned<'a>(
        &self,
        moves: impl Iterator<Item = (&'a Move, String)>,
    ) -> api::RebalanceResponse {
        let view = self.cluster.view();
        let shown = moves.filter_map(|(m, refused)| {
            let topic = view.topic_by_id(&m.topic.0)?;
            let before = topic.moves.get(&m.partition);
            let from = match &m.target {
                Some(_) => before.or(topic.target(m.partition))?.clone(),
                None => topic.target(m.partition)?.clone(),
            };
            let to = m.target.clone().or(before.cloned()).unwrap_or_default();
            Some(api::PlannedMove {
                topic: topic.name.clone(),
                partition: m.partition,
                from,
                to,
                refused,
            })
        });
        api::RebalanceResponse {
            moves: shown.collect(),
        }
    }
}

#[tonic::async_trait]
impl Admin for Control {
    async fn describe_cluster(
        &self,
        _: Request<api::DescribeClusterRequest>,
    ) -> Answer<api::DescribeClusterResponse> {
        let described = self.ready()?.describe_cluster().await;
        Ok(Response::new(described))
    }

    async fn describe_broker(
        &self,
        _: Request<api::DescribeBrokerRequest>,
    ) -> Answer<api::DescribeBrokerResponse> {
        Ok(Response::new(self.ready()?.describe_broker()))
    }

    async fn list_partitions(
        &self,
        request: Request<api::ListPartitionsRequest>,
    ) -> Answer<api::ListPartitionsResponse> {
        let ready = self.ready()?;
        let listed = ready.list_partitions(request.into_inner()).await?;
        Ok(Response::new(listed))
    }

    async fn health(&self, _: Request<api::HealthRequest>) -> Answer<api::HealthResponse> {
        Ok(Response::new(self.ready()?.health()))
    }

    async fn drain(&self, request: Request<api::NodeRequest>) -> Answer<api::Done> {
        self.set_duty(request, Duty::Draining).await
    }

    async fn resume(&self, request: Request<api::NodeRequest>) -> Answer<api::Done> {
        self.set_duty(request, Duty::Active).await
    }

    async fn decommission(&self, request: Request<api::NodeRequest>) -> Answer<api::Done> {
        self.set_duty(request, Duty::Leaving).await
    }

    async fn transfer_leader(
        &self,
        request: Request<api::TransferLeaderRequest>,
    ) -> Answer<api::Done> {
        let (ready, wanted) = (self.ready()?, request.into_inner());
        let (topic, index) = (
            ready.partition(&wanted.topic, wanted.partition)?,
            wanted.partition,
        );
        let handed = match wanted.to {
            Some(to) => ready.cluster.transfer(&topic.id, index, to).await,
            None => ready.cluster.elect_preferred(&topic.id, index).await,
        };
        handed.map_err(|e| status::elect(&e))?;
        Ok(Response::new(api::Done {}))
    }

    async fn move_partition(
        &self,
        request: Request<api::MovePartitionRequest>,
    ) -> Answer<api::Done> {
        let (ready, wanted) = (self.ready()?, request.into_inner());
        let topic = ready.partition(&wanted.topic, wanted.partition)?;
        let moves = vec![Move {
            topic: TopicId(topic.id),
            partition: wanted.partition,
            target: Some(wanted.replicas).filter(|r| !r.is_empty()),
        }];
        for result in ready.cluster.move_partitions(moves, true).await {
            result.map_err(|e| status::moved(&e))?;
        }
        Ok(Response::new(api::Done {}))
    }

    async fn plan_rebalance(
        &self,
        _: Request<api::RebalanceRequest>,
    ) -> Answer<api::RebalanceResponse> {
        let ready = self.ready()?;
        let moves = ready.cluster.plan_rebalance();
        let moves = moves.iter().map(|m| (m, String::new()));
        Ok(Response::new(ready.planned(moves)))
    }

    async fn run_rebalance(
        &self,
        _: Request<api::RebalanceRequest>,
    ) -> Answer<api::RebalanceResponse> {
        let ready = self.ready()?;
        let results = ready.cluster.run_rebalance().await;
        let moves = results.iter().map(|(m, r)| (m, status::refusal(r)));
        Ok(Response::new(ready.planned(moves)))
    }

    async fn cancel_rebalance(
        &self,
        _: Request<api::RebalanceRequest>,
    ) -> Answer<api::RebalanceResponse> {
        let ready = self.ready()?;
        let results = ready.cluster.cancel_moves().await;
        let moves = results.iter().map(|(m, r)| (m, status::refusal(r)));
        Ok(Response::new(ready.planned(moves)))
    }

    async fn recover_partition(
        &self,
        request: Request<api::RecoverPartitionRequest>,
    ) -> Answer<api::RecoverPartitionResponse> {
        let (ready, wanted) = (self.ready()?, request.into_inner());
        let topic = ready.partition(&wanted.topic, wanted.partition)?;
        Ok(Response::new(ready.recover(&topic, &wanted).await?))
    }

    async fn describe_replica(
        &self,
        request: Request<api::DescribeReplicaRequest>,
    ) -> Answer<api::Replica> {
        let (ready, wanted) = (self.ready()?, request.into_inner());
        let topic = ready.partition(&wanted.topic, wanted.partition)?;
        let held = ready.cluster.replica_here(&topic.id, wanted.partition);
        Ok(Response::new(recover::told(held)))
    }
}
