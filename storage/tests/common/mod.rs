//! A small world of logs: what was asked of a disk, what it acknowledged, and what it may then hold.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod damage;

use bytes::Bytes;
use logd_storage::vfs::{Open, SimFs, Vfs};
use logd_storage::{
    Disk, DiskOptions, Done, Entry, EntryId, Kind, Log, LogKey, LogOptions, OpenError, Pump,
};
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub const ROOT: &str = "/data";
const LOGS: usize = 3;

/// xorshift64*: the same everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Small files, so that a short workload rolls, recycles and checkpoints.
pub fn disk_options() -> DiskOptions {
    DiskOptions {
        wal_file_bytes: 64 << 10,
        wal_budget_bytes: 512 << 10,
        tail_budget_bytes: 64 << 10,
        reserve_bytes: 0,
        pump: Pump::Manual,
        ..DiskOptions::default()
    }
}

pub fn log_options() -> LogOptions {
    LogOptions {
        segment_bytes: 8 << 10,
        ..LogOptions::default()
    }
}

pub fn open(fs: &SimFs) -> Result<Disk, OpenError> {
    let fs: Arc<dyn Vfs> = Arc::new(fs.clone());
    Disk::open(fs, Path::new(ROOT), disk_options(), &|_| {})
}

pub fn key(n: usize) -> LogKey {
    LogKey {
        topic: [n as u8 + 1; 16],
        partition: n as u32,
    }
}

/// What a log holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    pub entries: BTreeMap<u64, (u64, u8, i64, Vec<u8>)>,
    pub purged: Option<EntryId>,
    pub vote: Option<Vec<u8>>,
}

impl Held {
    fn last(&self) -> Option<EntryId> {
        let newest = self.entries.iter().next_back().map(|(index, e)| EntryId {
            term: e.0,
            index: *index,
        });
        newest.or(self.purged)
    }
}

/// One log's history: the state after each operation, and how many operations are acknowledged.
#[derive(Default)]
struct History {
    states: Vec<Held>,
    end_offset: i64,
    acknowledged: Arc<AtomicUsize>,
}

impl History {
    fn now(&self) -> Held {
        self.states.last().cloned().unwrap_or_default()
    }

    /// The next operation leads to `state`; the answer counts it when it says Ok.
    fn ask(&mut self, state: Held) -> Done {
        self.states.push(state);
        let (number, acknowledged) = (self.states.len(), self.acknowledged.clone());
        Box::new(move |result| {
            if result.is_ok() {
                acknowledged.fetch_max(number, Ordering::SeqCst);
            }
        })
    }

    /// Storage refused the operation outright: it did not happen.
    fn refused(&mut self) {
        self.states.pop();
    }
}

#[derive(Default)]
pub struct World {
    logs: BTreeMap<usize, History>,
    term: u64,
}

fn data(id: EntryId, base_offset: i64, rng: &mut Rng) -> Entry {
    let len = 64 + rng.below(3_000);
    let bytes: Vec<u8> = (0..len)
        .map(|i| (id.index as u8).wrapping_mul(31).wrapping_add(i as u8) ^ (id.term as u8))
        .collect();
    let mut whole = Bytes::from(bytes);
    let head = whole.split_to(rng.below(64));
    Entry {
        id,
        kind: Kind::Data,
        base_offset,
        records: 1 + rng.below(5) as u32,
        max_timestamp: id.index as i64 * 10,
        head,
        body: whole,
    }
}

fn control(id: EntryId, base_offset: i64) -> Entry {
    let body = Bytes::from(format!("control {}", id.index));
    Entry {
        id,
        kind: Kind::Control(1),
        base_offset,
        records: 0,
        max_timestamp: -1,
        head: Bytes::new(),
        body,
    }
}

fn held(e: &Entry) -> (u64, u8, i64, Vec<u8>) {
    let kind = match e.kind {
        Kind::Data => 255,
        Kind::Control(n) => n,
    };
    (
        e.id.term,
        kind,
        e.base_offset,
        [&e.head[..], &e.body[..]].concat(),
    )
}

impl World {
    /// One random operation, then perhaps the disk's own work. False when the disk takes nothing any more.
    pub fn step(&mut self, disk: &Disk, rng: &mut Rng) -> bool {
        self.term = self.term.max(1);
        let n = rng.below(LOGS);
        let Ok(log) = disk.open_log(key(n), log_options()) else {
            return false;
        };
        let took = match rng.below(20) {
            0..=10 => self.append(&log, n, rng),
            11..=12 => self.vote(&log, n, rng),
            13 => self.truncate(&log, n, rng),
            14 => self.purge(&log, n, rng),
            15 => {
                log.roll();
                true
            }
            16 => disk.checkpoint().is_ok() || disk.space().poisoned.is_none(),
            _ => true,
        };
        if rng.below(3) > 0 {
            disk.pump();
        }
        took
    }

    fn append(&mut self, log: &Log, n: usize, rng: &mut Rng) -> bool {
        if rng.below(8) == 0 {
            self.term += 1;
        }
        let history = self.logs.entry(n).or_default();
        let mut state = history.now();
        let (before, mut end) = (history.end_offset, history.end_offset);
        let mut entries = Vec::new();
        for _ in 0..1 + rng.below(3) {
            let index = state.last().map_or(0, |id| id.index + 1);
            let id = EntryId {
                term: self.term,
                index,
            };
            let entry = if rng.below(6) == 0 {
                control(id, end)
            } else {
                data(id, end, rng)
            };
            end += i64::from(entry.records);
            state.entries.insert(index, held(&entry));
            entries.push(entry);
        }
        history.end_offset = end;
        let done = history.ask(state);
        let took = log.append(entries, done).is_ok();
        if !took {
            history.refused();
            history.end_offset = before;
        }
        took
    }

    fn vote(&mut self, log: &Log, n: usize, rng: &mut Rng) -> bool {
        let history = self.logs.entry(n).or_default();
        let vote = rng.next().to_be_bytes().to_vec();
        let done = history.ask(Held {
            vote: Some(vote.clone()),
            ..history.now()
        });
        let took = log.save_vote(Bytes::from(vote), done).is_ok();
        if !took {
            history.refused();
        }
        took
    }

    fn truncate(&mut self, log: &Log, n: usize, rng: &mut Rng) -> bool {
        let history = self.logs.entry(n).or_default();
        let mut state = history.now();
        let Some(last) = state.entries.keys().next_back().copied() else {
            return true;
        };
        let first = state.entries.keys().next().copied().unwrap_or(last);
        let keep = last.saturating_sub(rng.below(3) as u64 + 1);
        if keep < first {
            return true;
        }
        let cut = state.entries.split_off(&(keep + 1));
        let before = history.end_offset;
        if let Some(first_cut) = cut.values().next() {
            history.end_offset = first_cut.2;
        }
        let done = history.ask(state);
        let took = log.truncate_after(Some(keep), done).is_ok();
        if !took {
            history.refused();
            history.end_offset = before;
        }
        // What replaces the cut tail comes from another leader.
        self.term += 1;
        took
    }

    fn purge(&mut self, log: &Log, n: usize, rng: &mut Rng) -> bool {
        let history = self.logs.entry(n).or_default();
        let mut state = history.now();
        let indexes: Vec<u64> = state.entries.keys().copied().collect();
        if indexes.len() < 4 {
            return true;
        }
        let upto = indexes[rng.below(indexes.len() / 2)];
        let id = EntryId {
            term: state.entries[&upto].0,
            index: upto,
        };
        state.entries = state.entries.split_off(&(upto + 1));
        state.purged = Some(id);
        let done = history.ask(state);
        let took = log.purge_to(id, done).is_ok();
        if !took {
            history.refused();
        }
        took
    }

    pub fn acknowledged(&self) -> usize {
        self.logs
            .values()
            .map(|h| h.acknowledged.load(Ordering::SeqCst))
            .sum()
    }

    pub fn summary(&self) -> Vec<(usize, usize, usize)> {
        self.logs
            .iter()
            .map(|(n, h)| (*n, h.states.len(), h.acknowledged.load(Ordering::SeqCst)))
            .collect()
    }

    /// Each log is in a state that follows what was acknowledged and was asked for. Returns the states.
    pub fn check(&self, disk: &Disk, when: &str) -> Vec<Held> {
        let mut found = Vec::new();
        for (n, history) in &self.logs {
            let log = disk
                .open_log(key(*n), log_options())
                .unwrap_or_else(|e| panic!("{when}, log {n}: {e}"));
            let now = read(&log).unwrap_or_else(|e| panic!("{when}, log {n}: {e}"));
            let acknowledged = history.acknowledged.load(Ordering::SeqCst);
            let empty = Held::default();
            let mut allowed = std::iter::once(&empty)
                .chain(&history.states)
                .skip(acknowledged);
            assert!(
                allowed.any(|state| *state == now),
                "{when}, log {n}: {acknowledged} of {} operations were acknowledged, but the log holds entries {:?}, purged {:?}, vote {:?}",
                history.states.len(),
                now.entries.keys().collect::<Vec<_>>(),
                now.purged,
                now.vote,
            );
            found.push(now);
        }
        found
    }

    /// After a crash: what is there is what counts from now on.
    pub fn settle(&mut self, disk: &Disk, when: &str) {
        let found = self.check(disk, when);
        for ((n, history), now) in self.logs.iter_mut().zip(found) {
            let log = disk.open_log(key(*n), log_options()).unwrap();
            history.end_offset = log.bounds().end_offset;
            history.states = vec![now];
            history.acknowledged = Arc::new(AtomicUsize::new(1));
        }
        self.term += 1;
    }

    pub fn logs(&self) -> impl Iterator<Item = usize> {
        self.logs.keys().copied()
    }

    /// True if a log was ever asked to be like this.
    pub fn was_once(&self, n: usize, held: &Held) -> bool {
        *held == Held::default() || self.logs.get(&n).is_some_and(|h| h.states.contains(held))
    }

    /// Whatever is served is what was once asked for.
    pub fn check_no_lies(&self, disk: &Disk, when: &str) {
        for (n, history) in &self.logs {
            let Ok(log) = disk.open_log(key(*n), log_options()) else {
                continue;
            };
            let Ok(now) = read(&log) else { continue };
            for (index, entry) in &now.entries {
                let once = history
                    .states
                    .iter()
                    .any(|s| s.entries.get(index) == Some(entry));
                assert!(
                    once,
                    "{when}, log {n}: entry {index} was never written like this"
                );
            }
        }
    }
}

/// Everything a log holds, by both doors; they must agree.
pub fn read(log: &Log) -> Result<Held, String> {
    let bounds = log.bounds();
    let mut state = Held {
        vote: log.vote().map(|v| v.to_vec()),
        purged: bounds.purged,
        ..Held::default()
    };
    let Some(last) = bounds.last.filter(|l| l.index >= bounds.first_index) else {
        return Ok(state);
    };
    let mut next = bounds.first_index;
    while next <= last.index {
        let some = log
            .entries(next, last.index + 1, 4_096)
            .map_err(|e| e.to_string())?;
        for e in some {
            assert_eq!(e.id.index, next, "entries come without holes");
            next += 1;
            state.entries.insert(e.id.index, held(&e));
        }
    }
    let mut expected = Vec::new();
    let mut from = None;
    for (_, kind, base, bytes) in state.entries.values() {
        if *kind == 255 {
            from.get_or_insert(*base);
            expected.extend_from_slice(bytes);
        }
    }
    if let Some(from) = from {
        let plan = log
            .read(from, bounds.end_offset, usize::MAX, true)
            .map_err(|e| e.to_string())?;
        let served: Vec<u8> = plan.slices.iter().flat_map(|s| s.iter().copied()).collect();
        assert!(
            served == expected,
            "a fetch serves what the entries say: {} bytes against {}",
            served.len(),
            expected.len()
        );
    }
    Ok(state)
}

pub fn read_everything(disk: &Disk, key: LogKey) {
    if let Ok(log) = disk.open_log(key, log_options()) {
        // A refusal is fine; a panic is not.
        let _ = read(&log);
    }
}

pub fn overwrite(fs: &SimFs, path: &Path, bytes: &[u8]) {
    let how = Open {
        read: true,
        write: true,
        create: true,
        truncate: true,
        ..Open::default()
    };
    let file = fs.open(path, how).unwrap();
    file.write_all_at(&[IoSlice::new(bytes)], 0).unwrap();
    file.sync_data().unwrap();
    if let Some(parent) = path.parent() {
        fs.sync_dir(parent).unwrap();
    }
}

/// Replaces a part of a file by noise, or cuts it, or makes it longer.
pub fn scribble(fs: &SimFs, path: &Path, rng: &mut Rng) {
    let mut bytes = fs.contents(path).unwrap_or_default();
    match rng.below(3) {
        0 => bytes.truncate(rng.below(bytes.len() + 1)),
        1 => bytes.extend((0..rng.below(5_000)).map(|_| rng.next() as u8)),
        _ => {
            let (at, len) = (rng.below(bytes.len() + 1), rng.below(600));
            bytes
                .iter_mut()
                .skip(at)
                .take(len)
                .for_each(|b| *b = rng.next() as u8);
        }
    }
    overwrite(fs, path, &bytes);
}

/// Appends one data entry of a size, whose bytes are its own.
pub fn append_one(log: &Log, term: u64, bytes: usize) {
    let bounds = log.bounds();
    let id = EntryId {
        term,
        index: bounds.last.map_or(0, |last| last.index + 1),
    };
    let entry = Entry {
        id,
        kind: Kind::Data,
        base_offset: bounds.end_offset,
        records: 1,
        max_timestamp: id.index as i64 * 10,
        head: Bytes::new(),
        body: vec![id.index as u8 + 1; bytes].into(),
    };
    log.append(vec![entry], Box::new(|_| {})).unwrap();
}

/// The entry of an index in a log where each has one record.
pub fn entry(index: u64) -> Entry {
    Entry {
        id: EntryId { term: 1, index },
        kind: Kind::Data,
        base_offset: index as i64,
        records: 1,
        max_timestamp: -1,
        head: Bytes::new(),
        body: vec![index as u8; 300].into(),
    }
}
