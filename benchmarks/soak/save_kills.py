"""A2: SIGKILL at every system call of a save: open, write, sync, rename, delete, and the rest."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.soak.row import Report, Row
from benchmarks.soak.system_calls import kill_at_system_call
from benchmarks.soak.trainings import World
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.training import Trainer
from llm_trainer.training.checkpoint import (
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    recover_checkpoints,
)
from llm_trainer.training.signals import StopRequest

CASES: dict[str, tuple[dict[str, Any], int, bool]] = {
    "adamw_and_pruning": ({"optimizer": "adamw", "save_total_limit": 1}, 6, False),
    "muon_within_a_step": ({"optimizer": "muon"}, 7, False),
    "replacing_the_same_step": ({"optimizer": "adamw", "save_total_limit": 1}, 6, True),
}
"""Configuration, micro-batches done at the save, and whether that save was made before."""

NEXT_SAVE = 10
"""After one kill in so many, the next save is tried; it takes longer than all else."""


_IN_MEMORY = Path("/dev/shm")
"""A kill asks nothing of the disk, whose syncs take most of the time."""


def run(folder: Path, scale: float) -> Report:
    """For all k: old or new, whole, and the next save works."""
    if not _IN_MEMORY.is_dir():
        return _run(folder, scale)
    with tempfile.TemporaryDirectory(dir=_IN_MEMORY) as memory:
        return _run(Path(memory), scale)


def _run(folder: Path, scale: float) -> Report:
    report, counts = Report(), Counter[str]()
    world = World(folder)
    for name, (changes, micro_batches, again) in CASES.items():
        base = folder / name
        made = world.trainer(base / "run", **changes)
        made._set_up(StopRequest())
        _advance(made, 3)
        old = _content(made._save_checkpoint())
        _advance(made, micro_batches)
        shutil.copytree(base / "run", base / "before")
        new = _content(made._save_checkpoint())
        if again:
            old = new
            shutil.rmtree(base / "before")
            shutil.copytree(base / "run", base / "before")
        _kill_everywhere(made, base, (old, new), report, counts, step=max(1, round(1 / scale)))
    report.counters = dict(counts)
    for name in ("neither_old_nor_new", "next_save_failed"):
        report.counters.setdefault(name, 0)
        report.require(counts[name] == 0, f"{name}: {counts[name]}")
    for name in ("old", "new", "kills_that_left_a_temporary_directory"):
        report.require(counts[name] > 0, f"{name}: 0, so the kills hit one side only")
    return report


def _advance(made: Trainer, micro_batches: int) -> None:
    """Train up to that many micro-batches of the run."""
    accumulation = made.config.gradient_accumulation_steps
    while made.state.step * accumulation + made.state.micro_step < micro_batches:
        batches = [made._stream.load(n) for n in made._micro_batches()]
        targets = sum(batch.num_targets for batch in batches)
        made._accumulate(batches[made.state.micro_step], targets)
        if made.state.micro_step == accumulation:
            made._optimizer_step(targets)


def _kill_everywhere(
    made: Trainer, base: Path, wanted: tuple[dict[str, bytes], dict[str, bytes]], report: Report,
    counts: Counter[str], step: int,
) -> None:  # fmt: skip
    directory, number, killed = base / "run", 1, True
    save: Callable[[], Path] = made._save_checkpoint
    while killed:
        shutil.rmtree(directory)
        shutil.copytree(base / "before", directory)
        killed = kill_at_system_call(save, number)
        counts["kills"] += killed
        counts["kills_that_left_a_temporary_directory"] += any(directory.glob(".partial-*"))
        recover_checkpoints(directory)
        found = newest_checkpoint(directory)
        content = None if found is None else _content(found.path)
        if content == wanted[1]:
            counts["new"] += 1
        elif content == wanted[0]:
            counts["old"] += 1
        else:
            counts["neither_old_nor_new"] += 1
        if number % NEXT_SAVE == 1:
            try:
                read_checkpoint(save())
                ok = len(list_checkpoints(directory)) <= (made.config.save_total_limit or 99)
            except LLMTrainerError as error:
                report.require(False, f"{base.name}, call {number}: {error}")
                ok = False
            counts["next_saves"] += 1
            counts["next_save_failed"] += not ok
        number += step


def _content(checkpoint: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(checkpoint)): path.read_bytes()
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    } | {"": checkpoint.name.encode()}


ROW = Row("A2", "SIGKILL at every system call of a save", run)
