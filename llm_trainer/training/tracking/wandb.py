"""Weights & Biases, an optional extra. Without a key it works offline and can be synced later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_trainer.training.tracking.base import Status, Tracker
from llm_trainer.training.tracking.record import RunInfo

INIT_SECONDS = 15.0
"""Longest wait for the server at the start; training goes on without it after that."""
FINISH_SECONDS = 15.0
"""Longest wait for the server at the end; `wandb sync` sends what is left."""


class WandbTracker(Tracker):
    """One run, found again by the fingerprint when training is resumed."""

    name = "wandb"

    def __init__(self, info: RunInfo, directory: Path) -> None:
        """Start or continue the run; its local files go to `directory`/wandb."""
        import wandb

        directory.mkdir(parents=True, exist_ok=True)
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=info.experiment,
            name=info.name,
            id=info.fingerprint[:64],
            resume="allow",
            dir=str(directory),
            config={**info.params, **{f"tag.{key}": value for key, value in info.tags.items()}},
            mode=_mode(),
            settings=_settings(wandb),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send scalars; wandb itself ignores steps that a resumed run has already."""
        self._run.log(dict(metrics), step=step)

    def log_text(self, step: int, name: str, text: str) -> None:
        """Send a text."""
        self._run.log({f"samples/{name}": self._wandb.Html(_as_html(text))}, step=step)

    def log_artifact(self, path: Path, folder: str | None) -> None:  # noqa: ARG002 - flat
        """Send a file."""
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            self._run.save(str(file.resolve()), base_path=str(path.resolve().parent), policy="now")

    def finish(self, status: Status) -> None:
        """End the run; an exit code other than 0 marks it as failed."""
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)


def _settings(wandb: Any) -> Any:
    # neither code nor console output of the user's machine leaves it
    values: dict[str, Any] = {
        "console": "off",
        "disable_git": True,
        "init_timeout": INIT_SECONDS,
        "save_code": False,
        "silent": True,
    }
    if "finish_timeout" in wandb.Settings.model_fields:  # newer than the oldest one allowed
        values["finish_timeout"] = FINISH_SECONDS
    return wandb.Settings(**values)


def _mode() -> str | None:
    if os.environ.get("WANDB_MODE"):
        return None  # wandb reads it
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    known = os.environ.get("WANDB_API_KEY") or (netrc.is_file() and "wandb" in netrc.read_text())
    return None if known else "offline"


def _as_html(text: str) -> str:
    import html

    return f"<pre>{html.escape(text)}</pre>"
