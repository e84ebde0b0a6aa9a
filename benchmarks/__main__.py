"""Measure against the peers: `python -m benchmarks [--only NAME] [--list]`.

Writes benchmarks/results.json after each measure, so that one that was interrupted keeps what it
has. All of it takes about 40 minutes on 2 cores; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from typing import Any

from benchmarks.contest import ROOT
from benchmarks.measures import MEASURES, ROWS
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.files import write_text
from llm_trainer.json_file import read_json
from llm_trainer.utils.machine import describe_machine

RESULTS = ROOT / "benchmarks" / "results.json"
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "tiktoken", "dvc")
NEEDED = ("transformers", "accelerate")


def main() -> int:
    """Command line. Exit codes: 0 done, 2 an unknown name or a package that is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", help="this figure only")
    parser.add_argument("--list", action="store_true", help="list the figures")
    options = parser.parse_args()
    known = [row.name for row in ROWS]
    if options.list:
        for row in ROWS:
            print(f"{row.name:<26} {row.what}")
        return 0
    unknown = [name for name in options.only or [] if name not in known]
    if unknown:
        print(f"error: --only {unknown[0]}: no such figure; {', '.join(known)}", file=sys.stderr)
        return 2
    missing = [name for name in NEEDED if version(name) is None]
    if missing:
        print(f"error: {missing[0]} is missing; run `make bench`, or "
              f"pip install 'llm-trainer[bench]'", file=sys.stderr)  # fmt: skip
        return 2
    wanted = options.only or known
    results = read_json(RESULTS) if RESULTS.exists() else {"ratios": {}, "cpus": {}, "raw": {}}
    for measure, names in MEASURES.items():
        if not set(names) & set(wanted):
            continue
        started = time.monotonic()
        try:
            ratios, raw = measure(lambda line: print(f"  {line}", flush=True))
        except LLMTrainerError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        for name, value in ratios.items():
            print(f"{name} = {value:.4g} ({time.monotonic() - started:.0f} s)", flush=True)
        results = with_figures(results, ratios, measure.__name__, raw, machine())
        # not sorted: the ratios stand in the order of their table
        write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    return 0


def with_figures(
    results: dict[str, Any],
    ratios: dict[str, float],
    measure: str,
    raw: Any,
    machine: dict[str, Any],
) -> dict[str, Any]:
    """`results` with what `measure` has just given on `machine`; the other figures stay.

    Each keeps the processor that it was measured on, since one at a time may be measured again on
    another.
    """
    known = [row.name for row in ROWS]
    merged = {**results["ratios"], **ratios}
    cpus = {**results["cpus"], **dict.fromkeys(ratios, machine["cpu"])}
    return {
        "ratios": {name: merged[name] for name in known if name in merged},
        "cpus": {name: cpus[name] for name in known if name in cpus},
        "raw": {**results["raw"], measure: raw},
        "machine": machine,
    }


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    packages = {name: version(name) for name in PACKAGES}
    return {**describe_machine(), "packages": {k: v for k, v in packages.items() if v}}


def version(package: str) -> str | None:
    """Installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
