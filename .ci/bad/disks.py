"""Disks on their bad days: full, damaged, without power. Nothing acknowledged is lost without a word, and reads go on."""

import random
import shutil
import time

from harness import broker as brokers
from harness.disk import small_disk
from harness.load import Load, check_partition, read_all
from harness.report import until
from harness.wire import Connection, batch

RETRIABLE = {5, 6, 7, 9, 19, 20, 56}  # of these a client says: later; anything else would lose the record
STORAGE_ERRORS = {2, 5, 6, 56}  # what a partition with damaged files may answer


def full_disk(options):
    """Produces are refused with a code that clients retry, reads and deletions work, and when space is back so is the broker."""
    with small_disk(options.scratch, 700) as disk:
        broker = brokers.make(options, data=disk.mountpoint / "data", settings={"LOGD_STORAGE__WAL_BUDGET_BYTES": str(128 << 20)}).start()
        try:
            with Load(broker, ["full"], 2, size=1000) as load:
                load.wait_for(200)
                with Connection(broker.port) as c:
                    assert c.create_topic("doomed") == 0
                disk.fill(leave_mb=2)
                big = batch([bytes(900_000)])

                def refused():
                    with Connection(broker.port) as c:
                        code, _ = c.produce("doomed", big)
                        return code
                code = until(60, "a produce is refused", refused, pause=0)
                assert code in RETRIABLE, f"the full disk is answered with error {code}, which clients do not retry"
                assert broker.alive(), "the broker died of a full disk"
                time.sleep(2)
                assert broker.alive(), "the broker died of a full disk"
                load.check()
                before = load.acked()
                disk.give_back()
                until(30, "produces are accepted again", lambda: refused() == 0, pause=0.3)
                load.wait_for(50)
                assert load.acked() > before
            assert not set().union(*(w.codes for w in load.writers)) - RETRIABLE, [w.codes for w in load.writers]
            load.check()
            broker.restart_after_kill()
            load.check()
            assert broker.stop() == 0
        finally:
            broker.discard()


def power_cut(options):
    """Three times the disk stops in the middle of the load, and comes back with what had been synced."""
    with small_disk(options.scratch, 1500) as disk:
        broker = brokers.make(options, data=disk.mountpoint / "data", settings={"LOGD_STORAGE__WAL_BUDGET_BYTES": str(256 << 20)}).start()
        rng = random.Random(3)
        try:
            with Load(broker, ["power"], 4, size=400) as load:
                for _ in range(3):
                    load.wait_for(rng.randrange(100, 900))
                    disk.cut_power()
                    time.sleep(0.3)
                    broker.kill()
                    disk.unmount()
                    disk.mount()
                    broker.start()
                load.wait_for(100)
            load.check()
        finally:
            broker.discard()


class Damage:
    """A data directory with four topics of known content, of which copies are damaged one way after another."""

    TOPICS = ["sound-a", "sound-b", "victim", "sound-c"]

    def __init__(self, options, clean):
        self.options = options
        self.model = brokers.make(options)
        self.acked = {}
        self.model.start()
        with Connection(self.model.port) as c:
            for topic in self.TOPICS:
                assert c.create_topic(topic) == 0
                self.acked[topic] = {}
                for n in range(200 if topic == "victim" else 40):
                    values = [(b"%s %d %d " % (topic.encode(), n, i)).ljust(900 if topic == "victim" else 100, b"v") for i in range(5)]
                    code, base = c.produce(topic, batch(values))
                    assert code == 0, f"produce answered {code}"
                    self.acked[topic].update({base + i: v for i, v in enumerate(values)})
        if clean:
            assert self.model.stop() == 0
        else:
            self.model.kill()

    def damaged(self, damage):
        broker = brokers.make(self.options)
        shutil.copytree(self.model.data, broker.data)
        path = damage(broker)
        return broker, path

    def honest(self, damage, others_serve):
        """Either the broker refuses to start and names the file, or it serves: the damaged partition whole or with an
        error, but never with less or other than was acknowledged; the others whole."""
        broker, path = self.damaged(damage)
        try:
            broker.start(wait=False)
            until(30, "the broker serves or ends", lambda: not broker.alive() or broker.answers())
            assert "panicked" not in broker.log_text(), broker.log_tail(10)
            if not broker.alive():
                assert not others_serve, f"damage to {path.name} keeps everyone out:\n{broker.log_tail(10)}"
                assert broker.process.returncode > 0 and path.name in broker.log_text(), f"the message does not name {path.name}:\n{broker.log_tail(10)}"
                return
            for topic in self.TOPICS:
                if topic != "victim":
                    check_partition(broker, topic, 0, self.acked[topic])
            code, found = read_all(broker, "victim")
            if code == 0:
                check_partition(broker, "victim", 0, self.acked["victim"])
            else:
                assert code in STORAGE_ERRORS, f"the damaged partition answers error {code}"
                assert found.items() <= self.acked["victim"].items(), "it serves other bytes than were acknowledged"
                assert path.name in broker.log_text() or path.parent.name in broker.log_text(), "the log does not name the damaged file"
            with Connection(broker.port) as c:
                assert c.produce("sound-a", batch([b"goes on"]))[0] == 0
                assert c.create_topic("new") == 0
            broker.stop()
        finally:
            broker.discard()


def flip(path, at):
    """Turns eight bytes over."""
    with open(path, "r+b") as f:
        f.seek(at)
        data = f.read(8)
        assert data, f"{path} has no byte {at}"
        f.seek(at)
        f.write(bytes(b ^ 0xFF for b in data))
    return path


def used_bytes(path):
    """Length without the zeros at the end, which a preallocated file has."""
    return len(path.read_bytes().rstrip(b"\0"))


def flip_within(path, share):
    return flip(path, int(used_bytes(path) * share))


def files(broker, word):
    """Files whose name or folder says `word`, the fullest first."""
    found = [p for p in broker.data.rglob("*") if p.is_file() and word in str(p.relative_to(broker.data)) and p.stat().st_size]
    assert found, f"no {word} file among {sorted(str(p.relative_to(broker.data)) for p in broker.data.rglob('*') if p.is_file())[:40]}"
    return sorted(found, key=lambda p: -used_bytes(p))


def victims(broker, suffix):
    """The victim's file: the largest, as it has the most records."""
    return max(broker.partition_files(suffix), key=used_bytes)


def cut(path):
    with open(path, "r+b") as f:
        f.truncate(used_bytes(path) // 2)
    return path


def remove(path):
    path.unlink()
    return path


def damaged_partition_files(options):
    model = Damage(options, clean=True)
    try:
        for suffix in (".log", ".idx"):
            for share in (0.1, 0.5, 0.95):
                model.honest(lambda b: flip_within(victims(b, suffix), share), others_serve=True)
            model.honest(lambda b: cut(victims(b, suffix)), others_serve=True)
            model.honest(lambda b: remove(victims(b, suffix)), others_serve=True)
    finally:
        model.model.discard()


def damaged_checkpoint(options):
    model = Damage(options, clean=True)
    try:
        for share in (0.05, 0.5, 0.9):
            model.honest(lambda b: flip_within(files(b, "checkpoint")[0], share), others_serve=False)
        model.honest(lambda b: cut(files(b, "checkpoint")[0]), others_serve=False)
    finally:
        model.model.discard()


def damaged_write_ahead_log(options):
    model = Damage(options, clean=False)
    try:
        for share in (0.1, 0.5, 0.8):
            model.honest(lambda b: flip_within(files(b, "wal")[0], share), others_serve=False)
    finally:
        model.model.discard()


# Kafka ends itself when its disk is full, loses what it did not sync, and cuts damaged logs short: the reasons for this file.
NOT_KAFKA = {full_disk, power_cut, damaged_partition_files, damaged_checkpoint, damaged_write_ahead_log}
CASES = {
    "a full disk": full_disk,
    "power lost under load": power_cut,
    "damaged segments and ledgers": damaged_partition_files,
    "a damaged checkpoint": damaged_checkpoint,
    "a damaged write-ahead log": damaged_write_ahead_log,
}
