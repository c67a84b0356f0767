//! Recovering a partition by force, as an operator asks for it: what everybody has, what would go on, and doing it.
//!
//! Promise: every broker is asked afresh, also those that are held to be gone; one that is there and does
//! not say what it has holds the recovery up. Without an acceptance of the loss nothing is done.
//! Not here: the decision (`cluster::recovery`), and what becomes of it.

use super::describe::ask;
use super::{Ready, status};
use crate::cluster::{Held, Topic, decide_recovery};
use futures_util::future::join_all;
use logd_proto::rpc::admin::{self as api};
use tonic::Status;

/// A broker's replica, for another broker and for an operator.
pub(super) fn told(held: Held) -> api::Replica {
    let electorates = held.electorates.into_iter();
    api::Replica {
        node_id: held.node,
        disk: held.disk,
        generation: held.generation,
        last_term: held.last.0,
        last_index: held.last.1,
        end_offset: held.end_offset,
        high_watermark: held.high_watermark,
        term: held.term,
        leads: held.leads,
        votes: held.votes,
        damage: held.damage.unwrap_or_default(),
        electorates: electorates
            .map(|voters| api::Electorate {
                disks: voters.into_iter().collect(),
            })
            .collect(),
    }
}

fn understood(told: api::Replica) -> Held {
    let electorates = told.electorates.into_iter();
    Held {
        node: told.node_id,
        disk: told.disk,
        generation: told.generation,
        last: (told.last_term, told.last_index),
        end_offset: told.end_offset,
        high_watermark: told.high_watermark,
        term: told.term,
        leads: told.leads,
        votes: told.votes,
        damage: Some(told.damage).filter(|why| !why.is_empty()),
        electorates: electorates.map(|e| e.disks.into_iter().collect()).collect(),
    }
}

/// What was heard of a partition's replicas.
struct Heard {
    held: Vec<Held>,
    /// Brokers that are there and did not answer.
    silent: Vec<i32>,
    away: Vec<i32>,
}

impl Ready {
    async fn replicas(&self, topic: &Topic, index: i32) -> Heard {
        let view = self.cluster.view();
        let asked = view.brokers.values().map(|broker| async {
            if broker.id == self.cluster.node_id() {
                return (broker.id, Some(self.cluster.replica_here(&topic.id, index)));
            }
            let question = api::DescribeReplicaRequest {
                topic: topic.name.clone(),
                partition: index,
            };
            let answer = ask(&broker.rpc, |mut client| async move {
                client.describe_replica(question).await
            });
            (broker.id, answer.await.map(understood))
        });
        let mut heard = Heard {
            held: Vec::new(),
            silent: Vec::new(),
            away: Vec::new(),
        };
        for (node, answer) in join_all(asked).await {
            match answer {
                Some(held) => heard.held.push(held),
                None if self.cluster.is_alive(node) => heard.silent.push(node),
                None => heard.away.push(node),
            }
        }
        heard
    }

    pub(super) async fn recover(
        &self,
        topic: &Topic,
        wanted: &api::RecoverPartitionRequest,
    ) -> Result<api::RecoverPartitionResponse, Status> {
        if !wanted.accept_data_loss && !wanted.dry_run {
            let why = "recovering a partition from one replica loses what only the others had: say that this is accepted";
            return Err(Status::invalid_argument(why));
        }
        let index = wanted.partition;
        let may_decide = self.cluster.may_decide();
        may_decide.map_err(|e| status::recovered(&e))?;
        let heard = self.replicas(topic, index).await;
        let choice = decide_recovery(&heard.held, &heard.silent, wanted.from);
        let choice = choice.map_err(|e| status::recovery(&e))?;
        let target = self.cluster.recovery_target(topic, index, choice.node);
        let mut answer = api::RecoverPartitionResponse {
            survivor: choice.node,
            target: target.clone(),
            away: heard.away,
            ..api::RecoverPartitionResponse::default()
        };
        let some = heard.held.into_iter().filter(|h| h.last != (0, 0));
        answer.replicas = some.map(told).collect();
        if wanted.dry_run {
            return Ok(answer);
        }
        let decided = self.cluster.recover(topic, index, choice, target).await;
        let decided = decided.map_err(|e| status::recovered(&e))?;
        (answer.generation, answer.led) = (decided.generation, decided.led);
        Ok(answer)
    }
}
