"""Stage train_tokenizer as a user runs it: outputs, one line for each mistake, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_trainer.tokenizer import BPETokenizer
from tests.data.raw_corpora import random_texts, write_raw
from tests.test_layers import ROOT


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("corpus") / "raw"
    write_raw(place, random_texts(1, 80), random_texts(2, 10))
    return place


@pytest.fixture
def place(corpus: Path, tmp_path: Path) -> Path:
    shutil.copytree(corpus, tmp_path / "data" / "raw")
    return tmp_path


def run(place: Path, **tokenizer: Any) -> subprocess.CompletedProcess[str]:
    params = {"data": {}, "tokenizer": tokenizer, "packing": {}}
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    return subprocess.run(
        [sys.executable, "-m", "pipeline.train_tokenizer"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_outputs(place: Path) -> None:
    done = run(place, vocab_size=340)
    assert (done.returncode, done.stderr) == (0, "")  # no bar where no terminal is
    tokenizer = BPETokenizer.from_pretrained(place / "models/tokenizer")
    metrics = json.loads((place / "metrics/tokenizer.json").read_text())
    assert metrics["digest"] == tokenizer.digest
    assert metrics["vocab_size"] == tokenizer.vocab_size == 340
    assert metrics["round_trip_rate"] == 1.0
    assert {"bytes_per_token", "unused_tokens", "unused_share", "seconds"} <= metrics.keys()
    assert sorted(p.name for p in (place / "models").iterdir()) == ["tokenizer"]


def test_a_vocabulary_that_is_not_filled_is_said(place: Path) -> None:
    done = run(place, vocab_size=50_000)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "50,000" in line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 256}, "vocab_size (256) must be at least 257"),
        ({"vocab_sise": 400}, "did you mean 'vocab_size'"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"pattern": "gpt5"}, "pattern"),
        ({"max_train_bytes": 3}, "max_train_bytes (3)"),
        ({"min_frequency": 0}, "min_frequency (0)"),
    ],
)
def test_wrong_settings(place: Path, settings: dict[str, Any], message: str) -> None:
    done = run(place, **settings)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: train_tokenizer: ")
    assert message in line
    assert not (place / "models").exists()


def test_no_corpus(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert "dvc repro download" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_corpus(place: Path) -> None:
    file = next((place / "data/raw").glob("train-*.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    done = run(place)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert file.name in line
    assert "dvc repro download" in line
    assert not (place / "models").exists()
