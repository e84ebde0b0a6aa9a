"""C4: `make ui` asked from elsewhere, and secrets followed through a whole training run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from benchmarks.soak.row import Report, Row
from tests.pipeline.workspace import ROOT, make_workspace
from tests.test_secrets import SECRETS, found_in, train_with_secrets

_PATHS = (
    "/", "/health", "/version", "/api/2.0/mlflow/experiments/search?max_results=1",
    "/api/2.0/mlflow/runs/search", "/ajax-api/2.0/mlflow/experiments/search?max_results=1",
    "/get-artifact?path=x&run_uuid=1", "/graphql",
)  # fmt: skip
_HOSTS = ("evil.example", "evil.example:5000", "127.0.0.1.evil.example", "10.0.0.1", "[::ffff:1]")
_ORIGINS = ("https://evil.example", "http://127.0.0.1.evil.example", "null", "http://10.0.0.1:80")
_OPEN = ("/health", "/version")
"""Paths that say no more than that a server is there; MLflow answers them to any host."""


def run(folder: Path, scale: float) -> Report:
    """Foreign hosts and origins get 403; the only listening address is loopback."""
    report = Report()
    foreign = refused = own = 0
    (folder / "ui").mkdir()
    make_workspace(folder / "ui")
    subprocess.run(
        [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{folder}/ui/mlflow.db"],
        check=True, capture_output=True,
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.ui", "--port", "5790"], cwd=folder / "ui", text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        match = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert match is not None, "the server did not say where it is"
        url = match[0]
        deadline = time.monotonic() + 120
        while _status(f"{url}/health") != 200:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.3)
        for path in _PATHS:
            own += _status(url + path) < 400
            if path in _OPEN:
                continue
            for host in _HOSTS:
                for method in ("GET", "POST"):
                    foreign += 1
                    answer = _status(url + path, method, Host=host)
                    refused += answer == 403
                    report.require(answer == 403, f"{method} {path} for {host}: {answer}")
        for origin in _ORIGINS:
            for method in ("POST", "DELETE", "PUT"):
                foreign += 1
                create = f"{url}/api/2.0/mlflow/experiments/create"
                answer = _status(create, method, Origin=origin)
                refused += answer == 403
                report.require(answer == 403, f"{method} from {origin}: {answer}")
        listening = {
            connection.laddr.ip
            for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
            for connection in one.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    report.require(refused == foreign, f"{foreign - refused} foreign requests were answered")
    report.require(listening == {"127.0.0.1"}, f"listens on {listening}")
    said = train_with_secrets(folder / "run")
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    leaks = found_in(folder / "run", said)
    report.require(not leaks, f"secrets in {leaks[:3]}")
    report.counters = {
        "foreign_requests": foreign, "refused_with_403": refused, "own_requests_answered": own,
        "listening_addresses": len(listening), "secrets": len(SECRETS), "files_searched":
        len(files), "secrets_found": len(leaks),
    }  # fmt: skip
    return report


def _status(url: str, method: str = "GET", **headers: str) -> int:
    body = b"{}" if method != "GET" else None
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, method=method, headers=kind | headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as page:
            return int(page.status)
    except urllib.error.HTTPError as error:
        return int(error.code)
    except OSError:
        return 599


ROW = Row("C4", "requests from elsewhere to the servers; secrets in addresses and environment", run)
