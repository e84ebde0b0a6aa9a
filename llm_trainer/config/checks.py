"""Checks of what users hand to functions, so that nonsense is named where it comes in.

Each check returns what is wrong in one line (parameter, value, what would be right), or nothing;
`refuse` raises all of it together. Numbers of numpy count as numbers; True is no number. Price: a
microsecond a value, so inner loops do not check again what their callers checked.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from llm_trainer.config.secrets import strip_secrets
from llm_trainer.exceptions import LLMTrainerError

LONGEST = 60
"""Characters of a value that a message shows."""
_FIRST = reprlib.Repr()
_FIRST.maxlevel, _FIRST.maxother = 3, LONGEST
_FIRST.maxlist = _FIRST.maxtuple = _FIRST.maxdict = _FIRST.maxset = 20
_FIRST.maxstring = 2000


def refuse(kind: type[LLMTrainerError], *problems: list[str]) -> None:
    """Raise one error with all lines of `problems`, if there are any."""
    lines = [line for found in problems for line in found]
    if lines:
        raise kind("\n".join(lines))


def whole(
    name: str, value: Any, least: int | None = None, most: int | None = None, *, none: bool = False
) -> list[str]:
    """A whole number from `least` to `most`; None passes if `none`."""
    if value is None and none:
        return []
    number = isinstance(value, Integral) and not isinstance(value, bool)
    if number and (least is None or value >= least) and (most is None or value <= most):
        return []
    limits = _limits(least, most, None, None)
    return [f"{name} ({shown(value)}) must be a whole number{limits}{_or_none(none)}"]


def number(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    none: bool = False,
) -> list[str]:
    """A finite number within these limits; None passes if `none`."""
    if value is None and none:
        return []
    given = _as_float(value)
    if (
        math.isfinite(given)
        and (least is None or given >= least)
        and (most is None or given <= most)
        and (above is None or given > above)
        and (below is None or given < below)
    ):
        return []
    limits = _limits(least, most, above, below)
    return [f"{name} ({shown(value)}) must be a finite number{limits}{_or_none(none)}"]


def flags(**values: Any) -> list[str]:
    """True or False, by name."""
    return [
        f"{name} ({shown(value)}) must be True or False"
        for name, value in values.items()
        if not isinstance(value, bool)
    ]


def choice(name: str, value: Any, choices: Collection[str]) -> list[str]:
    """One of a few words."""
    if isinstance(value, str) and value in choices:
        return []
    return [f"{name} ({shown(value)}) must be one of {', '.join(choices)}"]


def text(name: str, value: Any, *, empty: bool = True, none: bool = False) -> list[str]:
    """A text, not empty unless `empty`."""
    if (value is None and none) or (isinstance(value, str) and (value or empty)):
        return []
    return [f"{name} ({shown(value)}) must be a text{'' if empty else ', and not empty'}"]


def texts(name: str, value: Any, *, empty: bool = False) -> list[str]:
    """A list (or another sized collection) of texts, not empty unless `empty`."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
        return [f"{name} ({shown(value)}) must be a list of texts, such as ['one', 'two']"]
    for place_, item in enumerate(value):
        if not isinstance(item, str):
            return [
                f"{name} must be a list of texts, such as ['one', 'two'], but number {place_} is "
                f"{shown(item)}"
            ]
    if not value and not empty:
        return [f"{name} is empty; give at least one text"]
    return []


def iterable(name: str, value: Any, of: str = "texts") -> list[str]:
    """Something to go through once, and no single text."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return []
    single = ", and no single string" if isinstance(value, str | bytes) else ""
    return [f"{name} ({shown(value)}) must be an iterable of {of}, such as [text]{single}"]


def place(name: str, value: Any, *, none: bool = False) -> list[str]:
    """A name in the file system; nothing is said about what is there."""
    if value is None and none:
        return []
    if not isinstance(value, str | os.PathLike):
        return [f"{name} ({shown(value)}) must be a path: a text or a pathlib.Path"]
    if not os.fspath(value):
        return [f"{name} is empty; name a file or directory"]
    if "\0" in os.fsdecode(value):
        return [f"{name} ({shown(value)}) must be a path, which holds no NUL character"]
    return []


def instance(
    name: str, value: Any, kind: type | tuple[type, ...], *, none: bool = False, hint: str = ""
) -> list[str]:
    """An object of a class; `hint` says how to come by one."""
    if (value is None and none) or isinstance(value, kind):
        return []
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(each.__name__ for each in kinds)
    found = "the class itself" if value in kinds else shown(value)
    return [f"{name} ({found}) must be a {wanted}{f'; {hint}' if hint else ''}{_or_none(none)}"]


def function(name: str, value: Any, *, none: bool = True) -> list[str]:
    """Something to call."""
    if (value is None and none) or callable(value):
        return []
    return [f"{name} ({shown(value)}) must be a function{_or_none(none)}"]


def map_style(name: str, dataset: Any) -> list[str]:
    """A data set with a length and items by number."""
    has = all(callable(getattr(dataset, method, None)) for method in ("__len__", "__getitem__"))
    if has and not isinstance(dataset, str | bytes | Mapping):
        return []
    return [
        f"{name} ({shown(dataset)}) must be a map-style data set, with a length and items by "
        f"number, such as LanguageModelingDataset"
    ]


def shown(value: Any) -> str:
    """A short spelling of a value for a message; of large objects only the type."""
    simple = (str, bytes, bool, int, float, list, tuple, dict, set, os.PathLike, type(None))
    if not isinstance(value, simple):
        if isinstance(value, Real):  # a number of numpy
            return str(value)
        return f"a {type(value).__name__}"
    try:
        # of what holds others only the first: written out, a list of lists of lists, each the same
        # object in memory, may have no end
        holds_others = isinstance(value, list | tuple | dict | set)
        spelled = _FIRST.repr(value) if holds_others else repr(value)
    except ValueError:  # a number of more digits than Python writes
        return f"a {type(value).__name__}"
    spelled = strip_secrets(spelled)
    return spelled if len(spelled) <= LONGEST else spelled[: LONGEST - 3] + "..."


def _as_float(value: Any) -> float:
    """A number as a float; NaN for what is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _limits(
    least: float | None, most: float | None, above: float | None, below: float | None
) -> str:
    low = f" from {least}" if least is not None else f" above {above}" if above is not None else ""
    high = f"{most}" if most is not None else f"below {below}" if below is not None else ""
    return f"{low} to {high}" if low and high else low or (f" up to {high}" if high else "")


def _or_none(none: bool) -> str:
    return ", or None" if none else ""
