"""A small disk of the tests' own: ext4 in a file, which can fill up, turn read-only, or lose its power."""

import contextlib
import fcntl
import os
import pathlib
import struct
import subprocess
import tempfile

EXT4_IOC_SHUTDOWN, WITHOUT_FLUSHING_THE_JOURNAL = 0x8004587D, 2


class SmallDisk:
    def __init__(self, scratch, megabytes):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="disk-", dir=scratch))
        self.image, self.mountpoint = self.folder / "image", self.folder / "mnt"
        self.mountpoint.mkdir()
        with open(self.image, "wb") as f:
            f.truncate(megabytes << 20)
        run("mkfs.ext4", "-q", "-F", "-m", "0", str(self.image))

    def mount(self, *options):
        run("mount", "-o", ",".join(["loop", *options]), str(self.image), str(self.mountpoint))

    def unmount(self):
        run("umount", str(self.mountpoint))

    def free_mb(self):
        stat = os.statvfs(self.mountpoint)
        return stat.f_bavail * stat.f_frsize / (1 << 20)

    def fill(self, leave_mb):
        """Takes the space away, down to `leave_mb`, as another program on the same disk would."""
        with open(self.mountpoint / "somebody-elses-file", "wb") as f:
            os.posix_fallocate(f.fileno(), 0, max(1, int(self.free_mb() - leave_mb) << 20))

    def give_back(self):
        (self.mountpoint / "somebody-elses-file").unlink()

    def cut_power(self):
        """From here on nothing reaches the image: what was not synced is lost, and the journal is not flushed."""
        fd = os.open(self.mountpoint, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING_THE_JOURNAL))
        finally:
            os.close(fd)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()} (the disk tests need root and loop devices)"


@contextlib.contextmanager
def small_disk(scratch, megabytes, *options):
    disk = SmallDisk(scratch, megabytes)
    disk.mount(*options)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk.mountpoint)], capture_output=True)
        disk.image.unlink()
