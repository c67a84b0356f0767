//! `logctl cluster info`.

use std::collections::BTreeSet;

use logd_proto::rpc::admin as api;
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::operator::Operator;
use crate::output::{Shown, Table, or_dash};

#[derive(Debug, Serialize)]
struct Info {
    cluster_id: String,
    /// Who leads the metadata group.
    controller: Option<i32>,
    brokers: usize,
    brokers_alive: usize,
    topics: u32,
    partitions: u32,
    moving: u32,
    /// Of the brokers that answer.
    versions: BTreeSet<String>,
}

impl From<api::DescribeClusterResponse> for Info {
    fn from(told: api::DescribeClusterResponse) -> Info {
        let versions = told.brokers.iter().map(|broker| broker.version.clone());
        Info {
            cluster_id: told.cluster_id,
            controller: told.controller,
            brokers: told.brokers.len(),
            brokers_alive: told.brokers.iter().filter(|broker| broker.alive).count(),
            topics: told.topics,
            partitions: told.partitions,
            moving: told.moving,
            versions: versions.filter(|version| !version.is_empty()).collect(),
        }
    }
}

impl Shown for Info {
    fn table(&self) -> String {
        let headers = [
            "CLUSTER",
            ">CONTROLLER",
            ">BROKERS",
            ">ALIVE",
            ">TOPICS",
            ">PARTITIONS",
            ">MOVING",
            "VERSIONS",
        ];
        let mut table = Table::new(&headers);
        let versions: Vec<&str> = self.versions.iter().map(String::as_str).collect();
        table.row([
            self.cluster_id.clone(),
            or_dash(self.controller),
            self.brokers.to_string(),
            self.brokers_alive.to_string(),
            self.topics.to_string(),
            self.partitions.to_string(),
            self.moving.to_string(),
            versions.join(","),
        ]);
        table.render()
    }
}

pub(super) async fn run(context: &Context, operator: &mut Operator) -> Result<Exit, Failure> {
    context.out.show(&Info::from(operator.cluster().await?))?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_that_are_away_are_counted_and_have_no_version() {
        let broker = |node_id, alive, version: &str| api::Broker {
            node_id,
            alive,
            version: version.to_owned(),
            ..api::Broker::default()
        };
        let info = Info::from(api::DescribeClusterResponse {
            cluster_id: "c".into(),
            controller: None,
            brokers: vec![broker(1, true, "0.1.0"), broker(2, false, "")],
            topics: 1,
            partitions: 3,
            ..api::DescribeClusterResponse::default()
        });
        let table = "\
CLUSTER  CONTROLLER  BROKERS  ALIVE  TOPICS  PARTITIONS  MOVING  VERSIONS
c                 -        2      1       1           3       0  0.1.0
";
        assert_eq!(info.table(), table);
    }
}
