//! `logctl cluster`, `node` and `partition` with real brokers: what they show, what they begin, how they end.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use std::time::Instant;

use common::{Cluster, Ended, PATIENCE};
use serde_json::{Value, json};

/// A command's data, once it is as wanted.
fn until(cluster: &Cluster, line: &[&str], so: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let ended = as_json(cluster, line);
        if ended.code == Some(0) && so(&ended.json()) {
            return ended.json();
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {ended:#?}");
    }
}

fn as_json(cluster: &Cluster, line: &[&str]) -> Ended {
    cluster.run(&[line, &["-o", "json"]].concat())
}

fn ids(value: &Value) -> Vec<i64> {
    let all = value.as_array().expect("a list").iter();
    let mut ids: Vec<i64> = all.filter_map(Value::as_i64).collect();
    ids.sort_unstable();
    ids
}

fn begins(ended: &Ended, headers: &[&str]) {
    let first = ended.out.lines().next().unwrap_or_default();
    let shown: Vec<&str> = first.split_whitespace().collect();
    assert_eq!(shown, headers, "{ended:#?}");
}

fn four_brokers() -> Cluster {
    let cluster = Cluster::new();
    cluster.up(&["-n", "4"]).code(0);
    let health = as_json(&cluster, &["cluster", "health", "--wait", "healthy"]);
    assert_eq!(health.code(0).json()["healthy"], true);
    let topic = ["topic", "create", "orders", "-p", "3", "-r", "3"];
    cluster.run(&topic).code(0);
    cluster
        .run(&["cluster", "health", "--wait", "healthy"])
        .code(0);
    cluster
}

#[test]
fn a_cluster_is_looked_at_and_changed() {
    let cluster = four_brokers();
    the_whole_is_shown(&cluster);
    settings_are_shown_set_and_taken_back(&cluster);
    brokers_and_partitions_are_shown(&cluster);
    leaders_and_replicas_change(&cluster);
    the_cluster_is_levelled(&cluster);
    a_broker_is_drained_and_resumed(&cluster);
    what_is_not_there_is_said(&cluster);
    a_broker_leaves_for_good(&cluster);
    a_broker_that_dies_is_missed(&cluster);
}

fn the_whole_is_shown(cluster: &Cluster) {
    let info = cluster.run(&["cluster", "info"]);
    let headers = [
        "CLUSTER",
        "CONTROLLER",
        "BROKERS",
        "ALIVE",
        "TOPICS",
        "PARTITIONS",
        "MOVING",
        "VERSIONS",
        "FEATURES",
    ];
    begins(info.code(0), &headers);
    let info = as_json(cluster, &["cluster", "info"]).code(0).json();
    for (field, expected) in [
        ("brokers", 4),
        ("brokers_alive", 4),
        ("partitions", 3),
        ("feature_level", 2),
    ] {
        assert_eq!(info[field], expected, "{info:#}");
    }

    let health = cluster.run(&["cluster", "health"]);
    begins(health.code(0), &["CHECK", "STATE", "DETAIL"]);
    assert_eq!(health.out.lines().count(), 7, "{health:#?}");

    let quorum = cluster.run(&["cluster", "quorum"]);
    begins(quorum.code(0), &["LEADER", "TERM", "COMMITTED"]);
    let quorum = as_json(cluster, &["cluster", "quorum"]).code(0).json();
    let members = quorum["members"].as_array().expect("members");
    let leads = |member: &&Value| member["role"] == "leader";
    let leader = members.iter().find(leads).expect("one leads");
    assert_eq!(leader["node_id"], quorum["leader"], "{quorum:#}");
    assert_eq!(members.len(), 4);
}

/// One setting of a broker, or of all.
fn setting(all: &Value, name: &str) -> Value {
    let all = all.as_array().expect("settings");
    let one = all.iter().find(|one| one["name"] == name);
    one.cloned().unwrap_or_default()
}

fn settings_are_shown_set_and_taken_back(cluster: &Cluster) {
    let config = ["cluster", "config"];
    let describe = |more: &[&'static str]| [&config[..], &["describe"], more].concat();
    let set = |more: &[&'static str]| cluster.run(&[&config[..], &["set"], more].concat());
    let shown = cluster.run(&describe(&["--node", "2"]));
    begins(shown.code(0), &["NAME", "VALUE", "SOURCE", "APPLIES"]);
    let nothing = cluster.run(&describe(&[]));
    assert!(
        nothing.code(0).err.contains("nothing is set"),
        "{nothing:#?}"
    );

    let tried = set(&["num.partitions=5", "--dry-run"]);
    assert!(tried.code(0).err.contains("nothing was"), "{tried:#?}");
    set(&["num.partitions=6", "topics.retention_ms=86400000"]).code(0);
    set(&["num.partitions=7", "--node", "2"]).code(0);
    let all = until(cluster, &describe(&[]), |all| {
        setting(all, "num.partitions")["value"] == "6"
    });
    assert_eq!(setting(&all, "log.retention.ms")["source"], "cluster");
    for (node, value, source) in [("1", "6", "cluster"), ("2", "7", "node")] {
        let line = [&config[..], &["describe", "--node", node]].concat();
        let is_so = |all: &Value| {
            let partitions = setting(all, "num.partitions");
            partitions["value"] == value && partitions["source"] == source
        };
        let all = until(cluster, &line, is_so);
        for (name, applies) in [
            ("num.partitions", "at_once"),
            ("logd.storage.wal_budget_bytes", "at_restart"),
            ("broker.id", "never"),
            ("log.preallocate", "never"),
        ] {
            assert_eq!(setting(&all, name)["applies"], applies, "{name}");
        }
    }
    for (wrong, why) in [
        ("storage.wal_budget_bytes=1", "restart"),
        ("num.partitions=0", "from 1 to 10000"),
        ("num.partition=1", "did you mean num.partitions?"),
    ] {
        let refused = set(&[wrong]);
        assert!(refused.code(1).err.contains(why), "{refused:#?}");
    }
    let unset = ["cluster", "config", "unset", "num.partitions"];
    cluster
        .run(&[&unset[..], &["--node", "2"]].concat())
        .code(0);
    cluster
        .run(&[&unset[..], &["log.retention.ms"]].concat())
        .code(0);
    until(cluster, &describe(&[]), |all| *all == json!([]));
}

fn brokers_and_partitions_are_shown(cluster: &Cluster) {
    let listed = cluster.run(&["node", "list"]);
    assert_eq!(listed.code(0).out.lines().count(), 5, "{listed:#?}");
    let nodes = as_json(cluster, &["node", "list"]).code(0).json();
    let all = nodes.as_array().expect("nodes");
    let held = all.iter().filter_map(|node| node["replicas"].as_u64());
    assert_eq!(held.sum::<u64>(), 9, "{nodes:#}");
    let node = cluster.run(&["node", "describe", "2"]);
    begins(node.code(0), &["FIELD", "VALUE"]);
    let node = as_json(cluster, &["node", "describe", "2"]).code(0).json();
    assert_eq!(
        (&node["node_id"], &node["duty"]),
        (&json!(2), &json!("active"))
    );

    let listed = cluster.run(&["partition", "list", "--topic", "orders"]);
    assert_eq!(listed.code(0).out.lines().count(), 4, "{listed:#?}");
    let all = as_json(cluster, &["partition", "list"]).code(0).json();
    assert_eq!(all["partitions"].as_array().map(Vec::len), Some(3));
    assert_eq!(all["silent"], json!([]));
    let one = cluster.run(&["partition", "describe", "orders/0"]);
    assert!(one.code(0).out.contains("\nNODE  ROLE"), "{one:#?}");
}

fn leaders_and_replicas_change(cluster: &Cluster) {
    let describe = ["partition", "describe", "orders/0"];
    let before = until(cluster, &describe, |p| p["leader"].is_i64());
    let voters = ids(&before["voters"]);
    let leader = before["leader"].as_i64().expect("a leader");
    let heir = voters.iter().find(|voter| **voter != leader);
    let heir = *heir.expect("another");
    let to = heir.to_string();
    let transfer = ["partition", "transfer-leader", "orders/0", "--to", &to];
    let done = cluster.run(&transfer);
    done.code(0);
    assert_eq!(
        done.out,
        "TOPIC   PARTITION  STATUS\norders          0  transferred\n"
    );
    until(cluster, &describe, |p| p["leader"] == heir);
    let again = as_json(cluster, &transfer).code(0).json();
    assert_eq!(again["status"], "unchanged");

    let stays: Vec<i64> = voters.into_iter().take(2).collect();
    let comes = (1..=4).find(|node| !ids(&before["target"]).contains(node));
    let wanted = [stays[0], stays[1], comes.expect("one has it not")];
    let to = wanted.map(|node| node.to_string()).join(",");
    let line = ["partition", "move", "orders/0", "--to", &to, "--watch"];
    let moved = as_json(cluster, &line).code(0).json();
    assert_eq!(moved["status"], "moved");
    let after = until(cluster, &describe, |p| p["moving_from"] == json!([]));
    assert_eq!(after["target"], json!(wanted));
    until(cluster, &describe, |p| {
        ids(&p["voters"]) == ids(&json!(wanted))
    });
    let nothing = cluster.run(&["partition", "cancel-move", "orders/0"]);
    nothing.code(1).says("move of orders/0");
}

fn the_cluster_is_levelled(cluster: &Cluster) {
    let plan = cluster.run(&["cluster", "rebalance", "plan"]);
    begins(
        plan.code(0),
        &["TOPIC", "PARTITION", "FROM", "TO", "STATUS"],
    );
    let plan = as_json(cluster, &["cluster", "rebalance", "plan"]);
    assert!(plan.code(0).json()["moves"].is_array());
    cluster.run(&["cluster", "rebalance", "run"]).code(0);
    until(cluster, &["cluster", "info"], |info| info["moving"] == 0);
    let cancel = cluster.run(&["cluster", "rebalance", "cancel"]);
    cancel.code(0).says("nothing is moving");
    cluster
        .run(&["cluster", "health", "--wait", "healthy"])
        .code(0);
}

fn a_broker_is_drained_and_resumed(cluster: &Cluster) {
    let drained = cluster.run(&["node", "drain", "1", "--watch"]);
    assert_eq!(drained.code(0).out, "NODE  STATUS\n   1  drained\n");
    let node = as_json(cluster, &["node", "describe", "1"]).code(0).json();
    assert_eq!(
        (&node["duty"], &node["leaders"]),
        (&json!("draining"), &json!(0))
    );
    let resumed = as_json(cluster, &["node", "resume", "1"]).code(0).json();
    assert_eq!(resumed, json!({"node_id": 1, "status": "active"}));
    until(cluster, &["node", "describe", "1"], |n| {
        n["duty"] == "active"
    });
}

fn what_is_not_there_is_said(cluster: &Cluster) {
    let node = cluster.run(&["node", "describe", "9"]);
    node.code(3).says("there is no broker 9").says("node list");
    cluster.run(&["node", "drain", "9"]).code(3).says("said by");
    let partition = cluster.run(&["partition", "describe", "orders/9"]);
    partition.code(3).says("there is no partition orders/9");
    let topic = cluster.run(&["partition", "list", "--topic", "bills"]);
    topic.code(3).says("there is no topic \"bills\"");
    let wrong = cluster.run(&["partition", "describe", "orders"]);
    wrong.code(2).says("expected TOPIC/PARTITION");
    let recover = ["partition", "recover", "orders/0"];
    cluster.run(&recover).code(2).says("--accept-data-loss");
    let refused = cluster.run(&[&recover[..], &["--accept-data-loss"]].concat());
    refused.code(1).says("it has a leader");
    let dry = cluster.run(&[&recover[..], &["--dry-run"]].concat());
    dry.code(1).says("nothing is to be recovered");
    let nobody = cluster.run(&["cluster", "info", "--rpc", "127.0.0.1:1"]);
    nobody
        .code(5)
        .says("no broker answers operators: 127.0.0.1:1")
        .says("LOGCTL_RPC");
}

fn a_broker_leaves_for_good(cluster: &Cluster) {
    let left = cluster.run(&["node", "decommission", "4", "--watch"]);
    assert_eq!(left.code(0).out, "NODE  STATUS\n   4  decommissioned\n");
    let nodes = until(cluster, &["node", "list"], |nodes| {
        nodes.as_array().map(Vec::len) == Some(3)
    });
    assert!(
        nodes
            .as_array()
            .expect("nodes")
            .iter()
            .all(|n| n["node_id"] != 4)
    );
    let begun = Instant::now();
    while !cluster.states().contains(&"down".to_owned()) {
        assert!(begun.elapsed() < PATIENCE, "its process goes on");
    }
    let health = ["cluster", "health", "--wait", "healthy"];
    cluster.run(&health).code(0);
    let full = cluster.run(&["node", "decommission", "1"]);
    full.code(1).says("add a broker first");
}

fn a_broker_that_dies_is_missed(cluster: &Cluster) {
    let mut up = cluster
        .nodes()
        .into_iter()
        .filter(|row| row["state"] == "up");
    let victim = up.next().expect("one is up");
    let (node, id) = (victim["node"].to_string(), &victim["broker_id"]);
    cluster.dev(&["kill", &node]).code(0);
    let begun = Instant::now();
    let ill = loop {
        let health = as_json(cluster, &["cluster", "health"]);
        if health.code != Some(0) {
            break health.code(6).json();
        }
        assert!(begun.elapsed() < PATIENCE, "nobody misses it");
    };
    assert_eq!(ill["healthy"], false);
    let wait = ["cluster", "health", "--wait", "healthy", "--timeout", "1s"];
    let late = cluster.run(&wait);
    late.code(6).says("not over after 1s");
    assert!(late.out.contains(&format!("dead: {id}")), "{late:#?}");
    cluster.dev(&["start", &node]).code(0);
    cluster
        .run(&["cluster", "health", "--wait", "healthy"])
        .code(0);
}
