"""A3: SIGINT and SIGTERM at random times, to the process or to its whole group, once and twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.soak.row import Report, Row
from benchmarks.soak.trainings import Progress, World, committed, end_state, fork, wait

TIMES = 20
"""Of single signals, and again of double ones."""
SECONDS = 20.0


def run(folder: Path, scale: float) -> Report:
    """Stop, go on, stop; a data set read by worker processes, so that the group has members."""
    world, report, counts = World(folder), Report(), Counter[str]()
    items = [{"input_ids": world.rows[n]["input_ids"].tolist()} for n in range(len(world.rows))]
    changes: dict[str, Any] = {"max_steps": 60, "save_steps": 4, "dataloader_num_workers": 2}
    draw, progress, slowest, slowest_second = random.Random(2), Progress(), 0.0, 0.0
    points: set[int] = set()

    def train(directory: Path) -> int:
        return fork(
            lambda: world.train(world.trainer(directory, rows=items, **changes), progress),
            folder / "log",
        )

    assert wait(train(folder / "whole")) == 0, (folder / "log").read_text()
    expected = end_state(folder / "whole")
    planned = [
        (number, group, double)
        for double in (False, True)
        for number in (signal.SIGINT, signal.SIGTERM)
        for group in (False, True)
        for _ in range(max(1, round(TIMES * scale / 4)))
    ]
    draw.shuffle(planned)
    directory = folder / "stopped"
    while planned:
        number, group, double = planned[-1]
        progress.set(Progress.STARTED, 0)
        child = train(directory)
        while not progress.get(Progress.STARTED) and not _ended(child):
            time.sleep(0.001)  # a run that was stopped at its very end has no micro-batch to do
        time.sleep(draw.uniform(0, 0.3))
        send, started = (os.killpg if group else os.kill), time.monotonic()
        if not _ended(child):
            send(child, number)
        if double:
            time.sleep(draw.uniform(0, 0.02))
            if not _ended(child):
                counts["second_signals_that_came_in_time"] += 1
                send(child, number)
        code, seconds = wait(child), time.monotonic() - started
        if code == 0:  # the run was over before the signal came
            _compare(directory, expected, counts)
            continue
        planned.pop()
        newest = committed(directory, 3)
        counts["double" if double else "single"] += 1
        counts["to_the_group"] += group
        counts["to_the_process"] += not group
        counts["wrong_exit_codes"] += code != 128 + number
        points.add(newest)
        if double:
            slowest_second = max(slowest_second, seconds)
            counts["commits_lost"] += newest < progress.get(Progress.COMMITTED)
        else:
            slowest = max(slowest, seconds)
            counts["micro_batches_lost"] += progress.get(Progress.DONE) - newest
            counts["stops_within_a_step"] += newest % 3 > 0
        report.require(
            code == 128 + number, f"signal {number} to {'group' if group else 'process'}: {code}"
        )
    assert wait(train(directory)) == 0, (folder / "log").read_text()
    _compare(directory, expected, counts)
    names = (
        "single", "double", "to_the_process", "to_the_group", "wrong_exit_codes",
        "micro_batches_lost", "commits_lost", "stops_within_a_step",
        "second_signals_that_came_in_time", "ends_compared", "ends_that_differ",
    )  # fmt: skip
    report.counters = {name: counts[name] for name in names}
    report.counters |= {
        "distinct_stops": len(points),
        "slowest_exit_seconds": round(slowest, 2),
        "slowest_exit_after_two_seconds": round(slowest_second, 2),
    }
    for name in ("wrong_exit_codes", "micro_batches_lost", "commits_lost", "ends_that_differ"):
        report.require(counts[name] == 0, f"{name}: {counts[name]} instead of 0")
    report.require(max(slowest, slowest_second) < SECONDS, "an exit took too long")
    report.require(counts["stops_within_a_step"] > 0, "no stop was within a step")
    return report


def _ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _compare(directory: Path, expected: dict[str, bytes], counts: Counter[str]) -> None:
    counts["ends_compared"] += 1
    counts["ends_that_differ"] += end_state(directory) != expected
    shutil.rmtree(directory)


ROW = Row("A3", "SIGINT and SIGTERM at random times, to process and group, once and twice", run)
