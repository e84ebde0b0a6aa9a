"""A stage's command line: help that runs nothing, and no option that nobody reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from pipeline.stage import STAGES
from tests.pipeline.small_project import ROOT


def call(folder: Path, stage: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return call_program(folder, "-m", f"pipeline.{stage}", *arguments)


def call_program(
    folder: Path, *arguments: str, stdout: IO[str] | int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, text=True, stdout=stdout, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "PYTHONUNBUFFERED": ""},
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_help_says_what_the_stage_does_and_runs_nothing(tmp_path: Path, stage: str) -> None:
    told = call(tmp_path, stage, "--help")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"usage: python -m pipeline.{stage} [-h]")
    assert f"Stage `{stage}`: " in told.stdout
    assert "params.yaml" in told.stdout
    assert not list(tmp_path.iterdir())


def test_an_option_is_refused_before_anything_begins(tmp_path: Path) -> None:
    refused = call(tmp_path, "train", "--max_steps", "3")
    assert refused.returncode == 2
    assert "unrecognized arguments: --max_steps 3" in refused.stderr
    assert not list(tmp_path.iterdir())


LAST_WORDS = """
import atexit, sys, threading, time
from pathlib import Path
from pipeline.stage import stage_program

class Module:
    def __del__(self):
        Path("taken_down").touch()

kept = Module()

def main():
    atexit.register(Path("said_goodbye").touch)
    def late():
        time.sleep(0.3)
        Path("thread_ended").touch()
    threading.Thread(target=late).start()
    sys.stdout.write("the last words, without an end of line")
    {then}

stage_program("last", main, "Says its last words.")
"""
"""A stage that leaves things to be done at exit."""


@pytest.mark.parametrize(
    ("then", "code"),
    [("pass", 0), ("raise SystemExit(3)", 3), ("raise ValueError('a bug')", 1)],
)
def test_what_is_to_be_done_at_exit_is_done(tmp_path: Path, then: str, code: int) -> None:
    (tmp_path / "last.py").write_text(LAST_WORDS.format(then=then))
    ended = call_program(tmp_path, "last.py")
    assert ended.returncode == code, ended.stderr
    assert ended.stdout == "the last words, without an end of line"
    assert (tmp_path / "said_goodbye").exists()
    assert (tmp_path / "thread_ended").exists()


def test_a_stage_that_is_done_does_not_take_its_modules_down(tmp_path: Path) -> None:
    """With torch among them that is half a second."""
    (tmp_path / "last.py").write_text(LAST_WORDS.format(then="pass"))
    call_program(tmp_path, "last.py")
    assert not (tmp_path / "taken_down").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_words_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "last.py").write_text(LAST_WORDS.format(then="pass"))
    with open("/dev/full", "w") as full:
        ended = call_program(tmp_path, "last.py", stdout=full)
    assert ended.returncode == 120
    assert "No space left" in ended.stderr
