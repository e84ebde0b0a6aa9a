"""`python -m pipeline.ui`: loopback only, on a free port, of the main checkout's database."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from llm_trainer.exceptions import ConfigurationError
from pipeline.ui import free_port, server_command
from tests.mlflow_store import empty_database_fixture  # noqa: F401
from tests.pipeline.workspace import ROOT, command, make_workspace


def status(url: str, body: bytes | None = None, **headers: str) -> int:
    """HTTP status of a GET, or with a body of a POST."""
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, headers={**kind, **headers})
    try:
        with urllib.request.urlopen(request, timeout=5) as page:
            return int(page.status)
    except urllib.error.HTTPError as error:
        return int(error.code)


@pytest.mark.slow
def test_the_ui_answers_on_the_loopback_address_and_to_no_foreign_site(
    tmp_path: Path, empty_database: Path
) -> None:
    make_workspace(tmp_path)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first = taken.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.ui", "--port", str(first)], cwd=tmp_path, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            assert match is not None, line
            url = match[0]
            assert first < int(match[1]) <= first + 19
            deadline = time.monotonic() + 90
            while True:
                try:
                    assert status(f"{url}/health") == 200
                    break
                except OSError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.3)
            search = f"{url}/api/2.0/mlflow/experiments/search?max_results=1"
            assert status(search) == 200
            for host in ("evil.example", "10.0.0.1", "192.168.1.1:5000"):
                assert status(search, Host=host) == 403
            create = f"{url}/api/2.0/mlflow/experiments/create"
            assert status(create, b'{"name": "theirs"}', Origin="https://evil.example") == 403
            assert status(create, b'{"name": "mine"}') == 200
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_without_runs_and_without_a_free_port_it_says_so(tmp_path: Path) -> None:
    make_workspace(tmp_path)
    empty = command(tmp_path, "pipeline.ui")
    assert empty.returncode == 2
    assert "mlflow.db: no runs yet; `make repro` makes the first" in empty.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match="none of"):
            free_port(port, tries=1)
    text = (tmp_path / "params.yaml").read_text()
    changed = text.replace("tracking_uri: null", "tracking_uri: http://u:p@127.0.0.1:1")
    (tmp_path / "params.yaml").write_text(changed)
    remote = command(tmp_path, "pipeline.ui")
    assert (remote.returncode, remote.stdout) == (
        0, "runs are kept on http://127.0.0.1:1; open that address\n",
    )  # fmt: skip


def test_the_server_is_bound_to_the_loopback_address() -> None:
    words = server_command("sqlite:////x/mlflow.db", "/x/mlartifacts", 5000)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--workers") + 1] == "1"
