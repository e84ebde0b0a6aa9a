"""The reporter of a trainer outside of `train`: nothing is shown or recorded."""

from __future__ import annotations

from llm_trainer.training.reporting import Reporter
from llm_trainer.training.tracking.base import Status


class SilentReporter(Reporter):
    """Takes what a `Reporter` takes."""

    def __init__(self) -> None:
        # it has neither a bar nor trackers
        pass

    def step(self) -> None:
        """After each optimizer step."""

    def evaluation(self, entry: dict[str, float]) -> None:
        """After an evaluation during training."""

    def sample(self, number: int, text: str) -> None:
        """After a sample during training."""

    def flush(self) -> None:
        """Before a checkpoint."""

    def sync(self) -> None:
        """Before its commit."""

    def close(self, status: Status) -> None:
        """End of the sitting."""
