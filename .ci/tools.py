"""Kafka's own command-line tools, each doing its job against logd, and what it did checked by another of them.

With one broker nothing can be moved, and none be away; the gate runs this with three.
"""

import json
import pathlib
import re
import subprocess

from harness import broker as brokers
from harness.agents import Tools, b64, once_loaded
from harness.report import Report, until
from harness.wire import Connection

CLASSES = {
    "topics": "org.apache.kafka.tools.TopicCommand",
    "configs": "kafka.admin.ConfigCommand",
    "groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "delete-records": "org.apache.kafka.tools.DeleteRecordsCommand",
    "offsets": "org.apache.kafka.tools.GetOffsetShell",
    "log-dirs": "org.apache.kafka.tools.LogDirsCommand",
    "reassign": "org.apache.kafka.tools.reassign.ReassignPartitionsCommand",
    "quorum": "org.apache.kafka.tools.MetadataQuorumCommand",
    "cluster": "org.apache.kafka.tools.ClusterTool",
    "elect": "org.apache.kafka.tools.LeaderElectionCommand",
    "every-group": "org.apache.kafka.tools.GroupsCommand",
    "acls": "org.apache.kafka.tools.AclCommand",
    "api-versions": "org.apache.kafka.tools.BrokerApiVersionsCommand",
    "features": "org.apache.kafka.tools.FeatureCommand",
    "console-consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "console-producer": "org.apache.kafka.tools.ConsoleProducer",
    "producer-performance": "org.apache.kafka.tools.ProducerPerformance",
    "consumer-performance": "org.apache.kafka.tools.ConsumerPerformance",
    "end-to-end-latency": "org.apache.kafka.tools.EndToEndLatency",
    "verifiable-producer": "org.apache.kafka.tools.VerifiableProducer",
    "verifiable-consumer": "org.apache.kafka.tools.VerifiableConsumer",
}


class CommandLine:
    """The tools, and a client that gives them something to look at."""

    def __init__(self, options, broker):
        self.jars, self.broker, self.options = f"{options.tools}/java/*", broker, options
        self.folder = pathlib.Path(options.scratch)
        self.client = Tools(options.tools, options.scratch).agent("confluent-kafka", broker.bootstrap)

    def run(self, tool, *arguments, refused=False, given=""):
        """What it prints. The tools say what went wrong on either stream, and not all of them by their status."""
        command = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", self.jars, CLASSES[tool]]
        where = ["--bootstrap-server", self.broker.bootstrap]
        # Most take their options in any order; this one wants what to do first.
        asked = [*arguments, *where] if tool == "cluster" else [*where, *arguments]
        done = subprocess.run([*command, *asked], input=given, capture_output=True, text=True, timeout=60)
        told = f"{done.stdout}\n{done.stderr}"
        failed = done.returncode != 0 or bool(re.search(r"^Error|Exception", told, re.MULTILINE))
        assert failed == refused, f"{tool} {' '.join(arguments)}: status {done.returncode}: {told[-600:]}"
        return told if refused else done.stdout

    def written(self, name, content):
        path = self.folder / name
        path.write_text(json.dumps(content))
        return str(path)

    def produce(self, topic, partition, count):
        self.client.produce(topic, "none", [{"p": partition, "k": b64(b"k"), "v": b64(b"%04d" % n), "ts": 1_700_000_000_000 + n} for n in range(count)])

    def create(self, topic, partitions):
        with Connection(self.broker.port) as c:
            assert c.create_topic(topic, partitions) == 0

    def offsets(self, topic, *arguments):
        rows = [row.split(":") for row in self.run("offsets", "--topic", topic, *arguments).split()]
        return {int(partition): int(offset) if offset else None for _, partition, offset in rows}

    def configured(self, kind, name):
        """The entries that somebody set; without a name, for all of the kind."""
        entity = ["--entity-name", name] if name else ["--entity-default"]
        told = self.run("configs", "--entity-type", kind, *entity, "--describe")
        return dict(re.findall(r"^  (\S+?)=(\S*) sensitive=", told, re.MULTILINE))


def topics(line):
    replicas = str(line.options.brokers)
    line.run("topics", "--create", "--topic", "made", "--partitions", "3", "--replication-factor", replicas, "--config", "retention.ms=3600000")
    assert "made" in line.run("topics", "--list").split()
    told = line.run("topics", "--describe", "--topic", "made")
    assert re.search(rf"PartitionCount: 3\s+ReplicationFactor: {replicas}\s+Configs: .*retention.ms=3600000", told), told
    assert len(re.findall(r"Partition: \d+\s+Leader: \d+", told)) == 3, told
    assert "already exists" in line.run("topics", "--create", "--topic", "made", refused=True)
    line.run("topics", "--alter", "--topic", "made", "--partitions", "5")
    assert len(re.findall(r"Partition: \d+\s+Leader: \d+", line.run("topics", "--describe", "--topic", "made"))) == 5
    line.run("topics", "--alter", "--topic", "made", "--partitions", "2", refused=True)
    assert line.run("topics", "--describe", "--under-replicated-partitions").strip() == ""
    line.run("topics", "--delete", "--topic", "made")
    until(10, "the topic is gone", lambda: "made" not in line.run("topics", "--list").split())


def configs_of_topics(line):
    line.create("configured", 1)
    line.run("configs", "--entity-type", "topics", "--entity-name", "configured", "--alter", "--add-config", "retention.ms=7200000,cleanup.policy=[compact,delete]")
    assert line.configured("topics", "configured") == {"retention.ms": "7200000", "cleanup.policy": "compact,delete"}, line.configured("topics", "configured")
    line.run("configs", "--entity-type", "topics", "--entity-name", "configured", "--alter", "--delete-config", "cleanup.policy")
    assert line.configured("topics", "configured") == {"retention.ms": "7200000"}
    every = line.run("configs", "--entity-type", "topics", "--entity-name", "configured", "--describe", "--all")
    assert "DYNAMIC_TOPIC_CONFIG:retention.ms=7200000" in every and "DEFAULT_CONFIG:log.segment.bytes" in every, every
    line.run("configs", "--entity-type", "topics", "--entity-name", "configured", "--alter", "--add-config", "retention.ms=soon", refused=True)
    line.run("configs", "--entity-type", "topics", "--entity-name", "configured", "--alter", "--add-config", "no.such.key=1", refused=True)
    assert line.configured("topics", "configured") == {"retention.ms": "7200000"}, "a refused change changed something"


def configs_of_brokers(line):
    with Connection(line.broker.port) as c:
        node = str(c.metadata([])["brokers"][0][0])
    every = line.run("configs", "--entity-type", "brokers", "--entity-name", node, "--describe", "--all")
    assert re.search(r"sensitive=(true|false) synonyms=", every), every
    default, one = ("--entity-type", "brokers", "--entity-default", "--alter"), ("--entity-type", "brokers", "--entity-name", node, "--alter")
    line.run("configs", *default, "--add-config", "message.max.bytes=400000,log.cleanup.policy=[compact,delete]")
    line.run("configs", *one, "--add-config", "message.max.bytes=300000")
    # Each tool asks whichever broker it comes to, and a change is everywhere a moment after its answer.
    until(20, "what is set for all shows", lambda: {"message.max.bytes": "400000", "log.cleanup.policy": "compact,delete"}.items() <= line.configured("brokers", None).items())
    every = line.run("configs", "--entity-type", "brokers", "--entity-name", node, "--describe", "--all")
    layers = "DYNAMIC_BROKER_CONFIG:message.max.bytes=300000, DYNAMIC_DEFAULT_BROKER_CONFIG:message.max.bytes=400000, DEFAULT_CONFIG:message.max.bytes=1048588"
    assert f"synonyms={{{layers}}}" in every, every
    line.run("configs", *one, "--add-config", "log.dirs=/elsewhere", refused=True)
    line.run("configs", *default, "--add-config", "message.max.bytes=-5", refused=True)
    line.run("configs", *one, "--delete-config", "message.max.bytes")
    line.run("configs", *default, "--delete-config", "message.max.bytes,log.cleanup.policy")
    until(20, "what was taken back is gone", lambda: line.configured("brokers", node) == {})


def configs_of_groups(line):
    one = ("--entity-type", "groups", "--entity-name", "configured", "--alter")
    line.run("configs", *one, "--add-config", "consumer.session.timeout.ms=50000")
    until(20, "what is set shows", lambda: line.configured("groups", "configured") == {"consumer.session.timeout.ms": "50000"})
    assert "group configured" in line.run("configs", "--entity-type", "groups", "--describe"), "a group with settings is listed"
    assert "from 45000 to 60000" in line.run("configs", *one, "--add-config", "consumer.session.timeout.ms=6000", refused=True)
    line.run("configs", *one, "--delete-config", "consumer.session.timeout.ms")
    until(20, "what was taken back is gone", lambda: line.configured("groups", "configured") == {})


def offsets(line):
    line.create("counted", 2)
    line.produce("counted", 0, 10)
    line.produce("counted", 1, 4)
    assert line.offsets("counted") == {0: 10, 1: 4}
    assert line.offsets("counted", "--time", "earliest") == {0: 0, 1: 0}
    assert line.offsets("counted", "--time", str(1_700_000_000_003)) == {0: 3, 1: 3}
    assert line.offsets("counted", "--time", "max-timestamp") == {0: 9, 1: 3}
    assert line.offsets("counted", "--partitions", "1") == {1: 4}


def delete_records(line):
    line.create("shortened", 2)
    for partition in (0, 1):
        line.produce("shortened", partition, 10)
    wanted = line.written("delete.json", {"version": 1, "partitions": [{"topic": "shortened", "partition": 0, "offset": 7}, {"topic": "shortened", "partition": 1, "offset": -1}]})
    told = line.run("delete-records", "--offset-json-file", wanted)
    assert dict(re.findall(r"shortened-(\d)\s+low_watermark: (\d+)", told)) == {"0": "7", "1": "10"}, told
    assert line.offsets("shortened", "--time", "earliest") == {0: 7, 1: 10}
    beyond = line.written("beyond.json", {"version": 1, "partitions": [{"topic": "shortened", "partition": 0, "offset": 99}]})
    assert "OffsetOutOfRange" in line.run("delete-records", "--offset-json-file", beyond, refused=True)


def groups(line):
    line.create("read", 2)
    line.produce("read", 0, 10)
    line.produce("read", 1, 5)
    once_loaded(lambda: line.client.commit("readers", "read", {"0": 4, "1": 5}))
    assert "readers" in line.run("groups", "--list").split()
    assert line_of(line, "read", 0)[3:6] == ["4", "10", "6"], "committed offset, end and lag of partition 0"
    assert re.search(r"readers .*Empty +0", line.run("groups", "--describe", "--group", "readers", "--state"))
    line.run("groups", "--group", "readers", "--topic", "read", "--reset-offsets", "--to-earliest", "--execute")
    assert line_of(line, "read", 1)[3:6] == ["0", "5", "5"]
    told = line.run("groups", "--group", "readers", "--topic", "read:1", "--delete-offsets")
    assert re.search(r"read\s+1\s+Successful", told), told
    assert line_of(line, "read", 1) is None and line_of(line, "read", 0)
    line.run("groups", "--group", "readers", "--delete")
    assert "readers" not in line.run("groups", "--list").split()


def line_of(line, topic, partition):
    rows = [row.split() for row in line.run("groups", "--describe", "--group", "readers").splitlines()]
    return next((row for row in rows if row[1:3] == [topic, str(partition)]), None)


def log_dirs(line):
    line.create("weighed", 1)
    line.produce("weighed", 0, 1_000)
    def sizes():
        told = line.run("log-dirs", "--describe", "--topic-list", "weighed")
        every = json.loads(told[told.index("{"):])["brokers"]
        assert len(every) == line.options.brokers, told
        assert all(d["error"] is None for b in every for d in b["logDirs"]), told
        return [p["size"] for b in every for d in b["logDirs"] for p in d["partitions"] if p["partition"] == "weighed-0"]
    # Segment files are written a moment after the acknowledgement.
    until(60, "the topic's size is told by every replica", lambda: (found := sizes()) and len(found) == line.options.brokers and min(found) > 4_000, pause=1)


def reassign(line):
    with Connection(line.broker.port) as c:
        nodes = [node for node, *_ in c.metadata([])["brokers"]]
    here, there = nodes[0], nodes[-1]
    line.run("topics", "--create", "--topic", "moved", "--replica-assignment", str(here))
    line.produce("moved", 0, 100)
    names = line.written("names.json", {"version": 1, "topics": [{"topic": "moved"}]})
    told = line.run("reassign", "--topics-to-move-json-file", names, "--broker-list", ",".join(map(str, nodes)), "--generate")
    assert f'"replicas":[{here}]' in told.split("Proposed")[0], told
    plan = line.written("plan.json", {"version": 1, "partitions": [{"topic": "moved", "partition": 0, "replicas": [there]}]})
    assert "Successfully started" in line.run("reassign", "--reassignment-json-file", plan, "--execute")
    until(60, "the move is over", lambda: "Reassignment of partition moved-0 is completed" in line.run("reassign", "--reassignment-json-file", plan, "--verify"))
    assert "No partition reassignments" in line.run("reassign", "--list")
    assert re.search(rf"Leader: {there}\s+Replicas: {there}\s+Isr: {there}", line.run("topics", "--describe", "--topic", "moved"))
    assert line.offsets("moved") == {0: 100}, "records were lost on the way"


def quorum(line):
    told = line.run("quorum", "describe", "--status")
    voters = re.search(r"CurrentVoters:\s+(\[.*\])", told)
    assert voters and len(json.loads(voters.group(1))) == line.options.brokers, told
    assert re.search(r"LeaderId:\s+[1-9]", told) and re.search(r"LeaderEpoch:\s+[1-9]", told), told
    rows = [row.split() for row in line.run("quorum", "describe", "--replication").splitlines()[1:]]
    assert sorted(row[-1] for row in rows) == ["Follower"] * (line.options.brokers - 1) + ["Leader"], rows


def cluster(line):
    assert re.fullmatch(r"Cluster ID: \S{22}", line.run("cluster", "cluster-id").strip())
    endpoints = line.run("cluster", "list-endpoints").splitlines()[1:]
    assert len(endpoints) == line.options.brokers and all(" unfenced " in row for row in endpoints), endpoints
    apis = line.run("api-versions")
    assert apis.count("Produce(0): ") == line.options.brokers and "Fetch(1): 4 to 18 [usable: 18]" in apis, apis[:2_000]
    line.run("features", "describe")


def elect(line):
    line.create("preferred", 1)
    wanted = line.written("elect.json", {"partitions": [{"topic": "preferred", "partition": 0}]})
    for kind in ("preferred", "unclean"):
        assert "already elected for partitions preferred-0" in line.run("elect", "--election-type", kind, "--path-to-json-file", wanted)


def what_is_not_there(line):
    """No authorizer, no users, no quotas: the tools say so, or have nothing to say."""
    assert "SecurityDisabledException" in line.run("acls", "--list", refused=True)
    for kind in ("users", "clients"):
        assert line.run("configs", "--entity-type", kind, "--describe").strip() == ""
    assert "UnsupportedVersionException" in line.run("configs", "--entity-type", "clients", "--entity-name", "a", "--alter", "--add-config", "producer_byte_rate=1024", refused=True)


def reading_and_writing(line):
    line.create("written", 2)
    line.run("console-producer", "--topic", "written", "--property", "parse.key=true", "--property", "key.separator=:", given="a:1\nb:2\nc:3\n")
    read = ("--topic", "written", "--from-beginning", "--property", "print.key=true", "--max-messages", "3")
    assert sorted(line.run("console-consumer", *read).split("\n"))[-3:] == ["a\t1", "b\t2", "c\t3"]
    assert re.search(r"(?m)^console-consumer-\d+ +Classic +consumer", line.run("every-group", "--list"))
    assert "500 records sent" in line.run("producer-performance", "--topic", "written", "--num-records", "500", "--record-size", "100", "--throughput", "-1")
    counted = line.run("consumer-performance", "--topic", "written", "--num-records", "503", "--timeout", "20000").strip().splitlines()[-1]
    assert counted.split(", ")[4] == "503", counted
    assert "Percentiles: 50th" in line.run("end-to-end-latency", "--topic", "written", "--num-records", "20", "--producer-acks", "all", "--record-size", "100")
    sent = [json.loads(row) for row in line.run("verifiable-producer", "--topic", "written", "--max-messages", "20").splitlines()]
    assert [row["acked"] for row in sent if row["name"] == "tool_data"] == [20], sent
    taken = [json.loads(row) for row in line.run("verifiable-consumer", "--topic", "written", "--group-id", "verifiers", "--max-messages", "543", "--reset-policy", "earliest").splitlines()]
    assert sum(row["count"] for row in taken if row["name"] == "records_consumed") == 543, taken
    assert any(row["name"] == "offsets_committed" and row["success"] for row in taken), taken


def one_broker_down(line):
    """What asks every broker asks those that are there, and a partition that was on the one that is not is shown as such."""
    if line.options.brokers == 1:
        return
    *_, down = line.broker.brokers
    with Connection(down.port) as c:
        node = next(node for node, _, port, _ in c.metadata([])["brokers"] if port == down.port)
    line.run("topics", "--create", "--topic", "away", "--replica-assignment", str(node))
    line.create("stays", 1)
    once_loaded(lambda: line.client.commit("stayers", "stays", {"0": 0}))
    line.run("configs", "--entity-type", "groups", "--entity-name", "stayers", "--alter", "--add-config", "consumer.session.timeout.ms=50000")
    down.kill()

    def listed():
        try:
            return "stayers" in line.run("groups", "--list").split()
        except AssertionError as refusal:  # whoever leads them now may still be loading them
            assert "CoordinatorLoadInProgress" in str(refusal) or "CoordinatorNotAvailable" in str(refusal), refusal
            return False

    try:
        until(20, "its groups are another's", listed)
        assert "group stayers" in line.run("configs", "--entity-type", "groups", "--describe")
        assert re.search(r"Topic: away\s+Partition: 0\s+Leader: none", line.run("topics", "--describe", "--unavailable-partitions"))
        assert "Topic: stays" in line.run("topics", "--describe", "--under-replicated-partitions")
    finally:
        down.start()
    until(20, "all is as it was", lambda: line.run("topics", "--describe", "--unavailable-partitions").strip() == "")
    line.run("configs", "--entity-type", "groups", "--entity-name", "stayers", "--alter", "--delete-config", "consumer.session.timeout.ms")


JOBS = [topics, configs_of_topics, configs_of_brokers, configs_of_groups, offsets, delete_records, groups, log_dirs, reassign, quorum, cluster, elect,
        what_is_not_there, reading_and_writing, one_broker_down]


def main():
    options = brokers.arguments(__doc__)
    report = Report()
    broker = brokers.make(options).start()
    line = CommandLine(options, broker)
    try:
        for job in JOBS:
            if options.only in job.__name__:
                with report.test(f"tools/{job.__name__.replace('_', '-')}"):
                    job(line)
    finally:
        line.client.close()
        broker.stop()
    report.finish(broker)


if __name__ == "__main__":
    main()
