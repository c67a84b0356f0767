"""Starts that cannot succeed: the broker says what, where and what to do, ends with a status, and hurts nobody else."""

import pathlib
import time

from harness import broker as brokers
from harness.disk import small_disk
from harness.wire import Connection, batch


def fails_to_start(broker, *words, within=25):
    """The process ends by itself, not with success, and its output has each of the words."""
    broker.start(wait=False)
    deadline = time.monotonic() + within
    while broker.alive():
        assert time.monotonic() < deadline, f"still running after {within} s:\n{broker.log_tail(10)}"
        time.sleep(0.05)
    said = broker.log_text()
    assert broker.process.returncode > 0, f"it ended with status {broker.process.returncode}"
    if broker.kind == "logd":
        missing = [w for w in words if w.lower() not in said.lower()]
        assert not missing, f"the message does not say {missing}:\n{broker.log_tail(10)}"
        assert "panicked" not in said, f"it panicked:\n{broker.log_tail(10)}"


def still_serves(broker):
    with Connection(broker.port) as c:
        assert c.produce("kept", batch([b"still here"]))[0] == 0


def with_one_running(options):
    first = brokers.make(options).start()
    with Connection(first.port) as c:
        assert c.create_topic("kept") == 0
    time.sleep(1 if options.kafka else 0)
    still_serves(first)
    return first


def port_in_use(options):
    first = with_one_running(options)
    second = brokers.make(options)
    try:
        second.port = first.port
        fails_to_start(second, str(first.port), "in use")
        still_serves(first)
    finally:
        second.discard()
        first.discard()


def directory_locked(options):
    first = with_one_running(options)
    second = brokers.make(options, data=first.data)
    try:
        fails_to_start(second, str(first.data), "another")
        still_serves(first)
        first.restart_after_kill()  # the lock of the dead is no lock
        still_serves(first)
    finally:
        second.discard()
        first.discard()


def directory_unwritable(options):
    with small_disk(options.scratch, 64) as disk:
        disk.unmount()
        disk.mount("ro")
        broker = brokers.make(options, data=disk.mountpoint / "data")
        try:
            fails_to_start(broker, str(disk.mountpoint), "read-only")
        finally:
            broker.discard()


def directory_is_a_file(options):
    broker = brokers.make(options)
    try:
        broker.data.write_text("not a directory")
        fails_to_start(broker, str(broker.data))
        assert broker.data.read_text() == "not a directory"
    finally:
        broker.discard()


def other_version(options):
    """A directory that a later logd wrote is not touched."""
    broker = with_one_running(options)
    try:
        broker.stop()
        format_file = next(p for p in pathlib.Path(broker.data).rglob("*") if p.name == "format")
        said = format_file.read_bytes()
        digits = [i for i, byte in enumerate(said) if 48 <= byte <= 57]
        assert digits, f"no version in {format_file}: {said!r}"
        format_file.write_bytes(said[:digits[0]] + b"9" + said[digits[0] + 1:])
        later = {p: p.stat().st_size for p in broker.data.rglob("*") if p.is_file()}
        fails_to_start(broker, str(broker.data), "version")
        assert later == {p: p.stat().st_size for p in broker.data.rglob("*") if p.is_file()}, "it changed files of a version it does not know"
        format_file.write_bytes(said)
        broker.start()
        still_serves(broker)
    finally:
        broker.discard()


def someone_elses_directory(options):
    """A directory with other things in it is not taken over."""
    broker = brokers.make(options)
    try:
        broker.data.mkdir()
        (broker.data / "thesis.doc").write_text("years of work")
        broker.start(wait=False)
        time.sleep(3)
        assert (broker.data / "thesis.doc").read_text() == "years of work"
    finally:
        broker.discard()


# Kafka checks neither a version nor foreign files.
NOT_KAFKA = {other_version, directory_unwritable, directory_is_a_file}
CASES = {
    "a port in use": port_in_use,
    "a locked data directory": directory_locked,
    "an unwritable data directory": directory_unwritable,
    "a data directory that is a file": directory_is_a_file,
    "a data directory of another version": other_version,
    "somebody else's files in the data directory": someone_elses_directory,
}
