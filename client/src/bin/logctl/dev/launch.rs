//! Starts a broker that stays when we end, and watches it until it is ready.
//!
//! Promise: a broker that ends at its start is reported with what it said since; ports are looked at before
//! any broker is started.
//!
//! Not here: which brokers to start.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use clap::Args;

use super::layout::{Home, local};
use super::process::Process;
use super::state::{Cluster, Node};
use crate::failure::{Exit, Failure};

/// Lines of a broker's log that say why it ended, and how far back they are looked for.
const LAST_WORDS_LINES: usize = 10;
const LAST_WORDS_BYTES: u64 = 16 << 10;

/// Where `logd` is.
#[derive(Debug, Args)]
pub struct Binary {
    /// The broker's program [default: beside logctl, then in PATH]
    #[arg(long, value_name = "FILE", env = "LOGCTL_LOGD")]
    logd: Option<PathBuf>,
}

impl Binary {
    /// # Errors
    /// If it is nowhere.
    pub fn find(&self) -> Result<PathBuf, Failure> {
        if let Some(given) = &self.logd {
            let found = fs::canonicalize(given);
            return found.map_err(|error| {
                Failure::io(&format!("cannot use {} as logd", given.display()), &error)
            });
        }
        let beside = env::current_exe()
            .ok()
            .and_then(|us| Some(us.parent()?.join("logd")));
        let path = env::var_os("PATH").unwrap_or_default();
        let in_path = env::split_paths(&path).map(|folder| folder.join("logd"));
        let mut candidates = beside.into_iter().chain(in_path);
        let found = candidates.find(|file| file.is_file());
        found.and_then(|file| fs::canonicalize(file).ok()).ok_or_else(|| {
            Failure::not_found("logd is neither beside logctl nor in PATH").hint(
                "--logd FILE or LOGCTL_LOGD says where it is; `cargo build --release --bin logd` builds it",
            )
        })
    }
}

/// # Errors
/// If a port is taken, by whomever.
pub fn check_ports(nodes: &[&Node]) -> Result<(), Failure> {
    for node in nodes {
        for (name, port) in node.ports.named() {
            if let Err(error) = TcpListener::bind(local(port)) {
                let address = local(port);
                let message = match error.kind() {
                    io::ErrorKind::AddrInUse => format!("{address} is in use"),
                    _ => format!("cannot listen on {address}: {error}"),
                };
                let message = format!("{message}; node {} needs it for {name}", node.node);
                return Err(Failure::new(Exit::Failed, message));
            }
        }
    }
    Ok(())
}

/// A broker that we have started.
#[derive(Debug)]
pub struct Started {
    pub node: u16,
    pub admin_port: u16,
    pub process: Process,
    child: Child,
    log: PathBuf,
    /// What is in its log from earlier lives.
    log_bytes_before: u64,
}

impl Started {
    /// The failure to report if it has ended.
    pub fn ended(&mut self) -> Option<Failure> {
        let status = self.child.try_wait().ok()??;
        Some(self.ended_with(status))
    }

    fn ended_with(&self, status: ExitStatus) -> Failure {
        let (node, log) = (self.node, self.log.display());
        let words = last_words(&self.log, self.log_bytes_before).unwrap_or_default();
        let message = match words.is_empty() {
            true => format!("node {node} ended at its start ({status}) and said nothing in {log}"),
            false => format!(
                "node {node} ended at its start ({status}); its last words, from {log}:\n{words}"
            ),
        };
        Failure::new(Exit::Failed, message)
    }
}

fn last_words(log: &Path, from: u64) -> io::Result<String> {
    let mut file = File::open(log)?;
    let end = file.metadata()?.len();
    file.seek(SeekFrom::Start(
        from.max(end.saturating_sub(LAST_WORDS_BYTES)),
    ))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines
        .iter()
        .skip(lines.len().saturating_sub(LAST_WORDS_LINES));
    Ok(last
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n"))
}

/// What a broker is started with.
fn arguments(home: &Path, cluster: &Cluster, node: &Node) -> Vec<String> {
    let mut arguments = vec![
        "--data-dir".to_owned(),
        home.to_string_lossy().into_owned(),
        "--kafka-addr".to_owned(),
        local(node.ports.kafka),
        "--admin-addr".to_owned(),
        local(node.ports.admin),
        "--rpc-addr".to_owned(),
        local(node.ports.rpc),
    ];
    if cluster.nodes.len() > 1 {
        arguments.extend(["--seed".to_owned(), cluster.seeds()]);
    }
    arguments
}

/// Starts one broker. It may end a moment later: ask [`Started::ended`].
///
/// # Errors
/// If its folder or its log cannot be made, or no process.
pub fn spawn(home: &Home, logd: &Path, cluster: &Cluster, node: &Node) -> Result<Started, Failure> {
    let (number, log) = (node.node, home.log(node.node));
    let cannot = |error: io::Error| Failure::io(&format!("cannot start node {number}"), &error);
    fs::create_dir_all(home.node(number)).map_err(cannot)?;
    let out = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .map_err(cannot)?;
    let log_bytes_before = out.metadata().map_err(cannot)?.len();
    // Absolute, so that whoever lists processes sees whose it is.
    let data = fs::canonicalize(home.node(number))
        .map_err(cannot)?
        .join("data");
    let mut command = Command::new(env::current_exe().map_err(cannot)?);
    command
        .args(["dev", "detached", "--"])
        .arg(logd)
        .args(arguments(&data, cluster, node));
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone().map_err(cannot)?)
        .stderr(out);
    let mut child = command.spawn().map_err(cannot)?;
    let Some(process) = Process::of(child.id()) else {
        // Without its identity nobody could stop it later.
        child.kill().ok();
        let message = format!(
            "cannot start node {number}: /proc does not show process {}",
            child.id()
        );
        return Err(Failure::new(Exit::Failed, message));
    };
    let admin_port = node.ports.admin;
    Ok(Started {
        node: number,
        admin_port,
        process,
        child,
        log,
        log_bytes_before,
    })
}

/// A program and what it is told.
#[derive(Debug, Args)]
pub struct Detached {
    #[arg(required = true, last = true, value_name = "PROGRAM")]
    program: Vec<std::ffi::OsString>,
}

/// Leaves the terminal's session, so that neither Ctrl-C nor its end reaches the broker, and becomes it. Comes
/// back with a failure only.
pub fn become_broker(detached: &Detached) -> Failure {
    let Some((program, arguments)) = detached.program.split_first() else {
        return Failure::usage("which program?");
    };
    if let Err(error) = rustix::process::setsid() {
        return Failure::io("cannot leave the session", &error.into());
    }
    let error = Command::new(program).args(arguments).exec();
    Failure::io(&format!("cannot run {}", program.display()), &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_for_brokers_that_have_others() {
        let alone = Cluster::new(1, 9092);
        let told = arguments(Path::new("/d"), &alone, &alone.nodes[0]).join(" ");
        assert_eq!(
            told,
            "--data-dir /d --kafka-addr 127.0.0.1:9092 --admin-addr 127.0.0.1:9644 --rpc-addr 127.0.0.1:9645"
        );
        let three = Cluster::new(3, 9092);
        let told = arguments(Path::new("/d"), &three, &three.nodes[1]).join(" ");
        assert!(told.contains("--rpc-addr 127.0.0.1:9655"), "{told}");
        assert!(
            told.ends_with("--seed 127.0.0.1:9645,127.0.0.1:9655,127.0.0.1:9665"),
            "{told}"
        );
    }

    #[test]
    fn a_taken_port_is_named_with_whom_it_is_for() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut cluster = Cluster::new(1, 9092);
        cluster.nodes[0].ports.kafka = taken.local_addr().unwrap().port();
        let failure = check_ports(&[&cluster.nodes[0]]).unwrap_err();
        let Failure::Told { message, .. } = failure else {
            panic!("it is told");
        };
        assert!(
            message.ends_with("is in use; node 1 needs it for kafka"),
            "{message}"
        );
    }

    #[test]
    fn last_words_are_those_of_this_life() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let said: String = (1..=30).map(|n| format!("line {n}\n")).collect();
        fs::write(log.path(), &said).unwrap();
        let words = last_words(log.path(), 0).unwrap();
        assert!(
            words.starts_with("    line 21\n") && words.ends_with("line 30"),
            "{words}"
        );
        assert_eq!(last_words(log.path(), said.len() as u64).unwrap(), "");
        let since = said.len() as u64 - "line 30\n".len() as u64;
        assert_eq!(last_words(log.path(), since).unwrap(), "    line 30");
    }
}
