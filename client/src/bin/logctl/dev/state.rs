//! What the commands of this family tell each other: `cluster.json`.
//!
//! Promise: the file is whole or not there; two commands that change a cluster do not work at the same time.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::layout::{Home, NODES_MAX, Ports, local};
use super::process::Process;
use crate::failure::{Exit, Failure};
use crate::output;

/// A file is read by the version that wrote it, or refused.
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    version: u32,
    pub base_port: u16,
    pub nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Counted from 1.
    pub node: u16,
    #[serde(flatten)]
    pub ports: Ports,
    /// Who it was when it was last started; it may have ended since.
    pub process: Option<Process>,
}

impl Node {
    /// The process, if it has not ended.
    pub fn running(&self) -> Option<&Process> {
        self.process.as_ref().filter(|process| !process.is_gone())
    }
}

impl Cluster {
    pub fn new(nodes: u16, base_port: u16) -> Cluster {
        let nodes = (1..=nodes.min(NODES_MAX)).map(|node| Node {
            node,
            ports: Ports::of(base_port, node),
            process: None,
        });
        Cluster {
            version: VERSION,
            base_port,
            nodes: nodes.collect(),
        }
    }

    /// What clients are given.
    pub fn bootstrap(&self) -> String {
        let all = self.nodes.iter().map(|node| local(node.ports.kafka));
        all.collect::<Vec<_>>().join(",")
    }

    /// What brokers are given to find each other.
    pub fn seeds(&self) -> String {
        let all = self.nodes.iter().map(|node| local(node.ports.rpc));
        all.collect::<Vec<_>>().join(",")
    }

    /// # Errors
    /// If it has no such broker.
    pub fn node(&mut self, number: u16) -> Result<&mut Node, Failure> {
        let nodes = self.nodes.len();
        let found = self.nodes.iter_mut().find(|node| node.node == number);
        found.ok_or_else(|| {
            let there = match nodes {
                1 => "node 1 only".to_owned(),
                _ => format!("nodes 1 to {nodes}"),
            };
            Failure::not_found(format!(
                "there is no node {number}: the cluster has {there}"
            ))
        })
    }
}

/// The cluster of a folder.
///
/// # Errors
/// If there is none, or its file is not ours.
pub fn read(home: &Home) -> Result<Cluster, Failure> {
    find(home)?.ok_or_else(|| {
        Failure::not_found(format!("there is no cluster in {home}"))
            .hint("`logctl dev up` makes one; --dir says where")
    })
}

/// As [`read`], where it is no mistake if there is none.
pub fn find(home: &Home) -> Result<Option<Cluster>, Failure> {
    let path = home.state();
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Failure::io(
                &format!("cannot read {}", path.display()),
                &error,
            ));
        }
        Ok(text) => text,
    };
    match serde_json::from_str::<Cluster>(&text) {
        Ok(cluster) if cluster.version == VERSION => Ok(Some(cluster)),
        Ok(cluster) => Err(not_ours(
            &path,
            &format!("it has version {}", cluster.version),
        )),
        Err(error) => Err(not_ours(&path, &error.to_string())),
    }
}

fn not_ours(path: &Path, why: &str) -> Failure {
    let message = format!("{} cannot be understood: {why}", path.display());
    Failure::new(Exit::Failed, message)
        .hint("another version of logctl may have written it; --dir names another folder")
}

pub fn write(home: &Home, cluster: &Cluster) -> Result<(), Failure> {
    let (path, text) = (home.state(), output::json(cluster)? + "\n");
    let beside = path.with_extension("json.new");
    let written = fs::write(&beside, text).and_then(|()| fs::rename(&beside, &path));
    written.map_err(|error| Failure::io(&format!("cannot write {}", path.display()), &error))
}

/// Held by a command that changes the cluster; given back when dropped.
#[derive(Debug)]
#[must_use = "the folder is free again when this is dropped"]
pub struct Lock(#[expect(dead_code, reason = "held, not read")] File);

/// # Errors
/// If another command has it, or there is no such folder.
pub fn lock(home: &Home) -> Result<Lock, Failure> {
    let what = format!("cannot open {home}");
    let folder = File::open(home.path()).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let failure = Failure::not_found(format!("there is no cluster in {home}"));
            failure.hint("`logctl dev up` makes one; --dir says where")
        }
        _ => Failure::io(&what, &error),
    })?;
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(folder)),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let message = format!("another logctl command is changing the cluster in {home}");
            Err(Failure::new(Exit::Failed, message).hint("try again when it has ended"))
        }
        Err(error) => Err(Failure::io(&what, &error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_is_not_ours_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().to_owned());
        assert_eq!(find(&home).unwrap(), None);
        assert_eq!(read(&home).unwrap_err().exit(), Exit::NotFound);
        let mut cluster = Cluster::new(3, 9092);
        cluster.nodes[1].process = Process::of(std::process::id());
        write(&home, &cluster).unwrap();
        assert_eq!(read(&home).unwrap(), cluster);
        for wrong in ["{}", "", r#"{"version":2,"base_port":1,"nodes":[]}"#] {
            fs::write(home.state(), wrong).unwrap();
            assert_eq!(read(&home).unwrap_err().exit(), Exit::Failed, "{wrong:?}");
        }
    }

    #[test]
    fn a_cluster_knows_its_addresses_and_its_nodes() {
        let mut cluster = Cluster::new(3, 9092);
        assert_eq!(
            cluster.bootstrap(),
            "127.0.0.1:9092,127.0.0.1:9093,127.0.0.1:9094"
        );
        assert_eq!(
            cluster.seeds(),
            "127.0.0.1:9645,127.0.0.1:9655,127.0.0.1:9665"
        );
        assert_eq!(cluster.node(3).unwrap().ports.kafka, 9094);
        assert_eq!(cluster.node(4).unwrap_err().exit(), Exit::NotFound);
        assert_eq!(cluster.node(0).unwrap_err().exit(), Exit::NotFound);
    }

    #[test]
    fn two_commands_do_not_change_a_cluster_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().to_owned());
        let first = lock(&home).unwrap();
        assert_eq!(lock(&home).unwrap_err().exit(), Exit::Failed);
        drop(first);
        drop(lock(&home).unwrap());
        let nowhere = Home::new(folder.path().join("nothing"));
        assert_eq!(lock(&nowhere).unwrap_err().exit(), Exit::NotFound);
    }
}
