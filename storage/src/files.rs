//! Segment files on their way to another disk: what lies below a log's entries, for a replica that needs it.
//!
//! Promise: what arrives is what was offered, row by row and payload by payload, and durable, before it can be
//! installed; until then it is nobody's, and whoever gives up leaves nothing behind.
//! Invariant: pieces come in one order (each segment's ledger, then its `.log`), so one position says how
//! far a copy has come, and a copy that was interrupted goes on from there.
//! A sender keeps what it offered: files that are rewritten or dropped meanwhile stay readable for it.
//! Not here: how pieces travel, and how fast.

use crate::EntryId;
use crate::base::Base;
use crate::checkpoint::{SegmentImage, decode_base, encode_base};
use crate::error::{FilesError, ReadError, WriteError};
use crate::ledger::ROW_BYTES;
use crate::log::Log;
use crate::new_files::{NewFiles, discard};
use crate::state::{Segment, TermStart};
use crate::vfs::Mapped;
use bytes::Bytes;
use std::io::IoSlice;

/// Far beyond what a log has: an offer of more is not believed.
const SEGMENTS_MAX: usize = 1 << 20;

/// Where the next piece begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Its number in the offer.
    pub segment: u32,
    pub part: Part,
    pub position: u64,
}

/// Which of a segment's two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Ledger,
    Log,
}

impl Want {
    const FIRST: Want = Want {
        segment: 0,
        part: Part::Ledger,
        position: 0,
    };

    /// Where to go on after a piece.
    fn after(self, bytes: usize, image: &SegmentImage) -> Want {
        let position = self.position + bytes as u64;
        let (part, segment) = match self.part {
            Part::Ledger if position < ledger_bytes(image) => (Part::Ledger, self.segment),
            Part::Ledger if image.bytes > 0 => (Part::Log, self.segment),
            Part::Log if position < image.bytes => (Part::Log, self.segment),
            Part::Ledger | Part::Log => (Part::Ledger, self.segment + 1),
        };
        let same = (part, segment) == (self.part, self.segment);
        Want {
            segment,
            part,
            position: if same { position } else { 0 },
        }
    }
}

/// Checked by [`check_offer`]: it does not overflow.
fn ledger_bytes(image: &SegmentImage) -> u64 {
    (image.rows + 1) * ROW_BYTES as u64
}

/// What a log offers another disk.
#[derive(Debug)]
pub struct Outgoing {
    offer: Bytes,
    segments: Vec<Held>,
}

/// A segment's files, which stay readable whatever becomes of them. They may be longer than what is offered.
#[derive(Debug)]
struct Held {
    ledger: Mapped,
    ledger_bytes: usize,
    log: Mapped,
    log_bytes: usize,
}

impl Held {
    fn of(segment: &Segment) -> Result<Self, ReadError> {
        if segment.file.written_rows() < segment.rows {
            // It is on its way there from memory.
            let path = segment.file.ledger_path.clone();
            return Err(ReadError::Moved { path });
        }
        let log = match segment.bytes {
            0 => Mapped::memory(Bytes::new()),
            bytes => segment.file.log(bytes)?,
        };
        Ok(Self {
            ledger: segment.file.ledger_map(segment.rows)?,
            ledger_bytes: (segment.rows as usize + 1) * ROW_BYTES,
            log,
            log_bytes: segment.bytes as usize,
        })
    }
}

impl Log {
    /// All that lies below the entry behind `upto`, as files; `None` if nothing does. Blocks on the disk.
    ///
    /// # Errors
    /// If `upto` lies inside the base by now, or the files cannot be read.
    pub fn outgoing(
        &self,
        upto: EntryId,
        next_offset: i64,
    ) -> Result<Option<Outgoing>, FilesError> {
        let (segments, part, terms, start) = {
            let state = self.0.state.lock();
            let below = |s: &&Segment| s.last.index <= upto.index;
            let segments: Vec<Segment> = state.all_segments().take_while(below).cloned().collect();
            let part = state.first_part(upto);
            (segments, part, state.terms.clone(), state.first_offset())
        };
        if start >= next_offset {
            return Ok(None);
        }
        // Another replica's segments may end elsewhere, and it chose the entry.
        let part = self.0.noted(part)?;
        let segments: Vec<Segment> = segments.into_iter().chain(part).collect();
        if segments.last().is_none_or(|s| s.next_offset != next_offset) {
            return Err(FilesError::Outdated { next_offset });
        }
        let held: Result<Vec<Held>, ReadError> = segments.iter().map(Held::of).collect();
        let terms: Vec<TermStart> = terms
            .into_iter()
            .filter(|t| t.index <= upto.index)
            .collect();
        Ok(Some(Outgoing {
            offer: encode_base(segments.iter(), &terms),
            segments: self.0.noted(held)?,
        }))
    }

    /// Takes up an offer.
    ///
    /// # Errors
    /// If it is not one.
    pub fn incoming(&self, upto: EntryId, offer: &Bytes) -> Result<Incoming, FilesError> {
        let (segments, terms) =
            decode_base(offer).ok_or(FilesError::Offer("it does not decode"))?;
        check_offer(&segments)?;
        Ok(Incoming {
            log: self.clone(),
            upto,
            offer: offer.clone(),
            segments,
            terms,
            next: Want::FIRST,
            growing: None,
            whole: Vec::new(),
        })
    }
}

impl Outgoing {
    pub fn offer(&self) -> &Bytes {
        &self.offer
    }

    /// Of payloads.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.log_bytes as u64).sum()
    }

    /// What begins where a receiver wants it, at most `bytes_max`. Touches the disk.
    ///
    /// # Errors
    /// If there is no such place.
    pub fn piece(&self, want: Want, bytes_max: usize) -> Result<Bytes, FilesError> {
        let held = self.segments.get(want.segment as usize);
        let held = held.ok_or(FilesError::NoSuchPlace(want))?;
        let (file, length) = match want.part {
            Part::Ledger => (&held.ledger, held.ledger_bytes),
            Part::Log => (&held.log, held.log_bytes),
        };
        let from = usize::try_from(want.position).unwrap_or(usize::MAX);
        if from >= length {
            return Err(FilesError::NoSuchPlace(want));
        }
        let to = length.min(from.saturating_add(bytes_max.max(1)));
        file.prefetch(from..to);
        Ok(file.slice(from..to))
    }
}

/// No segment has more rows or bytes than this: what a peer says is not believed beyond it.
const ROWS_MAX: u64 = 1 << 32;
const BYTES_MAX: u64 = 1 << 40;

/// Segments must follow each other, or what is found by offset would not be found.
fn check_offer(segments: &[SegmentImage]) -> Result<(), FilesError> {
    if segments.len() > SEGMENTS_MAX {
        return Err(FilesError::Offer("it has too many segments"));
    }
    let follows = |pair: &[SegmentImage]| match pair {
        [a, b] => a.next_offset <= b.base_offset && a.last.index < b.base_index,
        _ => true,
    };
    let ordered = |s: &SegmentImage| {
        let small = s.rows <= ROWS_MAX && s.bytes <= BYTES_MAX;
        let in_order = 0 <= s.base_offset && s.base_offset <= s.next_offset;
        // No row without its entry.
        let entries = s.last.index.checked_sub(s.base_index);
        s.sealed && small && in_order && entries.is_some_and(|n| s.rows <= n.saturating_add(1))
    };
    if segments.windows(2).all(follows) && segments.iter().all(ordered) {
        Ok(())
    } else {
        Err(FilesError::Offer("its segments do not follow each other"))
    }
}

/// Files of an offer as they arrive. Dropped before it is installed, it takes them along.
#[derive(Debug)]
pub struct Incoming {
    log: Log,
    upto: EntryId,
    offer: Bytes,
    segments: Vec<SegmentImage>,
    terms: Vec<TermStart>,
    next: Want,
    growing: Option<NewFiles>,
    whole: Vec<Segment>,
}

impl Incoming {
    /// The last entry that the snapshot stands for.
    pub fn upto(&self) -> EntryId {
        self.upto
    }

    /// True if it is this offer that is on its way here.
    pub fn is_of(&self, upto: EntryId, offer: &Bytes) -> bool {
        self.upto == upto && self.offer == *offer
    }

    /// Where to go on; `None` if everything is here.
    pub fn want(&self) -> Option<Want> {
        ((self.next.segment as usize) < self.segments.len()).then_some(self.next)
    }

    /// Takes the piece that begins at `at`; one that is not wanted (any more) is let pass. Blocks on the disk.
    ///
    /// # Errors
    /// If it cannot be written, or a segment is not what it should be.
    pub fn take(&mut self, at: Want, bytes: &[u8]) -> Result<(), FilesError> {
        let Some(want) = self.want().filter(|w| *w == at && !bytes.is_empty()) else {
            return Ok(());
        };
        let image = self.segments[want.segment as usize].clone();
        let room = match want.part {
            Part::Ledger => ledger_bytes(&image),
            Part::Log => image.bytes,
        } - want.position;
        if bytes.len() as u64 > room {
            return Err(FilesError::Offer("a piece is longer than its file"));
        }
        if self.growing.is_none() {
            self.growing = Some(self.create(&image)?);
        }
        let Some(growing) = &self.growing else {
            return Ok(());
        };
        let file = match want.part {
            Part::Ledger => &growing.ledger,
            Part::Log => &growing.log,
        };
        let piece = [IoSlice::new(bytes)];
        let written = file.write_all_at(&piece, want.position);
        written.map_err(|e| growing.failed(e))?;
        self.next = want.after(bytes.len(), &image);
        if self.next.segment > want.segment {
            self.finish(&image)?;
        }
        Ok(())
    }

    fn create(&self, image: &SegmentImage) -> Result<NewFiles, FilesError> {
        let engine = &self.log.0.engine;
        engine.check()?;
        if self.log.0.state.lock().deleted {
            // Its folder must not come back.
            return Err(WriteError::Deleted.into());
        }
        let dir = engine.log_dir(self.log.key());
        let made = engine.fs.create_dir_all(&dir);
        made.map_err(|source| FilesError::Io {
            what: "create",
            path: dir,
            source,
        })?;
        let files = NewFiles::create(&self.log, image.base_offset, image.base_index)?;
        Ok(files)
    }

    /// A segment is here: makes it durable, and looks whether it is what was offered.
    fn finish(&mut self, image: &SegmentImage) -> Result<(), FilesError> {
        let Some(growing) = self.growing.take() else {
            return Ok(());
        };
        let id = growing.segment.id;
        let synced = growing.sync().map_err(FilesError::from);
        let outcome = synced.and_then(|()| self.open(image, id));
        match outcome {
            Ok(segment) => {
                self.whole.push(segment);
                Ok(())
            }
            Err(error) => {
                growing.discard();
                Err(error)
            }
        }
    }

    fn open(&self, image: &SegmentImage, id: u64) -> Result<Segment, FilesError> {
        let image = SegmentImage {
            id,
            ..image.clone()
        };
        let segment = crate::checkpoint::segment_of(&image, self.log.key(), &self.log.0.engine);
        check_content(&segment)?;
        Ok(segment)
    }

    /// As the operation that installs it has it.
    pub(crate) fn encoded(&self) -> Bytes {
        encode_base(self.whole.iter(), &self.terms)
    }

    pub(crate) fn into_base(mut self) -> Base {
        Base {
            segments: std::mem::take(&mut self.whole),
            terms: std::mem::take(&mut self.terms),
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let growing = self.growing.take().map(|g| g.segment);
        let whole = self.whole.drain(..).map(|s| s.file);
        whole.chain(growing).for_each(|file| discard(&file));
    }
}

/// Every row and payload against its checksum, and the whole against what was said of it.
fn check_content(segment: &Segment) -> Result<(), FilesError> {
    let mut next_offset = segment.file.base_offset;
    let mut position = 0;
    let ledger = segment.file.ledger(segment.rows)?;
    for ordinal in 0..segment.rows {
        let row = ledger.row(ordinal)?;
        let follows = row.base_offset >= next_offset && row.position == position;
        if !follows || row.index > segment.last.index || row.end_offset() > segment.next_offset {
            return Err(FilesError::Offer("a row does not fit into its segment"));
        }
        (next_offset, position) = (row.end_offset(), row.end_position());
    }
    if position != segment.bytes {
        return Err(FilesError::Offer(
            "a segment's rows and its bytes do not go together",
        ));
    }
    if segment.rows > 0 {
        segment.file.check(&(0..segment.rows))?;
    }
    Ok(())
}
