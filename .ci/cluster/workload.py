"""Clients that work while things break: idempotent producers, readers with positions of their own, a group, and a poller.

Promise: every outcome goes into the history with its time, and one that is not known is said to be unknown. Values are
rising integers, unique in their partition. Which partition comes when is drawn from a seed.

Not here: faults, brokers, judgement (see `checker`). The clients are librdkafka's, by way of confluent-kafka.
"""

import contextlib
import itertools
import logging
import random
import threading
import time

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from harness.report import until

TOPIC, GROUP = "work", "workers"
OFFSETS_TOPIC = "__consumer_offsets"  # there from the group's first member on
RECORD_BYTES = 600
TICK_SECONDS = 0.025
# A client gives up on a silent broker after this long, not after Kafka's 30 s and more: the broker's part of a gap shall show.
CLIENT = {"socket.timeout.ms": 3000, "socket.connection.setup.timeout.ms": 2000, "reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 500,
          "topic.metadata.refresh.interval.ms": 2000, "retry.backoff.ms": 50, "retry.backoff.max.ms": 500}
# Nobody polls an admin client, so its log would go to standard error.
QUIET = {**CLIENT, "log_level": 0}
PRODUCER = {**CLIENT, "enable.idempotence": True, "acks": "all", "linger.ms": 5, "request.timeout.ms": 3000, "queue.buffering.max.messages": 20_000}
CONSUMER = {**CLIENT, "enable.auto.commit": False, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 200, "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 1000, "fetch.error.backoff.ms": 100}
# Nobody knows what became of a record, unless the answer can only be given to one that was never appended.
CERTAINLY_NOT_DONE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.POLICY_VIOLATION}
COMMIT_REFUSED = {KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.REBALANCE_IN_PROGRESS, KafkaError.FENCED_INSTANCE_ID}


def payload(value):
    """The value, and more bytes that follow from it, so that a changed byte shows."""
    text = b"%d " % value
    return (text * (RECORD_BYTES // len(text) + 1))[:RECORD_BYTES]


def value_of(data):
    try:
        value = int(data.split(b" ", 1)[0])
    except (ValueError, AttributeError):
        return f"garbled: {data!r}"[:80]
    return value if data == payload(value) else f"garbled: {data!r}"[:80]


class Workload:
    def __init__(self, bootstrap, recorder, seed, log_path, partitions=6, replication=1):
        self.recorder, self.seed = recorder, seed
        self.partitions, self.replication = partitions, replication
        self.keys = [(TOPIC, p) for p in range(partitions)]
        self.values = {key: itertools.count() for key in self.keys}  # next() is atomic
        self.acknowledged = {key: [] for key in self.keys}  # when, in ns
        self.highest = {key: -1 for key in self.keys}  # highest acknowledged offset
        self.stopping, self.threads, self.failures = threading.Event(), [], []
        self.loss_began = None  # when, in ns
        self.logger = logging.getLogger(f"clients-{id(self)}")
        self.logger.propagate = False
        self.logger.addHandler(logging.FileHandler(log_path))
        self.logger.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self.bootstrap = bootstrap

    def settings(self, base, **more):
        return {**base, "bootstrap.servers": self.bootstrap, "logger": self.logger, **{k.replace("_", "."): v for k, v in more.items()}}

    def create_topic(self, within=30):
        admin = AdminClient(self.settings(QUIET))
        topic = NewTopic(TOPIC, self.partitions, self.replication, config={"segment.bytes": str(64 << 10)})

        def created():
            try:
                admin.create_topics([topic], operation_timeout=10, request_timeout=15)[TOPIC].result(20)
            except KafkaException as problem:
                if problem.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    self.logger.warning("creating %s: %s", TOPIC, problem)
                    return False
            return True
        until(within, f"topic {TOPIC} is created", created, pause=0.5)

    def start(self):
        jobs = [("producer-0", self.produce, 10_000), ("producer-1", self.produce, 60_000), ("reader-0", self.read), ("reader-1", self.read),
                ("member-0", self.belong), ("member-1", self.belong), ("poller", self.watch)]
        for name, job, *more in jobs:
            thread = threading.Thread(target=self.guarded, args=(job, name, *more), name=name, daemon=True)
            self.threads.append(thread)
            thread.start()

    def guarded(self, job, name, *more):
        try:
            job(name, random.Random(f"{self.seed} {name}"), *more)
        except Exception as problem:  # a client thread that died would make a run look better than it was
            self.logger.exception("%s", name)
            self.failures.append(f"{name}: {type(problem).__name__}: {problem}")

    def stop(self, within=90):
        self.stopping.set()
        deadline = time.monotonic() + within
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self.failures.append(f"{thread.name} did not stop within {within} s")

    # --- producers ---------------------------------------------------------------------------------------------

    def produce(self, name, chance, timeout_ms):
        for life in itertools.count():
            fatal = threading.Event()
            producer = Producer(self.settings(PRODUCER, message_timeout_ms=timeout_ms))
            process = f"{name}.{life}"
            turn = itertools.cycle(chance.sample(self.keys, len(self.keys)))
            while not self.stopping.is_set() and not fatal.is_set():
                # Whoever has a hundred partitions visits more of them at a time, so that each is visited ten times a second.
                keys = [next(turn) for _ in range(max(2, self.partitions // 5))]
                self.send(producer, process, [key for key in keys for _ in range(chance.choice((1, 1, 1, 3)))], fatal)
                with self.fatal_where_data_is_lost(fatal):
                    self.reports_for(producer, TICK_SECONDS)
            # Longer than the longest timeout of a record, so that every outcome is reported.
            with self.fatal_where_data_is_lost(fatal):
                producer.flush(timeout_ms / 1000 + 5)
            if self.stopping.is_set():
                return

    @contextlib.contextmanager
    def fatal_where_data_is_lost(self, fatal):
        """A producer whose acknowledged batches are gone is out of sequence for good. Anywhere else that is the run's failure."""
        try:
            yield
        except KafkaException as problem:
            if self.loss_began is None or not problem.args[0].fatal():
                raise
            fatal.set()

    @staticmethod
    def reports_for(producer, seconds):
        """Takes delivery reports for so long: `poll` alone returns at the first."""
        until_then = time.monotonic() + seconds
        while (left := until_then - time.monotonic()) > 0:
            producer.poll(left)

    def send(self, producer, process, keys, fatal):
        value = [["send", *key, None, next(self.values[key])] for key in keys]
        op, open_records = self.recorder.invoke(process, "send", value), [len(value)]
        done = [[*entry, "info"] for entry in value]

        def finished(index):
            def report(problem, message):
                key = (done[index][1], done[index][2])
                if problem is None:
                    # None: librdkafka gave up waiting for this batch's answer, and one behind it was acknowledged.
                    offset = message.offset()
                    done[index][3], done[index][5] = offset, "ok"
                    self.acknowledged[key].append(time.monotonic_ns())
                    self.highest[key] = max(self.highest[key], -1 if offset is None else offset)
                else:
                    done[index][5] = "fail" if problem.code() in CERTAINLY_NOT_DONE else "info"
                    self.logger.warning("%s: %s", process, problem)
                    if problem.fatal():
                        fatal.set()
                settle()
            return report

        def settle():
            open_records[0] -= 1
            if open_records[0] == 0:
                outcomes = {entry[5] for entry in done}
                self.recorder.complete(op, process, outcomes.pop() if len(outcomes) == 1 else "info", "send", done)

        for index, (_, topic, partition, _, number) in enumerate(value):
            try:
                producer.produce(topic, payload(number), partition=partition, on_delivery=finished(index))
            except BufferError:  # the local queue is full: it never left
                done[index][5] = "fail"
                settle()
            except KafkaException as problem:  # a producer that had a fatal error takes nothing more
                self.logger.warning("%s: %s", process, problem)
                done[index][5] = "fail"
                fatal.set()
                settle()

    # --- consumers ---------------------------------------------------------------------------------------------

    def poll(self, consumer, process, timeout=0.3, moved=None):
        """One recorded poll: [(key, offset)] of what was shown."""
        op = self.recorder.invoke(process, "poll")
        shown = []
        for message in consumer.consume(100, timeout):
            if message.error():
                self.logger.warning("%s: %s", process, message.error())
            else:
                shown.append(["poll", message.topic(), message.partition(), message.offset(), value_of(message.value())])
        more = {"rebalanced": [list(key) for key in moved]} if moved else {}
        self.recorder.complete(op, process, "ok", "poll", shown, **more)
        return [((t, p), o) for _, t, p, o, _ in shown]

    def read(self, name, chance):
        """Assigned by itself; now and then it takes other partitions, begins again, or is another client."""
        for life in itertools.count():
            consumer, process, positions = Consumer(self.settings(CONSUMER, group_id=f"unused-{name}")), f"{name}.{life}", {}
            lives_until = time.monotonic() + chance.uniform(10, 20)
            while not self.stopping.is_set() and time.monotonic() < lives_until:
                keys = chance.sample(self.keys, max(1, len(self.keys) - chance.randrange(3)))
                restart = chance.random() < 0.2
                self.assign(consumer, process, keys, {} if restart else positions)
                if restart:
                    positions.clear()
                positions = {key: at for key, at in positions.items() if key in keys}
                changes_at = time.monotonic() + chance.uniform(2, 5)
                while not self.stopping.is_set() and time.monotonic() < changes_at:
                    positions.update({key: offset + 1 for key, offset in self.poll(consumer, process)})
            consumer.close()
            if self.stopping.is_set():
                return

    def assign(self, consumer, process, keys, positions):
        consumer.assign([TopicPartition(*key, positions.get(key, 0)) for key in keys])
        value = [[*key, None if key in positions else 0] for key in keys]
        self.recorder.complete(self.recorder.invoke(process, "assign", value), process, "ok", "assign", value)

    def belong(self, name, chance):
        """A member of the group: polls, then commits what it was shown; now and then it leaves and another comes."""
        for life in itertools.count():
            consumer, process, moved = Consumer(self.settings(CONSUMER, group_id=GROUP)), f"{name}.{life}", []

            def move(_, partitions):
                moved.extend((tp.topic, tp.partition) for tp in partitions)
            consumer.subscribe([TOPIC], on_assign=move, on_revoke=move, on_lost=move)
            self.recorder.complete(self.recorder.invoke(process, "subscribe", [TOPIC]), process, "ok", "subscribe", [TOPIC])
            lives_until = time.monotonic() + chance.uniform(12, 25)
            while not self.stopping.is_set() and time.monotonic() < lives_until:
                moved.clear()
                shown = dict(self.poll(consumer, process, moved=moved))
                at = {key: offset + 1 for key, offset in shown.items() if key not in moved}
                if at:
                    self.commit(consumer, process, at)
            consumer.close()
            if self.stopping.is_set():
                return

    def commit(self, consumer, process, at):
        value = [[GROUP, *key, offset] for key, offset in sorted(at.items())]
        op = self.recorder.invoke(process, "commit", value)
        outcome = "ok"
        try:
            answers = consumer.commit(offsets=[TopicPartition(*key, offset) for key, offset in at.items()], asynchronous=False)
            if any(tp.error for tp in answers):
                outcome = "info"
        except KafkaException as problem:
            outcome = "fail" if problem.args[0].code() in COMMIT_REFUSED else "info"
            self.logger.warning("%s: commit: %s", process, problem)
        self.recorder.complete(op, process, outcome, "commit", value)

    # --- what is told about the log ------------------------------------------------------------------------------

    def watch(self, name, _):
        admin = AdminClient(self.settings(QUIET))
        group = Consumer(self.settings(CONSUMER, group_id=GROUP))  # never joins
        while not self.stopping.wait(0.5):
            self.ask_bounds(admin, name)
            self.ask_committed(group, name)
        group.close()

    def ask_bounds(self, admin, process="poller"):
        """{key: end}; a partition that does not answer is left out."""
        op = self.recorder.invoke(process, "offsets")
        found = {}
        for name, spec in (("start", OffsetSpec.earliest()), ("end", OffsetSpec.latest())):
            futures = admin.list_offsets({TopicPartition(*key): spec for key in self.keys}, request_timeout=4)
            for tp, future in futures.items():
                try:
                    offset = future.result(10).offset
                    if offset >= 0:  # librdkafka's number for "not told", when a broker was away
                        found[tp.topic, tp.partition, name] = offset
                except KafkaException as problem:
                    self.logger.info("offsets of %s/%s: %s", tp.topic, tp.partition, problem)
        value = [[*key, found.get((*key, "start")), found.get((*key, "end"))] for key in self.keys]
        self.recorder.complete(op, process, "ok", "offsets", value)
        return {key: found[(*key, "end")] for key in self.keys if (*key, "end") in found}

    def ask_committed(self, group, process="poller"):
        value = [[GROUP, *key, None] for key in self.keys]
        op = self.recorder.invoke(process, "committed", value)
        try:
            answers = group.committed([TopicPartition(*key) for key in self.keys], timeout=4)
        except KafkaException as problem:
            self.logger.info("committed offsets: %s", problem)
            self.recorder.complete(op, process, "info", "committed", value)
            return
        value = [[GROUP, tp.topic, tp.partition, tp.offset if tp.offset >= 0 else None] for tp in answers if not tp.error]
        self.recorder.complete(op, process, "ok", "committed", value)

    # --- the end -------------------------------------------------------------------------------------------------

    def read_everything(self, within=60, patience=15):
        """After healing: every partition from its beginning to the highest offset known. {key: end of the log}."""
        admin = AdminClient(self.settings(QUIET))
        ends, deadline = {}, time.monotonic() + within
        while len(ends) < len(self.keys) and time.monotonic() < deadline:
            ends.update(self.ask_bounds(admin))
        targets = {key: max(ends.get(key, 0), self.highest[key] + 1) for key in self.keys}
        position = {key: 0 for key in self.keys}

        def behind():
            return {key: (position[key], targets[key]) for key in self.keys if position[key] < targets[key]}

        for life in itertools.count():
            if not behind() or time.monotonic() > deadline:
                break
            # A client that is stuck is replaced by one that begins anew.
            consumer, process = Consumer(self.settings(CONSUMER, group_id="unused-final")), f"final.{life}"
            position = {key: 0 for key in self.keys}
            self.assign(consumer, process, self.keys, {})
            moved_at = time.monotonic()
            while behind() and time.monotonic() < min(deadline, moved_at + patience):
                shown = self.poll(consumer, process)
                if shown:
                    moved_at = time.monotonic()
                position.update({key: offset + 1 for key, offset in shown})
            consumer.close()
        complete = len(ends) == len(self.keys) and not behind()
        self.recorder.note("final", "final", {"complete": complete, "behind": [[*key, *at] for key, at in behind().items()],
                                              "without an end": [key for key in self.keys if key not in ends]})
        return ends

    def loss_begins(self):
        """From now on somebody may have partitions go on by force."""
        self.loss_began = time.monotonic_ns()

    def loss_accepted(self, kept):
        """These partitions did: `kept` is {key: offset up to which they have certainly everything}."""
        self.recorder.note("nemesis", "loss", {"began": self.loss_began, "kept": [[*key, offset] for key, offset in sorted(kept.items())]})
        for key in self.highest.keys() & kept.keys():
            self.highest[key] = min(self.highest[key], kept[key] - 1)

    def gaps_ms(self, begin_ns, end_ns):
        """The longest time without an acknowledgement, per partition: {"p50": ms, "p99": ms, "max": ms} over partitions."""
        longest = []
        for times in self.acknowledged.values():
            inside = [begin_ns, *(t for t in sorted(times) if begin_ns < t < end_ns), end_ns]
            longest.append(max(b - a for a, b in zip(inside, inside[1:])) // 10**6)
        longest.sort()
        return {"p50": longest[len(longest) // 2], "p99": longest[min(len(longest) - 1, len(longest) * 99 // 100)], "max": longest[-1]}
