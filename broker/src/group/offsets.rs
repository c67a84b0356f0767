//! The offsets of one group: what is committed, what is on its way, what has outlived retention.
//!
//! Invariant: an offset is visible only once its record is applied, and the records of one group
//! are applied in the order of the log; so the visible offset is always the last one in the log.
//!
//! Not here: who may commit (see `commit`).

use std::collections::{BTreeMap, BTreeSet};

use super::event::{FetchedOffset, Millis, Name, Token, Wanted};
use super::record::{CommittedOffset, Record, TopicId};

/// A topic's partition.
pub(super) type Place = (Name, i32);

/// One write on its way: each place with its new offset, or `None` to forget it.
pub(super) type Change = Vec<(Place, Option<CommittedOffset>)>;

/// What a group remembers.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    committed: BTreeMap<Place, CommittedOffset>,
    on_their_way: BTreeMap<Token, Change>,
}

impl Offsets {
    pub(super) fn is_empty(&self) -> bool {
        self.committed.is_empty() && self.on_their_way.is_empty()
    }

    /// Takes a record from the log.
    pub(super) fn restore(&mut self, topic: Name, partition: i32, value: Option<CommittedOffset>) {
        self.put((topic, partition), value);
    }

    /// Remembers a change until the log has it, and says what to write.
    pub(super) fn begin(&mut self, token: Token, change: Change) -> Vec<Record> {
        let records = change
            .iter()
            .map(|((topic, partition), value)| Record::Offset {
                topic: topic.clone(),
                partition: *partition,
                value: value.clone(),
            })
            .collect();
        self.on_their_way.insert(token, change);
        records
    }

    /// The change is in the log. Returns whether it was one of ours.
    pub(super) fn finish(&mut self, token: Token) -> bool {
        let Some(change) = self.on_their_way.remove(&token) else {
            return false;
        };
        for (place, value) in change {
            self.put(place, value);
        }
        true
    }

    /// The change will never be in the log. Returns whether it was one of ours.
    pub(super) fn abandon(&mut self, token: Token) -> bool {
        self.on_their_way.remove(&token).is_some()
    }

    /// Everything that is committed.
    pub(super) fn committed(&self) -> impl Iterator<Item = (&Place, &CommittedOffset)> {
        self.committed.iter()
    }

    pub(super) fn fetch(&self, wanted: Wanted) -> Vec<FetchedOffset> {
        match wanted {
            Wanted::All => self
                .committed
                .iter()
                .map(|((topic, partition), offset)| {
                    (topic.clone(), *partition, Some(offset.clone()))
                })
                .collect(),
            Wanted::These(places) => places
                .into_iter()
                .map(|place| {
                    let offset = self.committed.get(&place).cloned();
                    (place.0, place.1, offset)
                })
                .collect(),
        }
    }

    /// Everything, to be forgotten: also what is on its way, whose records come first in the log.
    pub(super) fn all(&self) -> Vec<Place> {
        let coming = self.on_their_way.values().flatten().map(|(place, _)| place);
        let mut all: Vec<Place> = self.committed.keys().chain(coming).cloned().collect();
        all.sort();
        all.dedup();
        all
    }

    /// The places whose latest offset, also one on its way, was committed for a topic among `gone`.
    pub(super) fn of_topics(&self, gone: &BTreeSet<TopicId>) -> Vec<Place> {
        let committed = self
            .committed
            .iter()
            .map(|(place, offset)| (place, Some(offset)));
        let coming = self.on_their_way.values().flatten();
        let coming = coming.map(|(place, offset)| (place, offset.as_ref()));
        let latest: BTreeMap<&Place, Option<&CommittedOffset>> = committed.chain(coming).collect();
        let is_gone = |offset: Option<&CommittedOffset>| {
            offset.is_some_and(|offset| gone.contains(&offset.topic_id))
        };
        latest
            .into_iter()
            .filter(|(_, offset)| is_gone(*offset))
            .map(|(place, _)| place.clone())
            .collect()
    }

    /// What has outlived retention at `now`. `base` says from when an offset's time counts, or
    /// that it is in use. A place with a newer commit on its way is in use too.
    pub(super) fn expired(
        &self,
        now: Millis,
        retention: Millis,
        base: impl Fn(&Name, &CommittedOffset) -> Option<Millis>,
    ) -> Vec<Place> {
        self.committed
            .iter()
            .filter(|((topic, _), offset)| {
                base(topic, offset).is_some_and(|base| {
                    now >= offset.expire_time.unwrap_or(base.saturating_add(retention))
                })
            })
            .map(|(place, _)| place.clone())
            .filter(|place| !self.is_on_its_way(place))
            .collect()
    }

    fn is_on_its_way(&self, place: &Place) -> bool {
        self.on_their_way
            .values()
            .flatten()
            .any(|(coming, _)| coming == place)
    }

    fn put(&mut self, place: Place, value: Option<CommittedOffset>) {
        match value {
            Some(offset) => self.committed.insert(place, offset),
            None => self.committed.remove(&place),
        };
    }
}
