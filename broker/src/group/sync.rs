//! Who gets which share: the leader's decision on its way to everybody.
//!
//! Invariant: nobody gets a share of a generation other than the one it names, and nobody gets
//! one before it is in the log.
//!
//! Not here: the decision itself, which is the leader's.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::event::{Millis, Name, Refusal, Sync, SyncReply, Synced, Ticket};
use super::rebalance::Change;
use super::state::{Group, Outbox, Phase};

impl Group {
    pub(super) fn on_sync(
        &mut self,
        now: Millis,
        ticket: Ticket<SyncReply>,
        sync: Sync,
        out: &mut Outbox,
    ) {
        if let Err(refusal) = self.check_sync(&sync) {
            out.reply(ticket.accept(Err(refusal)));
        } else if matches!(self.phase, Phase::Completing) {
            self.park_sync(&sync.member_id, ticket, out);
            if self.leader.as_ref() == Some(&sync.member_id) {
                self.write_assignment(now, sync.assignments, out);
            }
        } else {
            let answer = self.share(now, &sync.member_id);
            out.reply(ticket.accept(answer));
        }
    }

    fn check_sync(&self, sync: &Sync) -> Result<(), Refusal> {
        self.check_member(&sync.member_id, sync.instance_id.as_ref(), sync.generation)?;
        let differs = |said: &Option<Name>, ours: &Option<Name>| said.is_some() && said != ours;
        if differs(&sync.protocol_type, &self.protocol_type)
            || differs(&sync.protocol, &self.protocol)
        {
            return Err(Refusal::InconsistentProtocol);
        }
        match self.phase {
            Phase::Completing | Phase::Stable => Ok(()),
            Phase::Preparing { .. } => Err(Refusal::RebalanceInProgress),
            Phase::Empty => Err(Refusal::UnknownMember),
        }
    }

    fn park_sync(&mut self, id: &Name, ticket: Ticket<SyncReply>, out: &mut Outbox) {
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        member.has_synced = true;
        if let Some(earlier) = member.awaiting_sync.replace(ticket) {
            out.reply(earlier.accept(Err(Refusal::RebalanceInProgress)));
        }
    }

    fn write_assignment(&mut self, now: Millis, assignments: Vec<(Name, Bytes)>, out: &mut Outbox) {
        let shares: BTreeMap<Name, Bytes> = assignments.into_iter().collect();
        let record = self.record(
            self.generation,
            self.protocol.clone(),
            self.leader.clone(),
            now,
            // Whom the leader forgot gets nothing, and is told so.
            |member| shares.get(&member.id).cloned().unwrap_or_default(),
        );
        self.write(Change::Assignment { shares, since: now }, vec![record], out);
    }

    /// The decision is in the log: everybody may know.
    pub(super) fn assign(
        &mut self,
        now: Millis,
        mut shares: BTreeMap<Name, Bytes>,
        since: Millis,
        out: &mut Outbox,
    ) {
        for member in self.members.values_mut() {
            member.assignment = shares.remove(&member.id).unwrap_or_default();
        }
        self.phase = Phase::Stable;
        self.state_since = Some(since);
        out.log(format!("stable at generation {}", self.generation));
        let ids: Vec<Name> = self.members.keys().cloned().collect();
        for id in ids {
            let ticket = self
                .members
                .get_mut(&id)
                .and_then(|member| member.awaiting_sync.take());
            if let Some(ticket) = ticket {
                let answer = self.share(now, &id);
                out.reply(ticket.accept(answer));
            }
        }
        self.end_sync_wait_if_all_came();
    }

    fn share(&mut self, now: Millis, id: &Name) -> SyncReply {
        let protocol_type = self.protocol_type.clone().unwrap_or_default();
        let protocol = self.protocol.clone().unwrap_or_default();
        let member = self.members.get_mut(id).ok_or(Refusal::UnknownMember)?;
        member.has_synced = true;
        member.renew_session(now);
        let assignment = member.assignment.clone();
        self.end_sync_wait_if_all_came();
        Ok(Synced {
            protocol_type,
            protocol,
            assignment,
        })
    }

    fn end_sync_wait_if_all_came(&mut self) {
        let stable = matches!(self.phase, Phase::Stable);
        if stable && self.members.values().all(|member| member.has_synced) {
            self.sync_deadline = None;
        }
    }

    /// Those who joined and never asked for their share hold partitions that nobody reads.
    pub(super) fn on_sync_deadline(&mut self, now: Millis, out: &mut Outbox) {
        self.sync_deadline = None;
        let missing: Vec<Name> = self
            .members
            .values()
            .filter(|member| !member.has_synced)
            .map(|member| member.id.clone())
            .collect();
        for id in &missing {
            self.remove_member(id, out);
        }
        if let Some(first) = missing.first() {
            let reason = format!("{} member(s) never synced, first {first}", missing.len());
            self.membership_shrank(now, &reason, out);
        }
    }
}
