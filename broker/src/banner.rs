//! What a person sees when the broker serves: where it listens, where data is, what an
//! acknowledgement means, and what to try.

use crate::node::Bound;
use std::fmt::Write as _;
use std::path::Path;

pub struct Facts<'a> {
    pub bound: &'a Bound,
    pub data_dir: &'a Path,
    pub cluster_id: &'a str,
    pub node_id: i32,
}

pub fn text(facts: &Facts<'_>) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {name:<11} {value}");
    };
    for l in &facts.bound.kafka {
        let (host, port) = &l.advertised;
        line(
            "kafka",
            format!(
                "{} (listener {}), clients are told {host}:{port}",
                l.address, l.name
            ),
        );
    }
    line(
        "admin",
        format!(
            "http://{} (/livez /readyz /startupz /metrics)",
            facts.bound.admin
        ),
    );
    line("rpc", facts.bound.rpc.to_string());
    line("data", facts.data_dir.display().to_string());
    line(
        "cluster",
        format!("{}, node {}", facts.cluster_id, facts.node_id),
    );
    line(
        "durability",
        "acknowledged = synced on a majority of replicas (acks=1 and acks=all alike)".into(),
    );
    let bootstrap = facts.bound.kafka.first().map_or_else(String::new, |l| {
        format!("{}:{}", l.advertised.0, l.advertised.1)
    });
    format!(
        "logd {} serves\n{out}\ntry:\n  echo hello | kcat -b {bootstrap} -P -t greetings\n  kcat -b {bootstrap} -C -t greetings -e\n  kcat -b {bootstrap} -L\n",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::BoundListener;

    #[test]
    fn the_banner_says_what_was_bound_and_what_to_try() {
        let bound = Bound {
            kafka: vec![BoundListener {
                name: "default".into(),
                address: "127.0.0.1:41000".parse().unwrap(),
                advertised: ("broker.example.org".into(), 9092),
            }],
            admin: "127.0.0.1:9644".parse().unwrap(),
            rpc: "127.0.0.1:9645".parse().unwrap(),
        };
        let text = text(&Facts {
            bound: &bound,
            data_dir: Path::new("./logd-data"),
            cluster_id: "c",
            node_id: 1,
        });
        for said in [
            "127.0.0.1:41000",
            "clients are told broker.example.org:9092",
            "./logd-data",
            "synced on a majority",
            "kcat -b broker.example.org:9092 -L",
        ] {
            assert!(text.contains(said), "{said} is missing in\n{text}");
        }
    }
}
