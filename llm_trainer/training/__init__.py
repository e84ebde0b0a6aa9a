"""The training room: the loop, optimizers, schedules, checkpoints, tracking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_trainer.training.trainer import Trainer, TrainingResult

__all__ = ["Trainer", "TrainingResult"]


def __getattr__(name: str) -> Any:
    # torch is imported with the first name that needs it, so that tracking works without
    if name in __all__:
        from llm_trainer.training import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
