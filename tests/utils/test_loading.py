"""A model and its tokenizer belong together: refused otherwise, and loaded as a pair."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from llm_trainer.exceptions import (
    IntegrityError,
    TokenizerError,
    TokenizerNotTrainedException,
)
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.utils.generation import GenerationConfig, TextGenerator
from llm_trainer.utils.loading import load_model_and_tokenizer
from tests.utils.tiny_text_model import TEXTS, greedy, tiny_text_model, tiny_tokenizer

PROMPTS = ["def add", "", "你好 and", "for name in names:\n    print"]


def test_another_tokenizer_is_refused_by_digest() -> None:
    model = tiny_text_model()
    other = BPETokenizer()
    other.train([*TEXTS, "something else entirely, and more of it"] * 2, 300)
    assert other.digest != model.tokenizer_digest
    with pytest.raises(IntegrityError) as caught:
        TextGenerator(model, other)
    assert other.digest in str(caught.value)
    assert str(model.tokenizer_digest) in str(caught.value)
    model.tokenizer_digest = None
    TextGenerator(model, other)


def test_vocabularies_must_fit(caplog: pytest.LogCaptureFixture) -> None:
    small = tiny_text_model(vocab_size=280)
    small.tokenizer_digest = None
    with pytest.raises(IntegrityError, match="300 tokens, but the model knows 280"):
        TextGenerator(small, tiny_tokenizer())
    large = tiny_text_model(vocab_size=420)
    large.tokenizer_digest = None
    with caplog.at_level(logging.WARNING):
        generator = TextGenerator(large, tiny_tokenizer())
        TextGenerator(large, tiny_tokenizer())
    assert len(caplog.records) == 1
    for config in (
        greedy(),
        GenerationConfig(seed=0),
        greedy(num_beams=3),
        greedy(use_cache=False),
    ):
        made = generator.complete(PROMPTS, config.replace(max_new_tokens=100))
        assert max(max(one.token_ids) for one in made) < 300


def test_an_untrained_tokenizer_is_refused() -> None:
    with pytest.raises(TokenizerNotTrainedException):
        TextGenerator(tiny_text_model(), BPETokenizer())


def save_pair(directory: Path, *, inside: bool = True) -> Path:
    from llm_trainer.models.storage import save_model

    tokenizer = tiny_tokenizer()

    def add(target: Path) -> None:
        tokenizer.save_pretrained(target / "tokenizer")
        if not inside:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (target / "tokenizer" / name).rename(target / name)
            (target / "tokenizer" / "manifest.json").unlink()
            (target / "tokenizer").rmdir()

    save_model(tiny_text_model(), directory, add)
    return directory


@pytest.mark.parametrize("inside", [True, False], ids=["tokenizer-directory", "beside"])
def test_loading_a_pair(generator: TextGenerator, tmp_path: Path, inside: bool) -> None:
    path = save_pair(tmp_path / "model", inside=inside)
    model, tokenizer = load_model_and_tokenizer(path, "cpu")
    assert not model.training
    loaded = TextGenerator(model, tokenizer)
    assert loaded.generate("def", greedy()) == generator.generate("def", greedy())


def test_loading_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path = save_pair(tmp_path / "model")
    other = BPETokenizer()
    other.train(["other text altogether " * 9], 280)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(IntegrityError, match=other.digest):
        load_model_and_tokenizer(path, "cpu", tokenizer_path=tmp_path / "other")
    with pytest.raises(IntegrityError, match="no such model directory"):
        load_model_and_tokenizer(tmp_path / "nowhere", "cpu")
    tiny_text_model().save_pretrained(tmp_path / "bare")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_model_and_tokenizer(tmp_path / "bare", "cpu")
