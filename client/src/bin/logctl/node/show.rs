//! `logctl node list` and `logctl node describe`.

use clap::Args;
use logd_proto::rpc::admin as api;
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::operator::Operator;
use crate::output::{Shown, Table, or_dash};

#[derive(Debug, Args)]
pub struct Options {
    /// The broker's number
    #[arg(value_name = "ID")]
    id: i32,
}

#[derive(Debug, Serialize)]
struct Listener {
    name: String,
    host: String,
    port: u32,
}

#[derive(Debug, Serialize)]
struct Node {
    node_id: i32,
    rack: Option<String>,
    /// `active`, `draining` or `decommissioning`.
    duty: String,
    alive: bool,
    version: Option<String>,
    metadata_role: Option<String>,
    metadata_lag: Option<u64>,
    replicas: u32,
    leaders: u32,
    rpc_address: String,
    listeners: Vec<Listener>,
    disk: u64,
}

impl From<api::Broker> for Node {
    fn from(told: api::Broker) -> Node {
        let known = |text: String| Some(text).filter(|text| !text.is_empty());
        let listeners = told.listeners.into_iter().map(|listener| Listener {
            name: listener.name,
            host: listener.host,
            port: listener.port,
        });
        Node {
            node_id: told.node_id,
            rack: known(told.rack),
            duty: told.duty,
            alive: told.alive,
            version: known(told.version),
            metadata_role: known(told.metadata_role),
            metadata_lag: told.metadata_lag,
            replicas: told.replicas,
            leaders: told.leaders,
            rpc_address: told.rpc_address,
            listeners: listeners.collect(),
            disk: told.disk,
        }
    }
}

impl Node {
    fn alive(&self) -> String {
        if self.alive { "yes" } else { "no" }.to_owned()
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct List(Vec<Node>);

impl Shown for List {
    fn table(&self) -> String {
        let headers = [
            ">NODE",
            "ALIVE",
            "DUTY",
            ">REPLICAS",
            ">LEADERS",
            "METADATA",
            ">LAG",
            "RACK",
            "VERSION",
            "RPC",
        ];
        let mut table = Table::new(&headers);
        for node in &self.0 {
            table.row([
                node.node_id.to_string(),
                node.alive(),
                node.duty.clone(),
                node.replicas.to_string(),
                node.leaders.to_string(),
                or_dash(node.metadata_role.as_ref()),
                or_dash(node.metadata_lag),
                or_dash(node.rack.as_ref()),
                or_dash(node.version.as_ref()),
                node.rpc_address.clone(),
            ]);
        }
        table.render()
    }
}

impl Shown for Node {
    fn table(&self) -> String {
        let mut table = Table::new(&["FIELD", "VALUE"]);
        let mut row = |field: &str, value: String| table.row([field.to_owned(), value]);
        row("node", self.node_id.to_string());
        row("alive", self.alive());
        row("duty", self.duty.clone());
        row("replicas", self.replicas.to_string());
        row("leaders", self.leaders.to_string());
        row("metadata", or_dash(self.metadata_role.as_ref()));
        row("metadata lag", or_dash(self.metadata_lag));
        row("rack", or_dash(self.rack.as_ref()));
        row("version", or_dash(self.version.as_ref()));
        row("rpc", self.rpc_address.clone());
        for listener in &self.listeners {
            let address = format!("{}:{}", listener.host, listener.port);
            row(&format!("listener {}", listener.name), address);
        }
        row("disk", format!("{:016x}", self.disk));
        table.render()
    }
}

pub(super) async fn list(context: &Context, operator: &mut Operator) -> Result<Exit, Failure> {
    let brokers = operator.cluster().await?.brokers;
    let nodes = brokers.into_iter().map(Node::from);
    context.out.show(&List(nodes.collect()))?;
    Ok(Exit::Done)
}

pub(super) async fn describe(
    context: &Context,
    operator: &mut Operator,
    options: Options,
) -> Result<Exit, Failure> {
    let told = find(operator.cluster().await?, options.id)?;
    context.out.show(&Node::from(told))?;
    Ok(Exit::Done)
}

/// A broker that must be there.
pub(super) fn find(cluster: api::DescribeClusterResponse, id: i32) -> Result<api::Broker, Failure> {
    let mut brokers = cluster.brokers.into_iter();
    brokers.find(|broker| broker.node_id == id).ok_or_else(|| {
        Failure::not_found(format!("there is no broker {id}"))
            .hint("`logctl node list` shows those that there are")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_is_away_is_shown_as_far_as_it_is_known() {
        let told = api::Broker {
            node_id: 2,
            rpc_address: "a:1".into(),
            listeners: vec![api::Listener {
                name: "default".into(),
                host: "a".into(),
                port: 9092,
            }],
            duty: "draining".into(),
            replicas: 3,
            ..api::Broker::default()
        };
        let node = Node::from(told.clone());
        let table = node.table();
        for line in [
            "alive             no\n",
            "version           -\n",
            "listener default  a:9092\n",
        ] {
            assert!(table.contains(line), "{table}");
        }
        let table = "\
NODE  ALIVE  DUTY      REPLICAS  LEADERS  METADATA  LAG  RACK  VERSION  RPC
   2  no     draining         3        0  -           -  -     -        a:1
";
        assert_eq!(List(vec![node]).table(), table);
        let cluster = api::DescribeClusterResponse {
            brokers: vec![told],
            ..api::DescribeClusterResponse::default()
        };
        assert_eq!(find(cluster, 3).unwrap_err().exit(), Exit::NotFound);
    }
}
