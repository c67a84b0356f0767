//! Who may join, and what that sets off.
//!
//! Invariant: an instance id belongs to one member id at a time; whoever held it before is fenced
//! and told so.
//!
//! Not here: when a generation begins (`rebalance`).

use bytes::Bytes;

use super::event::{Join, JoinReply, Joined, Millis, Name, Protocol, Refusal, Ticket};
use super::member::{Member, NEW_MEMBER_TIMEOUT, elect_protocol};
use super::rebalance::Change;
use super::record::{GroupRecord, Record};
use super::state::{Group, Outbox, Phase};

/// A static member that came back under a new id while the group is stable.
#[derive(Debug)]
pub(super) struct Replacement {
    pub(super) ticket: Ticket<JoinReply>,
    pub(super) join: Join,
    pub(super) old_id: Name,
}

impl Group {
    pub(super) fn on_join(
        &mut self,
        now: Millis,
        ticket: Ticket<JoinReply>,
        join: Join,
        out: &mut Outbox,
    ) {
        match self.admit(&join) {
            Err(refusal) => out.reply(ticket.accept(JoinReply::Refused(refusal))),
            Ok(()) if !join.member_id.is_empty() => self.join_known(now, ticket, join, out),
            Ok(()) if join.instance_id.is_some() => self.join_static(now, ticket, join, out),
            Ok(()) => self.join_newcomer(now, ticket, join, out),
        }
    }

    fn admit(&self, join: &Join) -> Result<(), Refusal> {
        let limits = &self.limits;
        let allowed = limits.session_timeout_ms_min..=limits.session_timeout_ms_max;
        if !allowed.contains(&join.session_timeout) {
            Err(Refusal::InvalidSessionTimeout)
        } else if !self.has_room_for(join) {
            Err(Refusal::GroupFull)
        } else if !self.supports(join) {
            Err(Refusal::InconsistentProtocol)
        } else {
            Ok(())
        }
    }

    /// While members are called together, the first to come get the seats.
    fn has_room_for(&self, join: &Join) -> bool {
        let instance = join.instance_id.as_ref();
        let id = instance
            .and_then(|id| self.statics.get(id))
            .unwrap_or(&join.member_id);
        let known = self.members.get(id);
        let seats = self.limits.members_max;
        match self.phase {
            Phase::Empty => true,
            Phase::Preparing { .. } => {
                let taken = self
                    .members
                    .values()
                    .filter(|member| member.awaiting_join.is_some());
                known.is_some_and(|member| member.awaiting_join.is_some()) || taken.count() < seats
            }
            Phase::Completing | Phase::Stable => known.is_some() || self.members.len() < seats,
        }
    }

    fn supports(&self, join: &Join) -> bool {
        let speaks = !join.protocol_type.is_empty() && !join.protocols.is_empty();
        let same_type = self.protocol_type.as_ref() == Some(&join.protocol_type);
        let in_common = || {
            let offers = self.members.values().map(|member| &*member.protocols);
            elect_protocol(offers.chain([&*join.protocols])).is_some()
        };
        speaks && (self.members.is_empty() || (same_type && in_common()))
    }

    /// Without an id, a client that can come back with one is asked to: a join whose answer was
    /// lost then leaves no phantom member for the others to wait for.
    fn join_newcomer(
        &mut self,
        now: Millis,
        ticket: Ticket<JoinReply>,
        join: Join,
        out: &mut Outbox,
    ) {
        let id = join.fresh_member_id.clone();
        if join.takes_member_id {
            let lapses = now.saturating_add(join.session_timeout);
            self.pending.insert(id.clone(), lapses);
            out.reply(ticket.accept(JoinReply::MemberIdRequired(id)));
        } else {
            self.add_member(now, id, ticket, join, out);
        }
    }

    fn join_static(
        &mut self,
        now: Millis,
        ticket: Ticket<JoinReply>,
        join: Join,
        out: &mut Outbox,
    ) {
        let held_by = join
            .instance_id
            .as_ref()
            .and_then(|id| self.statics.get(id))
            .cloned();
        match held_by {
            None => self.add_member(now, join.fresh_member_id.clone(), ticket, join, out),
            Some(old_id) if self.keeps_protocol(&old_id, &join.protocols) => {
                self.write_replacement(
                    Replacement {
                        ticket,
                        join,
                        old_id,
                    },
                    out,
                );
            }
            Some(old_id) => {
                let new_id = join.fresh_member_id.clone();
                self.rename(&old_id, &new_id, out);
                self.update_member(now, &new_id, ticket, join, "a static member came back", out);
            }
        }
    }

    /// Whether the group is stable and would choose the same protocol with this offer in place
    /// of the member's old one. Then nobody else needs to know that the member restarted.
    fn keeps_protocol(&self, id: &Name, offer: &[Protocol]) -> bool {
        let offers = self.members.values().map(|member| {
            if member.id == *id {
                offer
            } else {
                &*member.protocols
            }
        });
        matches!(self.phase, Phase::Stable) && elect_protocol(offers) == self.protocol
    }

    fn write_replacement(&mut self, replacement: Replacement, out: &mut Outbox) {
        let record = self.record_with(&replacement);
        self.write(
            Change::Replacement(Box::new(replacement)),
            vec![record],
            out,
        );
    }

    /// The group's record with the new process in the old one's seat.
    fn record_with(&self, replacement: &Replacement) -> Record {
        let Replacement { join, old_id, .. } = replacement;
        let new_id = &join.fresh_member_id;
        let leader = self
            .leader
            .clone()
            .map(|id| if id == *old_id { new_id.clone() } else { id });
        let record = self.record(
            self.generation,
            self.protocol.clone(),
            leader,
            self.state_since.unwrap_or_default(),
            |member| member.assignment.clone(),
        );
        let Record::Group(Some(mut group)) = record else {
            return record;
        };
        let protocol = self.protocol.clone().unwrap_or_default();
        substitute(&mut group, old_id, join, &protocol);
        Record::Group(Some(group))
    }

    /// The replacement is in the log.
    pub(super) fn replace(&mut self, now: Millis, replacement: Replacement, out: &mut Outbox) {
        let Replacement {
            ticket,
            join,
            old_id,
        } = replacement;
        let new_id = join.fresh_member_id.clone();
        let leader_before = self.leader.clone().unwrap_or_default();
        self.rename(&old_id, &new_id, out);
        let takes_skip = join.takes_skip;
        if let Some(member) = self.members.get_mut(&new_id) {
            take_terms(member, join);
            member.renew_session(now);
        }
        let seat = self.seat(&new_id);
        let answer = if takes_skip {
            // The leader sees the members, so it can notice that their topics changed.
            Joined {
                skip_assignment: !seat.members.is_empty(),
                ..seat
            }
        } else {
            // An old client that is told that it leads would assign anew. Told the former
            // leader's id, it asks for its assignment like everybody else.
            Joined {
                leader: leader_before,
                members: Vec::new(),
                ..seat
            }
        };
        out.reply(ticket.accept(JoinReply::Joined(answer)));
    }

    /// Moves a seat to a new id. What the old holder waits for, it waits for in vain.
    fn rename(&mut self, old_id: &Name, new_id: &Name, out: &mut Outbox) {
        let Some(mut member) = self.members.remove(old_id) else {
            return;
        };
        if let Some(ticket) = member.awaiting_join.take() {
            out.reply(ticket.accept(JoinReply::Refused(Refusal::FencedInstance)));
        }
        if let Some(ticket) = member.awaiting_sync.take() {
            out.reply(ticket.accept(Err(Refusal::FencedInstance)));
        }
        if let Some(instance) = &member.instance_id {
            out.log(format!("{new_id} replaces {old_id} as {instance}"));
            self.statics.insert(instance.clone(), new_id.clone());
        }
        if self.leader.as_ref() == Some(old_id) {
            self.leader = Some(new_id.clone());
        }
        member.id = new_id.clone();
        self.members.insert(new_id.clone(), member);
    }

    fn join_known(&mut self, now: Millis, ticket: Ticket<JoinReply>, join: Join, out: &mut Outbox) {
        let id = join.member_id.clone();
        if join.instance_id.is_none() && self.pending.remove(&id).is_some() {
            self.add_member(now, id, ticket, join, out);
        } else if let Err(refusal) = self.check_identity(&id, join.instance_id.as_ref()) {
            out.reply(ticket.accept(JoinReply::Refused(refusal)));
        } else {
            self.rejoin(now, ticket, join, out);
        }
    }

    fn rejoin(&mut self, now: Millis, ticket: Ticket<JoinReply>, join: Join, out: &mut Outbox) {
        let id = join.member_id.clone();
        let leads = self.leader.as_ref() == Some(&id);
        let unchanged = self
            .members
            .get(&id)
            .is_some_and(|member| member.offers(&join.protocols));
        match self.phase {
            // The answer to its join was lost; it gets the same again.
            Phase::Completing if unchanged => self.repeat_seat(now, &id, ticket, out),
            Phase::Stable if unchanged && !leads => self.repeat_seat(now, &id, ticket, out),
            Phase::Stable if unchanged => {
                self.update_member(now, &id, ticket, join, "the leader asked for it", out);
            }
            Phase::Empty | Phase::Preparing { .. } | Phase::Completing | Phase::Stable => {
                self.update_member(now, &id, ticket, join, "a member's offer changed", out);
            }
        }
    }

    fn repeat_seat(&mut self, now: Millis, id: &Name, ticket: Ticket<JoinReply>, out: &mut Outbox) {
        self.renew_session(now, id);
        out.reply(ticket.accept(JoinReply::Joined(self.seat(id))));
    }

    fn add_member(
        &mut self,
        now: Millis,
        id: Name,
        ticket: Ticket<JoinReply>,
        join: Join,
        out: &mut Outbox,
    ) {
        if self.members.is_empty() {
            self.protocol_type = Some(join.protocol_type.clone());
        }
        if self.generation == 0
            && let Phase::Preparing {
                initial: Some(initial),
                ..
            } = &mut self.phase
        {
            initial.newcomer = true;
        }
        if let Some(instance) = &join.instance_id {
            self.statics.insert(instance.clone(), id.clone());
        }
        let reason = format!("{id} joins{}", in_its_words(join.reason.as_ref()));
        let seniority = self.seniority();
        let member = newcomer(now, id.clone(), seniority, ticket, join);
        self.members.insert(id, member);
        self.rebalance(now, &reason, out);
    }

    fn update_member(
        &mut self,
        now: Millis,
        id: &Name,
        ticket: Ticket<JoinReply>,
        join: Join,
        why: &str,
        out: &mut Outbox,
    ) {
        let Some(member) = self.members.get_mut(id) else {
            out.reply(ticket.accept(JoinReply::Refused(Refusal::UnknownMember)));
            return;
        };
        let reason = format!("{why}: {id}{}", in_its_words(join.reason.as_ref()));
        take_terms(member, join);
        if let Some(earlier) = member.awaiting_join.replace(ticket) {
            // The same member asks again, perhaps over a new connection; one seat, one answer.
            out.reply(earlier.accept(JoinReply::Refused(Refusal::RebalanceInProgress)));
        }
        self.rebalance(now, &reason, out);
    }

    /// Takes a member out; what it waits for ends here.
    pub(super) fn remove_member(&mut self, id: &Name, out: &mut Outbox) {
        let Some(mut member) = self.members.remove(id) else {
            return;
        };
        if let Some(ticket) = member.awaiting_join.take() {
            out.reply(ticket.accept(JoinReply::Refused(Refusal::UnknownMember)));
        }
        if let Some(ticket) = member.awaiting_sync.take() {
            out.reply(ticket.accept(Err(Refusal::UnknownMember)));
        }
        if let Some(instance) = &member.instance_id {
            self.statics.remove(instance);
        }
        if self.leader.as_ref() == Some(id) {
            self.leader = None;
        }
    }
}

fn in_its_words(reason: Option<&Name>) -> String {
    reason
        .map(|reason| format!(" ({reason})"))
        .unwrap_or_default()
}

fn newcomer(
    now: Millis,
    id: Name,
    seniority: u64,
    ticket: Ticket<JoinReply>,
    join: Join,
) -> Member {
    Member {
        id,
        instance_id: join.instance_id,
        client_id: join.client_id,
        client_host: join.client_host,
        rebalance_timeout: join.rebalance_timeout,
        session_timeout: join.session_timeout,
        protocols: join.protocols,
        assignment: Bytes::new(),
        seniority,
        is_new: true,
        has_synced: false,
        awaiting_join: Some(ticket),
        awaiting_sync: None,
        session_deadline: now.saturating_add(NEW_MEMBER_TIMEOUT),
    }
}

fn take_terms(member: &mut Member, join: Join) {
    member.client_id = join.client_id;
    member.client_host = join.client_host;
    member.rebalance_timeout = join.rebalance_timeout;
    member.session_timeout = join.session_timeout;
    member.protocols = join.protocols;
}

fn substitute(group: &mut GroupRecord, old_id: &Name, join: &Join, protocol: &Name) {
    for member in group
        .members
        .iter_mut()
        .filter(|member| member.member_id == *old_id)
    {
        member.member_id = join.fresh_member_id.clone();
        member.client_id = join.client_id.clone();
        member.client_host = join.client_host.clone();
        member.rebalance_timeout = join.rebalance_timeout;
        member.session_timeout = join.session_timeout;
        member.subscription = super::member::metadata_of(&join.protocols, protocol);
    }
    group.members.sort_by(|a, b| a.member_id.cmp(&b.member_id));
}
