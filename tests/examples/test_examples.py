"""The examples run to their end: the data from a hub on loopback or files, the sizes small."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer
from tests.data.raw_corpora import WORDS, random_texts
from tests.data.sources import jsonl
from tests.hub_server import HubServer
from tests.test_layers import ROOT

SHAPE = {"d_model": 32, "n_heads": 2, "n_layers": 2, "d_ff": 64}
CARD = b"""---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - {split: train, path: wikitext-2-raw-v1/train.jsonl}
  - {split: validation, path: wikitext-2-raw-v1/validation.jsonl}
---
"""
WIKITEXT = {
    "README.md": CARD,
    "wikitext-2-raw-v1/train.jsonl": jsonl(random_texts(1, 60)),
    "wikitext-2-raw-v1/validation.jsonl": jsonl(random_texts(2, 6)),
}


def run(example: str, folder: Path, smaller: dict[str, Any], **environment: str) -> str:
    command = [
        sys.executable, str(ROOT / "tests/examples/run_small.py"),
        str(ROOT / "examples" / example), json.dumps(smaller),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=250,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_saved(directory: Path) -> None:
    model = TransformerLM.from_pretrained(directory)
    tokenizer = BPETokenizer.from_pretrained(directory / "tokenizer")
    assert model.tokenizer_digest == tokenizer.digest
    assert model.config.vocab_size == tokenizer.vocab_size


@pytest.mark.slow
def test_complete_training(tmp_path: Path) -> None:
    smaller = {
        "ModelConfig": {**SHAPE, "max_seq_len": 64},
        "DataConfig": {"max_length": 64, "vocab_size": 400, "preprocessing_num_workers": 1},
        "TrainingConfig": {"num_epochs": 1},
    }
    with HubServer({"Salesforce/wikitext": WIKITEXT}) as hub:
        run("complete_training.py", tmp_path, smaller, **hub.environment(tmp_path / "hf"))
    check_saved(tmp_path / "final_model")
    checkpoints = tmp_path / "checkpoints"
    assert len(list(checkpoints.glob("checkpoint-*"))) == 1
    assert list(checkpoints.rglob("events.out.tfevents*")), "TensorBoard is the default"


def test_custom_dataset(tmp_path: Path) -> None:
    rng = random.Random(0)
    for name in ("data1.txt", "data2.txt"):
        (tmp_path / name).write_text(" ".join(rng.choices(WORDS, k=12_000)), encoding="utf-8")
    printed = run("custom_dataset.py", tmp_path, {"ModelConfig": SHAPE})
    assert "loss before training" in printed
    assert "loss after" in printed
    check_saved(tmp_path / "final_model")
