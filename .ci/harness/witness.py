"""Another client, who minds its own business while something bad happens to the broker, and tells if it noticed."""

import threading
import time

from harness.wire import Connection, batch, values_in

PATIENCE_SECONDS = 3.0


class Witness(threading.Thread):
    def __init__(self, broker, topic="witness"):
        super().__init__(daemon=True)
        self.broker, self.topic = broker, topic
        self.stopping = threading.Event()
        self.rounds, self.longest, self.problem = 0, 0.0, None
        with Connection(broker.port) as c:
            code = c.create_topic(topic)
            assert code == 0, f"creating {topic} answered {code}"

    def run(self):
        try:
            with Connection(self.broker.port, timeout=30) as c:
                while not self.stopping.wait(0.03):
                    self.one_round(c)
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"

    def one_round(self, c):
        started = time.monotonic()
        value = b"round %d" % self.rounds
        code, offset = c.produce(self.topic, batch([value]))
        if code in (3, 6) and self.rounds == 0:  # Kafka announces a topic before it serves
            return
        assert code == 0, f"a produce was answered with error {code}"
        code, _, data = c.fetch(self.topic, offset)
        assert code == 0 and (offset, value) in values_in(data), f"the record just written is not read back (error {code})"
        self.rounds += 1
        self.longest = max(self.longest, time.monotonic() - started)

    def check(self):
        """Since the last check: rounds were made, none took too long."""
        rounds = self.rounds
        deadline = time.monotonic() + PATIENCE_SECONDS + 2
        while self.rounds < rounds + 2 and self.problem is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.problem is None, f"another client was disturbed: {self.problem}"
        assert self.rounds >= rounds + 2, "another client is not served any more"
        longest, self.longest = self.longest, 0.0
        assert longest <= PATIENCE_SECONDS, f"another client waited {longest:.1f} s"

    def stop(self):
        self.stopping.set()
        self.join(30)
