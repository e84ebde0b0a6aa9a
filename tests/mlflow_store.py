"""Real MLflow stores for tests: databases, servers on the loopback address, and ones that fail."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_trainer.exceptions import LockHeldError
from llm_trainer.locks import hold_lock


@pytest.fixture(scope="session", name="empty_database")
def empty_database_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, made once for all test processes: migrations take long."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    path = shared / "mlflow-template" / "mlflow.db"
    while not path.exists():
        try:
            with hold_lock(shared / "mlflow-template.lock", "making a template"):
                if not path.exists():
                    _make_database(path)
        except LockHeldError:
            time.sleep(0.2)
    return path


def _make_database(path: Path) -> None:
    from mlflow import MlflowClient

    unfinished = path.parent.with_name("mlflow-template-unfinished")
    unfinished.mkdir()
    MlflowClient(f"sqlite:///{unfinished / path.name}").search_experiments()
    unfinished.rename(path.parent)


@pytest.fixture(name="root")
def root_fixture(empty_database: Path, tmp_path: Path) -> Path:
    """A main checkout whose `mlflow.db` is there already."""
    root = tmp_path / "checkout"
    root.mkdir()
    shutil.copyfile(empty_database, root / "mlflow.db")
    return root


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A real `mlflow server` in a process of its own."""

    def __init__(self, directory: Path, database: Path, port: int | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = directory / "server.db"
        if not self.database.exists():
            shutil.copyfile(database, self.database)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with open(self.database.with_suffix(".log"), "ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port",
                    str(self.port), "--workers", "1", "--backend-store-uri",
                    f"sqlite:///{self.database}", "--artifacts-destination",
                    str(self.database.parent / "artifacts"),
                ],
                stdout=log, stderr=log, env=environment, cwd=self.database.parent,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                assert self._process.poll() is None, "mlflow server ended"
                assert time.monotonic() < deadline, "mlflow server does not answer"
                time.sleep(0.2)

    def stop(self) -> None:
        """Kill the server and its workers at once, as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None


@contextmanager
def black_hole() -> Iterator[str]:
    """The address of a port that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def steps_of(uri: str, run_id: str, key: str) -> list[int]:
    """All steps of a metric in order, doubled ones included."""
    from mlflow import MlflowClient

    return sorted(m.step for m in MlflowClient(uri).get_metric_history(run_id, key))


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.2)
