"""Saving into a directory: a model or a tokenizer is replaced, nothing else is ever lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_trainer.config import ModelConfig
from llm_trainer.exceptions import IntegrityError, LLMTrainerError
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer


@pytest.fixture
def model() -> TransformerLM:
    return TransformerLM(ModelConfig(vocab_size=300, d_model=8, n_heads=2, n_layers=1, d_ff=8))


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    made = BPETokenizer()
    made.train(["some text to train on, some of it twice"] * 3, vocab_size=262)
    return made


@pytest.mark.parametrize("order", ["model first", "tokenizer first"])
def test_model_and_tokenizer_may_be_saved_one_by_one(
    tmp_path: Path, model: TransformerLM, tokenizer: BPETokenizer, order: str
) -> None:
    if order == "model first":
        model.save_pretrained(tmp_path / "m")
        tokenizer.save_pretrained(tmp_path / "m" / "tokenizer")
    else:
        tokenizer.save_pretrained(tmp_path / "m" / "tokenizer")
        model.save_pretrained(tmp_path / "m")
    for _ in range(2):
        TransformerLM.from_pretrained(tmp_path / "m")
        assert BPETokenizer.from_pretrained(tmp_path / "m").digest == tokenizer.digest
        model.save_pretrained(tmp_path / "m")


def test_other_files_are_never_deleted(tmp_path: Path, model: TransformerLM) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(LLMTrainerError, match=r"holds other files \(thesis\.tex\)"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(LLMTrainerError, match=r"notes\.txt"):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(IntegrityError, match="not listed"):
        TransformerLM.from_pretrained(tmp_path / "model")


def test_files_in_a_folder_without_a_manifest_are_still_unknown(
    tmp_path: Path, model: TransformerLM
) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(IntegrityError, match="not listed"):
        TransformerLM.from_pretrained(tmp_path)


def test_weights_are_as_readable_as_the_other_files(model: TransformerLM, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert set(modes.values()) == {0o640}, modes
