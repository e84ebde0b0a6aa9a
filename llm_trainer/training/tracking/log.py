"""The JSON-lines log of a run: append, cut back, read. It is the truth that backends follow.

One object a line: `{"step": 12, "time": 1767225600.5, "train/loss": 2.1}`, or for a text
`{"step": 12, "time": ..., "text": {"name": "sample-0", "value": "def ..."}}`. Numbers that JSON
cannot hold are the strings "NaN", "Infinity" and "-Infinity". A line counts once its newline is
there: whoever reads stops before a torn last one. Price: one write(2) a record, about 20 us.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_trainer.files import atomic_path, fsync_directory
from llm_trainer.training.tracking.base import Status, Tracker

RESERVED = ("step", "time", "text")
"""Keys of a record that are not metrics."""
MAX_WAITING = 100_000
"""Lines kept in memory while the disk is full; older ones are lost beyond that."""

BEST_OF = ("eval/loss", "eval/bits_per_byte", "eval/perplexity")
"""Curves whose lowest value so far is logged beside them, as `eval/best_loss` and so on: a table
of runs shows last values, and the last is not the best."""

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass
class LogState:
    """What a log holds: enough to continue it without saying anything twice."""

    lines: int = 0
    last_step: dict[str, int] = field(default_factory=dict)
    """Metric key, or `text:NAME`, -> newest step."""
    lowest: dict[str, float] = field(default_factory=dict)
    """Metric key of BEST_OF -> smallest finite value."""


class JsonlTracker(Tracker):
    """Appends to the log; the disk being full costs nothing but a wait for space."""

    name = "jsonl"

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        """Open for appending, after dropping records later than `resume_step` (None: all).

        Raises:
            LLMTrainerError: the place cannot be written.
        """
        self.path = path
        self.dropped = truncate_after(path, -1 if resume_step is None else resume_step)
        self.state = scan(path)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._good_size = os.fstat(self._descriptor).st_size
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one record of scalars."""
        self._append({"step": step, **{key: _to_json(value) for key, value in metrics.items()}})

    def log_text(self, step: int, name: str, text: str) -> None:
        """Append one record of text."""
        self._append({"step": step, "text": {"name": name, "value": text}})

    def flush(self, *, durable: bool = False) -> None:
        """Write what waited for space; with `durable`, sync file and directory."""
        self._write_waiting()
        if durable:
            self.sync()

    def sync(self) -> None:
        """Sync file and directory."""
        os.fsync(self._descriptor)
        fsync_directory(self.path.parent)

    def finish(self, status: Status) -> None:  # noqa: ARG002 - `RunRecord` notes it
        """Sync and close."""
        if self._descriptor >= 0:
            try:
                self.flush(durable=True)
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def _append(self, record: dict[str, Any]) -> None:
        record = {"step": record.pop("step"), "time": round(time.time(), 3), **record}
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        self._waiting.append(line.encode("utf-8", "replace"))
        self.state.lines += 1
        self._write_waiting()

    def _write_waiting(self) -> None:
        while self._waiting:
            line = self._waiting[0]
            try:
                written = os.write(self._descriptor, line)
                if written < len(line):
                    raise OSError(f"only {written} of {len(line)} bytes written")
            except OSError:
                # half a line must not be continued by the next one; the line itself stays in
                # memory and is tried again with the next record
                os.ftruncate(self._descriptor, self._good_size)
                raise
            self._good_size += len(line)
            self._waiting.popleft()


def truncate_after(path: Path, step: int) -> int:
    """Atomically drop all records later than `step`, and lines that are torn or damaged.

    Returns the number of dropped lines; a missing file is an empty one. Bounded memory.
    """
    if not path.exists():
        with atomic_path(path):
            return 0
    dropped = 0
    with atomic_path(path) as temporary, open(path, "rb") as source, open(temporary, "wb") as kept:
        for line in source:
            record = _parse(line)
            if record is None or record["step"] > step:
                dropped += 1
            else:
                kept.write(line)
    return dropped


def scan(path: Path) -> LogState:
    """Read a log once: how many records, how far each key has come."""
    state = LogState()
    for record, _ in iter_records(path):
        state.lines += 1
        step = record["step"]
        for key, value in metrics_of(record).items():
            state.last_step[key] = max(step, state.last_step.get(key, step))
            if key in BEST_OF and math.isfinite(value):
                state.lowest[key] = min(value, state.lowest.get(key, math.inf))
        named = text_of(record)
        if named is not None:
            key = f"text:{named[0]}"
            state.last_step[key] = max(step, state.last_step.get(key, step))
    return state


def best_of(metrics: Mapping[str, float], lowest: dict[str, float]) -> dict[str, float]:
    """`eval/best_*` for what in `metrics` is as low as never before; notes it in `lowest`."""
    best = {}
    for key in BEST_OF:
        if key in metrics and metrics[key] <= lowest.get(key, math.inf):
            lowest[key] = metrics[key]
            best[key.replace("/", "/best_")] = metrics[key]
    return best


def iter_records(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield (record, byte offset after it) from `offset` on, whole lines only.

    Damaged lines are passed over; the reader stops before a last line without newline. A missing
    file is empty.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed by the `with` below
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            offset += len(line)
            if not line.endswith(b"\n"):
                return
            record = _parse(line)
            if record is not None:
                yield record, offset


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of a log: key -> [(step, value), ...] in order of writing."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record, _ in iter_records(path):
        for key, value in metrics_of(record).items():
            curves.setdefault(key, []).append((record["step"], value))
    return curves


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of a record."""
    found = {}
    for key, value in record.items():
        if key in RESERVED:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = float(value)
        elif isinstance(value, str) and value in _NON_FINITE:
            found[key] = _NON_FINITE[value]
    return found


def text_of(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """(name, text) of a record that holds a text."""
    text = record.get("text")
    if isinstance(text, dict) and isinstance(text.get("name"), str):
        return text["name"], str(text.get("value", ""))
    return None


def _to_json(value: float) -> float | str:
    value = float(value)
    if math.isfinite(value):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    good = isinstance(record, dict) and type(record.get("step")) is int
    return record if good else None
