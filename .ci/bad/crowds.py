"""Crowds of connections, each against a broker of its own: how many there may be, and which of them are cut."""

import re
import resource
import select
import socket
import struct
import time
import urllib.request

from harness import broker as brokers
from harness.report import until
from harness.wire import METADATA, Connection, Closed, array, batch, string

IDLE = 10_000
PER_ADDRESS = 2_000  # the default; every address of 127.0.0.0/8 is this machine
SLOW = 1_000
# Half of the broker's descriptors are its disk's.
BESIDE = 400


def connect(broker, number):
    """A connection from one of several addresses, so that the limit of one address is not what is tested."""
    source = f"127.0.0.{2 + number // (PER_ADDRESS - 100)}"
    return socket.create_connection((brokers.HOST, broker.port), 30, source_address=(source, 0))


def counts(broker, reason, closed):
    """A client sees the end of its connection a moment before that is counted."""
    series = f'logd_kafka_connections_closed_total{{reason="{reason}"}}'
    until(10, f"{closed} connections count as closed for {reason}", lambda: metric(broker, series) == closed)


def metric(broker, series):
    admin = until(10, "the broker says where its admin port is", lambda: re.search(r"http://(\S+) \(/livez", broker.log_text()))[1]
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{admin}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(series)), 0.0)


def serves(broker, topic):
    with Connection(broker.port) as c:
        code, base = c.produce(topic, batch([b"still here"]))
        assert code == 0, f"produce answered {code}"
        code, _, data = c.fetch(topic, base)
        assert code == 0 and b"still here" in data


def idle(options):
    """As many idle connections as the machine lets, up to 10,000, cost little and keep nobody from being served."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(IDLE, (hard - 64) // 2) - BESIDE
    broker = brokers.make(options).start()
    clients = []
    try:
        with Connection(broker.port) as c:
            assert c.create_topic("crowd") == 0
        before = broker.memory_mb()
        for number in range(count):
            clients.append(connect(broker, number))
        hello = struct.pack(">i", 10) + struct.pack(">hhih", 18, 0, 1, -1)
        for s in clients:
            s.sendall(hello)
        for s in clients:
            assert s.recv(4), "an idle connection was closed"
        growth = broker.memory_mb() - before
        print(f"     {count} idle connections cost {growth:.0f} MB, {1024 * growth / count:.1f} kB each")
        assert growth < count * 40 / 1024, f"{count} idle connections cost {growth:.0f} MB"
        serves(broker, "crowd")
        assert metric(broker, "logd_kafka_connections ") >= count
    finally:
        for s in clients:
            s.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        broker.discard()


def one_byte_a_second(options):
    """A thousand clients that send a byte a second are cut at the least rate of a frame; who is honest goes on."""
    settings = {"LOGD_LIMITS__STALLED_TIMEOUT_MS": "5000"}
    broker = brokers.make(options, settings=settings).start()
    clients = []
    try:
        with Connection(broker.port) as c:
            assert c.create_topic("crowd") == 0
        clients = [connect(broker, number) for number in range(SLOW)]
        frame = struct.pack(">i", 100_000) + struct.pack(">hhi", METADATA, 4, 1) + string("slow") + array([string("crowd")])
        closed = set()
        for byte in frame[:40]:
            begun = time.monotonic()
            for s in clients:
                if s not in closed:
                    try:
                        s.sendall(bytes([byte]))
                    except OSError:
                        closed.add(s)
            serves(broker, "crowd")
            if len(closed) == SLOW:
                break
            time.sleep(max(0, 1 - (time.monotonic() - begun)))
        assert len(closed) == SLOW, f"{SLOW - len(closed)} of {SLOW} slow clients were not cut"
        counts(broker, "slow", SLOW)
    finally:
        for s in clients:
            s.close()
        broker.discard()


def strangers_that_never_speak(options):
    """Who connects and says nothing is let go at the handshake's deadline, a client that has spoken is not."""
    broker = brokers.make(options, settings={"LOGD_LIMITS__HANDSHAKE_TIMEOUT_MS": "2000"}).start()
    try:
        with Connection(broker.port) as spoken:
            assert spoken.api_versions()[0] == 0
            silent = [connect(broker, number) for number in range(50)]
            for s in silent:
                assert select.select([s], [], [], 10)[0] and s.recv(1) == b"", "a silent connection stays open"
                s.close()
            assert spoken.api_versions()[0] == 0
        counts(broker, "handshake", 50)
    finally:
        broker.discard()


def smaller_frames_on_one_listener(options):
    """A listener's own limit of frames holds there; beyond it nothing is allocated, nor read."""
    broker = brokers.make(options)
    config = broker.home / "logd.toml"
    config.write_text(f'[[kafka.listeners]]\nname = "outside"\naddr = "{brokers.HOST}:{broker.port}"\nmax_frame_bytes = 2048\n')
    command = broker.command()
    at = command.index("--kafka-addr")
    broker.command = lambda: [*command[:at], *command[at + 2:], "--config", str(config)]
    broker.start()
    try:
        with Connection(broker.port) as c:
            c.send(struct.pack(">i", 2049))
            assert c.closes(10), "a frame beyond the listener's limit is waited for"
        with Connection(broker.port) as c:
            try:
                c.call_raw(METADATA, 4, array([string("x" * 200)] * 9) + b"\0")
            except Closed:
                raise AssertionError("a frame within the limit is refused") from None
        counts(broker, "frame_size", 1)
    finally:
        broker.discard()


NOT_KAFKA = {idle, one_byte_a_second, strangers_that_never_speak, smaller_frames_on_one_listener}
CASES = {
    "10,000 idle connections": idle,
    "1,000 connections that send a byte a second": one_byte_a_second,
    "connections that never speak": strangers_that_never_speak,
    "a listener with a smaller limit of frames": smaller_frames_on_one_listener,
}
