"""A1: SIGKILL at random readings of the trainer's CPU clock, until the run is done.

Checkpoints within a step are only written on a stop signal, so some of the lives get SIGTERM at a
random reading as well, half of these with SIGKILL close behind, which hits the save of the stop.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.soak.cpu_clock import signal_at
from benchmarks.soak.row import Report, Row
from benchmarks.soak.trainings import (
    Progress,
    World,
    committed,
    end_state,
    fork,
    leftovers,
    wait,
)

KILLS = 240
STOPPED_LIVES = 0.3
"""Share of the lives that get SIGTERM."""
DRY: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0}
BF16: dict[str, Any] = {"use_amp": True, "amp_dtype": "bfloat16"}
VARIANTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"optimizer": "adamw", "gradient_accumulation_steps": 3}),
    ({}, {"optimizer": "muon", "gradient_accumulation_steps": 4, **BF16}),
    (DRY, {"optimizer": "adamw", "gradient_accumulation_steps": 1, "max_steps": 60, **BF16}),
    (DRY, {"optimizer": "muon", "gradient_accumulation_steps": 2, "max_steps": 40}),
    ({}, {"optimizer": "adamw", "gradient_accumulation_steps": 5, "save_steps": 1, **BF16}),
    ({}, {"optimizer": "sgd", "gradient_accumulation_steps": 3, "save_steps": 5}),
]
"""Changes of the model, and of the training."""


@dataclass
class Undisturbed:
    """A run that nothing stopped, and its seconds on the CPU clock."""

    end: dict[str, bytes]
    start: float
    """Until its first micro-batch was done."""
    total: float


class Soak:
    """The kills of all variants, and what they hit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world = World(folder)
        self.report = Report()
        self.draw = random.Random(1)
        self.counts: Counter[str] = Counter()
        self.points: set[tuple[int, int]] = set()

    def undisturbed(self, number: int) -> Undisturbed:
        """The end of a variant, and how long it takes."""
        directory = self.folder / f"undisturbed-{number}"
        model, training = VARIANTS[number]
        times = Progress()

        def body() -> None:
            made = self.world.trainer(directory, model, **training)
            accumulate = made._accumulate

            def timed(*arguments: Any) -> None:
                accumulate(*arguments)
                if times.get(0) == 0:
                    times.set(0, time.process_time_ns())

            made._accumulate = timed  # type: ignore[method-assign, assignment]
            made.train("auto")
            times.set(1, time.process_time_ns())

        code = wait(fork(body, self.folder / "log"))
        assert code == 0, (self.folder / "log").read_text()
        return Undisturbed(end_state(directory), times.get(0) / 1e9, times.get(1) / 1e9)

    def disturbed(self, number: int, expected: Undisturbed) -> None:
        """One run of a variant from its start to its end, through as many kills as hit it."""
        directory = self.folder / "disturbed"
        progress, before = Progress(), 0
        for life in range(1000):
            code = self._life(number, directory, progress, expected)
            self._count(number, code, directory, progress, before, life)
            before = max(progress.get(Progress.COMMITTED), 0)
            if code == 0:
                break
            progress.set(Progress.STARTED, 0)
        self._compare(directory, expected)
        shutil.rmtree(directory)

    def _life(
        self, number: int, directory: Path, progress: Progress, expected: Undisturbed
    ) -> int | None:
        model, training = VARIANTS[number]
        length = expected.start * 0.5 + self.draw.uniform(0, expected.total / 5)
        stopped = self.draw.random() < STOPPED_LIVES
        close = self.draw.random() < 0.5
        after = length + self.draw.uniform(0, 0.02) if close else length + 1000.0

        def body() -> None:
            if stopped:
                signal_at(length, signal.SIGTERM)
            signal_at(after if stopped else length, signal.SIGKILL)
            self.world.train(self.world.trainer(directory, model, **training), progress)

        return wait(fork(body, self.folder / "log"))

    def _count(
        self, number: int, code: int | None, directory: Path, progress: Progress, before: int,
        life: int,
    ) -> None:  # fmt: skip
        accumulation = VARIANTS[number][1]["gradient_accumulation_steps"]
        self.counts["lives"] += 1
        told = (-signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM, 0)
        if code not in told:
            self.report.require(False, f"variant {number}: a life ended with {code}")
        if progress.get(Progress.STARTED) and life:
            resumed = progress.get(Progress.RESUMED)
            self.points.add((number, resumed))
            self.counts["resumes"] += 1
            self.counts["mid_accumulation_resumes"] += resumed % accumulation > 0
            self.counts["steps_lost"] += max(0, before - resumed)
        newest = committed(directory, accumulation)
        self.counts["commits_lost"] += newest < progress.get(Progress.COMMITTED)
        if code == -signal.SIGKILL:
            self.counts["kills"] += 1
            self.counts["kills_that_left_a_temporary_directory"] += any(
                path.is_dir() for path in leftovers(directory)
            )
            self.counts["kills_with_uncommitted_work"] += progress.get(Progress.DONE) > newest
        self.counts["stops"] += code == 128 + signal.SIGTERM

    def _compare(self, directory: Path, expected: Undisturbed) -> None:
        self.counts["runs"] += 1
        end = end_state(directory)
        for name, content in expected.end.items():
            if end[name] != content:
                self.counts["files_that_differ"] += 1
                self.report.require(False, f"{name} differs from the undisturbed run's")
        self.counts["temporary_left_at_the_end"] += len(leftovers(directory))


def run(folder: Path, scale: float) -> Report:
    """Kill each variant its share of times, and compare every end."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    soak = Soak(folder)
    share = max(2, round(KILLS * scale / len(VARIANTS)))
    for number in range(len(VARIANTS)):
        expected = soak.undisturbed(number)
        wanted = soak.counts["kills"] + share
        while soak.counts["kills"] < wanted:
            soak.disturbed(number, expected)
    report, counts = soak.report, soak.counts
    names = (
        "kills", "steps_lost", "commits_lost", "files_that_differ", "runs", "stops", "resumes",
        "mid_accumulation_resumes", "kills_that_left_a_temporary_directory",
        "kills_with_uncommitted_work", "temporary_left_at_the_end",
    )  # fmt: skip
    report.counters = {name: counts[name] for name in names}
    report.counters |= {"distinct_resume_points": len(soak.points), "variants": len(VARIANTS)}
    for name in ("steps_lost", "commits_lost", "files_that_differ", "temporary_left_at_the_end"):
        report.require(counts[name] == 0, f"{name}: {counts[name]} instead of 0")
    for name in names[5:10]:
        report.require(counts[name] > 0, f"{name}: 0, so the soak shows nothing")
    return report


ROW = Row("A1", "SIGKILL of a training at random readings of its CPU clock", run)
