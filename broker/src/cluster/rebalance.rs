//! Which partitions should move so that the cluster is whole and level. Pure.
//!
//! Promise: no partition has fewer replicas on brokers that are there than before, nor in fewer racks; a
//! plan that was carried out is followed by an empty one. Replicas are added where a topic has too few,
//! put into other racks where two share one needlessly, levelled between brokers, and led evenly; each
//! with as few moves as that takes.
//! Not here: carrying it out (`moves`), one after the other.

use super::plan::USUAL_REPLICATION;
use super::state::{ClusterState, Topic, TopicId};
use super::targets::Move;
use logd_proto::Uuid;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

type Alive<'a> = &'a dyn Fn(i32) -> bool;

struct Part {
    topic: Uuid,
    index: i32,
    wanted: usize,
    before: Vec<i32>,
    now: Vec<i32>,
}

struct Work<'a> {
    state: &'a ClusterState,
    /// Brokers that are there and take more.
    usable: BTreeSet<i32>,
    parts: Vec<Part>,
    /// Replicas on each usable broker.
    replicas: BTreeMap<i32, usize>,
}

/// What should move. `default_replication`: of topics that nobody wished otherwise; 0 for the usual.
pub fn plan(state: &ClusterState, alive: Alive, default_replication: i16) -> Vec<Move> {
    let mut work = Work::new(state, alive, default_replication);
    work.grow();
    work.spread_over_racks();
    work.level_replicas();
    work.level_leaders();
    work.moves()
}

/// What should move so that nothing is on a broker any more. Partitions that fit nowhere else stay.
pub fn evacuate(state: &ClusterState, node: i32, alive: Alive) -> Vec<Move> {
    let mut work = Work::new(state, alive, 0);
    work.usable.remove(&node);
    for n in 0..work.parts.len() {
        if work.parts[n].now.contains(&node)
            && let Some(to) = work.best(&work.parts[n].now, Some(node))
        {
            work.replace(n, node, to);
        }
    }
    work.moves()
}

/// Who should have a partition that goes on from one broker alone: those of its replicas that are there, and
/// as many others as are wanted. Unlike in a plan, two are better than one: the data has just been lost twice.
pub fn refill(
    state: &ClusterState,
    topic: &Topic,
    index: i32,
    survivor: i32,
    alive: Alive,
    default_replication: i16,
) -> Vec<i32> {
    let work = Work::new(state, alive, default_replication);
    let before = topic.target(index).into_iter().flatten().copied();
    let stay = before.filter(|n| *n != survivor && work.usable.contains(n));
    let mut target: Vec<i32> = std::iter::once(survivor).chain(stay).collect();
    while target.len() < wish(topic, default_replication)
        && let Some(node) = work.best(&target, None)
    {
        target.push(node);
    }
    target
}

/// How many replicas somebody wants, whether or not there are brokers enough.
fn wish(topic: &Topic, default: i16) -> usize {
    let usual = match usize::try_from(default) {
        Ok(configured) if configured > 0 => configured,
        _ => USUAL_REPLICATION,
    };
    let wish = topic.replication.and_then(|r| usize::try_from(r).ok());
    wish.unwrap_or(usual)
}

/// How many replicas a topic's partitions should have.
fn wanted(topic: &Topic, default: i16, brokers: usize) -> usize {
    let wish = wish(topic, default);
    // Two replicas where three are wanted are no better than one: either's loss stops both.
    if wish <= brokers { wish } else { 0 }
}

impl<'a> Work<'a> {
    fn new(state: &'a ClusterState, alive: Alive, default: i16) -> Self {
        let nodes = state.brokers.keys().copied();
        let usable: BTreeSet<i32> = nodes
            .filter(|n| state.takes_more(*n) && alive(*n))
            .collect();
        let parts = state.topics.values().flat_map(|topic| {
            let wanted = wanted(topic, default, usable.len());
            let all = topic.partitions.iter().zip(0..);
            all.map(move |(replicas, index)| Part {
                topic: topic.id,
                index,
                wanted,
                before: replicas.clone(),
                now: replicas.clone(),
            })
        });
        let parts: Vec<Part> = parts.collect();
        let mut replicas: BTreeMap<i32, usize> = usable.iter().map(|n| (*n, 0)).collect();
        for node in parts.iter().flat_map(|p| &p.now) {
            if let Some(count) = replicas.get_mut(node) {
                *count += 1;
            }
        }
        Self {
            state,
            usable,
            parts,
            replicas,
        }
    }

    fn rack(&self, node: i32) -> Option<&'a str> {
        self.state.brokers.get(&node)?.rack.as_deref()
    }

    /// Racks that these brokers lie in; a broker without one is in its own.
    fn racks(&self, of: &[i32]) -> usize {
        let named: BTreeSet<&str> = of.iter().filter_map(|n| self.rack(*n)).collect();
        let alone = of.iter().filter(|n| self.rack(**n).is_none()).count();
        named.len() + alone
    }

    /// Whether as many racks are left when one broker takes another's place.
    fn keeps_racks(&self, now: &[i32], from: i32, to: i32) -> bool {
        let shares = |with: i32| {
            let rack = self.rack(with);
            let mut others = now.iter().filter(|n| **n != from);
            rack.is_some() && others.any(|n| self.rack(*n) == rack)
        };
        !shares(to) || shares(from)
    }

    fn replaced(now: &[i32], from: i32, to: i32) -> Vec<i32> {
        let other = |n: &i32| if *n == from { to } else { *n };
        now.iter().map(other).collect()
    }

    fn count(&mut self, node: i32, by: isize) {
        if let Some(count) = self.replicas.get_mut(&node) {
            *count = count.saturating_add_signed(by);
        }
    }

    fn replace(&mut self, part: usize, from: i32, to: i32) {
        self.parts[part].now = Self::replaced(&self.parts[part].now, from, to);
        self.count(from, -1);
        self.count(to, 1);
    }

    /// The best broker for one more replica, or instead of one.
    fn best(&self, now: &[i32], instead_of: Option<i32>) -> Option<i32> {
        let stay: Vec<i32> = now
            .iter()
            .copied()
            .filter(|n| Some(*n) != instead_of)
            .collect();
        let free = self.usable.iter().filter(|n| !now.contains(n));
        let best = free.max_by_key(|n| {
            let with: Vec<i32> = stay.iter().copied().chain([**n]).collect();
            let load = self.replicas.get(n).copied().unwrap_or(0);
            (self.racks(&with), std::cmp::Reverse((load, **n)))
        });
        best.copied()
    }

    fn grow(&mut self) {
        for n in 0..self.parts.len() {
            while self.parts[n].now.len() < self.parts[n].wanted {
                let Some(node) = self.best(&self.parts[n].now, None) else {
                    break;
                };
                self.parts[n].now.push(node);
                self.count(node, 1);
            }
        }
    }

    /// Replicas that share a rack go to another, if that is in one of its own.
    fn spread_over_racks(&mut self) {
        for n in 0..self.parts.len() {
            loop {
                let now = &self.parts[n].now;
                let racks = self.racks(now);
                let better = |from: &i32| {
                    let to = self.best(now, Some(*from))?;
                    let more = self.racks(&Self::replaced(now, *from, to)) > racks;
                    more.then_some((*from, to))
                };
                // The last of the list first: the preferred leader stays if it can.
                let mut movable = now.iter().rev().filter(|n| self.usable.contains(n));
                let Some((from, to)) = movable.find_map(better) else {
                    break;
                };
                self.replace(n, from, to);
            }
        }
    }

    fn level_replicas(&mut self) {
        while let Some((part, from, to)) = self.levelling() {
            self.replace(part, from, to);
        }
    }

    /// A replica that should go from a broker to one that has at least two fewer. One that this plan moves
    /// anyway goes first, then one that does not lead.
    fn levelling(&self) -> Option<(usize, i32, i32)> {
        let mut order: Vec<(usize, i32)> = self.replicas.iter().map(|(n, c)| (*c, *n)).collect();
        order.sort_unstable();
        for (most, from) in order.iter().rev() {
            for (least, to) in order.iter().filter(|(least, _)| least + 2 <= *most) {
                debug_assert!(least < most);
                let movable = self.parts.iter().enumerate().filter(|(_, p)| {
                    let fits = p.now.contains(from) && !p.now.contains(to);
                    fits && self.keeps_racks(&p.now, *from, *to)
                });
                let best = movable
                    .min_by_key(|(_, p)| (p.before.contains(from), p.now.first() == Some(from)));
                if let Some((part, _)) = best {
                    return Some((part, *from, *to));
                }
            }
        }
        None
    }

    /// How many partitions each usable broker leads.
    fn leaders(&self) -> BTreeMap<i32, usize> {
        let mut leaders: BTreeMap<i32, usize> = self.usable.iter().map(|n| (*n, 0)).collect();
        for first in self.parts.iter().filter_map(|p| p.now.first()) {
            if let Some(count) = leaders.get_mut(first) {
                *count += 1;
            }
        }
        leaders
    }

    fn level_leaders(&mut self) {
        while let Some(path) = self.handing_on() {
            for (part, to) in path {
                let now = &mut self.parts[part].now;
                if let Some(at) = now.iter().position(|n| *n == to) {
                    now.swap(0, at);
                }
            }
        }
    }

    /// Partitions whose leadership should be handed on, each with its new leader, so that a broker leads one
    /// fewer and another, which led at least two fewer, one more. The shortest way there is.
    fn handing_on(&self) -> Option<Vec<(usize, i32)>> {
        let leaders = self.leaders();
        let mut order: Vec<(usize, i32)> = leaders.iter().map(|(n, c)| (*c, *n)).collect();
        order.sort_unstable();
        for (most, from) in order.iter().rev() {
            let mut came: BTreeMap<i32, (usize, i32)> = BTreeMap::new();
            let mut queue = VecDeque::from([*from]);
            while let Some(at) = queue.pop_front() {
                if leaders.get(&at).is_some_and(|count| count + 2 <= *most) {
                    return Some(Self::way(&came, *from, at));
                }
                let led = self
                    .parts
                    .iter()
                    .enumerate()
                    .filter(|(_, p)| p.now.first() == Some(&at));
                for (part, p) in led {
                    for next in p.now.iter().skip(1).filter(|n| self.usable.contains(n)) {
                        if *next != *from && !came.contains_key(next) {
                            came.insert(*next, (part, at));
                            queue.push_back(*next);
                        }
                    }
                }
            }
        }
        None
    }

    fn way(came: &BTreeMap<i32, (usize, i32)>, from: i32, to: i32) -> Vec<(usize, i32)> {
        let (mut way, mut at) = (Vec::new(), to);
        while let Some((part, before)) = came.get(&at).filter(|_| at != from) {
            way.push((*part, at));
            at = *before;
        }
        way
    }

    fn moves(self) -> Vec<Move> {
        let changed = self.parts.into_iter().filter(|p| p.now != p.before);
        let moves = changed.map(|p| Move {
            topic: TopicId(p.topic),
            partition: p.index,
            target: Some(p.now),
        });
        moves.collect()
    }
}

#[cfg(test)]
#[path = "rebalance_tests.rs"]
mod tests;
