//! An idempotent producer: numbered batches, a few in flight, the same again through another broker when
//! nobody answers.
//!
//! Invariant: a batch's bytes are built once; every try sends the same. After a failure it waits until
//! nothing of it flies any more, and then sends what is open again, in order.

use crate::client::{Ask, Reply};
use crate::dice::Dice;
use crate::keyed::written;
use crate::net::BROKERS;
use crate::{CLOCK_BEGINS_MS, may_lack_records};
use logd::partition::{AppendError, ValidBatch};
use logd_proto::record_batch::{BatchBuilder, BatchHeader};
use std::collections::VecDeque;

/// Whether a producer has anything new to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fresh {
    Many,
    /// One, if nothing is open.
    OneMore,
    None,
}

struct Sent {
    batch: ValidBatch,
    /// The request that is under way.
    flying: Option<u64>,
    acked: bool,
}

pub struct Producer {
    id: i64,
    partition: u32,
    dice: Dice,
    next_sequence: i32,
    open: VecDeque<Sent>,
    open_max: usize,
    target: usize,
    recovering: bool,
    next_at: u64,
    pub acked: u64,
}

impl Producer {
    pub fn new(number: usize, partition: u32, mut dice: Dice) -> Self {
        Self {
            id: 100 + number as i64,
            partition,
            next_sequence: 0,
            open: VecDeque::new(),
            open_max: dice.pick(&[1, 3, 5]),
            target: dice.index(BROKERS),
            recovering: false,
            next_at: dice.range(0..500),
            acked: 0,
            dice,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    fn new_batch(&mut self, now: u64) -> ValidBatch {
        // Where much goes, much comes: compaction has something to do.
        let records_max = if may_lack_records(self.partition) {
            9
        } else {
            4
        };
        let records = self.dice.range(1..records_max) as i32;
        let mut builder = BatchBuilder::new().producer(self.id, 0, self.next_sequence);
        for n in 0..records {
            if may_lack_records(self.partition) {
                let (key, value) = written(self.id, i64::from(self.next_sequence + n));
                let time = CLOCK_BEGINS_MS + now as i64;
                builder
                    .push(time, Some(key.as_bytes()), value.as_deref(), &[])
                    .expect("a small record");
                continue;
            }
            let value = format!("{}/{}", self.id, self.next_sequence + n);
            let mut value = value.into_bytes();
            value.resize(self.dice.range(16..1_500) as usize, b'.');
            builder
                .push(i64::from(self.next_sequence), None, Some(&value), &[])
                .expect("a small record");
        }
        self.next_sequence += records;
        let bytes = builder.build().expect("a batch");
        let header = BatchHeader::parse(&bytes).expect("a header");
        ValidBatch { bytes, header }
    }

    /// Sends what is due, and new batches as asked.
    pub fn tick(&mut self, now: u64, fresh: Fresh, send: &mut dyn FnMut(usize, Ask) -> u64) {
        let one_more = fresh == Fresh::OneMore && self.is_idle();
        if now < self.next_at && !one_more {
            return;
        }
        if self.recovering && self.open.iter().any(|s| s.flying.is_some()) {
            return;
        }
        self.recovering = false;
        if one_more || (fresh == Fresh::Many && self.open.len() < self.open_max) {
            let batch = self.new_batch(now);
            self.open.push_back(Sent {
                batch,
                flying: None,
                acked: false,
            });
        }
        self.next_at = now + self.dice.range(10..300);
        for sent in &mut self.open {
            if sent.flying.is_none() && !sent.acked {
                let ask = Ask::Produce {
                    partition: self.partition,
                    batch: sent.batch.clone(),
                };
                sent.flying = Some(send(self.target, ask));
            }
        }
    }

    /// `None`: no answer came in time.
    pub fn answered(&mut self, now: u64, op: u64, reply: Option<&Reply>) {
        let Some(sent) = self.open.iter_mut().find(|s| s.flying == Some(op)) else {
            return;
        };
        sent.flying = None;
        if let Some(Reply::Appended(Ok(_))) = reply {
            sent.acked = true;
        } else {
            self.recovering = true;
            self.next_at = now + self.dice.range(20..200);
            self.target = match reply {
                Some(Reply::Appended(Err(AppendError::NotLeader {
                    leader: Some(leader),
                    ..
                }))) => *leader as usize - 1,
                _ => self.dice.index(BROKERS),
            };
        }
        while self.open.front().is_some_and(|s| s.acked) {
            self.open.pop_front();
            self.acked += 1;
        }
    }
}
