//! How many fetch sessions there may be, and which makes room for another (KIP-227's rules).
//!
//! Promise: never more sessions, nor more partitions in all of them, than the limits say. A session that
//! was not used for the eviction age makes room for any. Of those that are used, one that is older than
//! that age makes room for a larger one, and one of a consumer for one of a replica. Pure: the caller has
//! the clock and the dice.
//! Not here: what a session knows (`session`).

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Consumers' sessions give way to replicas'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Privilege {
    Consumer,
    Replica,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    pub sessions: usize,
    /// Of all sessions together.
    pub partitions: usize,
    /// How long a session is safe.
    pub eviction_age: Duration,
}

/// The smallest is evicted first.
type Rank = (Privilege, usize, i32);

#[derive(Debug)]
struct Slot<S> {
    session: S,
    privilege: Privilege,
    partitions: usize,
    opened: Instant,
    used: Instant,
}

/// Sessions by their number.
#[derive(Debug)]
pub struct Cache<S> {
    limits: CacheLimits,
    slots: HashMap<i32, Slot<S>>,
    partitions: usize,
    evictions: u64,
    by_use: BTreeSet<(Instant, i32)>,
    /// Sessions that a larger one of anybody may replace.
    open_to_all: BTreeSet<Rank>,
    /// Sessions that a larger one of a replica may replace.
    open_to_replicas: BTreeSet<Rank>,
}

impl<S> Cache<S> {
    pub fn new(limits: CacheLimits) -> Self {
        Self {
            limits,
            slots: HashMap::new(),
            partitions: 0,
            evictions: 0,
            by_use: BTreeSet::new(),
            open_to_all: BTreeSet::new(),
            open_to_replicas: BTreeSet::new(),
        }
    }

    /// From the next session on. Those that there are stay until others need their room.
    pub fn set_limits(&mut self, limits: CacheLimits) {
        self.limits = limits;
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Partitions of all sessions.
    pub fn partitions(&self) -> usize {
        self.partitions
    }

    /// Sessions that made room for others so far.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    pub fn get(&self, id: i32) -> Option<&S> {
        self.slots.get(&id).map(|slot| &slot.session)
    }

    /// Puts a session in if there is room or some can be made; its number, which `dice` proposes.
    pub fn insert(
        &mut self,
        now: Instant,
        privilege: Privilege,
        partitions: usize,
        session: S,
        mut dice: impl FnMut() -> i32,
    ) -> Option<i32> {
        if !self.make_room_for_partitions(now, partitions) {
            return None;
        }
        // More than one goes if there may be fewer than there were.
        while self.slots.len() >= self.limits.sessions {
            if !self.evict_for(now, privilege, partitions) {
                return None;
            }
        }
        let id = loop {
            let id = dice();
            if id > 0 && !self.slots.contains_key(&id) {
                break id;
            }
        };
        let slot = Slot {
            session,
            privilege,
            partitions,
            opened: now,
            used: now,
        };
        self.enlist(id, &slot, now);
        self.slots.insert(id, slot);
        Some(id)
    }

    /// A session was used, and is of this size now. False if it is not there, or has outgrown the limits
    /// and is gone for that.
    pub fn touch(&mut self, id: i32, now: Instant, partitions: usize) -> bool {
        let Some(mut slot) = self.take(id) else {
            return false;
        };
        if !self.make_room_for_partitions(now, partitions) {
            self.evictions += 1;
            return false;
        }
        (slot.used, slot.partitions) = (now, partitions);
        self.enlist(id, &slot, now);
        self.slots.insert(id, slot);
        true
    }

    pub fn remove(&mut self, id: i32) {
        drop(self.take(id));
    }

    fn take(&mut self, id: i32) -> Option<Slot<S>> {
        let slot = self.slots.remove(&id)?;
        let rank = (slot.privilege, slot.partitions, id);
        self.by_use.remove(&(slot.used, id));
        self.open_to_all.remove(&rank);
        self.open_to_replicas.remove(&rank);
        self.partitions -= slot.partitions;
        Some(slot)
    }

    fn enlist(&mut self, id: i32, slot: &Slot<S>, now: Instant) {
        let rank = (slot.privilege, slot.partitions, id);
        let of_age = now.duration_since(slot.opened) > self.limits.eviction_age;
        if of_age {
            self.open_to_all.insert(rank);
        }
        if of_age || slot.privilege == Privilege::Consumer {
            self.open_to_replicas.insert(rank);
        }
        self.by_use.insert((slot.used, id));
        self.partitions += slot.partitions;
    }

    /// Only sessions that nobody uses make room for partitions: a large session is no better than the
    /// many small ones it would replace.
    fn make_room_for_partitions(&mut self, now: Instant, wanted: usize) -> bool {
        let fits = |cache: &Self| cache.partitions + wanted <= cache.limits.partitions;
        while !fits(self) && self.evict_unused(now) {}
        fits(self)
    }

    fn evict_for(&mut self, now: Instant, privilege: Privilege, partitions: usize) -> bool {
        self.evict_unused(now) || self.evict_lesser(privilege, partitions)
    }

    fn evict_unused(&mut self, now: Instant) -> bool {
        let oldest = self.by_use.first().copied();
        let unused = |used: Instant| now.duration_since(used) > self.limits.eviction_age;
        match oldest.filter(|(used, _)| unused(*used)) {
            Some((_, id)) => self.evict(id),
            None => false,
        }
    }

    fn evict_lesser(&mut self, privilege: Privilege, partitions: usize) -> bool {
        let open = match privilege {
            Privilege::Consumer => &self.open_to_all,
            Privilege::Replica => &self.open_to_replicas,
        };
        match open.first().copied() {
            Some(least) if least < (privilege, partitions, 0) => self.evict(least.2),
            _ => false,
        }
    }

    fn evict(&mut self, id: i32) -> bool {
        self.remove(id);
        self.evictions += 1;
        true
    }
}
