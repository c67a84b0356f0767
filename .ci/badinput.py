"""Bad input and bad days, from outside: each a named test with a broker that must live and another client who must not notice.

bad/frames.py and bad/batches.py share one broker; bad/crowds.py, bad/starts.py, bad/disks.py and bad/kills.py start their own.
"""

from bad import batches, crowds, disks, frames, kills, starts
from harness import broker as brokers
from harness.report import Report
from harness.witness import Witness


def on_one_broker(options, report):
    """Everything a client can send, to one broker that must neither die nor let another client down."""
    cases = {**frames.CASES, **batches.CASES}
    chosen = {name: case for name, case in cases.items() if options.only in name}
    if not chosen:
        return None
    broker = brokers.make(options).start()
    witness = Witness(broker)
    witness.start()
    try:
        for name, case in chosen.items():
            if options.kafka and case in frames.NOT_KAFKA:
                print(f"     left out for Kafka, which cannot pass it: {name}")
                continue
            with report.test(f"bad input: {name}"):
                case(broker)
                assert broker.alive(), "the broker died"
                witness.check()
        witness.stop()
        with report.test("after all bad input: the broker stops in order"):
            status = broker.stop()
            assert status in ((0,) if broker.kind == "logd" else (0, 143)), f"the broker ended with status {status}"
    finally:
        if broker.alive():
            broker.kill()
    return broker


def on_their_own(options, report):
    for room in (crowds, starts, kills, disks):
        for name, case in room.CASES.items():
            if options.only not in name:
                continue
            if options.kafka and case in room.NOT_KAFKA:
                print(f"     left out for Kafka, which cannot pass it: {name}")
                continue
            with report.test(f"bad day: {name}"):
                case(options)


def main():
    options = brokers.arguments(__doc__)
    report = Report()
    shared = on_one_broker(options, report)
    on_their_own(options, report)
    report.finish(shared)


if __name__ == "__main__":
    main()
