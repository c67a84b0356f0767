"""The image's and the compose file's settings are settings that this logd has, and the files they mount are there.

Not here: building images and running them, for which the gate's machine may have no Docker.
"""

import os
import pathlib
import re
import subprocess

from harness import broker as brokers
from harness.report import Report

DOCKER = pathlib.Path(__file__).resolve().parent.parent / "docker"


def settings(text):
    """`NAME=value` of a Dockerfile's ENV, `NAME: value` of a compose file."""
    return dict(re.findall(r"^\s+(LOGD_[A-Z_]+)[:=]\s*(.*?)(?: \\)?$", text, re.M))


def services(compose):
    """The text of each service, by name."""
    body = compose.split("\nservices:\n", 1)[1].split("\nvolumes:\n", 1)[0]
    parts = re.split(r"^  ([a-z0-9-]+):\n", body, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2]))


def check_settings(logd, given):
    assert given, "there are no settings"
    others = {k: v for k, v in os.environ.items() if not k.startswith("LOGD_")}
    done = subprocess.run([logd, "config", "check"], env={**others, **given}, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{given}: {done.stderr}"


def check_mounts(compose):
    mounted = re.findall(r"- (\.\.?/\S+?):/", compose)
    assert mounted, "nothing is mounted"
    missing = [path for path in mounted if not (DOCKER / path).exists()]
    assert not missing, f"{missing} are not there"


def main():
    options = brokers.arguments(__doc__)
    report = Report()
    image = settings((DOCKER / "Dockerfile").read_text())
    compose = (DOCKER / "compose.yaml").read_text()
    shared = settings(compose.split("\nservices:\n", 1)[0])
    with report.test("containers/image"):
        check_settings(options.logd, image)
    for name, text in services(compose).items():
        if "<<: *broker" in text:
            with report.test(f"containers/{name}"):
                own = settings(text)
                assert own["LOGD_RPC__ADVERTISE"] in shared["LOGD_NODE__SEEDS"].split(","), "no seed is called so"
                check_settings(options.logd, {**image, **shared, **own})
    with report.test("containers/mounted files"):
        check_mounts(compose)
    report.finish()


if __name__ == "__main__":
    main()
