"""Judges a history: nothing acknowledged is lost, nothing is shown twice, in another order, or that was never written.

Promise: pure, linear in the history, and every anomaly carries the records and operations that show it. The algorithm
is that of Jepsen's Kafka workload without its transactions: logs from all that was seen, a version order per partition,
then one check after another. `history` describes the input, README.md says what each anomaly means.

Not here: cycles between transactions (there are no transactions yet); replicas' files (see `replicas`).
"""

import collections
import sys

import history as histories
import losses
import orders
import watermarks

# Kafka lets other producers' records come between those of one operation.
ALLOWED = {"int-send-skip"}
SHOWN_MAX = 10


class Verdict:
    def __init__(self):
        self.anomalies = collections.defaultdict(list)
        self.counts = {}

    def add(self, name, **details):
        self.anomalies[name].append(details)

    @property
    def bad(self):
        return {name: found for name, found in self.anomalies.items() if name not in ALLOWED}

    def summary(self):
        return ", ".join(f"{name} {len(found)}" for name, found in sorted(self.bad.items())) or "no anomaly"

    def report(self):
        lines = [f"{name}: {len(found)}" + "".join(f"\n    {d}" for d in found[:SHOWN_MAX]) for name, found in sorted(self.anomalies.items())]
        return "\n".join([*lines, *(f"{name} = {value}" for name, value in self.counts.items())])


class Records:
    """Who wrote what, who saw what, and the version order of every key; a key is (topic, partition)."""

    def __init__(self, ops):
        self.writers = {}  # (key, value) -> (outcome, op)
        self.seen = set()  # (key, value) of ok polls
        self.seen_by_anyone = {}  # (key, value) -> when first
        self.log = collections.defaultdict(lambda: collections.defaultdict(set))
        for op in ops:
            for key, offset, value, outcome in op.micro("send"):
                if (key, value) in self.writers:
                    raise ValueError(f"{op} sends {value} to {key} again: the workload itself is broken")
                self.writers[key, value] = (outcome, op)
            for key, offset, value, _ in op.micro("poll"):
                # Polls must show safe data whatever became of the operation.
                self.log[key][offset].add(value)
                if op.type == "ok":
                    self.seen.add((key, value))
                when = op.completed if op.completed is not None else op.invoked
                self.seen_by_anyone[key, value] = min(when, self.seen_by_anyone.get((key, value), when))
        for op in ops:
            for key, offset, value, outcome in op.micro("send"):
                if offset is not None and self.visible(key, value):
                    self.log[key][offset].add(value)
        self.rank, self.first, self.last = {}, {}, {}
        for key, offsets in self.log.items():
            for index, offset in enumerate(sorted(offsets)):
                self.rank[key, offset] = index
                for value in offsets[offset]:
                    self.first.setdefault((key, value), index)
                    self.last[key, value] = index

    def visible(self, key, value):
        outcome, _ = self.writers[key, value]
        return outcome == "ok" or outcome == "info" and (key, value) in self.seen

    def index(self, key, offset, value):
        """Where a record stands in its key's version order, or None."""
        known = self.rank.get((key, offset)) if offset is not None else None
        return known if known is not None else self.first.get((key, value))


def check(history):
    """A `Verdict` on a list of events."""
    ops = histories.operations(history)
    no_longer_promised = losses.forget(ops)
    records, verdict = Records(ops), Verdict()
    offsets_of_one_value(records, verdict)
    reads_of_what_was_not_written(ops, records, verdict)
    lost_writes(records, verdict)
    unseen(ops, records, verdict)
    orders.within_operations(ops, records, verdict)
    orders.between_operations(ops, records, verdict)
    watermarks.log_bounds(ops, verdict)
    watermarks.committed_offsets(ops, verdict)
    verdict.counts.update(counts(ops, records))
    if any(op.f == "loss" for op in ops):
        verdict.counts["acknowledged records that an accepted loss covers"] = no_longer_promised
    return verdict


def offsets_of_one_value(records, verdict):
    for key, offsets in records.log.items():
        places = collections.defaultdict(list)
        for offset, values in offsets.items():
            if len(values) > 1:
                verdict.add("inconsistent-offsets", key=key, offset=offset, values=sorted(values, key=str))
            for value in values:
                places[value].append(offset)
        for value, at in places.items():
            if len(at) > 1:
                verdict.add("duplicate", key=key, value=value, offsets=sorted(at))


def reads_of_what_was_not_written(ops, records, verdict):
    for op in ops:
        own = {(key, value) for key, _, value, _ in op.micro("send")}
        for key, offset, value, _ in op.micro("poll"):
            writer = records.writers.get((key, value))
            if writer is None:
                verdict.add("phantom-read", key=key, offset=offset, value=value, reader=str(op))
            elif writer[0] == "fail" and op.type == "ok":
                verdict.add("G1a", key=key, offset=offset, value=value, writer=str(writer[1]), reader=str(op))
            if (key, value) in own:
                verdict.add("precommitted-read", key=key, value=value, reader=str(op))


def lost_writes(records, verdict):
    """What lies below something that was read, and was itself read by nobody."""
    bound = {}
    for key, value in records.seen_by_anyone:
        first = records.first[key, value]
        bound[key] = max(first, bound.get(key, first))
    for (key, value), last in records.last.items():
        must_read = last <= bound.get(key, -1) and (key, value) not in records.seen_by_anyone
        # Beyond the bound, silence proves nothing; a writer nobody can vouch for owes nothing.
        if must_read and (key, value) in records.writers and records.visible(key, value):
            verdict.add("lost-write", key=key, value=value, index=last, writer=str(records.writers[key, value][1]))


def unseen(ops, records, verdict):
    """Acknowledged and never shown to anybody: the loss of a log's tail, which no order can reveal."""
    finals = [op for op in ops if op.f == "final"]
    complete = bool(finals) and all((op.value or {}).get("complete") for op in finals)
    if finals and not complete:
        verdict.add("final-read-incomplete", final=[op.value for op in finals])
    missing, curve = [], collections.Counter()
    for (key, value), (outcome, op) in records.writers.items():
        if outcome != "ok":
            continue
        when = records.seen_by_anyone.get((key, value))
        acknowledged = op.completed if op.completed is not None else op.invoked
        if when is None:
            missing.append((key, value, op))
        if when is None or when > acknowledged:
            curve[acknowledged // 10**9] += 1
            if when is not None:
                curve[when // 10**9] -= 1
    if finals:
        for key, value, op in missing:
            verdict.add("unseen", key=key, value=value, writer=str(op))
    level, levels = 0, []
    for second in sorted(curve):
        level += curve[second]
        levels.append(level)
    verdict.counts["unseen at the end"] = len(missing)
    verdict.counts["unseen at most, by the second"] = max(levels, default=0)


def counts(ops, records):
    sends, polls = collections.Counter(), collections.Counter()
    for outcome, _ in records.writers.values():
        sends[outcome] += 1
    for op in ops:
        for _ in op.micro("poll"):
            polls[op.process] += 1
    return {"sends": {t: sends[t] for t in ("ok", "fail", "info")}, "operations": len(ops), "partitions": len(records.log),
            "records polled": sum(polls.values()), "different records polled": len(records.seen_by_anyone)}


def main():
    [path] = sys.argv[1:]
    verdict = check(histories.read(path))
    print(verdict.report())
    print(verdict.summary())
    sys.exit(1 if verdict.bad else 0)


if __name__ == "__main__":
    main()
