"""What the decoding loop refuses: settings, prompts, masks, NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llm_trainer.exceptions import GenerationError
from llm_trainer.models.decoding import GenerationConfig, generate
from tests.models.twin import tiny_model


@pytest.mark.parametrize(("settings", "words"), [
    ({"max_length": 0}, ["max_length (0)"]),
    ({"max_new_tokens": 0}, ["max_new_tokens (0)"]),
    ({"temperature": -1}, ["temperature (-1.0)", "0 is greedy"]),
    ({"temperature": float("nan")}, ["temperature", "nan"]),
    ({"temperature": "hot"}, ["temperature", "'hot'"]),
    ({"top_k": 0}, ["top_k (0)", "None"]),
    ({"top_k": 1.5}, ["top_k", "1.5"]),
    ({"top_p": 0.0}, ["top_p (0.0)"]),
    ({"top_p": 1.1}, ["top_p (1.1)"]),
    ({"num_beams": 0}, ["num_beams (0)"]),
    ({"repetition_penalty": 0}, ["repetition_penalty (0.0)", "1 is off"]),
    ({"length_penalty": float("inf")}, ["length_penalty", "inf"]),
    ({"early_stopping": "later"}, ["early_stopping", "never"]),
    ({"do_sample": "yes"}, ["do_sample", "'yes'"]),
    ({"seed": -1}, ["seed (-1)"]),
    ({"seed": 2**64}, ["seed"]),
    ({"stop": [""]}, ["stop"]),
    ({"stop": [1]}, ["stop", "1"]),
    ({"temprature": 1.0}, ["temprature", "did you mean 'temperature'"]),
    ({"temperature": -1, "top_k": 0, "top_p": 2}, ["temperature", "top_k", "top_p"]),
    ({"stop": "x"}, ["stop", "TextGenerator"]),
    ({"end_id": 50}, ["end_id (50)", "vocab_size (50)"]),
    ({"pad_id": 99}, ["pad_id (99)"]),
])  # fmt: skip
def test_nonsense_settings_are_named(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(GenerationError) as caught:
        tiny_model().generate(torch.ones(1, 3, dtype=torch.long), **settings)
    assert all(word in str(caught.value) for word in words), caught.value


def test_settings_that_were_changed_later_are_checked_again() -> None:
    config = GenerationConfig()
    config.top_k = -3
    with pytest.raises(GenerationError, match="top_k"):
        generate(tiny_model(), torch.ones(1, 3, dtype=torch.long), None, config)


@pytest.mark.parametrize(("ids", "mask", "words"), [
    (torch.ones(3, dtype=torch.long), None, ["(3,)", "(batch, time)"]),
    (torch.ones(1, 3), None, ["float32"]),
    (torch.ones(1, 0, dtype=torch.long), None, ["(1, 0)", "end token"]),
    (torch.ones(0, 3, dtype=torch.long), None, ["(0, 3)"]),
    (torch.full((1, 3), 50), None, ["50", "0 to 49", "tokenizer"]),
    (torch.full((1, 3), -1), None, ["-1"]),
    (torch.ones(1, 3, dtype=torch.long), torch.tensor([[1, 1, 0]]), ["left"]),
    (torch.ones(1, 3, dtype=torch.long), torch.tensor([[1, 0, 1]]), ["left"]),
    (torch.ones(1, 3, dtype=torch.long), torch.tensor([[0, 0, 0]]), ["left"]),
    (torch.ones(1, 3, dtype=torch.long), torch.ones(1, 4), ["(1, 4)", "(1, 3)"]),
])  # fmt: skip
def test_impossible_prompts_are_named(ids: Tensor, mask: Tensor | None, words: list[str]) -> None:
    with pytest.raises(GenerationError) as caught:
        generate(tiny_model(), ids, mask)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("settings", [{"seed": 0}, {"do_sample": False}, {"num_beams": 2}])
def test_nan_logits_are_refused(settings: dict[str, Any]) -> None:
    model = tiny_model()
    model.blocks[1].attention.out.weight.data[0, 0] = float("nan")
    with pytest.raises(GenerationError, match="NaN"):
        model.generate(torch.ones(1, 3, dtype=torch.long), **settings)
    shown: list[Any] = []
    if "num_beams" not in settings:
        with pytest.raises(GenerationError, match="NaN"):
            model.generate(torch.ones(1, 3, dtype=torch.long), streamer=shown.append, **settings)
    assert not shown
