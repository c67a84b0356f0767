//! `logctl dev` with real brokers: processes that outlive the commands, found again, paused, killed, stopped.
//!
//! Their program is the `logd` that Cargo has put beside `logctl`.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{Cluster, PATIENCE};

#[test]
fn a_broker_outlives_its_command_a_kill_and_a_stop() {
    let cluster = Cluster::new();
    let up = cluster.up(&["-n", "1", "-o", "json"]);
    let bootstrap = format!("127.0.0.1:{}", cluster.base_port);
    assert_eq!(up.code(0).json()["bootstrap"], *bootstrap);
    assert_eq!(up.json()["next"].as_array().map(Vec::len), Some(3));
    let [node] = &cluster.nodes()[..] else {
        panic!("one broker");
    };
    assert_eq!(
        (&node["state"], &node["readiness"]),
        (&"up".into(), &"ready".into())
    );
    let pid = node["pid"].as_i64().expect("a process");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let session = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.split(' ').nth(3));
    assert_eq!(
        session,
        Some(pid.to_string().as_str()),
        "a session of its own: {stat}"
    );

    cluster.run(&["topic", "create", "greetings"]).code(0);
    let hello = cluster.home().join("hello");
    std::fs::write(&hello, "hello\n").expect("a file");
    let hello = hello.to_str().expect("UTF-8");
    cluster
        .run(&["produce", "greetings", "--file", hello])
        .code(0);
    cluster
        .up(&[])
        .code(1)
        .says("is running already")
        .says("dev down");
    cluster
        .up(&["-n", "3"])
        .code(2)
        .says("has 1 broker")
        .says("--volumes");
    cluster
        .dev(&["start", "1"])
        .code(1)
        .says("runs already, as process");

    cluster.dev(&["kill", "1", "--signal", "stop"]).code(0);
    assert_eq!(cluster.states(), ["paused"]);
    cluster.dev(&["start", "1"]).code(1).says("it is paused");
    cluster.dev(&["kill", "1", "-s", "CONT"]).code(0);
    assert_eq!(cluster.states(), ["up"]);
    let killed = cluster.dev(&["kill", "1"]);
    killed.code(0).says("dev start 1");
    assert!(killed.out.contains("down"), "{killed:?}");
    cluster
        .dev(&["kill", "1"])
        .code(1)
        .says("node 1 is down already");
    cluster
        .dev(&["kill", "2"])
        .code(3)
        .says("the cluster has node 1 only");
    cluster.dev(&["start", "1"]).code(0);
    let read = cluster.run(&["consume", "greetings", "-e"]);
    assert_eq!(read.code(0).out, "hello\n");

    let logs = cluster.dev(&["logs", "1", "-n", "1000"]);
    assert_eq!(logs.code(0).out.matches(" serves\n").count(), 2, "{logs:?}");
    let logs = cluster.dev(&["logs", "-n", "1", "-o", "json"]);
    assert_eq!(logs.code(0).json()["node"], 1);

    let down = cluster.dev(&["down"]);
    assert_eq!(down.code(0).out, "NODE  RESULT\n   1  stopped\n");
    let down = cluster.dev(&["down", "-o", "json"]);
    assert_eq!(down.code(0).json()["nodes"][0]["result"], "was_down");
    assert_eq!(cluster.states(), ["down"]);
    cluster.up(&[]).code(0);
    let read = cluster.run(&["consume", "greetings", "-e"]);
    assert_eq!(read.code(0).out, "hello\n", "stopping keeps what is stored");
    std::fs::remove_file(hello).expect("it is there");
    let down = cluster.dev(&["down", "--volumes", "-o", "json"]);
    assert_eq!(down.code(0).json()["data_removed"], true);
    assert!(!cluster.home().exists());
    cluster
        .dev(&["status"])
        .code(3)
        .says("there is no cluster in")
        .says("dev up");
    cluster
        .dev(&["down"])
        .code(3)
        .says("there is no cluster in");
}

#[test]
fn three_brokers_lose_one_and_go_on() {
    let cluster = Cluster::new();
    cluster.up(&[]).code(0);
    assert_eq!(cluster.states(), ["up", "up", "up"]);
    let ids: BTreeSet<_> = cluster
        .nodes()
        .iter()
        .map(|row| row["broker_id"].as_i64())
        .collect();
    assert_eq!(
        ids,
        [1, 2, 3].map(Some).into(),
        "each is a broker of one cluster"
    );
    cluster
        .run(&["topic", "create", "orders", "-p", "3", "-r", "3"])
        .code(0);
    let lines = cluster.folder.path().join("lines");
    std::fs::write(&lines, "1\n2\n3\n").expect("a file");
    let lines = lines.to_str().expect("UTF-8");
    for partition in ["0", "1", "2"] {
        cluster
            .run(&["produce", "orders", "-p", partition, "--file", lines])
            .code(0);
    }

    cluster.dev(&["kill", "1"]).code(0);
    for partition in ["0", "1", "2"] {
        cluster
            .run(&["produce", "orders", "-p", partition, "--file", lines])
            .code(0);
    }
    assert_eq!(cluster.states(), ["down", "up", "up"]);
    let read = cluster.run(&["consume", "orders", "-e"]);
    assert_eq!(read.code(0).out.lines().count(), 18);
    cluster.up(&[]).code(0);
    assert_eq!(cluster.states(), ["up", "up", "up"]);
    let down = cluster.dev(&["down", "-o", "json"]);
    let ended = down.code(0).json()["nodes"]
        .as_array()
        .cloned()
        .expect("rows");
    assert!(
        ended.iter().all(|node| node["result"] == "stopped"),
        "{ended:?}"
    );
}

#[test]
fn what_keeps_a_broker_from_starting_is_said() {
    let mut cluster = Cluster::new();
    let nowhere = cluster.up(&["-n", "1", "--logd", "/nowhere/logd"]);
    nowhere.code(3).says("cannot use /nowhere/logd as logd");
    let taken = TcpListener::bind(("127.0.0.1", cluster.base_port + 552)).expect("it was free");
    let in_use = cluster.up(&["-n", "1"]);
    in_use
        .code(1)
        .says("is in use; node 1 needs it for admin")
        .says("--base-port");
    drop(taken);
    assert!(!cluster.home().exists(), "nothing was begun");

    cluster.settings = vec![("LOGD_KAFKA__ADRESS", "somewhere")];
    let ended = cluster.up(&["-n", "1"]);
    ended
        .code(1)
        .says("node 1 ended at its start (exit status: 1)");
    ended.says("did you mean `kafka.addr`?").says("dev logs 1");
    assert_eq!(cluster.states(), ["down"]);
    cluster.settings.clear();
    let again = cluster.up(&["-n", "1", "-o", "json"]);
    assert_eq!(again.code(0).json()["nodes"][0]["state"], "up");
}

/// A broker that never gets ready.
fn idle_logd(folder: &Path) -> String {
    use std::os::unix::fs::PermissionsExt;
    let program = folder.join("idle");
    std::fs::write(&program, "#!/bin/sh\nexec sleep 600\n").expect("a file");
    let all = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&program, all).expect("it is ours");
    program.to_str().expect("UTF-8").to_owned()
}

#[test]
fn a_broker_that_takes_long_goes_on_and_an_interrupted_start_is_undone() {
    let cluster = Cluster::new();
    let idle = idle_logd(cluster.folder.path());
    let slow = cluster.up(&["-n", "1", "--logd", &idle, "--timeout", "300ms"]);
    slow.code(5)
        .says("not ready after 300ms: node 1 is starting");
    assert_eq!(cluster.states(), ["starting"]);
    cluster.dev(&["down"]).code(0);
    assert_eq!(cluster.states(), ["down"]);

    let mut command = Command::new(env!("CARGO_BIN_EXE_logctl"));
    command
        .args(["dev", "up", "--logd", &idle, "--dir"])
        .arg(cluster.home());
    let up = command.stderr(Stdio::piped()).spawn().expect("logctl runs");
    let begun = Instant::now();
    while cluster.states() != ["starting"] {
        assert!(begun.elapsed() < PATIENCE, "it does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = up.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status();
    assert!(sent.expect("kill runs").success());
    let ended = up.wait_with_output().expect("it ends");
    assert_eq!(ended.status.code(), Some(130), "{ended:?}");
    assert_eq!(cluster.states(), ["down"]);
}

#[test]
fn a_log_is_followed_until_its_reader_goes() {
    let cluster = Cluster::new();
    cluster.up(&["-n", "1"]).code(0);
    let mut command = Command::new(env!("CARGO_BIN_EXE_logctl"));
    command
        .args(["dev", "logs", "-f", "-n", "1", "--dir"])
        .arg(cluster.home());
    let mut following = command.stdout(Stdio::piped()).spawn().expect("logctl runs");
    let mut said = BufReader::new(following.stdout.take().expect("its stdout"));
    let (lines, line) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        while said.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            if lines.send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });
    let next = || line.recv_timeout(PATIENCE).expect("a line");
    next();
    cluster.dev(&["kill", "1", "--signal", "TERM"]).code(0);
    while !next().contains("SIGTERM: stopping") {}
    drop(line);
    // One more line, with which the reader finds that nobody wants it.
    cluster.dev(&["start", "1"]).code(0);
    let begun = Instant::now();
    while following.try_wait().expect("its state").is_none() {
        assert!(begun.elapsed() < PATIENCE, "it goes on without a reader");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(following.wait().expect("it ended").code(), Some(0));
}
