"""How much of a generated text is Python: by Python's own parser."""

from __future__ import annotations

import ast
import textwrap
import warnings


def parsed_share(text: str) -> float:
    """Share of the lines of `text` up to which it parses as Python, 0 to 1.

    The longest beginning of whole lines that `ast.parse` accepts, over all lines that are not
    blank. A text cut off in the middle, as samples are, loses only its last statement by this,
    where parsing it as a whole would fail. Comments parse, so this is a measure of syntax, not of
    sense. A common indentation is removed first.
    """
    lines = textwrap.dedent(text).splitlines()
    total = sum(bool(line.strip()) for line in lines)
    if total == 0:
        return 0.0
    for end in range(len(lines), 0, -1):
        if _parses("\n".join(lines[:end]) + "\n"):
            return sum(bool(line.strip()) for line in lines[:end]) / total
    return 0.0


def _parses(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # "\d" is an invalid escape: a warning is not our business
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
