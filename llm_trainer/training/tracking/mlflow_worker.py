"""The process that uploads a record while training runs: `python -m ...tracking.mlflow_worker`.

Started by `mlflow_upload`. It reads its job as one line of JSON on stdin, then `finish`; the end
of stdin means that the trainer is gone. It answers with lines of JSON on stdout. A process rather
than a thread: mlflow's imports and calls never hold the trainer's interpreter, its environment
and global state stay out of the user's program, and one that hangs can be ended.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.training.tracking.destination import Destination
from llm_trainer.training.tracking.record import RunRecord

START_SECONDS = 60.0
"""Longest silence while mlflow is imported."""
LOCAL_SECONDS = 60.0
"""Longest silence of a database file: migrations of a fresh one, other writers."""
REMOTE_SECONDS = 5.0
"""Longest silence of a server."""
PUSH_SECONDS = 3.0
"""Pause between looks at the log."""
MAX_PAUSE = 30.0
"""Longest pause after failures."""
ORPHAN_SECONDS = 20
"""How long the worker may outlive its trainer, to send what the record has."""


class Worker:
    """One record followed to one store."""

    def __init__(self, job: dict[str, Any], answers: int) -> None:
        self._answers = answers
        self._parent = os.getppid()
        self._record = RunRecord(job["record"])
        database = job["database"]
        self._destination = Destination(
            job["uri"], job["experiment"], Path(database) if database else None
        )
        self._places = tuple(Path(place) for place in job["model_places"])
        self._finishing = False
        self._orphaned = False

    def run(self) -> bool:
        """Follow the record until told to finish; returns whether everything arrived."""
        self._say("next", seconds=START_SECONDS)
        from llm_trainer.training.tracking import mlflow_store
        from llm_trainer.training.tracking.mlflow_sync import RunSync

        mlflow_store.quiet_environment()
        import mlflow  # noqa: F401  (its seconds belong here, before any waiting for a server)

        try:
            with mlflow_store.wait_for_lock(self._record.lock_path, "uploading the run", 30.0):
                sync = RunSync(
                    self._record,
                    self._destination,
                    model_places=self._places,
                    progress=self._progress,
                )
                return self._follow(sync)
        except LLMTrainerError as error:
            self._say("done", ok=False, message=str(error))
            return False

    def _follow(self, sync: Any) -> bool:
        failures = 0
        self._listen(0.0)
        while True:
            # taken now: what arrives during the pass belongs to the next one
            last = self._finishing
            self._progress(0.0)
            message = ""
            try:
                sync.push(finished=last)
                failures = 0
                report = sync.report
                self._say(
                    "sent", lines=sync.curve.lines_done, run_id=report.run_id,
                    run_name=report.run_name, url=report.url,
                )  # fmt: skip
            except (LLMTrainerError, OSError) as error:
                sync.forget()
                failures += 1
                message = str(error)
                self._say("error", message=message, lines=sync.curve.lines_done)
            if last:
                model = sync.report.model
                self._say(
                    "done", ok=not message, message=message or ("" if model == "sent" else model)
                )
            if last or self._orphaned:
                return not message
            self._listen(min(PUSH_SECONDS * 2**failures, MAX_PAUSE))

    def _progress(self, seconds: float) -> None:
        """Say how long the next silence may be."""
        usual = LOCAL_SECONDS if self._destination.database else REMOTE_SECONDS
        self._say("next", seconds=max(usual, seconds))

    def _listen(self, seconds: float) -> None:
        """Wait for a command, the trainer's end, or the time to pass."""
        deadline = time.monotonic() + seconds
        while not (self._finishing or self._orphaned):
            remaining = deadline - time.monotonic()
            ready, _, _ = select.select([0], [], [], max(0.0, min(remaining, 1.0)))
            if ready:
                self._finishing = os.read(0, 100).startswith(b"finish")
                self._orphaned = not self._finishing
            elif os.getppid() != self._parent:
                # a forked child of the trainer may keep the pipe open after the trainer died
                self._orphaned = True
            elif remaining <= 0:
                return
        if self._orphaned:
            signal.alarm(ORPHAN_SECONDS)

    def _say(self, event: str, **values: Any) -> None:
        line = json.dumps({"event": event, **values}) + "\n"
        try:
            os.write(self._answers, line.encode())
        except BrokenPipeError:
            self._orphaned = True


def main() -> int:
    """Run one job from stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's, who will say `finish`
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints goes to the worker's log
    if hasattr(os, "nice"):
        os.nice(5)  # training first
    job = _read_line(0)
    return 0 if Worker(json.loads(job), answers).run() else 1


def _read_line(descriptor: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(descriptor, 1)
        if not part:
            raise SystemExit(1)
        line += part
    return line


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # all is sent, and the trainer waits: taking mlflow down module by module is half a second
    os._exit(code)
