"""B9: a hub on loopback that cuts off, lies, redirects, and names files outside of its data set."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.soak.row import Report, Row
from tests.data.test_hub import RUN, jsonl
from tests.hub_server import Handler, HubServer
from tests.test_layers import ROOT

SECRET = "what-no-data-set-may-have"
_LINES = jsonl([{"text": f"line {n}"} for n in range(400)])
_HTML = b"<!doctype html><html><body>Please sign in to the network</body></html>"
_BOMB_BYTES = 300 * 2**20


class Hostile(Handler):
    """Answers for a file as the name of its repository says."""

    def send_file(self, repository: str, path: str) -> None:
        """Answer a request for one file, wrongly."""
        content = self.hub.repositories[repository].get(path, b"")
        headers = {
            "ETag": '"1234"', "X-Repo-Commit": self.hub.commit(repository),
            "Content-Type": "application/octet-stream",
        }  # fmt: skip
        kind = repository.partition("/")[2] if path == "train.jsonl" else ""
        if kind == "truncated" and self.command == "GET":
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif kind == "shorter":
            self.send(200, headers, content[: len(content) // 2 + 7])
        elif kind == "longer":
            self.send(200, headers, content + b'{"text": "more than there is"}\n')
        elif kind == "html":
            self.send(200, headers | {"Content-Type": "text/html"}, _HTML)
        elif kind == "error":
            self.send(500, {"Content-Type": "text/html"}, _HTML)
        elif kind in _REDIRECTS:
            target = _REDIRECTS[kind] or self.path
            self.send(302, headers | {"Location": target, "X-Linked-ETag": '"1234"'}, b"")
        else:
            super().send_file(repository, path)


_REDIRECTS = {
    "redirect-clear": "http://192.0.2.1/train.jsonl", "redirect-file": "file:///etc/passwd",
    "redirect-loop": "",
}  # fmt: skip


def _repositories(outside: Path) -> dict[str, dict[str, bytes]]:
    plain = (
        "good", "truncated", "shorter", "longer", "html", "error", *_REDIRECTS,
    )  # fmt: skip
    found = {f"evil/{name}": {"train.jsonl": _LINES} for name in plain}
    for name, path in {
        "card-absolute": str(outside / "secret.jsonl"), "card-up": "../../../secret.jsonl",
        "card-file": f"file://{outside}/secret.jsonl", "card-url": "http://127.0.0.1:9/x.jsonl",
    }.items():  # fmt: skip
        card = f"---\nconfigs:\n- config_name: a\n  data_files: '{path}'\n---\n".encode()
        found[f"evil/{name}"] = {"README.md": card, "train.jsonl": _LINES}
    found["evil/names"] = {
        "train.jsonl": _LINES, "../../../escaped.jsonl": _LINES, "a/../../escaped.jsonl": _LINES,
        str(outside / "escaped.jsonl"): _LINES,
    }  # fmt: skip
    found["evil/zip"] = {"train.zip": _zip()}
    found["evil/tar"] = {"train.tar": _tar(outside)}
    line = json.dumps({"text": "bomb " * 2000}).encode() + b"\n"
    found["evil/bomb"] = {"train.jsonl.gz": gzip.compress(line * (_BOMB_BYTES // len(line)))}
    return found


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("train.jsonl", "../../../escaped.jsonl", "/escaped.jsonl"):
            archive.writestr(name, _LINES)
    return stream.getvalue()


def _tar(outside: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("../../../escaped.txt", "00000.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = len(_LINES)
            archive.addfile(entry, io.BytesIO(_LINES))
        link = tarfile.TarInfo("00001.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside / "secret.jsonl")
        archive.addfile(link)
    return stream.getvalue()


def run(folder: Path, scale: float) -> Report:
    """Each data set streamed and downloaded: refused by name, or the right lines and no others."""
    (folder / "secret.jsonl").write_bytes(jsonl([{"text": SECRET}]))
    work = folder / "a" / "b" / "work"
    home = folder / "a" / "b" / "home"
    for place in (work, home, folder / "tmp"):
        place.mkdir(parents=True)
    repositories = _repositories(folder)
    cases = {
        f"{name} {way}": {"dataset_name": name, "validation_fraction": 0.2, "streaming": streaming}
        for name in repositories
        for way, streaming in (("streamed", True), ("downloaded", False))
    }
    before = _outside(folder, home)
    with HubServer(repositories, Hostile) as hub:
        done = subprocess.run(
            [sys.executable, "-c", _IMPATIENT + RUN + _PEAK], cwd=work, text=True,
            input=json.dumps(cases),
            env={**os.environ, **hub.environment(home), "TMPDIR": str(folder / "tmp"),
                 "PYTHONPATH": str(ROOT)},
            capture_output=True, check=False,
        )  # fmt: skip
    report = Report()
    report.require(done.returncode == 0, f"not an error of ours: {done.stderr[-600:]}")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    peak = answers.pop()["peak_mib"] if answers and "peak_mib" in answers[-1] else 0
    refused = right = 0
    for answer in answers:
        repository = answer["name"].partition(" ")[0]
        if "error" in answer:
            refused += repository in answer["error"] or "://" in answer["error"]
            report.require(repository != "evil/good", f"refused: {answer['error']}")
        else:
            texts = [text for _, text, _ in answer["found"]]
            held = _is_right(repository, texts)
            right += held
            report.require(held, f"{answer['name']}: other text than the data set has")
    report.require(SECRET not in done.stdout, "a file outside the data set was read")
    after = _outside(folder, home)
    report.require(before == after, f"files outside: {sorted(after - before)[:3]}")
    report.require(refused + right == len(cases), "a data set was refused, but not by name")
    report.counters = {
        "data_sets": len(repositories), "readings": len(cases), "refused_by_name": refused,
        "read_and_right": right, "files_outside": len(after - before), "peak_mib": peak,
    }  # fmt: skip
    return report


_IMPATIENT = """
import datasets.config
datasets.config.STREAMING_READ_MAX_RETRIES = 2  # by default 20, five seconds apart
datasets.config.STREAMING_READ_RETRY_INTERVAL = 0
import time
time.sleep = lambda seconds: None  # between the tries of huggingface_hub
"""
_PEAK = """
import re
from pathlib import Path
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(json.dumps({"peak_mib": int(peak) // 1024}))
"""


def _outside(folder: Path, home: Path) -> set[str]:
    paths = [*folder.rglob("*"), *Path("/").glob("escaped*")]
    inside = (home, folder / "tmp")
    return {str(p) for p in paths if not any(p.is_relative_to(place) for place in inside)}


def _is_right(repository: str, texts: list[Any]) -> bool:
    if repository == "evil/bomb":
        return set(texts) == {"bomb " * 2000}
    wanted = {f"line {n}" for n in range(400)}
    return bool(texts) and set(texts) == wanted


ROW = Row("B9", "a hub that cuts off, lies, redirects, names files elsewhere, sends bombs", run)
