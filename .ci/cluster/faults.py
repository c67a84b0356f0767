"""What can be done to brokers, their networks, clocks, disks and files; each the smallest act, named as it is.

Promise: an act that cannot be done raises; nothing is skipped. What was done can be undone by `Day.heal`, or says how.

Not here: when and to whom (see `scenarios`), clients.
"""

import contextlib
import pathlib
import shutil
import subprocess
import sys
import time

from harness.disk import SmallDisk
from network import run

HERE = pathlib.Path(__file__).parent
FAKETIME = pathlib.Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")

# --- preloaded libraries ---------------------------------------------------------------------------------------


def syncs_library(scratch):
    """Compiles syncs.c, once a run."""
    library = pathlib.Path(scratch) / "syncs.so"
    if not library.exists():
        run("cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(library), str(HERE / "syncs.c"), "-ldl")
    return library


def with_switched_syncs(broker, scratch):
    """Before its start: the broker's syncs can be made slow or fail."""
    switch = broker.home / "switch"
    switch.mkdir(exist_ok=True)
    broker.environment |= {"LD_PRELOAD": str(syncs_library(scratch)), "SYNCS_SWITCH": str(switch)}


def slow_syncs(broker, ms):
    path = broker.home / "switch" / "slow"
    if ms:
        path.write_text(str(ms))
    else:
        path.unlink(missing_ok=True)


def fail_one_sync(broker):
    (broker.home / "switch" / "fail").touch()


def failed_a_sync(broker):
    return not (broker.home / "switch" / "fail").exists()


def with_own_clock(broker):
    """Before its start: the broker's wall clock can be set. The monotonic one stays as it is."""
    assert FAKETIME.exists(), f"{FAKETIME} is missing: .ci/install brings it"
    broker.environment |= {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(broker.home / "clock"),
                           "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1", "FAKETIME_CACHE_DURATION": "1"}
    set_clock(broker, 0)


def set_clock(broker, seconds):
    (broker.home / "clock").write_text(f"{seconds:+d}\n")


# --- disks -----------------------------------------------------------------------------------------------------


def with_small_disk(broker, scratch, megabytes):
    """Before its start: the broker's data lies on a disk of its own, which can fill up or lose its power."""
    disk = SmallDisk(scratch, megabytes)
    disk.mount()
    broker.disk, broker.data = disk, disk.mountpoint / "data"
    return disk


def cut_power(brokers):
    """All at once: no disk takes anything any more, then the processes are gone. Undone by `restore_power`."""
    for broker in brokers:
        broker.disk.cut_power()
    for broker in brokers:
        broker.kill()


def restore_power(brokers):
    for broker in brokers:
        broker.disk.unmount()
        broker.disk.mount()


def discard_disk(broker):
    disk = getattr(broker, "disk", None)
    if disk is not None:
        subprocess.run(["umount", "-l", str(disk.mountpoint)], capture_output=True)
        disk.image.unlink(missing_ok=True)


def wipe(broker):
    shutil.rmtree(broker.data)


def keep_copy(broker):
    """Of a stopped broker's files; gives the copy's folder."""
    copy = broker.home / "yesterday"
    run("cp", "-a", "--reflink=auto", "--sparse=always", str(broker.data), str(copy))
    return copy


def put_back(broker, copy):
    wipe(broker)
    run("cp", "-a", "--reflink=auto", "--sparse=always", str(copy), str(broker.data))


# --- files of a stopped broker ---------------------------------------------------------------------------------


def segments(broker, log):
    """The segments of one log, by its folder's name, that hold anything; the last is the active one."""
    return [path for path in sorted((broker.data / "logs" / log).glob("*.log")) if path.stat().st_size]


def flip_bit(path, at):
    """Says where."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        assert byte, f"{path} has no byte {at}"
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x10]))
    return f"{path.parent.name}/{path.name} byte {at}"


def cut_short(path, size):
    with open(path, "r+b") as file:
        file.truncate(size)
    return f"{path.parent.name}/{path.name} to {size} bytes"


# --- slow and lossy network ------------------------------------------------------------------------------------


@contextlib.contextmanager
def lossy(cluster, loss_percent, delay_ms, jitter_ms, seed):
    """Everything that brokers send is delayed and partly lost, until the end of the block."""
    workers = []
    try:
        for broker in cluster.brokers:
            command = [*cluster.network.inside(broker.index), sys.executable, str(HERE / "delay.py"), *map(str, (loss_percent, delay_ms, jitter_ms, seed))]
            with open(broker.home / "delay.log", "ab") as log:
                workers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True))
        for worker in workers:
            line = worker.stdout.readline()
            assert line.strip() == "ready", f"delay.py did not start ({line!r}): see delay.log beside the broker's log"
        yield
        assert all(worker.poll() is None for worker in workers), "delay.py ended too early: see delay.log beside the broker's log"
    finally:
        for worker in workers:
            worker.stdin.close()
        for worker in workers:
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()


def pause_for(broker, seconds):
    broker.pause()
    try:
        time.sleep(seconds)
    finally:
        broker.go_on()
