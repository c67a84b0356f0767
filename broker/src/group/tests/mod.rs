//! Stories about one group: requests go in, answers come out, and a list stands for the log.

mod joining;
mod lasting;
mod offsets;
mod statics;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::*;

/// A group, its clock and its log.
pub(super) struct World {
    pub(super) group: Group,
    pub(super) now: Millis,
    pub(super) log: Vec<Record>,
    /// Writes whose outcome is still open; empty while the log is prompt.
    pub(super) open: Vec<(Token, Vec<Record>)>,
    pub(super) prompt: bool,
    ids: u32,
}

pub(super) type Answer<T> = oneshot::Receiver<T>;

impl World {
    pub(super) fn new() -> World {
        World::with(Limits {
            initial_rebalance_delay_ms: 0,
            ..Limits::default()
        })
    }

    pub(super) fn with(limits: Limits) -> World {
        World {
            group: Group::new("g".into(), limits),
            now: 1_000_000,
            log: Vec::new(),
            open: Vec::new(),
            prompt: true,
            ids: 0,
        }
    }

    pub(super) fn step(&mut self, event: Event) {
        for effect in self.group.step(self.now, event) {
            match effect {
                Effect::Reply(reply) => reply.send(),
                Effect::Persist { token, records } => self.open.push((token, records)),
                Effect::Log(_) => {}
            }
        }
        if self.prompt {
            self.write_all();
        }
    }

    pub(super) fn write_all(&mut self) {
        while !self.open.is_empty() {
            let (token, records) = self.open.remove(0);
            self.log.extend(records);
            self.step(Event::Persisted(token));
        }
    }

    pub(super) fn fail_write(&mut self, why: WriteError) {
        let (token, _) = self.open.remove(0);
        self.step(Event::PersistFailed(token, why));
    }

    /// Lets time pass, firing each deadline when it is due.
    pub(super) fn pass(&mut self, span: Millis) {
        let end = self.now + span;
        while let Some(due) = self.group.next_deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.step(Event::Tick);
        }
        self.now = end;
    }

    /// The broker dies and another one reads the log.
    pub(super) fn crash(&mut self) {
        let mut group = Group::new("g".into(), self.group.limits);
        for record in self.log.clone() {
            group.restore(self.now, record);
        }
        group.wake(self.now);
        self.group = group;
        self.open.clear();
    }

    pub(super) fn ask<T: Send + 'static>(
        &mut self,
        event: impl FnOnce(Ticket<T>) -> Event,
    ) -> Answer<T> {
        let (ticket, answer) = Ticket::new();
        self.step(event(ticket));
        answer
    }

    pub(super) fn join(&mut self, join: Join) -> Answer<JoinReply> {
        self.ids += 1;
        let fresh_member_id = if join.fresh_member_id.is_empty() {
            format!("{}-{}", join.client_id, self.ids).into()
        } else {
            join.fresh_member_id.clone()
        };
        self.ask(|ticket| {
            Event::Join(
                ticket,
                Join {
                    fresh_member_id,
                    ..join
                },
            )
        })
    }

    pub(super) fn sync(
        &mut self,
        id: &str,
        generation: i32,
        shares: &[(&str, &str)],
    ) -> Answer<SyncReply> {
        let assignments = shares
            .iter()
            .map(|(id, share)| (Name::from(*id), Bytes::copy_from_slice(share.as_bytes())))
            .collect();
        let sync = Sync {
            member_id: id.into(),
            generation,
            instance_id: None,
            protocol_type: None,
            protocol: None,
            assignments,
        };
        self.ask(|ticket| Event::Sync(ticket, sync))
    }

    pub(super) fn heartbeat(&mut self, id: &str, generation: i32) -> Result<(), Refusal> {
        let heartbeat = Heartbeat {
            member_id: id.into(),
            generation,
            instance_id: None,
        };
        now(self.ask(|ticket| Event::Heartbeat(ticket, heartbeat)))
    }

    pub(super) fn leave(&mut self, id: &str) -> Answer<LeaveReply> {
        let leaving = Leaving {
            member_id: id.into(),
            instance_id: None,
            reason: None,
        };
        self.ask(|ticket| Event::Leave(ticket, vec![leaving]))
    }

    pub(super) fn commit(&mut self, id: &str, generation: i32, offset: i64) -> Answer<CommitReply> {
        self.ask(|ticket| Event::Commit(ticket, commit(id, generation, "t", offset)))
    }

    pub(super) fn committed(&mut self, topic: &str) -> Option<i64> {
        let wanted = Wanted::These(vec![(topic.into(), 0)]);
        let offsets = now(self.ask(|ticket| Event::FetchOffsets(ticket, wanted))).unwrap();
        offsets[0].2.as_ref().map(|offset| offset.offset)
    }

    pub(super) fn describe(&mut self) -> Result<Description, Refusal> {
        now(self.ask(Event::Describe))
    }

    /// Two members, `a` the leader, stable at generation 1... or later.
    pub(super) fn stable_pair(&mut self) -> i32 {
        let mut a = self.join(old_client("a"));
        self.pass(5_000);
        let first = joined(&mut a);
        let mut b = self.join(old_client("b"));
        let mut a = self.join(Join {
            member_id: first.member_id,
            ..old_client("a")
        });
        let generation = joined(&mut a).generation;
        assert_eq!(joined(&mut b).generation, generation);
        let b = self.sync("b-2", generation, &[]);
        let a = self.sync("a-1", generation, &[("a-1", "p0"), ("b-2", "p1")]);
        assert_eq!(share(a), "p0");
        assert_eq!(share(b), "p1");
        generation
    }
}

/// An answer that must have arrived.
pub(super) fn now<T>(mut answer: Answer<T>) -> T {
    answer.try_recv().expect("answered by now")
}

/// Whether an answer is still to come.
pub(super) fn waits<T>(answer: &mut Answer<T>) -> bool {
    matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty))
}

pub(super) fn joined(answer: &mut Answer<JoinReply>) -> Joined {
    match answer.try_recv().expect("answered by now") {
        JoinReply::Joined(joined) => joined,
        other => panic!("not joined: {other:?}"),
    }
}

pub(super) fn refused(mut answer: Answer<JoinReply>) -> Refusal {
    match answer.try_recv().expect("answered by now") {
        JoinReply::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

pub(super) fn share(answer: Answer<SyncReply>) -> String {
    String::from_utf8(now(answer).expect("a share").assignment.to_vec()).unwrap()
}

/// A client of JoinGroup 0 to 3: it takes part without being asked back.
pub(super) fn old_client(name: &str) -> Join {
    Join {
        member_id: "".into(),
        fresh_member_id: "".into(),
        instance_id: None,
        client_id: name.into(),
        client_host: "/127.0.0.1".into(),
        session_timeout: 10_000,
        rebalance_timeout: 60_000,
        protocol_type: "consumer".into(),
        protocols: vec![offer("range", &["t"])],
        takes_member_id: false,
        takes_skip: false,
        reason: None,
    }
}

/// A client of JoinGroup 9.
pub(super) fn client(name: &str) -> Join {
    Join {
        takes_member_id: true,
        takes_skip: true,
        ..old_client(name)
    }
}

/// A static member of JoinGroup 9.
pub(super) fn static_client(instance: &str) -> Join {
    Join {
        instance_id: Some(instance.into()),
        ..client(instance)
    }
}

/// A protocol with a subscription in the clients' own format.
pub(super) fn offer(name: &str, topics: &[&str]) -> Protocol {
    let mut metadata = vec![0, 1];
    metadata.extend((topics.len() as i32).to_be_bytes());
    for topic in topics {
        metadata.extend((topic.len() as i16).to_be_bytes());
        metadata.extend(topic.as_bytes());
    }
    Protocol {
        name: name.into(),
        metadata: metadata.into(),
    }
}

/// The id that the topic of every commit has.
pub(super) const TOPIC_ID: [u8; 16] = [4; 16];

pub(super) fn commit(id: &str, generation: i32, topic: &str, offset: i64) -> Commit {
    Commit {
        member_id: id.into(),
        generation,
        instance_id: None,
        retention: None,
        offsets: vec![OffsetToCommit {
            topic: topic.into(),
            topic_id: TOPIC_ID,
            partition: 0,
            offset,
            leader_epoch: 3,
            metadata: "note".into(),
        }],
    }
}
