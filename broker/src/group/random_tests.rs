//! Random requests, delays, failures and crashes, with the promises checked after every step.

use proptest::prelude::*;

use super::tests::{World, commit, old_client};
use super::*;

/// Member slots: a slot forgets its id when it is told to.
const CLIENTS: usize = 4;

#[derive(Clone, Debug)]
enum Act {
    /// Half of the clients are static, half come back with an id.
    Join(usize),
    Sync(usize),
    Heartbeat(usize),
    Leave(usize),
    Commit(usize, bool),
    Pass(Millis),
    /// Let the oldest open write succeed, or fail.
    Land(bool),
    Expire,
    Crash,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let client = 0..CLIENTS;
    let act = prop_oneof![
        5 => client.clone().prop_map(Act::Join),
        5 => client.clone().prop_map(Act::Sync),
        2 => client.clone().prop_map(Act::Heartbeat),
        1 => client.clone().prop_map(Act::Leave),
        3 => (client, any::<bool>()).prop_map(|(client, simple)| Act::Commit(client, simple)),
        2 => (1..20_000i64).prop_map(Act::Pass),
        6 => prop::bool::weighted(0.9).prop_map(Act::Land),
        1 => Just(Act::Expire),
        1 => Just(Act::Crash),
    ];
    prop::collection::vec(act, 1..120)
}

/// One client's view.
#[derive(Default)]
struct Seat {
    id: Name,
    generation: i32,
    leads: bool,
    members: Vec<Name>,
    join: Option<super::tests::Answer<JoinReply>>,
    /// With the generation it names.
    sync: Option<(i32, super::tests::Answer<SyncReply>)>,
    commit: Option<(i64, super::tests::Answer<CommitReply>)>,
    leave: Option<super::tests::Answer<LeaveReply>>,
}

struct Run {
    world: World,
    seats: Vec<Seat>,
    next_offset: i64,
    acknowledged: Option<i64>,
    highest_generation: i32,
}

impl Run {
    fn new() -> Run {
        let mut world = World::new();
        world.prompt = false;
        Run {
            world,
            seats: (0..CLIENTS).map(|_| Seat::default()).collect(),
            next_offset: 0,
            acknowledged: None,
            highest_generation: 0,
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Join(client) => self.join(client),
            Act::Sync(client) => self.sync(client),
            Act::Heartbeat(client) => {
                let Seat { id, generation, .. } = &self.seats[client];
                let (id, generation) = (id.clone(), *generation);
                let _ = self.world.heartbeat(&id, generation);
            }
            Act::Leave(client) => {
                let id = self.seats[client].id.clone();
                self.seats[client].leave = Some(self.world.leave(&id));
            }
            Act::Commit(client, simple) => self.commit(client, simple),
            Act::Pass(span) => self.world.pass(span),
            Act::Land(success) => self.land(success),
            Act::Expire => self.world.step(Event::Expire),
            Act::Crash => self.crash(),
        }
        self.collect();
        self.check();
    }

    fn join(&mut self, client: usize) {
        let is_static = client.is_multiple_of(2);
        let seat = &mut self.seats[client];
        // A static client restarts now and then, and then has no id.
        let restarts = is_static && seat.generation % 3 == 1;
        let join = Join {
            member_id: if restarts { "".into() } else { seat.id.clone() },
            instance_id: is_static.then(|| format!("static{client}").into()),
            takes_member_id: client == 1,
            takes_skip: client == 2,
            ..old_client(&format!("c{client}"))
        };
        self.seats[client].join = Some(self.world.join(join));
    }

    fn sync(&mut self, client: usize) {
        let seat = &self.seats[client];
        let (id, generation) = (seat.id.clone(), seat.generation);
        let shares: Vec<(Name, String)> = seat
            .members
            .iter()
            .filter(|_| seat.leads)
            .map(|member| (member.clone(), format!("{generation}")))
            .collect();
        let shares: Vec<(&str, &str)> = shares
            .iter()
            .map(|(id, share)| (&**id, share.as_str()))
            .collect();
        self.seats[client].sync = Some((generation, self.world.sync(&id, generation, &shares)));
    }

    fn commit(&mut self, client: usize, simple: bool) {
        self.next_offset += 1;
        let offset = self.next_offset;
        let seat = &self.seats[client];
        let event = if simple {
            commit("", -1, "t", offset)
        } else {
            commit(&seat.id, seat.generation, "t", offset)
        };
        let answer = self.world.ask(|ticket| Event::Commit(ticket, event));
        self.seats[client].commit = Some((offset, answer));
    }

    fn land(&mut self, success: bool) {
        if self.world.open.is_empty() {
            return;
        }
        if success {
            let (token, records) = self.world.open.remove(0);
            self.world.log.extend(records);
            self.world.step(Event::Persisted(token));
        } else {
            self.world.fail_write(WriteError::Unavailable);
        }
    }

    /// Some of the open writes had reached the log.
    fn crash(&mut self) {
        if !self.world.open.is_empty() && self.next_offset % 2 == 0 {
            let (_, records) = self.world.open.remove(0);
            self.world.log.extend(records);
        }
        self.world.crash();
    }

    fn collect(&mut self) {
        for seat in &mut self.seats {
            match seat.join.as_mut().map(|answer| answer.try_recv()) {
                Some(Ok(JoinReply::Joined(joined))) => {
                    assert!(
                        joined.generation <= self.world.group.generation(),
                        "a generation is in force before anybody is told of it"
                    );
                    seat.leads = joined.leader == joined.member_id;
                    seat.generation = joined.generation;
                    seat.id = joined.member_id;
                    seat.members = joined
                        .members
                        .into_iter()
                        .map(|member| member.member_id)
                        .collect();
                    seat.join = None;
                }
                Some(Ok(JoinReply::MemberIdRequired(id))) => {
                    seat.id = id;
                    seat.join = None;
                }
                Some(Ok(JoinReply::Refused(refusal))) => {
                    if matches!(refusal, Refusal::UnknownMember | Refusal::FencedInstance) {
                        seat.id = "".into();
                    }
                    seat.join = None;
                }
                _ => {}
            }
            let answer = seat
                .sync
                .as_mut()
                .map(|(named, sync)| (*named, sync.try_recv()));
            if let Some((named, Ok(answer))) = answer {
                if let Ok(synced) = answer
                    && !synced.assignment.is_empty()
                {
                    let share = String::from_utf8(synced.assignment.to_vec()).unwrap();
                    assert_eq!(share, named.to_string(), "a share of the generation named");
                }
                seat.sync = None;
            }
            let commit = seat.commit.take();
            seat.commit = match commit {
                Some((offset, mut answer)) => match answer.try_recv() {
                    Ok(Ok(_)) => {
                        self.acknowledged = self.acknowledged.max(Some(offset));
                        None
                    }
                    Ok(Err(_)) => None,
                    Err(tokio::sync::oneshot::error::TryRecvError::Empty) => Some((offset, answer)),
                    Err(tokio::sync::oneshot::error::TryRecvError::Closed) => None,
                },
                None => None,
            };
        }
    }

    fn check(&mut self) {
        let group = &self.world.group;
        let generation = group.generation();
        assert!(
            generation >= self.highest_generation || generation == 0,
            "generations only rise, also over crashes, until the group is forgotten"
        );
        self.highest_generation = generation;
        let remembered = group.remembered();
        if group.state_name() == "Stable" {
            let record = remembered.group.as_ref().unwrap();
            let leader = record.leader.as_ref().unwrap();
            assert!(
                record
                    .members
                    .iter()
                    .any(|member| member.member_id == *leader)
            );
        }
        let committed = remembered.offsets.first().and_then(|row| row.2.as_ref());
        let committed = committed.map(|offset| offset.offset);
        assert!(
            committed >= self.acknowledged,
            "an acknowledged offset is there: {committed:?} {:?}",
            self.acknowledged
        );
        if self.world.open.is_empty() && group.state_name() != "PreparingRebalance" {
            self.same_after_reload();
        }
    }

    fn same_after_reload(&self) {
        let mut reloaded = Group::new("g".into(), Limits::default());
        for record in self.world.log.clone() {
            reloaded.restore(self.world.now, record);
        }
        reloaded.wake(self.world.now);
        assert_eq!(reloaded.remembered(), self.world.group.remembered());
    }

    /// Everything that still waits is answered once writes land and time passes.
    fn settle(&mut self) {
        for _ in 0..200 {
            while !self.world.open.is_empty() {
                self.land(true);
            }
            self.world.pass(10_000);
        }
        self.collect();
        for seat in &mut self.seats {
            assert!(seat.commit.is_none(), "a commit is answered");
            for empty in [
                seat.join.as_mut().map(super::tests::waits),
                seat.sync
                    .as_mut()
                    .map(|(_, sync)| super::tests::waits(sync)),
                seat.leave.as_mut().map(super::tests::waits),
            ] {
                assert_ne!(empty, Some(true), "no request waits for ever");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn promises_hold_whatever_happens(acts in acts()) {
        let mut run = Run::new();
        for act in acts {
            run.act(act);
        }
        run.settle();
    }
}
