"""scripts/evaluate.py: the figures of the library, for the text that a file names."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_trainer.config import DataConfig, ModelConfig, TrainingConfig
from llm_trainer.data.prepare import prepare_data
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.training import Trainer
from llm_trainer.utils.evaluation import evaluate_rows
from tests.data.sources import jsonl
from tests.hub_server import HubServer
from tests.scripts.command import Outcome, call, script

TEXTS = [f"def add_{n}(left, right):\n    return left + right + {n}\n" * 4 for n in range(60)]
USUAL = ["--model_path", "model", "--dataset_config", "eval.json", "--output_path", "out/r.json"]
DATA: dict[str, Any] = {"train_file": "corpus", "validation_fraction": 0.3}
EVALUATION = {"prompts": ["def ", ""], "samples_per_prompt": 1, "max_new_tokens": 8}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "corpus").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "corpus" / f"{number:02}.py").write_text(text)
    tokenizer = BPETokenizer()
    tokenizer.train(TEXTS, vocab_size=300)
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=300, d_model=16, n_heads=2, n_layers=1, d_ff=32, max_seq_len=32, dropout=0.0
    )
    trainer = Trainer(TransformerLM(config), tokenizer, TrainingConfig())
    trainer.save_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    write(tmp_path, data=DATA, evaluation=EVALUATION)
    return tmp_path


def write(folder: Path, **sections: Any) -> None:
    (folder / "eval.json").write_text(json.dumps(sections))


def evaluate(capsys: pytest.CaptureFixture[str], *more: str) -> Outcome:
    return call("evaluate", [*USUAL, *more], capsys)


def results(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / "out" / "r.json").read_text())
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize(
    "changes",
    [{}, {"max_length": 16}, {"pack_sequences": False}],
    ids=["the model's length", "shorter rows", "unpacked"],
)
def test_the_figures_are_those_of_prepared_rows(
    folder: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    write(folder, data={**DATA, **changes}, evaluation={**EVALUATION, "batch_size": 3})
    done = evaluate(capsys)
    assert done.code == 0, done.err
    model = TransformerLM.from_pretrained("model")
    tokenizer = BPETokenizer.from_pretrained("model")
    config = DataConfig(**{"max_length": 32, **DATA, **changes}, preprocessing_num_workers=1)
    _, rows = prepare_data(config, tokenizer, folder / "kept")
    expected = evaluate_rows(model, rows, token_bytes=tokenizer.token_bytes())
    found = results(folder)
    for name, value in expected.to_dict().items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_byte_low"] < found["bits_per_byte"] < found["bits_per_byte_high"]
    assert found["data"]["max_length"] == config.max_length
    assert f"{found['bits_per_byte']:.4f} bits per byte" in done.out


def test_samples_and_their_quality(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(capsys).code == 0
    first = results(folder)
    assert [sample["prompt"] for sample in first["samples"]] == ["def ", ""]
    assert 0 <= first["sample_distinct_1"] <= 1
    assert "sample_python_lines" in first, "all documents are Python"
    assert evaluate(capsys).code == 0
    assert results(folder) == first, "the same command, the same results"


def test_max_batches_scores_a_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(capsys).code == 0
    whole = results(folder)
    write(folder, data=DATA, evaluation={**EVALUATION, "batch_size": 2})
    assert evaluate(capsys, "--max_batches", "3").code == 0
    part = results(folder)
    assert part["tokens"] == 3 * 2 * 31
    assert part["tokens"] < whole["tokens"]
    assert part["max_batches"] == 3


def test_files_of_the_other_forms_are_read_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(capsys).code == 0
    expected = results(folder)
    (folder / "params.yaml").write_text(
        "data: {train_file: corpus, validation_fraction: 0.3}\n"
        "packing: {max_length: 32}\nmodel: {d_model: 64}\ntraining: {max_steps: 3}\n"
        f"evaluation: {json.dumps(EVALUATION)}\n"
    )
    assert evaluate(capsys, "--dataset_config", "params.yaml").code == 0
    assert results(folder) == expected


def test_only_the_validation_split_of_a_hub_data_set_is_scored(folder: Path) -> None:
    data = {
        "dataset_name": "someone/texts", "dataset_config": None, "validation_split": "test",
    }  # fmt: skip
    write(folder, data=data, evaluation=EVALUATION)
    files = {"train.jsonl": jsonl(TEXTS), "test.jsonl": jsonl(TEXTS[:5])}
    with HubServer({"someone/texts": files}) as hub:
        done = subprocess.run(
            [sys.executable, str(script("evaluate")), *USUAL],
            cwd=folder, capture_output=True, text=True,
            env={**os.environ, **hub.environment(folder / "hf")},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert results(folder)["bytes"] == sum(len(text) for text in TEXTS[:5])
    assert results(folder)["documents"] == 5


BAD: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no data": ({}, [], "has no section 'data'"),
    "unknown key": ({"data": {**DATA, "train_fil": "x"}}, [], "did you mean 'train_file'?"),
    "unknown section": ({"data": DATA, "evalution": {}}, [], "did you mean 'evaluation'?"),
    "too long": ({"data": {**DATA, "max_length": 33}}, [], "more than the model takes (32 tokens"),
    "no text": ({"data": {"train_file": "none"}}, [], "none: no such file or directory"),
    "batches": ({"data": DATA}, ["--max_batches", "0"], "--max_batches (0) must be at least 1"),
    "model": ({"data": DATA}, ["--model_path", "none"], "none: no such model directory"),
    "output": ({"data": DATA}, ["--output_path", "corpus"], "corpus is a directory"),
    "device": ({"data": DATA}, ["--device", "abacus"], "device ('abacus')"),
    "prompts": ({"data": DATA, "evaluation": {"prompts": []}}, [], "prompts is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    sections, more, message = BAD[name]
    write(folder, **sections)
    done = evaluate(capsys, *more)
    assert done.code == 2
    assert done.out == ""
    assert message in done.err
    assert [line.startswith("error: evaluate: ") for line in done.err.splitlines()] == [True]
    assert not (folder / "out").exists()


def test_another_tokenizer_is_refused_and_none_is_missed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = TransformerLM.from_pretrained("model")
    model.save_pretrained("other")
    done = evaluate(capsys, "--model_path", "other")
    assert done.code == 2
    assert "tokenizer.json" in done.err
    other = BPETokenizer()
    other.train(TEXTS, vocab_size=270)
    other.save_pretrained("other/tokenizer")
    done = evaluate(capsys, "--model_path", "other")
    assert done.code == 2
    assert "is not the one that the model was trained with" in done.err
