"""Real data, end to end: the files of a public data set, line by line through kcat into a keyed topic of 12 partitions,
read back by one group of three different clients while the broker is killed and restarted twice.

Every line must come out: in order per key, none missing, none invented. The log itself must hold each line exactly once
(the producer is idempotent); a reader may be shown a line again after a kill, as its commit may not have been made.
"""

import collections
import pathlib
import subprocess
import time

from harness import broker as brokers
from harness.agents import Tools, b64, settled
from harness.report import Report, until
from harness.wire import Connection

TOPIC, GROUP, PARTITIONS = "vega", "vega-readers", 12
# The assignor that all three have; kafkajs has one of its own making only.
READERS, STRATEGY = ["confluent-kafka", "aiokafka", "java"], "range"
KEYS_PER_FILE = 8
SECONDS_TO_SEND = 12


def load(tools):
    """Every line of the data set with its key, `file#n`: a file's lines are dealt to a few keys in turn."""
    [folder] = (tools.folder / "venv").glob("lib/python3*/site-packages/vega_datasets/_data")
    lines = []
    for path in sorted(folder.iterdir()):
        for number, line in enumerate(path.read_bytes().splitlines()):
            lines.append((f"{path.name}#{number % KEYS_PER_FILE}".encode(), line))
    # Files are sent in turn, so that every kill interrupts all kinds of lines.
    lines.sort(key=lambda entry: entry[0].rpartition(b"#")[2])
    return lines


def send(broker, lines, scratch):
    """Pipes the lines through kcat at a steady pace, as somebody's `tail -f | kcat` would."""
    log = open(pathlib.Path(scratch) / "client-kcat-real-data.log", "wb")
    kcat = subprocess.Popen(["kcat", "-P", "-b", broker.bootstrap, "-t", TOPIC, "-K", "\t", "-E", "-z", "zstd",
                             "-X", "enable.idempotence=true", "-X", "reconnect.backoff.max.ms=1000", "-X", "linger.ms=5"],
                            stdin=subprocess.PIPE, stderr=log)
    step = 100
    for at in range(0, len(lines), step):
        kcat.stdin.write(b"".join(key + b"\t" + line + b"\n" for key, line in lines[at:at + step]))
        kcat.stdin.flush()
        time.sleep(SECONDS_TO_SEND * step / len(lines))
        yield at + step
    kcat.stdin.close()
    status = kcat.wait(120)
    log.close()
    assert status == 0, f"kcat ended with status {status}"


def per_key(records):
    """{key: [value, ...]} in offset order. `records` is {(partition, offset): (key, value)}."""
    out = collections.defaultdict(list)
    for _, (key, value) in sorted(records.items()):
        out[key].append(value)
    return out


def shown_in_order(member):
    """A member may be shown a record again after a kill or a rebalance, but never a new one before an older one."""
    highest = {}
    for partition, offset, _, _ in member.records:
        seen = highest.setdefault(partition, (-1, set()))
        if offset not in seen[1]:
            assert offset > seen[0], f"{member.label} was shown {partition}@{offset} for the first time after {partition}@{seen[0]}"
            seen[1].add(offset)
            highest[partition] = (offset, seen[1])


def main():
    options = brokers.arguments(__doc__)
    report = Report()
    tools = Tools(options.tools, options.scratch)
    tools.compile_java()
    lines = load(tools)
    broker = brokers.make(options).start()
    members = []
    try:
        with report.test(f"real-data: {len(lines)} lines through kcat and a group of three, broker killed twice"):
            run(broker, tools, lines, members, options.scratch)
    finally:
        for member in members:
            if member.process.poll() is None:
                member.kill()
        broker.stop()
    report.finish(broker)


def run(broker, tools, lines, members, scratch):
    with Connection(broker.port) as c:
        assert c.create_topic(TOPIC, PARTITIONS) == 0
    members += [tools.member(name, broker.bootstrap, GROUP, TOPIC, STRATEGY, f"real-data-{name}") for name in READERS]
    settled(members, PARTITIONS, 40, "three different clients share the topic")

    kills = [len(lines) // 3, 2 * len(lines) // 3]
    for sent in send(broker, lines, scratch):
        if kills and sent >= kills[0]:
            kills.pop(0)
            broker.restart_after_kill()
    assert not kills

    expected = collections.defaultdict(list)
    for key, line in lines:
        expected[b64(key)].append(b64(line))

    def shown():
        return {(p, o): (k, v) for m in list(members) for p, o, k, v in list(m.records)}

    until(60, lambda: f"all lines are read; {len(shown())} of {len(lines)}", lambda: len(shown()) >= len(lines), pause=0.5)
    for member in members:
        member.stop()
        assert member.records, f"{member.label} took no part"
        shown_in_order(member)

    records = {}
    for member in members:
        for p, o, k, v in member.records:
            assert records.setdefault((p, o), (k, v)) == (k, v), f"two readers were shown different records at {p}@{o}"
    got = per_key(records)
    assert got.keys() == expected.keys(), f"{len(expected.keys() - got.keys())} keys are missing, {len(got.keys() - expected.keys())} are new"
    for key, values in expected.items():
        assert got[key] == values, f"the lines of a key differ: {len(got[key])} instead of {len(values)}, or their order"
    shown_times = sum(len(m.records) for m in members)
    print(f"     {len(records)} records, {len(expected)} keys, {shown_times - len(records)} shown more than once over {broker.starts - 1} kills; "
          + ", ".join(f"{m.name} {len(m.records)}" for m in members))


if __name__ == "__main__":
    main()
