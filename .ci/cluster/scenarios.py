"""Bad days for a cluster, one function each, and the command line that runs them.

Usage: scenarios.py --logd BINARY [--brokers 1|3] (--list | --only NAME | --all | --rotate N)

A scenario gets a `Day` whose workload is warm; it does its fault, heals what `Day.heal` cannot know of, and returns.
Each prints one line: the longest gaps between acknowledgements, how sends ended, the anomalies.

Not here: how a run goes (see `day`), how a fault is made (see `faults`).
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import faults  # noqa: E402
import recovery  # noqa: E402
from day import Day  # noqa: E402
from harness.report import until  # noqa: E402
from network import both_ways, enter_private_network  # noqa: E402
from workload import TOPIC  # noqa: E402

Scenario = collections.namedtuple("Scenario", "name fault brokers network prepare settings beside")
CATALOGUE = {}


def scenario(brokers=(1, 3), network=False, prepare=lambda day: None, settings=None, beside=0):
    """`network`: needs namespaces. `prepare`: before the brokers' first start. `beside`: so many brokers more than replicas."""
    def add(fault):
        name = fault.__name__.replace("_", "-")
        CATALOGUE[name] = Scenario(name, fault, brokers, network, prepare, settings, beside)
        return fault
    return add


# --- nothing, and processes that end ---------------------------------------------------------------------------


@scenario()
def quiet(day):
    """Nothing happens: what is found here is the harness's own."""
    day.wait(10)


@scenario()
def kill_restart(day):
    """The leader is killed and started again at once, twice."""
    for _ in range(2):
        broker = day.leader()
        day.note(f"kill -9 {broker.name}")
        broker.kill()
        day.restart(broker)
        day.wait(5)


@scenario(brokers=(3,))
def kill_leader(day):
    """The leader is killed and stays away."""
    broker = day.leader()
    day.note(f"kill -9 {broker.name}")
    broker.kill()
    day.wait(12)


@scenario(brokers=(3,))
def kill_any(day):
    """One broker after another is killed, and comes back before the next."""
    for broker in day.chance.sample(day.brokers, len(day.brokers)):
        day.note(f"kill -9 {broker.name}")
        broker.kill()
        day.wait(4)
        day.restart(broker)
        day.cluster.wait_ready()
        day.wait(2)


@scenario()
def kill_all(day):
    """Every broker at once."""
    day.note("kill -9 of all")
    for broker in day.brokers:
        broker.kill()
    day.wait(2)
    for broker in day.brokers:
        day.restart(broker)
    day.wait(5)


@scenario()
def rolling_restart(day):
    """SIGTERM and a start, one broker after another."""
    for broker in day.brokers:
        day.note(f"SIGTERM {broker.name}")
        status = broker.stop()
        assert status == 0, f"{broker.name} ended with status {status} after SIGTERM"
        day.restart(broker)
        day.cluster.wait_ready()
        day.wait(3)


@scenario()
def pause(day):
    """The leader hangs for ten seconds, and goes on believing that it leads."""
    broker = day.leader()
    day.note(f"SIGSTOP {broker.name} for 10 s")
    faults.pause_for(broker, 10)
    day.note(f"SIGCONT {broker.name}")
    day.wait(5)


@scenario(brokers=(3,))
def pause_and_kill(day):
    """The leader hangs; while it does, another broker is killed and comes back."""
    leader, other = day.leader(), day.follower()
    day.note(f"SIGSTOP {leader.name}")
    leader.pause()
    day.wait(6)
    day.note(f"kill -9 {other.name}")
    other.kill()
    day.wait(2)
    day.restart(other)
    day.wait(4)
    day.note(f"SIGCONT {leader.name}")
    leader.go_on()
    day.wait(5)


# --- networks --------------------------------------------------------------------------------------------------


def cut_for(day, what, pairs, seconds=12):
    day.note(f"cut: {what}")
    day.network.cut(pairs)
    day.wait(seconds)
    day.network.heal()
    day.note("the network is whole")
    day.wait(5)


@scenario(brokers=(3,), network=True)
def isolate_leader(day):
    """The leader hears neither brokers nor clients."""
    leader = day.leader()
    cut_for(day, f"{leader.name} from everybody", both_ways(leader.index, [b.index for b in day.brokers if b is not leader] + ["clients"]))


@scenario(brokers=(3,), network=True)
def isolate_leader_from_brokers(day):
    """The leader hears no broker, but clients: it must not acknowledge."""
    leader = day.leader()
    cut_for(day, f"{leader.name} from the other brokers", both_ways(leader.index, [b.index for b in day.brokers if b is not leader]))


@scenario(brokers=(3,), network=True)
def deaf_leader(day):
    """One way: the leader is heard by everybody and hears no broker."""
    leader = day.leader()
    cut_for(day, f"{leader.name} does not hear the others", {(b.index, leader.index) for b in day.brokers if b is not leader})


@scenario(brokers=(3,), network=True)
def mute_leader(day):
    """One way: the leader hears everybody and is heard by no broker."""
    leader = day.leader()
    cut_for(day, f"{leader.name} is not heard by the others", {(leader.index, b.index) for b in day.brokers if b is not leader})


@scenario(brokers=(3,), network=True)
def bridge(day):
    """Two cannot hear each other, the third hears both."""
    leader, other = day.leader(), day.follower()
    cut_for(day, f"{leader.name} and {other.name} from each other", both_ways(leader.index, [other.index]))


@scenario(network=True)
def clients_away(day):
    """Brokers hear each other; the leader and the clients do not."""
    leader = day.leader()
    cut_for(day, f"{leader.name} from the clients", both_ways(leader.index, ["clients"]))


@scenario(network=True)
def loss_and_delay(day):
    """Everything that brokers send takes 50 ms and is lost in one of twenty cases."""
    day.note("5 % loss, 50 ± 10 ms delay")
    with faults.lossy(day.cluster, 5, 50, 10, day.seed):
        day.wait(20)
    day.note("the network is whole")
    day.wait(5)


# --- clocks ----------------------------------------------------------------------------------------------------


def own_clocks(day):
    for broker in day.brokers:
        faults.with_own_clock(broker)


@scenario(prepare=own_clocks)
def clock(day):
    """The leader's clock jumps an hour ahead, then an hour back."""
    broker = day.leader()
    for seconds in (3600, -3600):
        day.note(f"{broker.name}'s clock is off by {seconds} s")
        faults.set_clock(broker, seconds)
        day.wait(7)
    faults.set_clock(broker, 0)
    day.note(f"{broker.name}'s clock is right again")
    day.wait(4)


# --- disks -----------------------------------------------------------------------------------------------------


def small_disks(megabytes):
    def prepare(day):
        for broker in day.brokers:
            faults.with_small_disk(broker, day.folder, megabytes)
    return prepare


def operators_are_told(day):
    """Whichever broker is asked names the one whose disk is full."""
    told = set()
    for asked in day.brokers:
        line = [day.options.logctl, "cluster", "health", "--rpc", asked.address("rpc"), "-o", "json"]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 6, f"`logctl cluster health` ended with {done.returncode}: {done.stdout[-600:]}{done.stderr[-300:]}"
        told.add(tuple(json.loads(done.stdout)["slow_disks"]))
    assert [len(answer) for answer in told] == [1], f"brokers with slow or full disks: {told}"


@scenario(prepare=small_disks(700))
def full_disk(day):
    """The leader's disk is full for ten seconds; it must neither die nor lose anything."""
    broker = day.leader()
    day.note(f"{broker.name}'s disk is full")
    broker.disk.fill(leave_mb=2)
    day.wait(10)
    assert broker.alive(), f"{broker.name} died of a full disk:\n{broker.log_tail(10)}"
    operators_are_told(day)
    broker.disk.give_back()
    day.note(f"{broker.name}'s disk has space again")
    day.wait(6)


@scenario(prepare=small_disks(1000))
def power_cut(day):
    """Every broker's power at once, twice."""
    for _ in range(2):
        day.note("power cut for all")
        faults.cut_power(day.brokers)
        faults.restore_power(day.brokers)
        for broker in day.brokers:
            day.restart(broker)
        day.cluster.wait_ready()
        day.wait(5)


def switched_syncs(day):
    for broker in day.brokers:
        faults.with_switched_syncs(broker, day.options.scratch)


@scenario(prepare=switched_syncs)
def slow_syncs_leader(day):
    """Every sync of the leader takes half a second longer."""
    slow_syncs(day, day.leader())


@scenario(brokers=(3,), prepare=switched_syncs)
def slow_syncs_follower(day):
    """Every sync of a follower takes half a second longer."""
    slow_syncs(day, day.follower())


def slow_syncs(day, broker):
    day.note(f"{broker.name}'s syncs take 500 ms longer")
    faults.slow_syncs(broker, 500)
    day.wait(12)
    faults.slow_syncs(broker, 0)
    day.note(f"{broker.name}'s syncs are fast again")
    day.wait(5)


@scenario(prepare=switched_syncs)
def sync_fails(day):
    """One sync of the leader fails: the process must stop, and on its restart nothing acknowledged may be missing."""
    broker = day.leader()
    broker.expected_end = True
    faults.fail_one_sync(broker)
    day.note(f"one sync of {broker.name} fails")
    until(10, "a sync was made, and failed", lambda: faults.failed_a_sync(broker))
    until(15, f"{broker.name} has stopped after a sync that failed", lambda: not broker.alive())
    day.note(f"{broker.name} ended with status {broker.process.returncode}")
    day.wait(5)


# --- files, of one replica of three: the others have them whole --------------------------------------------------


def on_a_stopped_follower(day, damage, stay_away=2):
    """Kills a follower, damages its files, and starts it again. `damage` says what it did."""
    broker = day.follower()
    day.note(f"kill -9 {broker.name}")
    broker.kill()
    day.note(f"{broker.name}: {damage(broker)}")
    day.wait(stay_away)
    day.restart(broker)
    day.wait(10)


def segment(day, broker, active):
    """A segment of the topic with most of them."""
    topic = day.topic_id()
    logs = [faults.segments(broker, f"{topic}-{partition}") for partition in range(day.workload.partitions)]
    longest = max(logs, key=len)
    assert len(longest) > 1, f"{broker.name} has sealed no segment of {TOPIC} yet"
    return longest[-1] if active else longest[0]


@scenario(brokers=(3,))
def bit_flip_sealed(day):
    """A bit of a sealed segment of one replica is turned over."""
    def damage(broker):
        path = segment(day, broker, active=False)
        return "bit turned over in " + faults.flip_bit(path, path.stat().st_size // 2)
    on_a_stopped_follower(day, damage)


@scenario(brokers=(3,))
def bit_flip_active(day):
    """A bit of the active segment of one replica is turned over."""
    def damage(broker):
        path = segment(day, broker, active=True)
        return "bit turned over in " + faults.flip_bit(path, path.stat().st_size // 2)
    on_a_stopped_follower(day, damage)


@scenario(brokers=(3,))
def truncated_segment(day):
    """A sealed segment of one replica is cut in half."""
    def damage(broker):
        path = segment(day, broker, active=False)
        return "cut " + faults.cut_short(path, path.stat().st_size // 2)
    on_a_stopped_follower(day, damage)


@scenario(brokers=(3,))
def wiped_disk(day):
    """One broker comes back with an empty disk."""
    def damage(broker):
        faults.wipe(broker)
        return "its disk is wiped"
    on_a_stopped_follower(day, damage)


@scenario(brokers=(3,))
def yesterdays_files(day):
    """One broker comes back with the files that it had some time ago."""
    broker = day.follower()
    day.note(f"SIGTERM {broker.name}, and a copy of its files")
    broker.stop()
    copy = faults.keep_copy(broker)
    day.restart(broker)
    day.cluster.wait_ready()
    day.wait(8)
    day.note(f"kill -9 {broker.name}, and the copy put back")
    broker.kill()
    faults.put_back(broker, copy)
    day.restart(broker)
    day.wait(10)


# --- more than a cluster is built for ----------------------------------------------------------------------------


def lose(day, lost, third):
    """Two lose their disks for good, with what they have acknowledged without the third."""
    names = " and ".join(broker.name for broker in lost)
    day.note(f"SIGSTOP {third.name} for 4 s: {names} acknowledge what it lacks")
    third.pause()
    day.wait(4)
    for broker in lost:
        broker.kill()
        faults.wipe(broker)
    third.go_on()
    day.note(f"kill -9 {names}, their disks are wiped; SIGCONT {third.name}")


def goes_on(day, lost, nodes):
    """An operator has what the lost brokers held go on without them; then they come back, empty."""
    day.workload.loss_accepted(recovery.by_force(day, nodes))
    until(20, "what was recovered is led", lambda: all(p["leader"] for p in recovery.partitions(day)))
    day.wait(4)
    for broker in lost:
        day.restart(broker)
    day.cluster.wait_ready()
    day.logctl("cluster", "rebalance", "run")
    until(60, "every partition has three replicas again", lambda: recovery.whole_again(day), pause=0.5)
    day.note("every partition has three replicas again")
    day.wait(3)


@scenario(brokers=(3,), beside=2)
def majority_lost_for_good(day):
    """Two brokers lose their disks for good; an operator has what is left go on, and what the third one lacked stays lost."""
    holders = day.cluster.holders(TOPIC)[0]
    third = day.chance.choice(holders)
    lost = [broker for broker in holders if broker is not third]
    nodes = recovery.node_ids(day, lost)
    lose(day, lost, third)
    day.workload.loss_begins()
    goes_on(day, lost, nodes)


@scenario(brokers=(3,))
def metadata_lost_for_good(day):
    """Two of three brokers lose their disks for good, and the metadata its majority; an operator has all go on from the third."""
    third = day.chance.choice(day.brokers)
    lost = [broker for broker in day.brokers if broker is not third]
    nodes = recovery.node_ids(day, lost)
    lose(day, lost, third)
    third.kill()
    day.note(f"kill -9 {third.name}")
    day.workload.loss_begins()
    recovery.of_metadata(day, third)
    day.restart(third)
    until(30, f"{third.name} is ready", third.ready, pause=0.2)
    goes_on(day, lost, nodes)


# --- the beginning ---------------------------------------------------------------------------------------------


def many_first_starts(day):
    for turn in range(5):
        for broker in day.brokers:
            broker.start()
        day.cluster.wait_ready()
        day.note(f"first start {turn + 1} of 5 made one cluster")
        for broker in day.brokers:
            broker.kill()
            faults.wipe(broker)


@scenario(prepare=many_first_starts)
def first_starts(day):
    """All brokers start for the first time at the same moment, five times; then the last cluster works."""
    day.wait(3)


# --- the command line ------------------------------------------------------------------------------------------


def rotated(names, count):
    """`count` of the names, others with every commit."""
    commit = subprocess.run(["git", "-C", str(HERE), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    first = int(commit, 16) % len(names)
    return (names * 2)[first:first + min(count, len(names))]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="name the scenarios")
    what.add_argument("--only", action="append", metavar="NAME", help="this scenario; may be repeated")
    what.add_argument("--all", action="store_true")
    what.add_argument("--rotate", type=int, metavar="N", help="N scenarios, others with every commit")
    parser.add_argument("--logd", help="the broker's binary; logctl is beside it")
    parser.add_argument("--brokers", type=int, default=3, choices=(1, 3))
    parser.add_argument("--place", default="loopback", choices=("loopback", "netns"), help="where brokers live unless a scenario needs namespaces")
    parser.add_argument("--partitions", type=int, default=6)
    parser.add_argument("--warm", type=float, default=10, metavar="SECONDS", help="load before the fault")
    parser.add_argument("--after", type=float, default=5, metavar="SECONDS", help="load after healing")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scratch", help="where data and logs go")
    parser.add_argument("--tools", help="unused: every driver is given it")
    parser.add_argument("--keep", action="store_true", help="keep the data of good runs too")
    parser.add_argument("--verbose", action="store_true", help="print the timeline as it goes")
    options = parser.parse_args()
    if not options.list and not options.logd:
        parser.error("say which broker: --logd BINARY")
    options.scratch = options.scratch or tempfile.mkdtemp(prefix="logd-cluster.")
    return options


def main():
    options = arguments()
    fitting = [name for name, s in CATALOGUE.items() if options.brokers in s.brokers]
    if options.list:
        print("\n".join(f"{name:28} {s.fault.__doc__}" + ("" if 1 in s.brokers else " [3 brokers]") for name, s in CATALOGUE.items()))
        return
    chosen = fitting if options.all else options.only if options.only else rotated(fitting, options.rotate)
    wrong = [name for name in chosen if name not in fitting]
    if wrong:
        sys.exit(f"not a scenario for {options.brokers} brokers: {', '.join(wrong)}; see --list")
    options.logctl = str(pathlib.Path(options.logd).resolve().parent / "logctl")
    options.logd = str(pathlib.Path(options.logd).resolve())
    enter_private_network()
    good = [Day(options, CATALOGUE[name]).run() for name in chosen]
    print(f"{sum(good)} passed, {len(good) - sum(good)} failed")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
