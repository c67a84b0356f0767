"""Record batches that no sound client sends, and requests that ask for the impossible: the codes are those of Kafka 4.3.1."""

import gzip
import time

from harness.wire import Connection, batch, record, values_in

CORRUPT_MESSAGE, UNKNOWN_TOPIC, OFFSET_OUT_OF_RANGE, MESSAGE_TOO_LARGE = 2, 3, 1, 10
INVALID_ACKS, INVALID_TIMESTAMP, UNSUPPORTED_COMPRESSION, INVALID_RECORD = 21, 32, 76, 87
UNKNOWN_SERVER_ERROR = -1
NOW = int(time.time() * 1000)

two = [b"one", b"two"]


def good(**wrong):
    return batch(two, timestamp=NOW, **wrong)


# name -> (bytes, what Kafka 4.3.1 answers, what else is as good). Where Kafka stumbles (-1), or lets through what it
# need not, any clear refusal will do.
BATCHES = {
    "wrong CRC": (good(crc=12345), CORRUPT_MESSAGE, ()),
    "count too high": (good(count=3), INVALID_RECORD, ()),
    "count too low": (good(count=1), INVALID_RECORD, ()),
    "count of zero": (good(count=0), INVALID_RECORD, ()),
    "negative count": (good(count=-5), INVALID_RECORD, ()),
    "count of a billion": (good(count=1_000_000_000, last_delta=999_999_999), INVALID_RECORD, ()),
    "last offset delta too high": (good(last_delta=9), INVALID_RECORD, ()),
    "negative last offset delta": (good(last_delta=-3), INVALID_RECORD, ()),
    "magic 0": (good(magic=0), INVALID_RECORD, (CORRUPT_MESSAGE,)),
    "magic 1": (good(magic=1), INVALID_RECORD, (CORRUPT_MESSAGE,)),
    "magic 9": (good(magic=9), CORRUPT_MESSAGE, (INVALID_RECORD,)),
    "codec 5": (good(attributes=5), UNKNOWN_SERVER_ERROR, (UNSUPPORTED_COMPRESSION, INVALID_RECORD, CORRUPT_MESSAGE)),
    "codec 7": (good(attributes=7), UNKNOWN_SERVER_ERROR, (UNSUPPORTED_COMPRESSION, INVALID_RECORD, CORRUPT_MESSAGE)),
    "a control batch": (good(attributes=0x20), INVALID_RECORD, ()),
    "log append time set by the client": (good(attributes=0x08), 0, (INVALID_TIMESTAMP,)),
    "a time two hours ahead": (batch(two, timestamp=NOW + 7_200_000), INVALID_TIMESTAMP, ()),
    "two batches at once": (good() + good(), INVALID_RECORD, ()),
    "no batch": (b"", INVALID_RECORD, ()),
    "a batch cut short": (good()[:-5], INVALID_RECORD, (CORRUPT_MESSAGE,)),
    "a batch of 20 bytes": (good()[:20], INVALID_RECORD, (CORRUPT_MESSAGE,)),
    "a length beyond the end": (good(length=5000), INVALID_RECORD, (CORRUPT_MESSAGE,)),
    "a negative length": (good(length=-8), CORRUPT_MESSAGE, (INVALID_RECORD,)),
    "a length of 10": (good(length=10), CORRUPT_MESSAGE, (INVALID_RECORD,)),
    "bytes after the batch": (good() + b"junk", 0, (INVALID_RECORD, CORRUPT_MESSAGE)),
    "too large": (batch([bytes(2_000_000)], timestamp=NOW), MESSAGE_TOO_LARGE, ()),
    "a producer id without a sequence": (good(producer=(7, 0, -1)), INVALID_RECORD, ()),
}


def each_batch(broker):
    """All of them on one connection: each is answered by its code, and none but the accepted enters the log."""
    with Connection(broker.port) as c:
        served_topic(c, "batches")
        wrong, stored = [], 0
        for name, (data, kafka, as_good) in BATCHES.items():
            code, base = c.produce("batches", data)
            if code not in (kafka, *as_good):
                wrong.append(f"{name}: {code} instead of {kafka}")
            if code == 0:
                assert base == stored, f"{name}: stored at {base} instead of {stored}"
                stored += 2
        assert not wrong, "; ".join(wrong)
        code, base = c.produce("batches", good())
        assert (code, base) == (0, stored), f"after the bad ones a good batch is answered {code}, offset {base}"
        code, high, data = c.fetch("batches", 0)
        assert (code, high) == (0, stored + 2)
        assert [value for _, value in values_in(data)] == two * (high // 2)


def lying_records(broker):
    """A sound header over records that are nonsense must not hurt anyone, whether it is refused or stored."""
    with Connection(broker.port) as c:
        served_topic(c, "lies")
        for payload in [b"\xff" * 40, record(0, b"one") + record(7, b"two"), record(0, b"one"), b"", b"\x80" * 12, bytes(40)]:
            c.produce("lies", batch(two, timestamp=NOW, payload=payload))
        for codec in (1, 2, 3, 4):
            c.produce("lies", batch(two, timestamp=NOW, attributes=codec, payload=b"not what it says"))
        code, base = c.produce("lies", batch([b"after"], timestamp=NOW))
        assert code == 0
        code, _, data = c.fetch("lies", base)
        assert code == 0 and values_in(data) == [(base, b"after")]


def bomb(broker):
    """A few bytes that unpack to 200 MB: no memory is spent on them."""
    before = broker.memory_mb()
    with Connection(broker.port) as c:
        served_topic(c, "bombs")
        data = gzip.compress(bytes(200_000_000), compresslevel=9)
        for _ in range(3):
            c.produce("bombs", batch([b""], timestamp=NOW, attributes=1, payload=data))
        c.list_offset("bombs", NOW - 1)
    if broker.kind == "logd":
        assert broker.memory_mb() - before < 64


def bad_acks(broker):
    with Connection(broker.port) as c:
        served_topic(c, "acks")
        for acks in (2, 5, -2, 32767):
            code, _ = c.produce("acks", good(), acks=acks)
            assert code == INVALID_ACKS, f"acks={acks} answered {code}"
        assert c.produce("acks", good(), acks=1) == (0, 0)


def acks_of_zero(broker):
    """acks=0 is never answered; the next request's answer comes first, and an error closes the connection."""
    with Connection(broker.port) as c:
        served_topic(c, "silent")
        c.send_produce("silent", good(), acks=0)
        deadline = time.monotonic() + 10
        while c.list_offset("silent") != (0, 2):
            assert time.monotonic() < deadline, "the record does not arrive"
            time.sleep(0.02)
        c.send_produce("silent", good(crc=1), acks=0)
        assert c.closes(10), "a refused acks=0 produce leaves its sender in the dark"


def zstd_by_an_old_request(broker):
    with Connection(broker.port) as c:
        served_topic(c, "zstd")
        code, _ = c.produce("zstd", good(attributes=4), version=3)
        assert code == UNSUPPORTED_COMPRESSION, f"zstd with Produce 3 answered {code}"


def unknown_places(broker):
    with Connection(broker.port) as c:
        served_topic(c, "places")
        assert c.produce("no-such-topic", good())[0] == UNKNOWN_TOPIC
        assert c.produce("places", good(), partition=1)[0] == UNKNOWN_TOPIC
        assert c.produce("places", good(), partition=-1)[0] == UNKNOWN_TOPIC
        assert c.fetch("no-such-topic", 0)[0] == UNKNOWN_TOPIC
        assert c.fetch("places", 0, partition=7)[0] == UNKNOWN_TOPIC
        assert c.list_offset("no-such-topic")[0] == UNKNOWN_TOPIC
        assert c.fetch("places", 1)[0] == OFFSET_OUT_OF_RANGE
        assert c.fetch("places", -5)[0] == OFFSET_OUT_OF_RANGE
        assert c.produce("places", good()) == (0, 0)
        code, high, data = c.fetch("places", 2, wait_ms=50)
        assert (code, high, data) == (0, 2, b""), "at the end there is nothing, and that is no error"
        assert c.fetch("places", 3)[0] == OFFSET_OUT_OF_RANGE
        assert c.fetch("places", 1 << 62)[0] == OFFSET_OUT_OF_RANGE


def creations_that_make_no_sense(broker):
    with Connection(broker.port) as c:
        for partitions, code in [(0, 37), (-5, 37), (2_000_000_000, None)]:
            got = c.create_topic("senseless", partitions)
            assert got == code if code else got != 0, f"{partitions} partitions answered {got}"
        for config in [("retention.ms", "soon"), ("no.such.setting", "1"), ("cleanup.policy", "shred"), ("segment.bytes", "-1")]:
            got = c.create_topic("senseless", 1, [config])
            assert got == 40, f"{config} answered {got}"
        assert "senseless" not in c.metadata(None)["topics"]


def served_topic(c, name):
    assert c.create_topic(name) == 0
    deadline = time.monotonic() + 5  # Kafka announces before it serves
    while c.list_offset(name) != (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.05)


CASES = {
    "record batches that lie": each_batch,
    "records that are nonsense under a sound header": lying_records,
    "a compression bomb": bomb,
    "acks that do not exist": bad_acks,
    "acks=0": acks_of_zero,
    "zstd by an old request": zstd_by_an_old_request,
    "topics, partitions and offsets that do not exist": unknown_places,
    "topics that make no sense": creations_that_make_no_sense,
}
