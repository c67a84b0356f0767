//! Recovering a partition by force: what this broker has of it, and putting the decision into the metadata.
//!
//! Promise: the decision is made once, in the metadata, before any disk does anything about it; who drives
//! it to its end is the survivor's reconciler, after a crash too.
//! Not here: the decision (`recovery`), what disks do (`generations`), asking the others (`control`).

use super::controller::Cluster;
use super::generations;
use super::rebalance;
use super::recovery::{Choice, Forced, Held, Recovery};
use super::state::{Answer, Command, Refusal, Topic, TopicId};
use logd_proto::Uuid;
use logd_storage::LogKey;
use std::time::Duration;
use tracing::warn;

/// How long an answer waits until the survivor leads. It goes on without anybody waiting.
const LED_PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    #[error(
        "the metadata group has no leader, so nothing can be decided: a majority of its voters (brokers {voters:?}) \
         must be there; bring one of those that are away back, with its disk, or, if they are gone for good, stop the \
         broker with the latest metadata and run `logd recover-metadata` there"
    )]
    NoMetadata { voters: Vec<i32> },
    #[error("it was recovered meanwhile, by another order")]
    Meanwhile,
    #[error("{0}")]
    Unavailable(String),
}

/// A decision that is in the metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    pub generation: u32,
    /// The survivor leads already.
    pub led: bool,
}

impl Cluster {
    /// What this broker's disk has of a partition.
    pub fn replica_here(&self, topic: &Uuid, index: i32) -> Held {
        let key = LogKey {
            topic: topic.to_bytes(),
            partition: index as u32,
        };
        let mut held = Held {
            node: self.node_id(),
            disk: self.disk(),
            ..Held::default()
        };
        let Some(log) = self.storage.log(key) else {
            return held;
        };
        let bounds = log.bounds();
        held.last = bounds.last.map_or((0, 0), |id| (id.term, id.index));
        held.end_offset = bounds.end_offset;
        held.damage = log.fenced().map(|damage| damage.to_string());
        if let Some(partition) = self.registry.get(topic, index) {
            let outlook = partition.outlook();
            held.generation = partition.generation();
            held.high_watermark = Some(partition.offsets().high_watermark);
            held.term = outlook.term;
            held.leads = partition.is_heard();
            held.votes = outlook.votes && held.damage.is_none();
            held.electorates = partition.electorates();
            return held;
        }
        match generations::noted(&self.data_dir, key) {
            Ok(generation) => held.generation = generation,
            Err(error) => held.damage = Some(error.to_string()),
        }
        held
    }

    /// Who should have a partition that goes on from one broker.
    pub fn recovery_target(&self, topic: &Topic, index: i32, survivor: i32) -> Vec<i32> {
        let (view, alive) = (self.view(), |node| self.is_alive(node));
        rebalance::refill(&view, topic, index, survivor, &alive, self.defaults().1)
    }

    /// Whether decisions can be made at all.
    ///
    /// # Errors
    /// If nobody leads the metadata group.
    pub fn may_decide(&self) -> Result<(), RecoverError> {
        let led = self.controller().is_some_and(|node| self.is_alive(node));
        // Who has led alone since the others went does not know yet that nothing can be decided.
        if led && self.group.has_majority(|disk| self.is_disk_alive(disk)) {
            return Ok(());
        }
        let view = self.view();
        let voters = self.group.members().voters;
        let voters = voters.iter().filter_map(|disk| view.node_of(*disk));
        Err(RecoverError::NoMetadata {
            voters: voters.collect(),
        })
    }

    /// Decides that a partition goes on with what one replica has, and waits a while until that one leads.
    ///
    /// # Errors
    /// If it was recovered meanwhile, or the decision is not known to have been made.
    pub async fn recover(
        &self,
        topic: &Topic,
        index: i32,
        choice: Choice,
        target: Vec<i32>,
    ) -> Result<Decided, RecoverError> {
        let generation = self.view().next_generation(topic, index);
        let recovery = Recovery {
            generation,
            survivor: choice.survivor,
            term: choice.term,
        };
        let forced = Forced {
            topic: TopicId(topic.id),
            partition: index,
            recovery,
            target,
        };
        match self.propose(Command::Recover(forced)).await {
            Ok(Answer::Done) => {}
            Ok(Answer::Refused(Refusal::Recovered { .. })) => return Err(RecoverError::Meanwhile),
            Ok(other) => {
                let why = match other {
                    Answer::Refused(refusal) => refusal.to_string(),
                    other => format!("unexpected answer {other:?}"),
                };
                return Err(RecoverError::Unavailable(why));
            }
            Err(error) => return Err(RecoverError::Unavailable(error.to_string())),
        }
        warn!(
            topic = topic.name,
            partition = index,
            generation,
            survivor = choice.node,
            "somebody has ordered that a partition goes on with what one replica has"
        );
        let led = self.is_led_in(&topic.id, index, generation);
        let led = tokio::time::timeout(LED_PATIENCE, led).await.is_ok();
        Ok(Decided { generation, led })
    }

    async fn is_led_in(&self, topic: &Uuid, index: i32, generation: u32) {
        let mut heard = self.leaders().watch();
        loop {
            heard.mark_unchanged();
            let claim = self.leaders().get(topic, index);
            let led = claim.is_some_and(|c| c.generation >= generation);
            if led || heard.changed().await.is_err() {
                return;
            }
        }
    }
}
