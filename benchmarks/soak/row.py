"""What one row of the fault table reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Report:
    """The counters of one row, and where it fell short of what is required."""

    counters: dict[str, int | float] = field(default_factory=dict)
    shortfalls: list[str] = field(default_factory=list)
    """One sentence for each requirement that was not met; empty when all were."""

    def require(self, held: bool, sentence: str) -> None:
        """Note `sentence` as a shortfall unless `held`."""
        if not held:
            self.shortfalls.append(sentence)


@dataclass(frozen=True)
class Row:
    """A fault: its name in the table, what is injected, and the function that does it."""

    name: str
    fault: str
    run: Callable[[Path, float], Report]
    """Called with an empty folder and a scale: 1.0 for the numbers of the table, less for a try."""
