"""Open MLflow on the recorded runs: `python -m pipeline.ui [--port 5000]`.

Serves the main checkout's database on the loopback address only, with one worker and without
background jobs: 2 processes and 490 MB where the defaults take 10 and 1.2 GB.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from llm_trainer.exceptions import ConfigurationError
from llm_trainer.training.tracking.destination import resolve_destination
from llm_trainer.training.tracking.factory import check_backends
from pipeline.params import load_params
from pipeline.stage import main_checkout, run_stage

HOST = "127.0.0.1"
DEFAULT_PORT = 5000


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; the process becomes the server, Ctrl-C ends it."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.ui", description="Open MLflow on the recorded runs."
    )
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="first port to try (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    check_backends(["mlflow"])
    runtime, root = load_params().runtime, main_checkout()
    destination = resolve_destination(runtime.tracking_uri, runtime.experiment_name, root)
    if destination.database is None:
        print(f"runs are kept on {destination.shown}; open that address")
        return
    if not destination.database.is_file():
        raise ConfigurationError(
            f"{destination.database}: no runs yet; `make repro` makes the first, "
            f"`python -m pipeline.track` fills it in a clone"
        )
    port = free_port(options.port)
    print(f"MLflow is starting at http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
    command = server_command(destination.uri, str(destination.artifact_root), port)
    os.chdir(root)
    os.execve(command[0], command, {**os.environ, **server_environment()})


def server_command(uri: str, artifacts: str, port: int) -> list[str]:
    """The command that serves the store `uri` on `port`."""
    return [
        sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri,
        "--default-artifact-root", artifacts, "--host", HOST, "--port", str(port),
        "--workers", "1",
    ]  # fmt: skip


def server_environment() -> dict[str, str]:
    """What to set for the server."""
    return {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # by default MLflow answers the names of private networks too (10.*, 192.168.*)
        "MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1,127.0.0.1:*,localhost,localhost:*",
    }


def free_port(first: int, tries: int = 20) -> int:
    """The first free port from `first` on.

    Raises:
        ConfigurationError: none of `tries` is free.
    """
    for port in range(first, min(first + tries, 65536)):
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ConfigurationError(
        f"--port: none of {first} to {first + tries - 1} is free; name another"
    )


if __name__ == "__main__":
    run_stage("ui", main)
