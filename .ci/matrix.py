"""Eight stock clients against one broker, or three: each produces with every codec it has, and each reads what all of them wrote.

Then, per client: lookups by time, the administration of topics and groups, compacted topics, static members, automatic creation
on and off, committed offsets and idempotent producers over SIGKILL, and groups whose members come, go and die. Everything is compared byte for byte with what was sent.
"""

import collections
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from harness import agents, broker as brokers
from harness.agents import CODECS, DELETES_GROUPS, NAMES, SENDS_NULL_HEADER, STATIC, STRATEGIES, Kcat, Refused, Tools, b64, once_loaded, refused, settled
from harness.compacted import SETTINGS, CompactedTopics
from harness.report import Report, until
from harness.wire import Connection

PARTITIONS = 3
GROUP_PARTITIONS = 8
SIZES = [1, 10, 100, 100, 1_000, 1_000, 20_000]


class Matrix:
    def __init__(self, options):
        self.options = options
        self.report = Report()
        self.tools = Tools(options.tools, options.scratch)
        self.tools.compile_java()
        self.tools.compile_go()
        self.broker = None
        self.clients = {}
        self.kind = "kafka" if options.kafka else "logd"
        self.compacted = CompactedTopics(self)
        self.sent = {}  # topic -> partition -> records in the order sent

    def start(self, **how):
        self.broker = brokers.make(self.options, settings=SETTINGS[self.kind], **how).start()
        self.clients = {name: self.tools.agent(name, self.broker.bootstrap) for name in NAMES}

    def end(self):
        for client in self.clients.values():
            client.close()
        self.broker.stop()

    def wanted(self, name):
        return self.options.only in name

    def test(self, name):
        return self.report.test(name)

    def create(self, topic, partitions=PARTITIONS, configs=()):
        with Connection(self.broker.port) as c:
            code = c.create_topic(topic, partitions, configs)
        assert code == 0, f"creating {topic} answered error {code}"

    def ends(self, topic, partitions):
        """The end offset of every partition; just after a start a partition may still be without a leader."""
        def answers():
            found = [end_offset(port, topic, p) for p, port in enumerate(self.leaders(topic, partitions))]
            return None if None in found else found
        return until(20, f"{topic}'s end offsets are known", answers)

    def leaders(self, topic, partitions):
        """The port of each partition's leader, or none."""
        with Connection(self.broker.port) as c:
            metadata = c.metadata([topic])
        ports = {node: port for node, _, port, _ in metadata["brokers"]}
        leaders = {p["index"]: p["leader"] for p in metadata["topics"][topic]["partitions"]}
        return [ports.get(leaders.get(p)) for p in range(partitions)]

    # --- every codec, every pair -------------------------------------------------------------------------------

    def produce_everything(self):
        for name in NAMES:
            for codec in CODECS:
                self.produce_known(name, codec)

    def produce_known(self, name, codec):
        topic = f"from.{name}.{codec}"
        records = known_records(name, codec)
        with self.test(f"produce/{name}/{codec}"):
            self.create(topic)
            acks = self.clients[name].produce(topic, codec, records)
            by_partition = collections.defaultdict(list)
            for r in records:
                by_partition[r["p"]].append(r)
            if acks is not None:
                assert acks == expected_acks(records), "the acknowledged offsets are not 0, 1, 2, ... per partition"
            self.sent[topic] = by_partition

    def read_everything(self):
        want = {t: {str(p): len(rs) for p, rs in parts.items()} for t, parts in self.sent.items()}
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda name: self.read_with(name, want), NAMES))

    def read_with(self, reader, want):
        try:
            records = self.clients[reader].read(want)
        except Refused as problem:
            with self.test(f"consume/{reader}"):
                raise AssertionError(problem) from None
            return
        got = collections.defaultdict(list)
        for r in records:
            got[r["t"], r["p"]].append(r)
        for writer in NAMES:
            with self.test(f"consume/{reader} reads {writer}"):
                for codec in CODECS:
                    topic = f"from.{writer}.{codec}"
                    assert topic in self.sent, f"{topic} could not be produced"
                    for partition, sent in self.sent[topic].items():
                        same_records(f"{topic}/{partition}", sent, got[topic, partition], reader)

    # --- lookups, administration -------------------------------------------------------------------------------

    def times(self):
        # One batch whose timestamps rise, then one that lies earlier: the answer is the first record in offset order at
        # or after the time, found inside the batch.
        base = 1_700_000_000_000
        stamps = [base + 100 * i for i in range(20)] + [base + 5_000, base + 300, base + 6_000]
        cases = {base - 1: 0, base: 0, base + 1: 1, base + 450: 5, base + 1_900: 19, base + 1_901: 20, base + 5_001: 22, base + 6_001: -1}
        self.create("times")
        self.clients["confluent-kafka"].produce("times", "lz4", [{"p": 1, "k": b64(b"k"), "v": b64(b"v"), "ts": ts} for ts in stamps])
        for name in NAMES:
            with self.test(f"times/{name}"):
                found = self.clients[name].times("times", [[1, ts] for ts in cases])
                assert found == list(cases.values()), f"asked {[ts - base for ts in cases]}, wanted {list(cases.values())}, got {found}"
                assert self.clients[name].times("times", [[0, base]]) == [-1], "an empty partition has no offset for any time"

    def each_by_itself(self):
        """What needs one client only, for all of them side by side."""
        wanted = [step for name, step in (("admin", self.administration), ("static", self.static_members)) if self.wanted(name)]

        def steps(client):
            for step in wanted:
                step(client)

        with ThreadPoolExecutor(2 * len(NAMES)) as pool:
            running = [pool.submit(steps, name) for name in NAMES]
            if self.wanted("compacted"):
                running += [pool.submit(self.compacted.by, name) for name in NAMES]
            for one in running:
                one.result()

    def administration(self, name):
        if name == "kcat":  # it has no such commands; it lists
            return
        client, topic = self.clients[name], f"admin.{name}"
        with self.test(f"admin/{name}"):
            client.create(topic, 4)
            refused(lambda: client.create(topic, 4), "creating a topic that exists")
            self.let_kafka_catch_up()
            assert topic in client.topics() and topic in self.clients["kcat"].topics(), "a created topic is not listed"
            client.produce(topic, "none", [{"p": 3, "k": b64(b"k"), "v": b64(b"first life")}])
            client.delete(topic)
            until(10, "the topic is gone", lambda: topic not in client.topics())
            # The same name again is another topic: nothing of the first life may be left.
            until(10, "the name is free", lambda: self.try_create(topic))
            self.let_kafka_catch_up()
            client.produce(topic, "none", [{"p": 0, "k": b64(b"k"), "v": b64(b"second life")}])
            values = [(r["p"], r["v"]) for r in client.read({topic: {"0": 1}})]
            assert values == [(0, b64(b"second life"))], values
        with self.test(f"admin/{name}: changes"):
            self.changes(client, topic)
        with self.test(f"admin/{name}: groups"):
            self.groups_administered(name)

    def changes(self, client, topic):
        """Its configuration, its partitions and the beginning of one."""
        client.configure(topic, "retention.ms", "86400000")
        self.let_kafka_catch_up()
        assert client.config(topic, "retention.ms") == "86400000"
        refused(lambda: client.configure(topic, "retention.ms", "soon"), "a retention of 'soon'")
        assert client.config(topic, "retention.ms") == "86400000", "a refused change changed something"
        client.grow(topic, 6)
        refused(lambda: client.grow(topic, 5), "taking a partition away")
        until(10, "the new partitions are served", lambda: None not in self.ends(topic, 6))
        client.produce(topic, "none", [{"p": 5, "k": b64(b"k"), "v": b64(b"%d" % n)} for n in range(5)])
        assert client.delete_records(topic, 5, 3) == 3
        assert [r["o"] for r in client.read({topic: {"5": 2}}) if r["p"] == 5] == [3, 4], "deleted records are read, or others are missing"
        refused(lambda: client.delete_records(topic, 5, 99), "deleting records that are not there yet")

    def groups_administered(self, name):
        client, group, topic = self.clients[name], f"admin.group.{name}", f"admin.{name}"
        once_loaded(lambda: client.commit(group, topic, {"0": 1}))
        assert group in client.groups(), "a group with committed offsets is not listed"
        assert client.describe_group(group).upper() == "EMPTY"
        if name in DELETES_GROUPS:
            client.delete_group(group)
            assert group not in client.groups(), "a deleted group is listed"
            assert client.committed(group, topic, [0]) == {}, "a deleted group has offsets"

    def static_members(self, name):
        """A member with an instance id ends and comes back: it holds what it held, and nobody else is disturbed."""
        if name not in STATIC:
            return
        with self.test(f"static/{name}"):
            topic = f"static.{name}"
            self.create(topic, 4)
            told = self.clients[name].static(f"static.members.{name}", topic, 4)
            assert told["after"] == told["before"], f"held {told['before']} before and {told['after']} after one came back"
            assert told["disturbed"] == 0, f"the member that stayed was assigned anew {told['disturbed']} times"

    def let_kafka_catch_up(self):
        """Kafka answers a creation before the topic is listed or serves; logd does not, and is not waited for."""
        if self.options.kafka:
            time.sleep(1)

    def try_create(self, topic):
        with Connection(self.broker.port) as c:
            return c.create_topic(topic, 4) == 0

    def automatic_creation(self):
        for name in NAMES:
            with self.test(f"auto-create/on/{name}"):
                topic = f"auto.{name}"
                self.clients[name].produce(topic, "none", [{"k": b64(b"k"), "v": b64(b"made on demand")}])
                assert [r["v"] for r in self.clients["confluent-kafka"].read({topic: {"0": 1}})] == [b64(b"made on demand")]

    def no_automatic_creation(self):
        self.start(auto_create=False)
        try:
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(self.not_created_by, NAMES))
        finally:
            self.end()

    def not_created_by(self, name):
        with self.test(f"auto-create/off/{name}"):
            topic = f"absent.{name}"
            refused(lambda: self.clients[name].produce(topic, "none", [{"k": b64(b"k"), "v": b64(b"v")}], timeout=4), "producing to a topic that nobody made")
            self.clients[name].close()
            with Connection(self.broker.port) as c:
                assert topic not in c.metadata(None)["topics"], "the topic was created although auto-create is off"
                assert c.metadata([topic], create=True)["topics"][topic]["code"] == 3
            self.create(topic, 1)
            client = self.clients[name] = self.tools.agent(name, self.broker.bootstrap)
            client.produce(topic, "none", [{"p": 0, "k": b64(b"k"), "v": b64(b"v")}])

    # --- over a kill -------------------------------------------------------------------------------------------

    def offsets_survive(self):
        """Offsets that any library committed are there for every library after SIGKILL."""
        self.create("commits")
        writers = [n for n in NAMES if n != "kcat"]  # kcat commits as a group member only: see groups/kcat
        self.clients["java"].produce("commits", "none", [{"p": p, "k": b64(b"k"), "v": b64(b"v")} for p in range(3) for _ in range(10)])
        offsets = {name: {0: n + 1, 1: n + 2, 2: 9} for n, name in enumerate(writers)}
        committed = set()
        for name in writers:
            with self.test(f"offsets/commit/{name}"):
                self.clients[name].commit(f"commits.{name}", "commits", {str(p): o for p, o in offsets[name].items()})
                committed.add(name)
        self.broker.restart_after_kill()
        for reader in writers:
            with self.test(f"offsets/after SIGKILL/{reader}"):
                for name in committed:
                    found = once_loaded(lambda: self.clients[reader].committed(f"commits.{name}", "commits", [0, 1, 2]))
                    assert found == offsets[name], f"{name} committed {offsets[name]}, found {found}"
                assert self.clients[reader].committed("never-used", "commits", [0]) == {}, "a group that never committed has offsets"

    def idempotent_producers(self):
        """All produce at once while the broker is killed twice: every record once, in order, nothing missing."""
        count = 4_000
        topics = {name: f"idempotent.{name}" for name in NAMES}
        for topic in topics.values():
            self.create(topic)
        records = {name: [{"p": None if name == "kcat" else i % PARTITIONS, "k": b64(b"%d" % (i % 50)), "v": b64(b"%s %06d" % (name.encode(), i))}
                          for i in range(count)] for name in NAMES}
        outcome = {}

        def work(name):
            try:
                outcome[name] = self.clients[name].produce(topics[name], "lz4", records[name], idempotent=True, pace=700, timeout=100)
            except Exception as problem:
                outcome[name] = problem

        threads = [threading.Thread(target=work, args=(name,)) for name in NAMES]
        for thread in threads:
            thread.start()
        for _ in range(2):
            time.sleep(2)
            self.broker.restart_after_kill()
        for thread in threads:
            thread.join()
        for name in NAMES:
            with self.test(f"idempotent/{name}, broker killed twice"):
                if isinstance(outcome[name], Exception):
                    raise outcome[name]
                self.each_once(topics[name], [r["v"] for r in records[name]], name)

    def each_once(self, topic, values, name):
        got = self.clients["java"].read({topic: {str(p): end for p, end in enumerate(self.ends(topic, PARTITIONS))}})
        counts = collections.Counter(r["v"] for r in got)
        missing = [v for v in values if v not in counts]
        twice = [v for v, n in counts.items() if n > 1]
        assert not missing, f"{len(missing)} of {len(values)} acknowledged records are missing"
        assert not twice, f"{len(twice)} of {len(values)} records are there more than once"
        position = {v: i for i, v in enumerate(values)}
        for p in range(PARTITIONS):
            order = [position[r["v"]] for r in got if r["p"] == p]
            assert order == sorted(order), f"partition {p} is out of order"

    # --- groups ------------------------------------------------------------------------------------------------

    def groups(self):
        runs = [(name, strategy) for name in NAMES for strategy in STRATEGIES[name]]
        for name, strategy in runs:
            self.create(f"group.{name}.{strategy}", GROUP_PARTITIONS)
        feed = Feed(self.clients["confluent-kafka"], [f"group.{n}.{s}" for n, s in runs])
        feed.start()
        try:
            with ThreadPoolExecutor(3) as pool:
                handed_over = list(pool.map(lambda run: self.rebalances(*run), runs))
        finally:
            feed.stop()
        self.resume_after_kill(runs, handed_over, feed)

    def rebalances(self, name, strategy):
        """Members come one by one, one leaves in order, one dies, another takes its place: each partition has one owner."""
        topic, group = f"group.{name}.{strategy}", f"members.{name}.{strategy}"
        members = []

        def join(label):
            member = self.tools.member(name, self.broker.bootstrap, group, topic, strategy, f"{strategy}-{label}")
            members.append(member)
            return member

        try:
            with self.test(f"groups/{name}/{strategy}: join, leave, die, replace"):
                first, second = join("a"), None
                settled([first], GROUP_PARTITIONS, 25, "one member holds everything")
                second, third = join("b"), join("c")
                settled([first, second, third], GROUP_PARTITIONS, 25, "three members share")
                first.stop()
                settled([second, third], GROUP_PARTITIONS, 25, "two share after one left")
                second.kill()
                settled([third], GROUP_PARTITIONS, 30, "one takes over after the other died")
                fourth = join("d")
                settled([third, fourth], GROUP_PARTITIONS, 25, "a new member gets its part")
        finally:
            for member in members:
                if member.process.poll() is None:
                    try:
                        member.stop()
                    except AssertionError as problem:
                        print(f"     groups/{name}/{strategy}: {problem}")
        return members

    def resume_after_kill(self, runs, handed_over, feed):
        """A last member, after SIGKILL of the broker, reads on from the commits: all records seen, few of them twice."""
        self.broker.restart_after_kill()
        ends = {run: self.ends(f"group.{run[0]}.{run[1]}", GROUP_PARTITIONS) for run in runs}

        def finish(index):
            (name, strategy), members = runs[index], handed_over[index]
            topic = f"group.{name}.{strategy}"
            with self.test(f"groups/{name}/{strategy}: resumes after SIGKILL, every record seen"):
                before = {(p, o): v for m in members for p, o, _, v in m.records}
                in_hand = {at for m in members for at in m.in_hand_when_killed(before)}
                dropped = [m.dropped_when_stopped(before) for m in members]
                last = self.tools.member(name, self.broker.bootstrap, f"members.{name}.{strategy}", topic, strategy, f"{strategy}-last")
                try:
                    expected = {(p, o) for p in range(GROUP_PARTITIONS) for o in range(ends[name, strategy][p])}

                    def unseen():
                        return expected - in_hand - before.keys() - {(p, o) for p, o, _, _ in last.records}

                    def missing():
                        rest = unseen()
                        for candidates in dropped:
                            rest -= set(sorted(rest & candidates)[:1])
                        return rest

                    until(30, lambda: f"all is seen; {len(missing())} of {len(expected)} missing", lambda: not missing())
                    unshown = in_hand | unseen()
                    last.stop()
                finally:
                    last.process.kill()
                again = [1 for p, o, _, _ in last.records if (p, o) in before]
                assert not again, f"{len(again)} records were read again although their offsets were committed when the members left"
                seen = {**before, **{(p, o): v for p, o, _, v in last.records}}
                stored = {(r["p"], r["o"]): r["v"] for r in self.clients["java"].read({topic: {str(p): n for p, n in enumerate(ends[name, strategy])}})}
                wrong = {at: (seen.get(at), stored.get(at)) for at in seen.keys() | stored.keys() - (unshown - seen.keys()) if seen.get(at) != stored.get(at)}
                assert not wrong, f"{len(wrong)} of {len(stored)} records were shown otherwise than the log holds them, such as {sorted(wrong.items())[:2]}"
                assert sorted(stored.values()) == sorted(feed.values[topic]), "the log does not hold what was produced"

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(finish, range(len(runs))))

    def run(self):
        def chosen(name, *actions):
            if self.wanted(name):
                for action in actions:
                    action()

        self.start()
        try:
            chosen("codecs", self.produce_everything, self.read_everything)
            chosen("times", self.times)
            self.each_by_itself()
            chosen("auto-create", self.automatic_creation)
            chosen("offsets", self.offsets_survive)
            chosen("idempotent", self.idempotent_producers)
            chosen("compacted", self.compacted.survive_a_kill)
            chosen("groups", self.groups)
        finally:
            self.end()
        main_broker = self.broker
        chosen("auto-create", self.no_automatic_creation)
        self.report.finish(main_broker)


class Feed(threading.Thread):
    """Writes a few records to every partition of some topics, again and again, while groups rebalance."""

    def __init__(self, client, topics):
        super().__init__(daemon=True)
        self.client, self.topics = client, topics
        self.values = {t: [] for t in topics}
        self.stopping = threading.Event()

    def run(self):
        turn = 0
        while not self.stopping.is_set():
            for topic in self.topics:
                records = [{"p": p, "k": b64(b"%d" % p), "v": b64(b"%s %d %d" % (topic.encode(), p, turn))} for p in range(GROUP_PARTITIONS)]
                self.client.produce(topic, "none", records)
                self.values[topic] += [r["v"] for r in records]
            turn += 1
            self.stopping.wait(0.5)

    def stop(self):
        self.stopping.set()
        self.join(30)


def end_offset(port, topic, partition):
    """As the leader says; none where it has ended or is another."""
    if port is None:
        return None
    try:
        with Connection(port) as leader:
            code, offset = leader.list_offset(topic, -1, partition)
        return offset if code == 0 else None
    except OSError:
        return None


def known_records(name, codec):
    """The records of one producer and codec, the same in every run: sizes, bytes, keys, headers, times of all kinds."""
    rng = random.Random(f"{name} {codec}")
    records = []
    for index in range(PARTITIONS * 30):
        partition = index % PARTITIONS
        size = 300_000 if index == 7 else rng.choice(SIZES)
        if name == "kcat":
            headers = [["producer", b64(b"kcat")], ["partition", b64(b"%d" % partition)], ["twice", b64(b"1")], ["twice", b64(b"2")]]
            records.append({"p": partition, "k": b64(b"key-%d" % index), "v": b64(words(rng, size)), "h": headers})
            continue
        value = None if index % 29 == 28 else b"" if index % 31 == 30 else rng.randbytes(size) if index % 2 else words(rng, size)
        key = None if index % 5 == 4 else rng.randbytes(12) if index % 3 else f"schlüssel-{index}".encode()
        headers = [["producer", b64(name.encode())], ["bytes", b64(bytes([index, 200, 10, 34]))], ["empty", b64(b"")], ["ünï", b64("ö".encode())]]
        if index % 4 == 0:
            headers += [["twice", b64(b"1")], ["twice", b64(b"2")]]
        if name in SENDS_NULL_HEADER and index % 7 == 3:
            headers.append(["null", None])
        records.append({"p": partition, "k": None if key is None else b64(key), "v": None if value is None else b64(value),
                        "h": headers if index % 6 else [], "ts": 1_700_000_000_000 + index * 37})
    return records


def words(rng, size):
    return b" ".join(rng.choice([b"log", b"broker", b"offset", b"partition"]) for _ in range(size // 4 + 1))[:size]


def expected_acks(records):
    counts = collections.Counter()
    acks = []
    for r in records:
        acks.append([r["p"], counts[r["p"]]])
        counts[r["p"]] += 1
    return acks


def same_records(place, sent, got, reader):
    assert [r["o"] for r in got] == list(range(len(sent))), f"{place}: offsets {[r['o'] for r in got][:20]}... for {len(sent)} records"
    for index, (want, have) in enumerate(zip(sent, got)):
        at = f"{place}@{index}"
        assert have["v"] == want["v"], f"{at}: another value"
        assert have["k"] == want["k"], f"{at}: another key"
        if want.get("ts") is not None:
            assert have["ts"] == want["ts"], f"{at}: timestamp {have['ts']} instead of {want['ts']}"
        headers = Kcat.printed_headers(want.get("h", [])) if reader == "kcat" else want.get("h", [])
        assert have["h"] == headers, f"{at}: headers {have['h']} instead of {headers}"


if __name__ == "__main__":
    Matrix(brokers.arguments(__doc__)).run()
