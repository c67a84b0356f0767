"""Runs another project's suite: workers side by side, each with brokers of its own, and the verdict against the listing.

No test sees another's topics, groups or load, unless the suite insists on one address; those that the listing calls `alone` run after all others, one by one.
A listed test that fails is run once more by itself, and what it said both times is printed.
What a suite is made of (`units`) and how one of them is run (`outcomes_of`) says the suite's own driver.
"""

import argparse
import dataclasses
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import listing
from harness import broker as brokers
from listing import Outcome

LIMIT_SECONDS = 300  # for one unit: the slowest that passes takes a third of it
SURPRISE_SECONDS = 30  # in a run of a third, for a unit that nobody expects to pass: enough to notice most that begin to


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one run of a suite's program takes, and the names of the tests in it."""
    key: str
    names: tuple
    scenario: str = "default"
    only: str = ""  # of the parts of one test, this


@dataclasses.dataclass(frozen=True)
class Scenario:
    """How a suite wants its brokers."""
    auto_create: bool
    partitions: int


class Place:
    """One worker's brokers, or everybody's: one or three per scenario, started when first needed."""

    def __init__(self, options, suite, folder):
        self.options, self.scenarios, self.port, self.folder = options, suite.scenarios, suite.port, folder
        self.running = {}
        self.lock = threading.Lock()

    def broker(self, scenario):
        with self.lock:
            return self.started(scenario)

    def started(self, scenario):
        if scenario not in self.running:
            folder = self.folder / f"brokers-{scenario}"
            folder.mkdir(parents=True)
            how = self.scenarios[scenario]
            setting = "num.partitions" if self.options.kafka else "LOGD_TOPICS__DEFAULT_PARTITIONS"
            where = argparse.Namespace(**{**vars(self.options), "scratch": str(folder)})
            made = brokers.make(where, auto_create=how.auto_create, settings={setting: str(how.partitions)})
            each = getattr(made, "brokers", [made])
            if self.port:
                each[0].port = self.port
            if len(each) > 1:
                for number, one in enumerate(each, 1):
                    one.settings = {**one.settings, "LOGD_NODE__RACK": f"RACK{number}"}
            self.running[scenario] = made.start()
        return self.running[scenario]

    def close(self):
        for broker in self.running.values():
            broker.stop()


class Suite:
    """Subclasses name it, list its units, and run one."""

    name = None
    scenarios = {}
    port = None  # where tests that ask nobody expect the broker: then there is one for all of them

    def __init__(self, options):
        self.options = options
        self.folder = pathlib.Path(options.scratch) / f"{self.name}-{options.brokers}"
        self.folder.mkdir(parents=True)
        built = subprocess.run([HERE / "build", options.tools, self.name], stdout=subprocess.PIPE, text=True, check=True)
        self.source = pathlib.Path(built.stdout.strip())
        self.listed = listing.load(self.name)
        self.outcomes = {}
        self.lock = threading.Lock()

    def units(self):
        raise NotImplementedError

    def outcomes_of(self, unit, broker):
        raise NotImplementedError

    def marked(self, unit, mark):
        return any(mark in self.listed[n].marks for n in unit.names if n in self.listed)

    def seconds(self, unit):
        return sum(self.listed[n].seconds for n in unit.names if n in self.listed)

    def limit(self, unit):
        expected = any(self.options.brokers in self.listed[n].brokers for n in unit.names if n in self.listed)
        return LIMIT_SECONDS if expected or not self.options.rotate else SURPRISE_SECONDS

    def chosen(self):
        every = self.units()
        if gone := set(self.listed) - {name for unit in every for name in unit.names}:
            sys.exit(f"{self.name}: listed, and not in the suite that was built: {', '.join(sorted(gone))}")
        if self.options.only:
            return [u for u in every if any(self.options.only in name for name in u.names)]
        if self.options.rotate:
            third = listing.third_of_commit() if self.options.third is None else self.options.third
            keys = listing.rotated([u.key for u in every], third)
            return [u for u in every if u.key in keys]
        return every

    def run(self):
        # The longest first: the run is over when the last worker is.
        units = sorted(self.chosen(), key=self.seconds, reverse=True)
        self.side_by_side("worker", [u for u in units if not self.marked(u, "alone")], self.options.workers)
        self.side_by_side("alone", [u for u in units if self.marked(u, "alone")], 1)
        # Some give a whole second to what takes half of one. What fails twice, the second time by itself, is broken.
        failed, _ = listing.verdict(self.listed, self.outcomes, self.options.brokers)
        if missed := [u for u in units if not set(failed).isdisjoint(u.names)]:
            print(f"once more, one by one: {', '.join(u.key for u in missed)}", flush=True)
            self.side_by_side("again", missed, 1)

    def side_by_side(self, kind, units, workers):
        waiting = queue.SimpleQueue()
        for unit in units:
            waiting.put(unit)
        count = min(workers, len(units))
        folders = [self.folder / f"{kind}-{n}-of-{workers}" for n in range(count)]
        places = [Place(self.options, self, folder) for folder in folders[:1 if self.port else count]]
        threads = [threading.Thread(target=self.work, args=(waiting, places[n % len(places)])) for n in range(count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for place in places:
                place.close()

    def work(self, waiting, place):
        try:
            while True:
                self.run_one(waiting.get_nowait(), place)
        except queue.Empty:
            pass

    def run_one(self, unit, place):
        began = time.monotonic()
        try:
            found = self.outcomes_of(unit, place.broker(unit.scenario))
        except Exception as problem:  # a broker that does not start is this unit's failure, not the end of the others
            found = {name: Outcome("failed", time.monotonic() - began, f"{type(problem).__name__}: {problem}") for name in unit.names}
        with self.lock:
            self.outcomes.update(found)
            for name, outcome in found.items():
                print(f"{outcome.state:7} {name} ({outcome.seconds:.1f} s){': ' + outcome.why if outcome.why else ''}", flush=True)

    def home(self, unit):
        """A folder of the unit's own, to run in and to leave its output in."""
        home = self.folder / "tests" / unit.key
        while home.exists():
            home = home.with_name(f"{home.name}-again")
        home.mkdir(parents=True)
        return home


def run_limited(command, home, environment, limit):
    """Runs it with its output in `output`; None when it had to be ended, with all that it started."""
    with open(home / "output", "wb") as output:
        process = subprocess.Popen([str(c) for c in command], cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Of a test that crashed as well: its Java tools would live on.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()


def arguments(description, workers):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", required=True, help="the folder that .ci/install printed")
    parser.add_argument("--logd", help="the logd binary to test")
    parser.add_argument("--kafka", action="store_true", help="Apache Kafka instead, to compare")
    parser.add_argument("--brokers", type=int, choices=[1, 3], default=1)
    parser.add_argument("--scratch", help="where data and logs go")
    parser.add_argument("--workers", type=int, default=workers, help="tests that run at a time")
    parser.add_argument("--only", default="", help="tests whose name contains this")
    parser.add_argument("--rotate", action="store_true", help="a third of the tests, another one with every commit")
    parser.add_argument("--third", type=int, help="with --rotate: this third")
    parser.add_argument("--relist", action="store_true", help="write the listing anew from what passed")
    return parser


def run(suite_class, parser):
    """The whole of a driver's `main`; exits with the verdict."""
    options = parser.parse_args()
    if not options.kafka and not options.logd:
        parser.error("say which broker: --logd BINARY or --kafka")
    options.logd = options.logd and str(pathlib.Path(options.logd).resolve())
    options.scratch = str(pathlib.Path(options.scratch or tempfile.mkdtemp(prefix="logd-suite.")).resolve())
    suite, began = suite_class(options), time.monotonic()
    suite.run()
    print(f"\nwhat each test printed, and the brokers' logs: {suite.folder}")
    if options.relist:
        (HERE / f"{suite.name}.txt").write_text(listing.written(suite.outcomes, listing.load(suite.name), options.brokers))
    good = listing.summary(suite.name, suite.listed, suite.outcomes, options.brokers, time.monotonic() - began)
    sys.exit(0 if good else 1)
