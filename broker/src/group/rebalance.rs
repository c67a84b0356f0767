//! How one generation ends and the next begins.
//!
//! Invariant: a generation's number rises by one each time, is written before anybody learns it,
//! and a new one is proposed only when every known member has asked to join, or its time is up.
//!
//! Not here: who may join (`join`) and what the leader decides (`sync`).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::event::{
    JoinReply, Joined, JoinedMember, Millis, Name, Parked, Refusal, Ticket, WriteError,
};
use super::join::Replacement;
use super::member::{Member, elect_protocol};
use super::record::{GroupRecord, Record};
use super::state::{Group, Outbox, Phase};

/// How soon a group whose last member is gone tries again to write that down.
const EMPTYING_RETRY_MS: Millis = 1_000;

/// An empty group's first wait.
#[derive(Debug)]
pub(super) struct Initial {
    /// How much longer newcomers may extend the wait.
    left: Millis,
    /// Somebody came since the wait began.
    pub(super) newcomer: bool,
}

/// A change of the membership that becomes real when its record is applied.
#[derive(Debug)]
pub(super) enum Change {
    /// The next generation, with members.
    Generation {
        generation: i32,
        protocol: Name,
        leader: Name,
        since: Millis,
    },
    /// The next generation, without; the leave that caused it is answered then.
    Emptied {
        generation: i32,
        since: Millis,
        leaver: Option<Parked>,
    },
    /// The leader's decision.
    Assignment {
        shares: BTreeMap<Name, Bytes>,
        since: Millis,
    },
    /// A static member came back under a new id, and nothing else changes.
    Replacement(Box<Replacement>),
    /// The end of the group.
    Deleted(Option<Ticket<Result<(), Refusal>>>),
}

impl Group {
    /// Calls for a rebalance, or, if one is under way, sees whether it can complete.
    pub(super) fn rebalance(&mut self, now: Millis, reason: &str, out: &mut Outbox) {
        match self.phase {
            Phase::Preparing { .. } => self.complete_join_if_all_came(now, out),
            Phase::Empty | Phase::Completing | Phase::Stable => {
                self.prepare_rebalance(now, reason, out);
            }
        }
    }

    /// Somebody is gone.
    pub(super) fn membership_shrank(&mut self, now: Millis, reason: &str, out: &mut Outbox) {
        if !matches!(self.phase, Phase::Empty) {
            self.rebalance(now, reason, out);
        }
    }

    fn prepare_rebalance(&mut self, now: Millis, reason: &str, out: &mut Outbox) {
        self.dismiss_syncs(now, Refusal::RebalanceInProgress, out);
        self.sync_deadline = None;
        out.log(format!(
            "rebalances after generation {}: {reason}",
            self.generation
        ));
        let timeout = self.rebalance_timeout();
        if matches!(self.phase, Phase::Empty) {
            let delay = self.limits.initial_rebalance_delay_ms;
            let left = timeout.saturating_sub(delay).max(0);
            let initial = Some(Initial {
                left,
                newcomer: false,
            });
            self.phase = Phase::Preparing {
                deadline: now.saturating_add(delay),
                initial,
            };
            if delay == 0 {
                self.on_join_deadline(now, out);
            }
        } else {
            self.phase = Phase::Preparing {
                deadline: now.saturating_add(timeout),
                initial: None,
            };
            self.complete_join_if_all_came(now, out);
        }
    }

    /// Answers every parked sync with a refusal.
    pub(super) fn dismiss_syncs(&mut self, now: Millis, refusal: Refusal, out: &mut Outbox) {
        for member in self.members.values_mut() {
            if let Some(ticket) = member.awaiting_sync.take() {
                member.renew_session(now);
                out.reply(ticket.accept(Err(refusal)));
            }
        }
    }

    /// The longest time any member asked a rebalance to wait.
    fn rebalance_timeout(&self) -> Millis {
        self.members
            .values()
            .map(|member| member.rebalance_timeout)
            .max()
            .unwrap_or(0)
    }

    /// An empty group's first wait is never cut short: more members are expected.
    pub(super) fn complete_join_if_all_came(&mut self, now: Millis, out: &mut Outbox) {
        let all_came = self
            .members
            .values()
            .all(|member| member.awaiting_join.is_some());
        let waits_for_all = matches!(self.phase, Phase::Preparing { initial: None, .. });
        if waits_for_all && all_came && self.pending.is_empty() {
            self.complete_join(now, out);
        }
    }

    /// The time to join is up.
    pub(super) fn on_join_deadline(&mut self, now: Millis, out: &mut Outbox) {
        let delay = self.limits.initial_rebalance_delay_ms;
        if let Phase::Preparing {
            deadline,
            initial: Some(initial),
        } = &mut self.phase
            && initial.newcomer
            && initial.left > 0
        {
            let wait = delay.min(initial.left);
            initial.left -= wait;
            initial.newcomer = false;
            *deadline = now.saturating_add(wait);
        } else {
            self.complete_join(now, out);
        }
    }

    fn complete_join(&mut self, now: Millis, out: &mut Outbox) {
        self.drop_absent_members(out);
        let generation = self.generation.checked_add(1).unwrap_or(1);
        if self.members.is_empty() {
            self.write_emptied(now, generation, out);
        } else if let Some(leader) = self.elect_leader() {
            self.write_generation(now, generation, leader, out);
        } else {
            // Only static members are left and none came back yet: keep their seats.
            let deadline = now.saturating_add(self.rebalance_timeout());
            self.phase = Phase::Preparing {
                deadline,
                initial: None,
            };
        }
    }

    /// A static member keeps its seat until its session ends.
    fn drop_absent_members(&mut self, out: &mut Outbox) {
        let absent: Vec<Name> = self
            .members
            .values()
            .filter(|member| member.awaiting_join.is_none() && member.instance_id.is_none())
            .map(|member| member.id.clone())
            .collect();
        for id in absent {
            out.log(format!("member {id} did not rejoin in time"));
            self.remove_member(&id, out);
        }
    }

    /// The leader stays if it came; else the longest-standing member that did.
    fn elect_leader(&self) -> Option<Name> {
        let came = |member: &&Member| member.awaiting_join.is_some();
        let incumbent = self
            .leader
            .as_ref()
            .and_then(|id| self.members.get(id))
            .filter(came);
        incumbent
            .or_else(|| {
                self.members
                    .values()
                    .filter(came)
                    .min_by_key(|member| member.seniority)
            })
            .map(|member| member.id.clone())
    }

    fn write_emptied(&mut self, now: Millis, generation: i32, out: &mut Outbox) {
        let record = self.record(generation, None, None, now, |_| Bytes::new());
        let change = Change::Emptied {
            generation,
            since: now,
            leaver: None,
        };
        self.write(change, vec![record], out);
    }

    fn write_generation(&mut self, now: Millis, generation: i32, leader: Name, out: &mut Outbox) {
        let offers = self.members.values().map(|member| &*member.protocols);
        // Joins without a protocol in common were refused, so there is one.
        let protocol = elect_protocol(offers).unwrap_or_default();
        let record = self.record(
            generation,
            Some(protocol.clone()),
            Some(leader.clone()),
            now,
            // No shares yet: that is how a reader of the log knows that the leader's decision
            // is still to come.
            |_| Bytes::new(),
        );
        let change = Change::Generation {
            generation,
            protocol,
            leader,
            since: now,
        };
        self.write(change, vec![record], out);
    }

    /// The group's record, as it will be.
    pub(super) fn record(
        &self,
        generation: i32,
        protocol: Option<Name>,
        leader: Option<Name>,
        state_since: Millis,
        share: impl Fn(&Member) -> Bytes,
    ) -> Record {
        let name = protocol.clone().unwrap_or_default();
        let members = self
            .members
            .values()
            .map(|member| member.record(&name, share(member)))
            .collect();
        Record::Group(Some(GroupRecord {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            generation,
            protocol,
            leader,
            state_since,
            members,
        }))
    }

    /// The record is applied: so is what it says.
    pub(super) fn apply(&mut self, now: Millis, change: Change, out: &mut Outbox) {
        match change {
            Change::Generation {
                generation,
                protocol,
                leader,
                since,
            } => {
                self.protocol = Some(protocol);
                self.leader = Some(leader);
                self.begin_generation(now, generation, since, out);
            }
            Change::Emptied {
                generation,
                since,
                leaver,
            } => {
                self.phase = Phase::Empty;
                self.generation = generation;
                self.protocol = None;
                self.leader = None;
                self.state_since = Some(since);
                out.log(format!("empty at generation {generation}"));
                if let Some((ticket, verdicts)) = leaver {
                    out.reply(ticket.accept(Ok(verdicts)));
                }
            }
            Change::Assignment { shares, since } => self.assign(now, shares, since, out),
            Change::Replacement(replacement) => self.replace(now, *replacement, out),
            Change::Deleted(ticket) => {
                self.forget();
                out.log("deleted".into());
                if let Some(ticket) = ticket {
                    out.reply(ticket.accept(Ok(())));
                }
            }
        }
    }

    fn begin_generation(&mut self, now: Millis, generation: i32, since: Millis, out: &mut Outbox) {
        self.generation = generation;
        self.state_since = Some(since);
        out.log(format!(
            "begins generation {generation} with {} member(s), protocol {}",
            self.members.len(),
            self.protocol.as_deref().unwrap_or("none"),
        ));
        for member in self.members.values_mut() {
            member.assignment = Bytes::new();
            member.is_new = false;
            member.renew_session(now);
        }
        self.begin_assignment(now);
        let seats: Vec<Name> = self.members.keys().cloned().collect();
        for id in seats {
            let ticket = self
                .members
                .get_mut(&id)
                .and_then(|member| member.awaiting_join.take());
            if let Some(ticket) = ticket {
                out.reply(ticket.accept(JoinReply::Joined(self.seat(&id))));
            }
        }
    }

    /// The members of a generation have one rebalance timeout to ask for their assignment.
    pub(super) fn begin_assignment(&mut self, now: Millis) {
        for member in self.members.values_mut() {
            member.has_synced = false;
        }
        self.phase = Phase::Completing;
        self.sync_deadline = Some(now.saturating_add(self.rebalance_timeout()));
    }

    /// A member's seat in the current generation; the leader's comes with the list of all.
    pub(super) fn seat(&self, member_id: &Name) -> Joined {
        let leads = self.leader.as_ref() == Some(member_id);
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: self.protocol.clone().unwrap_or_default(),
            leader: self.leader.clone().unwrap_or_default(),
            member_id: member_id.clone(),
            members: if leads { self.roster() } else { Vec::new() },
            skip_assignment: false,
        }
    }

    fn roster(&self) -> Vec<JoinedMember> {
        let protocol = self.protocol.clone().unwrap_or_default();
        self.members
            .values()
            .map(|member| JoinedMember {
                member_id: member.id.clone(),
                instance_id: member.instance_id.clone(),
                metadata: member.metadata(&protocol),
            })
            .collect()
    }

    /// The record will never be applied: nobody was told, so the group stands where it stood.
    pub(super) fn undo(&mut self, now: Millis, change: Change, why: WriteError, out: &mut Outbox) {
        let refusal = match why {
            WriteError::Unavailable => Refusal::NotAvailable,
            WriteError::TooLarge => Refusal::GroupTooLarge,
        };
        out.log(format!("a change was not written: {why}"));
        match change {
            Change::Generation { .. } => self.send_joiners_back(now, refusal, out),
            Change::Emptied { leaver, .. } => {
                let deadline = now.saturating_add(EMPTYING_RETRY_MS);
                self.phase = Phase::Preparing {
                    deadline,
                    initial: None,
                };
                if let Some((ticket, _)) = leaver {
                    out.reply(ticket.accept(Err(refusal)));
                }
            }
            Change::Assignment { .. } => {
                self.dismiss_syncs(now, refusal, out);
                self.rebalance(now, "the assignment could not be written", out);
            }
            Change::Replacement(replacement) => {
                out.reply(replacement.ticket.accept(JoinReply::Refused(refusal)));
            }
            Change::Deleted(ticket) => {
                if let Some(ticket) = ticket {
                    out.reply(ticket.accept(Err(refusal)));
                }
            }
        }
    }

    /// They keep their seats for one more rebalance timeout, in which to ask again.
    fn send_joiners_back(&mut self, now: Millis, refusal: Refusal, out: &mut Outbox) {
        for member in self.members.values_mut() {
            if let Some(ticket) = member.awaiting_join.take() {
                member.is_new = false;
                member.renew_session(now);
                out.reply(ticket.accept(JoinReply::Refused(refusal)));
            }
        }
        let deadline = now.saturating_add(self.rebalance_timeout());
        self.phase = Phase::Preparing {
            deadline,
            initial: None,
        };
    }
}
