//! `logctl dev status`, and the rows that other commands show when they are done.
//!
//! Promise: what is shown was looked at now, not remembered.

use std::collections::HashMap;
use std::time::Duration;

use logd_client::{Client, RetryPolicy};
use serde::Serialize;

use super::layout::{Home, local};
use super::probe::{Readiness, readiness};
use super::process::Life;
use super::state::{self, Cluster, Node};
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Shown, Table, or_dash};

/// A broker that is ready answers at once.
const ASKED_WITHIN: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Up,
    Starting,
    Stopping,
    /// By `dev kill --signal STOP`.
    Paused,
    Down,
}

impl State {
    fn of(life: Life, readiness: &Readiness) -> State {
        match (life, readiness) {
            (Life::Gone, _) => State::Down,
            (Life::Paused, _) => State::Paused,
            (Life::Runs, Readiness::Ready) => State::Up,
            (Life::Runs, Readiness::NotYet(said)) if said.starts_with("draining") => {
                State::Stopping
            }
            (Life::Runs, _) => State::Starting,
        }
    }

    fn name(self) -> &'static str {
        match self {
            State::Up => "up",
            State::Starting => "starting",
            State::Stopping => "stopping",
            State::Paused => "paused",
            State::Down => "down",
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Row {
    node: u16,
    state: State,
    /// What the cluster calls it, which `topic describe` shows; absent if nobody can be asked.
    broker_id: Option<i32>,
    pid: Option<i32>,
    kafka: String,
    admin: String,
    rpc: String,
    uptime_seconds: Option<u64>,
    /// What the broker says of itself; absent if it says nothing.
    readiness: Option<String>,
    data: String,
    log: String,
}

#[derive(Debug, Serialize)]
pub struct Status {
    dir: String,
    pub bootstrap: String,
    nodes: Vec<Row>,
}

impl Shown for Status {
    fn table(&self) -> String {
        let headers = [
            ">NODE",
            "STATE",
            ">ID",
            ">PID",
            "KAFKA",
            "ADMIN",
            "RPC",
            ">UPTIME",
            "READINESS",
        ];
        let mut table = Table::new(&headers);
        for row in &self.nodes {
            table.row([
                row.node.to_string(),
                row.state.name().to_owned(),
                or_dash(row.broker_id),
                or_dash(row.pid),
                row.kafka.clone(),
                row.admin.clone(),
                row.rpc.clone(),
                or_dash(row.uptime_seconds.map(span)),
                or_dash(row.readiness.as_ref()),
            ]);
        }
        table.render()
    }
}

/// `59s`, `2m03s`, `5h07m`, `3d04h`.
fn span(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{}d{:02}h", hours / 24, hours % 24),
    }
}

/// As it is now.
pub async fn of(home: &Home, cluster: &Cluster) -> Status {
    let mut nodes = Vec::new();
    for node in &cluster.nodes {
        nodes.push(row(home, node).await);
    }
    let up = nodes.iter().filter(|row| row.state == State::Up);
    let ids = broker_ids(up.map(|row| row.kafka.clone()).collect()).await;
    for row in &mut nodes {
        row.broker_id = ids.get(&row.kafka).copied();
    }
    Status {
        dir: home.to_string(),
        bootstrap: cluster.bootstrap(),
        nodes,
    }
}

/// One broker alone.
pub async fn of_one(home: &Home, cluster: &Cluster, node: u16) -> Status {
    let mut status = of(home, cluster).await;
    status.nodes.retain(|row| row.node == node);
    status
}

/// By address; empty if nobody of those can be asked.
async fn broker_ids(up: Vec<String>) -> HashMap<String, i32> {
    if up.is_empty() {
        return HashMap::new();
    }
    let ask = async {
        let client = Client::builder(up)
            .client_id("logctl")
            .connect_timeout(ASKED_WITHIN)
            .request_timeout(ASKED_WITHIN)
            .retry(RetryPolicy::until(ASKED_WITHIN));
        let cluster = client
            .connect()
            .await
            .ok()?
            .admin()
            .describe_cluster()
            .await;
        let brokers = cluster.ok()?.brokers.into_iter();
        Some(brokers.map(|broker| (broker.addr, broker.id)).collect())
    };
    let asked = tokio::time::timeout(ASKED_WITHIN, ask).await;
    asked.ok().flatten().unwrap_or_default()
}

async fn row(home: &Home, node: &Node) -> Row {
    let process = node.running();
    let readiness = match process {
        Some(_) => readiness(node.ports.admin).await,
        None => Readiness::Silent,
    };
    // Looked at again: it may have ended while it was asked.
    let life = process.map_or(Life::Gone, |process| process.life());
    let process = process.filter(|_| life != Life::Gone);
    Row {
        node: node.node,
        state: State::of(life, &readiness),
        broker_id: None,
        pid: process.map(|process| process.pid),
        kafka: local(node.ports.kafka),
        admin: local(node.ports.admin),
        rpc: local(node.ports.rpc),
        uptime_seconds: process.and_then(|process| Some(process.uptime()?.as_secs())),
        readiness: match readiness {
            Readiness::Ready => Some("ready".to_owned()),
            Readiness::NotYet(said) => Some(said),
            Readiness::Silent => None,
        },
        data: home.data(node.node).display().to_string(),
        log: home.log(node.node).display().to_string(),
    }
}

pub(super) async fn run(context: &Context, home: &Home) -> Result<Exit, Failure> {
    let cluster = state::read(home)?;
    context.out.show(&of(home, &cluster).await)?;
    if cluster.nodes.iter().all(|node| node.running().is_none()) {
        let up = home.command("up");
        context.out.note(&format!("`{up}` starts it again"));
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_long_as_they_need_to_be() {
        let seen = [0, 59, 60, 3599, 3600, 86_399, 86_400].map(span);
        let expected = ["0s", "59s", "1m00s", "59m59s", "1h00m", "23h59m", "1d00h"];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_broker_is_up_when_it_says_so_itself() {
        let said = |text: &str| Readiness::NotYet(text.to_owned());
        assert_eq!(State::of(Life::Runs, &Readiness::Ready), State::Up);
        assert_eq!(
            State::of(Life::Runs, &said("recovering 1/2 partitions")),
            State::Starting
        );
        assert_eq!(State::of(Life::Runs, &Readiness::Silent), State::Starting);
        assert_eq!(State::of(Life::Runs, &said("draining")), State::Stopping);
        assert_eq!(State::of(Life::Paused, &Readiness::Silent), State::Paused);
        assert_eq!(State::of(Life::Gone, &Readiness::Silent), State::Down);
    }

    #[tokio::test]
    async fn a_cluster_that_is_down_is_shown_all_the_same() {
        let cluster = Cluster::new(2, 9092);
        let home = Home::new("./.logd".into());
        let status = of(&home, &cluster).await;
        let table = "\
NODE  STATE  ID  PID  KAFKA           ADMIN           RPC             UPTIME  READINESS
   1  down    -    -  127.0.0.1:9092  127.0.0.1:9644  127.0.0.1:9645       -  -
   2  down    -    -  127.0.0.1:9093  127.0.0.1:9654  127.0.0.1:9655       -  -
";
        assert_eq!(status.table(), table);
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["bootstrap"], "127.0.0.1:9092,127.0.0.1:9093");
        assert_eq!(json["nodes"][1]["state"], "down");
        assert_eq!(json["nodes"][1]["log"], "./.logd/node-2/log");
    }
}
