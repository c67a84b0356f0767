"""Delays and loses what one broker sends: a worker for one network namespace, which ends when its standard input does.

Usage, within the namespace: delay.py LOSS_PERCENT DELAY_MS JITTER_MS SEED. The kernel here has no netem, so packets pass
through NFQUEUE and this process. Prints "ready", and at the end how many packets it passed and lost.

Not here: which packets come this way (all that leave by eth0, by an iptables rule that this worker adds and removes).
"""

import heapq
import itertools
import random
import select
import subprocess
import sys
import time

from netfilterqueue import NetfilterQueue

QUEUE, QUEUE_MAX = 0, 20_000
RULE = ["OUTPUT", "-o", "eth0", "-j", "NFQUEUE", "--queue-num", str(QUEUE)]


def main():
    loss, delay, jitter = (float(word) for word in sys.argv[1:4])
    chance = random.Random(sys.argv[4])
    waiting, order, passed, lost = [], itertools.count(), 0, 0

    def arrived(packet):
        nonlocal lost
        if chance.random() * 100 < loss:
            lost += 1
            packet.drop()
        else:
            due = time.monotonic() + max(0.0, delay + chance.uniform(-jitter, jitter)) / 1000
            heapq.heappush(waiting, (due, next(order), packet))

    queue = NetfilterQueue()
    queue.bind(QUEUE, arrived, QUEUE_MAX)
    subprocess.run(["iptables", "-A", *RULE], check=True)
    print("ready", flush=True)
    try:
        while True:
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 1.0
            readable, _, _ = select.select([queue.get_fd(), sys.stdin], [], [], pause)
            if sys.stdin in readable and not sys.stdin.read(1):
                return
            if queue.get_fd() in readable:
                queue.run(False)
            while waiting and waiting[0][0] <= time.monotonic():
                heapq.heappop(waiting)[2].accept()
                passed += 1
    finally:
        subprocess.run(["iptables", "-D", *RULE], check=True)
        for _, _, packet in sorted(waiting, key=lambda w: w[:2]):
            packet.accept()
        queue.unbind()
        print(f"passed {passed}, lost {lost}", flush=True)


if __name__ == "__main__":
    main()
