"""Logits functions against Hugging Face's processors, closed forms and statistics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_trainer.config.generation import GenerationConfig
from llm_trainer.exceptions import GenerationError
from llm_trainer.models import sampling
from llm_trainer.models.sampling import (
    DRAWS_AT_ONCE,
    UniformStreams,
    apply_repetition_penalty,
    apply_temperature,
    create_causal_mask,
    draw,
    filter_logits,
    sample_top_k,
    sample_top_p,
)

transformers = pytest.importorskip("transformers")
from transformers.generation import logits_process as theirs  # noqa: E402

CPU = torch.device("cpu")


def random_logits(seed: int, rows: int, vocab_size: int, *, ties: bool) -> Tensor:
    logits = 3 * torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed))
    return logits.round() if ties else logits


cases = st.tuples(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 40), st.booleans())


@settings(max_examples=200)
@given(case=cases, k=st.integers(1, 50))
def test_top_k_equals_transformers(case: tuple[int, int, int, bool], k: int) -> None:
    seed, rows, vocab_size, ties = case
    logits = random_logits(seed, rows, vocab_size, ties=ties)
    expected = theirs.TopKLogitsWarper(k)(None, logits.clone())
    assert torch.equal(sample_top_k(logits, k), expected)


@settings(max_examples=200)
@given(case=cases, p=st.sampled_from([0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]))
def test_top_p_equals_transformers(case: tuple[int, int, int, bool], p: float) -> None:
    seed, rows, vocab_size, ties = case
    logits = random_logits(seed, rows, vocab_size, ties=ties)
    expected = theirs.TopPLogitsWarper(p)(None, logits.clone())
    actual = sample_top_p(logits, p)
    if ties:  # which one of equal logits goes is not defined there; here the last one goes first
        expected = expected.sort(dim=-1).values
        for row, kept in zip(logits, actual.isfinite(), strict=True):
            for value in row.unique():
                flags = kept[row == value].tolist()
                assert flags == sorted(flags, reverse=True)
        actual = actual.sort(dim=-1).values
    assert torch.equal(actual, expected)


@settings(max_examples=200)
@given(case=cases, penalty=st.sampled_from([0.5, 1.0, 1.1, 2.0, 10.0]), length=st.integers(1, 12))
def test_repetition_penalty_equals_transformers(
    case: tuple[int, int, int, bool], penalty: float, length: int
) -> None:
    seed, rows, vocab_size, ties = case
    logits = random_logits(seed, rows, vocab_size, ties=ties)
    ids = torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
    expected = theirs.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    torch.testing.assert_close(apply_repetition_penalty(logits, ids, penalty), expected)


@pytest.mark.parametrize("temperature", [0.1, 0.8, 1.0, 3.0])
def test_temperature_equals_transformers(temperature: float) -> None:
    logits = random_logits(0, 3, 20, ties=False)
    expected = theirs.TemperatureLogitsWarper(temperature)(None, logits.clone())
    assert torch.equal(apply_temperature(logits, temperature), expected)


def test_filters_in_a_row_equal_transformers() -> None:
    logits = random_logits(1, 4, 60, ties=False)
    expected = theirs.TemperatureLogitsWarper(0.7)(None, logits.clone())
    expected = theirs.TopKLogitsWarper(20)(None, expected)
    expected = theirs.TopPLogitsWarper(0.8)(None, expected)
    config = GenerationConfig(temperature=0.7, top_k=20, top_p=0.8)
    assert torch.equal(filter_logits(logits, config), expected)


def test_inputs_stay_as_they_are_and_one_row_needs_no_batch() -> None:
    logits = random_logits(2, 1, 10, ties=False)
    before = logits.clone()
    ids = torch.tensor([[1, 2, 2]])
    assert torch.equal(sample_top_k(logits, 3)[0], sample_top_k(logits[0], 3))
    assert torch.equal(sample_top_p(logits, 0.5)[0], sample_top_p(logits[0], 0.5))
    batched = apply_repetition_penalty(logits, ids, 2.0)
    assert torch.equal(batched[0], apply_repetition_penalty(logits[0], ids[0], 2.0))
    assert torch.equal(logits, before)


def test_padding_is_not_penalised() -> None:
    logits = random_logits(3, 2, 10, ties=False)
    ids = torch.tensor([[7, 7, 1, 2], [3, 4, 5, 6]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    changed = apply_repetition_penalty(logits, ids, 2.0, mask)
    assert changed[0, 7] == logits[0, 7]
    assert torch.equal(changed[0], apply_repetition_penalty(logits[:1], ids[:1, 2:], 2.0)[0])
    assert torch.equal(changed[1], apply_repetition_penalty(logits[1:], ids[1:], 2.0)[0])


def test_causal_mask() -> None:
    mask = create_causal_mask(4)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[key <= query for key in range(4)] for query in range(4)]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: sample_top_k(x, 0), ["k (0)", "from 1"]),
        (lambda x: sample_top_k(x, 2.5), ["k (2.5)"]),
        (lambda x: sample_top_k(x, True), ["k (True)"]),
        (lambda x: sample_top_p(x, 1.5), ["p (1.5)", "0 to 1"]),
        (lambda x: sample_top_p(x, -0.1), ["p (-0.1)"]),
        (lambda x: sample_top_p(x, float("nan")), ["p (nan)"]),
        (lambda x: sample_top_p(x, "0.9"), ["p ('0.9')"]),
        (lambda x: apply_temperature(x, 0), ["temperature (0)", "above 0"]),
        (lambda x: apply_repetition_penalty(x, torch.tensor([[1]]), 0), ["penalty (0)", "above 0"]),
        (lambda x: apply_repetition_penalty(x, torch.tensor([[9]]), 2), ["9", "0 to 4"]),
        (lambda x: create_causal_mask(0), ["size (0)"]),
        (lambda x: sample_top_k(x.log(), 2), ["NaN", "checkpoint"]),
        (lambda x: sample_top_p(x.log(), 0.5), ["NaN"]),
        (lambda x: apply_temperature(x.log(), 0.5), ["NaN"]),
        (lambda x: apply_repetition_penalty(x.log(), torch.tensor([[1]]), 2), ["NaN"]),
    ],
)
def test_nonsense_is_named(call: Callable[[Tensor], object], words: list[str]) -> None:
    with pytest.raises(GenerationError) as caught:
        call(-torch.ones(1, 5))
    assert all(word in str(caught.value) for word in words)


# --------------------------------------------------------------------------- drawing


def test_draw_is_the_inverse_of_the_distribution() -> None:
    logits = torch.tensor([[0.0, 0.5, 0.0, 0.2]]).log()
    uniform = torch.tensor([0.0, 0.1, 0.7, 0.72, 0.999999], dtype=torch.float64)
    tokens = draw(logits.expand(5, -1), uniform)
    assert tokens.tolist() == [1, 1, 1, 3, 3]


def test_draw_never_leaves_the_support() -> None:
    """At both ends of the unit interval too, where rounding would do it."""
    just_below_one = torch.nextafter(torch.ones(1), torch.zeros(1)).item()
    for seed in range(50):
        logits = random_logits(seed, 1, 30, ties=False)
        kept = sample_top_k(logits, 5)
        for dtype in (torch.float32, torch.float64):
            for value in (0.0, 1e-30, 0.5, just_below_one, 1 - 2.0**-53):
                token = draw(kept, torch.tensor([value], dtype=dtype))
                assert kept[0, token].isfinite()


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    streams = UniformStreams(0, list(range(1000)), CPU)
    draws = torch.cat([draw(logits.expand(1000, -1), streams.next()) for _ in range(20)])
    shares = torch.bincount(draws, minlength=4) / draws.numel()
    # 20,000 draws: a standard deviation is at most 0.0035
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.014, rtol=0)


def test_streams_depend_on_seed_and_row_alone() -> None:
    def first(seed: int, rows: list[int], count: int = DRAWS_AT_ONCE + 3) -> Tensor:
        streams = UniformStreams(seed, rows, CPU)
        return torch.stack([streams.next() for _ in range(count)])

    both, alone = first(5, [0, 7]), first(5, [7])
    assert torch.equal(both[:, 1], alone[:, 0])
    assert not torch.equal(both[:, 0], both[:, 1])
    assert not torch.equal(first(6, [7]), alone)
    assert sampling.row_seed(1, 0) != sampling.row_seed(0, 1)


def test_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    UniformStreams(1, [0, 1], CPU).next()
    UniformStreams(1, [0, 1], CPU).gumbel(5)
    assert torch.equal(torch.random.get_rng_state(), before)
