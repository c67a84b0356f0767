//! `logctl produce`: a record per line.
//!
//! Promise: a record counts as stored when the broker has said so; whatever was not is named with its
//! line, and makes the exit code 1. Ctrl-C stops reading and waits for what is on its way.
//!
//! Not here: how lines are cut ([`crate::lines`]); creating the topic, since a misspelt name should be an error.

mod outcome;

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use logd_client::error::SendError;
use logd_client::{Delivery, Producer, Record};
use tokio::sync::mpsc;

use crate::args::{self, Codec};
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::lines::{self, Line, TooLong};
use crate::lookup;
use crate::output::Out;
use crate::signals::Signals;
use outcome::{Refused, collect, conclude};

/// What topics take by default (max.message.bytes).
const LINE_BYTES_MAX: usize = 1 << 20;

/// Records whose fate is still to be looked at. The producer's own buffer bounds what is on its way.
const DELIVERIES_MAX: usize = 64 << 10;

#[derive(Debug, Args)]
pub struct Options {
    /// Where records go; it must be there
    topic: String,
    /// One key for all records
    #[arg(short, long, conflicts_with = "key_delimiter")]
    key: Option<String>,
    /// The key is what stands before DELIM in each line; a line without it has no key
    #[arg(short = 'K', long, value_name = "DELIM", value_parser = delimiter)]
    key_delimiter: Option<String>,
    /// A header for all records; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = args::key_value)]
    headers: Vec<(String, String)>,
    /// Into this partition, instead of the one that the key chooses
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// How batches are compressed
    #[arg(short = 'z', long, value_enum, value_name = "CODEC", default_value_t)]
    compression: Codec,
    /// Lines of this file instead of stdin
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

fn delimiter(text: &str) -> Result<String, String> {
    match text {
        "" => Err("expected at least one character".to_owned()),
        "\\t" => Ok("\t".to_owned()),
        text => Ok(text.to_owned()),
    }
}

pub async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let client = context.connect().await?;
    let info = lookup::topic(&client.admin(), &options.topic).await?;
    if let Some(partition) = options.partition {
        lookup::partition(&info, partition)?;
    }
    let source = open(context.out, &options)?;
    let producer = client
        .producer()
        .compression(options.compression.into())
        .retry(context.store_policy())
        .build();
    let (handover, deliveries) = mpsc::channel(DELIVERIES_MAX);
    let collector = tokio::spawn(collect(deliveries));
    let mut signals = Signals::new();
    let mut feed = Feed {
        producer: &producer,
        options: &options,
        handover,
        refused: Refused::default(),
    };
    let fed = tokio::select! {
        fed = feed.all(source) => fed.map(|()| Exit::Done),
        exit = signals.next() => Ok(exit),
    };
    let refused = feed.refused;
    drop(feed.handover);
    tokio::select! {
        _ = producer.close() => {}
        // The second time somebody does not want to wait.
        exit = signals.next() => return Ok(exit),
    }
    let stored = collector.await;
    let mut stored = stored.map_err(|error| {
        Failure::new(Exit::Failed, format!("records were not counted: {error}"))
    })?;
    stored.add(refused);
    conclude(context.out, &info.name, &stored, fed)
}

fn open(out: Out, options: &Options) -> Result<Box<dyn io::Read + Send>, Failure> {
    match &options.file {
        Some(path) => match File::open(path) {
            Ok(file) => Ok(Box::new(file)),
            Err(error) => Err(Failure::io(
                &format!("cannot read {}", path.display()),
                &error,
            )),
        },
        None => {
            if io::stdin().is_terminal() {
                out.note("a record per line; Ctrl-D ends");
            }
            Ok(Box::new(io::stdin()))
        }
    }
}

struct Feed<'a> {
    producer: &'a Producer,
    options: &'a Options,
    handover: mpsc::Sender<(u64, Delivery)>,
    refused: Refused,
}

impl Feed<'_> {
    async fn all(&mut self, source: Box<dyn io::Read + Send>) -> Result<(), Failure> {
        let mut chunks = lines::spawn(source, LINE_BYTES_MAX);
        while let Some(chunk) = chunks.recv().await {
            let chunk = chunk.map_err(|error| Failure::io("cannot read lines", &error))?;
            for line in chunk {
                self.one(line).await?;
            }
        }
        Ok(())
    }

    /// A line that cannot be a record does not stop the others; a topic that is gone does.
    async fn one(&mut self, line: Line) -> Result<(), Failure> {
        let text = match line.text {
            Ok(text) => text,
            Err(TooLong(bytes)) => {
                let limit = LINE_BYTES_MAX;
                let reason = SendError::TooLarge { bytes, limit };
                self.refused.add(line.number, &reason);
                return Ok(());
            }
        };
        let record = record(text, self.options);
        match self.producer.send(&self.options.topic, record).await {
            Ok(delivery) => {
                // The collector lives as long as this end.
                self.handover.send((line.number, delivery)).await.ok();
                Ok(())
            }
            Err(error @ (SendError::TooLarge { .. } | SendError::Encode(_))) => {
                self.refused.add(line.number, &error);
                Ok(())
            }
            Err(error) => {
                self.refused.add(line.number, &error);
                Err(error.into())
            }
        }
    }
}

/// A line as the options want it.
fn record(line: Bytes, options: &Options) -> Record {
    let (key, value) = match &options.key_delimiter {
        Some(delimiter) => split(&line, delimiter.as_bytes()),
        None => (options.key.clone().map(Bytes::from), line),
    };
    let mut record = Record::value(value);
    if let Some(key) = key {
        record = record.key(key);
    }
    if let Some(partition) = options.partition {
        record = record.partition(partition);
    }
    for (name, value) in &options.headers {
        record = record.header(name, value.clone());
    }
    record
}

/// What stands before the delimiter, and what behind it.
fn split(line: &Bytes, delimiter: &[u8]) -> (Option<Bytes>, Bytes) {
    let at = line
        .windows(delimiter.len())
        .position(|part| part == delimiter);
    match at {
        Some(at) => (Some(line.slice(..at)), line.slice(at + delimiter.len()..)),
        None => (None, line.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &[&str]) -> Options {
        Line::parse_from([&["produce", "t"], line].concat()).options
    }

    #[test]
    fn a_line_is_split_at_the_first_delimiter() {
        let seen = record(Bytes::from_static(b"k::v::w"), &options(&["-K", "::"]));
        assert_eq!(seen, Record::value("v::w").key("k"));
        let keyless = record(Bytes::from_static(b"value"), &options(&["-K", ","]));
        assert_eq!(keyless, Record::value("value"));
        let empty = record(Bytes::from_static(b",v"), &options(&["-K", ","]));
        assert_eq!(empty, Record::value("v").key(""));
        let tab = record(Bytes::from_static(b"k\tv"), &options(&["-K", "\\t"]));
        assert_eq!(tab, Record::value("v").key("k"));
    }

    #[test]
    fn key_partition_and_headers_go_to_every_record() {
        let options = options(&["-k", "k", "-p", "2", "-H", "a=1", "-H", "a=2"]);
        let expected = Record::value("v").key("k").partition(2);
        let expected = expected.header("a", "1").header("a", "2");
        assert_eq!(record(Bytes::from_static(b"v"), &options), expected);
    }

    #[test]
    fn two_sources_of_keys_are_one_too_many() {
        let parsed = Line::try_parse_from(["produce", "t", "-k", "a", "-K", ","]);
        assert!(parsed.is_err());
    }
}
