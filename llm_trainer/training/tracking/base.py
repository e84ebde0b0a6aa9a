"""The interface of a tracking backend: five methods, in the manner of levanter's tracker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
"""How a run stands: MLflow's names. A run that was killed without notice stays RUNNING."""


class Tracker:
    """Receives what a run reports; by default does nothing with it.

    A backend overrides what it can show. It may raise: whoever calls it drops one that does.
    """

    name: str
    """The backend's name in `report_to`."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record scalars at an optimizer step; keys like `train/loss`."""

    def log_text(self, step: int, name: str, text: str) -> None:
        """Record a text, such as a sample of the model, at an optimizer step."""

    def log_artifact(self, path: Path, folder: str | None) -> None:
        """Record a file under its own name in `folder` (None: the top)."""

    def flush(self, *, durable: bool = False) -> None:
        """Hand over what is buffered; `durable` means safe from a power cut where that can be."""

    def finish(self, status: Status) -> None:
        """End the run. Bounded in time; nothing is logged afterwards."""
