"""The one reader of params.yaml, as the stages meet it: wrong input ends before any work."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.params import load_params

ROOT = Path(__file__).parents[2]
STAGES = ("download", "train_tokenizer", "pack_sequences", "train", "evaluate", "benchmark")


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")


def test_the_committed_params_are_valid() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.data.dataset_name == "python-stdlib"
    assert params.packing.max_length <= params.model.max_seq_len


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_refuses_wrong_params_at_once(stage: str, params: Path) -> None:
    """A mistake in any section stops every stage, before torch is even imported."""
    text = re.sub(r"\n  learning_rate: \S+", "\n  learning_rate: abc", params.read_text())
    params.write_text(f"{text}modle: {{}}\n")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", f"pipeline.{stage}"],
        cwd=params.parent, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {stage}: params.yaml: training.learning_rate: expected a number, found 'abc'",
        f"error: {stage}: unknown key 'modle' in params.yaml; did you mean 'model'?",
    ]
    assert time.monotonic() - started < 10
    assert not (params.parent / "data").exists()
    assert not (params.parent / "metrics").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_outside_the_project_says_so(stage: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"pipeline.{stage}"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {stage}: params.yaml: no such configuration file; name a .json, .yaml or .yml "
        f"file\n"
    )
