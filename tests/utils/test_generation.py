"""TextGenerator: text in, text out; pairs, streams, stop texts, batches; the session."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import llm_trainer.models.sampling as samplers
from llm_trainer.exceptions import (
    GenerationError,
    TokenizerError,
)
from llm_trainer.utils import generation
from llm_trainer.utils.generation import GenerationConfig, TextGenerator
from tests.utils.tiny_text_model import greedy

ROOT = Path(__file__).parents[2]
PROMPTS = ["def add", "", "你好 and", "for name in names:\n    print"]


# --------------------------------------------------------------------------- text in, text out


def test_text_is_the_decoded_continuation_of_the_encoded_prompt(generator: TextGenerator) -> None:
    tokenizer = generator.tokenizer
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt, add_special_tokens=False) or [tokenizer.end_id]
        out = generator.model.generate(
            torch.tensor([ids]), max_new_tokens=30, do_sample=False, end_id=tokenizer.end_id
        )
        new = out[0, len(ids) :].tolist()
        assert generator.generate(prompt, greedy()) == prompt + tokenizer.decode(new)
        (made,) = generator.complete([prompt], greedy())
        assert made.token_ids == new
        assert made.text == tokenizer.decode(new)


def test_a_batch_equals_one_by_one(generator: TextGenerator) -> None:
    for config in (greedy(), greedy(num_beams=3), greedy(repetition_penalty=1.2)):
        batch = generator.batch_generate(PROMPTS, config)
        assert batch == [generator.generate(prompt, config) for prompt in PROMPTS]


def test_the_end_token_ends_a_text_and_is_not_part_of_it(generator: TextGenerator) -> None:
    config = GenerationConfig(max_new_tokens=60, seed=0)
    texts = [f"prompt {i}" for i in range(60)]
    made = generator.complete(texts, config)
    ended = [one for one in made if one.reason == "end"]
    assert ended
    for one in ended:
        assert one.token_ids[-1] == generator.tokenizer.end_id
        assert generator.tokenizer.end_id not in one.token_ids[:-1]
        assert "endoftext" not in one.text
    assert all(len(one.token_ids) == 60 for one in made if one.reason == "length")


def test_defaults_and_seeds(generator: TextGenerator) -> None:
    ids = generator.tokenizer.encode("def", add_special_tokens=False)
    (made,) = generator.complete(["def"], GenerationConfig(seed=1))
    assert len(ids) + len(made.token_ids) <= 100
    assert generator.generate("def", GenerationConfig(seed=1)) == "def" + made.text
    assert generator.generate("def", GenerationConfig(seed=2)) != "def" + made.text
    assert generator.generate("def").startswith("def")


def test_the_spelling_of_a_control_token_is_text(generator: TextGenerator) -> None:
    assert generator.generate("<|endoftext|>", greedy()).startswith("<|endoftext|>")


# --------------------------------------------------------------------------- streaming, stops


@pytest.mark.parametrize("config", [
    greedy(), greedy(num_beams=2), GenerationConfig(seed=3, max_new_tokens=40),
    GenerationConfig(seed=3, max_new_tokens=40, stop=["a", "\n"]),
])  # fmt: skip
def test_streamed_text_is_the_final_text(
    generator: TextGenerator, config: GenerationConfig
) -> None:
    shown = [""] * len(PROMPTS)
    pieces = 0

    def on_text(row: int, text: str) -> None:
        nonlocal pieces
        assert text
        pieces += 1
        shown[row] += text

    texts = generator.batch_generate(PROMPTS, config, on_text=on_text)
    assert [prompt + text for prompt, text in zip(PROMPTS, shown, strict=True)] == texts
    assert texts == generator.batch_generate(PROMPTS, config)
    assert pieces > len(PROMPTS)


@pytest.mark.parametrize("seed", range(5))
def test_streams_never_show_half_a_character(generator: TextGenerator, seed: int) -> None:
    """A random model over bytes makes all kinds of broken characters."""
    pieces: list[str] = []
    config = GenerationConfig(seed=seed, max_new_tokens=80)
    (made,) = generator.complete(["🙂"], config, on_text=lambda _, text: pieces.append(text))
    assert made.text == generator.tokenizer.decode(made.token_ids)
    shown = ""
    for piece in pieces:
        shown += piece
        assert made.text.startswith(shown)


@pytest.mark.parametrize("beams", [1, 2])
def test_stop_texts(generator: TextGenerator, beams: int) -> None:
    config = greedy(num_beams=beams, max_new_tokens=40)
    (free,) = generator.complete(["def add"], config)
    stop = free.text[6:9]
    (made,) = generator.complete(["def add"], config.replace(stop=["no such text", stop]))
    assert made.reason == "stop"
    assert made.text == free.text[: free.text.index(stop)]
    if beams == 1:
        assert made.token_ids == free.token_ids[: len(made.token_ids)]
        assert len(made.token_ids) < len(free.token_ids), "generation really ended"
    (other,) = generator.complete(["def add"], config.replace(stop=["no such text"]))
    assert (other.text, other.reason) == (free.text, free.reason)


def test_stop_texts_are_looked_for_in_new_text_only(generator: TextGenerator) -> None:
    (free,) = generator.complete(["def add"], greedy())
    assert "def add" not in free.text
    (made,) = generator.complete(["def add"], greedy(stop=["def", "d" + free.text[:1]]))
    assert made.text == free.text[: free.text.index("def")] if "def" in free.text else free.text


def test_rows_stop_each_on_their_own(generator: TextGenerator) -> None:
    free = generator.complete(PROMPTS, greedy(max_new_tokens=40))
    stop = [free[0].text[10:12], free[2].text[20:22]]
    made = generator.complete(PROMPTS, greedy(max_new_tokens=40, stop=stop))
    for one, whole in zip(made, free, strict=True):
        cuts = [whole.text.index(text) for text in stop if text in whole.text]
        assert one.text == (whole.text[: min(cuts)] if cuts else whole.text)


# --------------------------------------------------------------------------- limits


def test_a_long_prompt_is_kept_in_the_text(
    generator: TextGenerator, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = "the quick brown fox " * 60
    with caplog.at_level(logging.WARNING):
        text = generator.generate(prompt, greedy(max_new_tokens=5))
    assert text.startswith(prompt)
    assert len(caplog.records) == 1
    assert "only the last 123 are used" in caplog.text


@pytest.mark.parametrize(("prompts", "words"), [
    ([], ["empty"]), ("text", ["list of texts"]), ([1, "a"], ["number 0 is 1"]),
    ([b"x"], ["b'x'"]), ([None], ["None"]),
])  # fmt: skip
def test_impossible_prompts_are_named(
    generator: TextGenerator, prompts: list[str], words: list[str]
) -> None:
    with pytest.raises(GenerationError) as caught:
        generator.batch_generate(prompts)
    assert all(word in str(caught.value) for word in ["prompts", *words])


def test_other_errors(generator: TextGenerator) -> None:
    with pytest.raises(TokenizerError, match="surrogate"):
        generator.generate("a\ud800b")
    with pytest.raises(GenerationError, match="top_k"):
        generator.generate("a", GenerationConfig(top_k=0))


def test_samplers_are_the_models_own() -> None:
    for name in ("sample_top_k", "sample_top_p", "apply_repetition_penalty", "create_causal_mask"):
        assert getattr(generation, name) is getattr(samplers, name)
