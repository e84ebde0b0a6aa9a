"""From `report_to` to backends; what is misspelt or not installed is said before any work."""

from __future__ import annotations

import difflib
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

from llm_trainer.exceptions import ConfigurationError, MissingDependencyError
from llm_trainer.training.tracking.base import Tracker
from llm_trainer.training.tracking.console import ConsoleTracker
from llm_trainer.training.tracking.record import RunInfo, RunRecord

logger = logging.getLogger(__name__)

BACKENDS = {
    "jsonl": (None, ""),
    "console": (None, ""),
    "tensorboard": ("tensorboard", "pip install tensorboard"),
    "mlflow": ("mlflow", "pip install mlflow"),
    "wandb": ("wandb", "pip install 'llm-trainer[wandb]'"),
}
"""Name -> package that it needs and how to get it."""


def check_backends(report_to: Sequence[str]) -> None:
    """Check names and packages without importing anything.

    Raises:
        ConfigurationError: unknown backend, with the nearest known one.
        MissingDependencyError: its package is not installed; names the command that installs it.
    """
    if isinstance(report_to, str):
        raise ConfigurationError(f"report_to ({report_to!r}) must be a list: [{report_to!r}]")
    for name in report_to:
        if name not in BACKENDS:
            near = difflib.get_close_matches(str(name), BACKENDS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ConfigurationError(
                f"report_to: unknown backend {name!r}; known: {', '.join(BACKENDS)}{hint}"
            )
        package, remedy = BACKENDS[name]
        if package is not None and importlib.util.find_spec(package) is None:
            raise MissingDependencyError(
                f"report_to: '{name}' needs the package {package}, which is not installed; "
                f"run `{remedy}` or take '{name}' out of report_to"
            )


def create_trackers(
    report_to: Sequence[str],
    *,
    record: RunRecord,
    info: RunInfo,
    root: Path,
    tracking_uri: str | None = None,
    resume_step: int | None = None,
    tensorboard_dir: Path | None = None,
) -> list[Tracker]:
    """Build the backends beside the local log, each name once.

    One that cannot start is named in a warning and left out: a run is worth more than its chart.

    Raises:
        ConfigurationError, MissingDependencyError: see `check_backends`, and an address that
            MLflow cannot have.
    """
    check_backends(report_to)
    trackers: list[Tracker] = []
    for name in dict.fromkeys(report_to):
        try:
            if name == "console":
                trackers.append(ConsoleTracker())
            elif name == "tensorboard":
                from llm_trainer.training.tracking.tensorboard import TensorBoardTracker

                place = tensorboard_dir or root / "runs" / info.fingerprint[:16]
                trackers.append(TensorBoardTracker(place, resume_step=resume_step))
            elif name == "wandb":
                from llm_trainer.training.tracking.wandb import WandbTracker

                trackers.append(WandbTracker(info, record.directory))
            elif name == "mlflow":
                from llm_trainer.training.tracking.mlflow_upload import MlflowTracker

                trackers.append(MlflowTracker(record, info, tracking_uri, root))
        except (ConfigurationError, MissingDependencyError):
            raise
        except Exception as error:  # noqa: BLE001 - a backend's own trouble, of any kind
            logger.warning(
                "tracking: %s cannot start (%s: %s) and is left out; everything is in %s",
                name, type(error).__name__, error, record.log_path,
            )  # fmt: skip
    return trackers
