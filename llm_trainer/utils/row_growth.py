"""Shorter rows first: the length of the training rows as a function of the optimizer step.

A run may begin on pieces of the packed rows, and go over to whole rows later. Batches keep their
number of tokens: a row cut into k pieces makes k rows, and the pieces of a batch are drawn from all
over the corpus, in an order of their own. A batch of many short rows has seen more places than one
of few long ones, which is worth more early on than a long context (after Li et al. 2022, "The
Stability-Efficiency Dilemma", and Pouransari et al. 2024, "Dataset Decomposition"); attention costs
less too. Price: the first token of a piece is no target, and a compiled step is compiled once for
each length.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import ConfigurationError


@dataclass(frozen=True)
class RowGrowth:
    """How long rows are at each step of a run."""

    row_length: int
    """Tokens of a packed row."""
    short: tuple[int, ...]
    """Lengths of the pieces, ascending; each for an equal share of `short_steps`."""
    short_steps: int
    """Optimizer steps on pieces, from the first one on."""

    @classmethod
    def of(cls, config: TrainingConfig, row_length: int, total_steps: int) -> RowGrowth:
        """That of a configuration.

        Raises:
            ConfigurationError: a length that does not divide rows.
        """
        for length in config.short_rows:
            if length >= row_length or row_length % length:
                raise ConfigurationError(
                    f"short_rows ({config.short_rows}): {length} tokens are no whole part of a row "
                    f"of {row_length}; divide it by a whole number, or set short_rows: [] for "
                    f"whole rows throughout"
                )
        short_steps = round(config.short_rows_ratio * total_steps) if config.short_rows else 0
        return cls(row_length, tuple(config.short_rows), short_steps)

    def length(self, step: int) -> int:
        """Tokens per row at optimizer step `step`, counted from 0."""
        if step >= self.short_steps:
            return self.row_length
        return self.short[step * len(self.short) // self.short_steps]

    def parts(self, step: int) -> int:
        """Into how many pieces each packed row is cut at `step`."""
        return self.row_length // self.length(step)

    def mean_length(self, total_steps: int) -> float:
        """Tokens per row on average over the steps of a run."""
        stages = len(self.short)
        starts = [-(-n * self.short_steps // max(1, stages)) for n in range(stages + 1)]
        tokens = sum(
            length * (end - start)
            for length, start, end in zip(self.short, starts[:-1], starts[1:], strict=True)
        )
        return (tokens + self.row_length * (total_steps - self.short_steps)) / total_steps
