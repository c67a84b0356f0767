"""Compacted topics, one for each client: it writes, and when what is superseded has gone it reads what is left.

Invariant: the records, and what is left of them, are the same in every run; every record that is superseded lies in a segment
that has ended, so all of them have to go.
"""

import random

from harness.agents import CODECS, INVALID_RECORD, b64, refused
from harness.report import until
from harness.wire import Connection, batches_in

KEYS = 40
VALUE_BYTES = 600
SETTINGS = {"logd": {"LOGD_STORAGE__COMPACTION_CHECK_INTERVAL_MS": "200"}, "kafka": {"log.cleaner.backoff.ms": "200"}}
# The smallest that each takes, and what no such segment has room for beside anything else.
SEGMENT_BYTES = {"logd": 16 << 10, "kafka": 1 << 20}
LAST_BYTES = {"logd": 17 << 10, "kafka": 990_000}


class CompactedTopics:
    """The part of the matrix (matrix.py) that is about them."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.written = {}  # topic -> records in the order sent, which is that of their offsets

    def by(self, name):
        """In another process of the client, so that nothing waits while kafkajs joins one group after another."""
        client = self.matrix.tools.agent(name, self.matrix.broker.bootstrap)
        try:
            self.write(name, client)
            self.read(name, client)
        finally:
            client.close()

    def write(self, name, client):
        """A compacted topic takes records with keys and refuses one without; the refused one takes no offset."""
        with self.matrix.test(f"compacted/{name} writes"):
            topic = f"compacted.{name}"
            self.matrix.create(topic, 1, topic_settings(self.matrix.kind))
            self.matrix.let_kafka_catch_up()
            written = []
            for codec, records in writes(name):
                acks = client.produce(topic, codec, records)
                assert acks in (None, [[0, len(written) + n] for n in range(len(records))]), f"acknowledged at {acks}, behind {len(written)}"
                written += records
            problem = refused(lambda: client.produce(topic, "none", [{"p": 0, "k": None, "v": b64(b"keyless")}]), "a record without a key")
            assert INVALID_RECORD[name] in problem, problem
            written.append(last(name, self.matrix.kind))
            client.produce(topic, "none", written[-1:])
            assert self.matrix.ends(topic, 1) == [len(written)]
            self.written[topic] = written

    def read(self, name, client):
        """Once all that is superseded has gone: what stays is at its offset, from the start and from holes, and the end stays."""
        with self.matrix.test(f"compacted/{name} reads"):
            topic = f"compacted.{name}"
            assert topic in self.written, f"{topic} could not be written"
            stay = self.shrunk(topic)
            for start in [None, *starts_in_holes(stay)]:
                behind = [record for record in stay if record[0] >= (start or 0)]
                got = [(r["o"], r["k"], r["v"]) for r in client.read({topic: {"0": len(behind)}}, start=start)]
                same_left(f"{topic} from {start}", behind, got)
            assert self.matrix.ends(topic, 1) == [len(self.written[topic])], "the end moved"

    def shrunk(self, topic):
        """Waits until the leader's log has what stays and nothing else, and returns that."""
        written, stay = self.written[topic], left(self.written[topic])

        def stored():
            try:
                [port] = self.matrix.leaders(topic, 1)
                if port is None:
                    return None
                with Connection(port) as leader:
                    return records_stored(leader, topic, len(written))
            except OSError:
                return None

        until(30, lambda: f"{topic}'s {len(written)} records are {len(stay)}; there are {stored()}", lambda: stored() == len(stay))
        return stay

    def survive_a_kill(self):
        """After SIGKILL the same records; where there are more brokers, from others that lead now."""
        self.matrix.broker.restart_after_kill()
        with self.matrix.test("compacted/after SIGKILL"):
            stay = {topic: self.shrunk(topic) for topic in self.written}
            got = self.matrix.clients["java"].read({topic: {"0": len(records)} for topic, records in stay.items()})
            for topic, records in stay.items():
                same_left(topic, records, [(r["o"], r["k"], r["v"]) for r in got if r["t"] == topic])


def topic_settings(kind):
    return [("cleanup.policy", "compact"), ("segment.bytes", str(SEGMENT_BYTES[kind])), ("min.cleanable.dirty.ratio", "0")]


def writes(name):
    """What is produced, call by call: [(codec, records)]. A key is written in one to five rounds; every fourth ends with a
    tombstone. One key more is overwritten often between the rounds, by itself, so that whole batches go."""
    rng = random.Random(f"compacted {name}")
    calls = []
    for turn, codec in enumerate(CODECS):
        keys = [k for k in range(KEYS) if (k + 1) % len(CODECS) >= turn]
        calls.append((codec, [record(rng, b"key-%02d" % k, deleted=turn == (k + 1) % len(CODECS) and k % 4 == 3) for k in keys]))
        if turn in (1, 3):
            calls.append((codec, [record(rng, b"often") for _ in range(10)]))
    return calls


def record(rng, key, deleted=False, size=VALUE_BYTES):
    return {"p": 0, "k": b64(key), "v": None if deleted else b64(rng.randbytes(size // 2).hex().encode())}


def last(name, kind):
    """The newest records stay as they are; this one is alone in its segment, and so all before it are old."""
    return record(random.Random(f"last {name}"), b"last", size=LAST_BYTES[kind])


def left(written):
    """Of the records in the order written, those that stay: [(offset, key, value)]."""
    newest = {r["k"]: offset for offset, r in enumerate(written)}
    return [(offset, r["k"], r["v"]) for offset, r in enumerate(written) if newest[r["k"]] == offset]


def starts_in_holes(stay):
    """Offsets at which nothing is any more: in the first hole, in one in the middle, and in the last."""
    offsets = [-1] + [offset for offset, _, _ in stay]
    holes = [(before + 1 + after) // 2 for before, after in zip(offsets, offsets[1:]) if after - before > 1]
    return [holes[0], holes[len(holes) // 2], holes[-1]]


def same_left(place, stay, got):
    """What is left of a compacted topic is what was read, record by record."""
    assert [o for o, _, _ in got] == [o for o, _, _ in stay], f"{place}: offsets {[o for o, _, _ in got]} instead of {[o for o, _, _ in stay]}"
    wrong = [have[0] for want, have in zip(stay, got) if want != have]
    assert not wrong, f"{place}: other keys or values at {wrong}"


def records_stored(leader, topic, end):
    """How many records the leader's log still has, as the batches' headers say; none if it does not answer up to its end."""
    at, count = 0, 0
    while at < end:
        code, _, data = leader.fetch(topic, at, wait_ms=0)
        batches = batches_in(data)
        if code or not batches:
            return None
        count, at = count + sum(n for _, _, n in batches), batches[-1][1]
    return count
