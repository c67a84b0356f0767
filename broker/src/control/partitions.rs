//! Partitions one by one: where they should be, where they are, and how far each replica is.

use super::Ready;
use super::describe::ask;
use crate::cluster::{ClusterState, Topic};
use futures_util::future::join_all;
use logd_proto::rpc::admin::{self as api};
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::Status;

impl Ready {
    pub(super) async fn list_partitions(
        &self,
        wanted: api::ListPartitionsRequest,
    ) -> Result<api::ListPartitionsResponse, Status> {
        let view = self.cluster.view();
        let topics: Vec<Arc<Topic>> = match wanted.topic.as_str() {
            "" => view.topics.values().cloned().collect(),
            name => vec![self.topic(name)?],
        };
        let all = topics.iter().flat_map(|t| {
            let indexes = 0..t.partitions.len() as i32;
            indexes.map(|index| self.describe(&view, t, index))
        });
        if wanted.led_here {
            let led = all.filter(|p| p.high_watermark.is_some());
            return Ok(api::ListPartitionsResponse {
                partitions: led.collect(),
                silent: Vec::new(),
            });
        }
        let mut all: BTreeMap<(String, i32), api::Partition> =
            all.map(|p| ((p.topic.clone(), p.partition), p)).collect();
        let others = view.brokers.values();
        let others = others.filter(|b| b.id != self.cluster.node_id());
        let asked = others.map(|b| {
            let question = api::ListPartitionsRequest {
                topic: wanted.topic.clone(),
                led_here: true,
            };
            async move {
                let answer = ask(&b.rpc, |mut client| async move {
                    client.list_partitions(question).await
                });
                (b.id, answer.await)
            }
        });
        let mut silent = Vec::new();
        for (node, answer) in join_all(asked).await {
            let Some(answer) = answer else {
                silent.push(node);
                continue;
            };
            for told in answer.partitions {
                let key = (told.topic.clone(), told.partition);
                if let Some(known) = all.get_mut(&key).filter(|k| k.epoch <= told.epoch) {
                    *known = told;
                }
            }
        }
        Ok(api::ListPartitionsResponse {
            partitions: all.into_values().collect(),
            silent,
        })
    }

    /// A partition as this broker knows it; with lags and its end if it leads.
    fn describe(&self, view: &ClusterState, topic: &Topic, index: i32) -> api::Partition {
        let node = |disk: &u64| view.node_of(*disk).unwrap_or(-1);
        let claim = self.cluster.leaders().get(&topic.id, index);
        let mut shown = api::Partition {
            topic: topic.name.clone(),
            partition: index,
            epoch: -1,
            target: topic.target(index).cloned().unwrap_or_default(),
            before: topic.moves.get(&index).cloned().unwrap_or_default(),
            forced_recoveries: topic.recoveries_lately(index),
            ..api::Partition::default()
        };
        if let Some(claim) = claim {
            shown.leader = Some(claim.node);
            shown.epoch = i64::try_from(claim.term).unwrap_or(i64::MAX);
            shown.voters = claim.voters.iter().map(node).collect();
            shown.learners = claim.learners.iter().map(node).collect();
            shown.in_sync = claim.in_sync.iter().map(node).collect();
        }
        let here = self.registry.get(&topic.id, index);
        if let Some(partition) = here.filter(|p| p.leadership().serving) {
            let members = partition.members();
            let all = members.voters.iter().chain(&members.learners);
            let me = self.cluster.disk();
            let lag = |disk: &u64| if *disk == me { 0 } else { members.lag(*disk) };
            let lags = all.map(|disk| api::ReplicaLag {
                node_id: node(disk),
                entries: lag(disk),
            });
            shown.lags = lags.collect();
            shown.leader = Some(self.cluster.node_id());
            shown.epoch = i64::from(partition.leadership().epoch);
            shown.voters = members.voters.iter().map(node).collect();
            shown.learners = members.learners.iter().map(node).collect();
            shown.high_watermark = Some(partition.offsets().high_watermark);
        }
        shown
    }
}
