//! `logctl dev logs`: what brokers print, the last of it or as it comes.
//!
//! Promise: lines come whole, each with the broker it is from where there are several; at most
//! [`TAIL_BYTES_MAX`] of a log are read to find its last lines.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::At;
use super::layout::Home;
use super::state;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Format, Out};
use crate::signals::{Signals, reader_gone};

const TAIL_BYTES_MAX: u64 = 4 << 20;

/// Read of one log before the next has its turn.
const CHUNK_BYTES: u64 = 256 << 10;

const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub struct Options {
    /// Which broker, counted from 1 [default: all]
    node: Option<u16>,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines of each broker
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 50)]
    tail: usize,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    node: u16,
    line: &'a str,
}

pub(super) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let home = options.at.home();
    let mut cluster = state::read(&home)?;
    let nodes = match options.node {
        Some(number) => vec![cluster.node(number)?.node],
        None => cluster.nodes.iter().map(|node| node.node).collect(),
    };
    let several = nodes.len() > 1;
    let mut logs: Vec<Log> = nodes
        .into_iter()
        .map(|node| Log::new(&home, node))
        .collect();
    for log in &mut logs {
        let last = log.read(|log| log.last(options.tail))?;
        print(context.out, log.node, several, &last)?;
    }
    if !options.follow {
        return Ok(Exit::Done);
    }
    let mut signals = Signals::new();
    tokio::select! {
        failure = follow(context.out, &mut logs, several) => Err(failure),
        exit = signals.next() => Ok(exit),
        () = reader_gone() => Err(Failure::ClosedPipe),
    }
}

/// Comes back with a failure only.
async fn follow(out: Out, logs: &mut [Log], several: bool) -> Failure {
    loop {
        let mut read = 0;
        for log in logs.iter_mut() {
            match log.read(Log::next) {
                Ok(text) => {
                    read += text.len();
                    if let Err(failure) = print(out, log.node, several, &text) {
                        return failure;
                    }
                }
                Err(failure) => return failure,
            }
        }
        if read == 0 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// One broker's, and how far it was read.
#[derive(Debug)]
struct Log {
    node: u16,
    path: std::path::PathBuf,
    read_to: u64,
}

impl Log {
    fn new(home: &Home, node: u16) -> Log {
        Log {
            node,
            path: home.log(node),
            read_to: 0,
        }
    }

    /// A broker that never started has said nothing.
    fn read(
        &mut self,
        how: impl FnOnce(&mut Log) -> io::Result<String>,
    ) -> Result<String, Failure> {
        match how(self) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(Failure::io(
                &format!("cannot read {}", self.path.display()),
                &error,
            )),
            Ok(text) => Ok(text),
        }
    }

    /// The last lines of what is there.
    fn last(&mut self, lines: usize) -> io::Result<String> {
        let end = File::open(&self.path)?.metadata()?.len();
        self.read_to = end.saturating_sub(TAIL_BYTES_MAX);
        let from = self.read_to;
        let text = self.whole_lines(TAIL_BYTES_MAX)?;
        let mut all: Vec<&str> = text.split_inclusive('\n').collect();
        if from > 0 && !all.is_empty() {
            // Most likely not the whole of it.
            all.remove(0);
        }
        Ok(all.split_off(all.len().saturating_sub(lines)).concat())
    }

    /// What has come since.
    fn next(&mut self) -> io::Result<String> {
        let end = File::open(&self.path)?.metadata()?.len();
        if end < self.read_to {
            // Somebody has emptied it.
            self.read_to = 0;
        }
        self.whole_lines(CHUNK_BYTES)
    }

    fn whole_lines(&mut self, bytes_max: u64) -> io::Result<String> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.read_to))?;
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes)?;
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        // A line longer than all that is read at once comes in pieces.
        let length = if bytes.len() as u64 == bytes_max && whole == 0 {
            bytes.len()
        } else {
            whole
        };
        self.read_to += length as u64;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }
}

fn print(out: Out, node: u16, several: bool, text: &str) -> Result<(), Failure> {
    let mut shown = String::new();
    for line in text.lines() {
        match out.format {
            Format::Json => {
                let line = serde_json::to_string(&Line { node, line });
                let line = line.map_err(|error| {
                    Failure::new(Exit::Failed, format!("cannot write JSON: {error}"))
                })?;
                shown.push_str(&line);
            }
            Format::Table if several => shown.push_str(&format!("node {node} | {line}")),
            Format::Table => shown.push_str(line),
        }
        shown.push('\n');
    }
    match shown.is_empty() {
        true => Ok(()),
        false => out.data(shown.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_last_lines_and_then_what_comes_in_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().to_owned());
        let mut log = Log::new(&home, 1);
        assert_eq!(log.read(|log| log.last(2)).unwrap(), "", "it never started");
        fs::create_dir(home.node(1)).unwrap();
        fs::write(home.log(1), "1\n2\n3\n4").unwrap();
        assert_eq!(log.last(2).unwrap(), "2\n3\n");
        assert_eq!(log.next().unwrap(), "");
        fs::write(home.log(1), "1\n2\n3\n4\n5\n6").unwrap();
        assert_eq!(log.next().unwrap(), "4\n5\n");
        fs::write(home.log(1), "new\n").unwrap();
        assert_eq!(log.next().unwrap(), "new\n", "it was emptied in between");
        assert_eq!(log.last(0).unwrap(), "");
        assert_eq!(log.last(100).unwrap(), "new\n");
    }
}
