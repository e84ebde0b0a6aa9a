"""Tokenizers that many tests share; nobody changes them."""

from __future__ import annotations

import pytest

from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.tokenizer.patterns import PatternName
from tests.tokenizer.texts import CORPUS, library_files


def trained(pattern: PatternName) -> BPETokenizer:
    tokenizer = BPETokenizer()
    tokenizer.train(CORPUS + library_files(60), 1500, pattern=pattern)
    return tokenizer


@pytest.fixture(scope="session")
def gpt2() -> BPETokenizer:
    return trained("gpt2")


@pytest.fixture(scope="session")
def gpt4() -> BPETokenizer:
    return trained("gpt4")


@pytest.fixture(scope="session", params=["gpt2", "gpt4"])
def tokenizer(request: pytest.FixtureRequest) -> BPETokenizer:
    """Both, one after the other."""
    found: BPETokenizer = request.getfixturevalue(request.param)
    return found
