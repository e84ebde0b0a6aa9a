"""What the tests of generation share."""

from __future__ import annotations

import pytest

from llm_trainer.utils.generation import TextGenerator
from tests.utils.tiny_text_model import tiny_text_model, tiny_tokenizer


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    return TextGenerator(tiny_text_model(), tiny_tokenizer())
