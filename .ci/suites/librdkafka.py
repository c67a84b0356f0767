"""librdkafka's own test suite against logd.

Its quick mode leaves out most of what is inside the tests and still calls them passed, so it is not used. A test that needs
another broker configuration (the suite says: scenario) gets such a broker. Tests of many independent parts, some about
what logd does not have or very long together, are run part by part, each under a name of its own.
`librdkafka.txt` lists what must pass; README.md says why the others do not.
"""

import collections
import json
import os
import re

import runner
from listing import Outcome
from runner import Scenario, Suite, Unit, run_limited

# Some tests call Kafka's own programs by these names.
KAFKA_PROGRAMS = {
    "kafka-topics.sh": "org.apache.kafka.tools.TopicCommand",
    "kafka-configs.sh": "kafka.admin.ConfigCommand",
    "kafka-acls.sh": "org.apache.kafka.tools.AclCommand",
}

FUNCTIONS = "functions"
PARTS = {"0061": ["lag without transactions", "lag with transactions"], "0081": FUNCTIONS, "0113": FUNCTIONS, "0137": FUNCTIONS}
# A function that takes five minutes, by what it is called with.
CASES = {"u_multiple_subscription_changes:": [f"use_rebalance_cb: {cb}, subscription_variation: {v}" for cb in (0, 1) for v in (0, 1, 2)]}
# They talk to a broker that the suite simulates.
MOCKED = {"0139", "0150"}


def declared(source):
    """The tests that need a broker, as the suite's program declares them, grouped as it can run them: by number."""
    units = collections.defaultdict(list)
    table = source[source.index("struct test tests[]"):]
    for entry in re.split(r"\n\s*_TEST\(", table)[1:]:
        name = entry.split(",")[0].strip()
        if "TEST_F_LOCAL" in entry or "TEST_F_MANUAL" in entry or name[:4] in MOCKED:
            continue
        scenario = re.search(r'\.scenario\s*=\s*"(\w+)', entry)
        units[name[:4], scenario.group(1) if scenario else "default"].append(name)
    return [Unit(f"{number}-{scenario}", tuple(names), scenario) for (number, scenario), names in units.items()]


def in_parts(unit, tests):
    """The unit, or one for each of its parts: a function, or a case that its title tells."""
    titles = PARTS.get(unit.key[:4])
    if titles is None:
        return [unit]
    if titles == FUNCTIONS:
        source = next(tests.glob(f"{unit.key[:4]}-*.c*")).read_text()
        bodies = re.split(r"^(?:static )?void\s+(?=\w+\()", source, flags=re.MULTILINE)[1:]
        functions = [re.match(r"\w+", body).group() for body in bodies if "SUB_TEST" in body]
        # The same file has a test of the simulated broker, with parts of its own.
        local = re.search(r"\nint main_\w+_local\(.*?\n}", source, re.DOTALL)
        titles = [f"{name}:" for name in functions if not local or f"{name}(" not in local.group()]
    titles = [case for title in titles for case in CASES.get(title, [title])]
    [name] = unit.names
    short = [re.sub(r"\W+", "-", title.removeprefix("do_test_")).strip("-") for title in titles]
    return [Unit(f"{unit.key}-{s}", (f"{name}/{s}",), unit.scenario, title) for s, title in zip(short, titles)]


def kafka_programs(folder, jars):
    """A folder like an unpacked Kafka, as far as the tests look into it."""
    (folder / "bin").mkdir(parents=True)
    for name, main_class in KAFKA_PROGRAMS.items():
        program = folder / "bin" / name
        program.write_text(f"#!/bin/sh\nexec java -Xmx256m -XX:TieredStopAtLevel=1 -cp '{jars}/*' {main_class} \"$@\"\n")
        program.chmod(0o755)
    return folder


class Librdkafka(Suite):
    name = "librdkafka"
    # As the suite sets up its own clusters.
    scenarios = {"default": Scenario(auto_create=True, partitions=4), "noautocreate": Scenario(auto_create=False, partitions=4)}

    def __init__(self, options):
        super().__init__(options)
        (self.folder / "tests").mkdir()
        (self.folder / "tests/src").symlink_to(self.source / "src")  # a test reads ../src/statistics_schema.json
        self.kafka_path = kafka_programs(self.folder / "kafka", f"{options.tools}/java")

    def units(self):
        tests = self.source / "tests"
        whole = declared((tests / "test.c").read_text())
        return [part for unit in whole for part in in_parts(unit, tests)]

    def outcomes_of(self, unit, broker):
        home = self.home(unit)
        (home / "test.conf").write_text(f"metadata.broker.list={broker.bootstrap}\nbroker.address.family=v4\ntest.timeout.multiplier={self.options.patience}\n")
        program = [self.source / "tests/test-runner", "-p1", "-L", "-s", unit.scenario]
        return judged(unit, home, run_limited(program, home, self.environment(unit, broker), self.limit(unit)))

    def environment(self, unit, broker):
        kept = {k: v for k, v in os.environ.items() if k != "CI" and not k.startswith("TEST")}
        if unit.only:
            kept["SUBTESTS"] = unit.only
        return {**kept, "LD_LIBRARY_PATH": f"{self.source}/src:{self.source}/src-cpp", "TESTS": unit.key[:4], "TEST_REPORT": "report.json",
                "TEST_KAFKA_VERSION": "4.0.0.0", "KAFKA_PATH": str(self.kafka_path), "BROKERS": broker.bootstrap}


def judged(unit, home, ended):
    """Per test what the program's report says; without one it crashed or was ended, and all its tests failed."""
    output = (home / "output").read_text(errors="replace")
    try:
        report = json.loads((home / "report.json").read_text())["tests"]
    except (OSError, ValueError):
        why = "did not end in time" if ended is None else f"no report, status {ended}"
        return {name: Outcome("failed", 0, f"{why}; {first_failure(output)}") for name in unit.names}
    rows = {name: report[name.split("/")[0]] for name in unit.names}
    leaked = "still active in librdkafka" in output and all(row["state"] != "FAILED" for row in rows.values())
    found = {name: told(row, output, leaked) for name, row in rows.items()}
    if unit.only and not re.search(r"\[ \w+:\d+.*: PASS", output):
        return {name: Outcome("skipped", o.seconds, "no such part was run") if o.state == "passed" else o for name, o in found.items()}
    return found


def told(row, output, leaked):
    """A test that failed leaves threads behind, which is no failure of its neighbours; one that passed must not."""
    state = {"PASSED": "passed", "SKIPPED": "skipped"}.get(row["state"], "failed")
    if state == "passed":
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


if __name__ == "__main__":
    parser = runner.arguments(__doc__, workers=6)
    parser.add_argument("--patience", type=float, default=3, help="what the suite multiplies its own time limits with")
    runner.run(Librdkafka, parser)
