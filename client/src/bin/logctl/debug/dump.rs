//! `logctl debug dump`: what is in the files, in the order in which recovery would read them.
//!
//! Promise: damage is shown where it is met, and the rest after it.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use logd_storage::inspect::{
    Change, Checkpoint, Directory, Finding, Group, LogImage, SegmentImage, SegmentReader,
};
use logd_storage::{EntryId, Kind, LogKey, Row};
use serde::Serialize;

use super::print::{Line, Printer, or_dash};
use super::verify::FindingLine;
use super::{DumpOptions, Verdict, batch, disk, open};

/// Longer keys and values are cut in a table.
const SHOWN_BYTES: usize = 64;

/// A line of named values, most of them optional: the sections of a dump differ in little else.
macro_rules! line {
    ($name:ident, $kind:literal, $($field:ident: $type:ty => $header:literal $width:literal,)*) => {
        #[derive(Serialize)]
        struct $name {
            $($field: $type,)*
        }

        impl Line for $name {
            const KIND: &'static str = $kind;
            const COLUMNS: &'static [(&'static str, usize)] = &[$(($header, $width),)*];

            fn cells(&self) -> Vec<String> {
                vec![$(Cell::cell(&self.$field),)*]
            }
        }
    };
}

trait Cell {
    fn cell(&self) -> String;
}

impl Cell for String {
    fn cell(&self) -> String {
        self.clone()
    }
}

impl Cell for bool {
    fn cell(&self) -> String {
        if *self { "yes" } else { "no" }.to_owned()
    }
}

impl Cell for u64 {
    fn cell(&self) -> String {
        self.to_string()
    }
}

impl Cell for i64 {
    fn cell(&self) -> String {
        self.to_string()
    }
}

impl<T: ToString> Cell for Option<T> {
    fn cell(&self) -> String {
        or_dash(self.as_ref().map(ToString::to_string))
    }
}

line! { DirectoryLine, "directory",
    directory: String => "DIRECTORY" 24,
    format: Option<u64> => ">FORMAT" 6,
    disk: Option<String> => "DISK" 32,
    starts: Option<u64> => ">STARTS" 6,
    clean_shutdown: Option<bool> => "CLEAN" 5,
    running: bool => "RUNNING" 7,
}

line! { CheckpointLine, "checkpoint",
    bytes: u64 => ">CHECKPOINT BYTES" 16,
    logs: u64 => ">LOGS" 6,
    sequence: u64 => ">NEXT GROUP" 10,
    file: u64 => ">FILE" 6,
    position: u64 => ">POSITION" 10,
    last_op: u64 => ">LAST OPERATION" 14,
}

line! { GroupLine, "group",
    file: String => "WAL FILE" 24,
    position: u64 => ">POSITION" 10,
    bytes: u64 => ">BYTES" 9,
    sequence: u64 => ">GROUP" 8,
    needed: bool => "NEEDED" 6,
    sound: bool => "SOUND" 5,
    operations: u64 => ">OPERATIONS" 10,
}

line! { OperationLine, "operation",
    number: u64 => ">OPERATION" 10,
    log: String => "LOG" 34,
    change: &'static str => "CHANGE" 8,
    term: Option<u64> => ">TERM" 6,
    index: Option<u64> => ">INDEX" 10,
    offset: Option<i64> => ">OFFSET" 10,
    bytes: u64 => ">BYTES" 8,
}

impl Cell for &'static str {
    fn cell(&self) -> String {
        (*self).to_owned()
    }
}

line! { LogLine, "log",
    log: String => "LOG" 34,
    purged: Option<String> => "PURGED" 10,
    last: Option<String> => "LAST" 10,
    start_offset: i64 => ">START" 10,
    end_offset: i64 => ">END" 10,
    segments: u64 => ">SEGMENTS" 8,
    control_entries: u64 => ">CONTROL" 7,
    vote_bytes: Option<u64> => ">VOTE" 4,
    applied: Option<String> => "APPLIED" 10,
    last_op: u64 => ">LAST OPERATION" 14,
}

line! { SegmentLine, "segment",
    segment: String => "SEGMENT" 41,
    log: String => "LOG" 34,
    base_offset: i64 => ">BASE OFFSET" 11,
    base_index: u64 => ">BASE INDEX" 10,
    rows: u64 => ">ROWS" 8,
    rows_known: Option<u64> => ">CHECKPOINTED" 12,
    log_bytes: u64 => ">LOG BYTES" 10,
    sealed: Option<bool> => "SEALED" 6,
}

line! { RowLine, "row",
    log: String => "LOG" 34,
    index: u64 => ">INDEX" 10,
    term: u64 => ">TERM" 6,
    entry: String => "ENTRY" 10,
    base_offset: i64 => ">OFFSET" 10,
    records: u64 => ">RECORDS" 7,
    position: u64 => ">POSITION" 10,
    bytes: u64 => ">BYTES" 8,
    max_timestamp: i64 => ">MAX TIMESTAMP" 14,
}

line! { RecordLine, "record",
    log: String => "LOG" 34,
    offset: i64 => ">OFFSET" 10,
    timestamp: i64 => ">TIMESTAMP" 14,
    headers: u64 => ">HEADERS" 7,
    key: Option<String> => "KEY" 16,
    value: Option<String> => "VALUE" 0,
}

pub(super) fn run(options: &DumpOptions, printer: &mut Printer<'_>) -> anyhow::Result<Verdict> {
    let extension = options.path.extension().unwrap_or_default();
    let mut dump = Dump {
        options,
        printer,
        verdict: Verdict::Sound,
    };
    if options.path.is_file() && (extension == "log" || extension == "idx") {
        let segment = SegmentReader::open(&disk(), &options.path);
        dump.segment(segment, &options.path, &[])?;
    } else {
        let directory = open(&options.path, options.running)?;
        dump.directory(&directory)?;
    }
    Ok(dump.verdict)
}

struct Dump<'a, 'b> {
    options: &'a DumpOptions,
    printer: &'a mut Printer<'b>,
    verdict: Verdict,
}

impl Dump<'_, '_> {
    fn wanted(&self, key: LogKey) -> bool {
        self.options.log.is_none_or(|only| only == key)
    }

    /// Shows a finding instead of what could not be read.
    fn found<T>(&mut self, result: Result<T, Finding>) -> io::Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(finding) => {
                self.verdict = Verdict::Damaged;
                self.printer.line(&FindingLine::from(&finding))?;
                Ok(None)
            }
        }
    }

    fn directory(&mut self, directory: &Directory) -> io::Result<()> {
        let format = self.found(directory.format())?;
        let identity = self.found(directory.identity())?;
        self.printer.line(&DirectoryLine {
            directory: directory.root().display().to_string(),
            format: format.map(u64::from),
            disk: identity.map(|i| format!("{:032x}", i.id)),
            starts: identity.map(|i| i.start),
            clean_shutdown: identity.map(|i| i.clean_shutdown),
            running: directory.is_running(),
        })?;
        if identity.is_some() {
            let checkpoint = self.found(directory.checkpoint())?.flatten();
            self.checkpoint(checkpoint.as_ref())?;
            self.groups(directory)?;
            if let Some(checkpoint) = &checkpoint {
                self.logs(checkpoint)?;
            }
            self.segments(directory, checkpoint.as_ref())?;
        } else {
            self.segments(directory, None)?;
        }
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: Option<&Checkpoint>) -> io::Result<()> {
        let Some(checkpoint) = checkpoint else {
            return Ok(());
        };
        self.printer.line(&CheckpointLine {
            bytes: checkpoint.bytes,
            logs: checkpoint.logs().count() as u64,
            sequence: checkpoint.sequence,
            file: checkpoint.file,
            position: checkpoint.position,
            last_op: checkpoint.last_op,
        })
    }

    fn groups(&mut self, directory: &Directory) -> io::Result<()> {
        let mut printed = Ok(());
        let read = directory.groups(&mut |group| {
            if printed.is_ok() {
                printed = self.group(&group);
            }
        });
        printed?;
        self.found(read).map(drop)
    }

    fn group(&mut self, group: &Group) -> io::Result<()> {
        let operations = group.operations.as_deref().unwrap_or_default();
        let name = group.path.file_name().unwrap_or_default();
        self.printer.line(&GroupLine {
            file: name.to_string_lossy().into_owned(),
            position: group.position,
            bytes: group.bytes,
            sequence: group.sequence,
            needed: group.needed,
            sound: group.operations.is_some(),
            operations: operations.len() as u64,
        })?;
        let shown = operations
            .iter()
            .filter(|o| self.options.rows && self.wanted(o.key));
        let lines: Vec<_> = shown.map(operation_line).collect();
        lines.iter().try_for_each(|line| self.printer.line(line))
    }

    fn logs(&mut self, checkpoint: &Checkpoint) -> io::Result<()> {
        for image in checkpoint.logs() {
            if let Some(image) = self.found(image)?
                && self.wanted(image.key)
            {
                self.printer.line(&log_line(&image))?;
            }
        }
        Ok(())
    }

    fn segments(
        &mut self,
        directory: &Directory,
        checkpoint: Option<&Checkpoint>,
    ) -> io::Result<()> {
        let images = checkpoint.into_iter().flat_map(Checkpoint::logs);
        let known: HashMap<LogKey, Vec<SegmentImage>> = images
            .filter_map(Result::ok)
            .filter(|image| self.wanted(image.key))
            .map(|image| (image.key, [image.base, image.segments].concat()))
            .collect();
        for key in self.found(directory.log_folders())?.unwrap_or_default() {
            if !self.wanted(key) {
                continue;
            }
            let images = known.get(&key).map_or(&[][..], Vec::as_slice);
            for path in self.found(directory.segments(key))?.unwrap_or_default() {
                self.segment(directory.segment(&path), &path, images)?;
            }
        }
        Ok(())
    }

    fn segment(
        &mut self,
        segment: Result<SegmentReader, Finding>,
        path: &Path,
        images: &[SegmentImage],
    ) -> io::Result<()> {
        let Some(segment) = self.found(segment)? else {
            return Ok(());
        };
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let known = images
            .iter()
            .find(|s| name.ends_with(&format!(".{:016x}", s.id)));
        self.printer.line(&SegmentLine {
            segment: name.into_owned(),
            log: segment.key.to_string(),
            base_offset: segment.base_offset,
            base_index: segment.base_index,
            rows: segment.valid_rows().count() as u64,
            rows_known: known.map(|k| k.rows),
            log_bytes: segment.log_bytes,
            sealed: known.map(|k| k.sealed),
        })?;
        if self.options.rows || self.options.records {
            for found in segment.valid_rows() {
                self.row(&segment, &found.row)?;
            }
        }
        Ok(())
    }

    fn row(&mut self, segment: &SegmentReader, row: &Row) -> io::Result<()> {
        if self.options.rows {
            return self.printer.line(&row_line(segment.key, row));
        }
        if row.kind != Kind::Data || !batch::holds_batches(segment.key) {
            return Ok(());
        }
        let Some(bytes) = self.found(segment.payload(row))? else {
            return Ok(());
        };
        let broken = |what: String| Finding::damage(&segment.log_path, row.position, what);
        let Some(records) = self.found(batch::records(&bytes).map_err(broken))? else {
            return Ok(());
        };
        for record in &records {
            let record = record.map_err(|e| broken(e.to_string()));
            let Some(record) = self.found(record)? else {
                return Ok(());
            };
            self.printer.line(&RecordLine {
                log: segment.key.to_string(),
                offset: record.offset,
                timestamp: record.timestamp,
                headers: record.headers.len() as u64,
                key: record.key.map(shown),
                value: record.value.map(shown),
            })?;
        }
        Ok(())
    }
}

fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if text.chars().count() <= SHOWN_BYTES {
        return text.into_owned();
    }
    text.chars().take(SHOWN_BYTES).chain(['…']).collect()
}

fn id(id: EntryId) -> String {
    format!("{}/{}", id.term, id.index)
}

fn log_line(image: &LogImage) -> LogLine {
    LogLine {
        log: image.key.to_string(),
        purged: image.purged.map(id),
        last: image.last.map(id),
        start_offset: image.start_offset,
        end_offset: image.end_offset,
        segments: (image.base.len() + image.segments.len()) as u64,
        control_entries: image.control.len() as u64,
        vote_bytes: image.vote.as_ref().map(|v| v.len() as u64),
        applied: image.captured.as_ref().map(|c| id(c.applied)),
        last_op: image.last_op,
    }
}

fn row_line(key: LogKey, row: &Row) -> RowLine {
    RowLine {
        log: key.to_string(),
        index: row.index,
        term: row.term,
        entry: match row.kind {
            Kind::Data => "data".to_owned(),
            Kind::Control(number) => format!("control {number}"),
        },
        base_offset: row.base_offset,
        records: u64::from(row.records),
        position: row.position,
        bytes: u64::from(row.length),
        max_timestamp: row.max_timestamp,
    }
}

fn operation_line(operation: &logd_storage::inspect::WalOperation) -> OperationLine {
    let (change, at, offset, bytes) = match &operation.change {
        Change::Entry { row, payload, .. } => (
            "entry",
            Some(row.id()),
            Some(row.base_offset),
            payload.len(),
        ),
        Change::Vote(vote) => ("vote", None, None, vote.len()),
        Change::Truncate { keep, end_offset } => {
            let at = keep.map(|index| EntryId { term: 0, index });
            ("truncate", at, *end_offset, 0)
        }
        Change::Purge { upto, start_offset } => ("purge", Some(*upto), *start_offset, 0),
        Change::Delete => ("delete", None, None, 0),
        Change::Rewrite(new) => (
            "rewrite",
            new.as_ref().map(|s| s.last),
            new.as_ref().map(|s| s.base_offset),
            new.as_ref().map_or(0, |s| s.bytes as usize),
        ),
        Change::Settle { upto, floor } => ("settle", *upto, Some(*floor), 0),
        Change::Capture { applied, bytes } => ("capture", Some(*applied), None, *bytes),
        Change::Replace {
            upto,
            next_offset,
            bytes,
            ..
        } => ("replace", Some(*upto), Some(*next_offset), *bytes),
        Change::Snapshot {
            upto,
            next_offset,
            bytes,
            ..
        } => ("snapshot", Some(*upto), Some(*next_offset), *bytes),
    };
    OperationLine {
        number: operation.number,
        log: operation.key.to_string(),
        change,
        term: at.map(|id| id.term).filter(|_| change != "truncate"),
        index: at.map(|id| id.index),
        offset,
        bytes: bytes as u64,
    }
}
