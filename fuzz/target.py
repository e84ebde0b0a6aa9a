"""What a target is, and how bytes become decisions."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**15, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e308,
    float("nan"), float("inf"), "", "a", "\x00", "\ud800", "../x", "/etc/passwd", "train",
    "x" * 5000, [], [1], ["a"], [[]], [None], {}, {"a": 1}, {"": {}}, {"bytes": 0},
)  # fmt: skip
"""What JSON may hold where something else was expected."""


@dataclass(frozen=True)
class Target:
    """A reader of files, to be fed with nonsense."""

    about: str
    seeds: Callable[[], list[bytes]]
    """Inputs to start from."""
    run: Callable[[bytes], None]
    """Reads one input; any exception but an expected one is a finding."""


class Draw:
    """Decisions read off a string of bytes; zeros when it is used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def number(self, below: int) -> int:
        """A whole number from 0 to `below` - 1."""
        size = max(1, (below.bit_length() + 7) // 8)
        taken = self._data[self._place : self._place + size]
        self._place += size
        return int.from_bytes(taken, "big") % max(1, below)

    def choice(self, values: Sequence[T]) -> T:
        """One of `values`."""
        return values[self.number(len(values))]

    def rest(self) -> bytes:
        """What is left."""
        taken, self._place = self._data[self._place :], len(self._data)
        return taken


def folder() -> Path:
    """A new folder, in memory where the system has such a place; it goes with the machine's own."""
    memory = Path("/dev/shm")
    made = tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None)
    _made.append(Path(made))
    return Path(made)


_made: list[Path] = []


def made_folders() -> list[Path]:
    """Folders made so far, for whoever clears up."""
    return _made


def mutate(value: Any, draw: Draw) -> Any:
    """A copy of JSON `value` with a few parts replaced, left out or moved."""
    value = json.loads(json.dumps(value))
    for _ in range(1 + draw.number(3)):
        value = _mutate_once(value, draw)
    return value


def _mutate_once(value: Any, draw: Draw) -> Any:
    inner: Any = value
    for _ in range(1 + draw.number(5)):
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not keys:
            return copy.deepcopy(draw.choice(VALUES))
        key = draw.choice(keys)
        if not isinstance(inner[key], dict | list) or not inner[key] or draw.number(4) == 0:
            break
        inner = inner[key]
    else:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = draw.choice(keys)
    match draw.number(4):
        case 0:
            del inner[key]
        case 1 if isinstance(inner, dict):
            inner[str(draw.choice(VALUES))[:40]] = copy.deepcopy(inner[key])
        case _:
            inner[key] = copy.deepcopy(draw.choice(VALUES))
    return value


def damage(content: bytes, draw: Draw) -> bytes:
    """`content` with a few bytes replaced, and perhaps cut off."""
    damaged = bytearray(content)
    for _ in range(1 + draw.number(8)):
        damaged[draw.number(len(damaged))] = draw.number(256)
    if draw.number(8) == 0:
        del damaged[draw.number(len(damaged)) :]
    return bytes(damaged)


def dump(value: Any) -> bytes:
    """JSON as others may write it: NaN, infinity and lone surrogates included."""
    return json.dumps(value, allow_nan=True).encode()
