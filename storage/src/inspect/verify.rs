//! Everything in a directory checked against everything that is known of it.
//!
//! Promise: what recovery or a read would refuse is found here before; what a crash leaves is a note at most.
//! The checkpoint says what must be in the segments, the write-ahead log what may have gone since.
//! Not here: repair.

use super::{Change, Directory, Finding, LogImage, SegmentImage, SegmentReader};
use crate::group::Operation;
use crate::ledger::{Layout, Row};
use crate::wal::Position;
use crate::wal_reader::{Chain, WalFiles};
use crate::{EntryId, Kind, LogKey};
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Where a payload was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Segment,
    WriteAheadLog,
}

/// A data entry whose checksum is right. What is in it is the caller's to check.
#[derive(Debug)]
pub struct Payload<'a> {
    pub key: LogKey,
    pub place: Place,
    pub path: &'a Path,
    pub position: u64,
    pub row: Row,
    pub bytes: Bytes,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    pub logs: u64,
    pub segments: u64,
    pub rows: u64,
    pub payload_bytes: u64,
    pub groups: u64,
    pub operations: u64,
}

/// What operations behind the checkpoint take away from a log.
#[derive(Debug, Default)]
struct Gone {
    all: bool,
    upto: Option<u64>,
    after: Option<u64>,
    /// Up to here segments became the base's: those without records went.
    settled: Option<u64>,
    /// Below this offset nothing of the base stays.
    floor: Option<i64>,
    /// First and last index of what was put in a new segment.
    rewritten: Vec<(u64, u64)>,
    /// The new segments that no later operation takes away again.
    new: Vec<SegmentImage>,
}

impl Gone {
    fn add(&mut self, change: &Change) {
        self.new.retain(|segment| !takes_away(change, segment));
        match change {
            Change::Delete
            | Change::Truncate { keep: None, .. }
            | Change::Snapshot {
                replaces: Some(true),
                ..
            } => self.all = true,
            Change::Truncate {
                keep: Some(keep), ..
            } => self.after = Some(self.after.map_or(*keep, |a| a.min(*keep))),
            Change::Purge { upto, .. } | Change::Snapshot { upto, .. } => {
                self.upto = self.upto.max(Some(upto.index));
            }
            Change::Rewrite(Some(new)) => {
                self.rewritten.push((new.base_index, new.last.index));
                self.new.push(new.clone());
            }
            Change::Settle { upto, floor } => {
                self.settled = self.settled.max(upto.map(|u| u.index));
                self.floor = self.floor.max(Some(*floor));
            }
            Change::Replace { base, .. } => {
                self.all = true;
                self.new.extend(base.iter().flatten().cloned());
            }
            Change::Rewrite(None)
            | Change::Entry { .. }
            | Change::Vote(_)
            | Change::Capture { .. } => {}
        }
    }

    fn takes(&self, segment: &SegmentImage) -> bool {
        if self.new.iter().any(|new| new.id == segment.id) {
            return false;
        }
        self.all
            || self.upto.is_some_and(|upto| segment.last.index <= upto)
            || self.after.is_some_and(|after| segment.base_index > after)
            || self.settled.is_some_and(|upto| {
                segment.last.index <= upto && segment.next_offset == segment.base_offset
            })
            || self.floor.is_some_and(|floor| segment.next_offset <= floor)
            || self.rewritten.iter().any(|(first, last)| {
                (*first..=*last).contains(&segment.base_index) && segment.last.index <= *last
            })
    }
}

/// True if nothing of a segment of the base is left after a change.
fn takes_away(change: &Change, segment: &SegmentImage) -> bool {
    match change {
        Change::Delete
        | Change::Replace { .. }
        | Change::Snapshot {
            replaces: Some(true),
            ..
        } => true,
        Change::Settle { floor, .. } => segment.next_offset <= *floor,
        Change::Purge { upto, .. } | Change::Snapshot { upto, .. } => {
            segment.last.index <= upto.index
        }
        Change::Rewrite(Some(new)) => {
            (new.base_index..=new.last.index).contains(&segment.base_index)
        }
        // The base is never truncated.
        Change::Truncate { .. }
        | Change::Rewrite(None)
        | Change::Entry { .. }
        | Change::Vote(_)
        | Change::Capture { .. } => false,
    }
}

type Look<'a> = dyn FnMut(&Payload<'_>) -> Option<String> + 'a;
type Tell<'a> = dyn FnMut(Finding) + 'a;

struct Verifier<'a> {
    dir: &'a Directory,
    look: &'a mut Look<'a>,
    tell: &'a mut Tell<'a>,
    gone: HashMap<LogKey, Gone>,
    /// Logs that the write-ahead log speaks of.
    spoken_of: HashSet<LogKey>,
    done: Verified,
}

impl Directory {
    /// Checks all of it. `look` sees each payload once and may say what is wrong with it; `tell` is told each
    /// finding as it is made.
    pub fn verify<'a>(
        &'a self,
        look: &'a mut dyn FnMut(&Payload<'_>) -> Option<String>,
        tell: &'a mut dyn FnMut(Finding),
    ) -> Verified {
        let mut verifier = Verifier {
            dir: self,
            look,
            tell,
            gone: HashMap::new(),
            spoken_of: HashSet::new(),
            done: Verified::default(),
        };
        verifier.run();
        verifier.done
    }
}

impl Verifier<'_> {
    fn tell_if<T>(&mut self, result: Result<T, Finding>) -> Option<T> {
        result.map_err(|finding| (self.tell)(finding)).ok()
    }

    fn run(&mut self) {
        if self.dir.is_running() {
            let what = "a running process has the directory: findings may be false";
            (self.tell)(Finding::note(self.dir.root(), 0, what));
        }
        self.tell_if(self.dir.format());
        // Without it no checksum of the rest can be computed; one finding says it all.
        let Some(_) = self.tell_if(self.dir.identity()) else {
            return;
        };
        let checkpoint = self.tell_if(self.dir.checkpoint());
        if let Some(checkpoint) = &checkpoint {
            let from = checkpoint.as_ref().map_or(
                Position {
                    sequence: 1,
                    ..Position::default()
                },
                |c| c.head.position,
            );
            self.wal(from);
        }
        let mut known = HashMap::new();
        if let Some(Some(checkpoint)) = &checkpoint {
            for image in checkpoint.logs() {
                let Some(image) = self.tell_if(image) else {
                    break;
                };
                self.log(&image);
                let files = image.base.iter().chain(&image.segments);
                let files = files.map(|s| self.ledger_path(&image, s));
                known.insert(image.key, files.collect::<HashSet<PathBuf>>());
            }
        }
        self.rewritten();
        if checkpoint.is_some() {
            self.strangers(&known);
        }
    }

    fn wal(&mut self, from: Position) {
        let Some(files) = self.tell_if(self.dir.wal()) else {
            return;
        };
        let chain = files.sound_chain(from).map_err(Finding::from);
        let Some(chain) = self.tell_if(chain) else {
            return;
        };
        self.groups(&files, &chain);
        if let Some(torn) = chain.torn {
            let what = format!(
                "the last group, {}, is torn: a crash leaves that, and it was not acknowledged",
                torn.header.sequence
            );
            (self.tell)(Finding::note(&files.path(torn.file), torn.at, what));
        }
    }

    fn groups(&mut self, files: &WalFiles, chain: &Chain) {
        for found in &chain.groups {
            let path = files.path(found.file);
            let operations = files.operations(found).map_err(Finding::from);
            let operations = match self.tell_if(operations) {
                Some(Some(operations)) => operations,
                Some(None) => {
                    let what = format!(
                        "group {} does not match its checksums",
                        found.header.sequence
                    );
                    (self.tell)(Finding::damage(&path, found.at, what));
                    continue;
                }
                None => continue,
            };
            self.done.groups += 1;
            for (key, operation) in operations {
                self.done.operations += 1;
                self.operation(key, operation, &path, found.at);
            }
        }
    }

    fn operation(&mut self, key: LogKey, operation: Operation, path: &Path, position: u64) {
        self.spoken_of.insert(key);
        let change = Change::from(operation);
        if matches!(
            change,
            Change::Rewrite(None) | Change::Replace { base: None, .. }
        ) {
            let what = format!("log {key}: an operation that names segments does not decode");
            (self.tell)(Finding::damage(path, position, what));
        }
        self.gone.entry(key).or_default().add(&change);
        if let Change::Entry { row, payload, .. } = change
            && row.kind == Kind::Data
            && row.length > 0
        {
            self.payload(&Payload {
                key,
                place: Place::WriteAheadLog,
                path,
                position,
                row,
                bytes: payload,
            });
        }
    }

    fn payload(&mut self, payload: &Payload<'_>) {
        self.done.payload_bytes += payload.bytes.len() as u64;
        if let Some(what) = (self.look)(payload) {
            (self.tell)(Finding::damage(payload.path, payload.position, what));
        }
    }

    fn ledger_path(&self, image: &LogImage, segment: &SegmentImage) -> PathBuf {
        let folder = self.dir.root().join("logs").join(image.key.to_string());
        folder.join(format!(
            "{:020}.{:016x}.idx",
            segment.base_offset, segment.id
        ))
    }

    /// Segments that operations behind the checkpoint have put in the place of others.
    fn rewritten(&mut self) {
        let logs: Vec<_> = self.gone.iter().map(|(k, g)| (*k, g.new.clone())).collect();
        for (key, segments) in logs {
            for segment in segments {
                // What its control entries say is in the write-ahead log, or was looked at with the checkpoint.
                let image = LogImage {
                    purged: Some(segment.last),
                    ..LogImage::of(key)
                };
                self.segment(&image, &segment);
            }
        }
    }

    fn log(&mut self, image: &LogImage) {
        self.done.logs += 1;
        let checkpoint = self.dir.root().join(crate::checkpoint::FILE);
        let mut previous: Option<&SegmentImage> = None;
        for segment in &image.base {
            let follows = previous.is_none_or(|p| {
                p.last.index < segment.base_index && p.next_offset <= segment.base_offset
            });
            if !follows || image.purged.is_none_or(|p| p.index < segment.last.index) {
                let what = format!(
                    "log {}: segment {:016x} has no place in the base",
                    image.key, segment.id
                );
                (self.tell)(Finding::damage(&checkpoint, 0, what));
            }
            previous = Some(segment);
            self.segment(image, segment);
        }
        previous = None;
        for segment in &image.segments {
            let follows = previous.is_none_or(|p| {
                p.base_index + p.rows == segment.base_index && p.next_offset == segment.base_offset
            });
            if !follows {
                let what = format!(
                    "log {}: segment {:016x} does not follow the one before it",
                    image.key, segment.id
                );
                (self.tell)(Finding::damage(&checkpoint, 0, what));
            }
            previous = Some(segment);
            self.segment(image, segment);
        }
    }

    fn segment(&mut self, image: &LogImage, known: &SegmentImage) {
        let path = self.ledger_path(image, known);
        let gone = self.gone.get(&image.key);
        let missing = |path: &Path| !self.dir.fs.exists(path);
        if gone.is_some_and(|g| g.takes(known)) && missing(&path) {
            return;
        }
        let Some(reader) = self.tell_if(self.dir.segment(&path)) else {
            return;
        };
        self.done.segments += 1;
        let told = (reader.key, reader.base_offset, reader.base_index);
        if told != (image.key, known.base_offset, known.base_index) {
            let what = "the header is not that of this segment";
            (self.tell)(Finding::damage(&path, 0, what));
            return;
        }
        let last = self.rows(image, known, &reader);
        let whole = last.is_none_or(|row| match reader.layout {
            Layout::Dense => row.id() == known.last,
            Layout::Sparse => row.index <= known.last.index,
        });
        if !whole {
            let what = format!(
                "the checkpoint says that the last entry is {:?}",
                known.last
            );
            (self.tell)(Finding::damage(&path, known.rows * 64, what));
        }
    }

    /// Checks the rows and payloads that must be there; says the last one if all rows are.
    fn rows(
        &mut self,
        image: &LogImage,
        known: &SegmentImage,
        reader: &SegmentReader,
    ) -> Option<Row> {
        let first = image.purged.map_or(0, |p| p.index + 1);
        let mut next = Some(Next {
            id: EntryId {
                term: 0,
                index: known.base_index,
            },
            offset: known.base_offset,
            position: 0,
        });
        let mut last = None;
        let there = known.rows.min(reader.rows_max());
        if there < known.rows {
            let what = format!("the file ends here, and {} rows must be in it", known.rows);
            let end = reader.ledger_bytes;
            (self.tell)(Finding::damage(&reader.ledger_path, end, what));
        }
        for row in reader.rows(there) {
            last = None;
            let Some(found) = self.tell_if(row) else {
                // The rows behind it are where they are all the same.
                next = None;
                continue;
            };
            let row = found.row;
            self.done.rows += 1;
            if let Some(what) = next.and_then(|next| next.differs(&row, reader.layout)) {
                (self.tell)(Finding::damage(&reader.ledger_path, found.at, what));
            }
            next = Some(Next::after(&row));
            match row.kind {
                Kind::Data => self.data(image.key, reader, row),
                Kind::Control(_) if row.index >= first => self.control(image, row),
                Kind::Control(_) => {}
            }
            last = Some(row).filter(|_| there == known.rows);
        }
        last
    }

    fn data(&mut self, key: LogKey, reader: &SegmentReader, row: Row) {
        if let Some(bytes) = self.tell_if(reader.payload(&row)) {
            self.payload(&Payload {
                key,
                place: Place::Segment,
                path: &reader.log_path,
                position: row.position,
                row,
                bytes,
            });
        }
    }

    fn control(&mut self, image: &LogImage, row: Row) {
        let sound = image
            .control
            .get(&row.index)
            .is_some_and(|bytes| crc32fast::hash(bytes) == row.payload_crc);
        if !sound {
            let path = self.dir.root().join(crate::checkpoint::FILE);
            let what = format!(
                "log {}: control entry {} is missing or does not match its row",
                image.key, row.index
            );
            (self.tell)(Finding::damage(&path, 0, what));
        }
    }

    /// Folders and segments that nobody knows.
    fn strangers(&mut self, known: &HashMap<LogKey, HashSet<PathBuf>>) {
        let Some(folders) = self.tell_if(self.dir.log_folders()) else {
            return;
        };
        for key in folders {
            if self.spoken_of.contains(&key) {
                // Segments made after the checkpoint: the write-ahead log has what is in them.
                continue;
            }
            let Some(segments) = self.tell_if(self.dir.segments(key)) else {
                continue;
            };
            for path in segments {
                if known.get(&key).is_none_or(|files| !files.contains(&path)) {
                    let what = "no log needs this segment: it only takes space";
                    (self.tell)(Finding::note(&path, 0, what));
                }
            }
        }
    }
}

/// What the next row must say.
struct Next {
    id: EntryId,
    offset: i64,
    position: u64,
}

impl Next {
    fn after(row: &Row) -> Self {
        Self {
            id: EntryId {
                term: row.term,
                index: row.index + 1,
            },
            offset: row.end_offset(),
            position: row.end_position(),
        }
    }

    fn differs(&self, row: &Row, layout: Layout) -> Option<String> {
        let offset_follows = match layout {
            Layout::Dense => row.base_offset == self.offset,
            Layout::Sparse => row.base_offset >= self.offset,
        };
        let follows = offset_follows && row.position == self.position && row.term >= self.id.term;
        (!follows).then(|| {
            format!(
                "entry {} of term {} at offset {} and byte {} does not follow the one before it: \
                 offset {} and byte {} are next",
                row.index, row.term, row.base_offset, row.position, self.offset, self.position
            )
        })
    }
}
