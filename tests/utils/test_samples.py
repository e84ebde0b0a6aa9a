"""Samples are reproducible, independent of each other, and readable; Python is told from noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_trainer.config import EvaluationConfig, ModelConfig
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.utils.python_text import parsed_share
from llm_trainer.utils.samples import (
    Sample,
    draw_samples,
    sample_metrics,
    samples_markdown,
    samples_table,
)


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    made = BPETokenizer()
    made.train(["def f(x):\n    return x + 1\n" * 20], 280)
    return made


@pytest.fixture(scope="module")
def model(tokenizer) -> TransformerLM:
    torch.manual_seed(1)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=32, n_heads=2, n_layers=2, d_ff=64,
        max_seq_len=64, init_std=0.2,
    )  # fmt: skip
    return TransformerLM(config)


def config(**changes) -> EvaluationConfig:
    values = {"prompts": ["def ", "", "return"], "samples_per_prompt": 2, "max_new_tokens": 10}
    return EvaluationConfig(**(values | changes))


def test_order_count_and_lengths(model, tokenizer):
    samples = draw_samples(model, tokenizer, config())
    assert [s.prompt for s in samples] == ["def ", "def ", "", "", "return", "return"]
    for sample in samples:
        assert 1 <= sample.tokens <= 10
        assert sample.finish in ("end", "length")
        assert sample.finish == "end" or sample.tokens == 10
        assert "<|endoftext|>" not in sample.text


def test_the_seed_decides_and_the_callers_random_state_does_not(model, tokenizer):
    torch.manual_seed(5)
    first = draw_samples(model, tokenizer, config())
    torch.manual_seed(6)
    assert draw_samples(model, tokenizer, config()) == first
    assert draw_samples(model, tokenizer, config(seed=1)) != first
    assert first[0] != first[1]  # two samples of one prompt are two samples


def test_a_prompt_more_changes_no_other_sample(model, tokenizer):
    few = draw_samples(model, tokenizer, config(prompts=["def "]))
    more = draw_samples(model, tokenizer, config(prompts=["import", "def "]))
    assert more[2:] == few


def test_temperature_zero_is_greedy(model, tokenizer):
    samples = draw_samples(model, tokenizer, config(temperature=0.0, prompts=["def "]))
    assert samples[0] == samples[1]
    ids = tokenizer.encode("def ", add_special_tokens=False)
    with torch.inference_mode():
        best = int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax())
    assert tokenizer.decode([best]) == samples[0].text[: len(tokenizer.decode([best]))]


def test_metrics_are_flat_numbers(model, tokenizer):
    samples = draw_samples(model, tokenizer, config())
    metrics = sample_metrics(samples)
    assert all(isinstance(value, float) for value in metrics.values())
    assert all(name.startswith("sample_") for name in metrics)
    assert metrics["sample_tokens_mean"] == sum(s.tokens for s in samples) / 6
    assert "sample_python_lines" not in metrics
    assert 0 <= sample_metrics(samples, python=True)["sample_python_lines"] <= 1


def test_metrics_tell_repetition_from_variety():
    varied = [Sample("", "the quick brown fox jumps over a lazy dog", 9, "length")]
    stuck = [Sample("", "the the the the the the the the the", 9, "end")]
    better, worse = sample_metrics(varied), sample_metrics(stuck)
    distinct = [name for name in better if "distinct" in name]
    assert distinct
    assert all(better[name] > worse[name] for name in distinct)
    assert (better["sample_ended_share"], worse["sample_ended_share"]) == (0, 1)


def test_page_and_table():
    samples = [
        Sample("def ", "f():\n    '''```'''\n", 7, "end"),
        Sample("def ", "g", 1, "length"),
        Sample("", "x", 1, "length"),
    ]
    page = samples_markdown(samples)
    assert page.count('## "def "') == 1
    assert '## ""' in page
    assert "````\ndef f():\n    '''```'''\n\n````" in page  # a fence that the text does not close
    assert samples_table(samples)[1] == {
        "prompt": "def ", "text": "g", "tokens": 1, "finish": "length",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("x = 1\ny = 2\n", 1.0),
        ("def f(x):\n    return x\n\ndef g(", 2 / 3),
        ("import os\nx = = 3\ny = 1", 1 / 3),
        ("    x = 1\n    y = 2", 1.0),  # a common indentation
        ("", 0.0),
        ("\n \n", 0.0),
        ("not valid here either(", 0.0),
        ("x = '\\d'\n", 1.0),  # a warning of the parser's is no error
        ("a\0b", 0.0),
    ],
)
def test_parsed_share(text, share):
    assert parsed_share(text) == pytest.approx(share)


@given(st.text(max_size=200))
def test_any_text_has_a_share(text):
    assert 0.0 <= parsed_share(text) <= 1.0
