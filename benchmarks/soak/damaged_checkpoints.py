"""A6: one bit flipped in, or the end cut off, a file of the newest checkpoint."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from functools import partial
from pathlib import Path

from benchmarks.soak.row import Report, Row
from benchmarks.soak.trainings import Progress, World, end_state, fork, wait
from llm_trainer.exceptions import IntegrityError
from llm_trainer.training.checkpoint import list_checkpoints, newest_checkpoint, read_checkpoint

FLIPS, TRUNCATIONS, TRAININGS = 1000, 200, 10
_STOP = 31
"""Micro-batches after which the run stopped: within a step, so that gradients are saved too."""


def run(folder: Path, scale: float) -> Report:
    """Named when asked for, passed over under "auto"; some of them by whole trainings."""
    world, report, draw = World(folder), Report(), random.Random(3)
    counts: Counter[str] = Counter()
    for optimizer in ("adamw", "muon"):
        directory = folder / optimizer
        assert wait(fork(partial(_whole, world, folder, optimizer))) == 0
        assert wait(fork(partial(_stopped, world, directory, optimizer))) == 143
        newest, older = list_checkpoints(directory)[:2]
        for fault, number in (("flips", FLIPS), ("truncations", TRUNCATIONS)):
            for _ in range(round(number * scale / 2)):
                file = draw.choice(sorted(p for p in newest.rglob("*") if p.is_file()))
                good = file.read_bytes()
                bad = _damage(good, fault, draw)
                file.write_bytes(bad)
                named = _is_named(newest)
                found = newest_checkpoint(directory)
                counts.update({fault: 1, f"{fault}_named": named})
                counts["not_fallen_back"] += found is None or found.path != older
                report.require(named, f"{file.name}: {fault[:-1]} was not named")
                file.write_bytes(good)
        for _ in range(max(1, round(TRAININGS * scale / 2))):
            _train_on(world, folder, optimizer, draw, counts)
    for name in ("not_fallen_back", "trainings_that_differ", "named_checkpoints_accepted"):
        counts.setdefault(name, 0)
        report.require(counts[name] == 0, f"{name}: {counts[name]} instead of 0")
    report.counters = dict(counts)
    return report


def _whole(world: World, folder: Path, optimizer: str) -> None:
    world.trainer(folder / f"whole-{optimizer}", optimizer=optimizer).train()


def _stopped(world: World, directory: Path, optimizer: str) -> None:
    made = world.trainer(directory, optimizer=optimizer)
    accumulate = made._accumulate

    def counted(*arguments: object) -> None:
        accumulate(*arguments)  # type: ignore[arg-type]
        if made.state.step * 3 + made.state.micro_step == _STOP:
            os.kill(os.getpid(), signal.SIGTERM)

    made._accumulate = counted  # type: ignore[method-assign, assignment]
    made.train()


def _damage(good: bytes, fault: str, draw: random.Random) -> bytes:
    if fault == "truncations":
        return good[: len(good) * draw.randrange(64) // 64]
    bad = bytearray(good)
    bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
    return bytes(bad)


def _is_named(checkpoint: Path) -> bool:
    try:
        read_checkpoint(checkpoint)
    except IntegrityError as error:
        return str(checkpoint) in str(error)
    return False


def _train_on(
    world: World, folder: Path, optimizer: str, draw: random.Random, counts: Counter[str]
) -> None:
    """A whole run from a damaged newest checkpoint, and the refusal of the same one by name."""
    directory = folder / "damaged"
    shutil.copytree(folder / optimizer, directory)
    newest = list_checkpoints(directory)[0]
    file = draw.choice(sorted(newest.rglob("*.safetensors")))
    file.write_bytes(_damage(file.read_bytes(), "flips", draw))

    def named() -> None:
        try:
            world.trainer(directory, optimizer=optimizer).train(newest)
        except IntegrityError:
            raise SystemExit(3) from None

    counts["named_checkpoints_accepted"] += wait(fork(named)) != 3
    made = world.trainer(directory, optimizer=optimizer)
    code = wait(fork(lambda: world.train(made, Progress())))
    counts["trainings_from_a_damaged_checkpoint"] += 1
    expected = end_state(folder / f"whole-{optimizer}")
    counts["trainings_that_differ"] += code != 0 or end_state(directory) != expected
    shutil.rmtree(directory)


ROW = Row("A6", "bits flipped in, and ends cut off, the files of checkpoints", run)
