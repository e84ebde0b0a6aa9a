"""The trainer's side of the MLflow upload: start the worker, hear it, end it in time.

Knows no mlflow. The worker is a process of its own session: Ctrl-C and a stop signal to the
trainer's group do not end it halfway. Price: one process with 230 MB at low priority.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import llm_trainer
from llm_trainer.training.tracking.base import Status, Tracker
from llm_trainer.training.tracking.destination import Destination, resolve_destination
from llm_trainer.training.tracking.log import scan
from llm_trainer.training.tracking.record import RunInfo, RunRecord

logger = logging.getLogger(__name__)

REPLAY = "python -m pipeline.track"
MAX_FINISH_SECONDS = 600.0
"""Longest wait for an upload that goes on, such as that of a large model."""


@dataclass
class Outcome:
    """How an upload ended."""

    ok: bool
    message: str = ""
    """What went wrong, or is still missing."""
    lines: int = 0
    """Records of the log that are on the server."""
    run_id: str | None = None
    run_name: str = ""
    url: str | None = None


class Uploader:
    """A worker that follows one record."""

    def __init__(
        self, record: RunRecord, destination: Destination, *, model_places: tuple[Path, ...] = ()
    ) -> None:
        """Start the worker and give it its job; returns at once."""
        self.destination = destination
        self._outcome = Outcome(ok=False)
        self._warned = False
        self._done = False
        self._news = threading.Condition()
        self._silence_ends = time.monotonic() + 60.0
        self._seconds = 60.0
        package_parent = str(Path(llm_trainer.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (package_parent, os.environ.get("PYTHONPATH"))))
        record.directory.mkdir(parents=True, exist_ok=True)
        with open(record.upload_log_path, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "llm_trainer.training.tracking.mlflow_worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                cwd=record.directory, env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands: IO[bytes] = self._process.stdin
        job = {
            "record": str(record.directory.resolve()),
            # on stdin, not in the arguments: it may hold a password that `ps` would show
            "uri": destination.uri,
            "experiment": destination.experiment,
            "database": str(destination.database) if destination.database else None,
            "model_places": [str(place.resolve()) for place in model_places],
        }
        self._send(json.dumps(job))
        self._listener = threading.Thread(
            target=self._listen, args=(self._process.stdout,), name="mlflow-upload", daemon=True
        )
        self._listener.start()

    @property
    def outcome(self) -> Outcome:
        """How far it is."""
        return self._outcome

    def finish(self) -> Outcome:
        """Let the worker send the rest; end it when it has, or has been silent for too long."""
        self._send("finish")
        end = time.monotonic() + MAX_FINISH_SECONDS
        with self._news:
            # the clock of a silence that began long ago starts now
            self._silence_ends = time.monotonic() + self._seconds
            while not self._done:
                remaining = min(self._silence_ends, end) - time.monotonic()
                if remaining <= 0:
                    if not self._outcome.message:
                        self._outcome.message = "no answer in time"
                    break
                self._news.wait(remaining)
        self.close()
        return self._outcome

    def close(self) -> None:
        """End the worker at once."""
        if self._process.poll() is None and not self._done:
            self._process.kill()
        with suppress(OSError):  # the worker is gone, and with it the other end of the pipe
            self._commands.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(timeout=5)

    def _send(self, line: str) -> None:
        with suppress(OSError):  # the worker died, which the listener notices
            self._commands.write(line.encode() + b"\n")
            self._commands.flush()

    def _listen(self, answers: IO[bytes]) -> None:
        with answers:
            for line in answers:
                try:
                    answer = json.loads(line)
                except ValueError:
                    continue
                with self._news:
                    self._hear(answer)
                    self._news.notify_all()
        with self._news:
            if not self._done:
                self._done = True
                self._outcome.ok = False
                self._outcome.message = self._outcome.message or "the upload process ended early"
            self._news.notify_all()

    def _hear(self, answer: Mapping[str, Any]) -> None:
        event, outcome = answer["event"], self._outcome
        if event == "next":
            self._seconds = float(answer["seconds"])
        elif event == "sent":
            outcome.lines = int(answer["lines"])
            outcome.run_id, outcome.run_name = answer["run_id"], answer["run_name"]
            outcome.url, outcome.message = answer["url"], ""
        elif event == "error":
            outcome.lines = int(answer["lines"])
            outcome.message = str(answer["message"])
            if not self._warned:
                self._warned = True
                logger.warning(
                    "mlflow: %s; work goes on, the record keeps everything, sending is tried again",
                    outcome.message,
                )
        elif event == "done":
            outcome.ok, outcome.message = bool(answer["ok"]), str(answer["message"])
            self._done = True
        self._silence_ends = time.monotonic() + self._seconds


class MlflowTracker(Tracker):
    """Shows the record of a run in MLflow; the worker reads it, nothing goes through here."""

    name = "mlflow"

    def __init__(
        self, record: RunRecord, info: RunInfo, tracking_uri: str | None, root: Path
    ) -> None:
        """Start uploading.

        Raises:
            ConfigurationError: an address that MLflow cannot have.
        """
        self._record = record
        self._uploader = Uploader(record, resolve_destination(tracking_uri, info.experiment, root))

    def finish(self, status: Status) -> None:  # noqa: ARG002 - the worker reads it in the record
        """Wait for the rest to be sent, as long as the server shows signs of life."""
        outcome = self._uploader.finish()
        destination = self._uploader.destination
        place = outcome.url or f"{destination.shown}, experiment {destination.experiment}"
        report(outcome, self._record, f"run {outcome.run_name} in {place}")


def report(outcome: Outcome, record: RunRecord, success: str) -> None:
    """Say in one line that it worked, or what is missing and how to send it."""
    if outcome.ok:
        logger.info("mlflow: %s", success)
        if outcome.message:
            logger.warning("mlflow: %s", outcome.message)
        return
    lines = scan(record.log_path).lines - outcome.lines
    pending = f"{lines:,} records" if lines else "the newest figures"
    logger.warning("mlflow: %s; %s pending, run `%s` to replay", outcome.message, pending, REPLAY)
