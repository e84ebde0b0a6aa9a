"""Schedules against closed forms and Hugging Face's."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch

from llm_trainer.config import TrainingConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.training.scheduler import (
    SchedulerType,
    clamp_warmup,
    create_scheduler,
    lr_factor,
    resolve_warmup,
)

N, W = 200, 20


@pytest.mark.parametrize("kind", get_args(SchedulerType))
def test_closed_forms_at_every_step(kind: SchedulerType) -> None:
    """Written out once more, with a floor of 0.1 and, where it counts, a power or a decay share."""
    settings = {"power": 3.0, "decay_ratio": 0.25, "min_lr_ratio": 0.1}

    def expected(step: int) -> float:
        if step < W:
            return (step + 1) / (W + 1)
        t = (step - W) / (N - W)
        match kind:
            case "cosine":
                return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t))
            case "linear":
                return 1 - 0.9 * t
            case "polynomial":
                return 0.1 + 0.9 * (1 - t) ** 3
            case "wsd":
                return 1.0 if step <= 150 else 1 - 0.9 * (step - 150) / 50
        return 1.0

    for step in range(N + 1):
        made = lr_factor(
            step, num_training_steps=N, warmup_steps=W, scheduler_type=kind, **settings
        )  # type: ignore[arg-type]
        assert made == pytest.approx(expected(step), rel=1e-12), step


THEIRS: dict[SchedulerType, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # ours -> the function of transformers, its arguments, and ours for the same
    "cosine": ("get_cosine_with_min_lr_schedule_with_warmup", {"min_lr_rate": 0.1},
               {"min_lr_ratio": 0.1}),
    "linear": ("get_linear_schedule_with_warmup", {}, {"min_lr_ratio": 0.0}),
    "constant": ("get_constant_schedule_with_warmup", {}, {}),
    "polynomial": ("get_polynomial_decay_schedule_with_warmup", {"lr_end": 0.1, "power": 3.0},
                   {"min_lr_ratio": 0.1, "power": 3.0}),
    "wsd": ("get_wsd_schedule", {"num_decay_steps": 50, "decay_type": "linear",
                                 "min_lr_ratio": 0.1},
            {"min_lr_ratio": 0.1, "decay_ratio": 0.25}),
}  # fmt: skip


@pytest.mark.parametrize("warmup", [0, W])
@pytest.mark.parametrize("kind", THEIRS)
def test_schedules_equal_transformers_after_warmup(kind: SchedulerType, warmup: int) -> None:
    """During it theirs begins at 0, which wastes a step; ours ends at the same peak."""
    optimization = pytest.importorskip("transformers.optimization")
    name, theirs_have, ours_have = THEIRS[kind]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if kind != "constant":
        theirs_have = theirs_have | {"num_training_steps": N}
    theirs = getattr(optimization, name)(optimizer, num_warmup_steps=warmup, **theirs_have)
    for step in range(N):
        if step >= warmup:
            ours = lr_factor(
                step, num_training_steps=N, warmup_steps=warmup, scheduler_type=kind, **ours_have
            )
            assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12), step
        optimizer.step()
        theirs.step()


def test_create_scheduler_follows_the_function() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = create_scheduler(optimizer, "cosine", N, W, min_lr_ratio=0.1)
    for step in range(N):
        expected = 0.5 * lr_factor(
            step, num_training_steps=N, warmup_steps=W, scheduler_type="cosine", min_lr_ratio=0.1
        )
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_create_scheduler_names_all_problems() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    with pytest.raises(ConfigurationError) as error:
        create_scheduler(optimizer, "cosinus", 0, -1, min_lr_ratio=2.0)  # type: ignore[arg-type]
    for word in ("cosinus", "num_training_steps", "warmup_steps", "min_lr_ratio"):
        assert word in str(error.value)


def test_explicit_warmup_wins_even_if_equal_to_the_default() -> None:
    assert resolve_warmup(TrainingConfig(), 500) == 50
    assert resolve_warmup(TrainingConfig(warmup_steps=1000), 5000) == 1000
    assert resolve_warmup(TrainingConfig(warmup_steps=7, warmup_ratio=0.5), 500) == 7
    assert resolve_warmup(TrainingConfig(warmup_steps=None, warmup_ratio=0.2), 500) == 100
    again = TrainingConfig.from_dict(TrainingConfig().to_dict())
    assert resolve_warmup(again, 500) == 50


def test_warmup_is_clamped_with_one_warning() -> None:
    warnings: list[str] = []
    assert clamp_warmup(1000, 50, warnings.append) == 5
    assert len(warnings) == 1
    assert "1000" in warnings[0]
    assert "50" in warnings[0]
    assert clamp_warmup(49, 50, warnings.append) == 49
    assert len(warnings) == 1
