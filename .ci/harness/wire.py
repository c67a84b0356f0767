"""Just enough of the Kafka protocol, by hand, to say what no client library would say.

Old, non-flexible versions only, as they are the plainest: ApiVersions 0, Metadata 4, Produce 7, Fetch 4, ListOffsets 1,
CreateTopics 2, DeleteTopics 1, OffsetCommit 2. Every helper can be bypassed with `call_raw` for bytes that are wrong on purpose.
"""

import os
import socket
import struct

PRODUCE, FETCH, LIST_OFFSETS, METADATA, API_VERSIONS, CREATE_TOPICS, DELETE_TOPICS = 0, 1, 2, 3, 18, 19, 20
OFFSET_COMMIT, FIND_COORDINATOR = 8, 10


def _crc32c_table():
    table = []
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ 0x82F63B78 if n & 1 else n >> 1
        table.append(n)
    return table


_TABLE = _crc32c_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def string(text):
    if text is None:
        return struct.pack(">h", -1)
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack(">h", len(data)) + data


def array(items):
    return struct.pack(">i", len(items)) + b"".join(items)


def varint(n):
    n = (n << 1) ^ (n >> 63)
    out = bytearray()
    while n & ~0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def record(delta, value, key=None, timestamp_delta=0):
    body = b"\0" + varint(timestamp_delta) + varint(delta)
    body += varint(-1) if key is None else varint(len(key)) + key
    body += (varint(-1) if value is None else varint(len(value)) + value) + varint(0)
    return varint(len(body)) + body


def batch(values, timestamp=1_700_000_000_000, magic=2, attributes=0, count=None, last_delta=None, crc=None,
          producer=(-1, -1, -1), payload=None, base=0, length=None):
    """A record batch; every header field can be made wrong."""
    body = payload if payload is not None else b"".join(record(i, v) for i, v in enumerate(values))
    n = len(values)
    tail = struct.pack(">hiqqqhii", attributes, n - 1 if last_delta is None else last_delta, timestamp, timestamp,
                       *producer, n if count is None else count) + body
    crc = crc32c(tail) if crc is None else crc
    return struct.pack(">qiibI", base, (len(tail) + 9) if length is None else length, -1, magic, crc) + tail


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        assert self.at + n <= len(self.data), "the answer is shorter than it says"
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self, form):
        return struct.unpack(">" + form, self.take(struct.calcsize(">" + form)))[0]

    def varint(self):
        """A zigzag number, as records hold them."""
        n, shift = 0, 0
        while True:
            byte = self.take(1)[0]
            n |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return n >> 1 ^ -(n & 1)

    def varint_bytes(self):
        n = self.varint()
        return None if n < 0 else self.take(n)

    def string(self):
        n = self.number("h")
        return None if n < 0 else self.take(n).decode()

    def bytes(self):
        n = self.number("i")
        return b"" if n < 0 else self.take(n)

    def array(self, one):
        return [one() for _ in range(max(0, self.number("i")))]


class Closed(ConnectionError):
    """The broker closed the connection."""


class Connection:
    def __init__(self, port, timeout=15, host="127.0.0.1"):
        self.socket = socket.create_connection((host, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.correlation = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def read_exactly(self, n):
        data = b""
        while len(data) < n:
            try:
                more = self.socket.recv(n - len(data))
            except ConnectionResetError:
                raise Closed("connection reset") from None
            if not more:
                raise Closed("connection closed by the broker")
            data += more
        return data

    def request(self, key, version, body, client="ci"):
        self.correlation += 1
        header = struct.pack(">hhi", key, version, self.correlation) + string(client)
        self.send(struct.pack(">i", len(header) + len(body)) + header + body)
        return self.correlation

    def answer(self, correlation=None):
        frame = Reader(self.read_exactly(struct.unpack(">i", self.read_exactly(4))[0]))
        got = frame.number("i")
        assert correlation is None or got == correlation, f"answer {got} to request {correlation}"
        return frame

    def call_raw(self, key, version, body):
        return self.answer(self.request(key, version, body))

    def closes(self, within=15):
        """True if the broker ends this connection, whatever it says before."""
        self.socket.settimeout(within)
        try:
            while self.socket.recv(65536):
                pass
            return True
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def api_versions(self):
        r = self.call_raw(API_VERSIONS, 0, b"")
        code = r.number("h")
        return code, {k: (low, high) for k, low, high in r.array(lambda: (r.number("h"), r.number("h"), r.number("h")))}

    def metadata(self, topics, create=False):
        wanted = struct.pack(">i", -1) if topics is None else array([string(t) for t in topics])
        r = self.call_raw(METADATA, 4, wanted + struct.pack(">b", create))
        r.number("i")
        brokers = r.array(lambda: (r.number("i"), r.string(), r.number("i"), r.string()))
        r.string(), r.number("i")

        def partition():
            code, index, leader = r.number("h"), r.number("i"), r.number("i")
            return {"code": code, "index": index, "leader": leader, "replicas": r.array(lambda: r.number("i")), "isr": r.array(lambda: r.number("i"))}

        def topic():
            code, name, internal = r.number("h"), r.string(), r.number("b")
            return {"code": code, "name": name, "internal": internal, "partitions": r.array(partition)}

        return {"brokers": brokers, "topics": {t["name"]: t for t in r.array(topic)}}

    def create_topic(self, name, partitions=1, configs=(), timeout_ms=10_000):
        topic = string(name) + struct.pack(">ih", partitions, int(os.environ.get("REPLICAS", "1"))) + array([]) + array([string(k) + string(v) for k, v in configs])
        r = self.call_raw(CREATE_TOPICS, 2, array([topic]) + struct.pack(">ib", timeout_ms, 0))
        r.number("i")
        return [(r.string(), r.number("h"), r.string())[1] for _ in range(r.number("i"))][0]

    def commit_offset(self, group, topic, offset, partition=0):
        """The error code; as somebody who is no member. Whoever asks is to be the coordinator."""
        self.call_raw(FIND_COORDINATOR, 0, string(group))  # The first to ask makes the topic of offsets.
        place = string(topic) + array([struct.pack(">iq", partition, offset) + string("")])
        r = self.call_raw(OFFSET_COMMIT, 2, string(group) + struct.pack(">i", -1) + string("") + struct.pack(">q", -1) + array([place]))
        return r.array(lambda: (r.string(), r.array(lambda: (r.number("i"), r.number("h")))))[0][1][0][1]

    def delete_topic(self, name):
        r = self.call_raw(DELETE_TOPICS, 1, array([string(name)]) + struct.pack(">i", 10_000))
        r.number("i")
        return r.array(lambda: (r.string(), r.number("h")))[0][1]

    def send_produce(self, topic, data, partition=0, acks=-1, version=7, timeout_ms=15_000):
        entry = struct.pack(">i", partition) + struct.pack(">i", len(data)) + data
        body = string(None) + struct.pack(">hi", acks, timeout_ms) + array([string(topic) + array([entry])])
        return self.request(PRODUCE, version, body)

    def produce(self, topic, data, **options):
        """(error code, base offset) of one batch to one partition."""
        r = self.answer(self.send_produce(topic, data, **options))
        return self.produce_answer(r, options.get("version", 7))

    @staticmethod
    def produce_answer(r, version=7):
        def partition():
            index, code, base, _time = r.number("i"), r.number("h"), r.number("q"), r.number("q")
            if version >= 5:
                r.number("q")
            return index, code, base

        [(_, [(_, code, base)])] = r.array(lambda: (r.string(), r.array(partition)))
        return code, base

    def fetch_request(self, topic, offset, partition=0, max_bytes=1 << 20, wait_ms=500, min_bytes=1):
        entry = struct.pack(">iqi", partition, offset, max_bytes)
        body = struct.pack(">iiiib", -1, wait_ms, min_bytes, max_bytes, 0) + array([string(topic) + array([entry])])
        return self.request(FETCH, 4, body)

    def fetch(self, topic, offset, **options):
        """(error code, high watermark, record bytes) of one partition."""
        r = self.answer(self.fetch_request(topic, offset, **options))
        r.number("i")

        def partition():
            r.number("i")
            code, high, _stable = r.number("h"), r.number("q"), r.number("q")
            r.array(lambda: (r.number("q"), r.number("q")))
            return code, high, r.bytes()

        return r.array(lambda: (r.string(), r.array(partition)))[0][1][0]

    def list_offset(self, topic, timestamp=-1, partition=0):
        body = struct.pack(">i", -1) + array([string(topic) + array([struct.pack(">iq", partition, timestamp)])])
        r = self.call_raw(LIST_OFFSETS, 1, body)
        [(_, [(_, code, _, offset)])] = r.array(lambda: (r.string(), r.array(lambda: (r.number("i"), r.number("h"), r.number("q"), r.number("q")))))
        return code, offset


def whole_batches(data):
    """(first offset, bytes) of every batch of what a fetch answered; a cut last one is left out."""
    at = 0
    while at + 61 <= len(data):
        base, length = struct.unpack_from(">qi", data, at)
        assert length >= 49, f"a served batch at offset {base} says that it has {length} bytes"
        end = at + 12 + length
        if end > len(data):
            return
        yield base, data[at:end]
        at = end


def batches_in(data):
    """Of every whole batch, whatever its codec: [(first offset, offset behind, records in it)]."""
    out = []
    for base, batch in whole_batches(data):
        [last_delta], [count] = struct.unpack_from(">i", batch, 23), struct.unpack_from(">i", batch, 57)
        out.append((base, base + last_delta + 1, count))
    return out


def values_in(data):
    """The values of uncompressed batches, checking every CRC on the way: [(offset, value)]. A cut last batch is left out."""
    out = []
    for base, batch in whole_batches(data):
        crc, attributes, _last, _t0, _t1, _pid, _epoch, _seq, count = struct.unpack_from(">IhiqqqhIi", batch, 17)
        assert crc32c(batch[21:]) == crc, f"a served batch at offset {base} has a wrong CRC"
        assert attributes & 7 == 0, "compressed"
        reader = Reader(batch[61:])
        for _ in range(count):
            size = reader.varint()
            stop = reader.at + size
            reader.take(1)
            reader.varint()  # timestamp
            delta = reader.varint()
            reader.varint_bytes()
            out.append((base + delta, reader.varint_bytes() or b""))
            reader.at = stop
    return out
