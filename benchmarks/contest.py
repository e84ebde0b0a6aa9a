"""Contestants that take turns: each is a process of its own, and one at a time works.

How: a contestant is a module with `run(args, turn)`. It sets itself up, warms up, and then calls
`turn(figures)` after each measured piece of work, which sends the figures to the referee and waits
until it is this contestant's turn again. So compiled graphs, caches and models stay warm, while the
pieces of all contestants alternate and meet the same noise. Price: the memory of all of them at
once; a waiting process uses no processor.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / ".cache" / "bench" / "contestants.log"

SETTLE = 3
"""Pieces of work after each wait that are not measured: the system takes memory from processes
that wait, and the first steps after it run at half the speed."""

Figures = dict[str, Any]
Turn = Callable[[Figures], None]


class Contestant:
    """A process that works when it is told to; use as a context manager.

    Args:
        name: how figures and messages call it.
        module: of `benchmarks`, with a function `run(args, turn)`.
        args: for it; anything that JSON holds.
        environment: added to the process's own.
    """

    def __init__(
        self,
        name: str,
        module: str,
        args: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        LOG.parent.mkdir(parents=True, exist_ok=True)
        with LOG.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.contest", module, json.dumps(dict(args))],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=os.environ | dict(environment or {}),
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def ready(self) -> Figures:
        """Wait until it is set up and warm; what it tells of itself."""
        return self._read()

    def work(self) -> Figures:
        """Let it do one piece of work; its figures."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; reading says so
        return self._read()

    def _read(self) -> Figures:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self.name}: ended with exit code {self._process.wait()}; its messages are in "
                f"{LOG.relative_to(ROOT)}"
            )
        figures: Figures = json.loads(line)
        return figures


def hold(
    entrants: Mapping[str, tuple[str, Mapping[str, Any]]],
    rounds: int,
    report: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> dict[str, list[Figures]]:
    """Set up all entrants one after the other, then let them work in turns, `rounds` times.

    Args:
        entrants: name -> (module, arguments).
        rounds: pieces of work of each; the order is turned round every time.
        report: told a line after each piece.
        environment: added to the environment of each process.

    Returns:
        name -> what it told of itself when ready, then the figures of each piece.
    """
    with ExitStack() as stack:
        contestants: list[Contestant] = []
        figures: dict[str, list[Figures]] = {}
        for name, (module, args) in entrants.items():
            contestant = stack.enter_context(Contestant(name, module, args, environment))
            figures[name] = [contestant.ready()]
            contestants.append(contestant)
            report(f"{name}: ready")
        for number in range(rounds):
            for contestant in contestants if number % 2 == 0 else contestants[::-1]:
                done = contestant.work()
                figures[contestant.name].append(done)
                told = ", ".join(f"{k} {v:,.4g}" for k, v in done.items() if _is_number(v))
                report(f"round {number + 1} of {rounds}, {contestant.name}: {told}")
    return figures


def median(figures: Sequence[Figures], key: str) -> float:
    """The median of `key` over the pieces of work, the introduction left out."""
    return float(statistics.median(piece[key] for piece in figures[1:]))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --------------------------------------------------------------------------- in the process


class _Channel:
    """The referee's side of the line; standard output is kept clear for it."""

    def __init__(self) -> None:
        self._out: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def turn(self, figures: Figures) -> None:
        self._out.write(json.dumps(figures) + "\n")
        self._out.flush()
        if not sys.stdin.readline():
            os._exit(0)  # the referee has what it wants; nothing here is worth keeping


def _main() -> None:
    module, args = sys.argv[1:]
    channel = _Channel()
    importlib.import_module(f"benchmarks.{module}").run(json.loads(args), channel.turn)


if __name__ == "__main__":
    _main()
