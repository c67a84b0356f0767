//! Random lives of a few logs beside a model that is a plain vector: after each step, every way to look at a
//! log says what the vector says; after a power loss, what some vector since the last acknowledgement said.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests say what they expect by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod vector;

use bytes::Bytes;
use common::{disk_options, key, log_options, open};
use logd_storage::vfs::{Fault, SimFs};
use logd_storage::{Disk, Done, Entry, EntryId, Kind, Log};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use vector::{Held, Model};

const LOGS: usize = 3;
/// The first entry of a log may have any index.
const FIRST_INDEX: [u64; LOGS] = [0, 1, 7];
/// The one whose purged entries become a base.
const KEEPS: usize = 2;

#[derive(Debug, Clone)]
enum Op {
    Append {
        log: usize,
        new_term: bool,
        entries: Vec<New>,
    },
    Vote(usize, u8),
    /// Drops so many entries from the end.
    Truncate(usize, usize),
    /// Purges so many of a hundred of the entries present.
    Purge(usize, usize),
    /// A snapshot up to so many of a hundred, or behind the end.
    Snapshot(usize, usize),
    Roll(usize),
    /// Drops what of the base lies below so many of a hundred.
    Floor(usize),
    /// Writes up to so many segments of the base anew as one, from one of them on; the number picks what stays.
    Rewrite(usize, usize, u64),
    Delete(usize),
    Pump,
    Checkpoint,
    Close,
    /// The process ends; its disk keeps power.
    Kill,
    /// Power goes now.
    PowerLoss,
    /// Power goes at the n-th change from now.
    PowerLossSoon(u64),
}

#[derive(Debug, Clone)]
struct New {
    bytes: usize,
    records: u32,
    timestamp: i64,
    control: bool,
}

fn new_entry() -> impl Strategy<Value = New> {
    (
        1usize..3_000,
        1u32..6,
        -1i64..40,
        prop::bool::weighted(0.15),
    )
        .prop_map(|(bytes, records, timestamp, control)| New {
            bytes,
            records,
            timestamp,
            control,
        })
}

fn op() -> impl Strategy<Value = Op> {
    let log = 0..LOGS;
    prop_oneof![
        12 => (log.clone(), prop::bool::weighted(0.2), prop::collection::vec(new_entry(), 1..5))
            .prop_map(|(log, new_term, entries)| Op::Append { log, new_term, entries }),
        1 => (log.clone(), any::<u8>()).prop_map(|(l, v)| Op::Vote(l, v)),
        3 => (log.clone(), 1usize..12).prop_map(|(l, n)| Op::Truncate(l, n)),
        3 => (log.clone(), 0usize..130).prop_map(|(l, n)| Op::Purge(l, n)),
        1 => (log.clone(), 0usize..130).prop_map(|(l, n)| Op::Snapshot(l, n)),
        1 => log.clone().prop_map(Op::Roll),
        3 => (0usize..60).prop_map(|percent| Op::Purge(KEEPS, percent)),
        3 => (0usize..4, 1usize..4, any::<u64>())
            .prop_map(|(from, count, pick)| Op::Rewrite(from, count, pick)),
        1 => (0usize..60).prop_map(Op::Floor),
        1 => log.prop_map(Op::Delete),
        6 => Just(Op::Pump),
        2 => Just(Op::Checkpoint),
        1 => Just(Op::Close),
        2 => Just(Op::Kill),
        1 => Just(Op::PowerLoss),
        1 => (1u64..40).prop_map(Op::PowerLossSoon),
    ]
}

/// A log's models since the last acknowledgement, the newest last.
struct Life {
    models: Vec<Model>,
    acknowledged: Arc<AtomicUsize>,
}

impl Life {
    fn from(model: Model) -> Self {
        Self {
            models: vec![model],
            acknowledged: Arc::new(AtomicUsize::new(0)),
        }
    }

    fn now(&self) -> Model {
        self.models.last().cloned().unwrap()
    }

    /// Takes a step; the answer is for the operation that takes it.
    fn becomes(&mut self, model: Model) -> Done {
        let (number, acknowledged) = (self.models.len(), self.acknowledged.clone());
        self.models.push(model);
        Box::new(move |result| {
            if result.is_ok() {
                acknowledged.fetch_max(number, Ordering::SeqCst);
            }
        })
    }

    /// What may be there after a crash.
    fn candidates(&self) -> &[Model] {
        &self.models[self.acknowledged.load(Ordering::SeqCst)..]
    }
}

struct World {
    fs: SimFs,
    disk: Option<Disk>,
    lives: Vec<Life>,
    term: u64,
    floor: i64,
    /// Power is to go soon, or gone: nothing is compared any more, and operations may fail.
    doomed: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let fs = SimFs::new(seed);
        Self {
            disk: Some(open(&fs).unwrap()),
            fs,
            lives: (0..LOGS).map(|_| Life::from(Model::default())).collect(),
            term: 1,
            floor: 0,
            doomed: false,
        }
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().unwrap()
    }

    fn log(&self, n: usize) -> Option<Log> {
        match self.disk().open_log(key(n), log_options()) {
            Ok(log) => {
                if n == KEEPS {
                    log.set_floor(self.floor);
                }
                Some(log)
            }
            Err(e) => {
                assert!(self.doomed, "a healthy disk opens its logs: {e}");
                None
            }
        }
    }

    /// Does one operation to the model and to the log.
    fn change(
        &mut self,
        n: usize,
        model: Model,
        to: impl FnOnce(&Log, Done) -> Result<(), String>,
    ) {
        let Some(log) = self.log(n) else { return };
        let done = self.lives[n].becomes(model);
        if let Err(e) = to(&log, done) {
            assert!(self.doomed, "a healthy disk takes it: {e}");
            self.lives[n].models.pop();
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Append {
                log,
                new_term,
                entries,
            } => self.append(log, new_term, &entries),
            Op::Vote(n, vote) => {
                let mut model = self.lives[n].now();
                model.vote = Some(vote);
                self.change(n, model, |log, done| {
                    log.save_vote(Bytes::copy_from_slice(&[vote]), done)
                        .map_err(|e| e.to_string())
                });
            }
            Op::Truncate(n, count) => self.truncate(n, count),
            Op::Purge(n, percent) => self.purge(n, percent),
            Op::Snapshot(n, percent) => self.snapshot(n, percent),
            Op::Roll(n) => {
                if let Some(log) = self.log(n) {
                    log.roll();
                }
            }
            Op::Floor(percent) => self.raise_floor(percent),
            Op::Rewrite(from, count, pick) => self.rewrite(from, count, pick),
            Op::Delete(n) => self.delete(n),
            Op::Pump => {
                self.disk().pump();
            }
            Op::Checkpoint => {
                let outcome = self.disk().checkpoint();
                assert!(outcome.is_ok() || self.doomed, "{outcome:?}");
            }
            Op::Close => {
                let outcome = self.disk.take().unwrap().close();
                assert!(outcome.is_ok() || self.doomed, "{outcome:?}");
                self.reopen(self.doomed);
            }
            Op::Kill => self.reopen(self.doomed),
            Op::PowerLoss => self.reopen(true),
            Op::PowerLossSoon(n) => {
                self.fs.inject(Fault::PowerAfter(n));
                self.doomed = true;
            }
        }
    }

    fn append(&mut self, n: usize, new_term: bool, entries: &[New]) {
        self.term += u64::from(new_term);
        let mut model = self.lives[n].now();
        let mut given = Vec::new();
        for new in entries {
            let id = EntryId {
                term: self.term,
                index: model.last().map_or(FIRST_INDEX[n], |l| l.index + 1),
            };
            let held = held(id, model.end, new);
            model.end = held.end();
            given.push(entry(&held));
            model.entries.push(held);
        }
        self.change(n, model, |log, done| {
            log.append(given, done).map_err(|e| e.to_string())
        });
    }

    fn truncate(&mut self, n: usize, count: usize) {
        let mut model = self.lives[n].now();
        let begins = model.raft_start();
        let left = model.entries.len().saturating_sub(count);
        model.entries.truncate(left);
        let keep = model.last().map(|l| l.index);
        model.end = model.entries.last().map_or(begins, Held::end);
        // What comes instead is another leader's.
        self.term += 1;
        self.change(n, model, |log, done| {
            log.truncate_after(keep, done).map_err(|e| e.to_string())
        });
    }

    fn purge(&mut self, n: usize, percent: usize) {
        let mut model = self.lives[n].now();
        let upto = match (model.at(percent), model.entries.last()) {
            (Some(held), _) => held.id,
            (None, Some(last)) => last.id,
            (None, None) => return,
        };
        if n == KEEPS {
            return self.settle(|log, done| log.purge_to(upto, done).map_err(|e| e.to_string()));
        }
        model.purge(upto);
        self.change(n, model, |log, done| {
            log.purge_to(upto, done).map_err(|e| e.to_string())
        });
    }

    /// Lets a log that has a base do something by which entries move there; how far is the log's to say.
    fn settle(&mut self, to: impl FnOnce(&Log, Done) -> Result<(), String>) {
        let Some(log) = self.log(KEEPS) else { return };
        let before = self.lives[KEEPS].now();
        let done = self.lives[KEEPS].becomes(before.clone());
        if let Err(e) = to(&log, done) {
            assert!(self.doomed, "a healthy disk takes it: {e}");
            self.lives[KEEPS].models.pop();
            return;
        }
        let bounds = log.bounds();
        let mut after = before.clone();
        after.settle(bounds.purged, bounds.start_offset);
        let kept = before
            .all()
            .into_iter()
            .filter(|e| e.end() > self.floor && !e.data().is_empty());
        for held in kept {
            assert!(held.base >= bounds.start_offset, "{held:?} went");
        }
        assert!(before.purged <= after.purged);
        *self.lives[KEEPS].models.last_mut().unwrap() = after;
    }

    fn raise_floor(&mut self, percent: usize) {
        let model = self.lives[KEEPS].now();
        let all = model.all();
        let to = all.get(all.len() * percent / 100).map_or(0, |e| e.base);
        self.floor = self.floor.max(to);
        self.settle(|log, done| {
            let dropped = log.drop_below_floor(done);
            dropped.map(|_| ()).map_err(|e| e.to_string())
        });
    }

    fn snapshot(&mut self, n: usize, percent: usize) {
        let mut model = self.lives[n].now();
        let inside = model.at(percent).filter(|h| model.last() != Some(h.id));
        let (upto, next_offset) = match inside {
            Some(held) if n == KEEPS => {
                let (upto, end) = (held.id, held.end());
                return self.settle(|log, done| {
                    log.install_snapshot(upto, end, Bytes::from_static(b"state"), None, done)
                        .map_err(|e| e.to_string())
                });
            }
            Some(held) => {
                let (id, end) = (held.id, held.end());
                model.purge(id);
                (id, end)
            }
            None => {
                model.base.clear();
                let upto = EntryId {
                    term: self.term,
                    index: model.last().map_or(3, |l| l.index + 3),
                };
                let offset = model.end + 5;
                model.entries.clear();
                (model.purged, model.start, model.end) = (Some(upto), offset, offset);
                (upto, offset)
            }
        };
        self.change(n, model, |log, done| {
            log.install_snapshot(upto, next_offset, Bytes::from_static(b"state"), None, done)
                .map_err(|e| e.to_string())
        });
    }

    /// Entries that storage was given go through the same choice as those of the model.
    fn rewrite(&mut self, from: usize, count: usize, pick: u64) {
        let Some(log) = self.log(KEEPS) else { return };
        let base = log.base_segments();
        let group: Vec<_> = base.into_iter().skip(from).take(count).collect();
        let Some(last) = group.last().map(|s| s.info().last) else {
            return;
        };
        let first = group.first().map_or(0, |s| s.info().base_offset);
        let mut model = self.lives[KEEPS].now();
        for held in &mut model.base {
            if held.base >= first && held.id.index <= last.index {
                (held.payload, held.timestamp) = chosen(&held.payload, held.timestamp, pick);
            }
        }
        model.base.retain(|held| !held.payload.is_empty());
        self.change(KEEPS, model, |log, done| {
            let mut rewriter = log.rewriter(&group).map_err(|e| e.to_string())?;
            for segment in &group {
                for entry in segment.entries().map_err(|e| e.to_string())? {
                    let (row, bytes) = entry.map_err(|e| e.to_string())?;
                    if row.kind != Kind::Data {
                        continue;
                    }
                    let (bytes, timestamp) = chosen(&bytes, row.max_timestamp, pick);
                    if !bytes.is_empty() {
                        let pushed = rewriter.push(&row, &bytes, timestamp);
                        pushed.map_err(|e| e.to_string())?;
                    }
                }
            }
            rewriter
                .swap(pick.is_multiple_of(2), done)
                .map_err(|e| e.to_string())
        });
    }

    fn delete(&mut self, n: usize) {
        let outcome = self.disk().delete_log(key(n));
        match outcome {
            Ok(()) => {
                self.lives[n] = Life::from(Model::default());
                if n == KEEPS {
                    self.floor = 0;
                }
            }
            Err(e) => {
                assert!(self.doomed, "a healthy disk deletes: {e}");
                drop(self.lives[n].becomes(Model::default()));
            }
        }
    }

    fn reopen(&mut self, power_loss: bool) {
        self.disk = None;
        if power_loss {
            self.fs.reboot();
        }
        self.doomed = false;
        self.disk = Some(open(&self.fs).unwrap_or_else(|e| panic!("{e}")));
        for n in 0..LOGS {
            let log = self.log(n).unwrap();
            let candidates = self.lives[n].candidates();
            let differences: Vec<_> = candidates.iter().map(|m| m.differs(&log)).collect();
            let Some(at) = differences.iter().position(Option::is_none) else {
                panic!(
                    "log {n} is in none of the states that it may be in: {differences:?}, {:?}",
                    log.bounds()
                );
            };
            let (model, bounds) = (candidates[at].clone(), log.bounds());
            assert_eq!(bounds.durable, bounds.last, "what was recovered is durable");
            self.lives[n] = Life::from(model);
        }
        // What was lost may have been of this term.
        self.term += 1;
    }

    fn compare(&self) {
        if self.doomed {
            return;
        }
        for (n, life) in self.lives.iter().enumerate() {
            let log = self.log(n).unwrap();
            if let Some(difference) = life.now().differs(&log) {
                panic!("log {n}: {difference}");
            }
        }
    }
}

/// What a rewrite leaves of an entry: nothing, a part, or all.
fn chosen(bytes: &[u8], timestamp: i64, pick: u64) -> (Vec<u8>, i64) {
    let sum = bytes
        .iter()
        .fold(pick, |sum, b| sum.wrapping_mul(31) ^ u64::from(*b));
    match sum % 3 {
        0 => (Vec::new(), -1),
        1 => (bytes[..bytes.len().div_ceil(2)].to_vec(), timestamp),
        _ => (bytes.to_vec(), timestamp),
    }
}

fn held(id: EntryId, base: i64, new: &New) -> Held {
    let seed = (id.index * 31 + id.term * 7) as usize;
    let control = new.control;
    Held {
        id,
        kind: if control {
            Kind::Control(3)
        } else {
            Kind::Data
        },
        base,
        records: if control { 0 } else { new.records },
        timestamp: if control { -1 } else { new.timestamp },
        payload: (0..new.bytes).map(|i| (seed + i) as u8).collect(),
    }
}

fn entry(held: &Held) -> Entry {
    let mut body = Bytes::from(held.payload.clone());
    let head = body.split_to(body.len().min(61));
    Entry {
        id: held.id,
        kind: held.kind,
        base_offset: held.base,
        records: held.records,
        max_timestamp: held.timestamp,
        head,
        body,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, max_shrink_iters: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn a_log_is_what_a_vector_is(seed in any::<u64>(), ops in prop::collection::vec(op(), 1..60)) {
        assert!(disk_options().wal_file_bytes < 1 << 20, "files are small enough to be used again");
        let mut world = World::new(seed);
        for op in ops {
            world.step(op);
            world.compare();
        }
        world.reopen(true);
    }
}
