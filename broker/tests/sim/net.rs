//! The network between brokers: what is sent, what becomes of it, and who is cut off from whom.
//!
//! A call is a request and its answer; each way has its own fate. Real links are streams that notice
//! when they break, so a call that gets lost mostly fails after a while, and sometimes just never ends.
//! Messages overtake each other: a link that was dialled again does that too.
//! Not here: when a broker looks at what arrived (`broker`).

use crate::dice::Dice;
use logd::raft::CallError;
use logd_proto::rpc::v1::GroupMessage;
use logd_proto::rpc::v1::envelope::Body;
use logd_proto::rpc::v1::group_message::Kind;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;

pub const BROKERS: usize = 3;

pub type Answer = Result<Body, CallError>;

/// What a broker's tasks hand to the world while they run.
pub enum Outgoing {
    Request {
        to: u64,
        body: Body,
        reply: oneshot::Sender<Answer>,
    },
    /// The answer to a request that was delivered here.
    Answer { call: u64, body: Body },
    /// The answer to a client.
    Reply {
        op: u64,
        reply: crate::client::Reply,
    },
}

#[derive(Clone, Default)]
pub struct Outbox(Arc<Mutex<Vec<Outgoing>>>);

impl Outbox {
    pub fn put(&self, outgoing: Outgoing) {
        self.0.lock().push(outgoing);
    }

    /// Everything sent since the last time, in an order that no scheduler has a say in.
    pub fn take(&self) -> Vec<Outgoing> {
        let mut all = std::mem::take(&mut *self.0.lock());
        all.sort_by_cached_key(|o| match o {
            Outgoing::Request { to, body, .. } => match row(body) {
                // A stable sort: they stay as they were sent.
                Some(group) => (1, *to, group),
                None => (0, *to, describe_body(body)),
            },
            Outgoing::Answer { call, .. } => (2, *call, String::new()),
            Outgoing::Reply { op, .. } => (3, *op, String::new()),
        });
        all
    }
}

pub fn unreachable(to: u64) -> CallError {
    let why = "the simulated link is down".into();
    CallError::Unreachable { to, why }
}

/// What becomes of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Arrives {
        after_ms: u64,
    },
    /// It does not arrive; the sender notices after this long, if at all.
    Lost {
        noticed_after_ms: Option<u64>,
    },
}

/// How bad the network is.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    pub lost_per_mille: u64,
    /// One in twenty messages takes up to this long.
    pub slow_ms: u64,
}

pub const FAIR: Weather = Weather {
    lost_per_mille: 0,
    slow_ms: 30,
};

pub struct Call {
    pub from: usize,
    pub to: usize,
    /// The start of the caller: an answer to an earlier one has nobody to go to.
    pub start: u64,
    pub reply: oneshot::Sender<Answer>,
}

pub struct Net {
    dice: Dice,
    pub weather: Weather,
    /// `cut[a][b]`: nothing gets from a to b.
    pub cut: [[bool; BROKERS]; BROKERS],
    pub calls: BTreeMap<u64, Call>,
    /// Calls that nobody will ever answer; dropping these would tell the caller.
    pub silent: Vec<oneshot::Sender<Answer>>,
    next_call: u64,
    /// When the last message of a row arrives.
    rows: BTreeMap<(usize, usize, String), u64>,
}

impl Net {
    pub fn new(dice: Dice) -> Self {
        Self {
            dice,
            weather: FAIR,
            cut: Default::default(),
            calls: BTreeMap::new(),
            silent: Vec::new(),
            next_call: 0,
            rows: BTreeMap::new(),
        }
    }

    pub fn open_call(&mut self, call: Call) -> u64 {
        self.next_call += 1;
        self.calls.insert(self.next_call, call);
        self.next_call
    }

    pub fn fate(&mut self, from: usize, to: usize) -> Fate {
        if self.cut[from][to] || self.dice.chance(self.weather.lost_per_mille) {
            // Silence is noticed within 1.5 s (raft.md); one in ten times nobody does.
            let noticed = self.dice.range(10..1_500);
            let noticed_after_ms = (!self.dice.chance(100)).then_some(noticed);
            return Fate::Lost { noticed_after_ms };
        }
        let after_ms = self.delay();
        Fate::Arrives { after_ms }
    }

    /// As [`Net::fate`], but what is to stay in order on its way does so.
    pub fn fate_of(&mut self, now: u64, from: usize, to: usize, body: &Body) -> Fate {
        match (self.fate(from, to), row(body)) {
            (Fate::Arrives { after_ms }, Some(group)) => {
                let last = self.rows.entry((from, to, group)).or_default();
                *last = (now + after_ms).max(*last);
                let after_ms = *last - now;
                Fate::Arrives { after_ms }
            }
            (fate, _) => fate,
        }
    }

    fn delay(&mut self) -> u64 {
        if self.dice.chance(50) {
            self.dice.range(1..self.weather.slow_ms + 1)
        } else {
            self.dice.range(1..4)
        }
    }

    /// Between a client and a broker: clients are never cut off, but have the same weather.
    pub fn client_fate(&mut self) -> Fate {
        if self.dice.chance(self.weather.lost_per_mille) {
            return Fate::Lost {
                noticed_after_ms: None,
            };
        }
        let after_ms = self.delay();
        Fate::Arrives { after_ms }
    }

    pub fn heal(&mut self) {
        self.weather = FAIR;
        self.cut = Default::default();
    }

    pub fn is_isolated(&self, broker: usize) -> bool {
        (0..BROKERS)
            .filter(|other| *other != broker)
            .all(|other| self.cut[broker][other] && self.cut[other][broker])
    }
}

/// The group of a message that must not overtake, nor be overtaken by, others of its group.
fn row(body: &Body) -> Option<String> {
    match body {
        Body::Group(message) if message.in_order => Some(group_of(message)),
        _ => None,
    }
}

fn group_of(message: &GroupMessage) -> String {
    match message.topic_id.first() {
        None => "back".into(),
        Some(0) => "meta".into(),
        Some(_) => format!("p{}", message.partition),
    }
}

/// What is said, in one line.
pub fn describe_body(body: &Body) -> String {
    match body {
        Body::Group(message) => describe(message),
        Body::Ping(ping) => format!("ping {}", ping.start),
        Body::Orphans(orphans) => {
            let groups = orphans.groups.iter().map(|g| g.partition);
            format!("who leads {:?}", groups.collect::<Vec<_>>())
        }
        Body::Outlooks(outlooks) => {
            let said = outlooks.outlooks.iter();
            let said = said.map(|o| format!("{}.{:?}{}", o.term, o.last, o.led));
            format!("outlooks {:?}", said.collect::<Vec<_>>())
        }
        Body::Leaders(_) => "leaders".into(),
        Body::Done(_) => "done".into(),
        other => format!("{other:?}"),
    }
}

/// A group's message.
fn describe(message: &GroupMessage) -> String {
    let group = group_of(message);
    match &message.kind {
        Some(kind) => format!("{group}: {}", describe_kind(kind)),
        None => format!("{group}: nothing"),
    }
}

fn describe_kind(kind: &Kind) -> String {
    let vote = |v: &Option<logd_proto::rpc::v1::Vote>| {
        v.map_or_else(String::new, |v| {
            let sure = if v.committed { "!" } else { "?" };
            format!("t{}/{}{sure}", v.term, v.voted_for)
        })
    };
    let id = |i: &Option<logd_proto::rpc::v1::LogId>| {
        i.map_or_else(|| "-".to_owned(), |i| format!("{}.{}", i.term, i.index))
    };
    match kind {
        Kind::Append(r) => {
            let last = r.entries.last().map_or(0, |e| e.index);
            let (v, p, c) = (vote(&r.vote), id(&r.previous), id(&r.committed));
            format!(
                "append {v} after {p} +{} to {last} commit {c}",
                r.entries.len()
            )
        }
        Kind::Appended(r) => format!("appended {:?}", r.outcome),
        Kind::Vote(r) => {
            let ask = if r.pre_vote { "pre-vote" } else { "vote" };
            format!("{ask} {} last {}", vote(&r.vote), id(&r.last))
        }
        Kind::Voted(r) => format!("voted {} {}", r.granted, vote(&r.vote)),
        Kind::Snapshot(r) => {
            let (v, l) = (vote(&r.vote), id(&r.last));
            format!("snapshot {v} at {l}, {} bytes", r.state.len())
        }
        Kind::SnapshotTaken(r) => format!("snapshot taken {}", vote(&r.vote)),
        Kind::Transfer(_) => "transfer".into(),
        Kind::Transferred(r) => format!("transferred {:?}", r.refused),
        Kind::Offer(r) => format!("offer at {}, {} bytes", id(&r.last), r.files.len()),
        Kind::Piece(r) => format!("piece of {}: {:?} +{}", id(&r.last), r.at, r.bytes.len()),
        Kind::Wanted(r) => format!("wanted {:?}", r.next),
        Kind::Refused(why) => format!("refused: {why}"),
    }
}
