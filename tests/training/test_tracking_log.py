"""The JSON-lines log: whole lines only, cut back exactly, nothing lost when the disk is full."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_trainer.training.tracking.log import (
    JsonlTracker,
    iter_records,
    metrics_of,
    read_metrics,
    scan,
    truncate_after,
)


def write(path: Path, steps: list[int]) -> None:
    log = JsonlTracker(path)
    for step in steps:
        log.log(step, {"train/loss": step / 2})
    log.finish("FINISHED")


def test_each_record_is_one_json_object_a_line(tmp_path: Path) -> None:
    log = JsonlTracker(tmp_path / "log.jsonl")
    log.log(3, {"train/loss": 2.5, "train/tokens": 4096.0})
    log.log_text(3, "sample-0", "def f():\n    return 'ü'\u2028")
    log.finish("FINISHED")
    lines = (tmp_path / "log.jsonl").read_bytes().split(b"\n")
    assert lines[2] == b""
    first, second = json.loads(lines[0]), json.loads(lines[1])
    assert list(first) == ["step", "time", "train/loss", "train/tokens"]
    assert first["train/tokens"] == 4096
    assert second["text"] == {"name": "sample-0", "value": "def f():\n    return 'ü'\u2028"}


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_number_comes_back(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    log = JsonlTracker(path)
    log.log(1, {"x": value})
    log.finish("FINISHED")
    json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN, which is not JSON
    ((_, found),) = read_metrics(path)["x"]
    assert found == value or (math.isnan(found) and math.isnan(value))


@given(
    steps=st.lists(st.integers(0, 20), max_size=12),
    keep=st.integers(-1, 21),
    torn=st.binary(max_size=30).filter(lambda b: b"\n" not in b),
)
def test_truncation_keeps_exactly_the_records_up_to_the_step(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], keep: int, torn: bytes
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    write(path, steps)
    whole = path.read_bytes().splitlines(keepends=True)
    with open(path, "ab") as file:
        file.write(torn)
    dropped = truncate_after(path, keep)
    expected = [line for line, step in zip(whole, steps, strict=True) if step <= keep]
    assert path.read_bytes().splitlines(keepends=True) == expected
    assert dropped == len(steps) - len(expected) + bool(torn)


@pytest.mark.parametrize(
    "damage", [b'{"step": 2, "x": 1', b"\x00\x00\x00\n", b"[1]\n", b'{"step": "2"}\n', b"[" * 9999]
)
def test_a_damaged_line_costs_only_itself(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "log.jsonl"
    write(path, [1])
    with open(path, "ab") as file:
        file.write(damage)
    assert [r["step"] for r, _ in iter_records(path)] == [1]
    log = JsonlTracker(path, resume_step=5)
    log.log(6, {"x": 1.0})
    log.finish("FINISHED")
    assert [r["step"] for r, _ in iter_records(path)] == [1, 6]


def test_reading_goes_on_from_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, [1, 2, 3])
    offsets = [end for _, end in iter_records(path)]
    assert offsets[-1] == path.stat().st_size
    assert [r["step"] for r, _ in iter_records(path, offsets[0])] == [2, 3]
    assert list(iter_records(tmp_path / "absent.jsonl")) == []


def test_scan_says_how_far_each_key_has_come(tmp_path: Path) -> None:
    log = JsonlTracker(tmp_path / "log.jsonl")
    log.log(1, {"eval/loss": 3.0, "x": math.nan})
    log.log(2, {"eval/loss": 4.0})
    log.log_text(2, "sample-0", "text")
    state = scan(log.path)
    assert state.lines == 3
    assert state.last_step == {"eval/loss": 2, "x": 1, "text:sample-0": 2}
    assert state.lowest == {"eval/loss": 3.0}


def test_reserved_words_are_no_metrics() -> None:
    assert metrics_of({"step": 1, "time": 2.0, "text": 3, "a": 1, "b": True, "c": "no"}) == {"a": 1}


FULL_DISK = """
import resource, signal, sys
from llm_trainer.training.tracking.log import JsonlTracker
from pathlib import Path

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = JsonlTracker(Path(sys.argv[1]))
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
failures = 0
for step in range(1, 101):
    size = log.path.stat().st_size
    if step == 20:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, hard))  # full within a line
    if step == 60:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    try:
        log.log(step, {"train/loss": step / 7})
    except OSError:
        failures += 1
log.finish("FINISHED")
print(failures)
"""


def test_nothing_is_lost_or_torn_when_the_disk_is_full_for_a_while(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) == 40
    assert [step for step, _ in read_metrics(path)["train/loss"]] == list(range(1, 101))
    assert len(path.read_bytes().splitlines()) == 100
