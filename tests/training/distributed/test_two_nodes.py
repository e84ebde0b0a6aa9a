"""Two machines, as network namespaces with addresses of their own: meeting, loss, going on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipeline.worker import LOST_PEER
from tests.pipeline.launched import (
    LIMIT,
    after_a_checkpoint,
    configure,
    ended,
    make,
    newest,
    outputs,
    outputs_of_one_process,
    start,
)

NET = "10.231.77"
"""Of the two machines, which see nothing else."""
PORT = 29500
TWO_NODES = {
    "launcher": "torchrun", "nproc_per_node": 1, "nnodes": 2, "rdzv_endpoint": f"{NET}.1:{PORT}",
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """Two namespaces joined by a cable."""

    names: tuple[str, str]

    def ip(self, *words: str) -> None:
        """Run `ip`."""
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    def build(self) -> None:
        """Lay the cable, and give each end its address."""
        for name in self.names:
            self.ip("netns", "add", name)
            self.ip("-n", name, "link", "set", "lo", "up")
        first, second = self.names
        self.ip("link", "add", "c0", "netns", first, "type", "veth", "peer", "c0", "netns", second)
        for number, name in enumerate(self.names, 1):
            self.ip("-n", name, "address", "add", f"{NET}.{number}/24", "dev", "c0")
            self.ip("-n", name, "link", "set", "c0", "up")

    def cut(self) -> None:
        """Pull the cable: nobody is told anything."""
        self.ip("-n", self.names[1], "link", "set", "c0", "down")

    def mend(self) -> None:
        """Put it back."""
        self.ip("-n", self.names[1], "link", "set", "c0", "up")

    @contextmanager
    def started(self, project: Path) -> Iterator[list[subprocess.Popen[str]]]:
        """The stage on the first machine, and what joins it on the second; nothing is left."""
        modules = ("pipeline.train", "pipeline.launch")
        nodes = [
            start(project, module, "ip", "netns", "exec", name)
            for module, name in zip(modules, self.names, strict=True)
        ]
        try:
            yield nodes
        finally:
            for node in nodes:
                kill(node)
                node.communicate()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip")
    made = Network((f"llm-{os.getpid()}-0", f"llm-{os.getpid()}-1"))
    try:
        try:
            made.build()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield made
    finally:
        for name in made.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("nodes") / "project")


def kill(node: subprocess.Popen[str]) -> None:
    """All of a machine at once, as when its power goes."""
    if node.poll() is not None:
        return
    for process in (psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)):
        process.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_two_nodes_of_which_one_is_lost_then_given_again_end_in_the_bytes_of_one(
    network: Network, project: Path
) -> None:
    expected = outputs_of_one_process(project)
    configure(project, TWO_NODES)

    with network.started(project) as (first, second):
        after_a_checkpoint(project, first, newest(project))
        kill(first)  # where they met, and rank 0
        assert ended(second, LIMIT) == (1, f"error: train: {LOST_PEER}\n")

    with network.started(project) as (first, second):
        code, err = ended(first, 120)
        assert code == 0, err
        assert "on cpu in 2 processes on 2 nodes of 1 thread each" in err
        assert err.count("resuming from") == 1
        assert ended(second) == (0, "")
    assert outputs(project) == expected
