"""A Ray cluster of two nodes in one machine, in a process of its own that can lose a node.

`python -m tests.data.ray_nodes 150` prints the address; a line that it reads makes it kill the node
that is not the head, and say so; it ends with its input. Its files are in RAY_TMPDIR.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.test_layers import ROOT

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_health_check_period_ms": "500",  # a node is missed after 1.5 s, not 15
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "1000",
}


class Nodes:
    """The running cluster."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        assert process.stdin is not None
        self.address: str = json.loads(process.stdout.readline())

    def kill_one(self) -> None:
        """Kill the node that is not the head, with its workers."""
        self._process.stdin.write("kill\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        assert self._process.stdout.readline() == "killed\n"  # type: ignore[union-attr]


@contextmanager
def two_nodes(temporary: str, store_mb: int = 150) -> Iterator[Nodes]:
    """Two nodes of one core and so much memory for results each."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.data.ray_nodes", str(store_mb)],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": temporary},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            yield Nodes(process)
        finally:
            process.stdin.close()  # type: ignore[union-attr]


def main() -> None:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": int(sys.argv[1]) * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    other = cluster.add_node(**node)
    print(json.dumps(cluster.address), flush=True)
    for _ in sys.stdin:
        cluster.remove_node(other, allow_graceful=False)
        print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
