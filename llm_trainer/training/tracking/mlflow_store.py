"""First contact with an MLflow store: bounded, one process at a time, with the right settings.

This module, `mlflow_sync` and `mlflow_model` are all that knows mlflow. They import it inside
functions (3 s, 230 MB) and run in a process of their own, beside training.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llm_trainer.exceptions import LockHeldError, TrackingError
from llm_trainer.locks import hold_lock
from llm_trainer.training.tracking.destination import Destination
from llm_trainer.training.tracking.record import strip_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUEST_SECONDS = 4
"""Longest wait for an HTTP server to take or give some bytes; mlflow's own default is 120."""
REQUEST_RETRIES = 1
"""Retries of one request; mlflow's own default is 7. Whole uploads are repeated by the caller."""
LOCK_SECONDS = 120.0
"""Longest wait for another process that sets up the same database."""


def quiet_environment() -> None:
    """Set mlflow's environment for this process, before mlflow is imported.

    Only for processes that are ours alone. What the user has set stays.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_SECONDS))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(REQUEST_RETRIES))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for noisy in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Let requests in the body take `seconds`, for what is large: mlflow reads it at each call."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name)
    os.environ[name] = str(max(int(seconds), int(before or REQUEST_SECONDS)))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def connect(destination: Destination) -> MlflowClient:
    """A client whose store answered; an SQLite database is made and migrated if need be.

    The first contact with a fresh database runs migrations (3 to 25 s), and two processes at once
    would collide in them, so it happens under a lock beside the database. Write-ahead logging is
    switched on once: parallel runs then wait milliseconds for each other, not seconds.

    Raises:
        TrackingError: the store cannot be reached or does not answer in time.
    """
    with translated(destination):
        from mlflow import MlflowClient

        if destination.database is None:
            client = MlflowClient(destination.uri)
            client.search_experiments(max_results=1)
            return client
        destination.database.parent.mkdir(parents=True, exist_ok=True)
        lock = Path(f"{destination.database}.lock")
        with wait_for_lock(lock, "setting up the tracking database"):
            client = MlflowClient(destination.uri)
            client.search_experiments(max_results=1)
            connection = sqlite3.connect(destination.database, timeout=30)
            try:
                connection.execute("PRAGMA journal_mode=WAL")
            finally:
                connection.close()
        return client


def experiment_id(client: MlflowClient, destination: Destination) -> str:
    """The experiment's id, made if it does not exist.

    Raises:
        TrackingError: it was deleted on the server.
    """
    from mlflow.exceptions import MlflowException

    for attempt in range(2):
        experiment = client.get_experiment_by_name(destination.experiment)
        if experiment is not None:
            if experiment.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"{destination.shown}: experiment '{destination.experiment}' is deleted there; "
                    f"restore it (mlflow experiments restore -x {experiment.experiment_id}) or set "
                    f"another runtime.experiment_name"
                )
            return str(experiment.experiment_id)
        root = destination.artifact_root
        try:
            return str(
                client.create_experiment(
                    destination.experiment,
                    artifact_location=root.as_uri() if root is not None else None,
                )
            )
        except MlflowException:
            if attempt:  # otherwise another process was quicker: look again
                raise
    raise AssertionError("unreachable")


@contextmanager
def translated(destination: Destination) -> Iterator[None]:
    """Turn what mlflow, requests, SQLAlchemy and sqlite3 raise into one `TrackingError`."""
    try:
        yield
    except (TrackingError, MemoryError):
        raise
    except Exception as error:
        # the libraries below raise a dozen unrelated kinds; all mean that it did not work
        raise TrackingError(f"{destination.shown}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Why a call failed, in a few words: the libraries bury it in addresses and object names."""
    kinds: list[str] = []
    link: BaseException | None = error
    while link is not None and len(kinds) < 20:
        kinds.append(type(link).__name__)
        link = link.__cause__ or link.__context__
    if any("Timeout" in kind for kind in kinds):
        return "no answer in time"
    if any(kind in ("ConnectionRefusedError", "NewConnectionError") for kind in kinds):
        return "nobody listens there (connection refused)"
    if "NameResolutionError" in kinds:
        return "no such host"
    lines = strip_secrets(str(error)).strip().splitlines() or ["no reason given"]
    return f"{kinds[0]}: {lines[0][:300]}"


@contextmanager
def wait_for_lock(path: Path, purpose: str, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock file `path`, waiting for its holder.

    Raises:
        LockHeldError: still held after `seconds`; names the holder.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(hold_lock(path, purpose))
                break
            except LockHeldError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield
