//! A cluster of `logctl dev` that a test has for itself, and what a command left behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpSocket;

/// How long a test waits for anything before it says what it waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Brokers a test's cluster may have.
pub const NODES: u16 = 4;

/// What a command left behind.
#[derive(Debug)]
pub struct Ended {
    pub line: String,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    pub fn code(&self, expected: i32) -> &Ended {
        assert_eq!(self.code, Some(expected), "logctl {}: {self:#?}", self.line);
        self
    }

    pub fn says(&self, words: &str) -> &Ended {
        assert!(self.err.contains(words), "{words:?} in {self:#?}");
        self
    }

    pub fn json(&self) -> Value {
        let parsed = serde_json::from_str(&self.out);
        parsed.unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// A folder for a cluster, and ports that nobody has. What runs in it is gone when this is dropped.
pub struct Cluster {
    pub folder: tempfile::TempDir,
    pub base_port: u16,
    pub settings: Vec<(&'static str, &'static str)>,
}

impl Cluster {
    pub fn new() -> Cluster {
        let logd = Path::new(env!("CARGO_BIN_EXE_logctl")).with_file_name("logd");
        let build = "build it with `cargo build --bin logd`; `cargo test --workspace` does";
        assert!(logd.is_file(), "{} is missing: {build}", logd.display());
        Cluster {
            folder: tempfile::tempdir().expect("a folder"),
            base_port: free_base_port(),
            settings: Vec::new(),
        }
    }

    pub fn home(&self) -> PathBuf {
        self.folder.path().join("cluster")
    }

    pub fn run(&self, line: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_logctl"));
        command.args(line).stdin(Stdio::null());
        let brokers = (0..NODES).map(|n| format!("127.0.0.1:{}", self.base_port + n));
        command.env("LOGCTL_BROKERS", brokers.collect::<Vec<_>>().join(","));
        let rpc = (0..NODES).map(|n| format!("127.0.0.1:{}", self.base_port + 553 + 10 * n));
        command.env("LOGCTL_RPC", rpc.collect::<Vec<_>>().join(","));
        command.env_remove("LOGCTL_LOGD");
        command.envs(self.settings.iter().copied());
        let output = command.output().expect("logctl runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Ended {
            line: line.join(" "),
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// A command of the family, about this cluster.
    pub fn dev(&self, line: &[&str]) -> Ended {
        let home = self.home();
        let dir = ["--dir", home.to_str().expect("UTF-8")];
        self.run(&[&["dev"], line, &dir].concat())
    }

    pub fn up(&self, line: &[&str]) -> Ended {
        let port = self.base_port.to_string();
        self.dev(&[&["up", "--base-port", &port], line].concat())
    }

    /// The rows of `dev status`.
    pub fn nodes(&self) -> Vec<Value> {
        let status = self.dev(&["status", "-o", "json"]);
        let nodes = status.code(0).json()["nodes"].as_array().cloned();
        nodes.expect("rows")
    }

    pub fn states(&self) -> Vec<String> {
        let state = |row: &Value| row["state"].as_str().expect("a state").to_owned();
        self.nodes().iter().map(state).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.home().exists() {
            self.dev(&["down", "--volumes", "--timeout", "5s"]);
        }
    }
}

/// All ports of a cluster from there on are free, and not of those that the system gives to connections or
/// other tests to their brokers.
fn free_base_port() -> u16 {
    const BASES: std::ops::Range<u16> = 2_000..8_000;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let first = (std::process::id() % 1_000) as u16 * NODES;
    for _ in BASES {
        let offset =
            first.wrapping_add(TAKEN.fetch_add(NODES, Ordering::Relaxed)) % BASES.len() as u16;
        let base = BASES.start + offset;
        let nodes = 0..NODES;
        let mut ports = nodes.flat_map(|n| [base + n, base + 552 + 10 * n, base + 553 + 10 * n]);
        if ports.all(is_free) {
            return base;
        }
    }
    panic!("no ports of {BASES:?} are free");
}

/// The socket that asks does not listen: the child of another thread holds a copy until it becomes its program,
/// and would keep the port from the broker.
fn is_free(port: u16) -> bool {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an option");
    socket.bind(([127, 0, 0, 1], port).into()).is_ok()
}
