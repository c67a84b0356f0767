//! What clients know by their sessions, and who keeps one when there are too many.

use super::cache::{Cache, CacheLimits, Privilege};
use super::session::{Found, Naming, Session, Topic, Wanted, by_topic};
use super::sessions::{NO_SESSION, Sessions};
use bytes::Bytes;
use logd_proto::fetch::{
    EpochEnd, FetchPartition, FetchPartitionResponse, FetchRequest, FetchTopic, ForgottenTopic,
};
use logd_proto::{ErrorCode, StrBytes, Uuid};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const PARTITIONS: i32 = 6;
const AGE: Duration = Duration::from_secs(120);

fn topic() -> Topic {
    Topic::Name("orders".into())
}

fn partition(index: i32, fetch_offset: i64) -> FetchPartition {
    FetchPartition {
        partition: index,
        current_leader_epoch: -1,
        fetch_offset,
        last_fetched_epoch: -1,
        log_start_offset: -1,
        partition_max_bytes: 1 << 20,
    }
}

fn request(id: i32, epoch: i32, wants: Vec<FetchPartition>, forgets: Vec<i32>) -> FetchRequest {
    let (name, topic_id) = (StrBytes::from("orders"), Uuid::from_bytes([7; 16]));
    FetchRequest {
        replica_id: -1,
        max_wait_ms: 0,
        min_bytes: 1,
        max_bytes: 1 << 20,
        isolation_level: 0,
        session_id: id,
        session_epoch: epoch,
        topics: vec![FetchTopic {
            name: name.clone(),
            topic_id,
            partitions: wants,
        }],
        forgotten_topics: vec![ForgottenTopic {
            name,
            topic_id,
            partitions: forgets,
        }],
        rack_id: StrBytes::default(),
    }
}

fn found(index: i32, high_watermark: i64, bytes: usize) -> Found {
    Found {
        topic: topic(),
        partition: FetchPartitionResponse {
            high_watermark,
            last_stable_offset: high_watermark,
            log_start_offset: 0,
            records: vec![Bytes::from(vec![0; bytes])],
            ..FetchPartitionResponse::failed(index, ErrorCode::None)
        },
    }
}

fn opened(count: i32) -> Session {
    let wanted: Vec<_> = (0..count)
        .map(|index| Wanted {
            topic: topic(),
            partition: partition(index, 0),
        })
        .collect();
    let answers: Vec<_> = (0..count).map(|index| found(index, 0, 0)).collect();
    Session::open(Naming::Names, &wanted, &answers)
}

fn indexes(found: &[Found]) -> Vec<i32> {
    found.iter().map(|f| f.partition.partition).collect()
}

fn go_on(session: &mut Session, epoch: i32) -> Vec<Wanted> {
    let request = request(1, epoch, vec![], vec![]);
    session.advance(epoch, Naming::Names, &request).unwrap()
}

#[test]
fn trap_11_an_answer_holds_only_partitions_with_records_or_news() {
    let mut session = opened(6);
    go_on(&mut session, 1);
    let mut answers: Vec<_> = (0..6).map(|index| found(index, 0, 0)).collect();
    answers[1].partition.high_watermark = 5;
    answers[2].partition.log_start_offset = 3;
    answers[3].partition.preferred_read_replica = 2;
    answers[4].partition.diverging_epoch = Some(EpochEnd {
        epoch: 1,
        end_offset: 1,
    });
    answers[5] = found(5, 0, 10);
    let news = session.answer(1, answers.clone()).unwrap();
    assert_eq!(indexes(&news), [1, 2, 3, 4, 5]);
    // What was told once is no news; a replica to read from and a fault are told as long as there are any.
    go_on(&mut session, 2);
    answers[5] = found(5, 0, 0);
    let news = session.answer(2, answers).unwrap();
    assert_eq!(indexes(&news), [3, 4]);
}

#[test]
fn trap_11_a_partition_is_told_of_again_when_its_error_is_over() {
    let mut session = opened(2);
    let failed = Found {
        topic: topic(),
        partition: FetchPartitionResponse::failed(1, ErrorCode::NotLeaderOrFollower),
    };
    for epoch in [1, 2] {
        go_on(&mut session, epoch);
        let news = session.answer(epoch, vec![found(0, 0, 0), failed.clone()]);
        assert_eq!(indexes(&news.unwrap()), [1], "an error is always told");
    }
    go_on(&mut session, 3);
    let news = session.answer(3, vec![found(0, 0, 0), found(1, 0, 0)]);
    assert_eq!(indexes(&news.unwrap()), [1], "with the same high watermark");
    go_on(&mut session, 4);
    let news = session.answer(4, vec![found(0, 0, 0), found(1, 0, 0)]);
    assert!(news.unwrap().is_empty());
}

#[test]
fn trap_11_requests_of_a_session_come_in_their_order_or_are_refused() {
    let mut session = opened(1);
    let ask = |session: &mut Session, epoch| {
        let request = request(1, epoch, vec![], vec![]);
        session.advance(epoch, Naming::Names, &request)
    };
    assert_eq!(
        ask(&mut session, 2),
        Err(ErrorCode::InvalidFetchSessionEpoch)
    );
    assert!(ask(&mut session, 1).is_ok());
    assert_eq!(
        ask(&mut session, 1),
        Err(ErrorCode::InvalidFetchSessionEpoch),
        "a request sent again"
    );
    assert!(ask(&mut session, 2).is_ok());
    // The first one's answer comes late: its client has gone on without it.
    let late = session.answer(1, vec![found(0, 1, 1)]);
    assert_eq!(late, Err(ErrorCode::InvalidFetchSessionEpoch));
    assert!(session.answer(2, vec![found(0, 1, 1)]).is_ok());
}

#[test]
fn trap_11_epochs_go_round_without_the_one_that_opens_a_session() {
    let mut session = opened(1);
    session.set_epoch(i32::MAX);
    go_on(&mut session, i32::MAX);
    go_on(&mut session, 1);
}

#[test]
fn trap_06_a_session_that_mixes_names_and_ids_is_refused() {
    let mut session = opened(1);
    let by_id = session.advance(1, Naming::Ids, &request(1, 1, vec![], vec![]));
    assert_eq!(by_id, Err(ErrorCode::FetchSessionTopicIdError));
    assert!(!go_on(&mut session, 1).is_empty(), "it is as it was");
}

#[test]
fn trap_09_partitions_that_gave_records_go_to_the_end_so_that_none_starves() {
    let mut session = opened(PARTITIONS);
    let mut served = Vec::new();
    for epoch in 1..=2 * PARTITIONS {
        let order = go_on(&mut session, epoch);
        // Everybody has records, and an answer has room for one's.
        let first = order[0].partition.partition;
        let answers = order.iter().map(|w| {
            let index = w.partition.partition;
            found(index, 100, if index == first { 10 } else { 0 })
        });
        session.answer(epoch, answers.collect()).unwrap();
        served.push(first);
    }
    assert_eq!(served, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]);
}

#[test]
fn forgotten_partitions_are_read_no_more_and_new_ones_come_last() {
    let mut session = opened(3);
    let request = request(1, 1, vec![partition(9, 4), partition(2, 8)], vec![0]);
    let order = session.advance(1, Naming::Names, &request).unwrap();
    let order: Vec<_> = order
        .iter()
        .map(|w| (w.partition.partition, w.partition.fetch_offset))
        .collect();
    assert_eq!(order, [(1, 0), (2, 8), (9, 4)]);
    let news = session.answer(1, vec![found(1, 0, 0), found(2, 0, 0), found(9, 0, 0)]);
    assert_eq!(
        indexes(&news.unwrap()),
        [9],
        "a new one is news whatever it holds"
    );
}

#[test]
fn a_session_keeps_no_frame_in_memory() {
    let frame = Bytes::from(vec![b'a'; 1 << 20]);
    let name = StrBytes::try_from(frame.slice(0..6)).unwrap();
    let wanted = Wanted {
        topic: Topic::Name(name),
        partition: partition(0, 0),
    };
    let session = Session::open(Naming::Names, &[wanted], &[]);
    assert!(frame.is_unique(), "{session:?}");
}

#[test]
fn neighbours_of_one_topic_are_named_once() {
    let other = |index| Found {
        topic: Topic::Name("others".into()),
        ..found(index, 0, 0)
    };
    let topics = by_topic(vec![
        found(0, 0, 0),
        found(1, 0, 0),
        other(0),
        found(2, 0, 0),
    ]);
    let shape: Vec<_> = topics
        .iter()
        .map(|t| (t.name.as_str(), t.partitions.len()))
        .collect();
    assert_eq!(shape, [("orders", 2), ("others", 1), ("orders", 1)]);
}

// --- requests and the sessions of a broker ---------------------------------------------------------------

fn sessions(sessions: usize, partitions: usize) -> Sessions {
    Sessions::new(CacheLimits {
        sessions,
        partitions,
        eviction_age: AGE,
    })
}

/// Opens a session of so many partitions.
fn open(sessions: &Sessions, now: Instant, count: i32) -> i32 {
    let wants = (0..count).map(|index| partition(index, 0)).collect();
    let asked = sessions.begin(now, Naming::Names, &request(0, 0, wants, vec![]));
    let answers: Vec<_> = (0..count).map(|index| found(index, 0, 0)).collect();
    let (id, told) = sessions.finish(now, asked.unwrap(), answers).unwrap();
    assert_eq!(told.len(), usize::try_from(count).unwrap());
    id
}

#[test]
fn trap_11_a_whole_request_opens_a_session_and_the_last_one_closes_it() {
    let (sessions, now) = (sessions(10, 100), Instant::now());
    let id = open(&sessions, now, 3);
    assert!(id > 0);
    let asked = sessions.begin(now, Naming::Names, &request(id, 1, vec![], vec![]));
    let asked = asked.unwrap();
    assert_eq!(asked.wanted.len(), 3);
    let news = sessions.finish(now, asked, vec![found(0, 0, 0), found(1, 7, 0)]);
    let (same, news) = news.unwrap();
    assert_eq!((same, indexes(&news)), (id, vec![1]));
    let closing = sessions.begin(
        now,
        Naming::Names,
        &request(id, -1, vec![partition(0, 0)], vec![]),
    );
    let (none, whole) = sessions
        .finish(now, closing.unwrap(), vec![found(0, 0, 0)])
        .unwrap();
    assert_eq!((none, whole.len()), (NO_SESSION, 1));
    let after = sessions.begin(now, Naming::Names, &request(id, 2, vec![], vec![]));
    assert_eq!(after.err(), Some(ErrorCode::FetchSessionIdNotFound));
    assert_eq!(sessions.counts().sessions, 0);
}

#[test]
fn trap_11_an_unknown_session_and_a_wrong_epoch_are_told_apart() {
    let (sessions, now) = (sessions(10, 100), Instant::now());
    let id = open(&sessions, now, 1);
    let ask = |id, epoch| {
        let asked = sessions.begin(now, Naming::Names, &request(id, epoch, vec![], vec![]));
        asked.err()
    };
    assert_eq!(ask(id ^ 1, 1), Some(ErrorCode::FetchSessionIdNotFound));
    assert_eq!(ask(id, 5), Some(ErrorCode::InvalidFetchSessionEpoch));
    assert_eq!(ask(id, 1), None);
}

#[test]
fn a_session_whose_partitions_are_all_forgotten_is_over() {
    let (sessions, now) = (sessions(10, 100), Instant::now());
    let id = open(&sessions, now, 1);
    let asked = sessions.begin(now, Naming::Names, &request(id, 1, vec![], vec![0]));
    let answer = sessions.finish(now, asked.unwrap(), vec![]);
    assert_eq!(answer, Ok((NO_SESSION, vec![])));
    assert_eq!(sessions.counts().sessions, 0);
}

#[test]
fn without_room_a_client_is_served_without_a_session() {
    let (full, now) = (sessions(1, 100), Instant::now());
    assert!(open(&full, now, 3) > 0);
    assert_eq!(open(&full, now, 90), NO_SESSION);
    let none = sessions(0, 0);
    assert_eq!(open(&none, now, 1), NO_SESSION);
}

#[test]
fn a_session_that_outgrows_the_limit_of_partitions_is_over() {
    let (sessions, now) = (sessions(10, 5), Instant::now());
    let id = open(&sessions, now, 3);
    let more = (3..9).map(|index| partition(index, 0)).collect();
    let asked = sessions.begin(now, Naming::Names, &request(id, 1, more, vec![]));
    assert_eq!(asked.err(), Some(ErrorCode::FetchSessionIdNotFound));
    let counts = sessions.counts();
    assert_eq!((counts.sessions, counts.partitions), (0, 0));
}

// --- who makes room ---------------------------------------------------------------------------------------

/// A cache of two slots, and sessions that are called by their number.
struct Two {
    cache: Cache<()>,
    now: Instant,
    last: i32,
}

impl Two {
    fn new() -> Self {
        Self {
            cache: Cache::new(CacheLimits {
                sessions: 2,
                partitions: 1_000,
                eviction_age: AGE,
            }),
            now: Instant::now(),
            last: 0,
        }
    }

    fn open(&mut self, privilege: Privilege, partitions: usize) -> Option<i32> {
        self.last += 1;
        let next = self.last;
        self.cache
            .insert(self.now, privilege, partitions, (), || next)
    }

    fn later(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn use_all(&mut self, ids: &[i32], partitions: usize) {
        for id in ids {
            assert!(self.cache.touch(*id, self.now, partitions));
        }
    }
}

#[test]
fn a_young_session_in_use_is_safe_from_consumers() {
    let mut two = Two::new();
    two.open(Privilege::Consumer, 1);
    two.open(Privilege::Consumer, 1);
    assert_eq!(two.open(Privilege::Consumer, 100), None);
    assert_eq!((two.cache.len(), two.cache.evictions()), (2, 0));
}

#[test]
fn a_session_that_nobody_uses_makes_room_for_any() {
    let mut two = Two::new();
    two.open(Privilege::Replica, 100);
    two.later(100);
    two.open(Privilege::Consumer, 1);
    two.later(21);
    assert_eq!(two.open(Privilege::Consumer, 1), Some(3));
    assert!(two.cache.get(1).is_none());
    assert_eq!(two.cache.partitions(), 2);
}

#[test]
fn an_old_session_makes_room_for_a_larger_one_only() {
    let mut two = Two::new();
    two.open(Privilege::Consumer, 10);
    two.open(Privilege::Consumer, 10);
    two.later(100);
    two.use_all(&[1, 2], 10);
    two.later(21);
    two.use_all(&[1], 10);
    assert_eq!(two.open(Privilege::Consumer, 10), None, "it is no larger");
    assert!(two.open(Privilege::Consumer, 11).is_some());
    assert!(two.cache.get(1).is_none() && two.cache.get(2).is_some());
}

#[test]
fn a_replica_takes_the_place_of_a_consumer_and_not_the_other_way_round() {
    let mut two = Two::new();
    two.open(Privilege::Consumer, 50);
    two.open(Privilege::Replica, 1);
    assert!(two.open(Privilege::Replica, 1).is_some());
    assert!(two.cache.get(1).is_none());
    two.later(121);
    two.use_all(&[2, 3], 1);
    assert_eq!(two.open(Privilege::Consumer, 900), None);
}

#[test]
fn only_unused_sessions_make_room_for_partitions() {
    let mut two = Two::new();
    two.open(Privilege::Consumer, 600);
    assert_eq!(two.open(Privilege::Consumer, 600), None);
    two.later(121);
    assert!(two.open(Privilege::Consumer, 600).is_some());
    assert_eq!(two.cache.partitions(), 600);
}

#[test]
fn a_number_is_given_once_and_never_one_that_means_none() {
    let mut two = Two::new();
    let mut dice = [5, 0, -3, 5, 9].into_iter();
    let mut draw = || dice.next().expect("a number is left");
    let now = two.now;
    let first = two.cache.insert(now, Privilege::Consumer, 1, (), &mut draw);
    let second = two.cache.insert(now, Privilege::Consumer, 1, (), &mut draw);
    assert_eq!((first, second), (Some(5), Some(9)));
}

// --- a client by its session, and one that asks for everything --------------------------------------------

#[derive(Debug, Clone)]
enum Event {
    Append(i32, i64),
    Trim(i32),
    Break(i32),
    Mend(i32),
    Want(i32),
    Forget(i32),
    /// A request, and how many bytes of records its answer has room for.
    Fetch(usize),
    /// A request whose answer is lost: the next one opens a new session.
    Lost(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let index = 0..PARTITIONS;
    let event = prop_oneof![
        3 => (index.clone(), 1..20i64).prop_map(|(p, n)| Event::Append(p, n)),
        1 => index.clone().prop_map(Event::Trim),
        1 => index.clone().prop_map(Event::Break),
        1 => index.clone().prop_map(Event::Mend),
        1 => index.clone().prop_map(Event::Want),
        1 => index.prop_map(Event::Forget),
        6 => (0..30usize).prop_map(Event::Fetch),
        1 => (0..30usize).prop_map(Event::Lost),
    ];
    proptest::collection::vec(event, 1..120)
}

/// A partition as it is. A byte is a record.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    start: i64,
    end: i64,
    broken: bool,
}

/// What a client knows of a partition: fault, high watermark, log start.
type Known = (bool, i64, i64);

impl Place {
    fn truth(&self) -> Known {
        if self.broken {
            (true, -1, -1)
        } else {
            (false, self.end, self.start)
        }
    }

    fn read(&self, wanted: &FetchPartition, room: &mut usize) -> FetchPartitionResponse {
        if self.broken {
            return FetchPartitionResponse::failed(
                wanted.partition,
                ErrorCode::NotLeaderOrFollower,
            );
        }
        let there = usize::try_from(self.end - wanted.fetch_offset).unwrap_or(0);
        let bytes = there.min(*room);
        *room -= bytes;
        FetchPartitionResponse {
            log_start_offset: self.start,
            ..found(wanted.partition, self.end, bytes).partition
        }
    }
}

#[derive(Debug, Default)]
struct Client {
    session: i32,
    epoch: i32,
    /// Where it is in what it wants, and where it last said that it is.
    positions: BTreeMap<i32, i64>,
    said: BTreeMap<i32, i64>,
    known: BTreeMap<i32, Known>,
}

impl Client {
    fn request(&mut self) -> FetchRequest {
        let whole = self.epoch == 0;
        let said = std::mem::replace(&mut self.said, self.positions.clone());
        let changed = self.positions.iter();
        let wants = changed.filter(|(p, at)| whole || said.get(p) != Some(at));
        let wants = wants.map(|(p, at)| partition(*p, *at)).collect();
        let gone = said.keys().filter(|p| !self.positions.contains_key(p));
        let forgets = gone.filter(|_| !whole).copied().collect();
        request(self.session, self.epoch, wants, forgets)
    }

    fn apply(&mut self, id: i32, told: Vec<Found>) {
        // Who is not named has no fault.
        self.known.retain(|p, _| self.positions.contains_key(p));
        self.known.values_mut().for_each(|k| k.0 = false);
        for Found { partition: p, .. } in told {
            let known = (!p.error.is_none(), p.high_watermark, p.log_start_offset);
            self.known.insert(p.partition, known);
            *self.positions.get_mut(&p.partition).expect("it was wanted") +=
                p.record_bytes() as i64;
        }
        (self.session, self.epoch) = (id, if id == NO_SESSION { 0 } else { self.epoch + 1 });
    }
}

fn fetch(
    sessions: &Sessions,
    now: Instant,
    places: &BTreeMap<i32, Place>,
    client: &mut Client,
    mut room: usize,
) -> (i32, Vec<Found>) {
    let asked = sessions.begin(now, Naming::Names, &client.request());
    let asked = asked.expect("an honest client's request is taken");
    // Whatever the session left unsaid, it reads what the client wants where the client is.
    let read: BTreeMap<_, _> = asked
        .wanted
        .iter()
        .map(|w| (w.partition.partition, w.partition.fetch_offset))
        .collect();
    assert_eq!(read, client.positions);
    let answers = asked.wanted.iter().map(|w| Found {
        topic: w.topic.clone(),
        partition: places[&w.partition.partition].read(&w.partition, &mut room),
    });
    let answers = answers.collect();
    sessions
        .finish(now, asked, answers)
        .expect("nobody is before it")
}

proptest! {
    #[test]
    fn trap_11_a_client_by_its_session_knows_what_one_that_asks_in_full_knows(events in events()) {
        let (sessions, now) = (sessions(4, 100), Instant::now());
        let mut places: BTreeMap<i32, Place> =
            (0..PARTITIONS).map(|index| (index, Place::default())).collect();
        let mut client = Client::default();
        client.positions.insert(0, 0);
        for event in events {
            match event {
                Event::Append(p, n) => places.get_mut(&p).unwrap().end += n,
                Event::Trim(p) => {
                    let place = places.get_mut(&p).unwrap();
                    place.start = (place.start + 1).min(place.end);
                }
                Event::Break(p) => places.get_mut(&p).unwrap().broken = true,
                Event::Mend(p) => places.get_mut(&p).unwrap().broken = false,
                Event::Want(p) => drop(client.positions.entry(p).or_insert(0)),
                Event::Forget(p) => drop(client.positions.remove(&p)),
                Event::Fetch(room) => {
                    let (id, told) = fetch(&sessions, now, &places, &mut client, room);
                    client.apply(id, told);
                    let truth: BTreeMap<_, _> = client.positions.keys()
                        .map(|p| (*p, places[p].truth())).collect();
                    prop_assert_eq!(&client.known, &truth);
                }
                Event::Lost(room) => {
                    fetch(&sessions, now, &places, &mut client, room);
                    client.epoch = 0;
                }
            }
        }
        prop_assert!(sessions.counts().sessions <= 4, "also when answers that open one are lost");
    }
}
