//! A group as a pure state machine: `step(now, event)` returns what should be done.
//!
//! Promise: what a client may learn of a group (generation, leader, assignment, offsets) changes
//! only when the record that says so is applied, and replies wait for that. A crash can therefore
//! take back nothing that was told.
//! Invariant: at most one change of the membership is being written; events that would decide on
//! top of it wait in a bounded stash and are taken up when the outcome is known.
//!
//! Not here: the clock, randomness, the log; the rules of joining (`join`), of a generation's
//! start and end (`rebalance`), of assignments (`sync`), of leaving (`leave`) and of offsets
//! (`commit`).

use std::collections::{BTreeMap, VecDeque};

use super::event::{
    Description, Effect, Event, FetchedOffset, Heartbeat, MemberDescription, Millis, Name, Parked,
    Refusal, Reply, Token, WriteError,
};
use super::member::Member;
use super::offsets::Offsets;
use super::rebalance::{Change, Initial};
use super::record::{GroupRecord, Record};

/// Events that wait for a write. A write takes milliseconds; a thousand waiting members are a
/// large group's rejoin, more are a flood.
const STASH_MAX: usize = 10_000;

/// The limits a group lives by, resolved once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `group.min.session.timeout.ms`
    pub session_timeout_ms_min: Millis,
    /// `group.max.session.timeout.ms`
    pub session_timeout_ms_max: Millis,
    /// `group.initial.rebalance.delay.ms`: how long an empty group waits for more members.
    pub initial_rebalance_delay_ms: Millis,
    /// `group.max.size`
    pub members_max: usize,
    /// `offset.metadata.max.bytes`
    pub offset_metadata_bytes_max: usize,
    /// `offsets.retention.minutes`, in milliseconds.
    pub offsets_retention_ms: Millis,
}

impl Default for Limits {
    /// Kafka's defaults.
    fn default() -> Limits {
        Limits {
            session_timeout_ms_min: 6_000,
            session_timeout_ms_max: 1_800_000,
            initial_rebalance_delay_ms: 3_000,
            members_max: usize::MAX,
            offset_metadata_bytes_max: 4096,
            offsets_retention_ms: 7 * 24 * 60 * 60 * 1000,
        }
    }
}

/// Where a group is in its life.
#[derive(Debug)]
pub(super) enum Phase {
    /// No members.
    Empty,
    /// Members are called to join the next generation.
    Preparing {
        /// Those who have not come by then are out.
        deadline: Millis,
        /// Set while a group that was empty waits for more members.
        initial: Option<Initial>,
    },
    /// A generation has begun; its leader computes the assignment.
    Completing,
    /// Everybody may have an assignment.
    Stable,
}

/// A change of the membership on its way into the log.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) token: Token,
    pub(super) change: Change,
}

/// What of a group outlives its broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Its latest generation, if it ever had one.
    pub group: Option<GroupRecord>,
    /// Its offsets, by topic and partition.
    pub offsets: Vec<FetchedOffset>,
}

/// A consumer group.
///
/// ```
/// use logd::group::{Event, Group, Limits, Ticket};
/// let mut group = Group::new("billing".into(), Limits::default());
/// let (ticket, mut answer) = Ticket::new();
/// for effect in group.step(0, Event::Describe(ticket)) {
///     if let logd::group::Effect::Reply(reply) = effect {
///         reply.send();
///     }
/// }
/// assert!(answer.try_recv().unwrap().is_err(), "nothing has happened to this group yet");
/// ```
#[derive(Debug)]
pub struct Group {
    pub(super) id: Name,
    pub(super) limits: Limits,
    pub(super) phase: Phase,
    pub(super) generation: i32,
    pub(super) protocol_type: Option<Name>,
    pub(super) protocol: Option<Name>,
    pub(super) leader: Option<Name>,
    pub(super) state_since: Option<Millis>,
    pub(super) members: BTreeMap<Name, Member>,
    /// Instance id to member id.
    pub(super) statics: BTreeMap<Name, Name>,
    /// Ids given out but not yet used, with the time they lapse.
    pub(super) pending: BTreeMap<Name, Millis>,
    /// Members of this generation that have not asked for their assignment by then are out.
    pub(super) sync_deadline: Option<Millis>,
    pub(super) offsets: Offsets,
    pub(super) writing: Option<Writing>,
    /// Answers to commits, held until their records are applied.
    pub(super) parked: BTreeMap<Token, Parked>,
    stash: VecDeque<Event>,
    next_token: Token,
    next_seniority: u64,
}

impl Group {
    /// A group nobody has heard of.
    pub fn new(id: Name, limits: Limits) -> Group {
        Group {
            id,
            limits,
            phase: Phase::Empty,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            state_since: None,
            members: BTreeMap::new(),
            statics: BTreeMap::new(),
            pending: BTreeMap::new(),
            sync_deadline: None,
            offsets: Offsets::default(),
            writing: None,
            parked: BTreeMap::new(),
            stash: VecDeque::new(),
            next_token: 0,
            next_seniority: 0,
        }
    }

    /// Goes by these limits from the next event on. What was promised under others stays.
    pub fn lives_by(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Takes a record from the log, in the log's order. Call [`Group::wake`] after the last.
    pub fn restore(&mut self, now: Millis, record: Record) {
        match record {
            Record::Offset {
                topic,
                partition,
                value,
            } => {
                self.offsets.restore(topic, partition, value);
            }
            Record::Group(Some(record)) => self.restore_generation(now, record),
            Record::Group(None) => self.forget(),
        }
    }

    fn restore_generation(&mut self, now: Millis, record: GroupRecord) {
        self.forget();
        self.generation = record.generation;
        self.protocol_type = Some(record.protocol_type);
        self.protocol = record.protocol;
        self.leader = record.leader;
        self.state_since = Some(record.state_since);
        let protocol = self.protocol.clone().unwrap_or_default();
        for member in record.members {
            if let Some(instance) = &member.instance_id {
                self.statics
                    .insert(instance.clone(), member.member_id.clone());
            }
            let seniority = self.seniority();
            let member = Member::restore(member, &protocol, seniority, now);
            self.members.insert(member.id.clone(), member);
        }
    }

    /// Starts the clocks of a group that was read from the log.
    pub fn wake(&mut self, now: Millis) {
        for member in self.members.values_mut() {
            member.renew_session(now);
        }
        if self.members.is_empty() {
            self.phase = Phase::Empty;
        } else if self
            .members
            .values()
            .all(|member| member.assignment.is_empty())
        {
            // The generation was written when it began; its assignment never was. Its members
            // are still about to ask for it.
            self.begin_assignment(now);
        } else {
            self.phase = Phase::Stable;
        }
    }

    /// Nothing is left of the group but its offsets.
    pub(super) fn forget(&mut self) {
        self.phase = Phase::Empty;
        self.generation = 0;
        self.protocol_type = None;
        self.protocol = None;
        self.leader = None;
        self.state_since = None;
        self.members.clear();
        self.statics.clear();
        self.sync_deadline = None;
    }

    /// Takes one event and says what to do about it.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        let mut out = Outbox::default();
        self.take(now, event, &mut out);
        while self.writing.is_none()
            && let Some(event) = self.stash.pop_front()
        {
            self.take(now, event, &mut out);
        }
        out.0
    }

    fn take(&mut self, now: Millis, event: Event, out: &mut Outbox) {
        if self.writing.is_some() && event.waits_for_write() {
            self.stash(event, out);
        } else {
            self.dispatch(now, event, out);
        }
    }

    fn stash(&mut self, event: Event, out: &mut Outbox) {
        if self.stash.len() < STASH_MAX {
            self.stash.push_back(event);
        } else if let Some(reply) = event.refuse(Refusal::NotAvailable) {
            out.reply(reply);
        }
    }

    fn dispatch(&mut self, now: Millis, event: Event, out: &mut Outbox) {
        match event {
            Event::Join(ticket, join) => self.on_join(now, ticket, join, out),
            Event::Sync(ticket, sync) => self.on_sync(now, ticket, sync, out),
            Event::Heartbeat(ticket, heartbeat) => {
                let answer = self.on_heartbeat(now, &heartbeat);
                out.reply(ticket.accept(answer));
            }
            Event::Leave(ticket, leaving) => self.on_leave(now, ticket, leaving, out),
            Event::Commit(ticket, commit) => self.on_commit(now, ticket, commit, out),
            Event::FetchOffsets(ticket, wanted) => {
                out.reply(ticket.accept(Ok(self.offsets.fetch(wanted))));
            }
            Event::Describe(ticket) => out.reply(ticket.accept(self.describe())),
            Event::Delete(ticket) => self.on_delete(ticket, out),
            Event::DeleteOffsets(ticket, places) => self.on_delete_offsets(ticket, places, out),
            Event::TopicsDeleted(topics) => self.on_topics_deleted(&topics, out),
            Event::Expire => self.on_expire(now, out),
            Event::Tick => self.on_tick(now, out),
            Event::Persisted(token) => self.on_persisted(now, token, out),
            Event::PersistFailed(token, why) => self.on_persist_failed(now, token, why, out),
        }
    }

    /// When [`Event::Tick`] is due next. None while a write is on its way: its outcome comes first.
    pub fn next_deadline(&self) -> Option<Millis> {
        if self.writing.is_some() {
            return None;
        }
        let joining = match self.phase {
            Phase::Preparing { deadline, .. } => Some(deadline),
            Phase::Empty | Phase::Completing | Phase::Stable => None,
        };
        let sessions = self.members.values().filter_map(Member::expires_at);
        sessions
            .chain(self.pending.values().copied())
            .chain(joining)
            .chain(self.sync_deadline)
            .min()
    }

    /// Whether nothing would be lost by dropping the group: nobody in it, nothing remembered.
    pub fn is_vacant(&self) -> bool {
        matches!(self.phase, Phase::Empty)
            && self.generation == 0
            && self.pending.is_empty()
            && self.offsets.is_empty()
            && self.writing.is_none()
            && self.stash.is_empty()
    }

    /// The group's id.
    pub fn id(&self) -> &Name {
        &self.id
    }

    /// Members of this generation, and those who come to the next.
    pub fn members_count(&self) -> usize {
        self.members.len()
    }

    /// One of Kafka's names for a group's state.
    pub fn state_name(&self) -> &'static str {
        match self.phase {
            Phase::Empty => "Empty",
            Phase::Preparing { .. } => "PreparingRebalance",
            Phase::Completing => "CompletingRebalance",
            Phase::Stable => "Stable",
        }
    }

    /// Every name that [`Group::state_name`] may give.
    pub const STATE_NAMES: [&'static str; 4] = [
        "Empty",
        "PreparingRebalance",
        "CompletingRebalance",
        "Stable",
    ];

    /// Such as `consumer`; `None` for a group that only stores offsets.
    pub fn protocol_type(&self) -> Option<&Name> {
        self.protocol_type.as_ref()
    }

    /// The current generation; 0 before the first.
    pub fn generation(&self) -> i32 {
        self.generation
    }

    /// What the log holds of this group once everything written is applied.
    pub fn remembered(&self) -> Remembered {
        Remembered {
            group: (self.generation > 0).then(|| self.generation_record()),
            offsets: self.offsets.fetch(super::event::Wanted::All),
        }
    }

    fn generation_record(&self) -> GroupRecord {
        let protocol = self.protocol.clone().unwrap_or_default();
        GroupRecord {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            state_since: self.state_since.unwrap_or_default(),
            members: self
                .members
                .values()
                .map(|member| member.record(&protocol, member.assignment.clone()))
                .collect(),
        }
    }

    fn describe(&self) -> Result<Description, Refusal> {
        if self.is_vacant() {
            return Err(Refusal::NotFound);
        }
        let stable = matches!(self.phase, Phase::Stable);
        let protocol = self.protocol.clone().filter(|_| stable).unwrap_or_default();
        let members = self
            .members
            .values()
            .map(|member| MemberDescription {
                member_id: member.id.clone(),
                instance_id: member.instance_id.clone(),
                client_id: member.client_id.clone(),
                client_host: member.client_host.clone(),
                // Between generations these would describe something that is about to end.
                metadata: if stable {
                    member.metadata(&protocol)
                } else {
                    Default::default()
                },
                assignment: if stable {
                    member.assignment.clone()
                } else {
                    Default::default()
                },
            })
            .collect();
        Ok(Description {
            state: self.state_name(),
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol,
            members,
        })
    }

    fn on_heartbeat(&mut self, now: Millis, heartbeat: &Heartbeat) -> Result<(), Refusal> {
        self.check_member(
            &heartbeat.member_id,
            heartbeat.instance_id.as_ref(),
            heartbeat.generation,
        )?;
        self.renew_session(now, &heartbeat.member_id);
        match self.phase {
            Phase::Preparing { .. } => Err(Refusal::RebalanceInProgress),
            Phase::Completing | Phase::Stable => Ok(()),
            Phase::Empty => Err(Refusal::UnknownMember),
        }
    }

    fn on_tick(&mut self, now: Millis, out: &mut Outbox) {
        if self.writing.is_none() {
            self.expire_members(now, out);
        }
        if self.writing.is_none()
            && let Phase::Preparing { deadline, .. } = self.phase
            && deadline <= now
        {
            self.on_join_deadline(now, out);
        }
        if self.writing.is_none() && self.sync_deadline.is_some_and(|deadline| deadline <= now) {
            self.on_sync_deadline(now, out);
        }
    }

    fn expire_members(&mut self, now: Millis, out: &mut Outbox) {
        let pending_before = self.pending.len();
        self.pending.retain(|_, deadline| *deadline > now);
        let silent: Vec<Name> = self
            .members
            .values()
            .filter(|member| member.expires_at().is_some_and(|deadline| deadline <= now))
            .map(|member| member.id.clone())
            .collect();
        for id in &silent {
            self.remove_member(id, out);
        }
        if let Some(first) = silent.first() {
            let reason = format!("{} member(s) fell silent, first {first}", silent.len());
            self.membership_shrank(now, &reason, out);
        } else if self.pending.len() < pending_before {
            self.complete_join_if_all_came(now, out);
        }
    }

    /// Whether the sender may speak for this member in this generation.
    pub(super) fn check_member(
        &self,
        member_id: &Name,
        instance_id: Option<&Name>,
        generation: i32,
    ) -> Result<(), Refusal> {
        self.check_identity(member_id, instance_id)?;
        if generation == self.generation {
            Ok(())
        } else {
            Err(Refusal::IllegalGeneration)
        }
    }

    /// Whether the sender is this member, and not a process that was replaced.
    pub(super) fn check_identity(
        &self,
        member_id: &Name,
        instance_id: Option<&Name>,
    ) -> Result<(), Refusal> {
        if let Some(instance) = instance_id {
            match self.statics.get(instance) {
                None => return Err(Refusal::UnknownMember),
                Some(holder) if holder != member_id => return Err(Refusal::FencedInstance),
                Some(_) => {}
            }
        }
        if self.members.contains_key(member_id) {
            Ok(())
        } else {
            Err(Refusal::UnknownMember)
        }
    }

    pub(super) fn renew_session(&mut self, now: Millis, member_id: &Name) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.renew_session(now);
        }
    }

    pub(super) fn seniority(&mut self) -> u64 {
        self.next_seniority += 1;
        self.next_seniority
    }

    pub(super) fn token(&mut self) -> Token {
        self.next_token += 1;
        self.next_token
    }

    /// Sends a change of the membership to the log.
    pub(super) fn write(&mut self, change: Change, records: Vec<Record>, out: &mut Outbox) {
        let token = self.token();
        self.write_as(token, change, records, out);
    }

    /// The same with a token that an offset change shares.
    pub(super) fn write_as(
        &mut self,
        token: Token,
        change: Change,
        records: Vec<Record>,
        out: &mut Outbox,
    ) {
        assert!(
            self.writing.is_none(),
            "a second change of the membership is being written"
        );
        self.writing = Some(Writing { token, change });
        out.0.push(Effect::Persist { token, records });
    }

    fn on_persisted(&mut self, now: Millis, token: Token, out: &mut Outbox) {
        self.offsets.finish(token);
        if let Some(writing) = self.writing.take_if(|writing| writing.token == token) {
            self.apply(now, writing.change, out);
        }
        self.answer_parked(token, None, out);
    }

    fn on_persist_failed(&mut self, now: Millis, token: Token, why: WriteError, out: &mut Outbox) {
        self.offsets.abandon(token);
        if let Some(writing) = self.writing.take_if(|writing| writing.token == token) {
            self.undo(now, writing.change, why, out);
        }
        self.answer_parked(token, Some(why), out);
    }
}

/// Effects in the making.
#[derive(Debug, Default)]
pub(super) struct Outbox(Vec<Effect>);

impl Outbox {
    pub(super) fn reply(&mut self, reply: Reply) {
        self.0.push(Effect::Reply(reply));
    }

    pub(super) fn persist(&mut self, token: Token, records: Vec<Record>) {
        self.0.push(Effect::Persist { token, records });
    }

    pub(super) fn log(&mut self, line: String) {
        self.0.push(Effect::Log(line));
    }
}
