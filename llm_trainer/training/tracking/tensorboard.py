"""TensorBoard event files. Writing is asynchronous inside the writer; import costs about 1 s."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llm_trainer.training.tracking.base import Status, Tracker


class TensorBoardTracker(Tracker):
    """Scalars and texts into `directory`; view with `tensorboard --logdir`."""

    name = "tensorboard"

    def __init__(self, directory: Path, *, resume_step: int | None = None) -> None:
        """Start a new event file.

        A reader of the directory discards what earlier files say about later steps than
        `resume_step` (None: all of it), so that no step is shown twice.
        """
        from torch.utils.tensorboard import SummaryWriter

        directory.mkdir(parents=True, exist_ok=True)
        earlier = any(directory.glob("events.out.tfevents.*"))
        purge = (0 if resume_step is None else resume_step + 1) if earlier else None
        self._writer = SummaryWriter(log_dir=str(directory), purge_step=purge)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add scalars."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def log_text(self, step: int, name: str, text: str) -> None:
        """Add a text, shown as it is (indented, Markdown takes it for code)."""
        verbatim = "\n".join(f"    {line}" for line in text.splitlines())
        self._writer.add_text(name, verbatim, step)

    def flush(self, *, durable: bool = False) -> None:  # noqa: ARG002 - it has one way
        """Write buffered events."""
        self._writer.flush()

    def finish(self, status: Status) -> None:  # noqa: ARG002 - it shows none
        """Write and close."""
        self._writer.close()
