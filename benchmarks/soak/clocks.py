"""A13: file times in any order, and a system clock that jumps by years during a run."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

from benchmarks.soak.cpu_clock import signal_at
from benchmarks.soak.row import Report, Row
from benchmarks.soak.trainings import Progress, World, end_state, fork, wait
from llm_trainer.training.checkpoint import list_checkpoints, newest_checkpoint

SHUFFLES, RUNS = 200, 5
_YEAR = 365 * 86400.0


def run(folder: Path, scale: float) -> Report:
    """Checkpoints go by step; a run under a mad clock, killed on its way, ends as any other."""
    world, report, draw = World(folder), Report(), random.Random(5)
    keep: dict[str, Any] = {"save_total_limit": None, "save_steps": 1}
    assert wait(fork(lambda: world.trainer(folder / "whole", **keep).train())) == 0
    expected = end_state(folder / "whole")
    wrong = same_second = differ = kills = 0
    checkpoints = list_checkpoints(folder / "whole")
    for _ in range(max(1, round(SHUFFLES * scale))):
        times = [draw.choice([0.0, 1e9, 1e9, 2e9, draw.uniform(0, 4e9)]) for _ in checkpoints]
        same_second += len(set(times)) < len(times)
        for path, seconds in zip(checkpoints, times, strict=True):
            os.utime(path, (seconds, seconds))
            os.utime(path / "manifest.json", (seconds, seconds))
        newest = newest_checkpoint(folder / "whole")
        wrong += newest is None or newest.state.step != 24
        wrong += list_checkpoints(folder / "whole") != checkpoints
    real, ticks = time.time, Progress()
    for number in range(max(1, round(RUNS * scale))):
        directory, progress, code = folder / f"mad-{number}", Progress(), None
        while code != 0:
            life, seed = draw.uniform(0.1, 0.5), draw.random()

            def body(
                directory: Path = directory, life: float = life, seed: float = seed,
                progress: Progress = progress,
            ) -> None:  # fmt: skip
                signal_at(life, 9)
                mad = random.Random(seed)

                def jumping() -> float:
                    ticks.set(0, ticks.get(0) + 1)
                    return real() + mad.uniform(-20, 20) * _YEAR

                time.time = jumping
                world.train(world.trainer(directory, **keep), progress)

            code = wait(fork(body))
            kills += code == -9
        differ += end_state(directory) != expected
    report.counters = {
        "shuffles_of_file_times": max(1, round(SHUFFLES * scale)),
        "shuffles_with_equal_times": same_second, "wrong_orders": wrong,
        "runs_with_a_jumping_clock": max(1, round(RUNS * scale)), "jumps": ticks.get(0),
        "kills": kills, "ends_that_differ": differ,
    }  # fmt: skip
    report.require(wrong == 0, f"{wrong} wrong orders")
    report.require(differ == 0, f"{differ} ends differ")
    report.require(ticks.get(0) > 0, "the clock did not jump")
    return report


ROW = Row("A13", "file times in any order, equal ones, and a clock that jumps", run)
