"""What ten thousand groups cost a broker: seconds to make, list, describe, find again after SIGKILL and delete them, and memory.

Not a stage of the gate: benches/RESULTS.md has its figures. broker/tests/many_groups.rs shows that all of it is right.
"""

import struct
import time

from harness import broker as brokers
from harness.report import until
from harness.wire import Connection, array, string

OFFSET_COMMIT, FIND_COORDINATOR, DESCRIBE_GROUPS, LIST_GROUPS, DELETE_GROUPS = 8, 10, 15, 16, 42
GROUPS = [f"group-{index:05}" for index in range(10_000)]
# Sent before the first answer of them is read: few enough that both sides' sockets hold them.
WINDOW = 500


def commit(c):
    for at in range(0, len(GROUPS), WINDOW):
        for group in GROUPS[at:at + WINDOW]:
            partition = struct.pack(">iq", 0, 1) + string("a note")
            c.request(OFFSET_COMMIT, 2, string(group) + struct.pack(">i", -1) + string("") + struct.pack(">q", -1) + array([string("topic") + array([partition])]))
        for _ in GROUPS[at:at + WINDOW]:
            [(_, [(_, code)])] = (r := c.answer()).array(lambda: (r.string(), r.array(lambda: (r.number("i"), r.number("h")))))
            assert code == 0, f"a commit answered error {code}"


def listed(c):
    r = c.call_raw(LIST_GROUPS, 0, b"")
    code = r.number("h")
    names = {name for name, _ in r.array(lambda: (r.string(), r.string()))}
    return code == 0 and names >= set(GROUPS)


def described(c):
    r = c.call_raw(DESCRIBE_GROUPS, 0, array([string(g) for g in GROUPS]))
    rows = r.array(lambda: (r.number("h"), r.string(), r.string(), r.string(), r.string(), r.number("i")))
    assert sorted((code, name, state) for code, name, state, *_ in rows) == [(0, name, "Empty") for name in GROUPS], rows[:3]


def deleted(c):
    r = c.call_raw(DELETE_GROUPS, 0, array([string(g) for g in GROUPS]))
    r.number("i")
    assert sorted(r.array(lambda: (r.string(), r.number("h")))) == [(name, 0) for name in GROUPS]


def coordinator_found(c):
    return c.call_raw(FIND_COORDINATOR, 0, string("any")).number("h") == 0


def timed(what, action):
    started = time.monotonic()
    action()
    print(f"{what:40} {time.monotonic() - started:8.2f} s")


def main():
    options = brokers.arguments(__doc__)
    broker = brokers.make(options).start()
    try:
        with Connection(broker.port, timeout=120) as c:
            assert c.create_topic("topic") == 0
            until(30, "there is a coordinator", lambda: coordinator_found(c))
            time.sleep(5)
            before = broker.memory_mb()
            timed("10,000 groups commit one after another", lambda: commit(c))
            print(f"{'anonymous memory before, after':40} {before:8.1f}, {broker.memory_mb():.1f} MB")
            assert listed(c)
            timed("all are listed", lambda: listed(c))
            timed("all are described in one request", lambda: described(c))
        broker.kill()

        def back():
            broker.start()
            with Connection(broker.port, timeout=120) as c:
                until(120, "all groups are listed", lambda: listed(c))

        timed("all are listed after SIGKILL and a start", back)
        print(f"{'anonymous memory then':40} {broker.memory_mb():8.1f} MB")
        with Connection(broker.port, timeout=120) as c:
            timed("all are deleted in one request", lambda: deleted(c))
    finally:
        broker.stop()


if __name__ == "__main__":
    main()
