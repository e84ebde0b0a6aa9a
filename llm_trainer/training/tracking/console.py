"""One tidy line a record, through logging."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from llm_trainer.training.tracking.base import Tracker

logger = logging.getLogger(__name__)


class ConsoleTracker(Tracker):
    """`step 120  train: loss 2.31, lr 9.8e-04  eval: loss 2.4`."""

    name = "console"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one line; figures of the machine and repetitions stay out of it."""
        line = format_record(step, metrics)
        if line:
            logger.info("%s", line)

    def log_text(self, step: int, name: str, text: str) -> None:
        """Log the text, indented below its name."""
        indented = "\n".join(f"    {line}" for line in text.splitlines())
        logger.info("step %d  %s\n%s", step, name, indented)


def format_record(step: int, metrics: Mapping[str, float]) -> str:
    """The line for a record without `system/*` and `*/best_*`; empty if that is all it has."""
    groups: dict[str, list[str]] = {}
    for key, value in metrics.items():
        group, _, name = key.rpartition("/")
        if group != "system" and not name.startswith("best_"):
            groups.setdefault(group, []).append(f"{name} {format_number(value)}")
    if not groups:
        return ""
    parts = []
    for group, items in groups.items():
        parts.append(f"{group}: {', '.join(items)}" if group else ", ".join(items))
    return f"step {step:,}  " + "  ".join(parts)


def format_number(value: float) -> str:
    """Four significant digits; thousands separated; small and huge ones with an exponent."""
    if abs(value) < 1e15 and value == int(value):
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.3e}"
