//! `logctl consume`: records to stdout, as they come.
//!
//! Promise: what a member of a group has printed is committed when it ends, and nothing more. Ctrl-C
//! leaves the group, so that the others need not wait for it.

pub mod format;
pub mod offset;
mod source;

use std::collections::BTreeMap;

use clap::Args;
use logd_client::{ConsumedRecord, TopicInfo};

use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::lookup;
use crate::output::{Format, Out, count};
use crate::signals::{Signals, reader_gone};
use format::Template;
use offset::Begin;
use source::Source;

/// Records written at a time. A signal is looked at in between.
const BATCH_RECORDS: usize = 10_000;

#[derive(Debug, Args)]
pub struct Options {
    /// What to read
    #[arg(required = true, value_name = "TOPIC")]
    topics: Vec<String>,
    /// Read as a member of this group: share partitions, go on where the group was, and commit
    #[arg(short, long)]
    group: Option<String>,
    /// Where to begin: start, end, an offset, -N for the last N of each partition, or @MILLISECONDS
    /// since 1970; with --group only where it has committed nothing
    #[arg(
        long,
        value_name = "WHERE",
        default_value = "start",
        allow_hyphen_values = true
    )]
    offset: Begin,
    /// End after so many records
    #[arg(short = 'n', long = "count", value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// How to write a record: %t topic, %p partition, %o offset, %k key, %v value, %h headers, %T
    /// timestamp, %K %S lengths of key and value, \n \t \xNN
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        default_value = "%v\\n",
        hide_default_value = true
    )]
    #[arg(allow_hyphen_values = true)]
    format: Template,
    /// Only this partition; may be repeated
    #[arg(short, long = "partition", value_name = "N", conflicts_with = "group")]
    #[arg(value_parser = clap::value_parser!(i32).range(0..))]
    partitions: Vec<i32>,
    /// End when everything is read that was there at the beginning
    #[arg(short = 'e', long)]
    until_end: bool,
}

pub async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let out = context.out;
    let client = context.connect().await?;
    let mut topics: Vec<TopicInfo> = Vec::new();
    for name in &options.topics {
        topics.push(lookup::topic(&client.admin(), name).await?);
    }
    let ends = match options.until_end {
        true => Some(source::ends(&client, &topics).await?),
        false => None,
    };
    let mut source = Source::open(&client, &topics, &options).await?;
    let mut printed = Printed::default();
    let mut signals = Signals::new();
    let end = tokio::select! {
        end = printed.all(&mut source, &options, ends.as_ref(), out) => end,
        exit = signals.next() => Ok(exit),
        () = reader_gone() => Err(Failure::ClosedPipe),
    };
    let arrived = !matches!(end, Err(Failure::ClosedPipe));
    let closed = tokio::select! {
        closed = source.close(arrived) => closed,
        // The second time somebody does not want to wait.
        exit = signals.next() => return Ok(exit),
    };
    if arrived {
        out.note(&format!("read {}", count(printed.records, "record")));
    }
    let exit = end?;
    closed.map_err(|error| Failure::from(error).hint("the last records may come again"))?;
    Ok(exit)
}

/// What has come out so far.
#[derive(Debug, Default)]
struct Printed {
    records: u64,
}

impl Printed {
    /// Prints until there is a reason to end.
    async fn all(
        &mut self,
        source: &mut Source,
        options: &Options,
        ends: Option<&BTreeMap<(String, i32), i64>>,
        out: Out,
    ) -> Result<Exit, Failure> {
        let mut text = Vec::new();
        loop {
            let left = options.count.map_or(u64::MAX, |max| max - self.records);
            let limit = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(BATCH_RECORDS);
            if left == 0 {
                return Ok(Exit::Done);
            }
            // Not knowing yet what is ours must not look like having read it all.
            source.join().await?;
            if ends.is_some_and(|ends| source.is_behind(ends)) {
                return Ok(Exit::Done);
            }
            let records = source.next(limit).await?;
            text.clear();
            write(&records, options, out, &mut text)?;
            out.data(&text)?;
            self.records += records.len() as u64;
        }
    }
}

fn write(
    records: &[ConsumedRecord],
    options: &Options,
    out: Out,
    text: &mut Vec<u8>,
) -> Result<(), Failure> {
    for record in records {
        match out.format {
            Format::Table => options.format.write(record, text),
            Format::Json => format::write_json(record, text).map_err(|error| {
                Failure::new(Exit::Failed, format!("cannot write JSON: {error}"))
            })?,
        }
    }
    Ok(())
}
