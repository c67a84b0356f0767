"""The conversation that every client's agent speaks, for the agents written in Python.

`serve`: one JSON request a line on stdin, one JSON answer a line on stdout (agent.js, Agent.java and the agent in go/ speak the same).
`member`: one group member; it prints what it is assigned and what it reads until a line arrives on stdin.
Bytes travel as base64, null as null. A record is {p, k, v, h: [[name, value]], ts} and, once stored, {t, o}.
No client library is imported here.
"""

import base64
import json
import os
import sys
import threading
import time
import traceback

# Of the topics that tests create.
REPLICAS = int(os.environ.get("REPLICAS", "1"))


def b64(data):
    return None if data is None else base64.b64encode(bytes(data)).decode()


def unb64(text):
    return None if text is None else base64.b64decode(text)


def emit(event):
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def serve(operations):
    """Answers requests until stdin closes. `operations` maps an op's name to a function of the request's fields."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = operations[request.pop("op")](**request)
        except Exception as error:  # the driver decides whether a refusal was wanted
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        emit(answer or {})


def stop_requested():
    """An event that is set when the driver writes a line, or closes stdin."""
    event = threading.Event()

    def wait():
        sys.stdin.readline()
        event.set()

    threading.Thread(target=wait, daemon=True).start()
    return event


def pause_after(index, pace):
    """Seconds to wait after this record so that about `pace` a second go out; 0 for as fast as can be."""
    return 50 / pace if pace and index % 50 == 49 else 0


class Wanted:
    """Counts down the records that a read still waits for: {topic: {partition: count}}."""

    def __init__(self, want):
        self.left = {(topic, int(p)): n for topic, parts in want.items() for p, n in parts.items() if n}
        self.records = []

    def take(self, topic, partition, offset, timestamp, key, value, headers):
        self.records.append({
            "t": topic, "p": partition, "o": offset, "ts": timestamp, "k": b64(key), "v": b64(value),
            "h": [[name, b64(v)] for name, v in headers or []],
        })
        key = (topic, partition)
        if key in self.left:
            self.left[key] -= 1
            if self.left[key] == 0:
                del self.left[key]

    def done(self):
        return not self.left


class StaticMember:
    """A consumer with an instance id, in a thread of its own: two that take turns in one thread can keep each other from ever
    joining (kafka-python throws away a join that is answered between two polls, and asks for another). A library's own says
    how to `open`, to `poll` and to `end` it."""

    def __init__(self):
        self.held, self.assignments, self.polls = set(), 0, 0
        self.failure, self.closing = None, threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        try:
            self.open()
            while not self.closing.is_set():
                self.poll()
                self.polls += 1
            self.end()
        except Exception as error:
            self.failure = error

    def assigned(self, partitions):
        self.held = set(partitions)
        self.assignments += 1

    def checked(self):
        if self.failure:
            raise self.failure
        return self

    def close(self):
        self.closing.set()
        self.thread.join(20)
        if self.checked().thread.is_alive():
            raise TimeoutError("a static member did not end within 20 s")


def static_members(join, partitions, within=40):
    """Two static members share; one ends and comes back under its name. What each held before and after, and how often the
    one that stayed was assigned anything meanwhile."""
    deadline = time.monotonic() + within

    def until(done, *members):
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"static members held {[sorted(m.held) for m in members]} after {within} s")
            for m in members:
                m.checked()
            time.sleep(0.05)

    def shared(*members):
        until(lambda: all(m.held for m in members) and sum(len(m.held) for m in members) == partitions, *members)

    leaving, staying = join("leaving"), join("staying")
    shared(leaving, staying)
    before, assignments = [sorted(leaving.held), sorted(staying.held)], staying.assignments
    leaving.close()
    back = join("leaving")
    shared(back, staying)
    seen = [back.polls, staying.polls]  # a rebalance would be told with a heartbeat's answer
    until(lambda: back.polls > seen[0] + 10 and staying.polls > seen[1] + 10, back, staying)
    after = [sorted(back.held), sorted(staying.held)]
    back.close(), staying.close()
    return {"before": before, "after": after, "disturbed": staying.assignments - assignments}


def main(serve_mode, member_mode):
    mode, arguments = sys.argv[1], sys.argv[2:]
    if mode == "serve":
        serve_mode(*arguments)
    else:
        bootstrap, group, topic, strategy = arguments
        member_mode(bootstrap, group, topic, strategy)
