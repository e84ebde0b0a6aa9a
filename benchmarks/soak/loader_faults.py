"""A11: a worker that reads the data dies or hangs, at a row or from outside."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from torch.utils.data import Dataset

from benchmarks.soak.row import Report, Row
from benchmarks.soak.trainings import Progress, World, committed, fork, wait
from llm_trainer.exceptions import DataError
from llm_trainer.training import loader_workers

TIMES = 20
TIMEOUT = 2.0
_NAMED = 3
_FAULT_AT = 0
"""Slot of the progress that holds the nanosecond of the fault."""


class Faulty(Dataset[dict[str, Any]]):
    """Rows, one of which kills or stops the process that reads it."""

    def __init__(self, world: World, row: int, fault: str, clock: Progress) -> None:
        self.items = [{"input_ids": world.rows[n]["input_ids"].tolist()} for n in range(60)]
        self.row, self.fault, self.clock = row, fault, clock

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.row:
            self.clock.set(_FAULT_AT, time.monotonic_ns())
            if self.fault == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "hangs":
                time.sleep(1000)
        return self.items[index]


def run(folder: Path, scale: float) -> Report:
    """Told with the row, within the timeout and a second, with nobody left."""
    world, report, counts = World(folder), Report(), Counter[str]()
    draw, slowest = random.Random(4), {"dies": 0.0, "hangs": 0.0, "killed": 0.0}
    times = max(1, round(TIMES * scale))
    for fault in [*["dies"] * times, *["hangs"] * max(1, times // 4), *["killed"] * times]:
        row = draw.randrange(60)
        directory = folder / f"{fault}-{counts[fault]}"
        clock, progress = Progress(), Progress()
        rows = Faulty(world, row if fault != "killed" else -1, fault, clock)

        def body(
            directory: Path = directory, rows: Faulty = rows, row: int = row, fault: str = fault,
            progress: Progress = progress,
        ) -> None:  # fmt: skip
            loader_workers.TIMEOUT = TIMEOUT
            made = world.trainer(
                directory, rows=rows, dataloader_num_workers=2, max_steps=2000, eval_strategy="no"
            )
            made.eval_dataset = None
            try:
                world.train(made, progress)
            except DataError as error:
                named = fault == "killed" or re.search(rf"\b{row}\b", str(error))
                raise SystemExit(_NAMED if named and "worker" in str(error) else 4) from error

        child = fork(body, folder / "log")
        children: list[psutil.Process] = []
        while not children or not progress.get(Progress.STARTED):
            found = psutil.Process(child).children()
            children = found or children
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.001)
        if fault == "killed":
            time.sleep(draw.uniform(0, 0.3))
            clock.set(_FAULT_AT, time.monotonic_ns())
            draw.choice(children).kill()
        code = wait(child, 30)
        seconds = (time.monotonic_ns() - clock.get(_FAULT_AT)) / 1e9
        slowest[fault] = max(slowest[fault], seconds)
        counts[fault] += 1
        counts["named"] += code == _NAMED
        counts["commits_lost"] += committed(directory, 3) < progress.get(Progress.COMMITTED)
        counts["workers_left"] += sum(process.is_running() for process in children)
        report.require(code == _NAMED, f"{fault} at row {row}: ended with {code}")
        report.require(seconds < TIMEOUT + 1, f"{fault}: told after {seconds:.1f} s")
    for name in ("commits_lost", "workers_left"):
        counts.setdefault(name, 0)
        report.require(counts[name] == 0, f"{name}: {counts[name]}")
    report.counters = {**counts, "timeout_seconds": TIMEOUT}
    report.counters |= {f"slowest_{name}_seconds": round(s, 2) for name, s in slowest.items()}
    return report


ROW = Row("A11", "a process that reads the data dies, hangs, or is killed", run)
