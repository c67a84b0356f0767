//! `logctl debug`: a data directory, or one segment of it, looked into without a broker.
//!
//! Promise: nothing is written to the directory, and one that a running broker has is refused unless
//! `--running` insists. Output is streamed: `-o json` prints one object per line, each with its `kind`.
//!
//! Not here: how files are read (`logd_storage::inspect`).

mod batch;
mod dump;
mod print;
mod verify;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use logd_storage::inspect::{Directory, IfRunning};
use logd_storage::vfs::{RealFs, Vfs};
use logd_storage::{LogKey, OpenError};

use crate::output::Format;
use print::Printer;

#[derive(Debug, Subcommand)]
pub(crate) enum DebugCommand {
    /// Show what is in a data directory, or in one segment
    Dump(DumpOptions),
    /// Check everything in a data directory; ends with 6 if anything is damaged
    Verify(VerifyOptions),
}

#[derive(Debug, Args)]
pub(crate) struct DumpOptions {
    /// A data directory, or a segment's .log or .idx file
    #[arg(value_name = "DIR|SEGMENT_FILE")]
    path: PathBuf,
    /// Only this log, by the name of its folder: topic id, dash, partition
    #[arg(long, value_name = "KEY")]
    log: Option<LogKey>,
    /// Every row of every ledger, and every operation in the write-ahead log
    #[arg(long)]
    rows: bool,
    /// Every record, instead of rows
    #[arg(long, conflicts_with = "rows")]
    records: bool,
    /// Read although a broker is running; what is shown may change meanwhile
    #[arg(long)]
    running: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyOptions {
    /// A data directory
    #[arg(value_name = "DIR")]
    path: PathBuf,
    /// Read although a broker is running; findings may be false
    #[arg(long)]
    running: bool,
}

/// What a command came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Sound,
    Damaged,
}

/// Runs a command. Blocks on the disk.
///
/// # Errors
/// If the directory is not there or in use, or `out` takes no more.
pub(crate) fn run(
    command: DebugCommand,
    format: Format,
    out: &mut impl Write,
) -> anyhow::Result<Verdict> {
    let mut printer = Printer::new(format, out);
    let done = match command {
        DebugCommand::Dump(options) => dump::run(&options, &mut printer),
        DebugCommand::Verify(options) => verify::run(&options, &mut printer),
    };
    match done.and_then(|verdict| Ok(printer.finish().map(|()| verdict)?)) {
        // Whoever read it has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(Verdict::Sound),
        other => other,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

fn disk() -> Arc<dyn Vfs> {
    Arc::new(RealFs)
}

fn open(path: &Path, running: bool) -> anyhow::Result<Directory> {
    let if_running = match running {
        true => IfRunning::ReadAnyway,
        false => IfRunning::Refuse,
    };
    Directory::open(disk(), path, if_running).map_err(|error| match error {
        OpenError::Locked { path } => anyhow!(
            "{} is in use by a running broker: stop it, or read anyway with --running",
            path.display()
        ),
        other => other.into(),
    })
}

#[cfg(test)]
mod tests;
