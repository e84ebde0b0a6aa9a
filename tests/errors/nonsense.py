"""Nonsense values by kind of parameter, and what a good answer to one looks like.

A kind is the list of values that a parameter of it must refuse. They are wrong types, None,
negative numbers, zero where it makes no sense, NaN, infinity, huge, empty and shapeless ones. The
answer must be an error of ours (or one that the entry names) that names the parameter, the value
and what would be right, and must have written nothing.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from llm_trainer.exceptions import LLMTrainerError

NAN, INF = math.nan, math.inf
HUGE = 10**30

Kind = Iterable[Any]

WHOLE: Kind = (None, "three", 1.5, NAN, True, [], -HUGE)
"""A whole number; further limits are the entry's."""
COUNT: Kind = (*WHOLE, -1, 0)
"""A whole number from 1."""
SIZE: Kind = (*WHOLE, -1)
"""A whole number from 0."""
NUMBER: Kind = (None, "much", NAN, INF, -INF, True, [])
"""A finite number."""
POSITIVE: Kind = (*NUMBER, -1.0, 0.0)
"""A number above 0."""
AMOUNT: Kind = (*NUMBER, -1.0)
"""A number from 0."""
SHARE: Kind = (*NUMBER, -0.1, 1.1)
"""A number from 0 to 1."""
FLAG: Kind = (None, "yes", 2)
CHOICE: Kind = (None, 3, "no-such-choice", ["gpt4"])
TEXT: Kind = (None, 3, b"bytes", ["a"])
TEXTS: Kind = (None, 3, "one text", [1], ["a", None], [b"bytes"])
"""Texts, and as many as one likes."""
SOME_TEXTS: Kind = (*TEXTS, [])
"""At least one text."""
DEVICE: Kind = (3.5, "tpu", "", [])
MAPPING: Kind = (None, "text", 3, ["key"])
OBJECT: Kind = (None, "text", 3)
"""An object of a certain class, such as a model."""
CALLABLE: Kind = ("text", 3)
TENSOR: Kind = (None, "text", 3, [[1, 2]])
IDS: Kind = (
    *TENSOR, torch.ones(3, dtype=torch.long), torch.ones(1, 2, 3, dtype=torch.long),
    torch.ones(1, 3), torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 3, dtype=torch.long),
    torch.full((1, 3), -1), torch.full((1, 3), 300), torch.full((1, 3), 2**40),
)  # fmt: skip
"""(batch, time) long, below the vocabulary size of 300."""
NEW_FOLDER: Kind = (None, 3, "", "text.txt", "text.txt/below", "nul\0byte")
"""A directory to write: nothing, a file, below a file."""
NEW_FILE: Kind = (None, 3, "", "folder", "text.txt/below.json", "nul\0byte.json")
"""A file to write."""
FOLDER: Kind = (None, 3, "", "no-such-folder", "text.txt", "folder", "empty", "nul\0byte")
"""A directory of ours to read: nothing, missing, a file, a stranger's, an empty one."""
FILE: Kind = (None, 3, "", "no-such-file.json", "folder", "torn.json", "list.json", "nul\0.json")
"""A file of ours to read."""


def maybe(kind: Kind) -> list[Any]:
    """The same where None is allowed."""
    return [value for value in kind if value is not None]


def without(kind: Kind, *allowed: Any) -> list[Any]:
    """The same where these values are allowed."""
    return [value for value in kind if not any(value is x or _same(value, x) for x in allowed)]


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and not isinstance(a, torch.Tensor) and bool(a == b)


@dataclass(frozen=True)
class Entry:
    """A public function, and the nonsense that each of its parameters must refuse."""

    name: str
    """module:path"""
    target: Callable[[Any], Callable[..., Any]]
    """From the world to what is called."""
    valid: Callable[[Any], dict[str, Any]]
    """From the world to arguments that work."""
    kinds: dict[str, Kind]
    """Parameter -> values to refuse; each parameter has a kind."""
    cases: tuple[tuple[dict[str, Any] | Callable[[Any], dict[str, Any]], tuple[str, ...]], ...] = ()
    """Further arguments that contradict each other or the world, and words of the answer."""
    also: tuple[type[Exception], ...] = ()
    """Errors that the language asks for, such as IndexError of `__getitem__`."""
    called: dict[str, str] = field(default_factory=dict)
    """Parameter -> what the answer calls it, where that is another name."""


def failures(entry: Entry, world: Any) -> list[str]:
    """What is wrong with the answers of an entry, one line each."""
    found = []
    for name, kind in entry.kinds.items():
        for value in kind:
            complaint = _complaint(entry, world, {name: value}, _wanted(entry, name, value))
            if complaint:
                found.append(f"{entry.name}: {name}={_short(value)}: {complaint}")
    for changes, words in entry.cases:
        given = changes(world) if callable(changes) else changes
        complaint = _complaint(entry, world, given, [{word} for word in words])
        if complaint:
            found.append(f"{entry.name}: {_short(given)}: {complaint}")
    return found


REMEDY = re.compile(
    r"must|expected|mend|give|use|set |try|choose|name |leave|make|did you mean|run |lower|raise"
    r"|known|fit the configuration|one of|point to|call |pad |start|needs|save|delete|there are"
    r"|install|not a manifest"
)


def _complaint(
    entry: Entry, world: Any, changes: dict[str, Any], wanted: list[set[str]]
) -> str | None:
    target, arguments = entry.target(world), entry.valid(world) | changes
    before = _files()
    try:
        target(**arguments)
    except (LLMTrainerError, *entry.also) as error:
        message = str(error)
        if isinstance(error, entry.also):
            return None
    except Exception as error:  # noqa: BLE001 - which kind it is, is the question
        first = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__} instead of an error of ours: {first[:120]}"
    else:
        return "taken without a word"
    for spellings in wanted:
        if not any(spelling in message for spelling in spellings):
            return f"the answer lacks {sorted(spellings)[0]!r}: {message[:200]}"
    if not REMEDY.search(message):
        return f"the answer has no remedy: {message[:200]}"
    if _files() != before:
        return f"left behind {sorted(set(_files()) ^ set(before)) or 'changed files'}"
    return None


PLACES = {
    "path", "out", "save_directory", "load_directory", "save_path", "model_path", "checkpoint_dir",
    "tokenizer_path", "checkpoint_path", "resume_from_checkpoint",
}  # fmt: skip
"""Parameters whose value, the name of a file, says enough."""


def _wanted(entry: Entry, name: str, value: Any) -> list[set[str]]:
    if name in PLACES and value and isinstance(value, str):
        return [spellings(value)]
    called = entry.called.get(name, name)
    return [{name, called, called.removesuffix("s")}, spellings(value)]


def spellings(value: Any) -> set[str]:
    """How an answer may show a value; a value of a wrong type also by its type."""
    found = {type(value).__name__}
    if value is None:
        return found | {"None", "empty", "missing"}
    if isinstance(value, torch.Tensor):
        return {str(tuple(value.shape)), str(value.dtype), *map(str, value.flatten()[:1].tolist())}
    if isinstance(value, str):
        if not value:
            return {"empty", "''"}
        return {value, repr(value)} | {f"U+{ord(char):04X}" for char in value if not char.isascii()}
    if isinstance(value, int | float):
        return {repr(value), f"{value:,}", str(float(value))} | (
            found if isinstance(value, bool) else set()
        )
    if isinstance(value, dict):
        return found | {repr(value), *(word for item in value.values() for word in spellings(item))}
    if isinstance(value, list | tuple):
        found |= {repr(value), *(word for item in value for word in spellings(item))}
        return found | ({"empty", "no "} if not value else set())
    return found | {repr(value), str(value)}


def _short(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) < 80 else text[:77] + "..."


LOCK = "lock"
"""A lock file stays when its holder is gone; it holds nothing."""


def _files() -> dict[str, int]:
    """Every file below here and its number, which changes when it is replaced."""
    found: dict[str, int] = {}
    folders = ["."]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                is_folder = entry.is_dir()
                if is_folder:
                    folders.append(entry.path)
                if entry.name != LOCK:
                    found[entry.path] = 0 if is_folder else entry.inode()
    return found
