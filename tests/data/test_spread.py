"""The even sample: bounded, spread, deterministic."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_trainer.data.spread import spread


def num_bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


@settings(max_examples=100)
@given(st.lists(st.text("aé日🙂 \n", max_size=400), max_size=40), st.integers(64, 20_000))
def test_never_more_than_asked_for_and_little_less(texts: list[str], limit: int) -> None:
    total = num_bytes(texts)
    sample = list(spread(texts, total, limit))
    assert sample == list(spread(iter(texts), total, limit))
    if total <= limit:
        assert sample == texts
    else:
        assert num_bytes(sample) <= limit
        block = 4 * max(1, limit // 64)
        assert num_bytes(sample) > limit - 2 * block - 4
    position = 0  # in order, from these texts
    whole = "".join(texts)
    for block_text in sample:
        position = whole.index(block_text, position) + len(block_text)


@pytest.mark.parametrize("size", [10, 1000, 300_000])
def test_each_part_of_the_corpus_gives_its_share(size: int) -> None:
    """Documents small and large; the first tenth is `0`, the last is `9`."""
    texts = [str(part) * size for part in range(10) for _ in range(3_000_000 // size // 10)]
    total = num_bytes(texts)
    sample = "".join(spread(texts, total, 500_000))
    for part in range(10):
        assert abs(sample.count(str(part)) / len(sample) - 0.1) < 0.03


def test_none_takes_all() -> None:
    assert list(spread(["a", "", "b"], 2, None)) == ["a", "", "b"]
