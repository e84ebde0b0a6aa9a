"""A2 for sharded checkpoints: one of two ranks is killed, at each operation of a save, at random.

What is on the disk is the old checkpoint or the new one, the other rank ends by itself, and the
same command goes on, in the bytes of a run of one process. What else a lost rank does: A12.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.soak.killed_saves import RANKS, SavesOfTwo
from benchmarks.soak.row import Report, Row
from benchmarks.soak.several import fork_ranks, run_end, tensors_of, wait_all
from benchmarks.soak.trainings import Progress, World, fork, leftovers, wait, watch
from llm_trainer.training import Trainer
from llm_trainer.training.checkpoint import list_checkpoints

DEATHS = 60
STEPS, EVERY = 16, 2
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS, "save_steps": EVERY, "gradient_accumulation_steps": 4,
    "deterministic_reduction": True, "optimizer": "adamw",
}  # fmt: skip
SHAPE = {"d_ff": 35}
"""Odd, so that ranks have different numbers of rows."""
SECONDS = 60.0
"""Within which the others must have ended."""
FSDP = "fsdp"


def make(world: World, directory: Path, life: int = 0, **changes: Any) -> Trainer:
    """The trainer; every second life saves in the background."""
    return world.trainer(directory, SHAPE, async_save=life % 2 == 1, **changes)


class Soak:
    """The deaths, and what they left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world = World(folder / "world", **SETTINGS)
        self.counts: Counter[str] = Counter()
        self.slowest = 0.0
        self.draw = random.Random(12)
        undisturbed = folder / "whole"
        code = wait(fork(lambda: make(self.world, undisturbed).train(), folder / "log"))
        assert code == 0, (folder / "log").read_text()
        self.end = run_end(undisturbed, STEPS)

    def saves(self, step: int) -> None:
        """A rank dies before every `step`-th operation of a save."""
        begun = self.folder / "begun"
        ended = wait_all(fork_ranks(RANKS, lambda _: self._start(begun), self.folder / "logs"))
        assert ended == [0] * RANKS
        old = list_checkpoints(begun)[0]
        kills = SavesOfTwo(self.world, begun, self.folder / "saves")
        assert kills.save() == [0] * RANKS
        new, before = kills.left(), (EVERY, tensors_of(old))
        lengths = [len(kills.operations(rank)) for rank in range(RANKS)]
        for victim in range(RANKS):
            for number in range(lengths[victim], 0, -step):
                codes = kills.save(victim, number)
                self.counts["kills_within_a_save"] += codes[victim] == -signal.SIGKILL
                self.counts["ranks_that_hung"] += None in codes
                left = kills.left()
                self.counts["old"] += left == before
                self.counts["new"] += left == new
                self.counts["neither_old_nor_new"] += left not in (before, new)

    def _start(self, directory: Path) -> None:
        made = make(self.world, directory, parallel=FSDP)
        log = made._log

        def logged() -> None:
            log()
            if made.state.step == EVERY + 1:
                os._exit(0)

        made._log = logged  # type: ignore[method-assign]
        made.train()

    def deaths(self, number: int) -> None:
        """A random rank dies at a random moment, until so many have; runs end as if none had."""
        directory, life, points = self.folder / "run", 0, set[str]()
        span = self._life(directory, life, None)[1]
        self._compare(directory)
        while self.counts["deaths"] < number or directory.exists():
            life += 1
            kills = self.counts["deaths"] < number
            # so early that most runs die more than once
            codes, _ = self._life(
                directory, life, self.draw.uniform(0.0, 0.6 * span) if kills else None
            )
            if codes == [0] * RANKS:
                self._compare(directory)
                continue
            self.counts["deaths"] += -signal.SIGKILL in codes
            self.counts["others_that_ended_well"] += 0 in codes and self._unfinished(directory)
            left = list(directory.glob(".partial-checkpoint-*"))
            self.counts["deaths_that_left_a_temporary_directory"] += bool(left)
            points |= {path.name for path in list_checkpoints(directory)[:1]}
        self.counts["distinct_resume_points"] = len(points)

    def _life(
        self, directory: Path, life: int, seconds: float | None
    ) -> tuple[list[int | None], float]:
        """Train until the end, or until a rank is killed so long after the first micro-batch.

        Returns the exit codes, and the seconds from the first micro-batch to the end.
        """
        progress = Progress()

        def train(_: int) -> None:
            made = make(self.world, directory, life, parallel=FSDP)
            watch(made, progress)
            made.train("auto")

        children = fork_ranks(RANKS, train, self.folder / "logs")
        begun = time.monotonic()
        while not progress.get(Progress.STARTED) and time.monotonic() < begun + SECONDS:
            time.sleep(0.001)
        begun = started = time.monotonic()
        if seconds is not None:
            time.sleep(seconds)
            os.kill(self.draw.choice(children), signal.SIGKILL)
            started = time.monotonic()
        codes = wait_all(children, SECONDS)
        if seconds is not None:
            self.slowest = max(self.slowest, time.monotonic() - started)
        self.counts["ranks_that_hung"] += None in codes
        return codes, time.monotonic() - begun

    def _unfinished(self, directory: Path) -> bool:
        return [path.name for path in list_checkpoints(directory)[:1]] != [f"checkpoint-{STEPS}"]

    def _compare(self, directory: Path) -> None:
        self.counts["ends_compared"] += 1
        self.counts["ends_that_differ"] += run_end(directory, STEPS) != self.end
        self.counts["temporary_left_at_the_end"] += len(leftovers(directory))
        shutil.rmtree(directory)


def run(folder: Path, scale: float) -> Report:
    """Both."""
    soak, report = Soak(folder), Report()
    soak.saves(max(1, round(1 / scale)))
    soak.deaths(max(3, round(DEATHS * scale)))
    nothing = (
        "neither_old_nor_new", "ranks_that_hung", "others_that_ended_well",
        "ends_that_differ", "temporary_left_at_the_end",
    )  # fmt: skip
    something = (
        "kills_within_a_save", "old", "new", "deaths", "distinct_resume_points",
        "deaths_that_left_a_temporary_directory", "ends_compared",
    )  # fmt: skip
    report.counters = {name: soak.counts[name] for name in (*something, *nothing)}
    report.counters["slowest_end_seconds"] = round(soak.slowest, 1)
    for name in nothing:
        report.require(soak.counts[name] == 0, f"{name}: {soak.counts[name]} instead of 0")
    for name in something:
        vacuous = name == "deaths_that_left_a_temporary_directory" and scale < 1
        report.require(soak.counts[name] > 0 or vacuous, f"{name}: 0, so nothing was shown")
    report.require(soak.slowest < SECONDS, "the others took too long to end")
    return report


ROW = Row("A2-ranks", "SIGKILL of one of two ranks: at every operation of a save, at random", run)
