"""One run: a cluster, a workload, a bad day, healing, and the verdict on what clients saw and what is on the disks.

Promise: everything of a failed run is kept (history, logs, timeline, seed, data), and a broker or client that ended when it should
not is an anomaly like any other.

Not here: the bad days themselves (see `scenarios`).
"""

import json
import pathlib
import random
import shutil
import subprocess
import time
import traceback

from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient

import checker
import faults
import history
import replicas
from harness.report import until
from network import Loopback, Namespaces
from processes import Broker, Cluster
from workload import OFFSETS_TOPIC, QUIET, TOPIC, Workload

CATCH_UP_WITHIN = 40


class Day:
    def __init__(self, options, scenario):
        self.options, self.scenario = options, scenario
        self.folder = pathlib.Path(options.scratch) / f"{scenario.name}-{options.brokers}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.seed = options.seed
        self.chance = random.Random(f"{self.seed} {scenario.name}")
        self.anomalies, self.notes = [], []
        self.began = time.monotonic()
        self.network = self.cluster = self.recorder = self.workload = None

    # --- what scenarios use --------------------------------------------------------------------------------------

    def note(self, text):
        """One line of the timeline."""
        line = f"{time.monotonic() - self.began:7.2f} {text}"
        self.notes.append(line)
        with open(self.folder / "timeline", "a") as timeline:
            timeline.write(f"{line}\n")
        if self.recorder:
            self.recorder.note("nemesis", "fault", text)
        if self.options.verbose:
            print(f"     {line}")

    @property
    def brokers(self):
        return self.cluster.brokers

    def leader(self):
        return self.cluster.busiest(TOPIC)

    def follower(self):
        """A broker other than the one that leads most; with one broker, that one."""
        leader = self.leader()
        return self.chance.choice([b for b in self.brokers if b is not leader] or [leader])

    def restart(self, broker):
        broker.start()
        self.note(f"{broker.name} started")

    def wait(self, seconds):
        time.sleep(seconds)

    def logctl(self, *arguments, refused=False):
        """What it says as JSON, asked of a broker that runs; `refused`: none if it does not do it."""
        asked = next(broker for broker in self.brokers if broker.alive())
        line = [self.options.logctl, *arguments, "--rpc", asked.address("rpc"), "-o", "json"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        if refused and done.returncode:
            return None
        assert done.returncode == 0, f"{' '.join(arguments)} ended with {done.returncode}: {done.stdout[-600:]}{done.stderr[-300:]}"
        return json.loads(done.stdout)

    def topic_id(self, name=TOPIC):
        """As folders are named by it."""
        admin = AdminClient({**QUIET, "bootstrap.servers": self.cluster.bootstrap})
        topic = admin.describe_topics(TopicCollection([name]), request_timeout=10)[name].result(15)
        bits = topic.topic_id.get_most_significant_bits() % 2**64 << 64 | topic.topic_id.get_least_significant_bits() % 2**64
        return f"{bits:032x}"

    # --- the run ---------------------------------------------------------------------------------------------------

    def run(self):
        """True if nothing bad was seen. Prints one line."""
        try:
            self.live()
        except Exception as problem:
            self.anomalies.append(("run-failed", f"{type(problem).__name__}: {problem}"))
            (self.folder / "traceback").write_text(traceback.format_exc())
        finally:
            self.end()
        return self.conclude()

    def live(self):
        network = Namespaces if self.scenario.network or self.options.place == "netns" else Loopback
        count, replicas = self.options.brokers + self.scenario.beside, self.options.brokers
        self.network = network(count)
        self.cluster = Cluster(self.options.logd, self.folder, self.network, count, replicas, self.scenario.settings)
        self.recorder = history.Recorder(self.folder / "history.jsonl")
        self.scenario.prepare(self)
        self.cluster.start()
        self.note("every broker is ready")
        self.workload = Workload(self.cluster.bootstrap, self.recorder, self.seed, self.folder / "clients.log", self.options.partitions, self.options.brokers)
        self.workload.create_topic()
        self.workload.start()
        self.wait(self.options.warm)
        fault_began = time.monotonic_ns()
        self.scenario.fault(self)
        self.heal()
        healed = time.monotonic_ns()
        self.wait(self.options.after)
        self.gaps = self.workload.gaps_ms(fault_began, time.monotonic_ns())
        self.note(f"the workload stops; fault and healing took {(healed - fault_began) / 1e9:.1f} s")
        self.workload.stop()
        self.judge_disks(self.workload.read_everything())

    def heal(self):
        if isinstance(self.network, Namespaces):
            self.network.heal()
        for broker in self.brokers:
            if broker.alive():
                broker.go_on()
            else:
                self.restart(broker)
        self.cluster.wait_ready()
        self.note("healed: every broker is ready")

    def judge_disks(self, ends):
        """Waits for replicas to catch up, stops everything in order, and compares what is on the disks."""
        topic = self.topic_id()
        high = {f"{topic}-{partition}": end for (_, partition), end in ends.items()}
        compacted = {self.topic_id(OFFSETS_TOPIC)}
        directories = {broker.name: broker.data for broker in self.brokers}
        holders = {f"{topic}-{partition}": {b.name for b in brokers} for partition, brokers in self.cluster.holders(TOPIC).items()}

        def caught_up():
            return not [name for name, _ in replicas.compare(directories, high, compacted, holders) if name in ("replica-behind", "replica-missing")]
        try:
            until(CATCH_UP_WITHIN, "replicas catch up", caught_up, pause=0.5)
        except (AssertionError, OSError):
            self.note(f"not every replica has caught up within {CATCH_UP_WITHIN} s")  # the comparison says which
        # The workload's producers leave no gap: who is told of one numbers anew, and what is in a log already may be sent again.
        # A late copy is another thing: what a client wrote into a connection before it gave that up may come after all.
        # And where an operator has accepted a loss, the gap is there.
        for broker in filter(Broker.alive, self.brokers if self.workload.loss_began is None else []):
            if times := broker.counted('logd_partition_sequences_refused_total{place="gap"}'):
                self.anomalies.append(("gap-invented", f"{broker.name} told producers {times} times that they had left a gap"))
        self.anomalies += [("broker-ended", end) for end in self.cluster.unexpected_ends()]
        for name, status in self.cluster.stop().items():
            if status != 0:
                self.anomalies.append(("unclean-stop", f"{name} ended with status {status} after SIGTERM"))
        self.anomalies += replicas.compare(directories, high, compacted, holders)
        for broker in self.brokers:
            done = subprocess.run([self.options.logctl, "debug", "verify", str(broker.data)], capture_output=True, text=True)
            (broker.home / "verify").write_text(done.stdout + done.stderr)
            if done.returncode != 0:
                self.anomalies.append(("damaged-files", f"{broker.name}: logctl debug verify ended with {done.returncode}: {done.stdout[-600:]}{done.stderr[-300:]}"))

    def end(self):
        """Whatever happened: clients and brokers end, networks and disks go."""
        if self.workload:
            self.workload.stop(within=20 if self.anomalies else 90)
            self.anomalies += [("client-failed", failure) for failure in self.workload.failures]
        if self.recorder:
            self.recorder.close()
        if self.cluster:
            self.anomalies += [("broker-ended", end) for end in self.cluster.unexpected_ends()]
            self.anomalies += [("broker-panicked", line) for line in self.cluster.panics()]
            self.cluster.close()
            for broker in self.brokers:
                faults.discard_disk(broker)
        elif self.network:
            self.network.close()

    def conclude(self):
        verdict = checker.check(history.read(self.folder / "history.jsonl")) if self.recorder else checker.Verdict()
        for name, details in self.anomalies:
            verdict.add(name, details=details)
        good = not verdict.bad
        sends = verdict.counts.get("sends", {})
        gaps = "gap of acks {p50}/{p99}/{max} ms (p50/p99/max over partitions)".format(**self.gaps) if hasattr(self, "gaps") else "no figures"
        counted = ", ".join(f"{name} {count}" for name, count in sends.items())
        print(f"{'ok  ' if good else 'FAIL'} {self.scenario.name} ({self.options.brokers} brokers, {time.monotonic() - self.began:.0f} s): {gaps}; "
              f"sends {counted or 'none'}; polled {verdict.counts.get('records polled', 0)}; {verdict.summary()}", flush=True)
        facts = {"scenario": self.scenario.name, "brokers": self.options.brokers, "seed": self.seed, "good": good, "gaps_ms": getattr(self, "gaps", None),
                 "counts": verdict.counts, "anomalies": {name: len(found) for name, found in verdict.bad.items()}}
        (self.folder / "verdict.json").write_text(json.dumps(facts, indent=1))
        (self.folder / "verdict").write_text(verdict.report() + "\n")
        if not good:
            print("     " + "\n     ".join(verdict.report()[:6000].splitlines()))
            print("     timeline:\n       " + "\n       ".join(self.notes))
            print(f"     kept, with seed {self.seed}: {self.folder}", flush=True)
        elif not self.options.keep:
            for broker in self.brokers:
                shutil.rmtree(broker.data, ignore_errors=True)
                shutil.rmtree(broker.home / "yesterday", ignore_errors=True)
        return good
