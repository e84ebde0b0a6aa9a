"""Schedules against closed forms and Hugging Face's."""

from __future__ import annotations

import math

import pytest
import torch

from llm_trainer.config import TrainingConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.training.scheduler import (
    clamp_warmup,
    create_scheduler,
    lr_factor,
    resolve_warmup,
)

N, W = 200, 20


@pytest.mark.parametrize("step", range(0, N, 7))
def test_closed_forms(step: int) -> None:
    t = (step - W) / (N - W)
    common = {"num_training_steps": N, "warmup_steps": W, "min_lr_ratio": 0.1}
    if step < W:
        for kind in ("cosine", "linear", "constant", "polynomial", "wsd"):
            assert lr_factor(step, scheduler_type=kind, **common) == (step + 1) / (W + 1)  # type: ignore[arg-type]
        return
    cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t))
    assert lr_factor(step, scheduler_type="cosine", **common) == pytest.approx(cosine, rel=1e-12)  # type: ignore[arg-type]
    linear = 1 - 0.9 * t
    assert lr_factor(step, scheduler_type="linear", **common) == pytest.approx(linear, rel=1e-12)  # type: ignore[arg-type]
    cubic = 0.1 + 0.9 * (1 - t) ** 3
    assert lr_factor(step, scheduler_type="polynomial", power=3.0, **common) == pytest.approx(cubic)  # type: ignore[arg-type]
    assert lr_factor(step, scheduler_type="constant", **common) == 1.0  # type: ignore[arg-type]
    wsd = 1.0 if step <= 150 else 1 - 0.9 * (step - 150) / 50
    assert lr_factor(
        step, scheduler_type="wsd", decay_ratio=0.25, num_training_steps=N, warmup_steps=W,
        min_lr_ratio=0.1,
    ) == pytest.approx(wsd)  # fmt: skip


def test_cosine_and_linear_equal_transformers_after_warmup() -> None:
    transformers = pytest.importorskip("transformers")
    for kind in ("cosine", "linear"):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        make = getattr(transformers, f"get_{kind}_schedule_with_warmup")
        theirs = make(optimizer, num_warmup_steps=W, num_training_steps=N)
        for step in range(N):
            if step >= W:
                ours = lr_factor(
                    step, num_training_steps=N, warmup_steps=W, scheduler_type=kind,  # type: ignore[arg-type]
                )  # fmt: skip
                assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
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
