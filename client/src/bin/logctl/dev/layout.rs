//! Where a local cluster keeps what, and which ports its brokers have. Pure.
//!
//! Promise: what is in a folder of ours has a name from here, so that whoever cleans up knows what is ours.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// More brokers show nothing new on one machine; below ten, no two ports meet.
pub const NODES_MAX: u16 = 9;

/// Kafka's port of the first broker, unless somebody says otherwise.
pub const KAFKA_PORT: u16 = 9092;

/// From a broker's Kafka port to the first broker's admin port, and from one admin port to the next.
const ADMIN_DISTANCE: u16 = 9644 - KAFKA_PORT;
const ADMIN_STEP: u16 = 10;

/// The highest port that `--base-port` may name: behind it the last broker's ports would not fit.
pub const BASE_PORT_MAX: u16 = u16::MAX - ADMIN_DISTANCE - ADMIN_STEP * NODES_MAX;

/// What a broker listens on, all on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub kafka: u16,
    pub admin: u16,
    pub rpc: u16,
}

impl Ports {
    /// Of a broker, counted from 1: 9092, 9644 and 9645 for the first, if `base` is 9092; 9093, 9654 and 9655
    /// for the second.
    pub fn of(base: u16, node: u16) -> Ports {
        let admin = base + ADMIN_DISTANCE + ADMIN_STEP * (node - 1);
        Ports {
            kafka: base + (node - 1),
            admin,
            rpc: admin + 1,
        }
    }

    /// Each with the name of what listens there.
    pub fn named(self) -> [(&'static str, u16); 3] {
        [
            ("kafka", self.kafka),
            ("admin", self.admin),
            ("rpc", self.rpc),
        ]
    }
}

/// As it is written in settings and by clients.
pub fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// The folder of a cluster, as the user named it.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

/// Where it is unless somebody says otherwise.
pub const HOME: &str = "./.logd";

impl Home {
    pub fn new(path: PathBuf) -> Home {
        Home(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn state(&self) -> PathBuf {
        self.0.join("cluster.json")
    }

    /// Everything of one broker.
    pub fn node(&self, node: u16) -> PathBuf {
        self.0.join(format!("node-{node}"))
    }

    pub fn data(&self, node: u16) -> PathBuf {
        self.node(node).join("data")
    }

    /// What the broker prints.
    pub fn log(&self, node: u16) -> PathBuf {
        self.node(node).join("log")
    }

    /// A command of this family for this cluster, to be tried next.
    pub fn command(&self, words: &str) -> String {
        match self.0 == Path::new(HOME) {
            true => format!("logctl dev {words}"),
            false => format!("logctl dev {words} --dir {}", self.0.display()),
        }
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn three_brokers_have_the_ports_that_the_documents_name() {
        let ports = [1, 2, 3].map(|node| Ports::of(KAFKA_PORT, node));
        assert_eq!(ports.map(|p| p.kafka), [9092, 9093, 9094]);
        assert_eq!(ports.map(|p| p.admin), [9644, 9654, 9664]);
        assert_eq!(ports.map(|p| p.rpc), [9645, 9655, 9665]);
    }

    #[test]
    fn no_two_ports_of_a_cluster_meet_and_the_highest_exists() {
        for base in [1, KAFKA_PORT, BASE_PORT_MAX] {
            let all = (1..=NODES_MAX).flat_map(|node| Ports::of(base, node).named());
            let all: BTreeSet<u16> = all.map(|(_, port)| port).collect();
            assert_eq!(all.len(), usize::from(NODES_MAX) * 3, "from {base}");
        }
    }

    #[test]
    fn a_hint_names_the_folder_unless_it_is_the_usual_one() {
        assert_eq!(Home::new(HOME.into()).command("down"), "logctl dev down");
        let other = Home::new("/tmp/x".into());
        assert_eq!(other.command("down"), "logctl dev down --dir /tmp/x");
    }
}
