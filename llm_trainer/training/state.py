"""Where a run is: everything that changes from step to step beside weights and optimizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from llm_trainer.config.checks import shown

HISTORY_COLUMNS = ("loss", "lr", "grad_norm")
_MOST = 2.0**63
"""Beyond all that a run can count, seconds and summed losses included."""


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
            TypeError: unknown or missing fields, or one of another type.
            ValueError: a value that no run can have.
        """
        if history.ndim != 2 or history.shape[1] != len(HISTORY_COLUMNS):
            raise ValueError(f"a history of shape {tuple(history.shape)}")
        rows = [(float(a), float(b), float(c)) for a, b, c in history.tolist()]
        state = cls(**values, history=rows)
        for name in ("step", "micro_step", "tokens", "skipped"):
            number = getattr(state, name)
            if type(number) is not int or not 0 <= number < 2**63:
                raise ValueError(f"{name} is {shown(number)}")
        for name in ("partial_loss", "seconds"):
            number = getattr(state, name)
            if type(number) not in (int, float) or not abs(number) < _MOST:
                raise ValueError(f"{name} is {shown(number)}")
        entries = state.evaluations
        if not isinstance(entries, list) or not all(_is_evaluation(entry) for entry in entries):
            raise ValueError(f"evaluations are {shown(entries)}")
        return state


def _is_evaluation(entry: Any) -> bool:
    return isinstance(entry, dict) and all(type(v) in (int, float) for v in entry.values())
