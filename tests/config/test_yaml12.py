"""Plain scalars in configuration files mean what YAML 1.2, and so DVC, takes them for."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from llm_trainer.config import TrainingConfig
from llm_trainer.config.experiment import experiment_from_dict
from llm_trainer.config.loader import parse_config_text

SCALARS = [
    "1e-4", "1E5", "1.", ".5", "+1", "007", "010", "0o17", "0x1F", "-0", "0.0", ".inf",
    "true", "True", "TRUE", "false", "yes", "no", "on", "off", "y", "n", "No", "null", "~", "",
    "Null", "1:30", "190:20:30", "text", "1.2.3", "'no'", '"1e-4"', "e5", ".",
]  # fmt: skip


def ours(text: str) -> Any:
    return parse_config_text(f"value: {text}\n", "test.yaml")["value"]


@pytest.mark.parametrize("text", SCALARS)
def test_scalars_are_those_of_another_reader(text: str) -> None:
    theirs = YAML(typ="safe", pure=True).load(io.StringIO(f"value: {text}\n"))["value"]
    assert (ours(text), type(ours(text))) == (theirs, type(theirs))


@pytest.mark.parametrize(
    ("text", "value"),
    [("2024-01-31", "2024-01-31"), ("0b11", "0b11"), ("-.5e3", -500.0), ("=", "=")],
)
def test_what_the_other_reader_takes_differently(text: str, value: Any) -> None:
    """The core schema has no dates and no binary numbers."""
    assert ours(text) == value


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_numbers_come_back(number: float) -> None:
    assert ours(repr(number)) == number
    assert type(ours(repr(number))) is type(number)


def test_the_word_no_is_a_choice() -> None:
    values = parse_config_text("training:\n  eval_strategy: no\n", "test.yaml")
    assert experiment_from_dict(values, "test.yaml").training == TrainingConfig(eval_strategy="no")
