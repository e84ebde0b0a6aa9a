"""Where a run is: everything that changes from step to step beside weights and optimizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

HISTORY_COLUMNS = ("loss", "lr", "grad_norm")


@dataclass
class TrainerState:
    """Position and record of a run; JSON but for the history.

    The rows of every batch follow from `step` and `micro_step` alone.
    """

    step: int = 0
    """Optimizer steps done."""
    micro_step: int = 0
    """Micro-batches of the present step that are in the partial gradients."""
    partial_loss: float = 0.0
    """Their summed loss, in nats."""
    tokens: int = 0
    """Tokens that entered the model."""
    seconds: float = 0.0
    """Time in the training loop over all sittings; for reports only."""
    skipped: int = 0
    """Steps left out in a row because of a non-finite loss or gradient."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    """One entry an evaluation: step, loss, perplexity, bits_per_byte."""
    history: list[tuple[float, float, float]] = field(default_factory=list)
    """One entry a step, as HISTORY_COLUMNS."""

    def to_json(self) -> dict[str, Any]:
        """All but the history."""
        values = asdict(self)
        del values["history"]
        return values

    def history_tensor(self) -> Tensor:
        """(steps, 3) float64."""
        return torch.tensor(self.history, dtype=torch.float64).reshape(-1, len(HISTORY_COLUMNS))

    @classmethod
    def from_json(cls, values: dict[str, Any], history: Tensor) -> TrainerState:
        """The inverse of `to_json` and `history_tensor`.

        Raises:
            TypeError: unknown or missing fields.
        """
        rows = [(float(a), float(b), float(c)) for a, b, c in history.tolist()]
        return cls(**values, history=rows)
