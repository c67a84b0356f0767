"""Bytes that are not requests, requests that are not whole, and clients that misbehave. One shared broker lives through all."""

import random
import socket
import struct
import time

from harness.wire import (API_VERSIONS, CREATE_TOPICS, METADATA, PRODUCE, Closed, Connection, Reader, array, batch, string)

GROWTH_MB = 64  # what any one of these clients may cost, far below what it asks for


def closes_on(broker, data, why):
    with Connection(broker.port) as c:
        c.send(data)
        assert c.closes(10), f"the connection stays open after {why}"


def http_bytes(broker):
    closes_on(broker, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "an HTTP request")
    closes_on(broker, b"POST /topics HTTP/1.1\r\n\r\n", "an HTTP post")


def tls_bytes(broker):
    closes_on(broker, bytes.fromhex("1603010200010001fc0303") + bytes(64), "a TLS hello")


def length_of_2_gb(broker):
    before = broker.memory_mb("VmRSS")
    closes_on(broker, struct.pack(">i", 0x7FFFFFFF) + bytes(100), "a length of 2 GB")
    closes_on(broker, struct.pack(">i", 200_000_000), "a length of 200 MB")
    closes_on(broker, struct.pack(">i", -1) + bytes(100), "a negative length")
    assert broker.memory_mb("VmRSS") - before < GROWTH_MB


def billion_entries(broker):
    """Every API and version that the broker names gets a body of a few bytes that claims a billion of something."""
    before = broker.memory_mb("VmRSS")
    with Connection(broker.port) as c:
        code, apis = c.api_versions()
    assert code == 0 and len(apis) > 10
    bodies = [struct.pack(">i", 1_000_000_000), struct.pack(">ii", 1_000_000_000, 1_000_000_000), b"\xff\xff\xff\xff\x0f",
              b"\0" + b"\xff\xff\xff\xff\x07", struct.pack(">h", 0x7FFF), b""]
    for key, (low, high) in apis.items():
        for version in {low, high, min(high, max(low, (low + high) // 2))}:
            for body in bodies:
                answered_or_closed(broker, key, version, body)
    assert broker.memory_mb("VmRSS") - before < GROWTH_MB * (4 if broker.kind == "kafka" else 1)  # a JVM warms up meanwhile


def answered_or_closed(broker, key, version, body):
    """A hello of a flexible version has an empty tag section after the client id; both kinds of header are tried."""
    for tags in (b"", b"\0"):
        header = struct.pack(">hhi", key, version, 7) + string("ci") + tags
        with Connection(broker.port, timeout=12) as c:
            c.send(struct.pack(">i", len(header) + len(body)) + header + body)
            c.socket.shutdown(socket.SHUT_WR)
            try:
                c.answer()
            except Closed:
                pass
            except TimeoutError:
                raise AssertionError(f"no answer and no close for API {key} version {version} with body {body.hex()}") from None


def truncated_frame(broker):
    with Connection(broker.port) as c:
        c.send(struct.pack(">i", 100) + bytes(40))
        c.socket.shutdown(socket.SHUT_WR)
        assert c.closes(10), "half a frame and the end of the stream leave the connection open"
    # A whole frame whose fields end early.
    request = struct.pack(">hhi", METADATA, 4, 1) + string("ci") + struct.pack(">i", 3) + string("only-one")
    closes_on(broker, struct.pack(">i", len(request)) + request, "a request that ends inside its fields")
    # A frame too short for a header.
    closes_on(broker, struct.pack(">i", 3) + b"abc", "a frame of 3 bytes")


def unknown_api(broker):
    for key, version in [(12345, 0), (-1, 0), (METADATA, 99), (METADATA, -1), (PRODUCE, 99)]:
        header = struct.pack(">hhi", key, version, 1) + string("ci")
        closes_on(broker, struct.pack(">i", len(header)) + header, f"API {key} version {version}")


def unknown_api_versions_version(broker):
    """A client of the future is told the range in the oldest form and may ask again on the same connection."""
    with Connection(broker.port) as c:
        r = c.call_raw(API_VERSIONS, 99, b"\0\x07future\x021\0")  # no tags, a name, a version
        assert r.number("h") == 35, "the error is UNSUPPORTED_VERSION"
        ranges = r.array(lambda: (r.number("h"), r.number("h"), r.number("h")))
        assert [(low, high >= 4) for key, low, high in ranges if key == API_VERSIONS] == [(0, True)], ranges
        assert c.api_versions()[0] == 0


def invalid_client_name(broker):
    """From version 3 on a client names itself; a name with odd characters is refused with INVALID_REQUEST."""
    with Connection(broker.port) as c:
        name = b"bad name!"
        c.correlation += 1
        header = struct.pack(">hhi", API_VERSIONS, 3, c.correlation) + string("ci") + b"\0"
        body = bytes([len(name) + 1]) + name + b"\x021\0"
        c.send(struct.pack(">i", len(header) + len(body)) + header + body)
        assert c.answer(c.correlation).number("h") == 42


def topic_names(broker):
    """No name reaches the file system: the wrong ones are refused with INVALID_TOPIC_EXCEPTION, by either way to a topic."""
    with Connection(broker.port) as c:
        for name in ["..", ".", "", "a/b", "../../etc/x", "a" * 250, "naïve", "a b", "a\0b"]:
            assert (code := c.create_topic(name)) == 17, f"creating {name!r} answered {code}"
            if name:
                topic = c.metadata([name], create=True)["topics"][name]
                assert topic["code"] == 17, f"metadata of {name!r} answered {topic['code']}"
        assert c.create_topic("a" * 249) == 0
        assert c.create_topic("a" * 249) == 36
        names = c.metadata(None)["topics"]
        assert not set(names) & {"..", ".", "a/b"}


def never_reads(broker):
    """A client that asks for a megabyte again and again and never reads the answers holds bounded memory."""
    with Connection(broker.port) as c:
        assert c.create_topic("big") == 0
        time.sleep(1 if broker.kind == "kafka" else 0)
        for _ in range(8):
            code, _ = c.produce("big", batch([bytes(500_000), bytes(400_000)]))
            assert code == 0, f"produce answered {code}"
    before = broker.memory_mb()
    clients = [Connection(broker.port, timeout=2) for _ in range(20)]
    try:
        for c in clients:
            try:
                for _ in range(200):
                    c.fetch_request("big", 0, max_bytes=8 << 20)
            except (TimeoutError, ConnectionError):
                pass  # the broker stopped reading, or closed: both are fine
        time.sleep(2)
        if broker.kind == "logd":  # a JVM's memory says nothing here
            growth = broker.memory_mb() - before
            assert growth < GROWTH_MB, f"20 clients that never read cost {growth:.0f} MB"
    finally:
        for c in clients:
            c.socket.close()


def announced_and_never_sent(broker):
    """25 clients announce 100 MB each and send nothing; then they send a little of it."""
    before = broker.memory_mb()
    clients = [Connection(broker.port) for _ in range(25)]
    try:
        for c in clients:
            c.send(struct.pack(">i", 100 * 1024 * 1024 - 64))
        time.sleep(1)
        assert (growth := broker.memory_mb() - before) < GROWTH_MB, f"announcing cost {growth:.0f} MB"
        for c in clients:
            c.send(struct.pack(">hhi", PRODUCE, 7, 1) + bytes(100_000))
        time.sleep(1)
        assert (growth := broker.memory_mb() - before) < GROWTH_MB, f"starting to send cost {growth:.0f} MB"
    finally:
        for c in clients:
            c.socket.close()


def one_byte_at_a_time(broker):
    with Connection(broker.port) as c:
        body = array([string("witness")]) + b"\0"
        header = struct.pack(">hhi", METADATA, 4, 77) + string("slow")
        for byte in struct.pack(">i", len(header) + len(body)) + header + body:
            c.send(bytes([byte]))
            time.sleep(0.002)
        c.answer(77)


def pipelined(broker):
    """Many requests in one packet, of slow and fast kinds, are answered in the order they were sent."""
    with Connection(broker.port) as c:
        _, end = c.list_offset("witness")
        frames, kinds = b"", []
        send, c.send = c.send, lambda data: kinds.append(data)
        for n in range(100):
            if n % 10 == 0:
                c.fetch_request("witness", end + 1_000_000 if n else 0, wait_ms=20)
            elif n % 10 == 5:
                c.send_produce("witness-none", batch([b"x"]))
            else:
                c.request(API_VERSIONS, 0, b"")
        frames = b"".join(kinds)
        send(frames)
        for correlation in range(2, 102):
            c.answer(correlation)


def leaves_in_the_middle(broker):
    """Clients that vanish while their fetch is parked, or their answer half written."""
    for n in range(50):
        c = Connection(broker.port)
        c.fetch_request("big" if n % 2 else "witness", 0, max_bytes=8 << 20, wait_ms=500, min_bytes=1 << 30 if n % 3 else 1)
        c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        c.socket.close()


def many_idle_connections(broker):
    before, files = broker.memory_mb(), broker.open_files()
    clients = [Connection(broker.port) for _ in range(300)]
    try:
        for c in clients[::10]:
            assert c.api_versions()[0] == 0
        assert broker.memory_mb() - before < GROWTH_MB
    finally:
        for c in clients:
            c.socket.close()
    deadline = time.monotonic() + 10
    while broker.open_files() > files + 20 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert broker.open_files() <= files + 20, "closed connections leave descriptors behind"


def random_bytes(broker):
    """Mutated requests for a few seconds, the same ones in every run."""
    rng = random.Random(20_261_124)
    good = [
        (METADATA, 4, array([string("witness")]) + b"\0"),
        (PRODUCE, 7, string(None) + struct.pack(">hi", -1, 1000) + array([string("fuzzed") + array([struct.pack(">ii", 0, 70) + batch([b"v"])])])),
        (CREATE_TOPICS, 2, array([string("made") + struct.pack(">ih", 1, 1) + array([]) + array([])]) + struct.pack(">ib", 1000, 1)),
        (11, 2, string("g") + struct.pack(">ii", 6000, 6000) + string("") + string("consumer") + array([string("range") + struct.pack(">i", 2) + b"xx"])),
        (8, 3, string("g") + struct.pack(">i", -1) + string("") + struct.pack(">q", -1) + array([string("t") + array([struct.pack(">iq", 0, 1) + string("m")])])),
        (2, 2, struct.pack(">ib", -1, 0) + array([string("witness") + array([struct.pack(">iq", 0, -1)])])),
        (22, 0, string(None) + struct.pack(">i", 1000)),
    ]
    stop = time.monotonic() + 4
    tried = 0
    while time.monotonic() < stop:
        key, version, body = rng.choice(good)
        data = bytearray(struct.pack(">hhi", key, rng.choice([version, version, rng.randrange(20)]), 1) + string("fuzz") + body)
        for _ in range(rng.randrange(1, 6)):
            action = rng.randrange(3)
            at = rng.randrange(8, len(data))
            if action == 0:
                data[at] = rng.randrange(256)
            elif action == 1:
                data[at:at + rng.randrange(1, 5)] = rng.randbytes(rng.randrange(0, 5))
            else:
                data[at:at + 4] = rng.choice([b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0"])
            if len(data) < 12:
                break
        try:
            with Connection(broker.port, timeout=0.3) as c:
                c.send(struct.pack(">i", len(data)) + bytes(data))
                c.socket.shutdown(socket.SHUT_WR)
                c.read_exactly(4)
        except (OSError, Closed):
            pass
        tried += 1
    assert tried > 50, f"only {tried} were tried"


def used_at_once(broker):
    """A topic works the instant it is announced, by CreateTopics or by Metadata."""
    with Connection(broker.port) as c:
        for n in range(15):
            assert c.create_topic(f"instant-{n}", 6) == 0
            for p in range(6):
                code, offset = c.produce(f"instant-{n}", batch([b"first"]), partition=p)
                assert (code, offset) == (0, 0), f"the first produce to instant-{n}/{p} answered error {code}, offset {offset}"
        for n in range(10):
            name, deadline = f"on-demand-{n}", time.monotonic() + 10
            while True:
                topic = c.metadata([name], create=True)["topics"][name]
                if topic["code"] == 0 and topic["partitions"][0]["leader"] >= 0:
                    break
                assert time.monotonic() < deadline, f"{name} is not announced: {topic}"
            code, offset = c.produce(name, batch([b"first"]))
            assert (code, offset) == (0, 0), f"the first produce to {name} answered error {code}"


# Kafka 4.3.1 cannot pass these: it allocates what is announced, and it announces topics before they serve.
NOT_KAFKA = {announced_and_never_sent, used_at_once}
CASES = {
    "HTTP bytes on the Kafka port": http_bytes,
    "TLS bytes on the Kafka port": tls_bytes,
    "a length prefix of 2 GB": length_of_2_gb,
    "a few bytes that claim a billion entries, for every API": billion_entries,
    "a truncated frame": truncated_frame,
    "an unknown API or version": unknown_api,
    "ApiVersions of an unknown version": unknown_api_versions_version,
    "ApiVersions with an invalid client name": invalid_client_name,
    "topic names that are paths, empty or too long": topic_names,
    "clients that never read": never_reads,
    "25 connections that announce 100 MB": announced_and_never_sent,
    "a request one byte at a time": one_byte_at_a_time,
    "100 requests in one packet": pipelined,
    "clients that vanish in the middle": leaves_in_the_middle,
    "300 idle connections": many_idle_connections,
    "mutated requests": random_bytes,
    "a topic used the instant it is announced": used_at_once,
}
