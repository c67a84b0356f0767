"""What an operator does when partitions, or the metadata, have lost their majority for good.

Promise: nothing is recovered that can have a majority, and what is recovered is told with what is certainly kept.

Not here: what the history promises then (see `losses`).
"""

import subprocess

from harness.report import until


def partitions(day):
    return day.logctl("partition", "list")["partitions"]


def node_ids(day, brokers):
    addresses = {day.network.address(broker.index, "kafka") for broker in brokers}
    told = day.cluster.metadata(brokers[0])["brokers"]
    return {node for node, host, port, _ in told if (host, port) in addresses}


def of_metadata(day, broker):
    """A broker that is stopped, the only one that is left, has its metadata go on."""
    line = [*broker.command(), "recover-metadata"]
    shown = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 2, f"it is only shown: {shown.returncode} {shown.stdout[-600:]}{shown.stderr[-600:]}"
    done = subprocess.run([*line, "--accept-data-loss"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-600:]}{done.stderr[-600:]}"
    day.note(f"the metadata goes on from {broker.name}: {shown.stdout.splitlines()[1]}")


def by_force(day, nodes):
    """Whatever had most of its replicas on these brokers goes on: {(topic, partition): offset up to which nothing is lost}."""
    every = {(p["topic"], p["partition"]): p for p in partitions(day)}
    kept = {}
    for key, partition in every.items():
        if len(nodes & set(partition["target"])) * 2 < len(partition["target"]):
            continue
        told = until(60, f"{key} is recovered", lambda: day.logctl("partition", "recover", f"{key[0]}/{key[1]}", "--accept-data-loss", refused=True), pause=0.5)
        [survivor] = [replica for replica in told["replicas"] if replica["survives"]]
        kept[key] = survivor["high_watermark"] or 0
        day.note(f"{key[0]}/{key[1]} goes on with broker {survivor['node_id']}'s: up to {survivor['end_offset']}, of which {kept[key]} was committed")
    assert kept, "no partition had most of its replicas there"
    return kept


def whole_again(day):
    return all(len(p["in_sync"]) == len(p["voters"]) == day.options.brokers and not p["moving_from"] for p in partitions(day))
