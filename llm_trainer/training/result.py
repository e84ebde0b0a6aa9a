"""What a finished run came to."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_trainer.training.state import TrainerState


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run came to."""

    steps: int
    tokens: int
    seconds: float
    """Time in the training loop over all sittings."""
    final_loss: float
    """Mean loss of the last tenth of the steps, in nats per token."""
    evaluation: dict[str, float]
    """The last evaluation; empty without evaluation data."""

    @classmethod
    def of(cls, state: TrainerState, evaluation: dict[str, float]) -> TrainingResult:
        """The result of a run that ended in `state`."""
        losses = [row[0] for row in state.history if math.isfinite(row[0])]
        tail = losses[-max(1, len(losses) // 10) :]
        return cls(
            steps=state.step, tokens=state.tokens, seconds=state.seconds,
            final_loss=sum(tail) / max(1, len(tail)), evaluation=evaluation,
        )  # fmt: skip
