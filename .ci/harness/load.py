"""Writers that remember what was acknowledged, and the reading back that holds the broker to it.

Each writer owns one partition and sends each value once, so every offset can be checked: what was acknowledged is where
the acknowledgement said, no value appears twice, and the offsets have no gap. A value without an answer may be there or not.
"""

import threading
import time

from harness.report import until
from harness.wire import Connection, batch, values_in


class Writer(threading.Thread):
    def __init__(self, broker, topic, partition, size=100):
        super().__init__(daemon=True)
        self.broker, self.topic, self.partition, self.size = broker, topic, partition, size
        self.acked, self.sent, self.codes = {}, 0, {}
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.is_set():
            try:
                with Connection(self.broker.port, timeout=20) as c:
                    while not self.stopping.is_set():
                        self.send_one(c)
            except (OSError, ValueError):
                self.stopping.wait(0.05)

    def send_one(self, c):
        value = (b"%s/%d %d " % (self.topic.encode(), self.partition, self.sent)).ljust(self.size, b".")
        self.sent += 1
        code, offset = c.produce(self.topic, batch([value]), partition=self.partition)
        if code == 0:
            assert offset not in self.acked, f"offset {offset} was acknowledged twice"
            self.acked[offset] = value
        else:
            self.codes[code] = self.codes.get(code, 0) + 1
            self.stopping.wait(0.05)

    def stop(self):
        self.stopping.set()
        self.join(30)


class Load:
    def __init__(self, broker, topics, partitions, size=100):
        with Connection(broker.port) as c:
            for topic in topics:
                code = c.create_topic(topic, partitions)
                assert code == 0, f"creating {topic} answered {code}"
        self.broker = broker
        self.writers = [Writer(broker, t, p, size) for t in topics for p in range(partitions)]

    def __enter__(self):
        for w in self.writers:
            w.start()
        return self

    def __exit__(self, *_):
        for w in self.writers:
            w.stop()

    def acked(self):
        return sum(len(w.acked) for w in self.writers)

    def wait_for(self, more, within=30):
        goal = self.acked() + more
        until(within, lambda: f"{goal} acknowledged, {self.acked()} so far; refusals {[w.codes for w in self.writers]}", lambda: self.acked() >= goal)

    def check(self):
        """Every acknowledged record is at its offset. Returns how many there are."""
        for w in self.writers:
            check_partition(self.broker, w.topic, w.partition, w.acked, w.sent)
        return self.acked()


def read_all(broker, topic, partition=0):
    """(code, {offset: value}) of everything up to the end; the first error ends it."""
    with Connection(broker.port, timeout=30) as c:
        def end_known():
            code, end = c.list_offset(topic, -1, partition)
            return (code, end) if code not in (5, 6, 14, 15) else None
        code, end = until(20, f"{topic}/{partition} has a leader", end_known)
        if code:
            return code, {}
        found, offset = {}, c.list_offset(topic, -2, partition)[1]
        while offset < end:
            code, _, data = c.fetch(topic, offset, partition=partition, max_bytes=4 << 20)
            if code:
                return code, found
            entries = [(o, v) for o, v in values_in(data) if o >= offset]
            assert entries, f"{topic}/{partition} gives nothing at offset {offset}, although its end is {end}"
            found.update(entries)
            offset = entries[-1][0] + 1
        return 0, found


def check_partition(broker, topic, partition, acked, sent=None):
    code, found = read_all(broker, topic, partition)
    assert code == 0, f"{topic}/{partition} answers error {code}"
    place = f"{topic}/{partition}"
    lost = [o for o in acked if o not in found]
    assert not lost, f"{place}: {len(lost)} of {len(acked)} acknowledged records are missing, the first at offset {min(lost)}; the log has {len(found)}"
    changed = [o for o, v in acked.items() if found[o] != v]
    assert not changed, f"{place}: {len(changed)} acknowledged records have other bytes, the first at offset {min(changed)}"
    assert sorted(found) == list(range(len(found))), f"{place}: the offsets have gaps"
    assert len(set(found.values())) == len(found), f"{place}: a value that was sent once is there twice"
    if sent is not None:
        assert len(found) <= sent, f"{place}: more records than were sent"
