//! The shell over a log that is a list: leadership that comes and goes, appends that fail, are
//! slow, or leave it open whether they happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use logd_proto::record_batch::{BatchHeader, patch};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::log::{AppendError, OffsetsLog, OffsetsTopic, ReadError};
use super::tests::{TOPIC_ID, commit, old_client};
use super::*;

/// What the next append comes to.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Prompt,
    Refusing,
    /// The batch is kept, and nobody is told.
    Silent,
}

struct ListLog {
    batches: Mutex<Vec<Bytes>>,
    end: Mutex<i64>,
    epoch: AtomicI32,
    changed: watch::Sender<()>,
    mood: Mutex<Mood>,
    appends: AtomicUsize,
    read_delay: Mutex<Duration>,
}

impl ListLog {
    fn lead(&self, epoch: i32) {
        self.epoch.store(epoch, Ordering::SeqCst);
        self.changed.send_replace(());
    }

    fn keep(&self, batch: &Bytes) {
        let mut end = self.end.lock();
        let mut bytes = batch.to_vec();
        patch(&mut bytes, *end, 1);
        *end = BatchHeader::parse(&bytes).unwrap().next_offset();
        self.batches.lock().push(bytes.into());
    }
}

/// The one partition of a small topic.
#[derive(Clone)]
struct Shelf(Arc<ListLog>);

impl OffsetsTopic for Shelf {
    fn partitions(&self) -> i32 {
        1
    }

    fn partition(&self, _index: i32) -> Option<Arc<dyn OffsetsLog>> {
        Some(Arc::new(self.clone()))
    }
}

impl OffsetsLog for Shelf {
    fn settled(&self) -> BoxFuture<'static, bool> {
        async { true }.boxed()
    }

    fn leading(&self) -> Option<i32> {
        let epoch = self.0.epoch.load(Ordering::SeqCst);
        (epoch > 0).then_some(epoch)
    }

    fn leading_changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    fn start(&self) -> i64 {
        0
    }

    fn append(&self, batch: Bytes) -> BoxFuture<'static, Result<(), AppendError>> {
        let log = self.0.clone();
        async move {
            log.appends.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(2)).await;
            match *log.mood.lock() {
                Mood::Refusing => return Err(AppendError::Unavailable),
                Mood::Silent => {
                    log.keep(&batch);
                    return Err(AppendError::Unknown);
                }
                Mood::Prompt => {}
            }
            log.keep(&batch);
            Ok(())
        }
        .boxed()
    }

    fn read(&self, from: i64) -> BoxFuture<'static, Result<Vec<Bytes>, ReadError>> {
        let log = self.0.clone();
        async move {
            let delay = *log.read_delay.lock();
            tokio::time::sleep(delay).await;
            let batches = log.batches.lock();
            let after = |batch: &&Bytes| BatchHeader::parse(batch).unwrap().next_offset() > from;
            Ok(batches.iter().filter(after).take(2).cloned().collect())
        }
        .boxed()
    }
}

fn coordinator() -> (Coordinator, Arc<ListLog>) {
    let log = Arc::new(ListLog {
        batches: Mutex::default(),
        end: Mutex::default(),
        epoch: AtomicI32::new(1),
        changed: watch::channel(()).0,
        mood: Mutex::new(Mood::Prompt),
        appends: AtomicUsize::new(0),
        read_delay: Mutex::default(),
    });
    (over(&log), log)
}

fn over(log: &Arc<ListLog>) -> Coordinator {
    with_retention(log, Limits::default().offsets_retention_ms)
}

fn with_retention(log: &Arc<ListLog>, offsets_retention_ms: Millis) -> Coordinator {
    let limits = Limits {
        initial_rebalance_delay_ms: 0,
        session_timeout_ms_min: 1,
        offsets_retention_ms,
        ..Limits::default()
    };
    let settings = Settings {
        limits: Arc::new(move || limits),
        expiry_interval_ms: 50,
        ..Settings::default()
    };
    Coordinator::new(settings, Arc::new(Shelf(log.clone())))
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

async fn commit_offset(groups: &Coordinator, group: &str, offset: i64) -> CommitReply {
    let event = |ticket| Event::Commit(ticket, commit("", -1, "t", offset));
    groups.submit(group, event).await?.wait().await?
}

async fn committed(groups: &Coordinator, group: &str) -> Result<Option<i64>, Refusal> {
    let wanted = Wanted::These(vec![("t".into(), 0)]);
    let event = |ticket| Event::FetchOffsets(ticket, wanted);
    let rows = groups.submit(group, event).await?.wait().await??;
    Ok(rows[0].2.as_ref().map(|offset| offset.offset))
}

async fn joins(groups: &Coordinator, join: Join) -> Joined {
    let fresh_member_id = groups.fresh_member_id(&join.client_id);
    let event = |ticket| {
        Event::Join(
            ticket,
            Join {
                fresh_member_id,
                ..join
            },
        )
    };
    match groups
        .submit("g", event)
        .await
        .unwrap()
        .wait()
        .await
        .unwrap()
    {
        JoinReply::Joined(seat) => seat,
        other => panic!("not joined: {other:?}"),
    }
}

async fn syncs(groups: &Coordinator, seat: &Joined) -> SyncReply {
    let sync = Sync {
        member_id: seat.member_id.clone(),
        generation: seat.generation,
        instance_id: None,
        protocol_type: None,
        protocol: None,
        assignments: vec![(seat.member_id.clone(), Bytes::from_static(b"p0"))],
    };
    groups
        .submit("g", |ticket| Event::Sync(ticket, sync))
        .await?
        .wait()
        .await?
}

async fn beats(groups: &Coordinator, seat: &Joined) -> Result<(), Refusal> {
    let heartbeat = Heartbeat {
        member_id: seat.member_id.clone(),
        generation: seat.generation,
        instance_id: None,
    };
    let event = |ticket| Event::Heartbeat(ticket, heartbeat);
    groups.submit("g", event).await?.wait().await?
}

#[tokio::test]
async fn a_group_lives_on_after_its_broker() {
    let (groups, log) = coordinator();
    let seat = joins(&groups, old_client("a")).await;
    assert_eq!(&syncs(&groups, &seat).await.unwrap().assignment[..], b"p0");
    commit_offset(&groups, "other", 7).await.unwrap();
    drop(groups);

    let groups = over(&log);
    assert_eq!(beats(&groups, &seat).await, Ok(()));
    assert_eq!(committed(&groups, "other").await, Ok(Some(7)));
    let listed = groups.list().await.unwrap();
    let states: Vec<_> = listed
        .iter()
        .map(|group| (&*group.id, group.state))
        .collect();
    assert!(states.contains(&("g", "Stable")) && states.contains(&("other", "Empty")));
}

#[tokio::test]
async fn a_silent_member_is_noticed_by_the_clock_alone() {
    let (groups, _log) = coordinator();
    let brief = Join {
        session_timeout: 1_000,
        ..old_client("a")
    };
    let seat = joins(&groups, brief).await;
    syncs(&groups, &seat).await.unwrap();
    for _ in 0..5 {
        pause(250).await;
        assert_eq!(beats(&groups, &seat).await, Ok(()));
    }
    pause(1_300).await;
    assert_eq!(
        groups.list().await,
        Ok(Vec::new()),
        "it expired, and with nothing to remember the group did too"
    );
    assert_eq!(beats(&groups, &seat).await, Err(Refusal::UnknownMember));
}

#[tokio::test]
async fn commits_that_wait_together_share_an_append() {
    let (groups, log) = coordinator();
    commit_offset(&groups, "warm", 0).await.unwrap();
    let before = log.appends.load(Ordering::SeqCst);
    let ids: Vec<String> = (0..100).map(|n| format!("g{n}")).collect();
    let commits = ids.iter().map(|id| commit_offset(&groups, id, 1));
    for outcome in futures_util::future::join_all(commits).await {
        outcome.unwrap();
    }
    assert!(log.appends.load(Ordering::SeqCst) - before <= 3);
}

#[tokio::test]
async fn a_broker_that_does_not_lead_says_so_and_one_that_loses_the_lead_lets_go() {
    let (groups, log) = coordinator();
    let seat = joins(&groups, old_client("a")).await;
    syncs(&groups, &seat).await.unwrap();
    let waiting = groups
        .submit("g", |ticket| Event::Join(ticket, old_client("b")))
        .await
        .unwrap();
    pause(20).await;
    log.lead(0);
    assert_eq!(waiting.wait().await, Err(Refusal::NotCoordinator));
    assert_eq!(beats(&groups, &seat).await, Err(Refusal::NotCoordinator));
    assert_eq!(groups.list().await, Ok(Vec::new()));

    log.lead(3);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(
        beats(&groups, &seat).await,
        Ok(()),
        "read back from the log"
    );
}

#[tokio::test]
async fn a_long_load_is_announced_and_a_short_one_is_waited_for() {
    let (groups, log) = coordinator();
    commit_offset(&groups, "g", 5).await.unwrap();
    *log.read_delay.lock() = Duration::from_millis(20);
    log.lead(2);
    assert_eq!(committed(&groups, "g").await, Ok(Some(5)));

    *log.read_delay.lock() = Duration::from_millis(800);
    log.lead(3);
    assert_eq!(committed(&groups, "g").await, Err(Refusal::Loading));
    assert_eq!(groups.list().await, Err(Refusal::Loading));
    pause(3_000).await;
    assert_eq!(committed(&groups, "g").await, Ok(Some(5)));
}

#[tokio::test]
async fn a_refused_append_fails_its_request_and_nothing_else() {
    let (groups, log) = coordinator();
    commit_offset(&groups, "g", 5).await.unwrap();
    *log.mood.lock() = Mood::Refusing;
    assert_eq!(
        commit_offset(&groups, "g", 6).await,
        Err(Refusal::NotAvailable)
    );
    assert_eq!(committed(&groups, "g").await, Ok(Some(5)));
    *log.mood.lock() = Mood::Prompt;
    commit_offset(&groups, "g", 7).await.unwrap();
    assert_eq!(committed(&groups, "g").await, Ok(Some(7)));
}

#[tokio::test]
async fn after_an_append_of_unknown_outcome_the_log_is_asked_what_happened() {
    let (groups, log) = coordinator();
    commit_offset(&groups, "g", 5).await.unwrap();
    *log.mood.lock() = Mood::Silent;
    assert_eq!(
        commit_offset(&groups, "g", 6).await,
        Err(Refusal::NotCoordinator)
    );
    *log.mood.lock() = Mood::Prompt;
    assert_eq!(committed(&groups, "g").await, Ok(Some(6)), "it did happen");
}

#[tokio::test]
async fn a_commit_too_large_for_any_batch_is_refused_and_the_next_one_served() {
    let (groups, _log) = coordinator();
    let mut huge = commit("", -1, "t", 1);
    let one = huge.offsets[0].clone();
    huge.offsets = (0..20_000)
        .map(|partition| OffsetToCommit {
            partition,
            metadata: "x".repeat(60).into(),
            ..one.clone()
        })
        .collect();
    let event = |ticket| Event::Commit(ticket, huge);
    let answer = groups
        .submit("g", event)
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
    assert_eq!(answer, Err(Refusal::CommitTooLarge));
    commit_offset(&groups, "g", 2).await.unwrap();
}

#[tokio::test]
async fn offsets_expire_by_the_clock_alone_and_stay_expired() {
    let (_, log) = coordinator();
    let groups = with_retention(&log, 300);
    commit_offset(&groups, "g", 5).await.unwrap();
    assert_eq!(committed(&groups, "g").await, Ok(Some(5)));
    pause(1_000).await;
    assert_eq!(committed(&groups, "g").await, Ok(None));
    drop(groups);
    let groups = over(&log);
    assert_eq!(committed(&groups, "g").await, Ok(None));
    assert_eq!(groups.list().await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_deleted_topic_takes_its_offsets_along() {
    let (groups, _log) = coordinator();
    commit_offset(&groups, "g", 5).await.unwrap();
    groups.topics_deleted([TOPIC_ID].into()).await;
    pause(50).await;
    assert_eq!(committed(&groups, "g").await, Ok(None));
}
