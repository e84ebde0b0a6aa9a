"""A8: learning rate and weight decay changed between two sittings of a run."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.soak.row import Report, Row
from benchmarks.soak.trainings import World, fork, wait
from llm_trainer.exceptions import CheckpointError
from llm_trainer.training.optimizer import optimizer_from_config
from llm_trainer.training.scheduler import schedule

RATES: dict[str, Any] = {
    "learning_rate": 0.003, "weight_decay": 0.2, "embedding_learning_rate": 0.004,
    "head_learning_rate": 0.005, "vector_learning_rate": 0.006, "beta1": 0.85, "momentum": 0.9,
}  # fmt: skip
OPTIMIZERS = ("adamw", "adam", "sgd", "muon")
_STOP = 9


def run(folder: Path, scale: float) -> Report:
    """What an optimizer steps with is the configuration's, never the checkpoint's."""
    world, report, checked = World(folder), Report(), 0
    for optimizer in OPTIMIZERS:
        for name, value in RATES.items():
            directory = folder / optimizer / name
            first = fork(partial(_first, world, directory, optimizer))
            assert wait(first) == 143
            change = {"optimizer": optimizer, name: value}
            second = fork(partial(_second, world, directory, change), folder / "log")
            code = wait(second)
            checked += code == 0
            report.require(code == 0, f"{optimizer}, {name}: ended with {code}")
    report.counters = {
        "optimizers": len(OPTIMIZERS), "changed_fields": len(RATES), "resumed_and_checked": checked,
    }  # fmt: skip
    return report


def _first(world: World, directory: Path, optimizer: str) -> None:
    made = world.trainer(directory, optimizer=optimizer)
    step = made._optimizer_step

    def stopped(targets: int) -> None:
        step(targets)
        if made.state.step == _STOP:
            made._stop.signal = signal.SIGTERM

    made._optimizer_step = stopped  # type: ignore[method-assign]
    made.train()


def _second(world: World, directory: Path, change: dict[str, Any]) -> None:
    try:
        world.trainer(directory, **change).train("auto")
        os._exit(2)  # it is another run, and must be asked for
    except CheckpointError:
        pass
    made = world.trainer(directory, **change)
    made.train("auto", allow_changes=True)
    config = made.config
    factor = schedule(config, made.total_steps, config.warmup_steps or 0)
    fresh = optimizer_from_config(world.model(), config).param_groups
    for step, (_, rate, _) in enumerate(made.state.history):
        peak = 0.01 if step < _STOP else config.learning_rate
        assert rate == peak * factor(step), (step, rate)
    last = factor(made.total_steps - 1)
    for found, wanted in zip(made.optimizer.param_groups, fresh, strict=True):
        assert found["lr"] == wanted["peak_lr"] * last
        for key, value in wanted.items():
            if key not in ("params", "lr"):
                assert found[key] == value, key


ROW = Row("A8", "learning rate, weight decay and momenta changed between sittings", run)
