"""A stage's command line: help that runs nothing, and no option that nobody reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.stage import STAGES
from tests.pipeline.small_project import ROOT


def call(folder: Path, stage: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"pipeline.{stage}", *arguments], cwd=folder, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
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
