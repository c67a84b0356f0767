"""SIGKILL and SIGTERM at any moment, under load: nothing acknowledged is lost, nothing appears twice, no offset is skipped."""

import random
import signal
import time

from harness import broker as brokers
from harness.load import Load


def killed_under_load(options):
    rng = random.Random(7)
    broker = brokers.make(options).start()
    try:
        with Load(broker, ["kill-a", "kill-b"], 3) as load:
            for _ in range(2 if options.kafka else 8):
                load.wait_for(rng.randrange(5, 1500))
                broker.restart_after_kill(pause=0)
                load.wait_for(1)
        load.check()
    finally:
        broker.discard()


def killed_while_starting(options):
    """Killed again and again before it is ready, with a log to replay, it loses nothing either."""
    rng = random.Random(9)
    broker = brokers.make(options).start()
    try:
        with Load(broker, ["start"], 2, size=2000) as load:
            load.wait_for(2000)
        for _ in range(2 if options.kafka else 10):
            broker.kill()
            broker.start(wait=False)
            time.sleep(rng.random() * (3 if options.kafka else 0.3))
        broker.kill()
        broker.start()
        load.check()
    finally:
        broker.discard()


def stopped_under_load(options):
    broker = brokers.make(options).start()
    try:
        with Load(broker, ["stop"], 3) as load:
            for _ in range(2):
                load.wait_for(300)
                started = time.monotonic()
                status = broker.stop(40)
                assert status in ((0,) if broker.kind == "logd" else (0, 143)), f"it ended with status {status}"
                print(f"     stopped in {time.monotonic() - started:.2f} s")
                broker.start()
            load.wait_for(100)
        load.check()
    finally:
        broker.discard()


def second_signal(options):
    """A second SIGTERM does not wait for anyone, and still nothing acknowledged is lost."""
    broker = brokers.make(options).start()
    try:
        with Load(broker, ["hurry"], 3) as load:
            load.wait_for(300)
            broker.process.send_signal(signal.SIGTERM)
            time.sleep(0.02)
            broker.process.send_signal(signal.SIGTERM)
            broker.process.wait(10)
            broker.start()
            load.wait_for(50)
        load.check()
    finally:
        broker.discard()


NOT_KAFKA = {second_signal}
CASES = {
    "SIGKILL under load, again and again": killed_under_load,
    "SIGKILL while it starts": killed_while_starting,
    "SIGTERM under load": stopped_under_load,
    "a second SIGTERM": second_signal,
}
