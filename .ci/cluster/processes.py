"""The brokers of a cluster as processes: started, killed, paused, stopped, each on a data directory of its own.

Promise: they end with the process that started them, every wait has a deadline, and what a broker said is in a file.

Not here: where they live (see `network`), what is done to them (see `faults`).
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import urllib.error
import urllib.request

from harness.report import until
from harness.wire import Connection

READY_WITHIN = 60
SETTINGS = {
    "LOGD_TOPICS__OFFSETS_PARTITIONS": "4",
    "LOGD_GROUP__INITIAL_REBALANCE_DELAY_MS": "500",
    # Small, so that files are rolled and used again within a minute's load, and three fit on small disks.
    "LOGD_STORAGE__WAL_BUDGET_BYTES": str(128 << 20),
    "LOGD_STORAGE__CHECKPOINT_INTERVAL_MS": "2000",
    "RUST_BACKTRACE": "1",
}


class Broker:
    def __init__(self, cluster, index):
        self.cluster, self.index, self.name = cluster, index, f"broker-{index}"
        self.home = cluster.home / self.name
        self.home.mkdir()
        self.data, self.log_path = self.home / "data", self.home / "broker.log"
        self.environment = {}  # beyond the cluster's: preloaded libraries and their switches
        self.process = None
        self.expected_end = False

    def address(self, door):
        host, port = self.cluster.network.address(self.index, door)
        return f"{host}:{port}"

    def command(self):
        command = [self.cluster.binary, "--data-dir", str(self.data), "--insecure"]
        for door in ("kafka", "admin", "rpc"):
            command += [f"--{door}-addr", self.address(door)]
        if len(self.cluster.brokers) > 1:
            command += ["--seed", ",".join(broker.address("rpc") for broker in self.cluster.brokers)]
        # By way of setpriv, as a broker that outlives a killed driver would hold its namespace and its mount.
        return ["setpriv", "--pdeathsig", "KILL", *self.cluster.network.inside(self.index), *command]

    def start(self):
        """From the main thread only: the broker ends when the thread that started it does."""
        assert not self.alive(), f"{self.name} runs already"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LOGD_")} | SETTINGS | self.cluster.settings | self.environment
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, env=environment)
        self.expected_end = False
        return self

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        self.expected_end = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def terminate(self):
        """SIGTERM, once: a second one would make it exit at once."""
        self.expected_end = True
        self.process.send_signal(signal.SIGTERM)

    def stop(self, within=40):
        """SIGTERM; the exit status."""
        self.terminate()
        return self.ends(within)

    def ends(self, within=40):
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop within {within} s of SIGTERM") from None

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def ready(self):
        if not self.alive():
            status = self.process.returncode if self.process else "none"
            raise AssertionError(f"{self.name} ended with status {status}:\n{self.log_tail(15)}")
        return self.page("/readyz") == 200

    def page(self, path):
        """The status that the admin port answers, or None."""
        try:
            with urllib.request.urlopen(f"http://{self.address('admin')}{path}", timeout=3) as answer:
                return answer.status
        except urllib.error.HTTPError as refused:
            return refused.code
        except OSError:
            return None

    def counted(self, series):
        """What a counter at /metrics has come to since this process began."""
        with urllib.request.urlopen(f"http://{self.address('admin')}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return int(float(next(line.removeprefix(f"{series} ") for line in lines if line.startswith(f"{series} "))))

    def log_tail(self, lines=40):
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class Cluster:
    def __init__(self, binary, home, network, count, replicas, settings=None):
        self.binary, self.home, self.network = str(binary), pathlib.Path(home), network
        self.settings = {"LOGD_TOPICS__DEFAULT_REPLICATION_FACTOR": str(replicas), **(settings or {})}
        self.brokers = []
        self.brokers += [Broker(self, index) for index in range(count)]

    @property
    def bootstrap(self):
        return ",".join(broker.address("kafka") for broker in self.brokers)

    def start(self):
        for broker in self.brokers:
            broker.start()
        self.wait_ready()

    def wait_ready(self, within=READY_WITHIN):
        def all_ready():
            waiting = [broker.name for broker in self.brokers if not broker.ready()]
            self.waited_for = waiting
            return not waiting and all(len(self.metadata(b)["brokers"]) == len(self.brokers) for b in self.brokers)
        until(within, lambda: f"every broker is ready and knows the others; not ready: {self.waited_for or 'none, but Metadata lists fewer'}", all_ready, pause=0.2)

    def metadata(self, broker, topics=()):
        host, port = self.network.address(broker.index, "kafka")
        try:
            with Connection(port, timeout=5, host=host) as connection:
                return connection.metadata(list(topics))
        except (OSError, AssertionError):
            return {"brokers": [], "topics": {}}

    def leaders(self, topic):
        """{partition: broker} as the first broker that answers sees it; partitions without a leader are left out."""
        addresses = {self.network.address(broker.index, "kafka"): broker for broker in self.brokers}
        for broker in filter(Broker.alive, self.brokers):
            told = self.metadata(broker, [topic])
            nodes = {node: addresses.get((host, port)) for node, host, port, _ in told["brokers"]}
            partitions = told["topics"].get(topic, {}).get("partitions", [])
            leaders = {p["index"]: nodes[p["leader"]] for p in partitions if nodes.get(p["leader"])}
            if leaders:
                return leaders
        return {}

    def holders(self, topic):
        """{partition: its brokers} as a broker that answers sees it."""
        addresses = {self.network.address(broker.index, "kafka"): broker for broker in self.brokers}
        for broker in filter(Broker.alive, self.brokers):
            told = self.metadata(broker, [topic])
            nodes = {node: addresses[host, port] for node, host, port, _ in told["brokers"] if (host, port) in addresses}
            partitions = told["topics"].get(topic, {}).get("partitions", [])
            if partitions:
                return {p["index"]: [nodes[node] for node in p["replicas"] if node in nodes] for p in partitions}
        raise AssertionError(f"no broker says where {topic} is")

    def busiest(self, topic):
        """The broker that leads most partitions of the topic."""
        def found():
            leaders = list(self.leaders(topic).values())
            return max(set(leaders), key=leaders.count) if leaders else None
        return until(30, f"somebody leads {topic}", found, pause=0.2)

    def unexpected_ends(self):
        return [f"{b.name} ended by itself with status {b.process.returncode}:\n{b.log_tail(15)}" for b in self.brokers
                if b.process is not None and not b.alive() and not b.expected_end]

    def panics(self):
        return [f"{b.name} panicked: {line}" for b in self.brokers if b.log_path.exists()
                for line in b.log_path.read_text(errors="replace").splitlines() if "panicked at" in line]

    def stop(self):
        """All in order; {broker's name: exit status}."""
        running = [broker for broker in self.brokers if broker.alive()]
        for broker in running:
            broker.terminate()
        return {broker.name: broker.ends() for broker in running}

    def close(self):
        for broker in self.brokers:
            with contextlib.suppress(OSError):
                broker.kill()
        self.network.close()
