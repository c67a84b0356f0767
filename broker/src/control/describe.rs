//! The cluster as a whole: brokers, their builds and their part in the metadata group, and what ails it.

use super::Ready;
use crate::cluster::{BrokerInfo, ClusterState, MemberState, QuorumState};
use futures_util::future::join_all;
use logd_proto::rpc::admin::admin_client::AdminClient;
use logd_proto::rpc::admin::{self as api};
use std::future::Future;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// How long a broker may take to answer another for an operator.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks another broker's admin service, within a deadline.
pub(super) async fn ask<T, F>(rpc: &str, call: impl FnOnce(AdminClient<Channel>) -> F) -> Option<T>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let asked = async {
        let endpoint = Endpoint::from_shared(format!("http://{rpc}")).ok()?;
        let channel = endpoint.connect().await.ok()?;
        let client = AdminClient::new(channel).max_decoding_message_size(64 << 20);
        let answer = call(client).await.ok()?;
        Some(answer.into_inner())
    };
    tokio::time::timeout(PATIENCE, asked).await.ok().flatten()
}

fn role(quorum: &QuorumState, member: Option<&MemberState>, node: i32) -> &'static str {
    match member {
        Some(_) if quorum.leader == node => "leader",
        Some(m) if m.votes => "voter",
        Some(_) => "learner",
        None => "none",
    }
}

impl Ready {
    pub(super) fn describe_broker(&self) -> api::DescribeBrokerResponse {
        api::DescribeBrokerResponse {
            node_id: self.cluster.node_id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            metadata_applied: self.cluster.view().applied,
        }
    }

    async fn ask_broker(&self, broker: &BrokerInfo) -> Option<api::DescribeBrokerResponse> {
        if broker.id == self.cluster.node_id() {
            return Some(self.describe_broker());
        }
        if !self.cluster.is_alive(broker.id) {
            return None;
        }
        ask(&broker.rpc, |mut client| async move {
            client.describe_broker(api::DescribeBrokerRequest {}).await
        })
        .await
    }

    pub(super) async fn describe_cluster(&self) -> api::DescribeClusterResponse {
        let view = self.cluster.view();
        let quorum = self.cluster.quorum().await.ok();
        let asked = view.brokers.values().map(|b| self.ask_broker(b));
        let said = join_all(asked).await;
        let brokers = view.brokers.values().zip(said);
        let brokers = brokers.map(|(b, said)| self.broker(&view, b, said, quorum.as_ref()));
        api::DescribeClusterResponse {
            cluster_id: self.cluster.cluster_id().to_owned(),
            controller: self.cluster.controller(),
            metadata_term: quorum.as_ref().map_or(0, |q| q.term),
            metadata_committed: quorum.as_ref().map_or(view.applied, |q| q.committed),
            brokers: brokers.collect(),
            topics: view.topics.len() as u32,
            partitions: view.partitions() as u32,
            moving: view.moving().count() as u32,
            feature_level: view.features.number(),
            metadata_generation: self.cluster.lineage().generation,
        }
    }

    fn broker(
        &self,
        view: &ClusterState,
        broker: &BrokerInfo,
        said: Option<api::DescribeBrokerResponse>,
        quorum: Option<&QuorumState>,
    ) -> api::Broker {
        let listeners = broker
            .listeners
            .iter()
            .map(|(name, (host, port))| api::Listener {
                name: name.clone(),
                host: host.clone(),
                port: u32::from(*port),
            });
        let member = quorum.and_then(|q| q.members.iter().find(|m| m.disk == broker.replica));
        let targets = view.topics.values().flat_map(|t| &t.partitions);
        let applied = said.as_ref().map(|s| s.metadata_applied);
        let behind = quorum.zip(applied);
        api::Broker {
            node_id: broker.id,
            rack: broker.rack.clone().unwrap_or_default(),
            rpc_address: broker.rpc.clone(),
            listeners: listeners.collect(),
            duty: view.duty(broker.id).name().to_owned(),
            alive: self.cluster.is_alive(broker.id),
            version: said.map(|s| s.version).unwrap_or_default(),
            metadata_role: quorum.map_or("", |q| role(q, member, broker.id)).to_owned(),
            metadata_lag: behind.map(|(q, applied)| q.committed.saturating_sub(applied)),
            replicas: targets.filter(|r| r.contains(&broker.id)).count() as u32,
            leaders: self.led_by(view, broker.id) as u32,
            disk: broker.replica,
            feature_version: broker.features.number(),
        }
    }

    fn led_by(&self, view: &ClusterState, node: i32) -> usize {
        let partitions = view.topics.values().flat_map(|t| {
            let indexes = 0..t.partitions.len() as i32;
            indexes.map(|index| self.cluster.leaders().get(&t.id, index))
        });
        partitions.flatten().filter(|c| c.node == node).count()
    }

    pub(super) fn health(&self) -> api::HealthResponse {
        let view = self.cluster.view();
        let dead = view.brokers.keys().copied();
        let dead_brokers: Vec<i32> = dead.filter(|n| !self.cluster.is_alive(*n)).collect();
        let slow = view.brokers.keys().copied();
        let slow_disks: Vec<i32> = slow
            .filter(|n| self.cluster.is_alive(*n) && self.cluster.disk_is_slow(*n))
            .collect();
        let (mut under_replicated, mut leaderless) = (Vec::new(), Vec::new());
        for topic in view.topics.values() {
            for (target, index) in topic.partitions.iter().zip(0..) {
                let name = api::PartitionName {
                    topic: topic.name.clone(),
                    partition: index,
                };
                let claim = self.cluster.leaders().get(&topic.id, index);
                let there = |node| self.cluster.is_alive(node);
                let led = claim.filter(|c| there(c.node) && c.may_be_led(&view, there));
                let Some(claim) = led else {
                    leaderless.push(name);
                    continue;
                };
                if !claim.is_kept_by(&view, target) {
                    under_replicated.push(name);
                }
            }
        }
        let metadata_leaderless = self.cluster.may_decide().is_err();
        let whole = under_replicated.is_empty() && leaderless.is_empty();
        let well = whole && dead_brokers.is_empty() && slow_disks.is_empty();
        api::HealthResponse {
            healthy: well && !metadata_leaderless,
            under_replicated,
            leaderless,
            dead_brokers,
            slow_disks,
            moving: view.moving().count() as u32,
            metadata_leaderless,
        }
    }
}
