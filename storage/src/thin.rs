//! The simplest honest store behind the door: one file, one committer, fdatasync before every answer,
//! everything in memory. It stands in while the engine proper is being built, and goes when that lands.

use crate::*;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct DiskOptions {
    pub wal_file_bytes: u64,
    pub wal_budget_bytes: u64,
    pub checkpoint_every: Duration,
    pub tail_budget_bytes: usize,
    pub reserve_bytes: u64,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            wal_file_bytes: 64 << 20,
            wal_budget_bytes: 1 << 30,
            checkpoint_every: Duration::from_secs(10),
            tail_budget_bytes: 32 << 20,
            reserve_bytes: 256 << 20,
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub struct RecoveryProgress {
    pub done_logs: usize,
    pub total_logs: usize,
    pub bytes_replayed: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LogError(String);

#[derive(Debug, Clone, Copy)]
pub struct DiskIdentity {
    pub id: u128,
    pub start: u64,
    pub clean_shutdown: bool,
}

#[derive(Debug, Clone)]
pub struct Space {
    pub free_bytes: u64,
    pub total_bytes: u64,
    pub accepting: bool,
    pub poisoned: Option<String>,
}

#[derive(Debug, Clone)]
pub struct LogOptions {
    pub segment_bytes: u32,
    pub segment_ms: Option<i64>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 128 << 20,
            segment_ms: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub purged: Option<EntryId>,
    pub first_index: u64,
    pub last: Option<EntryId>,
    pub durable: Option<EntryId>,
    pub start_offset: i64,
    pub end_offset: i64,
}

#[derive(Debug, Clone)]
pub struct Captured {
    pub applied: EntryId,
    pub state: Bytes,
}

pub trait StateSource: Send + Sync {
    fn capture(&self) -> Option<Captured>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub index: u64,
    pub term: u64,
    pub base_offset: i64,
    pub max_timestamp: i64,
    pub position: u64,
    pub length: u32,
    pub records: u32,
    pub kind: Kind,
    pub payload_crc: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TermStart {
    pub term: u64,
    pub index: u64,
    pub offset: i64,
}

#[derive(Debug, Clone)]
pub struct SegmentInfo {
    pub base_offset: i64,
    pub last: EntryId,
    pub next_offset: i64,
    pub bytes: u64,
    pub max_timestamp: i64,
    pub sealed: bool,
}

#[derive(Debug, Clone)]
pub struct ReadPlan {
    pub slices: Vec<Bytes>,
    pub bytes: usize,
    pub next_offset: i64,
    pub resident: bool,
}

impl ReadPlan {
    pub fn warm(&self) {}
}

enum Op {
    Append(LogKey, Vec<Entry>),
    Vote(LogKey, Bytes),
    Truncate(LogKey, Option<u64>),
    Purge(LogKey, EntryId),
    Delete(LogKey),
}

struct Inner {
    logs: Mutex<HashMap<LogKey, Log>>,
    queue: Mutex<(Vec<(Op, Done)>, bool)>,
    wake: Condvar,
    identity: DiskIdentity,
}

#[derive(Clone)]
pub struct Disk(Arc<Inner>);

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<u64, Entry>,
    purged: Option<EntryId>,
    end_offset: i64,
    start_offset: i64,
    vote: Option<Bytes>,
}

struct LogInner {
    key: LogKey,
    state: Mutex<State>,
    disk: std::sync::Weak<Inner>,
}

#[derive(Clone)]
pub struct Log(Arc<LogInner>);

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Log")
    }
}

impl Disk {
    pub fn open(
        root: &Path,
        _opts: DiskOptions,
        _progress: &dyn Fn(RecoveryProgress),
    ) -> Result<Disk, OpenError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        std::fs::create_dir_all(root).map_err(at(root))?;
        let path = root.join("wal");
        let mut bytes = Vec::new();
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(&path)
            .map_err(at(&path))?;
        file.read_to_end(&mut bytes).map_err(at(&path))?;
        let idpath = root.join("identity");
        let (id, start) = match std::fs::read_to_string(&idpath) {
            Ok(s) => {
                let mut p = s.split(' ');
                (
                    p.next().and_then(|x| x.parse().ok()).unwrap_or(1),
                    p.next().and_then(|x| x.parse::<u64>().ok()).unwrap_or(0) + 1,
                )
            }
            Err(_) => (
                std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .map(|d| d.as_nanos())
                    .unwrap_or(1),
                1,
            ),
        };
        std::fs::write(&idpath, format!("{id} {start}")).map_err(at(&idpath))?;
        let inner = Arc::new(Inner {
            logs: Mutex::default(),
            queue: Mutex::default(),
            wake: Condvar::new(),
            identity: DiskIdentity {
                id,
                start,
                clean_shutdown: false,
            },
        });
        let disk = Disk(inner.clone());
        disk.replay(&bytes);
        std::thread::spawn(move || committer(inner, file));
        Ok(disk)
    }
    fn replay(&self, mut b: &[u8]) {
        while b.len() >= 8 {
            let len = u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize;
            let crc = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
            if b.len() < 8 + len || crc32fast::hash(&b[8..8 + len]) != crc {
                break;
            }
            self.redo(&b[8..8 + len]);
            b = &b[8 + len..];
        }
    }
    fn redo(&self, b: &[u8]) {
        let u64at = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().unwrap_or_default());
        let u32at = |i: usize| u32::from_le_bytes(b[i..i + 4].try_into().unwrap_or_default());
        let mut topic = [0; 16];
        topic.copy_from_slice(&b[1..17]);
        let key = LogKey {
            topic,
            partition: u32at(17),
        };
        if b[0] == 4 {
            self.0.logs.lock().remove(&key);
            return;
        }
        let Ok(log) = self.open_log(key, LogOptions::default()) else {
            return;
        };
        let mut s = log.0.state.lock();
        match b[0] {
            0 => {
                let kind = if b[21] == 255 {
                    Kind::Data
                } else {
                    Kind::Control(b[21])
                };
                let e = Entry {
                    id: EntryId {
                        term: u64at(22),
                        index: u64at(30),
                    },
                    kind,
                    base_offset: u64at(38) as i64,
                    records: u32at(46),
                    max_timestamp: u64at(50) as i64,
                    head: Bytes::new(),
                    body: Bytes::copy_from_slice(&b[58..]),
                };
                s.end_offset = e.base_offset + i64::from(e.records);
                s.entries.insert(e.id.index, e);
            }
            1 => s.vote = Some(Bytes::copy_from_slice(&b[21..])),
            2 => s.truncate(if b[21] == 1 { Some(u64at(22)) } else { None }),
            _ => s.purge(EntryId {
                term: u64at(21),
                index: u64at(29),
            }),
        }
    }
    pub fn identity(&self) -> DiskIdentity {
        self.0.identity
    }
    pub fn logs(&self) -> Vec<LogKey> {
        self.0.logs.lock().keys().copied().collect()
    }
    pub fn open_log(&self, key: LogKey, _: LogOptions) -> Result<Log, LogError> {
        Ok(self
            .0
            .logs
            .lock()
            .entry(key)
            .or_insert_with(|| {
                Log(Arc::new(LogInner {
                    key,
                    state: Mutex::default(),
                    disk: Arc::downgrade(&self.0),
                }))
            })
            .clone())
    }
    pub fn log(&self, key: LogKey) -> Option<Log> {
        self.0.logs.lock().get(&key).cloned()
    }
    pub fn delete_log(&self, key: LogKey) -> Result<(), LogError> {
        self.0.logs.lock().remove(&key);
        self.0.push(Op::Delete(key), Box::new(|_| {}));
        Ok(())
    }
    pub fn space(&self) -> Space {
        Space {
            free_bytes: 0,
            total_bytes: 0,
            accepting: true,
            poisoned: None,
        }
    }
    pub fn close(self) -> Result<(), LogError> {
        Ok(())
    }
    pub fn on_fatal(&self, _: Box<dyn Fn(&str) + Send + Sync>) {}
}

impl Inner {
    fn push(&self, op: Op, done: Done) {
        self.queue.lock().0.push((op, done));
        self.wake.notify_one();
    }
}

fn put(out: &mut Vec<u8>, body: Vec<u8>) {
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(crc32fast::hash(&body).to_le_bytes());
    out.extend(body);
}

fn encode(out: &mut Vec<u8>, op: &Op) {
    let start = |kind: u8, key: &LogKey| {
        let mut b = vec![kind];
        b.extend(key.topic);
        b.extend(key.partition.to_le_bytes());
        b
    };
    match op {
        Op::Append(key, entries) => {
            for e in entries {
                let mut b = start(0, key);
                b.push(match e.kind {
                    Kind::Data => 255,
                    Kind::Control(n) => n,
                });
                for v in [e.id.term, e.id.index, e.base_offset as u64] {
                    b.extend(v.to_le_bytes());
                }
                b.extend(e.records.to_le_bytes());
                b.extend(e.max_timestamp.to_le_bytes());
                b.extend(&e.head);
                b.extend(&e.body);
                put(out, b);
            }
        }
        Op::Vote(key, v) => {
            let mut b = start(1, key);
            b.extend(v);
            put(out, b);
        }
        Op::Truncate(key, i) => {
            let mut b = start(2, key);
            b.push(u8::from(i.is_some()));
            b.extend(i.unwrap_or(0).to_le_bytes());
            put(out, b);
        }
        Op::Purge(key, id) => {
            let mut b = start(3, key);
            b.extend(id.term.to_le_bytes());
            b.extend(id.index.to_le_bytes());
            put(out, b);
        }
        Op::Delete(key) => {
            let b = start(4, key);
            put(out, b);
        }
    }
}

fn committer(inner: Arc<Inner>, mut file: File) {
    loop {
        let batch = {
            let mut q = inner.queue.lock();
            while q.0.is_empty() {
                inner.wake.wait(&mut q);
            }
            std::mem::take(&mut q.0)
        };
        let mut out = Vec::new();
        batch.iter().for_each(|(op, _)| encode(&mut out, op));
        let result = file.write_all(&out).and_then(|()| file.sync_data());
        for (_, done) in batch {
            done(
                result
                    .as_ref()
                    .map(|_| ())
                    .map_err(|e| io::Error::new(e.kind(), e.to_string())),
            );
        }
    }
}

impl State {
    fn truncate(&mut self, keep: Option<u64>) {
        let from = keep.map_or(0, |k| k + 1);
        let cut = self.entries.split_off(&from);
        if let Some(first) = cut.values().next() {
            self.end_offset = first.base_offset;
        }
    }
    fn purge(&mut self, upto: EntryId) {
        self.entries = self.entries.split_off(&(upto.index + 1));
        self.purged = Some(upto);
        self.start_offset = self
            .entries
            .values()
            .next()
            .map_or(self.end_offset, |e| e.base_offset);
    }
}

fn row(e: &Entry) -> Row {
    Row {
        index: e.id.index,
        term: e.id.term,
        base_offset: e.base_offset,
        max_timestamp: e.max_timestamp,
        position: 0,
        length: (e.head.len() + e.body.len()) as u32,
        records: e.records,
        kind: e.kind,
        payload_crc: 0,
    }
}

impl Log {
    fn push(&self, op: Op, done: Done) -> Result<(), LogError> {
        self.0
            .disk
            .upgrade()
            .ok_or_else(|| LogError("closed".into()))?
            .push(op, done);
        Ok(())
    }
    pub fn key(&self) -> LogKey {
        self.0.key
    }
    pub fn set_options(&self, _: LogOptions) {}
    pub fn bounds(&self) -> Bounds {
        let s = self.0.state.lock();
        let last = s.entries.values().next_back().map(|e| e.id).or(s.purged);
        Bounds {
            purged: s.purged,
            first_index: s.purged.map_or_else(
                || s.entries.keys().next().copied().unwrap_or(0),
                |p| p.index + 1,
            ),
            last,
            durable: last,
            start_offset: s.start_offset,
            end_offset: s.end_offset,
        }
    }
    pub fn append(&self, entries: Vec<Entry>, done: Done) -> Result<(), LogError> {
        let mut s = self.0.state.lock();
        for e in &entries {
            s.end_offset = e.base_offset + i64::from(e.records);
            s.entries.insert(e.id.index, e.clone());
        }
        self.push(Op::Append(self.0.key, entries), done)
    }
    pub fn truncate_after(&self, keep: Option<u64>, done: Done) -> Result<(), LogError> {
        self.0.state.lock().truncate(keep);
        self.push(Op::Truncate(self.0.key, keep), done)
    }
    pub fn purge_to(&self, upto: EntryId, done: Done) -> Result<(), LogError> {
        self.0.state.lock().purge(upto);
        self.push(Op::Purge(self.0.key, upto), done)
    }
    pub fn save_vote(&self, vote: Bytes, done: Done) -> Result<(), LogError> {
        self.0.state.lock().vote = Some(vote.clone());
        self.push(Op::Vote(self.0.key, vote), done)
    }
    pub fn vote(&self) -> Option<Bytes> {
        self.0.state.lock().vote.clone()
    }
    pub fn entries(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, LogError> {
        let mut n = 0usize;
        Ok(self
            .0
            .state
            .lock()
            .entries
            .range(from..to)
            .map(|(_, e)| e)
            .take_while(|e| {
                let first = n == 0;
                n += 1 + e.head.len() + e.body.len();
                first || n <= max_bytes
            })
            .cloned()
            .collect())
    }
    pub fn entry_row(&self, index: u64) -> Option<Row> {
        self.0.state.lock().entries.get(&index).map(row)
    }
    pub fn read(
        &self,
        offset: i64,
        limit: i64,
        max_bytes: usize,
        at_least_one: bool,
    ) -> Result<ReadPlan, LogError> {
        let s = self.0.state.lock();
        let mut plan = ReadPlan {
            slices: Vec::new(),
            bytes: 0,
            next_offset: offset,
            resident: true,
        };
        for e in s
            .entries
            .values()
            .filter(|e| e.kind == Kind::Data && e.base_offset + i64::from(e.records) > offset)
        {
            let len = e.head.len() + e.body.len();
            if e.base_offset >= limit
                || (plan.bytes + len > max_bytes && !(at_least_one && plan.bytes == 0))
            {
                break;
            }
            plan.slices.extend(
                [e.head.clone(), e.body.clone()]
                    .into_iter()
                    .filter(|b| !b.is_empty()),
            );
            plan.bytes += len;
            plan.next_offset = e.base_offset + i64::from(e.records);
        }
        Ok(plan)
    }
    pub fn row_at_offset(&self, offset: i64) -> Option<Row> {
        self.0
            .state
            .lock()
            .entries
            .values()
            .find(|e| e.records > 0 && e.base_offset + i64::from(e.records) > offset)
            .map(row)
    }
    pub fn row_at_time(&self, ts: i64, from: i64) -> Option<Row> {
        self.0
            .state
            .lock()
            .entries
            .values()
            .find(|e| {
                e.records > 0
                    && e.max_timestamp >= ts
                    && e.base_offset + i64::from(e.records) > from
            })
            .map(row)
    }
    pub fn row_max_time(&self, from: i64, limit: i64) -> Option<Row> {
        self.0
            .state
            .lock()
            .entries
            .values()
            .filter(|e| e.records > 0 && e.base_offset >= from && e.base_offset < limit)
            .max_by_key(|e| (e.max_timestamp, std::cmp::Reverse(e.base_offset)))
            .map(row)
    }
    pub fn terms(&self) -> Vec<TermStart> {
        let mut out: Vec<TermStart> = Vec::new();
        for e in self.0.state.lock().entries.values() {
            if out.last().is_none_or(|t| t.term != e.id.term) {
                out.push(TermStart {
                    term: e.id.term,
                    index: e.id.index,
                    offset: e.base_offset,
                });
            }
        }
        out
    }
    pub fn segments(&self) -> Vec<SegmentInfo> {
        Vec::new()
    }
    pub fn size_bytes(&self) -> u64 {
        self.0
            .state
            .lock()
            .entries
            .values()
            .map(|e| (e.head.len() + e.body.len()) as u64)
            .sum()
    }
    pub fn recovered_state(&self) -> Option<Captured> {
        None
    }
    pub fn set_state_source(&self, _: Arc<dyn StateSource>) {}
}

pub mod retention {
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Policy {
        pub max_bytes: Option<u64>,
        pub max_age_ms: Option<i64>,
    }
    pub fn expired(_: &[crate::SegmentInfo], _: Policy, _: i64) -> Option<i64> {
        None
    }
}
