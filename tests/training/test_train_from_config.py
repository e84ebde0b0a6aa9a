"""The trainer's ways in beside `train`: from configurations, from saved files, step by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_trainer.config import DataConfig, ModelConfig, TrainingConfig
from llm_trainer.data import LanguageModelingDataset
from llm_trainer.exceptions import (
    CheckpointError,
    DataError,
    IntegrityError,
    ModelConfigurationError,
    TrainingError,
)
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.training import Trainer
from llm_trainer.training.checkpoint import list_checkpoints

TEXTS = [f"def add_{n}(left, right):\n    return left + right + {n}\n" for n in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    made = BPETokenizer()
    made.train(TEXTS, vocab_size=300)
    return made


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number:02}.txt").write_text(text)
    return folder


def shape(tokenizer: BPETokenizer, **changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size, "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 32,
        "max_seq_len": 32,
    }  # fmt: skip
    return ModelConfig(**(values | changes))


def settings(directory: Path, **changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "batch_size": 4, "max_steps": 5, "learning_rate": 1e-2, "use_amp": False,
        "eval_steps": 2, "logging_steps": 1, "report_to": ["jsonl"],
        "checkpoint_dir": str(directory),
    }  # fmt: skip
    return TrainingConfig(**(values | changes))


def source(corpus: Path, **changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "train_file": str(corpus), "validation_fraction": 0.2, "max_length": 16, "min_length": 1,
        "vocab_size": 300, "preprocessing_num_workers": 1,
    }  # fmt: skip
    return DataConfig(**(values | changes))


def new_trainer(tokenizer: BPETokenizer, directory: Path, **changes: Any) -> Trainer:
    torch.manual_seed(1)
    model = TransformerLM(shape(tokenizer))
    return Trainer(model, tokenizer, settings(directory, **changes), device="cpu")


def test_from_config_is_preparing_and_training(
    tmp_path: Path, corpus: Path, tokenizer: BPETokenizer
) -> None:
    made = new_trainer(tokenizer, tmp_path / "run")
    result = made.train_from_config(shape(tokenizer), source(corpus))
    assert result.steps == 5
    assert result.evaluation["bits_per_byte"] > 0
    assert made.evaluate()["loss"] == pytest.approx(result.evaluation["loss"])
    assert {p.name.partition("-")[0] for p in (tmp_path / "run" / "data").iterdir()} == {
        "lock", "packed", "raw",
    }  # fmt: skip
    again = new_trainer(tokenizer, tmp_path / "again")
    again.train_dataset, again.eval_dataset = made.train_dataset, made.eval_dataset
    again.train()
    for a, b in zip(made.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_from_config_goes_on_where_it_was(
    tmp_path: Path, corpus: Path, tokenizer: BPETokenizer
) -> None:
    first = new_trainer(tokenizer, tmp_path / "parts", max_steps=3, lr_scheduler="constant")
    first.train_from_config(shape(tokenizer), source(corpus))
    second = new_trainer(tokenizer, tmp_path / "parts", lr_scheduler="constant")
    second.train_from_config(shape(tokenizer), source(corpus), "auto")
    assert second.state.history[:3] == first.state.history
    assert len(second.state.history) == 5


def test_unpacked_documents_can_be_trained_on(
    tmp_path: Path, corpus: Path, tokenizer: BPETokenizer
) -> None:
    made = new_trainer(tokenizer, tmp_path)
    made.train_from_config(shape(tokenizer), source(corpus, pack_sequences=False, max_length=32))
    assert math.isfinite(made.state.history[-1][0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"d_ff": 64, "n_layers": 1},
            "n_layers: the model has 2, model_config says 1; d_ff: .*64",
        ),
        ({"d_model": 15}, "must be divisible by n_heads"),
    ],
    ids=["other", "impossible"],
)
def test_another_model_config_is_refused(
    tmp_path: Path, corpus: Path, tokenizer: BPETokenizer, changes: dict[str, Any], message: str
) -> None:
    config = shape(tokenizer)
    made = new_trainer(tokenizer, tmp_path)
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ModelConfigurationError, match=message):
        made.train_from_config(config, source(corpus))
    assert not (tmp_path / "data").exists(), "refused before any work"


def test_a_config_changed_after_the_model_was_made_is_refused(
    tmp_path: Path, corpus: Path, tokenizer: BPETokenizer
) -> None:
    made = new_trainer(tokenizer, tmp_path)
    config = made.model.config
    config.vocab_size += 8
    with pytest.raises(ModelConfigurationError, match="changed after the model was made"):
        made.train_from_config(config, source(corpus))


def test_bad_data_is_refused_before_any_work(
    tmp_path: Path, corpus: Path, tokenizer: BPETokenizer
) -> None:
    made = new_trainer(tokenizer, tmp_path / "run")
    with pytest.raises(TrainingError, match=r"max_length \(64\) is above the model's max_seq_len"):
        made.train_from_config(shape(tokenizer), source(corpus, max_length=64))
    with pytest.raises(DataError, match="no such file"):
        made.train_from_config(shape(tokenizer), source(corpus / "missing"))


def test_from_pretrained_trains_on(tmp_path: Path, corpus: Path, tokenizer: BPETokenizer) -> None:
    first = new_trainer(tokenizer, tmp_path / "first")
    first.train_from_config(shape(tokenizer), source(corpus))
    first.save_model(tmp_path / "model")
    config = settings(tmp_path / "second")
    second = Trainer.from_pretrained(tmp_path / "model", tmp_path / "model" / "tokenizer", config)
    second.eval_dataset = first.eval_dataset
    assert second.evaluate() == first.evaluate()
    second.train_from_config(shape(tokenizer), source(corpus))
    assert second.state.history[0][0] < first.state.history[0][0]
    other = BPETokenizer()
    other.train(TEXTS[:3], vocab_size=280)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(IntegrityError, match="tokenizer"):
        Trainer.from_pretrained(str(tmp_path / "model"), str(tmp_path / "other"), config)


def test_methods_of_the_loop_work_on_their_own(tmp_path: Path, tokenizer: BPETokenizer) -> None:
    rows = LanguageModelingDataset(TEXTS, tokenizer, max_length=16)

    def fresh() -> Trainer:
        torch.manual_seed(1)
        model = TransformerLM(shape(tokenizer))
        config = settings(tmp_path, max_steps=None, num_epochs=2, batch_size=16)
        return Trainer(model, tokenizer, config, rows, rows, device="cpu")

    made = fresh()
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        made._load_checkpoint()
    before = made._evaluate()["loss"]
    made._train_epoch()
    assert made.state.step == -(-len(rows) // 16)
    assert made._evaluate()["loss"] < before
    path = made._save_checkpoint()
    assert list_checkpoints(tmp_path) == [path]
    loaded = fresh()
    assert loaded._load_checkpoint() == path
    assert loaded.state == made.state
    for a, b in zip(made.model.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(a, b)
    loaded._train_epoch()
    result = fresh().train(path)
    assert result.steps == loaded.state.step == 2 * made.state.step
    assert fresh()._load_checkpoint() == tmp_path / f"checkpoint-{result.steps}"
