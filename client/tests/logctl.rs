//! The real `logctl` against a real broker: every command in both outputs, what goes to stdout, what to
//! stderr, and how it ends.
//!
//! The broker runs in this process, since Cargo knows the path of this package's binaries only.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use logd::config::{Config, load};
use logd::node::Node;
use serde_json::{Value, json};

/// How long a test waits for anything before it says what it waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker on ports of its own, in a folder of its own.
struct Broker {
    runtime: tokio::runtime::Runtime,
    node: Option<Node>,
    addr: String,
    _data: tempfile::TempDir,
}

impl Broker {
    fn start() -> Broker {
        let data = tempfile::tempdir().expect("a folder");
        let set = |key, value: &str| (key, "test", value.to_owned());
        let settings = vec![
            set("node.data_dir", data.path().to_str().expect("UTF-8")),
            set("kafka.addr", "127.0.0.1:0"),
            set("admin.addr", "127.0.0.1:0"),
            set("rpc.addr", "127.0.0.1:0"),
            set("group.initial_rebalance_delay_ms", "0"),
        ];
        let loaded = load(None, std::iter::empty(), settings).expect("settings");
        let config = Config::try_from(loaded.raw).expect("good settings");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let node = runtime.block_on(Node::start(config)).expect("it starts");
        Broker {
            addr: node.bound().kafka[0].address.to_string(),
            node: Some(node),
            runtime,
            _data: data,
        }
    }

    fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_logctl"));
        command.env("LOGCTL_BROKERS", &self.addr).args(line);
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn spawn(&self, line: &[&str]) -> Child {
        self.command(line).spawn().expect("logctl runs")
    }

    /// Runs a command with nothing to read.
    fn run(&self, line: &[&str]) -> Ended {
        self.run_with(line, "")
    }

    fn run_with(&self, line: &[&str], stdin: &str) -> Ended {
        let mut child = self.spawn(line);
        let mut pipe = child.stdin.take().expect("its stdin");
        // One that does not read its input may be gone already.
        pipe.write_all(stdin.as_bytes()).ok();
        drop(pipe);
        Ended::of(child, line)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            self.runtime.block_on(node.stop(Duration::from_secs(5)));
        }
    }
}

/// What a command left behind.
#[derive(Debug)]
struct Ended {
    line: String,
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    fn of(child: Child, line: &[&str]) -> Ended {
        let output = child.wait_with_output().expect("it ends");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Ended {
            line: line.join(" "),
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    fn code(&self, expected: i32) -> &Ended {
        assert_eq!(self.code, Some(expected), "logctl {}: {self:#?}", self.line);
        self
    }

    fn out(&self, expected: &str) -> &Ended {
        assert_eq!(self.out, expected, "{self:#?}");
        self
    }

    fn err(&self, expected: &str) -> &Ended {
        assert_eq!(self.err, expected, "{self:#?}");
        self
    }

    fn json(&self) -> Value {
        let parsed = serde_json::from_str(&self.out);
        parsed.unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

#[test]
fn topics_come_show_themselves_and_go() {
    let broker = Broker::start();
    let none = broker.run(&["topic", "list"]);
    none.code(0).out("TOPIC  PARTITIONS  REPLICAS\n");
    none.err("no topics; `logctl topic create NAME` makes one\n");

    let config = ["-c", "retention.ms=86400000"];
    let dry = ["topic", "create", "orders", "-p", "2", "--dry-run"];
    broker.run(&[&dry[..], &config].concat()).code(0).err("").out(
        "TOPIC   PARTITIONS  REPLICAS  STATUS\norders           2         1  would be created\n",
    );
    let made = broker.run(&["topic", "create", "orders", "-p", "2"]);
    made.code(0).err("");
    made.out("TOPIC   PARTITIONS  REPLICAS  STATUS\norders           2         1  created\n");

    let again = broker.run(&["topic", "create", "orders", "bills", "-o", "json"]);
    again.code(1).err(
        "error: topic \"orders\": TOPIC_ALREADY_EXISTS (36): Topic 'orders' already exists.\n  \
         hint: --if-not-exists is content with a topic that is there\n",
    );
    assert_eq!(again.json()[0]["error"]["name"], "TOPIC_ALREADY_EXISTS");
    assert_eq!(again.json()[0]["error"]["code"], 36);
    assert_eq!(again.json()[1]["status"], "created");
    let content = broker.run(&["topic", "create", "orders", "--if-not-exists", "-o", "json"]);
    let exists = json!([{"topic": "orders", "status": "exists", "partitions": 2, "replicas": 1, "error": null}]);
    assert_eq!(content.code(0).json(), exists);
    let wrong = broker.run(&["topic", "create", "z", "-c", "retention.mss=1"]);
    assert!(
        wrong.code(1).err.contains("INVALID_CONFIG (40)"),
        "{wrong:?}"
    );

    let list = broker.run(&["topic", "ls"]);
    list.code(0).err("").out(
        "TOPIC   PARTITIONS  REPLICAS\nbills            1         1\norders           2         1\n",
    );
    let listed = broker.run(&["topic", "list", "-o", "json"]);
    let bills = json!({"topic": "bills", "partitions": 1, "replicas": 1, "internal": false});
    assert_eq!(listed.code(0).json()[0], bills);

    let shown = broker.run(&["topic", "describe", "orders"]);
    shown.code(0).err("").out(
        "TOPIC   PARTITION  LEADER  EPOCH  REPLICAS  IN-SYNC  START  END\n\
         orders          0       1      1  1         1            0    0\n\
         orders          1       1      1  1         1            0    0\n",
    );
    let shown = broker.run(&["topic", "describe", "orders", "nothing", "-o", "json"]);
    assert_eq!(shown.code(1).json()[0]["partitions"][1]["end_offset"], 0);
    let missing = broker.run(&["topic", "describe", "oders"]);
    missing.code(3).out("");
    missing.err("error: topic \"oders\" does not exist\n  hint: did you mean \"orders\"?\n");

    let unasked = broker.run(&["topic", "delete", "orders"]);
    unasked.code(2).out("");
    assert!(unasked.err.contains("--yes"), "{unasked:?}");
    broker
        .run(&["topic", "delete", "oders", "bills", "--yes"])
        .code(3);
    broker.run(&["topic", "describe", "bills"]).code(0);
    let gone = broker.run(&["topic", "delete", "bills", "--yes"]);
    gone.code(0).err("").out("TOPIC  STATUS\nbills  deleted\n");
    let gone = broker.run(&["topic", "rm", "orders", "-y", "-o", "json"]);
    let deleted = json!([{"topic": "orders", "status": "deleted", "error": null}]);
    assert_eq!(gone.code(0).json(), deleted);
}

#[test]
fn lines_become_records_and_records_become_lines() {
    let broker = Broker::start();
    broker.run(&["topic", "create", "orders"]).code(0);
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let produce = [
            "produce", "orders", "-K", ":", "-z", codec, "-H", "via=test",
        ];
        let stored = broker.run_with(&produce, &format!("{codec}:1\nno key\n"));
        stored.code(0).out("").err("stored 2 records in orders\n");
    }
    let stored = broker.run_with(
        &["produce", "orders", "-k", "k", "-o", "json", "-q"],
        "last",
    );
    let last = json!({"partition": 0, "stored": 1, "first_offset": 10, "last_offset": 10});
    assert_eq!(stored.code(0).err("").json()["partitions"], json!([last]));

    let format = ["-f", "%t/%p@%o %k=%v %h\\n"];
    let few = [&["consume", "orders", "-n", "2"], &format[..]].concat();
    let read = broker.run(&few);
    read.code(0).err("read 2 records\n");
    read.out("orders/0@0 none=1 via=test\norders/0@1 =no key via=test\n");
    let read = broker.run(&["consume", "orders", "-e", "--offset", "-2"]);
    read.code(0).out("no key\nlast\n");
    let read = broker.run(&[
        "consume", "orders", "-e", "--offset", "10", "-p", "0", "-o", "json",
    ]);
    assert_eq!(read.code(0).json()["key"], "k");
    assert_eq!(read.json()["headers"], json!([]));
    let all = broker.run(&["consume", "orders", "-e", "--offset", "@0", "-o", "json"]);
    assert_eq!(all.code(0).out.lines().count(), 11, "an object per line");
    let none = broker.run(&["consume", "orders", "-e", "--offset", "end"]);
    none.code(0).out("").err("read 0 records\n");

    let outside = broker.run(&["consume", "orders", "-e", "--offset", "99"]);
    assert!(outside.code(3).err.contains("ends at 11"), "{outside:?}");
    broker.run(&["consume", "orders", "-p", "7"]).code(3);
    broker.run(&["produce", "orders", "-p", "7"]).code(3);
    let missing = broker.run_with(&["produce", "oders"], "x\n");
    missing.code(3).out("");
    missing.err("error: topic \"oders\" does not exist\n  hint: did you mean \"orders\"?\n");
    let long = "x".repeat((1 << 20) + 1);
    let partly = broker.run_with(&["produce", "orders"], &format!("short\n{long}\n"));
    partly.code(1).out("");
    assert!(
        partly.err.contains("stored 1 record in orders"),
        "{}",
        partly.err
    );
    assert!(
        partly.err.contains("line 2: record of 1048577 bytes"),
        "{}",
        partly.err
    );
}

#[test]
fn a_group_goes_on_exactly_behind_what_was_printed() {
    let broker = Broker::start();
    broker.run(&["topic", "create", "orders"]).code(0);
    broker
        .run_with(&["produce", "orders"], "1\n2\n3\n4\n5\n")
        .code(0);
    let first = broker.run(&["consume", "orders", "-g", "readers", "-n", "2"]);
    first.code(0).out("1\n2\n").err("read 2 records\n");

    let addr = &broker.addr;
    let listed = broker.run(&["group", "list"]);
    listed.code(0).err("").out(&format!(
        "GROUP    STATE  TYPE      COORDINATOR\nreaders  Empty  consumer  {addr}\n"
    ));
    let listed = broker.run(&["group", "ls", "-o", "json"]);
    let readers = json!([{"group": "readers", "state": "Empty", "protocol_type": "consumer", "coordinator": addr}]);
    assert_eq!(listed.code(0).json(), readers);
    let shown = broker.run(&["group", "describe", "readers", "-o", "json"]);
    let lags = json!([{
        "topic": "orders", "partition": 0, "committed_offset": 2, "end_offset": 5, "lag": 3, "member": null
    }]);
    assert_eq!(shown.code(0).json()[0]["partitions"], lags);
    assert_eq!(shown.json()[0]["lag"], 3);

    let rest = broker.run(&["consume", "orders", "-g", "readers", "-e"]);
    rest.code(0).out("3\n4\n5\n").err("read 3 records\n");
    let shown = broker.run(&["group", "describe", "readers"]);
    assert!(
        shown
            .code(0)
            .out
            .contains("orders          0          5    5    0  -\n"),
        "{shown:?}"
    );
    let missing = broker.run(&["group", "describe", "reader"]);
    missing.code(3).out("");
    missing.err("error: group \"reader\" does not exist\n  hint: did you mean \"readers\"?\n");
    broker
        .run(&["consume", "orders", "-g", "readers", "--offset", "3"])
        .code(2);
    broker
        .run(&["consume", "orders", "-g", "readers", "-p", "0"])
        .code(2);
}

/// Sends a signal by name, as a shell does.
fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status();
    assert!(sent.expect("kill runs").success());
}

#[test]
fn an_interrupted_member_leaves_its_group_and_has_committed() {
    let broker = Broker::start();
    broker.run(&["topic", "create", "orders"]).code(0);
    broker.run_with(&["produce", "orders"], "1\n").code(0);
    let mut child = broker.spawn(&["consume", "orders", "-g", "readers"]);
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("its stdout"));
    out.read_line(&mut line).expect("a record");
    assert_eq!(line, "1\n");
    let shown = broker.run(&["group", "describe", "readers"]);
    assert!(shown.code(0).out.contains("Stable"), "{shown:?}");
    assert!(
        shown.out.contains("orders:0"),
        "it shows what the member has: {shown:?}"
    );

    signal(&child, "-INT");
    Ended::of(child, &["consume"])
        .code(130)
        .err("read 1 record\n");
    let shown = broker.run(&["group", "describe", "readers", "-o", "json"]);
    assert_eq!(shown.json()[0]["state"], "Empty", "{shown:?}");
    assert_eq!(shown.json()[0]["partitions"][0]["lag"], 0);
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let broker = Broker::start();
    broker.run(&["topic", "create", "orders"]).code(0);
    broker.run_with(&["produce", "orders"], "1\n2\n").code(0);
    // No record comes after these, so only the closed pipe can end it.
    let mut child = broker.spawn(&["consume", "orders"]);
    let mut out = child.stdout.take().expect("its stdout");
    out.read_exact(&mut [0; 4]).expect("two lines");
    drop(out);
    let begun = Instant::now();
    while child.try_wait().expect("its state").is_none() {
        assert!(begun.elapsed() < PATIENCE, "it goes on without a reader");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ended::of(child, &["consume"]).code(0).err("");
}

#[test]
fn a_benchmark_says_under_which_conditions_it_measured() {
    let broker = Broker::start();
    let absent = broker.run(&["bench", "produce", "load"]);
    assert!(
        absent.code(3).err.contains("--partitions N creates it"),
        "{absent:?}"
    );
    let size = ["--size", "100", "--records", "500"];
    let make = [
        &["bench", "produce", "load", "--partitions", "2"],
        &size[..],
    ]
    .concat();
    let measured = broker.run(&make);
    measured.code(0).err("");
    for said in [
        "acks all",
        "record 100 B",
        "not comparable",
        "loopback",
        "P99.9 MS",
    ] {
        assert!(measured.out.contains(said), "{said} in {}", measured.out);
    }
    let paced = [
        "bench", "produce", "load", "--rate", "1000", "-z", "lz4", "-o", "json",
    ];
    let measured = broker.run(&[&paced[..], &size].concat()).code(0).json();
    assert_eq!(measured["records"], 500);
    assert_eq!(measured["codec"], "lz4");
    assert_eq!(measured["latency"]["from"], "intended_send");
    assert!(measured["latency"]["p50_us"].as_u64() <= measured["latency"]["max_us"].as_u64());

    // Two runs, and the record with which each warms up each partition.
    let read = broker.run(&["bench", "consume", "load", "-o", "json"]);
    assert_eq!(read.code(0).json()["records"], 1004);
    let read = broker.run(&["bench", "consume", "load", "--records", "10"]);
    assert!(read.code(0).out.contains("saturation"), "{read:?}");
}

#[test]
fn wrong_usage_and_nobody_there_are_told_apart() {
    let broker = Broker::start();
    let misspelt = broker.run(&["topic", "create", "orders", "--partition", "3"]);
    assert!(
        misspelt.code(2).err.contains("'--partitions'"),
        "{misspelt:?}"
    );
    let format = broker.run(&["consume", "orders", "-f", "%q"]);
    assert!(format.code(2).err.contains("%t topic"), "{format:?}");

    let nobody = ["--brokers", "127.0.0.1:1", "topic", "list"];
    broker.run(&nobody).code(5).out("").err(
        "error: cannot reach 127.0.0.1:1 (connection refused)\n  \
         hint: is the broker up? --brokers or LOGCTL_BROKERS says where it is\n",
    );
    let admin = broker
        .node
        .as_ref()
        .expect("it runs")
        .bound()
        .admin
        .to_string();
    let web = broker.run(&["--brokers", &admin, "topic", "list"]);
    assert!(web.code(5).err.contains("HTTP server"), "{web:?}");
    // A second address saves the day.
    let either = format!("127.0.0.1:1,{}", broker.addr);
    broker
        .run(&["--brokers", &either, "topic", "list", "-q"])
        .code(0)
        .err("");
}
