"""What only ever rises: a log's end and start as clients are told, and a group's committed offsets.

Promise: only what was over before a question was asked is held against its answer, so operations that overlap are
judged in favour of the broker. A commit of a lower offset, known or possible, excuses a lower answer.

Not here: records (see `checker`).
"""

import bisect
import collections
import math


def log_bounds(ops, verdict):
    """No end below what was acknowledged, shown or told before; no start below what was told before."""
    events = []  # (time, 0 ask / 1 learn, ...): at the same instant the question comes first
    for op in ops:
        if op.completed is None:
            continue
        if op.f == "offsets" and op.type == "ok":
            told = [((t, p), start, end) for t, p, start, end in op.value]
            events.append((op.invoked, 0, op.number, op, told))
            events.append((op.completed, 1, op.number, op, told))
            continue
        learnt = [(key, None, offset + 1) for key, offset, _, outcome in op.micro("send") if outcome == "ok" and offset is not None]
        learnt += [(key, None, offset + 1) for key, offset, _, _ in op.micro("poll")]
        if learnt:
            events.append((op.completed, 1, op.number, op, learnt))
    starts, ends = {}, {}  # key -> (highest so far, op)
    for _, kind, _, op, entries in sorted(events, key=lambda e: e[:3]):
        for key, start, end in entries:
            for name, value, known in (("high-watermark-went-back", end, ends), ("log-start-went-back", start, starts)):
                if value is None:
                    continue
                highest, source = known.get(key, (-1, None))
                if kind == 0 and value < highest:
                    verdict.add(name, key=key, told=value, known_before=highest, by=str(source), op=str(op))
                elif kind == 1 and value > highest:
                    known[key] = (value, op)


def committed_offsets(ops, verdict):
    """A fetched offset is one that was committed, and not older than any known before the question."""
    commits = collections.defaultdict(dict)  # (group, topic, partition) -> {offset: (first invoked, last completed)}
    events = []
    for op in ops:
        if op.f == "commit" and op.type != "fail":
            completed = op.completed if op.type == "ok" else math.inf
            for group, topic, partition, offset in op.value:
                began, ended = commits[group, topic, partition].get(offset, (op.invoked, completed))
                commits[group, topic, partition][offset] = (min(began, op.invoked), max(ended, completed))
            if op.type == "ok":
                events.append((op.completed, 1, op.number, op))
        elif op.f == "committed" and op.type == "ok":
            events += [(op.invoked, 0, op.number, op), (op.completed, 1, op.number, op)]
    known = collections.defaultdict(_Floor)
    for _, kind, _, op in sorted(events, key=lambda e: e[:3]):
        for group, topic, partition, offset in op.value:
            key, value = (group, topic, partition), -1 if offset is None else offset
            if kind == 1:
                known[key].learn(value, op)
                continue
            began, ended = commits[key].get(value, (math.inf, -math.inf))
            if value >= 0 and began > op.completed:
                verdict.add("committed-offset-from-nowhere", key=key, told=offset, op=str(op))
            above = known[key].newest_above(value)
            if above is not None and ended <= above.invoked:
                verdict.add("committed-offset-went-back", key=key, told=offset, known_before=known[key].value_of(above), by=str(above), op=str(op))


class _Floor:
    """What is known of one committed offset: falling values, each with the newest operation that vouches for it."""

    def __init__(self):
        self.negated, self.ops = [], []  # rising, for bisect

    def learn(self, value, op):
        while self.negated and -self.negated[-1] <= value:
            self.negated.pop()
            self.ops.pop()
        self.negated.append(-value)
        self.ops.append(op)

    def newest_above(self, value):
        count = bisect.bisect_left(self.negated, -value)
        return self.ops[count - 1] if count else None

    def value_of(self, op):
        return -self.negated[self.ops.index(op)]
