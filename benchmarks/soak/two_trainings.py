"""A9: a second training in the directory of a first, and one after a killed one with children."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.soak.row import Report, Row
from benchmarks.soak.trainings import Progress, World, committed, fork, wait
from llm_trainer.exceptions import LockHeldError

TIMES = 20
_REFUSED = 3


def run(folder: Path, scale: float) -> Report:
    """Refused and told by whom; the orphans of a killed one stop nobody, and end by themselves."""
    world, report = World(folder), Report()
    items = [{"input_ids": world.rows[n]["input_ids"].tolist()} for n in range(len(world.rows))]
    times, refused, resumed, orphans_seen, orphans_left = max(1, round(TIMES * scale)), 0, 0, 0, 0
    orphans: list[psutil.Process] = []
    for number in range(times):
        directory, progress = folder / str(number), Progress()

        def train(directory: Path = directory, progress: Progress = progress) -> None:
            changes: dict[str, Any] = {"max_steps": 4000, "dataloader_num_workers": 2}
            world.train(world.trainer(directory, rows=items, **changes), progress)

        first = fork(train)
        while not progress.get(Progress.STARTED):
            time.sleep(0.001)

        def second(directory: Path = directory, first: int = first) -> None:
            try:
                world.trainer(directory).train("auto")
            except LockHeldError as error:
                told = f"process {first} (train)" in str(error) and str(directory) in str(error)
                raise SystemExit(_REFUSED if told else 4) from None

        before = committed(directory, 3)
        code = wait(fork(second, folder / "log"))
        refused += code == _REFUSED
        report.require(code == _REFUSED, f"the second training ended with {code}")
        report.require(committed(directory, 3) >= before, "the second training lost a checkpoint")
        children = psutil.Process(first).children()
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        third = fork(train, folder / "log")
        progress.set(Progress.STARTED, 0)
        while not progress.get(Progress.STARTED):
            if os.waitid(os.P_PID, third, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.001)
        orphans_seen += sum(child.is_running() for child in children)
        resumed += bool(progress.get(Progress.STARTED))
        os.kill(third, signal.SIGTERM)
        report.require(wait(third, 20) == 143, "the training after the killed one was not stopped")
        orphans += children
    _, alive = psutil.wait_procs(orphans, timeout=20)
    orphans_left = len(alive)
    report.counters = {
        "second_trainings": times, "refused_and_told_by_whom": refused,
        "killed_trainings": times, "went_on_beside_living_orphans": resumed,
        "orphans_alive_then": orphans_seen, "orphans_left_at_the_end": orphans_left,
    }  # fmt: skip
    report.require(resumed == times, f"only {resumed} of {times} went on after a kill")
    report.require(orphans_seen > 0, "no orphan outlived its trainer, so nothing was shown")
    report.require(orphans_left == 0, f"{orphans_left} orphans did not end")
    return report


ROW = Row("A9", "two trainings in one directory; a killed training with children", run)
