"""A broker process that the tests own: logd, or Apache Kafka, against which the tests themselves are proven.

Both are started on an empty directory, killed, stopped and restarted the same way; a test that only one of them
can pass says why at its place. Not here: any client.
"""

import argparse
import itertools
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from harness.report import until
from harness.wire import Connection

HOST = "127.0.0.1"


# Below the ports that the kernel gives to connections by itself: one of those could be somebody's before the broker binds it.
PORTS = itertools.cycle(range(10_000, 16_000))
for _ in range(os.getpid() * 64 % 6_000):
    next(PORTS)


def free_port():
    for port in itertools.islice(PORTS, 6_000):
        with socket.socket() as s:
            try:
                s.bind((HOST, port))
                return port
            except OSError:
                continue
    raise RuntimeError("no port from 10000 to 15999 is free")


class Broker:
    """The life of one broker process on one data directory. Subclasses say how it is configured and started."""

    ready_within = 30

    def __init__(self, scratch, auto_create=True, data=None):
        self.home = pathlib.Path(tempfile.mkdtemp(prefix=f"{self.kind}-", dir=scratch))
        self.data = pathlib.Path(data) if data else self.home / "data"
        self.log_path = self.home / "broker.log"
        self.port = free_port()
        self.auto_create = auto_create
        self.process = None
        self.starts = 0

    @property
    def bootstrap(self):
        return f"{HOST}:{self.port}"

    def start(self, wait=True):
        self.starts += 1
        log = open(self.log_path, "ab")
        self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, env=self.environment())
        log.close()
        if wait:
            self.wait_ready()
        return self

    def environment(self):
        return dict(os.environ)

    def wait_ready(self):
        def answered():
            assert self.process.poll() is None, f"the broker ended with status {self.process.returncode} at its start:\n{self.log_tail(15)}"
            return self.answers()
        until(self.ready_within, "the broker answers", answered)

    def answers(self):
        try:
            with Connection(self.port, timeout=5) as c:
                return c.metadata([])["brokers"] != []
        except OSError:
            return False

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, within=40):
        if not self.alive():
            return self.process.returncode if self.process else None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the broker did not stop within {within} s of SIGTERM")

    def restart_after_kill(self, pause=0.2):
        self.kill()
        time.sleep(pause)
        self.start()

    def discard(self):
        if self.alive():
            self.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def log_tail(self, lines=40):
        return "\n".join(self.log_text().splitlines()[-lines:])

    def log_text(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def memory_mb(self, field="RssAnon"):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
        raise AssertionError(f"no {field} in the broker's /proc status")

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


class Logd(Broker):
    kind = "logd"

    def __init__(self, binary, scratch, settings=None, **options):
        super().__init__(scratch, **options)
        self.binary = binary
        self.settings = settings or {}

    def command(self):
        return [self.binary, "--data-dir", str(self.data), "--kafka-addr", f"{HOST}:{self.port}",
                "--admin-addr", f"{HOST}:0", "--rpc-addr", f"{HOST}:0"]

    def environment(self):
        settings = {"LOGD_TOPICS__AUTO_CREATE": str(self.auto_create).lower(), **self.settings}
        return {**{k: v for k, v in os.environ.items() if not k.startswith("LOGD_")}, **settings}

    def partition_files(self, suffix):
        """Data files of the partitions, largest first."""
        return sorted(self.data.rglob(f"*{suffix}"), key=lambda path: -path.stat().st_size)


class Member(Logd):
    """One of several brokers that know each other by their seeds."""

    rpc = seeds = None

    def command(self):
        seeds = ",".join(f"{HOST}:{seed}" for seed in self.seeds)
        return [self.binary, "--data-dir", str(self.data), "--kafka-addr", f"{HOST}:{self.port}",
                "--admin-addr", f"{HOST}:0", "--rpc-addr", f"{HOST}:{self.rpc}", "--seed", seeds]


class Cluster:
    """Three brokers that are used like one. A kill takes one of them, another one each time."""

    def __init__(self, binary, scratch, size=3, **options):
        self.brokers = [Member(binary, scratch, **options) for _ in range(size)]
        seeds = [free_port() for _ in self.brokers]
        for broker, rpc in zip(self.brokers, seeds):
            broker.rpc, broker.seeds = rpc, seeds
        self.turn = itertools.cycle(self.brokers)

    def start(self):
        for broker in self.brokers:
            broker.start(wait=False)
        for broker in self.brokers:
            broker.wait_ready()
        return self

    @property
    def bootstrap(self):
        return ",".join(broker.bootstrap for broker in self.brokers)

    @property
    def port(self):
        return self.brokers[0].port

    @property
    def log_path(self):
        return ", ".join(str(broker.log_path) for broker in self.brokers)

    def log_tail(self, lines=40):
        return "\n---\n".join(broker.log_tail(lines) for broker in self.brokers)

    def restart_after_kill(self):
        next(self.turn).restart_after_kill()

    def stop(self):
        for broker in self.brokers:
            broker.stop()


class Kafka(Broker):
    kind = "kafka"
    ready_within = 60

    def __init__(self, jars, scratch, settings=None, **options):
        super().__init__(scratch, **options)
        self.jars = f"{jars}/*"
        self.controller_port = free_port()
        self.settings = settings or {}

    def command(self):
        config = self.home / "server.properties"
        config.write_text("\n".join([
            "process.roles=broker,controller", "node.id=1",
            f"controller.quorum.bootstrap.servers={HOST}:{self.controller_port}",
            f"listeners=PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{self.controller_port}",
            f"advertised.listeners=PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{self.controller_port}",
            "controller.listener.names=CONTROLLER", "inter.broker.listener.name=PLAINTEXT",
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            f"log.dirs={self.data}", f"auto.create.topics.enable={str(self.auto_create).lower()}",
            "offsets.topic.replication.factor=1", "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1", "share.coordinator.state.topic.replication.factor=1",
            "share.coordinator.state.topic.min.isr=1",
            # Records' times lie years back in some tests, and Kafka deletes what is old half a minute after its start.
            "log.retention.ms=-1", *(f"{k}={v}" for k, v in self.settings.items()),
        ]) + "\n")
        if not (self.data / "meta.properties").exists():
            storage = ["java", "-cp", self.jars, "kafka.tools.StorageTool"]
            subprocess.run([*storage, "format", "--standalone", "-t", "bG9nZC1jaS10ZXN0LTAwMQ", "-c", str(config)],
                           check=True, capture_output=True)
        return ["java", "-Xms256m", "-Xmx512m", "-Djava.awt.headless=true", "-cp", self.jars, "kafka.Kafka", str(config)]

    def partition_files(self, suffix):
        return sorted(self.data.rglob(f"*{suffix}"), key=lambda path: -path.stat().st_size)


def arguments(description):
    """The command line that every driver shares."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tools", required=True, help="the folder that .ci/install printed")
    parser.add_argument("--scratch", default=None, help="where data and logs go")
    parser.add_argument("--logd", type=os.path.abspath, help="the logd binary to test")
    parser.add_argument("--kafka", action="store_true", help="test Apache Kafka instead, to prove the tests")
    parser.add_argument("--only", default="", help="run the tests whose name contains this")
    parser.add_argument("--brokers", type=int, choices=[1, 3], default=1, help="three of logd, and three replicas, instead of one")
    options = parser.parse_args()
    options.scratch = options.scratch or tempfile.mkdtemp(prefix="logd-ci.")
    if not options.kafka and not options.logd:
        parser.error("say which broker: --logd BINARY or --kafka")
    if options.kafka and options.brokers > 1:
        parser.error("--brokers is for logd")
    os.environ["REPLICAS"] = str(options.brokers)  # of the topics that the clients' agents create
    return options


def make(options, **how):
    """The broker that the command line asked for, not started."""
    if options.kafka:
        return Kafka(f"{options.tools}/java", options.scratch, **how)
    if options.brokers > 1:
        return Cluster(options.logd, options.scratch, size=options.brokers, **how)
    return Logd(options.logd, options.scratch, **how)
