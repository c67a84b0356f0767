//! Random lives of a few logs beside a model that is a plain vector: after each step, every way to look at a
//! log says what the vector says; after a power loss, what some vector since the last acknowledgement said.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests say what they expect by panicking"
)]

mod common;

use bytes::Bytes;
use common::{disk_options, key, log_options, open};
use logd_storage::vfs::{Fault, SimFs};
use logd_storage::{Disk, Done, Entry, EntryId, Kind, Log, Row, TermStart};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const LOGS: usize = 3;
/// The first entry of a log may have any index.
const FIRST_INDEX: [u64; LOGS] = [0, 1, 7];

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
        1 => log.prop_map(Op::Delete),
        6 => Just(Op::Pump),
        2 => Just(Op::Checkpoint),
        1 => Just(Op::Close),
        2 => Just(Op::Kill),
        1 => Just(Op::PowerLoss),
        1 => (1u64..40).prop_map(Op::PowerLossSoon),
    ]
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    id: EntryId,
    kind: Kind,
    base: i64,
    records: u32,
    timestamp: i64,
    payload: Vec<u8>,
}

impl Held {
    fn end(&self) -> i64 {
        self.base + i64::from(self.records)
    }

    fn data(&self) -> &[u8] {
        match self.kind {
            Kind::Data => &self.payload,
            Kind::Control(_) => &[],
        }
    }

    fn is(&self, row: &Row) -> bool {
        (self.id, self.base, self.records, self.timestamp, self.kind)
            == (
                row.id(),
                row.base_offset,
                row.records,
                row.max_timestamp,
                row.kind,
            )
            && row.length as usize == self.data().len()
    }
}

/// One log as a vector.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Model {
    entries: Vec<Held>,
    purged: Option<EntryId>,
    start: i64,
    end: i64,
    vote: Option<u8>,
}

impl Model {
    fn last(&self) -> Option<EntryId> {
        self.entries.last().map(|e| e.id).or(self.purged)
    }

    fn first_index(&self) -> u64 {
        let purged = self.purged.map(|p| p.index + 1);
        purged.unwrap_or_else(|| self.entries.first().map_or(0, |e| e.id.index))
    }

    fn purge(&mut self, upto: EntryId) {
        self.entries.retain(|e| e.id.index > upto.index);
        self.start = self.entries.first().map_or(self.end, |e| e.base);
        self.purged = Some(upto);
    }

    /// The entry so many of a hundred along; `None` behind the last one.
    fn at(&self, percent: usize) -> Option<&Held> {
        self.entries.get(self.entries.len() * percent / 100)
    }

    fn terms(&self) -> Vec<TermStart> {
        let mut terms: Vec<TermStart> = Vec::new();
        for e in &self.entries {
            if terms.last().is_none_or(|t| t.term != e.id.term) {
                terms.push(TermStart {
                    term: e.id.term,
                    index: e.id.index,
                    offset: e.base,
                });
            }
        }
        terms
    }

    /// What is different in the log, if anything is.
    fn differs(&self, log: &Log) -> Option<String> {
        let bounds = log.bounds();
        let ours = (
            self.purged,
            self.first_index(),
            self.last(),
            self.start,
            self.end,
        );
        let theirs = (
            bounds.purged,
            bounds.first_index,
            bounds.last,
            bounds.start_offset,
            bounds.end_offset,
        );
        if ours != theirs {
            return Some(format!("bounds are {theirs:?}, not {ours:?}"));
        }
        let is_ours =
            |id: EntryId| self.purged == Some(id) || self.entries.iter().any(|held| held.id == id);
        if bounds.durable.is_some_and(|id| !is_ours(id)) {
            return Some(format!("{:?} is durable, but not present", bounds.durable));
        }
        if log.vote().map(|v| v.to_vec()) != self.vote.map(|v| vec![v]) {
            return Some(format!("the vote is {:?}, not {:?}", log.vote(), self.vote));
        }
        if log.terms() != self.terms() {
            return Some(format!(
                "terms are {:?}, not {:?}",
                log.terms(),
                self.terms()
            ));
        }
        self.differs_by_index(log)
            .or_else(|| self.differs_by_offset(log))
            .or_else(|| self.differs_by_time(log))
    }

    fn differs_by_index(&self, log: &Log) -> Option<String> {
        let mut next = self.first_index();
        for held in &self.entries {
            let Some(row) = log.entry_row(held.id.index).filter(|r| held.is(r)) else {
                return Some(format!("the row of {held:?}"));
            };
            let some = log.entries(next, next + 1, 1).unwrap();
            let [entry] = &some[..] else {
                return Some(format!("{} entries at {next}", some.len()));
            };
            let payload = [&entry.head[..], &entry.body[..]].concat();
            if payload != held.payload || entry.id != held.id {
                return Some(format!("the payload of {row:?}"));
            }
            next += 1;
        }
        log.entry_row(next)
            .map(|row| format!("{row:?} is too much"))
    }

    fn differs_by_offset(&self, log: &Log) -> Option<String> {
        let outside = [self.start - 1, self.end + 1];
        if outside
            .iter()
            .any(|o| log.read(*o, i64::MAX, 1, true).is_ok())
        {
            return Some("it reads outside its offsets".into());
        }
        let nowhere = [self.start - 1, self.end];
        if let Some(row) = nowhere.iter().find_map(|o| log.row_at_offset(*o)) {
            return Some(format!("{row:?} outside its offsets"));
        }
        for (at, held) in self.entries.iter().enumerate() {
            let rest = &self.entries[at..];
            for offset in held.base..held.end() {
                if !log.row_at_offset(offset).is_some_and(|row| held.is(&row)) {
                    return Some(format!("the row at offset {offset}"));
                }
            }
            if held.records > 0 {
                let all: Vec<&[u8]> = rest.iter().map(Held::data).collect();
                let plan = log
                    .read(held.end() - 1, self.end, usize::MAX, true)
                    .unwrap();
                plan.warm().unwrap();
                if plan.slices.concat() != all.concat() || plan.next_offset != self.end {
                    return Some(format!("all from offset {}", held.base));
                }
                let one = log.read(held.base, self.end, 1, true).unwrap();
                if one.slices.concat() != held.data() {
                    return Some(format!("the one at offset {}", held.base));
                }
                let limit = held.base + 1;
                let some = log.read(held.base, limit, usize::MAX, true).unwrap();
                if some.slices.concat() != held.data() {
                    return Some(format!("below the limit {limit}"));
                }
            }
        }
        None
    }

    fn differs_by_time(&self, log: &Log) -> Option<String> {
        let with_records = || self.entries.iter().filter(|e| e.records > 0);
        let middle = (self.start + self.end) / 2;
        for time in (-1..42).step_by(3) {
            for from in [self.start, middle] {
                let ours = with_records().find(|e| e.timestamp >= time && e.end() > from);
                let theirs = log.row_at_time(time, from);
                if ours.map(|e| e.id) != theirs.map(|r| r.id()) {
                    return Some(format!("time {time} from {from}: {theirs:?}, not {ours:?}"));
                }
            }
        }
        for (from, limit) in [
            (self.start, self.end),
            (middle, self.end),
            (self.start, middle),
        ] {
            let inside = with_records().filter(|e| e.end() > from && e.base < limit);
            let newest = inside.clone().map(|e| e.timestamp).max();
            let ours = inside.clone().find(|e| Some(e.timestamp) == newest);
            let theirs = log.row_max_time(from, limit);
            if ours.map(|e| e.id) != theirs.map(|r| r.id()) {
                return Some(format!(
                    "newest of {from}..{limit}: {theirs:?}, not {ours:?}"
                ));
            }
        }
        None
    }
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
            doomed: false,
        }
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().unwrap()
    }

    fn log(&self, n: usize) -> Option<Log> {
        match self.disk().open_log(key(n), log_options()) {
            Ok(log) => Some(log),
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
        let left = model.entries.len().saturating_sub(count);
        model.entries.truncate(left);
        let keep = model.last().map(|l| l.index);
        model.end = model.entries.last().map_or(model.start, Held::end);
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
        model.purge(upto);
        self.change(n, model, |log, done| {
            log.purge_to(upto, done).map_err(|e| e.to_string())
        });
    }

    fn snapshot(&mut self, n: usize, percent: usize) {
        let mut model = self.lives[n].now();
        let inside = model.at(percent).filter(|h| model.last() != Some(h.id));
        let (upto, next_offset) = match inside {
            Some(held) => {
                let (id, end) = (held.id, held.end());
                model.purge(id);
                (id, end)
            }
            None => {
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
            log.install_snapshot(upto, next_offset, Bytes::from_static(b"state"), done)
                .map_err(|e| e.to_string())
        });
    }

    fn delete(&mut self, n: usize) {
        let outcome = self.disk().delete_log(key(n));
        match outcome {
            Ok(()) => self.lives[n] = Life::from(Model::default()),
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
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2_000, ..ProptestConfig::default() })]
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
