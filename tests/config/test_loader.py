"""The strict reader: what it accepts, what it refuses, and what it says."""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_trainer.config.loader import (
    build_config,
    coerce,
    parse_config_text,
    read_config_file,
    unknown_key,
)
from llm_trainer.exceptions import ConfigurationError, LLMTrainerError
from llm_trainer.json_file import MAX_JSON_BYTES

# --------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),  # a string to YAML 1.1
        ("1.5e3", 1500.0),
        ("-2E+2", -200.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("6e-4", 0.0006),
        ("12", 12),
        ("0x1F", 31),
        ("-.inf", -math.inf),
        ("true", True),
        ("null", None),
        ("~", None),
        ("1e", "1e"),
        ("e4", "e4"),
        ("1.2.3", "1.2.3"),
        ('"1e-4"', "1e-4"),
        ("b08601e04326c79dfdd32d625aee71d232d685c3", "b08601e04326c79dfdd32d625aee71d232d685c3"),
    ],
)
def test_yaml_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_config_text(f"key: {text}", "x.yaml")["key"]
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.floats(allow_nan=False))
def test_any_float_that_python_writes_is_read_back(number: float) -> None:
    text = repr(number).replace("inf", ".inf")
    assert parse_config_text(f"key: {text}", "x.yaml")["key"] == number


def test_yaml_and_json_give_the_same(tmp_path: Path) -> None:
    values = {"model": {"d_model": 64, "dropout": 0.1}, "training": {"report_to": ["jsonl"]}}
    (tmp_path / "a.json").write_text(json.dumps(values))
    (tmp_path / "a.yaml").write_text(
        "model: {d_model: 64, dropout: 0.1}\ntraining:\n  report_to:\n  - jsonl\n"
    )
    assert read_config_file(tmp_path / "a.json") == read_config_file(tmp_path / "a.yaml") == values


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", b"a: 1\nb: [1, 2\n", "a.yaml:3: not valid YAML"),
        ("a.yaml", b"a: 1\na: 2\n", "a.yaml:2: not valid YAML (key 'a' stands twice)"),
        ("a.yaml", b"t:\n  lr: 1\n  x: 1\n  lr: 2\n", "a.yaml:4: not valid YAML (key 'lr' stands"),
        ("a.yaml", b"a: !!python/object/apply:os.system [true]\n", "a.yaml:1: not valid YAML"),
        ("a.yaml", b"- 1\n- 2\n", "expected sections with keys, found list"),
        ("a.yaml", b"", "expected sections with keys, found NoneType"),
        ("a.yaml", b"a: \xff\n", "cannot be read as UTF-8"),
        ("a.yaml", b"a: \x00\n", "cannot be parsed"),
        ("a.json", b'{"a": 1,}', "a.json:1: not valid JSON"),
        ("a.json", b"[1]", "expected sections with keys, found list"),
        ("a.json", b"[" * 200_000, "cannot be parsed"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        read_config_file(tmp_path / name)
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_missing_directory_and_giant_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such configuration file"):
        read_config_file(tmp_path / "none.yaml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_config_file(tmp_path)
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(ConfigurationError, match="larger than"):
        read_config_file(tmp_path / "big.yaml")


# --------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("value", "kind", "result"),
    [
        (8.0, int, 8),
        ("8", int, 8),
        ("1_000", int, 1000),
        ("-3", int, -3),
        (3, float, 3.0),
        ("1e-4", float, 1e-4),
        (Path("a/b"), str, "a/b"),
        (None, int | None, None),
        ("x", str | list[str] | None, "x"),
        (["x"], str | list[str] | None, ["x"]),
        (True, bool | Literal["auto"], True),
        ("auto", bool | Literal["auto"], "auto"),
        ([1, 2.0, "3"], list[int], [1, 2, 3]),
        ([1, 2], tuple[int, int], (1, 2)),
        ([1, 2, 3], tuple[int, ...], (1, 2, 3)),
        ({"a": 1}, dict[str, int], {"a": 1}),
    ],
)
def test_values_are_coerced_where_nothing_is_lost(
    value: object, kind: type, result: object
) -> None:
    found = coerce(value, kind)
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (8.5, int, "expected a whole number, found 8.5"),
        (True, int, "expected a whole number, found True"),
        ("8.0", int, "expected a whole number, found '8.0'"),
        ("abc", float, "expected a number, found 'abc'"),
        (True, float, "expected a number, found True"),
        ([1], float, "expected a number, found [1]"),
        (math.nan, float, "expected a finite number, found nan"),
        ("inf", float, "expected a finite number, found 'inf'"),
        (1, bool, "expected true or false, found 1"),
        ("true", bool, "expected true or false, found 'true'"),
        (5, str, "expected text, found 5"),
        (None, int, "expected a whole number, found None"),
        ("ab", list[str], "expected a list, found 'ab'"),
        ([1, "x"], list[int], "expected a whole number, found 'x'"),
        ([1], tuple[int, int], "expected 2 values, found [1]"),
        ([], dict[str, int], "expected a mapping, found []"),
        ("cosin", Literal["cosine", "linear"], "did you mean 'cosine'?"),
        (1, Literal["1"], "1 is not one of 1"),
        ("yes", bool | Literal["auto"], "expected true or false, found 'yes' or 'yes' is not one"),
    ],
)
def test_other_values_are_refused_with_what_was_found(
    value: object, kind: object, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        coerce(value, kind)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=6,
    )
)
def test_no_value_makes_the_reader_fail_otherwise(value: object) -> None:
    for kind in (int, float, str, bool, list[int], int | None, Literal["a", "b"], dict[str, int]):
        with suppress(ValueError):
            coerce(value, kind)


# --------------------------------------------------------------------------- building


@dataclass
class Sample:
    steps: int
    rate: float = 0.1
    names: list[str] = field(default_factory=list)


def test_all_problems_come_in_one_message() -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_config(Sample, {"rat": 1, "rate": "x", "names": "y", 3: 4}, "p.yaml: sample")
    assert str(caught.value).splitlines() == [
        "unknown key 'rat' in p.yaml: sample; did you mean 'rate'?",
        "p.yaml: sample.rate: expected a number, found 'x'",
        "p.yaml: sample.names: expected a list, found 'y'",
        "unknown key '3' in p.yaml: sample; known keys: names, rate, steps",
        "p.yaml: sample.steps: missing",
    ]
    assert isinstance(caught.value, LLMTrainerError | ValueError)


def test_defaults_fill_what_is_not_given() -> None:
    assert build_config(Sample, {"steps": "4"}, "x") == Sample(4, 0.1, [])


def test_an_unknown_key_far_from_all_lists_the_known_ones() -> None:
    assert unknown_key("zzz", ["b", "a"], "x") == "unknown key 'zzz' in x; known keys: a, b"
