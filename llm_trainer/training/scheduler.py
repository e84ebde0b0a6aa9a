"""Learning-rate schedules: one pure function of the step.

The rate at step s is `peak * lr_factor(s)`, with s counted from 0 at the first optimizer step. The
warm-up rises linearly over W steps as (s + 1) / (W + 1), so the first step already learns; the
rest decays over the progress t = (s - W) / (N - W) of the N - W remaining steps towards
min_lr_ratio. Nothing about the schedule is saved: a resumed run computes it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

from llm_trainer.config.checks import choice, instance, number, refuse, whole
from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import ConfigurationError

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

SchedulerType = Literal["cosine", "linear", "constant", "polynomial", "wsd"]


def lr_factor(
    step: int,
    *,
    num_training_steps: int,
    warmup_steps: int = 0,
    scheduler_type: SchedulerType = "cosine",
    min_lr_ratio: float = 0.0,
    decay_ratio: float = 0.4,
    power: float = 1.0,
) -> float:
    """Share of the peak learning rate at optimizer step `step` (from 0).

    cosine: m + (1 - m)(1 + cos(pi t)) / 2; linear: m + (1 - m)(1 - t); polynomial: m + (1 - m)
    (1 - t)^power; constant: 1; wsd (Hu et al. 2024): 1, then linear over the last decay_ratio of
    all steps; with m = min_lr_ratio and t as in the module's header.
    """
    refuse(
        ConfigurationError,
        whole("step", step, 0),
        _problems(scheduler_type, num_training_steps, warmup_steps, min_lr_ratio, decay_ratio),
        number("power", power, above=0),
    )
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if scheduler_type == "constant":
        return 1.0
    start = warmup_steps
    if scheduler_type == "wsd":
        start = max(warmup_steps, num_training_steps - round(decay_ratio * num_training_steps))
    progress = min(1.0, max(0.0, (step - start) / max(1, num_training_steps - start)))
    match scheduler_type:
        case "cosine":
            left = 0.5 * (1.0 + math.cos(math.pi * progress))
        case "polynomial":
            left = (1.0 - progress) ** power
        case _:
            left = 1.0 - progress
    return min_lr_ratio + (1.0 - min_lr_ratio) * left


def _problems(
    scheduler_type: str,
    num_training_steps: int,
    warmup_steps: int,
    min_lr_ratio: float,
    decay_ratio: float,
) -> list[str]:
    return [
        *choice("scheduler_type", scheduler_type, get_args(SchedulerType)),
        *whole("num_training_steps", num_training_steps, 1),
        *whole("warmup_steps", warmup_steps, 0),
        *number("min_lr_ratio", min_lr_ratio, 0, 1),
        *number("decay_ratio", decay_ratio, 0, 1),
    ]


def resolve_warmup(config: TrainingConfig, num_training_steps: int) -> int:
    """Warm-up steps of a run: an explicit `warmup_steps` wins over `warmup_ratio`.

    The result may exceed the run; `clamp_warmup` says so and shortens it.
    """
    if config.warmup_is_explicit:
        assert config.warmup_steps is not None
        return int(config.warmup_steps)
    return round(config.warmup_ratio * num_training_steps)


def clamp_warmup(warmup_steps: int, num_training_steps: int, warn: Callable[[str], None]) -> int:
    """Shorten a warm-up that would outlast the run to the run's first tenth, with one warning."""
    if warmup_steps < num_training_steps:
        return warmup_steps
    shorter = num_training_steps // 10
    warn(
        f"warmup_steps ({warmup_steps}) reaches the end of the run ({num_training_steps} steps); "
        f"warming up for {shorter} steps instead"
    )
    return shorter


def schedule(
    config: TrainingConfig, num_training_steps: int, warmup: int
) -> Callable[[int], float]:
    """The `lr_factor` of a training configuration, as a function of the step alone."""

    def factor(step: int) -> float:
        return lr_factor(
            step,
            num_training_steps=num_training_steps,
            warmup_steps=warmup,
            scheduler_type=config.lr_scheduler,
            min_lr_ratio=config.min_lr_ratio,
            decay_ratio=config.decay_ratio,
            power=config.lr_power,
        )

    return factor


def create_scheduler(
    optimizer: Optimizer,
    scheduler_type: SchedulerType = "cosine",
    num_training_steps: int = 1000,
    warmup_steps: int = 0,
    min_lr_ratio: float = 0.1,
    decay_ratio: float = 0.4,
    power: float = 1.0,
) -> LambdaLR:
    """A torch scheduler over `lr_factor`, for loops of your own; call `step()` after each step.

    Raises:
        ConfigurationError: an unknown type or an impossible number.
    """
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    refuse(
        ConfigurationError,
        instance("optimizer", optimizer, Optimizer, hint="make one with create_optimizer"),
        _problems(scheduler_type, num_training_steps, warmup_steps, min_lr_ratio, decay_ratio),
        number("power", power, above=0),
    )
    refuse(ConfigurationError, whole("warmup_steps", warmup_steps, 0, num_training_steps))
    return LambdaLR(
        optimizer,
        lambda step: lr_factor(
            step,
            num_training_steps=num_training_steps,
            warmup_steps=warmup_steps,
            scheduler_type=scheduler_type,
            min_lr_ratio=min_lr_ratio,
            decay_ratio=decay_ratio,
            power=power,
        ),
    )
