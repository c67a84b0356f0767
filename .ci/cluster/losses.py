"""What a history stops promising when an operator accepted that data is lost.

A `loss` says which partitions went on by force, up to which offset the replica that went on knew its records to be committed, and
between which times that was done. Below that offset everything stays promised. What lay beyond it, as clients knew it until
then, is taken out: an acknowledgement becomes an unknown outcome, and what was shown was another log's.

Promise: pure; nothing that began after a loss is touched.
"""

import math

OFFSETS_TOPIC = "__consumer_offsets"


def forget(ops):
    """Changes operations that began before a loss was over; gives how many acknowledged records are no longer promised."""
    return sum(_forget_at(loss, ops) for loss in ops if loss.f == "loss")


def _forget_at(loss, ops):
    kept = {(topic, partition): offset for topic, partition, offset in loss.value["kept"]}
    offsets_lost = any(topic == OFFSETS_TOPIC for topic, _ in kept)
    count = 0
    for op in ops:
        if op is loss or op.invoked >= loss.invoked:
            continue
        # What was not over yet when it began may be from before or after it.
        unsure = (math.inf if op.completed is None else op.completed) >= loss.value["began"]
        if op.f in ("send", "poll", "txn"):
            told = [_micro(op, entry, kept, unsure) for entry in op.value or ()]
            count += sum(1 for before, after in zip(op.value or (), told) if after and _acknowledged(op, before) and not _acknowledged(op, after))
            op.value = [entry for entry in told if entry]
        elif op.f == "offsets" and op.type == "ok":
            op.value = [[t, p, start, end if end is None else min(end, kept.get((t, p), end))] for t, p, start, end in op.value]
        elif op.f == "commit" and offsets_lost and op.type == "ok":
            op.type = "info"
        elif op.f == "committed" and offsets_lost:
            op.value = []
    return count


def _micro(op, entry, kept, unsure):
    """The entry, what is left of it, or nothing."""
    kind, topic, partition, offset, value, *_ = entry
    bound = kept.get((topic, partition))
    if bound is None or not unsure and offset is not None and offset < bound:
        return entry
    if kind == "poll":
        return None
    return entry if _outcome(op, entry) == "fail" else [kind, topic, partition, None, value, "info"]


def _outcome(op, entry):
    return entry[5] if len(entry) > 5 else op.type


def _acknowledged(op, entry):
    return entry[0] == "send" and _outcome(op, entry) == "ok"
