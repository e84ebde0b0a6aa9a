"""A piece of code as the API reference shows it, with what surrounds it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@dataclass(frozen=True)
class Block:
    """A piece of code with its surroundings."""

    title: str
    code: str
    given: str = ""
    check: str = ""
    raises: str = ""
    """Name of the exception that it must end with."""


def example(name: str, **smaller: str) -> str:
    """An example's code with other arguments."""
    code = (EXAMPLES / name).read_text(encoding="utf-8")
    for argument, value in smaller.items():
        lines = [line for line in code.splitlines() if line.strip().startswith(f"{argument}=")]
        assert lines, f"{name} has no argument {argument}"
        for line in lines:
            code = code.replace(line.strip(), f"{argument}={value},")
    return code
