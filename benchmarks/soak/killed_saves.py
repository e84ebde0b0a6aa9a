"""A save by two ranks, one of which kills itself before its n-th operation of the save."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.soak.several import fork_ranks, tensors_of, wait_all
from benchmarks.soak.trainings import World
from llm_trainer.files import write_text
from llm_trainer.training.checkpoint import newest_checkpoint, recover_checkpoints
from llm_trainer.training.ranks import Ranks

RANKS = 2
_FILE_OPERATIONS = ("mkdir", "write", "fsync", "replace", "rename", "unlink", "rmdir")
_TALK = "exchange"


@dataclass
class SavesOfTwo:
    """Saves that follow a checkpoint of two ranks, each in a fresh pair of processes."""

    world: World
    before: Path
    """A run's directory whose newest checkpoint is sharded."""
    work: Path
    """Room for copies."""

    def save(self, victim: int | None = None, number: int = 0) -> list[int | None]:
        """Save a step further; rank `victim` dies before its operation `number`, from 1.

        Returns the exit codes. Each rank leaves its operations, by name, in `<work>/operations-<r>`
        if it comes to the end.
        """
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.before, self.work / "run")

        def body(rank: int) -> None:
            made = self.world.trainer(self.work / "run", {"d_ff": 35}, parallel="fsdp")
            made._load_checkpoint()
            made.state.step += 1
            made.state.history.append((1.0, 1.0, 1.0))
            with counted(number if rank == victim else 0) as operations:
                made._save_checkpoint()
            write_text(self.work / f"operations-{rank}", "\n".join(operations))

        return wait_all(fork_ranks(RANKS, body, self.work / "logs"), 60)

    def operations(self, rank: int) -> list[str]:
        """What a rank did in the last undisturbed save."""
        return (self.work / f"operations-{rank}").read_text().split("\n")

    def left(self) -> tuple[int, dict[str, Any]] | None:
        """Step and tensors of the newest whole checkpoint, after what the next start clears."""
        recover_checkpoints(self.work / "run")
        found = newest_checkpoint(self.work / "run")
        return None if found is None else (found.state.step, tensors_of(found.path))


def turns(operations: list[str]) -> list[int]:
    """Numbers of the operations around each exchange, the first write and the last rename."""
    talks = [n for n, name in enumerate(operations, 1) if name == _TALK]
    last = max((n for n, name in enumerate(operations, 1) if name == "rename"), default=0)
    chosen = {*talks, *(n + 1 for n in talks), operations.index("write") + 2, last, last + 1}
    return sorted(n for n in chosen if 0 < n <= len(operations))


@contextmanager
def counted(fatal: int) -> Iterator[list[str]]:
    """Count changes of the file system and exchanges; the process dies before number `fatal`."""
    seen: list[str] = []

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            seen.append(name)
            if len(seen) == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **more)

        return call

    counted_ones: dict[str, Any] = {n: counting(n, vars(os)[n]) for n in _FILE_OPERATIONS}
    with (
        mock.patch.multiple(os, **counted_ones),
        mock.patch.object(Ranks, _TALK, counting(_TALK, Ranks.exchange)),
    ):
        yield seen
