"""The integration tests that the crates rdkafka and rskafka ship, against logd, set up as the crates' own CI does it.

`rdkafka.txt` and `rskafka.txt` list what must pass; README.md says why the others do not.
"""

import os
import re
import subprocess
import sys
import threading

import runner
from listing import Outcome
from runner import Scenario, Suite, Unit, run_limited

sys.path.append(str(runner.HERE.parent / "cluster"))
from network import enter_private_network


class Crate(Suite):
    def units(self):
        found = []
        for program in sorted((self.source / "bin").iterdir()):
            told = subprocess.run([program, "--list", "--format", "terse"], stdout=subprocess.PIPE, text=True, check=True)
            names = re.findall(r"^(\S+): test$", told.stdout, re.MULTILINE)
            found += [Unit(f"{program.name}::{name}", (f"{program.name}::{name}",)) for name in names]
        return found

    def outcomes_of(self, unit, broker):
        home = self.home(unit)
        program, test = unit.key.split("::", 1)
        command = [self.source / "bin" / program, "--exact", test, "--nocapture"]
        ended = run_limited(command, home, {**os.environ, **self.environment(broker), "RUST_BACKTRACE": "0"}, self.limit(unit))
        return {unit.key: judged((home / "output").read_text(errors="replace"), ended)}

class Rdkafka(Crate):
    name = "rdkafka"
    port = 9092  # some of the tests have it in their source
    scenarios = {"default": Scenario(auto_create=True, partitions=3)}

    def __init__(self, options):
        super().__init__(options)
        enter_private_network()  # where nobody else has that port; what is built is downloaded before

    def environment(self, broker):
        return {"KAFKA_HOST": broker.bootstrap, "RUST_LOG": "off"}

class Rskafka(Crate):
    name = "rskafka"
    scenarios = {"default": Scenario(auto_create=False, partitions=1)}

    def __init__(self, options):
        super().__init__(options)
        self.fetching, self.fetched = threading.Lock(), threading.Event()

    def outcomes_of(self, unit, broker):
        # The tests fetch a Java client from Maven, into one folder, when the first of them runs: it goes ahead of the others.
        if "java" not in unit.key or self.fetched.is_set():
            return super().outcomes_of(unit, broker)
        with self.fetching:
            found = super().outcomes_of(unit, broker)
            self.fetched.set()
            return found

    def environment(self, broker):
        # The first address is wrong on purpose, as in the crate's own CI: a client must try the next.
        return {"TEST_INTEGRATION": "1", "TEST_BROKER_IMPL": "kafka", "TEST_JAVA_INTEROPT": "1",
                "KAFKA_CONNECT": f"invalid:9093,{broker.bootstrap}", "LD_LIBRARY_PATH": f"{java_home()}/lib/server"}

def java_home():
    told = subprocess.run(["java", "-XshowSettings:properties", "-version"], stderr=subprocess.PIPE, text=True, check=True)
    return re.search(r"java\.home = (.*)", told.stderr).group(1)

def judged(output, ended):
    if ended is None:
        return Outcome("failed", 0, "did not end in time")
    seconds = re.search(r"finished in ([\d.]+)s", output)
    took = float(seconds.group(1)) if seconds else 0
    if ended != 0:
        found = re.search(r"panicked at .*\n(?:.*\n){0,4}", output)
        return Outcome("failed", took, " ".join((found.group() if found else output[-300:]).split())[:400])
    if "1 passed" not in output:
        return Outcome("skipped", took, "its own source says #[ignore]")
    # The crate's tests return early, and successfully, where something that they need is not set.
    early = re.search(r"^[Ss]kipping .*", output, re.MULTILINE)
    return Outcome("skipped", took, early.group()) if early else Outcome("passed", took)

SUITES = {suite.name: suite for suite in (Rdkafka, Rskafka)}

if __name__ == "__main__":
    parser = runner.arguments(__doc__, workers=4)
    parser.add_argument("--crate", choices=SUITES, required=True)
    runner.run(SUITES[parser.parse_args().crate], parser)
