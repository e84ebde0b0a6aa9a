"""Quick forms of the soak's rows A5, A7, A8, A10 and A11, as far as no other test has them."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.data import Dataset

from benchmarks.soak.loader_faults import Faulty
from benchmarks.soak.trainings import Progress, World, fork, wait
from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.exceptions import CheckpointError, DataError, LLMTrainerError, TrainingError
from llm_trainer.training import Trainer, loader_workers
from llm_trainer.training.checkpoint import ALLOWED_CHANGES, Checkpoint, check_identity
from llm_trainer.training.state import TrainerState


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), max_steps=6, save_steps=0)


# --------------------------------------------------------------------------- A5


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("place", ["checkpoints", "record"])
def test_a_foreign_directory_is_an_error_before_the_first_step(
    world: World, tmp_path: Path, place: str
) -> None:
    progress, directory = Progress(), tmp_path / "run"
    (directory / "run").mkdir(parents=True)
    for parent in (directory, *directory.parents[:-2]):
        parent.chmod(0o755)
    if place == "record":
        os.chown(directory, 65534, 65534)

    def body() -> None:
        os.setuid(65534)
        started = time.monotonic()
        try:
            world.train(world.trainer(directory), progress)
        except LLMTrainerError as error:
            told = "cannot be written" in str(error) and time.monotonic() - started < 2
            raise SystemExit(3 if told else 4) from error

    assert wait(fork(body, tmp_path / "log")) == 3, (tmp_path / "log").read_text()
    assert not progress.get(Progress.STARTED)


# --------------------------------------------------------------------------- A7, A8


def test_the_fields_that_may_change_are_these() -> None:
    assert {field.name for field in fields(TrainingConfig)} >= ALLOWED_CHANGES
    alters_steps = {
        "batch_size", "learning_rate", "weight_decay", "optimizer", "seed", "deterministic",
        "use_amp", "amp_dtype", "compile_model", "gradient_accumulation_steps", "max_grad_norm",
        "document_mask", "nan_policy", "world_size", "lr_scheduler", "warmup_steps",
    }  # fmt: skip
    assert not alters_steps & ALLOWED_CHANGES


@pytest.mark.parametrize("section", ["model", "training"])
def test_every_field_of_another_configuration_is_refused_by_name(
    section: str, tmp_path: Path
) -> None:
    """A field that is new tomorrow is refused too, until somebody allows it."""
    configs: dict[str, Any] = {"model": ModelConfig(), "training": TrainingConfig()}
    identity = {name: config.to_dict() for name, config in configs.items()}
    found = Checkpoint(tmp_path, TrainerState(), identity, {}, None)
    names = [field.name for field in fields(configs[section])]
    for name in names:
        changed = identity | {section: identity[section] | {name: "another"}}
        if section == "training" and name in ALLOWED_CHANGES:
            check_identity(found, changed, allow_changes=False)
            continue
        with pytest.raises(CheckpointError, match=rf"{section}\.{name}: .* -> 'another'"):
            check_identity(found, changed, allow_changes=False)


def test_rates_decay_and_betas_are_the_configurations_after_a_resume(
    world: World, tmp_path: Path
) -> None:
    world.trainer(tmp_path, max_steps=4).train()
    changes = {"learning_rate": 0.002, "weight_decay": 0.3, "beta1": 0.7}
    made = world.trainer(tmp_path, max_steps=5, min_lr_ratio=1.0, warmup_steps=0, **changes)
    made.train("auto", allow_changes=True)
    assert made.state.history[-1][1] == 0.002
    for group in made.optimizer.param_groups:
        assert group["lr"] == 0.002
        assert group["betas"][0] == 0.7
    assert {group["weight_decay"] for group in made.optimizer.param_groups} == {0.0, 0.3}
    steps = {float(state["step"]) for state in made.optimizer.state.values()}
    assert steps == {5.0}, "the moments went on"


# --------------------------------------------------------------------------- A10


class NoTargets(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows without a single target."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": [index] * 8, "labels": [-100] * 8}


def weights(made: Trainer) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in made.model.parameters()]


def test_batches_without_a_target_are_stopped_at(world: World, tmp_path: Path) -> None:
    made = world.trainer(tmp_path, rows=NoTargets())
    before = weights(made)
    with pytest.raises(TrainingError, match="step 0: loss nan"):
        made.train()
    assert weights(made) == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_left_out_and_training_goes_on(
    world: World, tmp_path: Path, value: float
) -> None:
    made = world.trainer(tmp_path, nan_policy="skip")
    gradient = next(made.model.parameters())
    spoiled: list[bool] = []

    def spoil(grad: torch.Tensor) -> torch.Tensor:
        if made.state.step == 2:
            spoiled.append(True)
            return grad * value
        return grad

    gradient.register_hook(spoil)
    step, unchanged = made._optimizer_step, []

    def stepped(targets: int) -> None:
        before, number = weights(made), made.state.step
        step(targets)
        if (weights(made) == before) != (number == 2):
            unchanged.append(number)

    made._optimizer_step = stepped  # type: ignore[method-assign]
    made.train()
    assert spoiled
    assert unchanged == [], "steps that should have changed the weights, or should not"
    assert (tmp_path / "non-finite-step-2.json").exists()


# --------------------------------------------------------------------------- A11


@pytest.mark.parametrize("fault", ["dies", "hangs"])
def test_a_reading_process_that_dies_or_hangs_is_told_with_its_row(
    world: World, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_workers, "TIMEOUT", 1.0)
    clock = Progress()
    rows = Faulty(world, 17, fault, clock)
    made = world.trainer(tmp_path, rows=rows, dataloader_num_workers=2, max_steps=100)
    made.eval_dataset = None
    before = psutil.Process().children()
    with pytest.raises(DataError, match=r"worker processes failed at row .*\b17\b.*DataLoader"):
        made.train()
    assert time.monotonic_ns() - clock.get(0) < 20e9, (
        "the limit set above, on a machine however busy"
    )
    assert psutil.Process().children() == before


class Rows(Dataset[Any]):
    """Row n is n."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        return index


def cut(error: Exception) -> Iterator[Any]:
    """Batches of which the next is never there."""
    raise error
    yield


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError()])
def test_a_reading_process_whose_connections_close_first(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = loader_workers.WorkerBatches(Rows(), ([n] for n in range(100)), 2, list)
    assert next(ahead) == [0]
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's tells, too, but later
    try:
        monkeypatch.setattr(ahead, "_batches", cut(error))
        dying = threading.Timer(0.2, ahead._workers[1].kill)
        dying.start()
        with pytest.raises(RuntimeError, match="DataLoader worker went away"):
            next(ahead)
        # dead and waited for: its signal does not come later, in the middle of something else
        assert ahead._workers[1]._popen.returncode == -signal.SIGKILL
        dying.join()
    finally:
        signal.signal(signal.SIGCHLD, before)
        ahead.close()


def test_an_error_of_the_file_system_in_a_data_set_stays_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(_self: Rows, index: int) -> int:
        raise OSError(f"row {index} cannot be read")

    monkeypatch.setattr(Rows, "__getitem__", read)
    ahead = loader_workers.WorkerBatches(Rows(), ([n] for n in range(100)), 2, list)
    started = time.monotonic()
    with pytest.raises(OSError, match="row 0 cannot be read"):
        next(ahead)
    assert time.monotonic() - started < loader_workers.DYING
    ahead.close()
