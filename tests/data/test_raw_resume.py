"""A download that was stopped anywhere goes on, and gives the bytes of one that was not."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_trainer.config import SourceConfig
from llm_trainer.data import chunks, raw, raw_file, units
from llm_trainer.data.engine import LOCAL, Engine
from llm_trainer.data.intake import Source
from llm_trainer.data.local_files import open_local
from llm_trainer.data.raw import build_raw
from llm_trainer.data.raw_build import RawBuild
from llm_trainer.exceptions import DataError
from tests.data.raw_corpora import random_texts, write_sources
from tests.data.sources import jsonl
from tests.test_layers import ROOT

fill, abandon = raw.fill, RawBuild.abandon


class Stopped(BaseException):
    pass


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many units, chunks, files and row groups of little text."""
    for module, name, size in (
        (units, "UNIT_BYTES", 20_000),
        (raw_file, "FILE_BYTES", 9_000),
        (raw_file, "GROUP_BYTES", 3_000),
        (chunks, "CHUNK_BYTES", 4_000),
    ):
        monkeypatch.setattr(module, name, size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder)
    lines = jsonl(random_texts(5, 300, 60)).splitlines(True)
    lines[::7] = [line + b"{bad\n" for line in lines[::7]]
    (folder / "f.jsonl").write_bytes(b"".join(lines))
    return folder


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def stop_after(
    number: int,
    config: SourceConfig,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: Engine = LOCAL,
) -> tuple[bool, int]:
    """Build until `number` documents are written; whether it was stopped, and where it began."""
    began = []

    def stopping(build: RawBuild, *arguments: Any) -> Iterator[int]:
        began.append(build.resumed)
        for count, size in enumerate(fill(build, *arguments)):
            if count == number:
                raise Stopped
            yield size

    with monkeypatch.context() as patch:
        patch.setattr(raw, "fill", stopping)
        if number % 2:  # as a kill, which closes nothing
            patch.setattr(RawBuild, "abandon", lambda build: None)
        try:
            build_raw(config, out, progress=False, engine=engine)
        except Stopped:
            return True, began[0]
    return False, began[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"validation_fraction": 0.1},
        {"validation_fraction": 0.4, "max_documents": 300},
        {"validation_file": "b.jsonl.gz"},
        {"validation_file": "a.jsonl", "max_documents": 500},
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_stopped_again_and_again(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    is_stream: bool,
) -> None:
    if is_stream:  # as a data set of a hub, whose revision is known, and which has no units

        def as_stream(config: SourceConfig) -> Source:
            origin = {"kind": "stream", "revision": "1"}
            source = open_local(config)
            return replace(source, train_files=None, validation_files=None, origin=origin)

        monkeypatch.setattr(raw, "open_source", as_stream)
    train = [str(path) for path in sorted(folder.iterdir())]
    if "validation_file" in settings:
        settings = settings | {"validation_file": str(folder / settings["validation_file"])}
        train.remove(settings["validation_file"])
    config = SourceConfig(train_file=train, on_bad_line="skip", max_document_bytes=4000, **settings)
    build_raw(config, tmp_path / "whole", progress=False)
    expected = content(tmp_path / "whole")
    for pause in (45, 160):
        out = tmp_path / f"stopped{pause}"
        starts = []
        stopped = True
        while stopped:
            stopped, start = stop_after(pause + len(starts), config, out, monkeypatch)
            starts.append(start)
            assert len(starts) < 100
        assert len(starts) > 2
        assert starts[0] == 0
        assert starts == sorted(starts)
        assert starts[-1] > 0
        assert content(out) == expected
    assert {path.name for path in tmp_path.iterdir()} >= {"whole", "stopped45"}
    assert not list(tmp_path.glob(".*"))


def test_what_is_left_is_not_taken_up_for_other_settings_or_if_damaged(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = SourceConfig(train_file=str(folder / "a.jsonl"), validation_fraction=0.2)
    other = SourceConfig(train_file=str(folder / "a.jsonl"), validation_fraction=0.3)
    build_raw(other, tmp_path / "other", progress=False)
    out = tmp_path / "out"
    assert stop_after(200, config, out, monkeypatch)[0]
    assert stop_after(10_000, other, out, monkeypatch) == (False, 0)
    assert content(out) == content(tmp_path / "other")
    assert stop_after(200, config, out, monkeypatch)[0]
    (left,) = tmp_path.glob(".partial-*")
    damaged = next(left.glob("train-*"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        assert stop_after(10_000, config, out, monkeypatch) == (False, 0)
    assert "starting anew" in caplog.text


def test_a_limit_of_bad_records_counts_those_before_the_stop(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SourceConfig(train_file=str(folder / "f.jsonl"), on_bad_line="skip", max_bad_lines=29)
    messages = []
    for pauses in ([], [150, 40]):
        out = tmp_path / f"out{len(pauses)}"
        for pause in pauses:
            assert stop_after(pause, config, out, monkeypatch)[0]
        with pytest.raises(DataError) as caught:
            build_raw(config, out, progress=False)
        messages.append(str(caught.value))
    assert "bad record number 30" in messages[0]
    assert messages[0] == messages[1]


def test_a_killed_process_leaves_what_the_next_takes_up(tmp_path: Path, folder: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from llm_trainer.config import SourceConfig\n"
        "from llm_trainer.data import raw_build, raw_file, units\n"
        "import time, logging\n"
        "logging.basicConfig(level='INFO')\n"
        "units.UNIT_BYTES, raw_file.FILE_BYTES, raw_file.GROUP_BYTES = 20_000, 9_000, 3_000\n"
        "from llm_trainer.data.raw import build_raw\n"
        "commit = raw_build.RawBuild._commit\n"
        "def slow(build):\n"
        "    commit(build)\n"
        "    if len(build.writers['train'].names) > 2 and sys.argv[2] == 'slow':\n"
        "        Path('now').touch(); time.sleep(60)\n"
        "raw_build.RawBuild._commit = slow\n"
        "config = SourceConfig(train_file=sys.argv[1], validation_fraction=0.1)\n"
        "build_raw(config, Path(sys.argv[3]), progress=False)\n"
    )

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(folder / "a.jsonl"), *arguments],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    with start("slow", "raw") as process:
        end = time.monotonic() + 60
        while not (tmp_path / "now").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    with start("fast", "raw") as process:
        log = process.communicate()[1]
        assert process.returncode == 0, log
        assert "going on after" in log
    with start("fast", "whole") as process:
        assert process.communicate()[1].count("going on") == 0
    assert content(tmp_path / "raw") == content(tmp_path / "whole")
