//! Offsets: who may commit, what is forgotten when, and the end of a group.
//!
//! Invariant: a commit is answered after its record is applied, never before; expiry never takes
//! an offset for which a newer commit is on its way.
//!
//! Not here: how offsets are kept (`offsets`).

use std::collections::BTreeSet;

use super::event::{Commit, Millis, Name, Refusal, Ticket, Token, Verdict, Verdicts, WriteError};
use super::member::subscribed_topics;
use super::offsets::Change as OffsetChange;
use super::rebalance::Change;
use super::record::{CommittedOffset, Record, TopicId};
use super::state::{Group, Outbox, Phase};

impl Group {
    pub(super) fn on_commit(
        &mut self,
        now: Millis,
        ticket: Ticket<Verdicts>,
        commit: Commit,
        out: &mut Outbox,
    ) {
        if let Err(refusal) = self.check_commit(&commit) {
            out.reply(ticket.accept(Err(refusal)));
            return;
        }
        self.renew_session(now, &commit.member_id);
        let (verdicts, change) = self.weigh(now, commit);
        self.write_offsets(ticket, verdicts, change, out);
    }

    fn check_commit(&self, commit: &Commit) -> Result<(), Refusal> {
        let empty = matches!(self.phase, Phase::Empty);
        let anonymous = commit.member_id.is_empty() && commit.instance_id.is_none();
        if commit.generation < 0 && empty {
            // A client that assigns its partitions itself, or an administrator.
            Ok(())
        } else if commit.generation < 0 && anonymous {
            Err(Refusal::UnknownMember)
        } else if self.is_vacant() {
            // No such group, so no such generation; the client rejoins.
            Err(Refusal::IllegalGeneration)
        } else {
            let instance = commit.instance_id.as_ref();
            self.check_member(&commit.member_id, instance, commit.generation)?;
            match self.phase {
                Phase::Completing => Err(Refusal::RebalanceInProgress),
                Phase::Empty | Phase::Preparing { .. } | Phase::Stable => Ok(()),
            }
        }
    }

    /// Which of the offsets are acceptable, and what they change.
    fn weigh(&self, now: Millis, commit: Commit) -> (Vec<Verdict>, OffsetChange) {
        let expire_time = commit
            .retention
            .map(|retention| now.saturating_add(retention));
        let mut change = OffsetChange::new();
        let verdicts = commit
            .offsets
            .into_iter()
            .map(|offset| {
                if offset.metadata.len() > self.limits.offset_metadata_bytes_max {
                    return Err(Refusal::MetadataTooLarge);
                }
                let value = CommittedOffset {
                    offset: offset.offset,
                    leader_epoch: offset.leader_epoch,
                    metadata: offset.metadata,
                    commit_time: now,
                    expire_time,
                    topic_id: offset.topic_id,
                };
                change.push(((offset.topic, offset.partition), Some(value)));
                Ok(())
            })
            .collect();
        (verdicts, change)
    }

    fn write_offsets(
        &mut self,
        ticket: Ticket<Verdicts>,
        verdicts: Vec<Verdict>,
        change: OffsetChange,
        out: &mut Outbox,
    ) {
        if change.is_empty() {
            out.reply(ticket.accept(Ok(verdicts)));
        } else {
            let token = self.token();
            let records = self.offsets.begin(token, change);
            self.parked.insert(token, (ticket, verdicts));
            out.persist(token, records);
        }
    }

    /// Answers what waited for this write, if anything did.
    pub(super) fn answer_parked(
        &mut self,
        token: Token,
        failure: Option<WriteError>,
        out: &mut Outbox,
    ) {
        if let Some((ticket, verdicts)) = self.parked.remove(&token) {
            out.reply(ticket.accept(match failure {
                None => Ok(verdicts),
                Some(WriteError::Unavailable) => Err(Refusal::NotAvailable),
                Some(WriteError::TooLarge) => Err(Refusal::CommitTooLarge),
            }));
        }
    }

    pub(super) fn on_delete(&mut self, ticket: Ticket<Result<(), Refusal>>, out: &mut Outbox) {
        if self.is_vacant() {
            out.reply(ticket.accept(Err(Refusal::NotFound)));
        } else if !matches!(self.phase, Phase::Empty) {
            out.reply(ticket.accept(Err(Refusal::NonEmpty)));
        } else {
            self.write_end(Some(ticket), out);
        }
    }

    /// Writes the end of everything the group remembers.
    fn write_end(&mut self, ticket: Option<Ticket<Result<(), Refusal>>>, out: &mut Outbox) {
        let token = self.token();
        let change = self
            .offsets
            .all()
            .into_iter()
            .map(|place| (place, None))
            .collect();
        let mut records = self.offsets.begin(token, change);
        if self.generation > 0 {
            records.push(Record::Group(None));
        }
        if records.is_empty() {
            // Only ids were given out so far; there is nothing to take back.
            self.pending.clear();
            self.offsets.finish(token);
            if let Some(ticket) = ticket {
                out.reply(ticket.accept(Ok(())));
            }
            return;
        }
        self.write_as(token, Change::Deleted(ticket), records, out);
    }

    pub(super) fn on_delete_offsets(
        &mut self,
        ticket: Ticket<Verdicts>,
        places: Vec<(Name, i32)>,
        out: &mut Outbox,
    ) {
        let in_use = self.topics_in_use();
        if self.is_vacant() {
            out.reply(ticket.accept(Err(Refusal::NotFound)));
        } else if matches!(in_use, InUse::Unknown) {
            out.reply(ticket.accept(Err(Refusal::NonEmpty)));
        } else {
            let mut change = OffsetChange::new();
            let verdicts = places
                .into_iter()
                .map(|place| {
                    if in_use.has(&place.0) {
                        return Err(Refusal::Subscribed);
                    }
                    change.push((place, None));
                    Ok(())
                })
                .collect();
            self.write_offsets(ticket, verdicts, change, out);
        }
    }

    pub(super) fn on_topics_deleted(&mut self, topics: &BTreeSet<TopicId>, out: &mut Outbox) {
        self.forget_offsets(self.offsets.of_topics(topics), out);
    }

    fn forget_offsets(&mut self, places: Vec<(Name, i32)>, out: &mut Outbox) {
        if !places.is_empty() {
            let token = self.token();
            let change = places.into_iter().map(|place| (place, None)).collect();
            let records = self.offsets.begin(token, change);
            out.persist(token, records);
        }
    }

    /// A group without members and without offsets is forgotten altogether.
    pub(super) fn on_expire(&mut self, now: Millis, out: &mut Outbox) {
        let gone = self.expired_offsets(now);
        let nobody = matches!(self.phase, Phase::Empty) && self.pending.is_empty();
        if nobody && self.writing.is_none() && gone == self.offsets.all() && !self.is_vacant() {
            out.log("expired".into());
            self.write_end(None, out);
        } else {
            self.forget_offsets(gone, out);
        }
    }

    /// Retention counts from when the offset was last in use: while the group has members, that
    /// is now, save for topics they are no longer subscribed to.
    fn expired_offsets(&self, now: Millis) -> Vec<(Name, i32)> {
        let retention = self.limits.offsets_retention_ms;
        let in_use = self.topics_in_use();
        self.offsets.expired(now, retention, |topic, offset| {
            let emptied = self
                .state_since
                .filter(|_| matches!(in_use, InUse::Nothing));
            // An administrator may commit for a group that has been empty for long.
            let last_used = offset.commit_time.max(emptied.unwrap_or(Millis::MIN));
            let used_now = matches!(in_use, InUse::Unknown) || in_use.has(topic);
            (!used_now).then_some(last_used)
        })
    }

    fn topics_in_use(&self) -> InUse {
        let consumers = self.protocol_type.as_deref() == Some("consumer");
        match self.phase {
            Phase::Empty => InUse::Nothing,
            Phase::Stable if consumers => self.subscriptions(),
            Phase::Preparing { .. } | Phase::Completing | Phase::Stable => InUse::Unknown,
        }
    }

    fn subscriptions(&self) -> InUse {
        let protocol = self.protocol.clone().unwrap_or_default();
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            match subscribed_topics(&member.metadata(&protocol)) {
                Some(more) => topics.extend(more),
                None => return InUse::Unknown,
            }
        }
        InUse::These(topics)
    }
}

/// The topics a group consumes, as far as its broker can tell.
enum InUse {
    Nothing,
    These(BTreeSet<Name>),
    Unknown,
}

impl InUse {
    fn has(&self, topic: &Name) -> bool {
        matches!(self, InUse::These(topics) if topics.contains(topic))
    }
}
