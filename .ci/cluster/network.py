"""Where brokers live: on loopback with ports of their own, or each in a network namespace behind one switch.

Promise: the machine's own network is not touched. The switch, the driver's address on it and every rule are in a
network namespace of this process, which ends with it; the brokers' namespaces carry its pid in their names and are removed at
the end, or at the next start if this process was killed.

Not here: brokers' processes (see `processes`), which rules make which bad day (see `faults`).
"""

import ctypes
import os
import pathlib
import re
import subprocess

from harness.broker import free_port

PREFIX = "logdck"
CLONE_NEWNET = 0x40000000
SUBNET, DRIVER = "10.77.0", "10.77.0.254"
KAFKA, ADMIN, RPC = 9092, 9644, 9645


def run(*command, given=None):
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()} (the cluster's network needs root, iproute2 and nftables)"
    return done.stdout


class Loopback:
    """Every broker on 127.0.0.1; ports below those that the kernel gives away by itself."""

    def __init__(self, count):
        self.ports = [{name: free_port() for name in ("kafka", "admin", "rpc")} for _ in range(count)]

    def address(self, index, door):
        return "127.0.0.1", self.ports[index][door]

    def inside(self, index):
        return []

    def close(self):
        pass


def enter_private_network():
    """Gives this process a network of its own. Before any thread is started: a namespace belongs to a thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNET) == 0, f"a network of our own: {os.strerror(ctypes.get_errno())} (needs root)"
    run("ip", "link", "set", "lo", "up")


def sweep():
    """Removes namespaces of processes like this one that are no more."""
    for line in run("ip", "netns", "list").splitlines():
        found = re.match(rf"({PREFIX}(\d+)-\d+)\b", line)
        if found and not pathlib.Path(f"/proc/{found[2]}").exists():
            run("ip", "netns", "delete", found[1])


class Namespaces:
    """One namespace a broker, all on one switch with the driver. `cut` and `heal` decide who hears whom."""

    def __init__(self, count):
        self.count, self.cuts, self.names = count, set(), []
        sweep()
        run("ip", "link", "add", "switch", "type", "bridge")
        try:
            run("ip", "addr", "add", f"{DRIVER}/24", "dev", "switch")
            run("ip", "link", "set", "switch", "up")
            for index in range(count):
                self.plug(index)
            self.write_rules()
        except BaseException:
            self.close()
            raise

    def plug(self, index):
        name = f"{PREFIX}{os.getpid()}-{index}"
        run("ip", "netns", "add", name)
        self.names.append(name)
        run("ip", "link", "add", f"port{index}", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", f"port{index}", "master", "switch", "up")
        run("ip", "-n", name, "addr", "add", f"{SUBNET}.{index + 1}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            run("ip", "-n", name, "link", "set", device, "up")

    def address(self, index, door):
        return f"{SUBNET}.{index + 1}", {"kafka": KAFKA, "admin": ADMIN, "rpc": RPC}[door]

    def inside(self, index):
        return ["ip", "netns", "exec", self.names[index]]

    def cut(self, pairs):
        """From now on `to` does not hear `from`, for each (from, to); a broker is its number, clients are "clients"."""
        self.cuts |= set(pairs)
        self.write_rules()

    def heal(self):
        self.cuts.clear()
        self.write_rules()

    def write_rules(self):
        chains = {"forward": [], "input": [], "output": []}
        for source, target in sorted(self.cuts, key=str):
            if target == "clients":
                chains["input"].append(f"iifname port{source} drop")
            elif source == "clients":
                chains["output"].append(f"oifname port{target} drop")
            else:
                chains["forward"].append(f"iifname port{source} oifname port{target} drop")
        body = "".join(f"chain {name} {{ type filter hook {name} priority 0; {'; '.join(rules)}{';' if rules else ''} }}\n" for name, rules in chains.items())
        # Adding before deleting makes the deletion valid the first time too; all of it is one transaction.
        run("nft", "-f", "-", given=f"table bridge {PREFIX} {{}}\ndelete table bridge {PREFIX}\ntable bridge {PREFIX} {{\n{body}}}\n")

    def close(self):
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        self.names = []
        subprocess.run(["ip", "link", "delete", "switch"], capture_output=True)
        subprocess.run(["nft", "delete", "table", "bridge", PREFIX], capture_output=True)


def both_ways(one, others):
    return {pair for other in others for pair in ((one, other), (other, one))}
