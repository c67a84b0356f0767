"""Compares what stopped brokers have on their disks: up to the high watermark, every replica is the same log.

Promise: reads data directories, writes nothing. A segment's `.log` is a row of Kafka's record batches; two batches are
the same if offset, leader epoch, declared CRC and the bytes that it covers are. Damage within a batch is
`logctl debug verify`'s to find. Every replica compacts its own files in its own time: of a compacted log the last record
of every key must be the same, and what several hold at an offset.

Not here: which brokers are to hold what, clients.
"""

import collections
import dataclasses
import hashlib
import pathlib
import struct

from harness.wire import Reader

HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES, BEFORE_CRC_COVERS, LENGTH_COUNTS_FROM = 61, 21, 12
SHOWN_MAX = 3

IS_CONTROL, COMPRESSION = 1 << 5, 0b111


@dataclasses.dataclass(frozen=True)
class Batch:
    base: int
    end: int
    epoch: int
    crc: int
    digest: str
    producer: tuple
    attributes: int = dataclasses.field(repr=False)
    body: bytes = dataclasses.field(repr=False, compare=False)  # the digest covers it

    def records(self):
        """(offset, key, value) of its data records."""
        if self.attributes & COMPRESSION:
            raise ValueError(f"the batch at {self.base} is compressed: records of such a compacted log are not compared")
        if self.attributes & IS_CONTROL:
            return
        reader = Reader(self.body)
        while reader.at < len(self.body):
            length = reader.varint()
            stop = reader.at + length
            reader.take(1)
            reader.varint()  # timestamp
            offset = self.base + reader.varint()
            yield offset, reader.varint_bytes(), reader.varint_bytes()
            reader.at = stop  # behind the headers


def batches(data):
    """The batches of one segment. What stands after the last whole one is not a batch: (batches, bytes left over)."""
    out, at = [], 0
    while at + HEADER_BYTES <= len(data):
        base, length, epoch, magic, crc, attributes, last_delta, _, _, pid, producer_epoch, sequence, _ = HEADER.unpack_from(data, at)
        stop = at + LENGTH_COUNTS_FROM + length
        if magic != 2 or length < HEADER_BYTES - LENGTH_COUNTS_FROM or stop > len(data):
            break
        digest = hashlib.blake2b(data[at + BEFORE_CRC_COVERS:stop], digest_size=8).hexdigest()
        out.append(Batch(base, base + last_delta + 1, epoch, crc, digest, (pid, producer_epoch, sequence), attributes, data[at + HEADER_BYTES:stop]))
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


def compare(directories, high, compacted=(), holders=None):
    """Anomalies as (name, details). `directories` is {broker: data directory}; `high` is {folder's name: high watermark}.

    A log without a known high watermark (metadata, committed offsets) is compared as far as every replica goes.
    `compacted` has the topic ids, as folders show them, of the topics that are. `holders`: {folder's name: brokers} that are to
    have a log; without it every broker is to have every one.
    """
    found = []
    held = {broker: logs(path) for broker, path in directories.items()}
    for key in sorted(set(high).union(*held.values())):
        copies = {broker: log[key] for broker, log in held.items() if key in log}
        may_lack_records = key.split("-")[0] in compacted
        expected = held.keys() if holders is None else holders.get(key, ())
        for broker in sorted(set(expected) - copies.keys()) if key in high else ():
            found.append(("replica-missing", {"log": key, "broker": broker}))
        for broker, copy in copies.items():
            found += ([] if may_lack_records else _gaps(key, broker, copy)) + _repeated_sequences(key, broker, copy)
            end = copy[-1].end if copy else 0
            if end < high.get(key, 0):
                found.append(("replica-behind", {"log": key, "broker": broker, "end": end, "high_watermark": high[key]}))
        if len(copies) > 1:
            found += _other_survivors(key, copies) if may_lack_records else _differences(key, copies, high.get(key))
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


def _other_survivors(key, copies):
    """Every replica against the one that goes furthest: {record's key: (offset, value)} of the last records."""
    ends = {broker: copy[-1].end if copy else 0 for broker, copy in copies.items()}
    furthest = max(copies, key=lambda broker: ends[broker])
    records = {broker: [record for batch in copy for record in batch.records()] for broker, copy in copies.items()}
    at = {offset: (name, value) for offset, name, value in records[furthest]}
    last = {name: (offset, value) for offset, name, value in records[furthest]}
    out = []
    for broker in copies.keys() - {furthest}:
        for offset, name, value in records[broker]:
            if at.get(offset, (name, value)) != (name, value):
                out.append(("replica-differs", {"log": key, "offset": offset, furthest: at[offset], broker: (name, value)}))
        theirs = {name: (offset, value) for offset, name, value in records[broker]}
        for name in last.keys() | theirs.keys():
            here, there = last.get(name), theirs.get(name)
            # What came after the shorter one's end has replaced what that one shows; a tombstone goes in the end.
            newer = here is not None and here[0] >= ends[broker]
            gone = ends[broker] < ends[furthest] and here is None
            tombstone = (here or there)[1] is None and None in (here, there)
            if here != there and not (newer or gone or tombstone):
                out.append(("replica-differs", {"log": key, "key": name, furthest: here, broker: there}))
    return out[:SHOWN_MAX]
