"""A Ray cluster of several nodes on one machine: `python -m tests.runners.faked_cluster N`.

Its head has no room for trials, each of its N other nodes room for one.  It prints its address and the ids of
the nodes' raylets; a number on its standard input takes that node away as a power cut would; the end of its
input ends everything.
"""

import os
import secrets
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
STORE_BYTES = 78_643_200  # Ray's minimum


class FakedCluster:
    """The cluster as a test sees it: `address`, `token`, `raylets`, and `remove`."""

    def __init__(self, process, token):
        self.process, self.token = process, token
        self.address, *raylets = process.stdout.readline().split()
        self.raylets = [int(pid) for pid in raylets]

    def remove(self, node):
        self.process.stdin.write(f"{node}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == f"removed {node}\n"


@contextmanager
def faked_cluster(n_nodes):
    """Runs one in a process of its own, and leaves nothing of it."""
    token = secrets.token_hex(32)
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    command = [sys.executable, "-W", "ignore", "-m", "tests.runners.faked_cluster", str(n_nodes)]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield FakedCluster(process, token)
        finally:
            process.stdin.close()
            process.wait(60)


def main(n_nodes):
    from ray.cluster_utils import Cluster

    from runners.trial_server import adopt_orphans, kill_descendants

    adopt_orphans()
    small = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(n_nodes)]
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        print(cluster.address, *raylets, flush=True)
        for line in sys.stdin:
            cluster.remove_node(nodes[int(line)], allow_graceful=False)
            print("removed", int(line), flush=True)
    finally:
        cluster.shutdown()
        kill_descendants(os.getpid())


if __name__ == "__main__":
    main(int(sys.argv[1]))
