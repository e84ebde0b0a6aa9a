"""The length of rows is a function of the step alone, and its average is exact."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.utils.parameters import flops_per_token
from llm_trainer.utils.planning import training_plan
from llm_trainer.utils.row_growth import RowGrowth


def test_each_length_has_an_equal_share_then_rows_are_whole() -> None:
    config = TrainingConfig(short_rows=[64, 128], short_rows_ratio=0.6)
    growth = RowGrowth.of(config, 256, 10)
    assert [growth.length(step) for step in range(10)] == [64] * 3 + [128] * 3 + [256] * 4
    assert [growth.parts(step) for step in (0, 3, 6)] == [4, 2, 1]


def test_without_short_rows_every_row_is_whole() -> None:
    growth = RowGrowth.of(TrainingConfig(), 100, 7)
    assert {growth.length(step) for step in range(7)} == {100}
    assert growth.mean_length(7) == 100


@given(
    steps=st.integers(1, 200),
    ratio=st.floats(0, 1),
    short=st.sets(st.sampled_from([2, 3, 4, 6, 8, 12])),
)
def test_the_mean_is_that_of_all_steps(steps: int, ratio: float, short: set[int]) -> None:
    config = TrainingConfig(short_rows=sorted(short), short_rows_ratio=ratio)
    growth = RowGrowth.of(config, 24, steps)
    lengths = [growth.length(step) for step in range(steps)]
    assert lengths == sorted(lengths)
    assert growth.mean_length(steps) == pytest.approx(sum(lengths) / steps)


def test_a_plan_counts_the_attention_of_short_rows() -> None:
    model = ModelConfig(vocab_size=300, d_model=32, n_heads=2, n_layers=2, d_ff=64, max_seq_len=64)
    config = TrainingConfig(max_steps=8, short_rows=[16], short_rows_ratio=0.5)
    plan = training_plan(model, config, 100, 64)
    assert plan.flops_per_token == flops_per_token(model, 40)
    assert plan.tokens_per_step == config.batch_size * 64


@pytest.mark.parametrize("short", [[96], [256], [64, 512]])
def test_what_does_not_divide_a_row_is_named(short: list[int]) -> None:
    with pytest.raises(ConfigurationError, match=r"short_rows .*set short_rows: \[\]"):
        RowGrowth.of(TrainingConfig(short_rows=short), 256, 10)


@pytest.mark.parametrize("short", [[1], [0, 64], [128, 64], [64, 64], [-2]])
def test_lengths_that_make_no_sense_are_refused(short: list[int]) -> None:
    with pytest.raises(ConfigurationError, match=r"short_rows .*such as \[64, 128\]"):
        TrainingConfig(short_rows=short)
