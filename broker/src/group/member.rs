//! One member: what it offers, what it holds, what it waits for.
//!
//! Invariant: a member waits for at most one join and one sync; parking a second one hands the
//! first back to be answered.
//!
//! Not here: the rules of the group.

use bytes::{Buf, Bytes};

use super::event::{JoinReply, Millis, Name, Protocol, SyncReply, Ticket};
use super::record::MemberRecord;

/// A new member has asked once and cannot send heartbeats while it waits, so only this notices
/// that it went away. Kafka's value: longer than the usual rebalance timeout, and bounded.
pub(super) const NEW_MEMBER_TIMEOUT: Millis = 5 * 60 * 1000;

/// One member of a group.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: Name,
    pub(super) instance_id: Option<Name>,
    pub(super) client_id: Name,
    pub(super) client_host: Name,
    pub(super) rebalance_timeout: Millis,
    pub(super) session_timeout: Millis,
    pub(super) protocols: Vec<Protocol>,
    pub(super) assignment: Bytes,
    /// The order of arrival: the earliest becomes leader when there is none.
    pub(super) seniority: u64,
    /// Not yet part of any generation.
    pub(super) is_new: bool,
    /// Has asked for its assignment in this generation.
    pub(super) has_synced: bool,
    pub(super) awaiting_join: Option<Ticket<JoinReply>>,
    pub(super) awaiting_sync: Option<Ticket<SyncReply>>,
    pub(super) session_deadline: Millis,
}

impl Member {
    /// A sign of life.
    pub(super) fn renew_session(&mut self, now: Millis) {
        self.session_deadline = now.saturating_add(self.session_timeout);
    }

    /// When silence becomes absence. A parked request is a sign of life, except a newcomer's.
    pub(super) fn expires_at(&self) -> Option<Millis> {
        let parked = self.awaiting_join.is_some() || self.awaiting_sync.is_some();
        (!parked || self.is_new).then_some(self.session_deadline)
    }

    /// Whether it offers exactly this, in this order.
    pub(super) fn offers(&self, protocols: &[Protocol]) -> bool {
        self.protocols == protocols
    }

    /// What it sent for a protocol.
    pub(super) fn metadata(&self, protocol: &str) -> Bytes {
        metadata_of(&self.protocols, protocol)
    }

    /// What is remembered of it.
    pub(super) fn record(&self, protocol: &str, assignment: Bytes) -> MemberRecord {
        MemberRecord {
            member_id: self.id.clone(),
            instance_id: self.instance_id.clone(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            rebalance_timeout: self.rebalance_timeout,
            session_timeout: self.session_timeout,
            subscription: self.metadata(protocol),
            assignment,
        }
    }

    /// The member as its record tells. It offers the one protocol that was written down.
    pub(super) fn restore(
        record: MemberRecord,
        protocol: &Name,
        seniority: u64,
        now: Millis,
    ) -> Member {
        Member {
            id: record.member_id,
            instance_id: record.instance_id,
            client_id: record.client_id,
            client_host: record.client_host,
            rebalance_timeout: record.rebalance_timeout,
            session_timeout: record.session_timeout,
            protocols: vec![Protocol {
                name: protocol.clone(),
                metadata: record.subscription,
            }],
            assignment: record.assignment,
            seniority,
            is_new: false,
            has_synced: true,
            awaiting_join: None,
            awaiting_sync: None,
            session_deadline: now.saturating_add(record.session_timeout),
        }
    }
}

/// The metadata of one protocol among those offered.
pub(super) fn metadata_of(protocols: &[Protocol], name: &str) -> Bytes {
    protocols
        .iter()
        .find(|protocol| &*protocol.name == name)
        .map(|protocol| protocol.metadata.clone())
        .unwrap_or_default()
}

/// The protocol that most members like best among those that all of them offer. A tie goes to
/// the one that comes first in the alphabet, so that every replay elects the same.
pub(super) fn elect_protocol<'a>(
    offers: impl Iterator<Item = &'a [Protocol]> + Clone,
) -> Option<Name> {
    let common = |name: &Name| {
        offers
            .clone()
            .all(|offer| offer.iter().any(|protocol| protocol.name == *name))
    };
    let mut votes: Vec<(Name, usize)> = Vec::new();
    for offer in offers.clone() {
        let Some(choice) = offer
            .iter()
            .map(|protocol| &protocol.name)
            .find(|name| common(name))
        else {
            continue;
        };
        match votes.iter_mut().find(|(name, _)| name == choice) {
            Some((_, count)) => *count += 1,
            None => votes.push((choice.clone(), 1)),
        }
    }
    votes.sort_by(|(a, votes_a), (b, votes_b)| votes_b.cmp(votes_a).then_with(|| a.cmp(b)));
    votes.into_iter().next().map(|(name, _)| name)
}

/// The topics of a `consumer` subscription. Every version starts with its number and the topics,
/// so newer ones are understood too. `None` if it is not such a subscription.
pub(super) fn subscribed_topics(subscription: &Bytes) -> Option<Vec<Name>> {
    let mut rest = subscription.clone();
    let _version = rest.try_get_i16().ok()?;
    let count = usize::try_from(rest.try_get_i32().ok()?).ok()?;
    let mut topics = Vec::new();
    for _ in 0..count {
        let length = usize::try_from(rest.try_get_i16().ok()?).ok()?;
        if length > rest.len() {
            return None;
        }
        let topic = rest.split_to(length);
        topics.push(Name::from(std::str::from_utf8(&topic).ok()?));
    }
    Some(topics)
}
