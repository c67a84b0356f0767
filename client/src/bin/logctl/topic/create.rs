//! `logctl topic create`.
//!
//! Promise: every name is tried, and shown with what came of it, also those that failed.

use clap::Args;
use logd_client::error::AdminError;
use logd_client::{Admin, ErrorCode, NewTopic};
use serde::Serialize;

use crate::args;
use crate::context::Context;
use crate::failure::{Exit, Failure, Tally};
use crate::output::{Shown, Table, or_dash};

#[derive(Debug, Args)]
pub struct Options {
    /// What to call them
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// How many partitions each [default: the broker's]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Option<i32>,
    /// On how many brokers each partition is kept [default: the broker's]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(i16).range(1..))]
    replicas: Option<i16>,
    /// A setting under Kafka's name, such as retention.ms=86400000; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = args::key_value)]
    config: Vec<(String, String)>,
    /// Be content with a topic that is there already, whatever its settings
    #[arg(long)]
    if_not_exists: bool,
    /// Only ask whether it could be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Created {
    topic: String,
    /// `created`, `exists`, `valid` (after a dry run) or `failed`.
    status: &'static str,
    partitions: Option<i32>,
    replicas: Option<i32>,
    error: Option<Problem>,
}

/// A failure beside its name.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    code: Option<i16>,
    name: Option<&'static str>,
    message: String,
}

impl Problem {
    pub(super) fn of(failure: &Failure) -> Option<Problem> {
        match failure {
            Failure::Told { message, code, .. } => Some(Problem {
                code: code.map(ErrorCode::code),
                name: code.map(|code| code.name()),
                message: message.clone(),
            }),
            Failure::ClosedPipe => None,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct AllCreated(Vec<Created>);

impl Shown for AllCreated {
    fn table(&self) -> String {
        let mut table = Table::new(&["TOPIC", ">PARTITIONS", ">REPLICAS", "STATUS"]);
        for created in &self.0 {
            let status = match created.status {
                "valid" => "would be created",
                status => status,
            };
            table.row([
                created.topic.clone(),
                or_dash(created.partitions),
                or_dash(created.replicas),
                status.to_owned(),
            ]);
        }
        table.render()
    }
}

pub(super) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let admin = context.connect().await?.admin();
    let mut tally = Tally::default();
    let mut all = Vec::new();
    for name in &options.names {
        match create(&admin, name, &options).await {
            Ok(created) => {
                tally.done();
                all.push(created);
            }
            Err(error) => {
                let failure = Failure::from(error);
                tally.failed(context.out.fail(&failure));
                all.push(Created {
                    topic: name.clone(),
                    status: "failed",
                    partitions: None,
                    replicas: None,
                    error: Problem::of(&failure),
                });
            }
        }
    }
    context.out.show(&AllCreated(all))?;
    Ok(tally.exit())
}

async fn create(admin: &Admin, name: &str, options: &Options) -> Result<Created, AdminError> {
    let mut topic = NewTopic::new(name).validate_only(options.dry_run);
    if let Some(partitions) = options.partitions {
        topic = topic.partitions(partitions);
    }
    if let Some(replicas) = options.replicas {
        topic = topic.replicas(replicas);
    }
    for (key, value) in &options.config {
        topic = topic.config(key, value);
    }
    match admin.create_topic(&topic).await {
        Ok(created) => Ok(Created {
            topic: name.to_owned(),
            status: if options.dry_run { "valid" } else { "created" },
            partitions: (created.partitions > 0).then_some(created.partitions),
            replicas: (created.replicas > 0).then_some(created.replicas.into()),
            error: None,
        }),
        Err(error)
            if options.if_not_exists
                && error.kafka_code() == Some(ErrorCode::TopicAlreadyExists) =>
        {
            existing(admin, name).await
        }
        Err(error) => Err(error),
    }
}

/// A topic that is there may differ from what was asked for, so what it is like is shown.
async fn existing(admin: &Admin, name: &str) -> Result<Created, AdminError> {
    let info = admin.describe_topic(name).await?;
    let replicas = info.partitions.first();
    Ok(Created {
        topic: name.to_owned(),
        status: "exists",
        partitions: i32::try_from(info.partitions.len()).ok(),
        replicas: replicas.and_then(|first| i32::try_from(first.replicas.len()).ok()),
        error: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json;

    #[test]
    fn what_was_made_and_what_was_not_stand_side_by_side() {
        let failure = Failure::from(AdminError::Refused {
            subject: "topic \"b\"".to_owned(),
            code: ErrorCode::TopicAlreadyExists,
            message: None,
        });
        let made = Created {
            topic: "a".into(),
            status: "created",
            partitions: Some(3),
            replicas: Some(1),
            error: None,
        };
        let failed = Created {
            topic: "b".into(),
            status: "failed",
            partitions: None,
            replicas: None,
            error: Problem::of(&failure),
        };
        let all = AllCreated(vec![made, failed]);
        let table = "\
TOPIC  PARTITIONS  REPLICAS  STATUS
a               3         1  created
b               -         -  failed
";
        assert_eq!(all.table(), table);
        let expected = r#"[
  {
    "topic": "a",
    "status": "created",
    "partitions": 3,
    "replicas": 1,
    "error": null
  },
  {
    "topic": "b",
    "status": "failed",
    "partitions": null,
    "replicas": null,
    "error": {
      "code": 36,
      "name": "TOPIC_ALREADY_EXISTS",
      "message": "topic \"b\": TOPIC_ALREADY_EXISTS (36)"
    }
  }
]"#;
        assert_eq!(json(&all).unwrap(), expected);
    }
}
