//! `logctl cluster info`.

use std::collections::{BTreeMap, BTreeSet};

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
    /// What every broker's build understands; absent where a broker from before there were levels answers.
    feature_level: Option<u32>,
    /// For each level that some build understands at most, the brokers that run it.
    builds: BTreeMap<u32, Vec<i32>>,
    /// How often the metadata was recovered by force.
    metadata_generation: u32,
}

impl From<api::DescribeClusterResponse> for Info {
    fn from(told: api::DescribeClusterResponse) -> Info {
        let versions = told.brokers.iter().map(|broker| broker.version.clone());
        let mut builds: BTreeMap<u32, Vec<i32>> = BTreeMap::new();
        for broker in told.brokers.iter().filter(|b| b.feature_version > 0) {
            let same = builds.entry(broker.feature_version).or_default();
            same.push(broker.node_id);
        }
        Info {
            feature_level: Some(told.feature_level).filter(|level| *level > 0),
            builds,
            metadata_generation: told.metadata_generation,
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

impl Info {
    /// The level, and where builds differ, who understands what.
    fn features(&self) -> String {
        let level = or_dash(self.feature_level);
        if self.builds.len() < 2 {
            return level;
        }
        let builds = self.builds.iter().map(|(build, nodes)| {
            let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            format!("{build} on {}", nodes.join(","))
        });
        format!(
            "{level} (builds: {})",
            builds.collect::<Vec<_>>().join("; ")
        )
    }
}

impl Shown for Info {
    fn table(&self) -> String {
        let mut headers = vec![
            "CLUSTER",
            ">CONTROLLER",
            ">BROKERS",
            ">ALIVE",
            ">TOPICS",
            ">PARTITIONS",
            ">MOVING",
            "VERSIONS",
            "FEATURES",
        ];
        let versions: Vec<&str> = self.versions.iter().map(String::as_str).collect();
        let mut row = vec![
            self.cluster_id.clone(),
            or_dash(self.controller),
            self.brokers.to_string(),
            self.brokers_alive.to_string(),
            self.topics.to_string(),
            self.partitions.to_string(),
            self.moving.to_string(),
            versions.join(","),
            self.features(),
        ];
        if self.metadata_generation > 0 {
            headers.push(">RECOVERED");
            row.push(self.metadata_generation.to_string());
        }
        let mut table = Table::new(&headers);
        table.row(row);
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
            feature_version: 2,
            ..api::Broker::default()
        };
        let info = Info::from(api::DescribeClusterResponse {
            cluster_id: "c".into(),
            controller: None,
            brokers: vec![broker(1, true, "0.1.0"), broker(2, false, "")],
            topics: 1,
            partitions: 3,
            feature_level: 2,
            ..api::DescribeClusterResponse::default()
        });
        let table = "\
CLUSTER  CONTROLLER  BROKERS  ALIVE  TOPICS  PARTITIONS  MOVING  VERSIONS  FEATURES
c                 -        2      1       1           3       0  0.1.0     2
";
        assert_eq!(info.table(), table);
    }

    #[test]
    fn metadata_that_was_recovered_by_force_is_told() {
        let told = api::DescribeClusterResponse {
            cluster_id: "c".into(),
            controller: Some(1),
            feature_level: 2,
            metadata_generation: 1,
            ..api::DescribeClusterResponse::default()
        };
        let table = "\
CLUSTER  CONTROLLER  BROKERS  ALIVE  TOPICS  PARTITIONS  MOVING  VERSIONS  FEATURES  RECOVERED
c                 1        0      0       0           0       0  -         2                 1
";
        assert_eq!(Info::from(told).table(), table);
    }

    #[test]
    fn who_holds_the_feature_level_back_is_shown_while_builds_differ() {
        let broker = |node_id, feature_version| api::Broker {
            node_id,
            feature_version,
            ..api::Broker::default()
        };
        let told = |feature_level, brokers| {
            let told = api::DescribeClusterResponse {
                feature_level,
                brokers,
                ..api::DescribeClusterResponse::default()
            };
            Info::from(told).features()
        };
        let mixed = vec![broker(1, 2), broker(2, 1), broker(3, 2)];
        assert_eq!(told(1, mixed), "1 (builds: 1 on 2; 2 on 1,3)");
        assert_eq!(told(2, vec![broker(1, 2), broker(2, 2)]), "2");
        assert_eq!(told(0, vec![broker(1, 0)]), "-", "it is from before");
    }
}
