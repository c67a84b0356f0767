//! A logd's own life: how soon it answers on an empty directory, and after SIGKILL with much data.
//!
//! "Answers" means a client's request over a socket, asked again and again from the moment the process was made.

use crate::Client;
use crate::broker::Target;
use crate::report::Rounds;
use anyhow::{Context, Result, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub(crate) struct StartOptions {
    /// The logd binary
    #[arg(long, value_name = "FILE")]
    logd: PathBuf,
    /// Rounds; the median is reported
    #[arg(long, default_value_t = 9)]
    rounds: u32,
}

#[derive(clap::Args)]
pub(crate) struct RecoveryOptions {
    /// The logd binary
    #[arg(long, value_name = "FILE")]
    logd: PathBuf,
    #[command(flatten)]
    client: Client,
    /// GB (10^9 bytes) of values to write first
    #[arg(long, default_value_t = 10)]
    gigabytes: u64,
    #[arg(long, default_value_t = 100)]
    partitions: i32,
    /// Rounds of killing and starting; the median is reported
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Where the data goes; by default a temporary folder
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

/// A logd of ours, killed when dropped.
struct Process {
    child: Child,
    address: String,
    made: Instant,
}

impl Process {
    fn start(logd: &Path, data: &Path, port: u16) -> Result<Self> {
        let address = format!("127.0.0.1:{port}");
        let made = Instant::now();
        let child = Command::new(logd)
            .arg("--data-dir")
            .arg(data)
            .args([
                "--kafka-addr",
                &address,
                "--admin-addr",
                "127.0.0.1:0",
                "--rpc-addr",
                "127.0.0.1:0",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| logd.display().to_string())?;
        Ok(Self {
            child,
            address,
            made,
        })
    }

    fn target(&self) -> Target {
        Target {
            name: "logd".into(),
            address: self.address.clone(),
            pids: vec![self.child.id()],
        }
    }

    /// SIGKILL, and wait until it is gone.
    fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("logd ended with {status}"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already, and nobody is left to tell.
        self.kill().ok();
    }
}

/// A port nobody uses now. The same one serves every round, so that a client may be made before the broker.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// One ApiVersions request (version 0, correlation id 1), by hand: a library's own start would be timed too.
fn ask(address: &str) -> Option<()> {
    use std::io::{Read, Write};
    const REQUEST: [u8; 14] = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff];
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    stream.write_all(&REQUEST).ok()?;
    let mut head = [0; 8];
    stream.read_exact(&mut head).ok()?;
    (head[4..] == [0, 0, 0, 1]).then_some(())
}

pub(crate) fn start(options: &StartOptions) -> Result<()> {
    let mut rounds = Rounds::default();
    let mut memory = Rounds::default();
    for _ in 0..options.rounds {
        let folder = tempfile::tempdir()?;
        let mut logd = Process::start(&options.logd, folder.path(), free_port()?)?;
        while ask(&logd.address).is_none() {
            logd.still_runs()?;
            if logd.made.elapsed() > PATIENCE {
                bail!("no answer within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        rounds.push(logd.made.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_secs(1));
        memory.push(logd.target().anonymous_mb()?);
    }
    println!("start to first answer: {} ms", rounds.shown(0));
    println!("anonymous memory, idle: {} MB", memory.shown(1));
    Ok(())
}

pub(crate) async fn recovery(options: &RecoveryOptions) -> Result<()> {
    let folder = match &options.scratch {
        Some(scratch) => tempfile::tempdir_in(scratch)?,
        None => tempfile::tempdir()?,
    };
    let port = free_port()?;
    let mut logd = Process::start(&options.logd, folder.path(), port)?;
    wait(&mut logd, |client| {
        client.fetch_metadata(None, Duration::from_secs(1)).is_ok()
    })?;
    logd.target()
        .create_topic("recovery", options.partitions, 1)
        .await?;
    let mut rounds = Rounds::default();
    let records = options.gigabytes * 1_000_000_000 / 1024;
    fill(options, &logd, records)?;
    for _ in 0..options.rounds {
        // Some records just before the kill: recovery must not find everything at rest.
        fill(options, &logd, 100_000)?;
        let expected = ends(&logd, options.partitions)?;
        logd.kill()?;
        logd = Process::start(&options.logd, folder.path(), port)?;
        wait(&mut logd, |client| {
            ends_of(client, options.partitions).is_ok_and(|found| found == expected)
        })?;
        rounds.push(logd.made.elapsed().as_secs_f64());
    }
    let records: i64 = ends(&logd, options.partitions)?.iter().sum();
    println!(
        "{records} records of 1 KiB in {} partitions, SIGKILL, to the right end offsets of all: {} s",
        options.partitions,
        rounds.shown(2)
    );
    Ok(())
}

fn fill(options: &RecoveryOptions, logd: &Process, records: u64) -> Result<()> {
    let arguments = format!(
        "-P -t recovery -b {} -s 1024 -c {records} -a -1 -X linger.ms=5 -q",
        logd.address
    );
    let output = Command::new(&options.client.client)
        .args(arguments.split_whitespace())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    if !text.contains(" 0 failed)") {
        bail!("the client lost records:\n{text}");
    }
    Ok(())
}

/// Asks again and again, with one client, until the answer is yes.
fn wait(logd: &mut Process, ready: impl Fn(&BaseConsumer) -> bool) -> Result<()> {
    let client = logd.target().asker()?;
    while !ready(&client) {
        logd.still_runs()?;
        if logd.made.elapsed() > PATIENCE {
            bail!("no right answer within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn ends(logd: &Process, partitions: i32) -> Result<Vec<i64>> {
    ends_of(&logd.target().asker()?, partitions)
}

fn ends_of(client: &BaseConsumer, partitions: i32) -> Result<Vec<i64>> {
    let timeout = Duration::from_secs(2);
    (0..partitions)
        .map(|p| Ok(client.fetch_watermarks("recovery", p, timeout)?.1))
        .collect()
}
