"""The clients under test, each behind the same few calls (clients/agent.py tells the conversation).

`Agent` talks to a client library's process; `Kcat` gives kcat's command line the same face. `member` starts one group
member of any of them. What a client cannot do is in its `lacks`, with the reason beside it, and shows in the table.
"""

import base64
import itertools
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import threading
import time

from harness.report import until

CLIENTS = pathlib.Path(__file__).resolve().parent.parent / "clients"
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
NAMES = ["kcat", "confluent-kafka", "kafka-python", "aiokafka", "kafkajs", "java", "franz-go", "sarama"]
GO = {"franz-go", "sarama"}
# Eager by range or round robin, and the cooperative protocol where the library has it.
STRATEGIES = {"kcat": ["range", "cooperative"], "confluent-kafka": ["range", "cooperative"],
              "kafka-python": ["range", "cooperative"], "aiokafka": ["roundrobin"],
              "kafkajs": ["roundrobin"], "java": ["range", "cooperative"],
              "franz-go": ["range", "cooperative"], "sarama": ["range", "cooperative"]}
# Null header values: kafkajs and kafka-python refuse to send them, kcat prints them like text.
SENDS_NULL_HEADER = {"confluent-kafka", "java", "aiokafka", *GO}
# kafkajs has no group.instance.id. aiokafka deletes no groups, and kcat administers nothing.
STATIC = ["kcat", "confluent-kafka", "kafka-python", "aiokafka", "java", *GO]
DELETES_GROUPS = {"confluent-kafka", "kafka-python", "kafkajs", "java", *GO}
# How each says that the broker refused a record (INVALID_RECORD, 87, which aiokafka has no name for).
INVALID_RECORD = {"kcat": "failed to validate record", "confluent-kafka": "INVALID_RECORD", "kafka-python": "InvalidRecord",
                  "aiokafka": "UnknownError", "kafkajs": "failed the validation", "java": "InvalidRecordException",
                  "franz-go": "INVALID_RECORD", "sarama": "failed the validation"}
# How each says that a coordinator still reads its log.
LOADING = ["NOT_COORDINATOR", "COORDINATOR_LOAD_IN_PROGRESS", "is not coordinated by this broker", "is still loading offsets"]


def b64(data):
    return base64.b64encode(data).decode()


class Refused(Exception):
    """The client reported an error."""


def refused(action, what):
    try:
        action()
    except Refused as problem:
        return str(problem)
    raise AssertionError(f"{what} was not refused")


class Tools:
    """Where the installed clients are, and how their agents are started."""

    def __init__(self, folder, scratch):
        self.folder, self.scratch = pathlib.Path(folder), pathlib.Path(scratch)
        self.classes = self.scratch / "classes"
        self.go_agent = self.scratch / "agent"

    def compile_java(self):
        self.classes.mkdir(parents=True, exist_ok=True)
        subprocess.run(["javac", "-d", str(self.classes), "-cp", f"{self.folder}/java/*", str(CLIENTS / "Agent.java")], check=True)

    def compile_go(self):
        """With what .ci/install left in its folder: nothing is downloaded here. What vets it is built there too."""
        go = {**os.environ, "GOMODCACHE": str(self.folder / "go/modules"), "GOCACHE": str(self.folder / "go/built"), "GOPROXY": "off", "CGO_ENABLED": "0"}
        for command in (["vet"], ["build", "-buildvcs=false", "-o", str(self.go_agent)]):
            subprocess.run(["go", *command, "."], cwd=CLIENTS / "go", env=go, check=True)

    def command(self, name, *arguments):
        if name in GO:
            return [str(self.go_agent), name, *arguments]
        if name == "java":
            return ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{self.classes}:{self.folder}/java/*", "Agent", *arguments]
        if name == "kafkajs":
            return ["node", str(CLIENTS / "agent.js"), *arguments]
        return [str(self.folder / "venv/bin/python"), str(CLIENTS / f"agent_{name.split('-kafka')[0].replace('-', '_')}.py"), *arguments]

    def environment(self):
        return {**os.environ, "NODE_MODULES_ROOT": str(self.folder / "js"), "PYTHONDONTWRITEBYTECODE": "1"}

    def spawn(self, name, *arguments, label="serve"):
        log = open(self.scratch / f"client-{name}-{label}.log", "ab")
        process = subprocess.Popen(self.command(name, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=self.environment())
        log.close()
        return process

    def agent(self, name, bootstrap):
        return Kcat(self, bootstrap) if name == "kcat" else Agent(self, name, bootstrap)

    def member(self, name, bootstrap, group, topic, strategy, label, instance=None):
        if name == "kcat":
            return KcatMember(self, name, bootstrap, group, topic, strategy, label, instance)
        return Member(self, name, bootstrap, group, topic, strategy, label)


class Agent:
    def __init__(self, tools, name, bootstrap):
        self.name = name
        self.process = tools.spawn(name, "serve", bootstrap)
        self.answers = queue.Queue()
        self.lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)

    def call(self, op, timeout=90, **fields):
        with self.lock:
            self.process.stdin.write((json.dumps({"op": op, **fields}) + "\n").encode())
            self.process.stdin.flush()
            try:
                line = self.answers.get(timeout=timeout)
            except queue.Empty:
                raise Refused(f"{self.name} did not finish '{op}' within {timeout} s") from None
        if line is None:
            raise Refused(f"{self.name}'s process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(f"{self.name}: {answer['error']}")
        return answer

    def produce(self, topic, codec, records, idempotent=False, pace=0, timeout=90):
        return self.call("produce", timeout=timeout, topic=topic, codec=codec, records=records, idempotent=idempotent, pace=pace)["acks"]

    def read(self, want, timeout=40, start=None):
        """What each partition holds from an offset on, or from its beginning, until as many records came as are wanted."""
        return self.call("read", timeout=timeout + 20, want=want, start=start, timeout_s=timeout)["records"]

    def times(self, topic, queries):
        return self.call("times", topic=topic, queries=queries)["offsets"]

    def commit(self, group, topic, offsets):
        self.call("commit", group=group, topic=topic, offsets=offsets)

    def committed(self, group, topic, partitions):
        return {int(p): o for p, o in self.call("committed", group=group, topic=topic, partitions=partitions)["offsets"].items()}

    def create(self, topic, partitions):
        self.call("create", topic=topic, partitions=partitions)

    def delete(self, topic):
        self.call("delete", topic=topic)

    def topics(self):
        return self.call("topics")["topics"]

    def config(self, topic, name):
        return self.call("config", topic=topic, name=name)["value"]

    def configure(self, topic, name, value):
        self.call("configure", topic=topic, name=name, value=value)

    def grow(self, topic, partitions):
        self.call("grow", topic=topic, partitions=partitions)

    def delete_records(self, topic, partition, offset):
        """The first offset that is left."""
        return self.call("delete_records", topic=topic, partition=partition, offset=offset)["low"]

    def groups(self):
        return self.call("groups")["groups"]

    def describe_group(self, group):
        return self.call("describe_group", group=group)["state"]

    def delete_group(self, group):
        self.call("delete_group", group=group)

    def static(self, group, topic, partitions):
        """Two static members of which one ends and comes back: agent.py's `static_members`."""
        return self.call("static", group=group, topic=topic, partitions=partitions)

    def close(self):
        self.process.kill()
        self.process.wait()


class Kcat:
    """kcat as a command: values without the separators below, headers the same for all records of a partition."""

    name = "kcat"
    KEY, END = b"\x1c", b"\x1e\x1d"

    def __init__(self, tools, bootstrap):
        self.tools, self.bootstrap = tools, bootstrap
        self.log = open(tools.scratch / "client-kcat-serve.log", "ab")
        self.running = set()

    def run(self, *arguments, data=b"", timeout=90):
        process = subprocess.Popen(["kcat", "-b", self.bootstrap, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.running.add(process)
        try:
            out, err = process.communicate(data, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Refused(f"kcat did not finish within {timeout} s: {' '.join(map(str, arguments))}") from None
        finally:
            self.running.discard(process)
        self.log.write(err)
        self.log.flush()
        if process.returncode:
            raise Refused(f"kcat: {err.decode(errors='replace').strip()[-300:]}")
        return out

    def produce(self, topic, codec, records, idempotent=False, pace=0, timeout=90):
        runs = {}
        for r in records:
            key = b"" if r["k"] is None else base64.b64decode(r["k"]) + self.KEY
            value = b"" if r["v"] is None else base64.b64decode(r["v"])
            runs.setdefault((r.get("p"), bool(key), tuple(map(tuple, r.get("h", [])))), []).append(key + value)
        for (partition, keyed, headers), lines in runs.items():
            arguments = ["-P", "-t", topic, "-z", codec, "-D", self.END.decode(), "-X", "linger.ms=5", "-E"]
            arguments += ["-Z"] if any(r["v"] is None for r in records) else []  # nothing behind the key is null, then
            arguments += ["-K", self.KEY.decode()] if keyed else []
            arguments += ["-p", str(partition)] if partition is not None else []
            arguments += ["-X", "enable.idempotence=true"] if idempotent else []
            for name, value in headers:
                arguments += ["-H", f"{name}={base64.b64decode(value).decode()}"]
            if pace:
                self._paced(arguments, lines, pace, timeout)
            else:
                self.run(*arguments, data=self.END.join(lines), timeout=timeout)
        return None  # kcat does not say where a record went

    def _paced(self, arguments, lines, pace, timeout):
        process = subprocess.Popen(["kcat", "-b", self.bootstrap, *arguments], stdin=subprocess.PIPE, stderr=self.log)
        for at in range(0, len(lines), 50):
            process.stdin.write(b"".join(line + self.END for line in lines[at:at + 50]))
            process.stdin.flush()
            time.sleep(50 / pace)
        process.stdin.close()
        if process.wait(timeout):
            raise Refused(f"kcat ended with status {process.returncode}")

    def read(self, want, timeout=40, start=None):
        records = []
        for topic in want:
            out = self.run("-C", "-t", topic, "-o", "beginning" if start is None else str(start), "-e", "-q", "-f", "%p %o %T %K %S\n%k%s%h\x1e\x1d", timeout=timeout)
            records += self._parse(topic, out)
        return records

    def _parse(self, topic, out):
        at = 0
        while at < len(out):
            end = out.index(b"\n", at)
            p, o, ts, k, v = out[at:end].split(b" ")
            k, v = int(k), int(v)
            at = end + 1
            key, at = (None, at) if k < 0 else (b64(out[at:at + k]), at + k)
            value, at = (None, at) if v < 0 else (b64(out[at:at + v]), at + v)
            end = out.index(self.END, at)
            headers, at = out[at:end], end + len(self.END)
            yield {"t": topic, "p": int(p), "o": int(o), "ts": int(ts), "k": key, "v": value, "h": headers}

    @staticmethod
    def printed_headers(headers):
        """Headers as kcat prints them."""
        return b",".join(name.encode() + b"=" + (b"NULL" if value is None else base64.b64decode(value)) for name, value in headers)

    def times(self, topic, queries):
        found = []
        for partition, ts in queries:
            out = self.run("-Q", "-t", f"{topic}:{partition}:{ts}").decode()
            found.append(int(re.search(r"offset (-?\d+)", out).group(1)))
        return found

    def topics(self):
        return sorted(t["topic"] for t in json.loads(self.run("-L", "-J"))["topics"])

    def static(self, group, topic, partitions):
        def join(instance):
            return self.tools.member("kcat", self.bootstrap, group, topic, "range", f"static-{instance}", instance)

        def held():
            return [sorted(leaving.held), sorted(staying.held)]

        leaving, staying = join("leaving"), join("staying")
        members = [leaving, staying]
        try:
            settled([leaving, staying], partitions, 25, "static members share")
            before, assignments = held(), staying.assignments
            leaving.stop()
            members.append(leaving := join("leaving"))
            settled([leaving, staying], partitions, 25, "the one that left is back")
            time.sleep(1)  # a rebalance would be told with a heartbeat's answer
            return {"before": before, "after": held(), "disturbed": staying.assignments - assignments}
        finally:
            for member in members:
                member.kill()

    def close(self):
        for process in list(self.running):
            process.kill()
        self.log.close()


class Member:
    """One member of a group, in a process of its own."""

    def __init__(self, tools, name, bootstrap, group, topic, strategy, label):
        self.name, self.label = name, label
        self.held, self.records, self.closed = None, [], False
        self.held_when_killed, self.held_when_stopped = set(), set()
        self.process = self._spawn(tools, bootstrap, group, topic, strategy)
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _spawn(self, tools, bootstrap, group, topic, strategy):
        return tools.spawn(self.name, "member", bootstrap, group, topic, strategy, label=self.label)

    def _listen(self):
        for line in self.process.stdout:
            event = json.loads(line)
            if event["e"] == "rec":
                self.records.append((event["p"], event["o"], event["k"], event["v"]))
            elif event["e"] == "assigned":
                self.held = set(event["parts"])
            else:
                self.closed = True

    def ask_to_stop(self):
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def stop(self, within=30):
        """Leaves the group in order, its offsets committed."""
        self.ask_to_stop()
        self._end(within)
        assert self.closed, f"{self.label} ended with status {self.process.returncode} without closing its consumer"

    def _end(self, within):
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.label} did not leave within {within} s") from None
        self.thread.join(10)
        self.held = set()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.thread.join(10)
        self.held, self.held_when_killed = set(), self.held or set()

    def in_hand_when_killed(self, seen):
        """What it may have taken and committed without showing it: one record of each partition. librdkafka counts a
        record as consumed when it hands it over; the other clients commit only what an earlier poll returned, or was marked
        after it was shown."""
        return self._next_of(self.held_when_killed, seen) if self.name in ("kcat", "confluent-kafka") else set()

    def dropped_when_stopped(self, seen):
        """Of these one at most was taken and committed without being shown, because the client was asked to stop."""
        return set()

    def _next_of(self, partitions, seen):
        shown = {}
        for p, o, _, _ in self.records:
            shown[p] = max(o, shown.get(p, -1))
        return {(p, shown[p] + 1 if p in shown else next(o for o in itertools.count() if (p, o) not in seen)) for p in partitions}


class KcatMember(Member):
    FORMAT = "%p %o %k %s\n"

    def __init__(self, tools, name, bootstrap, group, topic, strategy, label, instance=None):
        self.assignments = 0
        self.identity = ["-X", f"group.instance.id={instance}", "-X", "session.timeout.ms=20000"] if instance else ["-X", "session.timeout.ms=6000"]
        super().__init__(tools, name, bootstrap, group, topic, strategy, label)

    def _spawn(self, tools, bootstrap, group, topic, strategy):
        self.log = open(tools.scratch / f"client-kcat-{self.label}.log", "ab")
        process = subprocess.Popen(
            ["kcat", "-b", bootstrap, "-G", group, "-u", "-f", self.FORMAT, "-E",
             "-X", f"partition.assignment.strategy={'cooperative-sticky' if strategy == 'cooperative' else strategy}",
             *self.identity, "-X", "auto.offset.reset=earliest", "-X", "heartbeat.interval.ms=500",
             "-X", "auto.commit.interval.ms=500", "-X", "reconnect.backoff.max.ms=1000", topic],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        threading.Thread(target=self._watch, args=(process.stderr,), daemon=True).start()
        return process

    def _watch(self, stderr):
        for line in stderr:
            self.log.write(line)
            self.log.flush()
            found = re.search(rb"rebalanced.*?(assigned|revoked|incremental assignment|incremental revoke|lost)", line)
            if found:
                parts = {int(p) for p in re.findall(rb"\[(\d+)\]", line)}
                held = self.held or set()
                self.held = held | parts if b"assign" in found.group(1) else held - parts
                self.assignments += b"assign" in found.group(1)

    def _listen(self):
        for line in self.process.stdout:
            if not line.endswith(b"\n"):
                return  # killed in the middle of a record
            p, o, k, v = line.rstrip(b"\n").split(b" ", 3)
            self.records.append((int(p), int(o), b64(k), b64(v)))

    def stop(self, within=30):
        self.held_when_stopped = set(self.held or ())
        self.process.send_signal(signal.SIGINT)
        self._end(within)

    def dropped_when_stopped(self, seen):
        """kcat's loop polls for 100 ms and prints nothing once it was told to stop: a record that the poll under way returns
        is dropped, although librdkafka has it for consumed and commits it at the close (kcat.c, kafkaconsumer_run and consume_cb)."""
        return self._next_of(self.held_when_stopped, seen)


def once_loaded(action):
    """The action's answer; a coordinator that still reads its log after a start may say so for a while."""
    def attempt():
        try:
            return [action()]
        except Refused as problem:
            if not any(words in str(problem) for words in LOADING):
                raise
            return None
    return until(15, "the group's coordinator is loaded", attempt)[0]


def settled(members, partitions, within, what):
    """Waits until the members hold every partition once, and returns how long it took."""
    started = time.monotonic()
    alive = [m for m in members if m.held is not None or m.process.poll() is None]

    def state():
        return ", ".join(f"{m.label}: {'-' if m.held is None else sorted(m.held)}" for m in alive)

    def fair():
        if any(not m.held for m in alive):
            return False
        return sum(len(m.held) for m in alive) == partitions and set().union(*(m.held for m in alive)) == set(range(partitions))

    until(within, lambda: f"{what} ({state()})", fair)
    time.sleep(0.3)  # a set that is right only between two rebalances does not count
    until(within, lambda: f"{what} ({state()})", fair)
    return time.monotonic() - started
