"""Kafka's own DumpLogSegments reads our segment files, with every record decoded, and finds what was produced."""

import re
import subprocess

from harness import broker as brokers
from harness.agents import CODECS, Tools, b64, once_loaded
from harness.report import Report, until
from harness.wire import Connection

RECORDS = 200


def dump(jars, path):
    tool = ["java", "-Xmx256m", "-cp", f"{jars}/*", "org.apache.kafka.tools.DumpLogSegments"]
    done = subprocess.run([*tool, "--deep-iteration", "--print-data-log", "--files", str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"the tool ended with status {done.returncode}: {done.stderr[-500:]}"
    return done.stdout


def main():
    options = brokers.arguments(__doc__)
    report = Report()
    tools = Tools(options.tools, options.scratch)
    broker = brokers.make(options).start()
    client = tools.agent("confluent-kafka", broker.bootstrap)
    try:
        for codec in CODECS:
            with report.test(f"dump-tool/{codec}"):
                readable(broker, client, f"{options.tools}/java", codec)
        with report.test("dump-tool/__consumer_offsets"):
            offsets_topic(broker, client, f"{options.tools}/java")
    finally:
        client.close()
        broker.stop()
    report.finish(broker)


def readable(broker, client, jars, codec):
    topic = f"dump.{codec}"
    with Connection(broker.port) as c:
        assert c.create_topic(topic) == 0
    values = [f"{codec}-value-{n:04}" for n in range(RECORDS)]
    client.produce(topic, codec, [{"p": 0, "k": b64(b"k%d" % n), "v": b64(v.encode())} for n, v in enumerate(values)])
    text = segment_with(broker, jars, values[-1])
    assert re.search(r"isvalid: true", text) and not re.search(r"isvalid: false", text), "a batch is not valid"
    assert re.findall(r"payload: (\S+)", text) == values, "the tool reads other records than were produced"
    assert f"compresscodec: {codec}" in text, f"the batches are not compressed with {codec} any more"


def offsets_topic(broker, client, jars):
    once_loaded(lambda: client.commit("dumped-group", "dump.none", {"0": 7}))
    text = segment_with(broker, jars, "dumped-group")
    assert "isvalid: false" not in text


def newest_first(broker):
    return sorted(broker.partition_files(".log"), key=lambda path: -path.stat().st_mtime)


def segment_with(broker, jars, text):
    """What the tool prints of the segment that holds `text`. A segment may be written a moment after the acknowledgement."""
    def found():
        return next((out for path in newest_first(broker) if path.stat().st_size and text in (out := dump(jars, path))), None)
    return until(60, f"a segment with {text}", found, pause=1)


if __name__ == "__main__":
    main()
