"""Dashboards and alerts against a live broker: every metric and label they name is exposed, every panel's query has an
answer in a real Prometheus, and no alert fires on a healthy broker. promtool runs the alerts' own tests.
"""

import json
import pathlib
import re
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request

from harness import broker as brokers, promql
from harness.report import Report, until
from harness.wire import Connection, batch

ROOT = pathlib.Path(__file__).resolve().parent.parent
GRAFANA = ROOT / "grafana"
ALERTS = GRAFANA / "alerts.yaml"
# What Prometheus itself adds.
OF_PROMETHEUS = {"up": set()}
TARGET_LABELS = {"job", "instance"}
# More than the traffic below needs at a time; one connection beyond it is refused, and counted.
CONNECTIONS_MAX = 10


# --- what the files ask for ----------------------------------------------------------------------------------------

def dashboards():
    return {path.name: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def with_values(expression):
    """As Grafana sends it when everything is selected."""
    values = {"$__rate_interval": "1m", "$__range": "1h", "$__interval": "15s"}
    for name, value in values.items():
        expression = expression.replace(name, value)
    return re.sub(r"\$\{?\w+\}?", ".*", expression)


def queries():
    """`(where, expression)` of every panel and variable."""
    for file, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield f"{file}: {panel['title']} {target['refId']}", with_values(target["expr"])
        for variable in dashboard["templating"]["list"]:
            asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable.get("definition", ""))
            if asked:
                yield f"{file}: variable {variable['name']}", f"count by ({asked[2]}) ({with_values(asked[1])})"


def check_layout(dashboard):
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)), "two panels have one id"
    taken = {}
    for panel in dashboard["panels"]:
        p = panel["gridPos"]
        for cell in ((x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])):
            assert cell not in taken, f"{panel['title']!r} lies over {taken[cell]!r}"
            assert cell[0] < 24, f"{panel['title']!r} is cut off"
            taken[cell] = panel["title"]
        assert panel.get("datasource", {}).get("uid", "${datasource}") == "${datasource}", f"{panel['title']!r} has a source of its own"


def check_shown(exposed):
    """What nobody can see need not be counted."""
    asked = [expression for _, expression in queries()] + [rule for rule in re.findall(r"expr: *(.*)", ALERTS.read_text())]
    shown = {name for expression in asked for name in re.findall(r"\w+", expression)}
    hidden = {name for name in exposed if name.startswith("logd_")} - shown
    # Of a histogram one of its series is enough.
    hidden = {name for name in hidden if not any(re.sub("_(bucket|sum|count)$", "", name) + end in shown for end in ("_bucket", "_sum", "_count"))}
    assert not hidden, f"neither a panel nor an alert reads {sorted(hidden)}"


def check_names(where, expression, exposed):
    known = {**exposed, **OF_PROMETHEUS}
    found, grouped = promql.reads(expression)
    assert found, f"{where} reads no metric"
    of_all = set(TARGET_LABELS)
    for name, labels in found:
        assert name in known, f"{where} reads {name}, which is not exposed"
        missing = labels - known[name] - TARGET_LABELS
        assert not missing, f"{where} selects {name} by {sorted(missing)}; it has {sorted(known[name])}"
        of_all |= known[name]
    assert grouped <= of_all, f"{where} groups by {sorted(grouped - of_all)}"


# --- a broker with something to count ------------------------------------------------------------------------------

class Traffic:
    """Produces, fetches, waits and errs until stopped, so that every series has samples."""

    def __init__(self, broker):
        self.broker = broker
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        with Connection(self.broker.port) as c:
            assert c.create_topic("seen") == 0
            until(30, "an offset is committed", lambda: c.commit_offset("watched", "seen", 0) == 0)
            assert c.create_topic("packed", configs=[("compression.type", "gzip")]) == 0
        self.refused()
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join(30)

    def run(self):
        with Connection(self.broker.port) as c:
            while not self.stopping.wait(0.05):
                c.produce("seen", batch([b"value"] * 10))
                c.produce("packed", batch([b"value"] * 10))
                self.misunderstood()
                c.fetch("seen", 0)
                c.fetch("seen", c.list_offset("seen")[1], wait_ms=20)
                assert c.create_topic("seen") != 0

    def misunderstood(self):
        with Connection(self.broker.port) as stranger:
            stranger.send(b"GET / HTTP/1.1\r\n\r\n")
            assert stranger.closes()

    def refused(self):
        sockets = [socket.create_connection((brokers.HOST, self.broker.port)) for _ in range(CONNECTIONS_MAX + 2)]
        time.sleep(0.2)
        for s in sockets:
            s.close()


def admin_address(broker):
    return until(10, "the broker says where its admin port is", lambda: re.search(r"http://(\S+) \(/livez", broker.log_text()))[1]


def settled_names(admin, within=20):
    """What is exposed as soon as all that is asked for is, or at the end: some is sampled every few seconds only."""
    wanted = {name for _, expression in queries() for name, _ in promql.reads(expression)[0]} - OF_PROMETHEUS.keys()
    deadline = time.monotonic() + within
    while True:
        exposed = promql.exposed(get(f"http://{admin}/metrics"))
        if wanted <= exposed.keys() or time.monotonic() > deadline:
            return exposed
        time.sleep(0.2)


def get(url):
    # Not by a proxy that the environment may name.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
        return answer.read().decode()


# --- a Prometheus that watches it ----------------------------------------------------------------------------------

class Prometheus:
    def __init__(self, binaries, home, target):
        self.home, self.binaries = home, binaries
        self.url = f"http://{brokers.HOST}:{brokers.free_port()}"
        self.config = home / "prometheus.yml"
        self.config.write_text(json.dumps({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [{"job_name": "logd", "static_configs": [{"targets": [target]}]}],
        }))

    def __enter__(self):
        self.log = open(self.home / "prometheus.log", "wb")
        self.process = subprocess.Popen(
            [self.binaries / "prometheus", f"--config.file={self.config}", f"--storage.tsdb.path={self.home / 'tsdb'}",
             f"--web.listen-address={self.url.removeprefix('http://')}"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        until(30, "Prometheus is ready", self.ready)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()

    def ready(self):
        assert self.process.poll() is None, f"Prometheus ended: see {self.home / 'prometheus.log'}"
        try:
            return "Ready" in get(f"{self.url}/-/ready")
        except OSError:
            return False

    def ask(self, path, **parameters):
        answer = json.loads(get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression):
        try:
            return self.ask("query", query=expression)["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from None

    def rules(self):
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]


def promtool(binaries, *arguments):
    done = subprocess.run([binaries / "promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"promtool {' '.join(map(str, arguments))}: {done.stdout[-1000:]}{done.stderr[-1000:]}"


# --- the tests -----------------------------------------------------------------------------------------------------

def check_answers(report, prometheus):
    """A panel that says nothing about a broker with traffic would never say anything."""
    for where, expression in queries():
        with report.test(f"dashboards/answer/{where}"):
            until(20, lambda: f"there is an answer to {expression}", lambda: prometheus.query(expression), pause=0.5)


def check_alerts(report, prometheus, exposed):
    rules = until(20, "all alerts were evaluated", lambda: (r := prometheus.rules()) and all(x["health"] != "unknown" for x in r) and r)
    for rule in rules:
        with report.test(f"dashboards/alert/{rule['name']}"):
            check_names(rule["name"], rule["query"], exposed)
            assert rule["health"] == "ok", rule["lastError"]
            # Whatever the broker does: disks of test machines may be fuller than anybody would like.
            if not rule["name"].startswith("LogdDisk"):
                assert rule["alerts"] == [], f"it is about to fire on a healthy broker: {rule['alerts']}"


def main():
    options = brokers.arguments(__doc__)
    report = Report()
    binaries = pathlib.Path(options.tools) / "prometheus/usr/bin"
    with report.test("dashboards/promtool"):
        promtool(binaries, "check", "rules", ALERTS)
        promtool(binaries, "test", "rules", GRAFANA / "alerts_test.yaml")
        promtool(binaries, "check", "config", "--syntax-only", ROOT / "docker/prometheus.yml")
    for file, dashboard in dashboards().items():
        with report.test(f"dashboards/layout/{file}"):
            check_layout(dashboard)
    broker = brokers.make(options, settings={"LOGD_LIMITS__MAX_CONNECTIONS_PER_ADDRESS": str(CONNECTIONS_MAX)}).start()
    try:
        admin = admin_address(broker)
        with Traffic(broker), Prometheus(binaries, broker.home, admin) as prometheus:
            until(10, "the traffic is counted", lambda: "refused_total{" in get(f"http://{admin}/metrics"))
            exposed = settled_names(admin)
            with report.test("dashboards/shown"):
                check_shown(exposed)
            for where, expression in queries():
                with report.test(f"dashboards/names/{where}"):
                    check_names(where, expression, exposed)
            check_answers(report, prometheus)
            check_alerts(report, prometheus, exposed)
    finally:
        broker.stop()
    report.finish(broker)


if __name__ == "__main__":
    main()
