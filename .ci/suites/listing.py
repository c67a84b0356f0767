"""What of another project's suite is expected to pass, and the verdict on what did.

A listing is a text file, a line per test: its name, the numbers of brokers on which it passes (`1`, `3` or `1,3`), the
seconds that it takes, and perhaps `alone` if other tests beside it disturb it. Whatever is in no listing has its reason
in README.md. Not here: how a suite is run.
"""

import dataclasses
import pathlib
import subprocess

MARKS = {"alone"}
HERE = pathlib.Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Expected:
    brokers: tuple
    seconds: int
    marks: tuple = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    state: str  # passed, failed or skipped
    seconds: float
    why: str = ""


def parse(text):
    listed = {}
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if not words:
            continue
        name, brokers, seconds, *marks = words
        assert name not in listed and set(marks) <= MARKS, f"not a line of a listing: {line}"
        listed[name] = Expected(tuple(int(b) for b in brokers.split(",")), int(seconds), tuple(marks))
    return listed


def load(suite):
    return parse((HERE / f"{suite}.txt").read_text())


def written(outcomes, before, brokers):
    """The lines of a listing after a run of everything: who passed is listed, who did not loses this number of brokers."""
    lines = []
    for name in sorted({*outcomes, *before}):
        was = before.get(name, Expected((), 1))
        outcome = outcomes.get(name)
        on = set(was.brokers)
        if outcome:
            (on.add if outcome.state == "passed" else on.discard)(brokers)
        seconds = max(1, round(outcome.seconds)) if outcome and outcome.state == "passed" else was.seconds
        if on:
            lines.append(f"{name:52} {','.join(map(str, sorted(on))):4} {seconds:4} {' '.join(was.marks)}".rstrip())
    return "\n".join(lines) + "\n"


def rotated(names, third):
    """Every third name; which third, the number says."""
    return sorted(names)[third % 3::3]


def third_of_commit():
    """Another third with every commit."""
    count = subprocess.run(["git", "-C", str(HERE), "rev-list", "--count", "HEAD"], capture_output=True, text=True, check=True)
    return int(count.stdout)


def verdict(listed, outcomes, brokers):
    """The names that should have passed and did not, and those that passed although nobody expected it."""
    expected = {name for name, e in listed.items() if brokers in e.brokers}
    failed = [name for name in outcomes if name in expected and outcomes[name].state != "passed"]
    surprises = [name for name in outcomes if name not in expected and outcomes[name].state == "passed"]
    return failed, surprises


def summary(suite, listed, outcomes, brokers, started_ago):
    failed, surprises = verdict(listed, outcomes, brokers)
    states = [o.state for o in outcomes.values()]
    for name in failed:
        print(f"FAIL {name} is listed and {outcomes[name].state}: {outcomes[name].why}")
    for name in surprises:
        print(f"NEW  {name} passed and is not listed for {brokers} broker(s): list it, and take it out of README.md's table")
    print(f"{suite}: {states.count('passed')} passed, {states.count('failed')} failed, {states.count('skipped')} skipped of {len(states)} "
          f"on {brokers} broker(s) in {started_ago:.0f} s; {len(failed)} listed ones did not pass")
    return not failed and bool(outcomes)
