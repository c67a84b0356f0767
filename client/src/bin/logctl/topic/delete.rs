//! `logctl topic delete`.
//!
//! Promise: nothing goes before somebody has seen what it is and said yes, or has said `--yes`.
//! When one name is not there, nothing is deleted.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;
use logd_client::{Admin, OffsetAt, TopicInfo};
use serde::Serialize;

use super::create::Problem;
use crate::context::Context;
use crate::failure::{Exit, Failure, Tally};
use crate::lookup;
use crate::output::{Shown, Table, or_dash};

#[derive(Debug, Args)]
pub struct Options {
    /// Which ones
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Deleted {
    topic: String,
    /// `deleted` or `failed`.
    status: &'static str,
    error: Option<Problem>,
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct AllDeleted(Vec<Deleted>);

impl Shown for AllDeleted {
    fn table(&self) -> String {
        let mut table = Table::new(&["TOPIC", "STATUS"]);
        for deleted in &self.0 {
            table.row([deleted.topic.clone(), deleted.status.to_owned()]);
        }
        table.render()
    }
}

pub(super) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    if !options.yes && !io::stdin().is_terminal() {
        let failure = Failure::usage("deleting topics needs a yes, and there is nobody to ask");
        return Err(failure.hint("--yes says it beforehand"));
    }
    let admin = context.connect().await?.admin();
    let mut topics = Vec::new();
    for name in &options.names {
        topics.push(lookup::topic(&admin, name).await?);
    }
    if !options.yes {
        let asked = ask(&stock(&admin, &topics).await);
        if !asked.map_err(|error| Failure::io("cannot ask", &error))? {
            context.out.note("nothing was deleted");
            return Ok(Exit::Failed);
        }
    }
    let mut tally = Tally::default();
    let mut all = Vec::new();
    for topic in topics {
        let failure = match admin.delete_topic(&topic.name).await {
            Ok(()) => None,
            Err(error) => Some(Failure::from(error)),
        };
        match &failure {
            None => tally.done(),
            Some(failure) => tally.failed(context.out.fail(failure)),
        }
        all.push(Deleted {
            topic: topic.name,
            status: if failure.is_none() {
                "deleted"
            } else {
                "failed"
            },
            error: failure.as_ref().and_then(Problem::of),
        });
    }
    context.out.show(&AllDeleted(all))?;
    Ok(tally.exit())
}

/// What would go: partitions, offsets in use, and the groups that have read it.
async fn stock(admin: &Admin, topics: &[TopicInfo]) -> String {
    let mut table = Table::new(&["TOPIC", ">PARTITIONS", ">RECORDS", "GROUPS"]);
    let readers = readers(admin).await;
    for topic in topics {
        table.row([
            topic.name.clone(),
            topic.partitions.len().to_string(),
            or_dash(records(admin, topic).await),
            groups_of(&topic.name, readers.as_deref()),
        ]);
    }
    table.render()
}

/// The groups that have read a topic. Nobody should say yes because a question went unanswered.
fn groups_of(topic: &str, readers: Option<&[Reader]>) -> String {
    let Some(readers) = readers else {
        return "unknown".to_owned();
    };
    let readers = readers
        .iter()
        .filter(|(_, read)| read.iter().any(|t| t == topic));
    let groups: Vec<&str> = readers.map(|(group, _)| group.as_str()).collect();
    groups.join(",")
}

/// A group, and the topics it has committed.
type Reader = (String, Vec<String>);

/// All of them, or nothing if one could not be asked.
async fn readers(admin: &Admin) -> Option<Vec<Reader>> {
    let mut readers = Vec::new();
    for group in admin.list_groups().await.ok()? {
        let committed = admin.group_offsets(&group.id).await.ok()?;
        readers.push((group.id, committed.into_iter().map(|at| at.topic).collect()));
    }
    Some(readers)
}

async fn records(admin: &Admin, topic: &TopicInfo) -> Option<i64> {
    let all = topic.partitions.iter();
    let all: Vec<(String, i32)> = all.map(|p| (topic.name.clone(), p.index)).collect();
    let sum = async |at| {
        let found = admin.offsets(&all, at).await.ok()?;
        Some(found.iter().filter_map(|found| found.offset).sum::<i64>())
    };
    Some(sum(OffsetAt::End).await? - sum(OffsetAt::Start).await?)
}

/// The question goes to stderr: stdout is for data.
fn ask(stock: &str) -> io::Result<bool> {
    let mut stderr = io::stderr().lock();
    write!(stderr, "{stock}Delete for good? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_could_not_be_asked_are_not_no_groups() {
        let readers = [
            ("a".to_owned(), vec!["t".to_owned(), "u".to_owned()]),
            ("b".to_owned(), vec!["t".to_owned()]),
        ];
        assert_eq!(groups_of("t", Some(&readers)), "a,b");
        assert_eq!(groups_of("v", Some(&readers)), "");
        assert_eq!(groups_of("t", None), "unknown");
    }

    #[test]
    fn only_yes_is_yes() {
        assert!(is_yes("y\n") && is_yes("Yes\n"));
        assert!(!is_yes("\n") && !is_yes("no\n") && !is_yes("") && !is_yes("yesterday\n"));
    }
}
