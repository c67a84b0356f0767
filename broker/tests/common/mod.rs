//! A real broker process for tests: its own folder, its own ports, killed when dropped.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod members;
pub mod requests;
pub mod versions;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// How long a test waits for anything before it says what it waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Among the environment of a test's broker: its limit of open files.
pub const OPEN_FILES: &str = "TEST_OPEN_FILES";

pub struct Broker {
    process: Child,
    pub kafka: SocketAddr,
    pub admin: SocketAddr,
    pub data: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

/// A port nobody has now, of those that the kernel gives to nobody by itself: one of its own choice could
/// become some connection's before the broker binds it, or meet itself while we wait for the broker. The
/// socket that asks does not listen: another test's child holds a copy until it becomes its program, and would
/// take the connection that is meant for the broker.
fn free_port() -> SocketAddr {
    const PORTS: std::ops::Range<u32> = 16_000..32_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(64);
    for _ in PORTS {
        let offset = first.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % PORTS.len() as u32;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, (PORTS.start + offset) as u16));
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option");
        if socket.bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port of {PORTS:?} is free");
}

fn spawn(
    kafka: SocketAddr,
    admin: SocketAddr,
    data: &Path,
    environment: &[(String, String)],
) -> Child {
    // A test may lower the limit of open files, which only a shell can do for a program to come.
    let limit = environment.iter().find(|(name, _)| name == OPEN_FILES);
    let limit = limit.map_or_else(String::new, |(_, files)| format!("ulimit -n {files} && "));
    Command::new("sh")
        .args(["-c", &format!("{limit}exec \"$0\" \"$@\"")])
        .arg(env!("CARGO_BIN_EXE_logd"))
        .args([
            "--kafka-addr",
            &kafka.to_string(),
            "--admin-addr",
            &admin.to_string(),
            "--rpc-addr",
            "127.0.0.1:0",
        ])
        .arg("--data-dir")
        .arg(data)
        .envs(environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("the broker's binary runs")
}

impl Broker {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With settings such as `("LOGD_GROUP__INITIAL_REBALANCE_DELAY_MS", "0")`.
    pub fn start_with(environment: &[(&str, &str)]) -> Self {
        let environment: Vec<_> = environment
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let data = tempfile::tempdir().expect("a folder");
        let (kafka, admin) = (free_port(), free_port());
        let process = spawn(kafka, admin, data.path(), &environment);
        let mut broker = Self {
            process,
            kafka,
            admin,
            data,
            environment,
        };
        broker.wait();
        broker
    }

    fn wait(&mut self) {
        let begun = Instant::now();
        while std::net::TcpStream::connect(self.kafka).is_err() {
            assert!(self.is_alive(), "the broker ended at its start");
            assert!(
                begun.elapsed() < PATIENCE,
                "the broker does not listen on {}",
                self.kafka
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn bootstrap(&self) -> String {
        self.kafka.to_string()
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL, and a start on the same folder and ports.
    pub fn kill_and_restart(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
        self.process = spawn(self.kafka, self.admin, self.data.path(), &self.environment);
        self.wait();
    }

    /// SIGTERM; how it ended, and how long that took.
    pub fn terminate(&mut self) -> (std::process::ExitStatus, Duration) {
        use rustix::process::{Pid, Signal, kill_process};
        let begun = Instant::now();
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process"), Signal::TERM).expect("it runs");
        (self.process.wait().expect("it ends"), begun.elapsed())
    }

    /// The value of one line of `/metrics`.
    pub fn metric(&self, series: &str) -> f64 {
        metric(self.admin, series)
    }

    /// Folders of logs that are there, or on their way out.
    pub fn logs_and_trash(&self) -> Vec<std::path::PathBuf> {
        let folders = ["logs", "trash"].map(|name| std::fs::read_dir(self.data.path().join(name)));
        let entries = folders.into_iter().flatten().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// Files of its data directory that have no name any more but are open or mapped.
    pub fn deleted_files(&self) -> Vec<String> {
        let proc = std::path::PathBuf::from(format!("/proc/{}", self.pid()));
        let maps = std::fs::read_to_string(proc.join("maps")).expect("its maps");
        let mut held: Vec<String> = maps.lines().map(str::to_owned).collect();
        for fd in std::fs::read_dir(proc.join("fd")).expect("its descriptors") {
            let target = fd.and_then(|fd| std::fs::read_link(fd.path()));
            held.extend(target.map(|t| t.display().to_string()));
        }
        held.retain(|file| file.ends_with("(deleted)") && file.contains("/trash/"));
        held
    }

    pub fn is_alive(&mut self) -> bool {
        self.process.try_wait().expect("its state").is_none()
    }

    /// One page of the admin port.
    pub fn get(&self, path: &str) -> String {
        page(self.admin, path)
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.kafka)
            .await
            .expect("the broker accepts")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already, which is what some tests are about.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends one frame and reads one answer, without its size.
/// The value of one line of a broker's `/metrics`; 0 where there is none.
pub fn metric(admin: SocketAddr, series: &str) -> f64 {
    let page = page(admin, "/metrics");
    let line = page.lines().find(|line| line.starts_with(series));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or(0.0)
}

/// One page of an admin port.
fn page(admin: SocketAddr, path: &str) -> String {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(admin).expect("the admin port accepts");
    let request = format!("GET {path} HTTP/1.1\r\nHost: logd\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).expect("sent");
    let mut page = String::new();
    socket.read_to_string(&mut page).expect("a page");
    page
}

pub async fn exchange(socket: &mut TcpStream, frame: &[u8]) -> std::io::Result<bytes::Bytes> {
    socket.write_all(frame).await?;
    let answer = async {
        let size = socket.read_u32().await?;
        let mut answer = vec![0; size as usize];
        socket.read_exact(&mut answer).await?;
        Ok(bytes::Bytes::from(answer))
    };
    tokio::time::timeout(PATIENCE, answer)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}
