"""A5: a checkpoint directory on a read-only disk, of another owner, or not a directory."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.soak.mounts import make_read_only, own_mounts
from benchmarks.soak.row import Report, Row
from benchmarks.soak.trainings import Progress, World, fork, wait
from llm_trainer.exceptions import LLMTrainerError

SECONDS = 2.0
NOBODY = 65534
_REFUSED = 3


def run(folder: Path, scale: float) -> Report:
    """Each place once empty and once with checkpoints to go on from; all in under two seconds."""
    world, report = World(folder), Report()
    assert wait(fork(lambda: world.trainer(folder / "old", max_steps=4).train())) == 0
    folder.chmod(0o755)
    places: dict[str, Callable[[Path], None]] = {
        "read_only": _read_only, "foreign": _foreign, "foreign_record": _foreign_record,
        "no_directory": _no_directory,
    }  # fmt: skip
    if os.getuid():
        del places["foreign"], places["foreign_record"]
    refused, slowest = 0, 0.0
    for name, spoil in places.items():
        for resumed in (False, True):
            directory, progress = folder / f"{name}-{resumed}", Progress()
            if resumed:
                shutil.copytree(folder / "old", directory)
            else:
                directory.mkdir()

            def body(
                directory: Path = directory, spoil: Callable[[Path], None] = spoil,
                progress: Progress = progress,
            ) -> None:  # fmt: skip
                spoil(directory)
                started = time.monotonic_ns()
                try:
                    world.train(world.trainer(directory, max_steps=8), progress)
                except LLMTrainerError as error:
                    progress.set(Progress.COMMITTED, time.monotonic_ns() - started)
                    told = "cannot be written" in str(error) and str(directory) in str(error)
                    raise SystemExit(_REFUSED if told else 4) from error

            code = wait(fork(body, folder / "log"))
            early = code == _REFUSED and not progress.get(Progress.STARTED)
            refused += early
            slowest = max(slowest, progress.get(Progress.COMMITTED) / 1e9)
            report.require(early, f"{name}, resumed {resumed}: ended with {code}")
    report.counters = {
        "places": 2 * len(places), "refused_before_the_first_step": refused,
        "slowest_seconds": round(slowest, 3),
    }  # fmt: skip
    report.require(slowest < SECONDS, f"{slowest:.1f} s until it was noticed")
    return report


def _read_only(directory: Path) -> None:
    own_mounts()
    make_read_only(directory)


def _foreign(directory: Path) -> None:
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def _foreign_record(directory: Path) -> None:
    """The lock can be had, the record of the run is somebody else's."""
    (directory / "run").mkdir(exist_ok=True)
    for path in (directory, *directory.glob("lock")):
        os.chown(path, NOBODY, NOBODY)
    _foreign(directory)


def _no_directory(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.write_text("a file")


ROW = Row("A5", "a directory that cannot be written", run)
