//! Keyed records, tombstones and compactions on a simulated disk, beside a list of what was written: whatever
//! happens, a reader from the start meets the last record of every key, no record that was never written, and
//! each at its own offset.

use super::keys::KeyHasher;
use super::run::{Done, RunError, Task};
use bytes::Bytes;
use logd_proto::record_batch::{
    BatchBuilder, BatchHeader, Compression, Records, batches, patched_header,
};
use logd_storage::vfs::{Fault, SimFs, Vfs};
use logd_storage::{Disk, DiskOptions, Entry, EntryId, Kind, Log, LogKey, LogOptions};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const KEY: LogKey = LogKey {
    topic: [9; 16],
    partition: 0,
};

type Record = (Vec<u8>, Option<Vec<u8>>);

fn open(fs: &SimFs) -> Result<(Disk, Log), String> {
    let shared: Arc<dyn Vfs> = Arc::new(fs.clone());
    let options = DiskOptions {
        wal_file_bytes: 256 << 10,
        wal_budget_bytes: 4 << 20,
        reserve_bytes: 0,
        // Checkpoints are asked for: a step is then the same in every run.
        checkpoint_every: Duration::from_secs(3_600),
        ..DiskOptions::default()
    };
    let disk =
        Disk::open(shared, Path::new("/data"), options, &|_| {}).map_err(|e| e.to_string())?;
    let options = LogOptions {
        segment_bytes: 2 << 10,
        ..LogOptions::default()
    };
    let log = disk.open_log(KEY, options).map_err(|e| e.to_string())?;
    log.set_floor(0);
    Ok((disk, log))
}

/// What was acknowledged, by offset, and what is told apart of producers.
#[derive(Default)]
struct Written {
    records: BTreeMap<i64, Record>,
    /// First offsets of the last batch of each producer.
    last_batches: BTreeMap<i64, i64>,
}

impl Written {
    fn last_of_each_key(&self) -> BTreeMap<&[u8], (i64, Option<&[u8]>)> {
        let records = self.records.iter();
        records
            .map(|(o, (k, v))| (&k[..], (*o, v.as_deref())))
            .collect()
    }

    fn remembered(&self) -> HashSet<i64> {
        self.last_batches.values().copied().collect()
    }

    /// Appends a batch and waits until it is durable. False if the disk does not take it.
    fn append(&mut self, log: &Log, producer: i64, records: &[Record], codec: Compression) -> bool {
        let bounds = log.bounds();
        let base = bounds.end_offset;
        let mut batch = BatchBuilder::new()
            .producer(producer, 0, base as i32)
            .compression(codec);
        for (key, value) in records {
            batch.push(base, Some(key), value.as_deref(), &[]).unwrap();
        }
        let batch = batch.build().unwrap();
        let head = patched_header(&batch, base, 1).unwrap();
        let entry = Entry {
            id: EntryId {
                term: 1,
                index: bounds.last.map_or(0, |last| last.index + 1),
            },
            kind: Kind::Data,
            base_offset: base,
            records: records.len() as u32,
            max_timestamp: base,
            head: Bytes::copy_from_slice(&head),
            body: batch.slice(head.len()..),
        };
        let (tell, told) = std::sync::mpsc::channel();
        let done = move |result: std::io::Result<()>| tell.send(result.is_ok()).unwrap_or_default();
        let taken = log.append(vec![entry], Box::new(done)).is_ok();
        if taken && told.recv().unwrap_or(false) {
            for (offset, record) in (base..).zip(records) {
                self.records.insert(offset, record.clone());
            }
            self.last_batches.insert(producer, base);
            return true;
        }
        false
    }

    fn compact(&self, log: &Log, map_bytes: usize) -> Result<Done, RunError> {
        leave_raft_log(log);
        let segments: Vec<_> = log.base_segments().iter().map(|s| s.info()).collect();
        let from = segments.iter().find(|s| !s.clean).map(|s| s.base_offset);
        let (Some(from), Some(last)) = (from, segments.last()) else {
            return Ok(Done::default());
        };
        let task = Task {
            log,
            from,
            to: last.next_offset,
            segment_bytes: 2 << 10,
            map_bytes,
            hasher: KeyHasher([7, 8]),
            now_ms: 0,
            horizon_ms: 1_000_000,
            remembered: &|| self.remembered(),
            pace: &|_| Box::pin(std::future::ready(true)),
        };
        let mut done = Done::default();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().build().unwrap();
        runtime.block_on(task.run(&mut done)).map(|()| done)
    }

    /// Reads all there is and compares. Returns how many records are left.
    fn check(&self, log: &Log, when: &str) -> usize {
        let bounds = log.bounds();
        let end = self.records.keys().next_back().map_or(0, |last| last + 1);
        assert!(
            bounds.end_offset >= end,
            "{when}: {bounds:?} lost what was acknowledged"
        );
        let mut seen: BTreeMap<Vec<u8>, (i64, Option<Vec<u8>>)> = BTreeMap::new();
        let (mut headers, mut count, mut next) = (BTreeMap::new(), 0, 0);
        while next < end {
            let plan = log.read(next, end, 700, true).unwrap();
            plan.warm().unwrap();
            assert!(plan.bytes > 0, "{when}: nothing from {next} on");
            for batch in plan.slices.into_iter().flat_map(batches) {
                let (header, bytes) = batch.unwrap();
                logd_proto::record_batch::verify_checksum(&bytes, &header).unwrap();
                assert!(header.next_offset() > next, "{when}: batches go forward");
                next = header.next_offset();
                headers.insert(header.base_offset, header);
                for record in &Records::open(&bytes, 1 << 20).unwrap() {
                    let r = record.unwrap();
                    let written = self.records.get(&r.offset).unwrap_or_else(|| {
                        panic!("{when}: a record at {} that nobody wrote", r.offset)
                    });
                    let now = (r.key.unwrap().to_vec(), r.value.map(<[u8]>::to_vec));
                    assert_eq!(&now, written, "{when}: at offset {}", r.offset);
                    seen.insert(now.0, (r.offset, now.1));
                    count += 1;
                }
            }
        }
        for (key, (offset, value)) in self.last_of_each_key() {
            let found = seen.get(key).map(|(o, v)| (*o, v.as_deref()));
            assert_eq!(found, Some((offset, value)), "{when}: the last of {key:?}");
        }
        for (producer, base) in &self.last_batches {
            let header: Option<&BatchHeader> = headers.get(base);
            let number = header.map(|h| (h.producer_id, h.base_sequence));
            assert_eq!(
                number,
                Some((*producer, *base as i32)),
                "{when}: a producer's last batch"
            );
        }
        self.check_entries(log, when);
        count
    }

    /// The Raft log has no hole.
    fn check_entries(&self, log: &Log, when: &str) {
        let bounds = log.bounds();
        let last = bounds.last.unwrap();
        let begins = log.entry_row(bounds.first_index);
        let begins = begins.map_or(bounds.end_offset, |row| row.base_offset);
        let (mut next, mut offset) = (bounds.first_index, begins);
        while next <= last.index {
            for entry in log.entries(next, last.index + 1, 1_000).unwrap() {
                assert_eq!(
                    (entry.id.index, entry.base_offset),
                    (next, offset),
                    "{when}"
                );
                next += 1;
                offset += i64::from(entry.records);
            }
        }
        assert_eq!(offset, bounds.end_offset, "{when}");
    }
}

/// Moves what may be compacted out of the Raft log. Without power that fails, and nothing moves.
fn leave_raft_log(log: &Log) {
    let segments = log.segments();
    let newest = segments.iter().rposition(|s| s.next_offset > s.base_offset);
    let old = newest.and_then(|at| segments.get(at.checked_sub(1)?));
    let (tell, told) = std::sync::mpsc::channel();
    let done = move |result: std::io::Result<()>| tell.send(result).unwrap_or_default();
    if let Some(old) = old
        && log.purge_to(old.last, Box::new(done)).is_ok()
    {
        let _ = told.recv();
    }
}

/// xorshift64*: the same everywhere.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    fn records(&mut self, keys: u64) -> Vec<Record> {
        let count = 1 + self.below(4);
        let record = |rng: &mut Self| {
            let key = format!("key {}", rng.below(keys)).into_bytes();
            let value =
                (rng.below(5) > 0).then(|| vec![rng.below(256) as u8; 20 + rng.below(90) as usize]);
            (key, value)
        };
        (0..count).map(|_| record(self)).collect()
    }
}

/// Appends until the disk takes no more.
fn fill(written: &mut Written, log: &Log, rng: &mut Rng, keys: u64, appends: usize) {
    for _ in 0..appends {
        let records = rng.records(keys);
        let codec = Compression::ALL[rng.below(5) as usize];
        let producer = rng.below(3) as i64;
        if !written.append(log, producer, &records, codec) {
            return;
        }
    }
}

/// Waits until what was written has left memory: only then is it compacted.
fn settle(disk: &Disk) {
    disk.checkpoint().unwrap();
}

#[test]
fn of_each_key_the_last_record_stays_and_small_segments_become_few() {
    let fs = SimFs::new(1);
    let (disk, log) = open(&fs).unwrap();
    let (mut written, mut rng) = (Written::default(), Rng(11));
    fill(&mut written, &log, &mut rng, 6, 200);
    settle(&disk);
    let before = (log.segments().len(), log.size_bytes());
    let done = written.compact(&log, 1 << 20).unwrap();
    let left = written.check(&log, "compacted");
    assert!(done.removed > 300 && done.passes == 1, "{done:?}");
    let last_segment = log.segments().last().unwrap().base_offset;
    let active = written.records.range(last_segment..).count();
    assert!(left <= 6 + active, "{left} records are left");
    assert!(log.size_bytes() < before.1 / 4);
    let again = written.compact(&log, 1 << 20).unwrap();
    assert_eq!(again, Done::default(), "a clean log is left alone");
    fill(&mut written, &log, &mut rng, 6, 30);
    settle(&disk);
    let (of_now, of_then) = (log.segments().len(), before.0);
    assert!(
        of_now >= of_then,
        "what was compacted is small, and not fewer"
    );
    written.compact(&log, 1 << 20).unwrap();
    written.check(&log, "compacted again");
    let fewer = log.segments().len();
    assert!(fewer < of_then / 2, "{fewer} of {of_then} segments");
}

#[test]
fn more_keys_than_fit_take_several_passes_and_come_to_the_same() {
    let fs = SimFs::new(2);
    let (disk, log) = open(&fs).unwrap();
    let (mut written, mut rng) = (Written::default(), Rng(12));
    fill(&mut written, &log, &mut rng, 150, 400);
    settle(&disk);
    let done = written.compact(&log, 0).unwrap();
    assert!(done.passes > 3, "{done:?}");
    let left = written.check(&log, "compacted in passes");
    let last_segment = log.segments().last().unwrap().base_offset;
    let active = written.records.range(last_segment..).count();
    assert!(left <= 150 + active, "{left} records are left");
}

#[test]
fn whoever_reads_while_a_segment_is_replaced_reads_on() {
    let fs = SimFs::new(3);
    let (disk, log) = open(&fs).unwrap();
    let (mut written, mut rng) = (Written::default(), Rng(13));
    let over = AtomicU64::new(0);
    fill(&mut written, &log, &mut rng, 40, 150);
    settle(&disk);
    let written = &written;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while over.load(Ordering::Acquire) == 0 {
                    written.check(&log, "while it is compacted");
                }
            });
        }
        for _ in 0..20 {
            let compacted = written.compact(&log, 0);
            // From the start again, as a log that nobody has compacted.
            for segment in log.base_segments() {
                let mut rewriter = log.rewriter(std::slice::from_ref(&segment)).unwrap();
                for entry in segment.entries().unwrap() {
                    let (row, bytes) = entry.unwrap();
                    if bytes.is_empty() {
                        continue;
                    }
                    rewriter.push(&row, &bytes, row.max_timestamp).unwrap();
                }
                rewriter.swap(false, Box::new(|_| {})).unwrap();
            }
            compacted.unwrap();
        }
        over.store(1, Ordering::Release);
    });
    assert!(log.fenced().is_none());
}

/// Compaction with the power gone at the n-th change of the disk; then again with none.
#[test]
fn power_may_go_at_any_step_of_a_compaction() {
    let mut finished = false;
    for n in 1..2_000 {
        let fs = SimFs::new(n);
        let (mut written, mut rng) = (Written::default(), Rng(14));
        {
            let (disk, log) = open(&fs).unwrap();
            fill(&mut written, &log, &mut rng, 60, 90);
            // With and without a checkpoint that knows the old segments.
            if n % 2 == 0 {
                settle(&disk);
            } else {
                while log.is_in_memory(0) || log.segments().len() < 4 {
                    std::thread::yield_now();
                }
            }
            fs.inject(Fault::PowerAfter(n));
            let compacted = written.compact(&log, 0);
            let _ = disk.checkpoint();
            finished = compacted.is_ok() && disk.space().poisoned.is_none();
        }
        fs.reboot();
        let when = format!("power cut at {n}");
        let (disk, log) = open(&fs).unwrap_or_else(|e| panic!("{when}: {e}"));
        written.check(&log, &when);
        settle(&disk);
        written.compact(&log, 1 << 20).unwrap();
        written.check(&log, &format!("{when}, compacted after it"));
        drop((disk, log));
        let (_disk, log) = open(&fs).unwrap();
        written.check(&log, &format!("{when}, opened again"));
        if finished {
            break;
        }
    }
    assert!(finished, "some compaction has all the power it needs");
}

#[test]
fn random_lives_lose_no_key_and_raise_none() {
    for seed in 1..12 {
        let fs = SimFs::new(seed);
        let (mut written, mut rng) = (Written::default(), Rng(seed * 77));
        for life in 0..6 {
            let (disk, log) = open(&fs).unwrap();
            let when = format!("seed {seed}, life {life}");
            if !written.records.is_empty() {
                written.check(&log, &when);
            }
            // What was in flight when power went may be there all the same: it was never acknowledged.
            assert_eq!(
                log.bounds().end_offset,
                written.records.len() as i64,
                "{when}"
            );
            for _ in 0..3 {
                fill(&mut written, &log, &mut rng, 30, 30);
                settle(&disk);
                written.compact(&log, 0).unwrap();
                written.check(&log, &when);
                if rng.below(3) == 0 {
                    settle(&disk);
                }
            }
            if rng.below(2) == 0 {
                fs.inject(Fault::PowerAfter(1 + rng.below(30)));
                let _ = written.compact(&log, 1 << 20);
                let _ = disk.checkpoint();
            }
            drop((disk, log));
            fs.reboot();
        }
    }
}

#[test]
fn a_damaged_segment_stops_the_run_and_nothing_else() {
    let fs = SimFs::new(5);
    let (disk, log) = open(&fs).unwrap();
    let (mut written, mut rng) = (Written::default(), Rng(15));
    fill(&mut written, &log, &mut rng, 6, 100);
    settle(&disk);
    drop((disk, log));
    let (disk, log) = open(&fs).unwrap();
    let first = fs
        .files()
        .into_iter()
        .find(|f| f.extension().is_some_and(|e| e == "log"));
    let path = first.unwrap();
    let how = logd_storage::vfs::Open {
        read: true,
        write: true,
        ..Default::default()
    };
    let file = fs.open(&path, how).unwrap();
    file.write_all_at(&[std::io::IoSlice::new(&[0xff; 8])], 100)
        .unwrap();
    let outcome = written.compact(&log, 1 << 20);
    assert!(matches!(outcome, Err(RunError::Read(_))), "{outcome:?}");
    assert!(log.fenced().is_some(), "whoever mends logs is told");
    assert!(disk.space().poisoned.is_none());
}
