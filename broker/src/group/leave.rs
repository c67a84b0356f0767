//! Who leaves, one or many at once.
//!
//! Invariant: however many leave together, the group rebalances once.
//!
//! Not here: members that fall silent (`state`), groups that are deleted (`commit`).

use super::event::{LeaveReply, Leaving, Millis, Refusal, Ticket, Verdict};
use super::rebalance::Change;
use super::state::{Group, Outbox, Writing};

impl Group {
    pub(super) fn on_leave(
        &mut self,
        now: Millis,
        ticket: Ticket<LeaveReply>,
        leaving: Vec<Leaving>,
        out: &mut Outbox,
    ) {
        let members_before = self.members.len();
        let verdicts: Vec<Verdict> = leaving
            .iter()
            .map(|leaving| self.take_leave(leaving, out))
            .collect();
        if self.members.len() < members_before {
            let reason = farewell(&leaving);
            self.membership_shrank(now, &reason, out);
        } else {
            // A pending member that goes may be the one that the others waited for.
            self.complete_join_if_all_came(now, out);
        }
        match &mut self.writing {
            // The last one out learns that it is out when a crash cannot bring it back.
            Some(Writing {
                change: Change::Emptied { leaver, .. },
                ..
            }) => {
                *leaver = Some((ticket, verdicts));
            }
            _ => out.reply(ticket.accept(Ok(verdicts))),
        }
    }

    fn take_leave(&mut self, leaving: &Leaving, out: &mut Outbox) -> Result<(), Refusal> {
        let Leaving {
            member_id,
            instance_id,
            ..
        } = leaving;
        if instance_id.is_none() && self.pending.remove(member_id).is_some() {
            return Ok(());
        }
        let held_by = instance_id
            .as_ref()
            .and_then(|instance| self.statics.get(instance));
        let id = match held_by {
            // An administrator removes a static member by its instance id alone.
            Some(holder) if member_id.is_empty() => holder.clone(),
            _ => member_id.clone(),
        };
        self.check_identity(&id, instance_id.as_ref())?;
        self.remove_member(&id, out);
        Ok(())
    }
}

fn farewell(leaving: &[Leaving]) -> String {
    let reason = leaving.iter().find_map(|leaving| leaving.reason.as_deref());
    format!(
        "{} member(s) left ({})",
        leaving.len(),
        reason.unwrap_or("no reason given")
    )
}
