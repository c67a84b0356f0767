//! A log as a plain vector, and every way to look at one.

use logd_storage::{EntryId, Kind, Log, Row, TermStart};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub id: EntryId,
    pub kind: Kind,
    pub base: i64,
    pub records: u32,
    pub timestamp: i64,
    pub payload: Vec<u8>,
}

impl Held {
    pub fn end(&self) -> i64 {
        self.base + i64::from(self.records)
    }

    pub fn data(&self) -> &[u8] {
        match self.kind {
            Kind::Data => &self.payload,
            Kind::Control(_) => &[],
        }
    }

    pub fn is(&self, row: &Row) -> bool {
        (self.id, self.base, self.records, self.timestamp, self.kind)
            == (
                row.id(),
                row.base_offset,
                row.records,
                row.max_timestamp,
                row.kind,
            )
            && row.length as usize == self.data().len()
    }
}

/// One log as a vector.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Model {
    /// What is left of purged entries.
    pub base: Vec<Held>,
    pub entries: Vec<Held>,
    pub purged: Option<EntryId>,
    pub start: i64,
    pub end: i64,
    pub vote: Option<u8>,
}

impl Model {
    pub fn last(&self) -> Option<EntryId> {
        self.entries.last().map(|e| e.id).or(self.purged)
    }

    pub fn first_index(&self) -> u64 {
        let purged = self.purged.map(|p| p.index + 1);
        purged.unwrap_or_else(|| self.entries.first().map_or(0, |e| e.id.index))
    }

    pub fn purge(&mut self, upto: EntryId) {
        self.entries.retain(|e| e.id.index > upto.index);
        self.start = self.entries.first().map_or(self.end, |e| e.base);
        self.purged = Some(upto);
    }

    /// Purged entries become the base; what of it lies before `start` goes.
    pub fn settle(&mut self, purged: Option<EntryId>, start: i64) {
        let first = purged.map_or(0, |p| p.index + 1);
        let entries = std::mem::take(&mut self.entries);
        let (below, above) = entries.into_iter().partition(|e| e.id.index < first);
        self.entries = above;
        self.base.extend::<Vec<Held>>(below);
        self.base
            .retain(|e| e.base >= start && !e.data().is_empty());
        (self.purged, self.start) = (purged, start);
    }

    pub fn all(&self) -> Vec<&Held> {
        self.base.iter().chain(&self.entries).collect()
    }

    /// Where the Raft log begins.
    pub fn raft_start(&self) -> i64 {
        self.entries.first().map_or(self.end, |e| e.base)
    }

    /// Every entry is in the term that the log says.
    pub fn terms_differ(&self, log: &Log) -> Option<String> {
        let terms = log.terms();
        self.all().into_iter().find_map(|e| {
            let of = terms.iter().rfind(|t| t.index <= e.id.index);
            let fits = of.is_some_and(|t| t.term == e.id.term && t.offset <= e.base);
            (!fits).then(|| format!("{:?} is in term {of:?}", e.id))
        })
    }

    /// The entry so many of a hundred along; `None` behind the last one.
    pub fn at(&self, percent: usize) -> Option<&Held> {
        self.entries.get(self.entries.len() * percent / 100)
    }

    pub fn terms(&self) -> Vec<TermStart> {
        let mut terms: Vec<TermStart> = Vec::new();
        for e in &self.entries {
            if terms.last().is_none_or(|t| t.term != e.id.term) {
                terms.push(TermStart {
                    term: e.id.term,
                    index: e.id.index,
                    offset: e.base,
                });
            }
        }
        terms
    }

    /// What is different in the log, if anything is.
    pub fn differs(&self, log: &Log) -> Option<String> {
        let bounds = log.bounds();
        let ours = (
            self.purged,
            self.first_index(),
            self.last(),
            self.start,
            self.end,
        );
        let theirs = (
            bounds.purged,
            bounds.first_index,
            bounds.last,
            bounds.start_offset,
            bounds.end_offset,
        );
        if ours != theirs {
            return Some(format!("bounds are {theirs:?}, not {ours:?}"));
        }
        let is_ours =
            |id: EntryId| self.purged == Some(id) || self.entries.iter().any(|held| held.id == id);
        if bounds.durable.is_some_and(|id| !is_ours(id)) {
            return Some(format!("{:?} is durable, but not present", bounds.durable));
        }
        if log.vote().map(|v| v.to_vec()) != self.vote.map(|v| vec![v]) {
            return Some(format!("the vote is {:?}, not {:?}", log.vote(), self.vote));
        }
        if let Some(difference) = self.terms_differ(log) {
            return Some(difference);
        }
        if self.base.is_empty() && self.start == self.raft_start() && log.terms() != self.terms() {
            return Some(format!(
                "terms are {:?}, not {:?}",
                log.terms(),
                self.terms()
            ));
        }
        self.differs_by_index(log)
            .or_else(|| self.differs_by_offset(log))
            .or_else(|| self.differs_by_time(log))
    }

    pub fn differs_by_index(&self, log: &Log) -> Option<String> {
        let mut next = self.first_index();
        for held in &self.entries {
            let Some(row) = log.entry_row(held.id.index).filter(|r| held.is(r)) else {
                return Some(format!("the row of {held:?}"));
            };
            let some = log.entries(next, next + 1, 1).unwrap();
            let [entry] = &some[..] else {
                return Some(format!("{} entries at {next}", some.len()));
            };
            let payload = [&entry.head[..], &entry.body[..]].concat();
            if payload != held.payload || entry.id != held.id {
                return Some(format!("the payload of {row:?}"));
            }
            next += 1;
        }
        log.entry_row(next)
            .map(|row| format!("{row:?} is too much"))
    }

    pub fn differs_by_offset(&self, log: &Log) -> Option<String> {
        let outside = [self.start - 1, self.end + 1];
        if outside
            .iter()
            .any(|o| log.read(*o, i64::MAX, 1, true).is_ok())
        {
            return Some("it reads outside its offsets".into());
        }
        let nowhere = [self.start - 1, self.end];
        if let Some(row) = nowhere.iter().find_map(|o| log.row_at_offset(*o)) {
            return Some(format!("{row:?} outside its offsets"));
        }
        let all = self.all();
        for (at, held) in all.iter().enumerate() {
            let rest = &all[at..];
            for offset in held.base..held.end() {
                if !log.row_at_offset(offset).is_some_and(|row| held.is(&row)) {
                    return Some(format!("the row at offset {offset}"));
                }
            }
            if held.records > 0 {
                let all: Vec<&[u8]> = rest.iter().map(|h| h.data()).collect();
                let end = rest.last().map_or(self.end, |h| h.end());
                let plan = log
                    .read(held.end() - 1, self.end, usize::MAX, true)
                    .unwrap();
                plan.warm().unwrap();
                if plan.slices.concat() != all.concat() || plan.next_offset != end {
                    return Some(format!("all from offset {}", held.base));
                }
                let one = log.read(held.base, self.end, 1, true).unwrap();
                let first = rest.iter().map(|h| h.data()).find(|d| !d.is_empty());
                if one.slices.concat() != first.unwrap_or_default() {
                    return Some(format!("the one at offset {}", held.base));
                }
                let limit = held.base + 1;
                let some = log.read(held.base, limit, usize::MAX, true).unwrap();
                if some.slices.concat() != held.data() {
                    return Some(format!("below the limit {limit}"));
                }
            }
        }
        None
    }

    pub fn differs_by_time(&self, log: &Log) -> Option<String> {
        let with_records = || {
            let entries = self.all().into_iter();
            entries.filter(|e| e.records > 0 && !e.data().is_empty())
        };
        let middle = (self.start + self.end) / 2;
        for time in (-1..42).step_by(3) {
            for from in [self.start, middle] {
                let ours = with_records().find(|e| e.timestamp >= time && e.end() > from);
                let theirs = log.row_at_time(time, from);
                if ours.map(|e| e.id) != theirs.map(|r| r.id()) {
                    return Some(format!("time {time} from {from}: {theirs:?}, not {ours:?}"));
                }
            }
        }
        for (from, limit) in [
            (self.start, self.end),
            (middle, self.end),
            (self.start, middle),
        ] {
            let inside = with_records().filter(|e| e.end() > from && e.base < limit);
            let newest = inside.clone().map(|e| e.timestamp).max();
            let ours = inside.clone().find(|e| Some(e.timestamp) == newest);
            let theirs = log.row_max_time(from, limit);
            if ours.map(|e| e.id) != theirs.map(|r| r.id()) {
                return Some(format!(
                    "newest of {from}..{limit}: {theirs:?}, not {ours:?}"
                ));
            }
        }
        None
    }
}
