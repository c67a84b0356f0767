"""librdkafka's own test suite against one broker of logd, or three.

Tests run side by side, each worker with brokers of its own, so that no test sees another's topics, groups or load; those
that measure time run alone at the end. A test that needs another broker configuration (the suite calls it a scenario)
gets a broker that has it. `librdkafka.txt` lists what must pass; README.md says why the others do not.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import listing
from harness import broker as brokers
from listing import Outcome

SUITE = "librdkafka"
# The suite's scenarios, as its own clusters are set up: four partitions where nobody says otherwise.
SCENARIOS = {"default": True, "noautocreate": False}
PARTITIONS = "4"
LIMIT_SECONDS = 240


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one run of the suite's program takes: it selects by number, and several tests may share one."""
    number: str
    scenario: str
    names: tuple


def declared(source):
    """The tests that need a broker, as the suite's program declares them, grouped as it can run them."""
    units = collections.defaultdict(list)
    table = source[source.index("struct test tests[]"):]
    for entry in re.split(r"\n\s*_TEST\(", table)[1:]:
        name = entry.split(",")[0].strip()
        if "TEST_F_LOCAL" in entry or "TEST_F_MANUAL" in entry:
            continue
        scenario = re.search(r'\.scenario\s*=\s*"(\w+)', entry)
        units[name[:4], scenario.group(1) if scenario else "default"].append(name)
    return [Unit(number, scenario, tuple(names)) for (number, scenario), names in units.items()]


class Place:
    """One worker's brokers, one or three per scenario, started when first needed."""

    def __init__(self, options, folder):
        self.options, self.folder, self.running = options, folder, {}

    def bootstrap(self, scenario):
        if scenario not in self.running:
            folder = self.folder / f"brokers-{scenario}"
            folder.mkdir(parents=True)
            settings = {"num.partitions": PARTITIONS} if self.options.kafka else {"LOGD_TOPICS__DEFAULT_PARTITIONS": PARTITIONS}
            where = argparse.Namespace(**{**vars(self.options), "scratch": str(folder)})
            self.running[scenario] = brokers.make(where, auto_create=SCENARIOS[scenario], settings=settings).start()
        return self.running[scenario].bootstrap

    def close(self):
        for broker in self.running.values():
            broker.stop()


class Suite:
    def __init__(self, options):
        self.options = options
        self.folder = pathlib.Path(options.scratch) / SUITE
        self.folder.mkdir(exist_ok=True)
        build = pathlib.Path(__file__).resolve().parent / "build"
        self.source = pathlib.Path(subprocess.run([build, options.tools, SUITE], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
        self.listed = listing.load(SUITE)
        self.outcomes = {}
        self.lock = threading.Lock()

    def units(self):
        every = declared((self.source / "tests/test.c").read_text())
        if self.options.only:
            return [u for u in every if any(self.options.only in name for name in u.names)]
        if self.options.rotate:
            keys = [f"{u.number} {u.scenario}" for u in every]
            chosen = listing.rotated(keys, listing.third_of_commit() if self.options.third is None else self.options.third)
            return [u for u in every if f"{u.number} {u.scenario}" in chosen]
        return every

    def seconds(self, unit):
        return sum(self.listed[n].seconds for n in unit.names if n in self.listed)

    def alone(self, unit):
        return any(self.listed[n].alone for n in unit.names if n in self.listed)

    def run(self):
        units = sorted(self.units(), key=self.seconds, reverse=True)
        self.side_by_side([u for u in units if not self.alone(u)], self.options.workers)
        self.side_by_side([u for u in units if self.alone(u)], 1)

    def side_by_side(self, units, workers):
        waiting = queue.SimpleQueue()
        for unit in units:
            waiting.put(unit)
        threads = [threading.Thread(target=self.work, args=(waiting, f"worker-{n}-of-{workers}")) for n in range(min(workers, len(units)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def work(self, waiting, name):
        place = Place(self.options, self.folder / name)
        try:
            while True:
                self.run_one(waiting.get_nowait(), place)
        except queue.Empty:
            pass
        finally:
            place.close()

    def run_one(self, unit, place):
        try:
            found = self.outcomes_of(unit, place.bootstrap(unit.scenario))
        except Exception as problem:  # a broker that does not start is these tests' failure, not the end of the others
            found = {name: Outcome("failed", 0, f"{type(problem).__name__}: {problem}") for name in unit.names}
        with self.lock:
            self.outcomes.update(found)
            for name, outcome in found.items():
                print(f"{outcome.state:7} {name} ({outcome.seconds:.1f} s){': ' + outcome.why if outcome.why else ''}")

    def outcomes_of(self, unit, bootstrap):
        home = self.folder / "tests" / f"{unit.number}-{unit.scenario}"
        home.mkdir(parents=True)
        (home / "test.conf").write_text(f"metadata.broker.list={bootstrap}\nbroker.address.family=v4\ntest.timeout.multiplier={self.options.patience}\n")
        began = time.monotonic()
        ended = run_limited([self.source / "tests/test-runner", "-p1", "-Q", "-L", "-s", unit.scenario], home, self.environment(unit), LIMIT_SECONDS)
        return judged(unit, home, ended, time.monotonic() - began)

    def environment(self, unit):
        libraries = f"{self.source}/src:{self.source}/src-cpp"
        kept = {k: v for k, v in os.environ.items() if k != "CI" and not k.startswith("TEST")}
        return {**kept, "LD_LIBRARY_PATH": libraries, "TESTS": unit.number, "TEST_REPORT": "report.json", "TEST_KAFKA_VERSION": "4.0.0.0"}


def run_limited(command, home, environment, seconds):
    """Runs it with its output in `output`; what is not over after the limit is ended, with all that it started."""
    with open(home / "output", "wb") as output:
        process = subprocess.Popen([str(c) for c in command], cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None


def judged(unit, home, ended, seconds):
    """Per test what the program's report says; without one it crashed or was ended, and all its tests failed."""
    output = (home / "output").read_text(errors="replace")
    try:
        report = json.loads((home / "report.json").read_text())["tests"]
    except (OSError, ValueError):
        why = f"ended after {LIMIT_SECONDS} s" if ended is None else f"no report, status {ended}"
        return {name: Outcome("failed", seconds, f"{why}; {first_failure(output)}") for name in unit.names}
    return {name: told(report[name], output, ended) for name in unit.names}


def told(row, output, ended):
    state = {"PASSED": "passed", "SKIPPED": "skipped"}.get(row["state"], "failed")
    if state == "passed":
        leaked = ended != 0 and "still active in librdkafka" in output
        return Outcome("failed", row["duration"], "its threads never ended") if leaked else Outcome(state, row["duration"])
    return Outcome(state, row["duration"], in_summary(row["name"], output) or first_failure(output))


def plain(text):
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[\d*m", "", text)).strip()


def in_summary(name, output):
    """What the table at the end says of it, a line or a few."""
    found = re.search(rf"\|\S* {name} +\|[^|]*\|[^|]*\|((?:.|\n(?!\S*[|#]))*)", output)
    return plain(found.group(1))[:300] if found else ""


def first_failure(output):
    found = re.search(r"### Test .*? failed .*\n(?:.*\n){0,3}|%% .*rror.*", output)
    return plain(found.group() if found else output[-200:])[:300]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", required=True, help="the folder that .ci/install printed")
    parser.add_argument("--logd", help="the logd binary to test")
    parser.add_argument("--kafka", action="store_true", help="Apache Kafka instead, to compare")
    parser.add_argument("--brokers", type=int, choices=[1, 3], default=1)
    parser.add_argument("--scratch", help="where data and logs go")
    parser.add_argument("--workers", type=int, default=4, help="tests that run at a time")
    parser.add_argument("--patience", type=float, default=3, help="what the suite multiplies its own time limits with")
    parser.add_argument("--only", default="", help="tests whose name contains this")
    parser.add_argument("--rotate", action="store_true", help="a third of the tests, another one with every commit")
    parser.add_argument("--third", type=int, help="with --rotate: this third")
    parser.add_argument("--relist", action="store_true", help="write the listing anew from what passed")
    options = parser.parse_args()
    if not options.kafka and not options.logd:
        parser.error("say which broker: --logd BINARY or --kafka")
    options.logd = options.logd and str(pathlib.Path(options.logd).resolve())
    options.scratch = options.scratch or tempfile.mkdtemp(prefix="logd-suite.")
    return options


def main():
    options = arguments()
    suite, began = Suite(options), time.monotonic()
    suite.run()
    print(f"\nwhat each test printed, and the brokers' logs: {suite.folder}")
    if options.relist:
        (listing.HERE / f"{SUITE}.txt").write_text(listing.written(suite.outcomes, suite.listed, options.brokers))
    sys.exit(0 if listing.summary(suite.listed, suite.outcomes, options.brokers, time.monotonic() - began) else 1)


if __name__ == "__main__":
    main()
