"""The history of a run: what every client asked and what it was told, one JSON object a line.

    {"op": 17, "process": "producer-0", "type": "invoke", "f": "send", "time": 123456789, "value": [...]}

`op` pairs an invocation with its completion; `time` is CLOCK_MONOTONIC in ns. `type` of a completion:
  ok    it was done            fail  it was certainly not done            info  nobody knows
An invocation without a completion counts as info. What `value` holds, by `f`:
  send       [["send", topic, partition, offset|null, value, outcome?], ...]   outcome: this record's own, when records differ
  poll       [["poll", topic, partition, offset, value], ...]; the field "rebalanced" lists [topic, partition] lost or gained meanwhile
  assign     [[topic, partition, offset|null], ...]   the whole assignment; null keeps the process's position
  subscribe  [topic, ...]; from here on the process may meet skips and repeats between polls
  commit     [[group, topic, partition, offset], ...]        as asked
  committed  [[group, topic, partition, offset|null], ...]   as fetched; null: none
  offsets    [[topic, partition, start|null, end|null], ...] as ListOffsets said; null: not told
  final      {"complete": bool, ...}: every partition was read from its beginning to the highest offset known
  loss       {"began": ns, "kept": [[topic, partition, offset], ...]}: from `began` until now these went on by force, and what they
             had from `offset` on may be lost; that was accepted
  fault      what was done to the cluster; for people, not judged
A record's values are unique within its (topic, partition). A client that was closed goes on under another process name.

Not here: what makes a history wrong (see `checker`), clients (see `workload`).
"""

import itertools
import json
import threading
import time


class Recorder:
    """Writes a history, from any thread."""

    def __init__(self, path):
        self.file = open(path, "w", buffering=1 << 16)
        self.lock = threading.Lock()
        self.numbers = itertools.count()

    def invoke(self, process, f, value=None):
        op = next(self.numbers)
        self.write(op=op, process=process, type="invoke", f=f, time=time.monotonic_ns(), value=value)
        return op

    def complete(self, op, process, type, f, value=None, **more):
        self.write(op=op, process=process, type=type, f=f, time=time.monotonic_ns(), value=value, **more)

    def note(self, process, f, value):
        self.complete(next(self.numbers), process, "info", f, value)

    def write(self, **event):
        line = json.dumps(event, separators=(",", ":")) + "\n"
        with self.lock:
            if not self.file.closed:
                self.file.write(line)

    def close(self):
        with self.lock:
            self.file.close()


class Op:
    """An invocation and its completion."""

    __slots__ = ("number", "process", "f", "type", "invoked", "completed", "value", "rebalanced")

    def __init__(self, event):
        self.number, self.process, self.f = event["op"], event["process"], event["f"]
        self.type, self.invoked, self.completed = "info", event["time"], None
        self.value, self.rebalanced = event.get("value"), frozenset()

    def finish(self, event):
        self.type, self.completed = event["type"], event["time"]
        if event.get("value") is not None:
            self.value = event["value"]
        self.rebalanced = frozenset((t, p) for t, p in event.get("rebalanced", ()))

    def micro(self, kind):
        """The sends or the polls of this operation: (key, offset, value, outcome)."""
        if self.f not in ("send", "poll", "txn"):
            return
        for entry in self.value or ():
            if entry[0] == kind:
                yield (entry[1], entry[2]), entry[3], entry[4], entry[5] if len(entry) > 5 else self.type

    def __str__(self):
        return f"op {self.number} of {self.process}"


def read(path):
    with open(path) as lines:
        return [json.loads(line) for line in lines]


def operations(history):
    """Operations in the order of their invocations."""
    ops = {}
    for event in history:
        if event["type"] == "invoke":
            ops[event["op"]] = Op(event)
        else:
            # A note has no invocation: it is its own.
            ops.setdefault(event["op"], Op(event)).finish(event)
    return sorted(ops.values(), key=lambda op: (op.invoked, op.number))
