"""Compares what stopped brokers have on their disks: up to the high watermark, every replica is the same log.

Promise: reads data directories, writes nothing. A segment's `.log` is a row of Kafka's record batches; two batches are
the same if offset, leader epoch, declared CRC and the bytes that it covers are. Damage within a batch is
`logctl debug verify`'s to find.

Not here: which brokers hold what (all of them do in these scenarios), clients.
"""

import collections
import hashlib
import pathlib
import struct

HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES, BEFORE_CRC_COVERS, LENGTH_COUNTS_FROM = 61, 21, 12
SHOWN_MAX = 3

Batch = collections.namedtuple("Batch", "base end epoch crc digest producer")


def batches(data):
    """The batches of one segment. What stands after the last whole one is not a batch: (batches, bytes left over)."""
    out, at = [], 0
    while at + HEADER_BYTES <= len(data):
        base, length, epoch, magic, crc, _, last_delta, _, _, pid, producer_epoch, sequence, _ = HEADER.unpack_from(data, at)
        stop = at + LENGTH_COUNTS_FROM + length
        if magic != 2 or length < HEADER_BYTES - LENGTH_COUNTS_FROM or stop > len(data):
            break
        digest = hashlib.blake2b(data[at + BEFORE_CRC_COVERS:stop], digest_size=8).hexdigest()
        out.append(Batch(base, base + last_delta + 1, epoch, crc, digest, (pid, producer_epoch, sequence)))
        at = stop
    return out, len(data) - at


def logs(directory):
    """{folder's name: [Batch, ...] in offset order} of one data directory."""
    out = {}
    for folder in sorted((pathlib.Path(directory) / "logs").iterdir()):
        found = []
        # Names begin with the zero-padded base offset.
        for path in sorted(folder.glob("*.log")):
            # A truncation ends a segment and starts the next one where it cut: what stands behind that is not in the log.
            start = int(path.name.split(".")[0])
            while found and found[-1].base >= start:
                found.pop()
            found += batches(path.read_bytes())[0]
        out[folder.name] = found
    return out


def compare(directories, high):
    """Anomalies as (name, details). `directories` is {broker: data directory}; `high` is {folder's name: high watermark}.

    A log without a known high watermark (metadata, committed offsets) is compared as far as every replica goes.
    """
    found = []
    held = {broker: logs(path) for broker, path in directories.items()}
    for key in sorted(set(high).union(*held.values())):
        copies = {broker: log[key] for broker, log in held.items() if key in log}
        for broker in held.keys() - copies.keys() if key in high else ():
            found.append(("replica-missing", {"log": key, "broker": broker}))
        for broker, copy in copies.items():
            found += _gaps(key, broker, copy) + _repeated_sequences(key, broker, copy)
            end = copy[-1].end if copy else 0
            if end < high.get(key, 0):
                found.append(("replica-behind", {"log": key, "broker": broker, "end": end, "high_watermark": high[key]}))
        if len(copies) > 1:
            found += _differences(key, copies, high.get(key))
    return found


def _gaps(key, broker, copy):
    pairs = [(a, b) for a, b in zip(copy, copy[1:]) if a.end != b.base]
    return [("replica-gap", {"log": key, "broker": broker, "after": a.end, "next": b.base}) for a, b in pairs[:SHOWN_MAX]]


def _repeated_sequences(key, broker, copy):
    places = collections.defaultdict(list)
    for batch in copy:
        if batch.producer[0] >= 0 and batch.producer[2] >= 0:
            places[batch.producer].append(batch.base)
    twice = [(producer, at) for producer, at in places.items() if len(at) > 1]
    return [("duplicate-sequence", {"log": key, "broker": broker, "producer": producer, "offsets": at}) for producer, at in twice[:SHOWN_MAX]]


def _differences(key, copies, high):
    """Every replica against the longest, as far as both go."""
    longest = max(copies, key=lambda broker: copies[broker][-1].end if copies[broker] else 0)
    out = []
    for broker, copy in copies.items():
        pair = [copies[longest], copy]
        bound = min(c[-1].end if c else 0 for c in pair)
        bound = bound if high is None else min(bound, high)
        # A log may start later where retention has come first.
        start = max(c[0].base if c else 0 for c in pair)
        reference, other = ([b for b in c if b.base >= start and b.end <= bound] for c in pair)
        if reference != other:
            at = next((n for n, (a, b) in enumerate(zip(reference, other)) if a != b), min(len(reference), len(other)))
            here, there = (found[at] if at < len(found) else None for found in (reference, other))
            out.append(("replica-differs", {"log": key, longest: here, broker: there}))
    return out
