"""Generation and training timings: what they count, and that they leave what they should."""

from __future__ import annotations

import copy
import logging
import time

import pytest
import torch

from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.models import TransformerLM
from llm_trainer.training.benchmark import benchmark_training
from llm_trainer.utils.benchmarking import (
    GenerationTiming,
    benchmark_generation,
    directory_bytes,
    generation_metrics,
)


def model(**changes) -> TransformerLM:
    values = {
        "vocab_size": 300, "d_model": 32, "n_heads": 2, "n_layers": 2, "d_ff": 64,
        "max_seq_len": 64, "dropout": 0.0, "attention_dropout": 0.0,
    }  # fmt: skip
    return TransformerLM(ModelConfig(**(values | changes)))


def bench(made, **changes):
    options = {
        "batch_sizes": [1, 3],
        "prompt_tokens": 8,
        "new_tokens": 5,
        "repeats": 3,
        "warmup": 1,
    }
    return benchmark_generation(made, **(options | changes))


def test_every_case_is_timed_and_the_model_is_left_alone():
    made = model().train()
    weights = copy.deepcopy(made.state_dict())
    state = torch.get_rng_state()
    timings = bench(made)
    assert [(t.batch_size, t.cached) for t in timings] == [
        (1, True), (1, False), (3, True), (3, False),
    ]  # fmt: skip
    for timing in timings:
        assert (timing.prompt_tokens, timing.new_tokens) == (8, 5)
        assert 0 < timing.first_token_seconds < 5
        assert timing.total_seconds > 0
    assert made.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[k], v) for k, v in made.state_dict().items())


def test_every_run_generates_all_tokens_even_if_one_is_the_end_token():
    lengths = []
    made = model()
    inner = made.hidden_states

    def counted(*arguments, **keywords):
        lengths.append(arguments[0].shape)
        return inner(*arguments, **keywords)

    made.hidden_states = counted
    torch.nn.init.zeros_(made.head.weight)  # the likeliest token is always 0, the end of a text
    bench(made, batch_sizes=[2], repeats=1, warmup=0)
    # with cache: the prompt, then one token at a time; without: the whole row each time
    assert [tuple(shape) for shape in lengths] == [
        (2, 8),
        (2, 8), (2, 1), (2, 1), (2, 1), (2, 1),
        (2, 8),
        (2, 8), (2, 9), (2, 10), (2, 11), (2, 12),
    ]  # fmt: skip


def test_the_median_of_the_repeats_counts():
    made = model()
    inner, calls = made.hidden_states, []

    def slow_once(*arguments, **keywords):
        calls.append(1)
        if len(calls) in (1, 3):  # the warm-up and the second of three timed runs
            time.sleep(0.5)
        return inner(*arguments, **keywords)

    made.hidden_states = slow_once
    timing = bench(made, batch_sizes=[1], new_tokens=2)[0]
    assert timing.first_token_seconds < 0.25


def test_metrics_by_hand():
    cached = GenerationTiming(4, True, 8, 11, first_token_seconds=0.1, total_seconds=0.6)
    plain = GenerationTiming(4, False, 8, 11, first_token_seconds=0.1, total_seconds=2.4)
    metrics = generation_metrics([cached, plain])
    assert metrics["generate_batch_4_tokens_per_second"] == pytest.approx(44 / 0.6)
    assert metrics["generate_batch_4_first_token_ms"] == 100
    assert metrics["generate_batch_4_token_ms"] == pytest.approx(50)
    assert metrics["generate_batch_4_uncached_token_ms"] == pytest.approx(230)
    assert metrics["generate_batch_4_cache_speedup"] == pytest.approx(4)


@pytest.mark.parametrize(
    ("asked", "limit", "got"),
    [((8, 5), 64, (8, 5)), ((60, 60), 64, (32, 32)), ((4, 500), 64, (4, 60)), ((9, 9), 2, (1, 1))],
)
def test_prompts_and_new_tokens_fit_the_context(caplog, asked, limit, got):
    with caplog.at_level(logging.WARNING):
        timing = bench(
            model(max_seq_len=limit), prompt_tokens=asked[0], new_tokens=asked[1],
            batch_sizes=[1], repeats=1, warmup=0,
        )[0]  # fmt: skip
    assert (timing.prompt_tokens, timing.new_tokens) == got
    assert bool(caplog.records) == (asked != got)


def test_directory_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"123")
    (tmp_path / "y").write_bytes(b"4567")
    assert directory_bytes(tmp_path) == 7


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_training_steps_train(optimizer):
    made = model()
    before = copy.deepcopy(made.state_dict())
    config = TrainingConfig(optimizer=optimizer, learning_rate=0.01, max_steps=5)
    timing = benchmark_training(made, config, batch_size=2, steps=3, warmup=1)
    assert timing.tokens_per_step == 2 * 64
    assert timing.step_seconds_min <= timing.step_seconds <= timing.step_seconds_max
    assert 0 < timing.mfu < 1
    assert timing.tokens_per_second == timing.tokens_per_step / timing.step_seconds
    assert not any(torch.equal(before[name], p) for name, p in made.named_parameters())
    assert all(torch.isfinite(p).all() for p in made.parameters())


def test_training_runs_in_the_precision_that_the_model_was_trained_in():
    config = TrainingConfig(use_amp=False, max_steps=5, deterministic=False)
    timing = benchmark_training(model(), config, batch_size=1, steps=1, warmup=0)
    assert (timing.dtype, timing.deterministic, timing.compiled) == ("float32", False, False)
    assert not torch.are_deterministic_algorithms_enabled()
