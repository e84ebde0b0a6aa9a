"""Two machines in one: network namespaces with addresses of their own, joined by a cable."""

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

from tests.pipeline.launched import start


class NoNamespacesError(Exception):
    """This machine or this user cannot have network namespaces; the message says why."""


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

    @classmethod
    @contextmanager
    def built(cls) -> Iterator[Network]:
        """A network for the body.

        Raises:
            NoNamespacesError: there can be none here.
        """
        if os.geteuid() or shutil.which("ip") is None:
            raise NoNamespacesError("network namespaces need root and the program ip")
        made = cls((f"llm-{os.getpid()}-0", f"llm-{os.getpid()}-1"))
        try:
            try:
                made._build()
            except subprocess.CalledProcessError as error:
                raise NoNamespacesError(f"no network namespaces here: {error.stderr}") from None
            yield made
        finally:
            for name in made.names:
                subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def _build(self) -> None:
        """Lay the cable, and give each end its address."""
        for name in self.names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        first, second = self.names
        _ip("link", "add", "c0", "netns", first, "type", "veth", "peer", "c0", "netns", second)
        for number, name in enumerate(self.names, 1):
            _ip("-n", name, "address", "add", f"{NET}.{number}/24", "dev", "c0")
            _ip("-n", name, "link", "set", "c0", "up")

    def cut(self) -> None:
        """Pull the cable: nobody is told anything."""
        _ip("-n", self.names[1], "link", "set", "c0", "down")

    def mend(self) -> None:
        """Put it back."""
        _ip("-n", self.names[1], "link", "set", "c0", "up")

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


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def kill(node: subprocess.Popen[str]) -> None:
    """All of a machine at once, as when its power goes."""
    if node.poll() is not None:
        return
    for process in (psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)):
        process.send_signal(signal.SIGKILL)
