"""The order in which one client sent and was shown records, against the order of the log.

Promise: a step of exactly one is right; more is a skip, less a step back. Within an operation a rebalance excuses
the partitions that it moved; between operations a group's member is excused (another member may have read
meanwhile), and so are a client that was told to go elsewhere, and the first poll after an accepted loss.

Not here: which order the log has (see `checker.Records`).
"""


def _steps(entries, records):
    """(key, step, value before, value after) for consecutive records of each key. An unknown place is a step of one."""
    previous = {}
    for key, offset, value, _ in entries:
        index = records.index(key, offset, value)
        if key in previous:
            before, at = previous[key]
            yield key, 1 if index is None or at is None else index - at, before, value
        previous[key] = (value, index)


def within_operations(ops, records, verdict):
    for op in ops:
        for key, step, before, after in _steps(op.micro("poll"), records):
            if step != 1 and key not in op.rebalanced:
                verdict.add("int-poll-skip" if step > 1 else "int-nonmonotonic-poll", key=key, step=step, before=before, after=after, op=str(op))
        sent = (entry for entry in op.micro("send") if entry[3] != "fail")
        for key, step, before, after in _steps(sent, records):
            if step != 1:
                verdict.add("int-send-skip" if step > 1 else "int-nonmonotonic-send", key=key, step=step, before=before, after=after, op=str(op))


def _ends(entries, records):
    """{key: (first value, its index, last value, its index)} of one operation."""
    ends = {}
    for key, offset, value, _ in entries:
        index = records.index(key, offset, value)
        first = ends[key][:2] if key in ends else (value, index)
        ends[key] = (*first, value, index)
    return ends


def between_operations(ops, records, verdict):
    polled, sent, subscribed = {}, {}, set()  # process -> {key: (value, index)}
    for op in ops:
        if op.f == "assign":
            kept = {(t, p) for t, p, offset in op.value if offset is None}
            polled[op.process] = {key: at for key, at in polled.get(op.process, {}).items() if key in kept}
            subscribed.discard(op.process)
        elif op.f == "subscribe":
            polled[op.process] = {}
            subscribed.add(op.process)
        elif op.f == "loss":
            # Whoever stood behind what is left begins elsewhere.
            for at in polled.values():
                for topic, partition, _ in op.value["kept"]:
                    at.pop((topic, partition), None)
        if op.f not in ("poll", "send", "txn"):
            continue
        if op.type == "ok" and op.process not in subscribed:
            for key, (name, step, before, after) in _against(_ends(op.micro("poll"), records), polled.setdefault(op.process, {})):
                if name:
                    verdict.add({"skip": "poll-skip", "back": "nonmonotonic-poll"}[name], key=key, step=step, before=before, after=after, op=str(op))
        certain = (entry for entry in op.micro("send") if entry[3] != "fail")
        for key, (name, step, before, after) in _against(_ends(certain, records), sent.setdefault(op.process, {})):
            if name == "back":
                verdict.add("nonmonotonic-send", key=key, step=step, before=before, after=after, op=str(op))


def _against(ends, state):
    """Compares an operation's first record of each key with the last one before it, and keeps its last."""
    for key, (first, first_index, last, last_index) in ends.items():
        before, index = state.get(key, (None, None))
        step = 1 if index is None or first_index is None else first_index - index
        yield key, ("skip" if step > 1 else "back" if step < 1 else None, step, before, first)
        if last_index is not None:
            state[key] = (last, last_index)
