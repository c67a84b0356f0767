//! The world: one clock, one heap of events, three brokers and their clients; a step is a millisecond.
//!
//! Order within a step, always the same: events that are due, clients, brokers one by one, what they sent.
//! Invariant: a message sent in one step arrives in a later one, so no broker's step depends on another's.
//! Not here: which faults come (`chaos`), what is looked at (`watch`).

use crate::broker::{Broker, Inbound};
use crate::client::{Ask, Asker, Reply, describe as describe_reply, describe_ask};
use crate::dice::Dice;
use crate::invariants::{Batch, Invariants, Seen};
use crate::lies::{Delivery, Lie};
use crate::net::{Answer, BROKERS, Call, Fate, Net, Outgoing, describe_body, unreachable};
use crate::operator::Operator;
use crate::producer::{Fresh, Producer};
use crate::reader::Reader;
use crate::said::Said;
use crate::tally::Installs;
use crate::trace::Trace;
use crate::{PARTITIONS, PRODUCERS_PER_PARTITION};
use logd::partition::Appended;
use logd::raft::CallError;
use logd_proto::rpc::v1::envelope::Body;
use logd_storage::vfs::SimFs;
use std::collections::BTreeMap;

/// How long a client waits for an answer before it asks again, on a new connection.
const CLIENT_PATIENCE_MS: std::ops::Range<u64> = 500..4_000;

/// In fair weather, a producer of each partition sends a batch this often.
const TRICKLE_MS: u64 = 3_000;

/// A connection to a broker that went down breaks within this time.
const RESET_MS: std::ops::Range<u64> = 1..10;

pub enum Event {
    Arrives {
        at: usize,
        inbound: Inbound,
    },
    ReplyArrives {
        op: u64,
        reply: Reply,
    },
    PatienceEnds {
        op: u64,
    },
    Restart {
        broker: usize,
    },
    /// Power or process goes down for so long.
    Fault,
    Passes(crate::faults::Fault),
    Housekeeping {
        broker: usize,
    },
    Stop {
        broker: usize,
    },
}

/// Gathers what clients ask in one step.
struct Asking {
    asks: Vec<(u64, Asker, usize, Ask)>,
    next_op: u64,
}

impl Asking {
    fn of(&mut self, asker: Asker) -> impl FnMut(usize, Ask) -> u64 {
        move |broker, ask| {
            self.next_op += 1;
            self.asks.push((self.next_op, asker, broker, ask));
            self.next_op
        }
    }
}

/// A client's connection to a broker.
#[derive(Default)]
struct Connection {
    last_arrival: u64,
    broken_until: u64,
}

/// What a client asked.
pub struct Op {
    asker: Asker,
    ask: Ask,
    reached_at: Option<u64>,
}

pub struct World {
    pub now: u64,
    pub dice: Dice,
    pub trace: Trace,
    /// What compactions say of themselves.
    pub said: Said,
    pub installs: Installs,
    /// Replicas that were written again and are whole.
    pub healed: u64,
    pub brokers: Vec<Broker>,
    pub net: Net,
    pub invariants: Invariants,
    pub lie: Lie,
    pub producers: Vec<Producer>,
    readers: Vec<Reader>,
    operator: Operator,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    ops: BTreeMap<u64, Op>,
    connections: BTreeMap<(Asker, usize), Connection>,
    next_op: u64,
    /// Since when a broker hears nobody and is heard by nobody.
    pub cut_off_since: [Option<u64>; BROKERS],
    /// How far each replica has been looked at.
    pub looked: BTreeMap<(usize, u32), i64>,
    pub fair_weather: bool,
    /// Nobody uses the cluster, and nobody looks: what it promises does not hold any more.
    pub unwatched: bool,
}

impl World {
    pub fn new(seed: u64, lie: Lie, echo: bool) -> Self {
        let mut dice = Dice::new(seed);
        let brokers = (0..BROKERS).map(|number| {
            let fs = SimFs::new(dice.next());
            let seen = lie.file_system(&fs, number);
            Broker::new(number, fs, seen, dice.fork())
        });
        let brokers: Vec<Broker> = brokers.collect();
        let net = Net::new(dice.fork());
        let producers = 0..PARTITIONS as usize * PRODUCERS_PER_PARTITION;
        let producers = producers
            .map(|n| Producer::new(n, (n / PRODUCERS_PER_PARTITION) as u32, dice.fork()))
            .collect();
        let readers = (0..PARTITIONS as usize * 2)
            .map(|n| Reader::new(n, (n / 2) as u32, dice.fork()))
            .collect();
        Self {
            now: 0,
            trace: Trace::new(echo),
            said: Said::default(),
            installs: Installs::default(),
            healed: 0,
            brokers,
            net,
            invariants: Invariants::default(),
            lie,
            producers,
            readers,
            operator: Operator::new(dice.fork()),
            events: BTreeMap::new(),
            next_event: 0,
            ops: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_op: 0,
            cut_off_since: [None; BROKERS],
            looked: BTreeMap::new(),
            fair_weather: false,
            unwatched: false,
            dice,
        }
    }

    pub fn schedule(&mut self, after_ms: u64, event: Event) {
        self.next_event += 1;
        let at = (self.now + after_ms.max(1), self.next_event);
        self.events.insert(at, event);
    }

    /// # Errors
    /// What was seen that must not be.
    pub fn step(&mut self) -> Result<(), String> {
        self.now += 1;
        self.trace.now = self.now;
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let event = entry.remove();
            self.happen(event)?;
        }
        if !self.unwatched {
            self.clients_act();
        }
        for number in 0..BROKERS {
            self.brokers[number].step(self.now);
            for said in self.said.take() {
                self.trace.say(format_args!("{number} says:{said}"));
            }
            for outgoing in self.brokers[number].outgoing() {
                self.send(number, outgoing)?;
            }
        }
        self.forge()?;
        self.bury_the_dead();
        if self.unwatched { Ok(()) } else { self.look() }
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Arrives { at, inbound } => self.arrive(at, inbound),
            Event::ReplyArrives { op, reply } => return self.reply_to_client(op, Some(&reply)),
            Event::PatienceEnds { op } => return self.reply_to_client(op, None),
            Event::Restart { broker } => return self.restart(broker),
            Event::Fault => self.next_fault(),
            Event::Passes(fault) => self.passes(fault),
            Event::Housekeeping { broker } => self.housekeeping(broker),
            Event::Stop { broker } => self.stop(broker),
        }
        Ok(())
    }

    fn arrive(&mut self, at: usize, inbound: Inbound) {
        match &inbound {
            Inbound::Message {
                body: Body::Ping(_),
                ..
            }
            | Inbound::Answered {
                answer: Ok(Body::Ping(_)),
                ..
            } => {}
            Inbound::Message { call, from, body } => {
                let said = describe_body(body);
                self.trace
                    .say(format_args!("{at} hears {call} of disk {from}: {said}"));
                self.installs.heard(*call, body);
            }
            Inbound::Answered { answer, .. } => {
                let said = answer
                    .as_ref()
                    .map_or_else(ToString::to_string, describe_body);
                self.trace.say(format_args!("{at} hears back: {said}"));
            }
            Inbound::Asked { op, ask } => {
                self.trace
                    .say(format_args!("{at} is asked {op}: {}", describe_ask(ask)));
                if let Some(op) = self.ops.get_mut(op) {
                    op.reached_at = Some(self.now);
                }
            }
            Inbound::Retain | Inbound::Checkpoint | Inbound::HandOver => {}
        }
        let is_up = self.brokers[at].up.is_some();
        match inbound {
            inbound if is_up => self.brokers[at].inbox.push_back(inbound),
            Inbound::Message { call, body, .. } => self.refuse(at, call, &body),
            Inbound::Asked { op, .. } => self.reply_after(op, Reply::Down, 1),
            _ => {}
        }
    }

    /// Nobody is there. A machine that runs says so at once, one without power never.
    fn refuse(&mut self, at: usize, call: u64, body: &Body) {
        let to = self.brokers[at].replica();
        if self.brokers[at].dark {
            return self.lose(call, to, Some(1_500));
        }
        let why = "nobody is there".to_owned();
        let error = match body {
            Body::Ping(_) => CallError::Refused { to, why },
            _ => unreachable(to),
        };
        let after_ms = self.dice.range(RESET_MS);
        self.answer(call, Err(error), after_ms);
    }

    fn send(&mut self, from: usize, outgoing: Outgoing) -> Result<(), String> {
        match outgoing {
            Outgoing::Request { to, body, reply } => self.send_request(from, to, body, reply),
            Outgoing::Answer { call, body } => self.send_answer(from, call, body),
            Outgoing::Reply { op, reply } => return self.send_reply(from, op, reply),
        }
        Ok(())
    }

    fn send_request(
        &mut self,
        from: usize,
        to: u64,
        body: Body,
        reply: tokio::sync::oneshot::Sender<Answer>,
    ) {
        let Some(number) = self.brokers.iter().position(|b| b.replica() == to) else {
            // Nobody has that disk.
            let _ = reply.send(Err(unreachable(to)));
            return;
        };
        let start = self.brokers[from].start;
        let call = self.net.open_call(Call {
            from,
            to: number,
            start,
            reply,
        });
        let fate = match self.net.fate_of(self.now, from, number, &body) {
            Fate::Arrives { .. } if self.lie.loses(&body) => Fate::Lost {
                noticed_after_ms: Some(100),
            },
            fate => fate,
        };
        match fate {
            Fate::Arrives { after_ms } => match self.lie.intercept(number, body) {
                Delivery::Arrives(body) => {
                    let from = self.brokers[from].replica();
                    let inbound = Inbound::Message { call, from, body };
                    self.schedule(
                        after_ms,
                        Event::Arrives {
                            at: number,
                            inbound,
                        },
                    );
                }
                Delivery::Answered(body) => self.answer(call, Ok(body), after_ms + 1),
            },
            Fate::Lost { noticed_after_ms } => self.lose(call, to, noticed_after_ms),
        }
    }

    /// A call whose request or answer got lost.
    fn lose(&mut self, call: u64, to: u64, noticed_after_ms: Option<u64>) {
        match noticed_after_ms {
            Some(after_ms) => self.answer(call, Err(unreachable(to)), after_ms),
            // Its caller's patience is not endless; ours need not remember it either.
            None => self.forgotten(call),
        }
    }

    fn forgotten(&mut self, call: u64) {
        // Dropping the sender would tell the caller; it is kept until the caller is gone or gives up.
        if let Some(open) = self.net.calls.remove(&call) {
            self.net.silent.push(open.reply);
        }
    }

    fn send_answer(&mut self, from: usize, call: u64, body: Body) {
        if self.installs.answered(call, &body) {
            self.trace.say(format_args!("{from} has taken files"));
        }
        let Some(open) = self.net.calls.get(&call) else {
            return;
        };
        let caller = open.from;
        match self.net.fate(from, caller) {
            Fate::Arrives { after_ms } => {
                self.answer(call, Ok(body), after_ms);
            }
            Fate::Lost { noticed_after_ms } => {
                let to = self.brokers[from].replica();
                self.lose(call, to, noticed_after_ms);
            }
        }
    }

    /// Ends a call: the answer is on its way.
    fn answer(&mut self, call: u64, answer: Answer, after_ms: u64) {
        let Some(open) = self.net.calls.remove(&call) else {
            return;
        };
        if self.brokers[open.from].start != open.start {
            return;
        }
        let inbound = Inbound::Answered {
            reply: open.reply,
            answer,
        };
        self.schedule(
            after_ms,
            Event::Arrives {
                at: open.from,
                inbound,
            },
        );
    }

    /// Connections to and from a broker that went down break, if its machine can still say so.
    pub fn break_calls(&mut self, broker: usize, says_so: bool) {
        let calls: Vec<u64> = self
            .net
            .calls
            .iter()
            .filter(|(_, c)| c.to == broker)
            .map(|(id, _)| *id)
            .collect();
        let to = self.brokers[broker].replica();
        for call in calls {
            let after_ms = if says_so {
                self.dice.range(RESET_MS)
            } else {
                1_500
            };
            self.answer(call, Err(unreachable(to)), after_ms);
        }
        self.net.calls.retain(|_, c| c.from != broker);
    }

    fn clients_act(&mut self) {
        let (now, fresh) = (self.now, !self.fair_weather);
        let mut asking = Asking {
            asks: Vec::new(),
            next_op: self.next_op,
        };
        for (n, producer) in self.producers.iter_mut().enumerate() {
            // An idle group tells nobody anything, not even the last commit: a trickle of batches goes on.
            let trickles =
                n.is_multiple_of(PRODUCERS_PER_PARTITION) && now.is_multiple_of(TRICKLE_MS);
            let fresh = match (fresh, trickles) {
                (true, _) => Fresh::Many,
                (false, true) => Fresh::OneMore,
                (false, false) => Fresh::None,
            };
            producer.tick(now, fresh, &mut asking.of(Asker::Producer(n)));
        }
        for (n, reader) in self.readers.iter_mut().enumerate() {
            reader.tick(now, &mut asking.of(Asker::Reader(n)));
        }
        if fresh {
            self.operator.tick(now, &mut asking.of(Asker::Operator));
        }
        self.next_op = asking.next_op;
        for (op, asker, broker, ask) in asking.asks {
            let sent = Op {
                asker,
                ask: ask.clone(),
                reached_at: None,
            };
            self.ops.insert(op, sent);
            let (arrives, patience) = self.over_connection(asker, broker);
            self.schedule(patience, Event::PatienceEnds { op });
            if let Some(after_ms) = arrives {
                let inbound = Inbound::Asked { op, ask };
                let at = broker;
                self.schedule(after_ms, Event::Arrives { at, inbound });
            }
        }
    }

    /// When a request arrives, and when its client gives up on it. One connection keeps the order; once
    /// something got lost on it, so does all that follows, until the client notices.
    fn over_connection(&mut self, asker: Asker, broker: usize) -> (Option<u64>, u64) {
        let now = self.now;
        let connection = self.connections.entry((asker, broker)).or_default();
        if connection.broken_until > now {
            return (None, connection.broken_until - now);
        }
        match self.net.client_fate() {
            Fate::Arrives { after_ms } => {
                connection.last_arrival = connection.last_arrival.max(now + after_ms);
                let patience = self.dice.range(CLIENT_PATIENCE_MS);
                (Some(connection.last_arrival - now), patience)
            }
            Fate::Lost { .. } => {
                let noticed = self.dice.range(CLIENT_PATIENCE_MS);
                connection.broken_until = now + noticed;
                (None, noticed)
            }
        }
    }

    /// A broker answers. What it says counts from now on, whether or not it is heard.
    fn send_reply(&mut self, from: usize, op: u64, reply: Reply) -> Result<(), String> {
        if !matches!(reply, Reply::Leadership(_)) {
            self.trace.say(format_args!(
                "{from} replies to {op}: {}",
                describe_reply(&reply)
            ));
        }
        if let Reply::Appended(Ok(appended)) = &reply {
            self.acknowledged(from, op, appended)?;
        }
        if let Fate::Arrives { after_ms } = self.net.client_fate() {
            self.reply_after(op, reply, after_ms);
        }
        Ok(())
    }

    fn acknowledged(&mut self, broker: usize, op: u64, appended: &Appended) -> Result<(), String> {
        let Some(Op {
            ask: Ask::Produce { partition, batch },
            reached_at,
            ..
        }) = self.ops.get(&op)
        else {
            return Ok(());
        };
        let replica = self.brokers[broker].partition(*partition);
        let term = replica.map_or(0, |p| i64::from(p.leadership().epoch));
        let header = &batch.header;
        // Of a duplicate it only says where it has long been.
        let fresh = appended.duplicate_of.is_none();
        let base_offset = appended.base_offset;
        let cut_off = fresh && self.cut_off_since[broker].is_some_and(|at| Some(at) < *reached_at);
        let batch = Batch {
            base_offset,
            records: i64::from(header.last_offset_delta) + 1,
            producer: header.producer_id,
            first: header.base_sequence,
            crc: header.crc,
            epoch: -1,
        };
        self.invariants.see(&Seen::Acked {
            broker,
            partition: *partition,
            batch,
            term,
            cut_off,
        })
    }

    fn reply_after(&mut self, op: u64, reply: Reply, after_ms: u64) {
        self.schedule(after_ms, Event::ReplyArrives { op, reply });
    }

    fn reply_to_client(&mut self, op: u64, reply: Option<&Reply>) -> Result<(), String> {
        let now = self.now;
        let asker = match self.ops.get(&op) {
            Some(op) => op.asker,
            None => return Ok(()),
        };
        if reply.is_none() {
            self.connections.retain(|(a, _), _| *a != asker);
        }
        match asker {
            Asker::Producer(n) => self.producers[n].answered(now, op, reply),
            Asker::Reader(n) => self.readers[n].answered(now, op, reply, &mut self.invariants)?,
            Asker::Operator => {
                if let Some(reply) = reply {
                    self.operator.answered(reply)?;
                }
            }
        }
        Ok(())
    }
}
