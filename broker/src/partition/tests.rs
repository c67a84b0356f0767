//! A partition through its own door, over a real disk in a temporary folder.

use super::producers::Sequence;
use super::*;
use crate::raft::{ProposeError, Refusal};
use logd_proto::record_batch::{BatchBuilder, BatchHeader};
use logd_storage::vfs::{Fault, RealFs, SimFs};
use logd_storage::{DiskOptions, LogKey, Pump};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// A partition that leads and serves, and the folder it lies in.
pub(super) async fn open() -> (tempfile::TempDir, Arc<Partition>) {
    open_at(Arc::new(|| 0)).await
}

async fn open_at(clock: Clock) -> (tempfile::TempDir, Arc<Partition>) {
    let dir = tempfile::tempdir().unwrap();
    let options = DiskOptions::default();
    let disk = Disk::open(Arc::new(RealFs), dir.path(), options, &|_| {}).unwrap();
    (dir, open_on(disk, clock).await)
}

async fn open_on(disk: Disk, clock: Clock) -> Arc<Partition> {
    let partition = opened_on(disk, clock).await;
    partition.serving(PATIENCE).await.unwrap();
    partition
}

/// Opened; what comes of it is for the caller to wait for.
async fn opened_on(disk: Disk, clock: Clock) -> Arc<Partition> {
    let config = Arc::new(TopicConfig::default());
    let key = LogKey {
        topic: [7; 16],
        partition: 0,
    };
    let log = disk.open_log(key, config.log_options()).unwrap();
    let spec = Spec {
        topic_id: Uuid::from_bytes([7; 16]),
        topic: "t".into(),
        index: 0,
        replica: 1,
        node_of: Arc::new(|disk| i32::try_from(disk).ok()),
        founders: BTreeSet::from([1]),
        founds: true,
        floor: 0,
        generation: 0,
        begins: 0,
        internal: false,
        heard_by: Arc::new(|_| false),
        lapses: Arc::new(|| 0),
        timers: Timers::None,
        links: Links {
            transport: Arc::new(crate::raft::Alone),
            throttle: crate::raft::Throttle::new(0),
            exchange: crate::raft::Exchange::new(
                Arc::new(|_| false),
                Arc::new(|| true),
                Arc::new(|| true),
            ),
        },
        on_role: Arc::new(|_| {}),
        config,
        producer_expiration_ms: Arc::new(|| 1_000),
        clock,
    };
    Partition::open(spec, disk, log).await.unwrap()
}

pub(super) fn valid(bytes: Bytes) -> ValidBatch {
    let header = BatchHeader::parse(&bytes).unwrap();
    ValidBatch { bytes, header }
}

fn numbered(producer: i64, first: i32) -> ValidBatch {
    let mut batch = BatchBuilder::new().producer(producer, 0, first);
    batch.push(5, None, Some(b"value"), &[]).unwrap();
    valid(batch.build().unwrap())
}

/// Looks at a future once, as a connection's task does when it is woken.
async fn glance(future: &mut (impl Future + Unpin)) -> bool {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_ready())).await
}

async fn landed(appending: Appending) -> Result<Appended, AppendError> {
    tokio::time::timeout(PATIENCE, appending)
        .await
        .expect("a batch's fate is known in time")
}

#[tokio::test]
async fn a_batch_that_waits_for_its_turn_does_not_stop_the_connection_that_holds_it() {
    let (_dir, partition) = open().await;
    // Producer 9 has a batch in the air, so one behind a gap waits.
    let mut queue = partition.queue.lock().await;
    let ghost = Sequence::new(9, 0, 0, 1);
    partition.judge(&mut queue, partition.leadership(), &ghost);
    queue.flights.took_off(ghost, Refusal::default());
    drop(queue);
    let mut waiting = partition.append(numbered(9, 5)).await.unwrap();
    assert!(!glance(&mut waiting).await, "it waits");

    // It is woken by a commit while somebody else is in the queue, and gets in line.
    let queue = partition.queue.lock().await;
    let batch = numbered(10, 0);
    let proposal = crate::raft::Proposal::data(batch.bytes, 1, 5);
    partition
        .group
        .propose(proposal)
        .await
        .unwrap()
        .await
        .unwrap();
    assert!(!glance(&mut waiting).await, "it still waits");

    // Its connection hands the next request over and looks at nothing else until that is queued.
    drop(queue);
    let next = tokio::time::timeout(PATIENCE, partition.append(numbered(11, 0))).await;
    let next = next.expect("the queue is not held by who is not looked at");
    assert_eq!(landed(next.unwrap()).await.unwrap().base_offset, 1);
}

#[tokio::test]
async fn a_duplicate_of_what_is_in_the_air_is_answered_with_where_that_lands() {
    let (_dir, partition) = open().await;
    let first = partition.append(numbered(9, 0)).await.unwrap();
    let again = partition.append(numbered(9, 0)).await.unwrap();
    let (first, again) = (landed(first).await.unwrap(), landed(again).await.unwrap());
    assert_eq!((first.base_offset, first.duplicate_of), (0, None));
    assert_eq!((again.base_offset, again.duplicate_of), (0, Some(5)));
    assert_eq!(partition.offsets().high_watermark, 1);
}

#[tokio::test]
async fn a_gap_is_refused_only_once_nothing_flies_before_it() {
    let (_dir, partition) = open().await;
    let first = partition.append(numbered(9, 0)).await.unwrap();
    let gap = fate(&partition, numbered(9, 7)).await;
    let expected = AppendError::OutOfOrderSequence {
        producer_id: 9,
        found: 7,
        expected: 1,
    };
    assert_eq!(gap.unwrap_err(), expected);
    assert_eq!(landed(first).await.unwrap().base_offset, 0);
}

/// What comes of a batch, be it refused at once or later.
async fn fate(partition: &Arc<Partition>, batch: ValidBatch) -> Result<Appended, AppendError> {
    match partition.append(batch).await {
        Ok(appending) => landed(appending).await,
        Err(refused) => Err(refused),
    }
}

// Its client has sent both before it hears of either.
#[tokio::test]
async fn what_comes_behind_a_batch_that_was_refused_is_sent_back_and_not_called_a_gap() {
    let (_dir, partition) = open().await;
    fate(&partition, numbered(9, 0)).await.unwrap();
    let refused = AppendError::NotLeader {
        leader: None,
        epoch: 1,
    };
    partition.note_refusal(Some(Sequence::new(9, 0, 1, 1)), &refused);
    for behind in [2, 3] {
        let expected = AppendError::Behind {
            producer_id: 9,
            missing: 1,
        };
        assert_eq!(fate(&partition, numbered(9, behind)).await, Err(expected));
    }
    for again in 1..4 {
        let there = fate(&partition, numbered(9, again)).await.unwrap();
        assert_eq!(there.base_offset, i64::from(again));
    }
    let gap = fate(&partition, numbered(9, 7)).await;
    assert!(matches!(
        gap,
        Err(AppendError::OutOfOrderSequence { expected: 4, .. })
    ));
}

#[tokio::test]
async fn what_stands_behind_a_batch_that_was_given_up_is_sent_back_and_not_called_a_gap() {
    let (_dir, partition) = open().await;
    fate(&partition, numbered(9, 0)).await.unwrap();
    let (ghost, refusal) = (Sequence::new(9, 0, 1, 1), Refusal::default());
    let mut queue = partition.queue.lock().await;
    partition.judge(&mut queue, partition.leadership(), &ghost);
    queue.flights.took_off(ghost, refusal.clone());
    drop(queue);
    let mut given_up = partition.append(numbered(9, 1)).await.unwrap();
    let mut behind = partition.append(numbered(9, 2)).await.unwrap();
    for waiting in [&mut given_up, &mut behind] {
        assert!(!glance(waiting).await, "what flies may land, or not");
    }
    drop(given_up);
    refusal.set();
    partition.lines.wake();
    let expected = AppendError::Behind {
        producer_id: 9,
        missing: 1,
    };
    assert_eq!(landed(behind).await, Err(expected));
    for again in [1, 2] {
        let there = fate(&partition, numbered(9, again)).await.unwrap();
        assert_eq!(there.base_offset, i64::from(again));
    }
}

// A client that is told of a gap where it left none gives up for good.
#[tokio::test]
async fn batches_that_are_sent_again_are_judged_in_the_order_they_come() {
    let (_dir, partition) = open().await;
    let first = partition.append(numbered(9, 0)).await.unwrap();
    landed(first).await.unwrap();
    let refusal = Refusal::default();
    let mut queue = partition.queue.lock().await;
    partition.judge(
        &mut queue,
        partition.leadership(),
        &Sequence::new(9, 0, 1, 1),
    );
    let ghost = Sequence::new(9, 0, 1, 1);
    queue.flights.took_off(ghost, refusal.clone());
    drop(queue);
    let mut again = Vec::new();
    for first in 1..4 {
        again.push(partition.append(numbered(9, first)).await.unwrap());
    }
    for waiting in &mut again {
        assert!(!glance(waiting).await, "what flies may land, or not");
    }
    refusal.set();
    partition.lines.wake();
    for (waiting, offset) in again.into_iter().zip(1..) {
        assert_eq!(landed(waiting).await.unwrap().base_offset, offset);
    }
}

#[tokio::test]
async fn a_caller_that_gives_up_before_its_batch_is_queued_leaves_no_flight_behind() {
    let (_dir, partition) = open().await;
    let queue = partition.queue.lock().await;
    let mut given_up = Box::pin(partition.append(numbered(9, 0)));
    assert!(!glance(&mut given_up).await, "it waits for the queue");
    drop((given_up, queue));
    let retried = partition.append(numbered(9, 0)).await.unwrap();
    assert_eq!(landed(retried).await.unwrap().duplicate_of, None);
}

#[tokio::test]
async fn a_producer_that_fell_silent_is_forgotten_while_others_go_on() {
    let now = Arc::new(std::sync::atomic::AtomicI64::new(0));
    let clock = now.clone();
    let clock = move || clock.load(std::sync::atomic::Ordering::Relaxed);
    let (_dir, partition) = open_at(Arc::new(clock)).await;
    landed(partition.append(numbered(9, 0)).await.unwrap())
        .await
        .unwrap();
    now.store(1_000, std::sync::atomic::Ordering::Relaxed);
    landed(partition.append(numbered(10, 0)).await.unwrap())
        .await
        .unwrap();
    assert_eq!(partition.producers(), 1, "only the one that is heard of");
}

#[tokio::test]
async fn a_disk_that_is_nearly_full_refuses_clients_and_takes_what_is_internal() {
    let dir = tempfile::tempdir().unwrap();
    let options = DiskOptions {
        reserve_bytes: u64::MAX / 2,
        ..DiskOptions::default()
    };
    let disk = Disk::open(Arc::new(RealFs), dir.path(), options, &|_| {}).unwrap();
    let partition = open_on(disk, Arc::new(|| 0)).await;
    let refused = partition.append(numbered(9, 0)).await.unwrap_err();
    assert_eq!(refused, AppendError::DiskFull);
    let taken = partition.append_internal(numbered(9, 0)).await.unwrap();
    assert_eq!(landed(taken).await.unwrap().base_offset, 0);
}

// What openraft publishes of a group is empty until its core has run once, which a busy machine puts off.
#[tokio::test]
async fn a_replica_that_is_alone_says_so_and_leads_as_soon_as_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = DiskOptions::default();
    let disk = Disk::open(Arc::new(RealFs), dir.path(), options.clone(), &|_| {}).unwrap();
    let founded = open_on(disk.clone(), Arc::new(|| 0)).await;
    founded.close().await;
    drop(founded);
    disk.close().unwrap();
    let disk = Disk::open(Arc::new(RealFs), dir.path(), options, &|_| {}).unwrap();
    let again = opened_on(disk, Arc::new(|| 0)).await;
    assert!(again.is_alone());
    again.serving(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn nothing_is_acknowledged_after_a_write_that_failed() {
    let fs = SimFs::new(1);
    let root = std::path::Path::new("/data");
    let disk = Disk::open(Arc::new(fs.clone()), root, DiskOptions::default(), &|_| {}).unwrap();
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = parking_lot::Mutex::new(Some(tell));
    disk.on_fatal(Box::new(move |why| {
        if let Some(tell) = tell.lock().take() {
            tell.send(why.to_owned()).unwrap();
        }
    }));
    let partition = open_on(disk, Arc::new(|| 0)).await;
    fs.inject(Fault::PowerAfter(1));
    for first in 0..3 {
        let fate = match partition.append(numbered(9, first)).await {
            Ok(appending) => landed(appending).await,
            Err(refused) => Err(refused),
        };
        assert!(fate.is_err(), "{fate:?}");
    }
    let why = tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    assert!(!why.is_empty(), "the process is told to stop");
    assert_eq!(partition.offsets().high_watermark, 0);
}

/// Does the disk's work, now and then.
fn pumping(disk: &Disk) -> tokio::task::JoinHandle<()> {
    let disk = disk.clone();
    tokio::spawn(async move {
        loop {
            while disk.pump() {}
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
}

#[tokio::test(start_paused = true)]
async fn what_is_proposed_seldom_is_waited_for_until_its_deadline_and_may_happen_later() {
    let options = DiskOptions {
        pump: Pump::Manual,
        ..DiskOptions::default()
    };
    let (fs, root) = (SimFs::new(1), std::path::Path::new("/data"));
    let disk = Disk::open(Arc::new(fs), root, options, &|_| {}).unwrap();
    let works = pumping(&disk);
    let partition = open_on(disk.clone(), Arc::new(|| 0)).await;
    landed(partition.append(numbered(9, 0)).await.unwrap())
        .await
        .unwrap();
    works.abort();
    // The disk hangs: nothing becomes durable, and nothing fails.
    let begun = tokio::time::Instant::now();
    let moved = tokio::time::timeout(6 * PATIENCE, partition.move_log_start(1)).await;
    let refused = moved
        .expect("it is not waited for without end")
        .unwrap_err();
    assert!(matches!(refused, ProposeError::Unknown), "{refused}");
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert_eq!(partition.offsets().log_start, 0);
    let _works = pumping(&disk);
    while partition.offsets().log_start < 1 {
        assert!(begun.elapsed() < 6 * PATIENCE, "what was proposed is lost");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Opens what a simulated disk holds. Checkpoints are far away.
async fn open_simulated(fs: &SimFs) -> Arc<Partition> {
    let options = DiskOptions {
        checkpoint_every: Duration::from_secs(3_600),
        reserve_bytes: 0,
        wal_file_bytes: 256 << 10,
        wal_budget_bytes: 4 << 20,
        ..DiskOptions::default()
    };
    let dir = std::path::Path::new("/data");
    let disk = Disk::open(Arc::new(fs.clone()), dir, options, &|_| {}).unwrap();
    open_on(disk, Arc::new(|| 0)).await
}

#[tokio::test]
async fn producers_are_known_after_power_goes_right_behind_a_purge() {
    let fs = SimFs::new(5);
    let partition = open_simulated(&fs).await;
    let first = partition.append(numbered(9, 0)).await.unwrap();
    assert_eq!(landed(first).await.unwrap().base_offset, 0);
    partition.log.roll();
    let second = partition.append(numbered(10, 0)).await.unwrap();
    assert_eq!(landed(second).await.unwrap().base_offset, 1);
    partition.progress.clean_up_to(1);
    let moved = async {
        while partition.log.base_segments().is_empty() {
            partition.group.compact().await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, moved).await.unwrap();
    // Durable, and so is what was purged before it.
    let third = partition.append(numbered(11, 0)).await.unwrap();
    landed(third).await.unwrap();
    partition.close().await;
    drop(partition);
    fs.reboot();

    let partition = open_simulated(&fs).await;
    assert_eq!(partition.log.base_segments().len(), 1);
    for (producer, offset) in [(9, 0), (10, 1), (11, 2)] {
        let again = partition.append(numbered(producer, 0)).await.unwrap();
        let again = landed(again).await.unwrap();
        assert_eq!((again.base_offset, again.duplicate_of), (offset, Some(5)));
    }
}
