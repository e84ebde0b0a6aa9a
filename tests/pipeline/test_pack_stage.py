"""Stage pack_sequences as a user runs it: outputs, messages, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from llm_trainer.data.shards import PackedRows
from llm_trainer.files import is_partial
from llm_trainer.tokenizer.bpe import BPETokenizer
from tests.data.raw_corpora import random_texts, write_raw
from tests.test_layers import ROOT


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw text and a tokenizer."""
    path = tmp_path_factory.mktemp("stage")
    write_raw(path / "data/raw", random_texts(1, 200), random_texts(2, 20))
    tokenizer = BPETokenizer()
    tokenizer.train(random_texts(0, 200), vocab_size=400)
    tokenizer.save_pretrained(path / "models/tokenizer")
    return path


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "project"))


def write_params(folder: Path, num_workers: int = 1, **packing: Any) -> None:
    params = {
        "data": {"dataset_name": "python-stdlib"},
        "packing": {"max_length": 64} | packing,
        "runtime": {"preprocessing_num_workers": num_workers},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.pack_sequences"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def run(folder: Path) -> tuple[int | None, str]:
    """Exit code and stderr; a summary on stdout if and only if all went well."""
    process = start(folder)
    out, err = process.communicate(timeout=120)
    assert out.count("\n") == (process.returncode == 0)
    return process.returncode, err


def test_what_it_writes(folder: Path) -> None:
    write_params(folder, num_workers=2, strategy="best_fit")
    assert run(folder) == (0, "")
    metrics = json.loads((folder / "metrics/packing.json").read_text())
    for split in ("train", "validation"):
        rows = PackedRows(folder / "data/packed", split)
        assert rows.row_length == 64
        assert metrics[f"{split}_rows"] == len(rows)
        assert metrics[f"{split}_bytes"] == rows.num_bytes
        ids, _ = rows.rows(np.arange(len(rows)))
        assert ids.max() == rows.max_id
    assert metrics["num_workers"] == 2
    assert metrics["seconds"] > 0
    assert sorted(os.listdir(folder / "data")) == ["packed", "raw"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_inputs_and_impossible_settings(folder: Path) -> None:
    """One line each, exit code 2, and no output: what a corrupt cache restores is noticed here."""
    write_params(folder, max_length=100_000_000)
    assert run(folder)[1].startswith("error: pack_sequences: params.yaml: packing.max_length (100")
    write_params(folder, max_length=1024, min_length=100_000)
    code, err = run(folder)
    assert code == 2
    assert err.startswith("error: pack_sequences: data/raw: the train split has 0 tokens (200 docu")
    write_params(folder)
    flip(folder / "models/tokenizer/tokenizer.json")
    code, err = run(folder)
    assert code == 2
    assert err.startswith("error: pack_sequences: models/tokenizer/tokenizer.json: content differs")
    flip(folder / "data/raw/train-00001.parquet")
    code, err = run(folder)
    assert code == 2
    assert err.startswith("error: pack_sequences: data/raw/train-00001.parquet: content differs")
    assert err.count("\n") == 1
    assert "dvc repro download" in err
    shutil.rmtree(folder / "data/raw")
    code, err = run(folder)
    assert code == 2
    assert "data/raw/manifest.json: missing" in err
    assert not (folder / "data/packed").exists()
    assert not (folder / "metrics").exists()


def group_ends(group: int) -> bool:
    """Whether soon nobody of a process group is left."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 1.0])
def test_ctrl_c_ends_all_processes_and_leaves_nothing(folder: Path, delay: float) -> None:
    """SIGINT to the whole group, as a terminal sends it; the old output stays."""
    (folder / "data/packed").mkdir()
    (folder / "data/packed/old").touch()
    shutil.rmtree(folder / "data/raw")
    rng = random.Random(1)  # no word comes twice, so that none is at hand already
    texts = (rng.randbytes(60_000).hex(" ", 4) for _ in range(120))
    write_raw(folder / "data/raw", texts, group_bytes=2**18)
    write_params(folder, num_workers=2)
    process = start(folder)
    while not any(is_partial(name) for name in os.listdir(folder / "data")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    time.sleep(delay)  # workers are starting, or at work
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert err == "pack_sequences: interrupted\n"
    assert group_ends(process.pid)
    assert sorted(os.listdir(folder / "data")) == ["packed", "raw"]
    assert os.listdir(folder / "data/packed") == ["old"]


def test_a_killed_stage_leaves_the_old_output_and_no_workers(folder: Path) -> None:
    """SIGKILL to the parent alone: its workers notice and go."""
    rng = random.Random(1)
    texts = (rng.randbytes(60_000).hex(" ", 4) for _ in range(30))
    shutil.rmtree(folder / "data/raw")
    write_raw(folder / "data/raw", texts, group_bytes=2**18)
    write_params(folder, num_workers=2)
    process = start(folder)
    while not any(is_partial(name) for name in os.listdir(folder / "data")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    time.sleep(0.3)
    process.kill()
    process.communicate(timeout=20)
    assert group_ends(process.pid)
    assert not (folder / "data/packed").exists()
    assert run(folder) == (0, "")  # and the same command puts it right
    assert sorted(os.listdir(folder / "data")) == ["packed", "raw"]
