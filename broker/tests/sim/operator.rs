//! Whoever administers the cluster: topics come and go, producer ids are given out. Only the metadata
//! group hears of it; these topics are nobody's replicas.

use crate::client::{Ask, Reply};
use crate::dice::Dice;
use crate::net::BROKERS;
use logd::cluster::{Answer, BUILD, BrokerInfo, Command, FeatureLevel, TopicId};
use logd_proto::Uuid;
use std::collections::{BTreeMap, BTreeSet};

pub struct Operator {
    dice: Dice,
    next_at: u64,
    next_topic: u8,
    blocks: BTreeSet<i64>,
}

impl Operator {
    pub fn new(dice: Dice) -> Self {
        Self {
            dice,
            next_at: 0,
            next_topic: 0,
            blocks: BTreeSet::new(),
        }
    }

    pub fn tick(&mut self, now: u64, send: &mut dyn FnMut(usize, Ask) -> u64) {
        if now < self.next_at {
            return;
        }
        self.next_at = now + self.dice.range(100..600);
        let ask = self.ask();
        // Nobody knows who leads the metadata; one in three does.
        send(self.dice.index(BROKERS), ask);
    }

    fn ask(&mut self) -> Ask {
        match self.dice.chance(250) {
            true => Ask::Raise,
            false => Ask::Propose(self.command()),
        }
    }

    fn command(&mut self) -> Command {
        let some_topic = |n: u8| TopicId(Uuid::from_bytes([n.max(1); 16]));
        match self.dice.range(0..4) {
            0 => {
                self.next_topic = self.next_topic.wrapping_add(1);
                // As the log has it: fields that come with later versions are left to their defaults.
                let record = serde_json::json!({
                    "id": some_topic(self.next_topic),
                    "name": format!("topic-{}", self.dice.range(0..20)),
                    "partitions": [[1, 2, 3], [1, 2, 3]],
                });
                Command::CreateTopic(serde_json::from_value(record).expect("a topic"))
            }
            1 => Command::DeleteTopic {
                id: some_topic(self.dice.range(0..u64::from(self.next_topic) + 1) as u8),
            },
            2 => {
                let disk = self.dice.range(1..6);
                // Some have not been upgraded yet, or were and go back.
                let old = self.dice.chance(200);
                Command::RegisterBroker(BrokerInfo {
                    id: 0,
                    replica: disk,
                    start: self.dice.range(1..100),
                    rack: None,
                    listeners: BTreeMap::new(),
                    rpc: format!("broker-{disk}:1"),
                    features: if old { FeatureLevel::FIRST } else { BUILD },
                })
            }
            _ => Command::AllocateProducerIds { node: 1 },
        }
    }

    /// # Errors
    /// If an id was given out twice.
    pub fn answered(&mut self, reply: &Reply) -> Result<(), String> {
        match reply {
            Reply::Proposed(Ok(Answer::ProducerIds { first })) if !self.blocks.insert(*first) => {
                Err(format!(
                    "the producer ids from {first} on were given out twice"
                ))
            }
            _ => Ok(()),
        }
    }
}
