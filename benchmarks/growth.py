"""How time and memory grow with the work: `python -m benchmarks.growth [--only CURVE]`.

Against parameters and context (training steps), corpus size (packing) and number of shards
(opening and reading). Each point is a process of its own, so that its peak memory is its own.
Writes benchmarks/growth.json and docs/images/growth.svg; takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contest import ROOT, hold, median
from llm_trainer.files import atomic_path, write_text
from llm_trainer.json_file import read_json
from llm_trainer.utils.machine import describe_machine

RESULTS = ROOT / "benchmarks" / "growth.json"
PICTURE = ROOT / "docs" / "images" / "growth.svg"
SIZES = ((128, 2), (192, 4), (256, 6), (384, 8))
"""Width and layers of the models."""
CONTEXTS = (128, 256, 512, 1024, 2048)
TOKENS_PER_STEP = 4096
MEGABYTES = (10, 40, 160)
SHARDS = (1, 8, 64, 512)
ROUNDS = 3

AXES = {
    "parameters": ("parameters", ("seconds_per_token", "memory_mb")),
    "context": ("context", ("seconds_per_token", "memory_mb")),
    "corpus": ("megabytes", ("seconds", "memory_mb")),
    "shards": ("shards", ("open_seconds", "read_microseconds")),
}
"""Curve -> what it is drawn against, and what grows."""

Point = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the curves, fit them, draw them."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0] + ".")
    parser.add_argument("--only", choices=AXES, help="this curve; the others stay as they are")
    only = parser.parse_args(arguments).only
    curves: dict[str, list[Point]] = read_json(RESULTS)["curves"] if only else {}
    for name in (only,) if only else AXES:
        curves[name] = measure(name)
    fits = {name: {y: exponent(curves[name], x, y) for y in ys} for name, (x, ys) in AXES.items()}
    results = {"exponents": fits, "curves": curves, "machine": describe_machine()}
    write_text(RESULTS, json.dumps(results, indent=2) + "\n")
    draw(curves, fits, PICTURE)
    for name, exponents in fits.items():
        told = ", ".join(f"{what} ~ {name}^{value:.2f}" for what, value in exponents.items())
        print(told)
    return 0


def measure(curve: str) -> list[Point]:
    """The points of one curve."""
    match curve:
        case "parameters":
            return [_step(width, layers, 256) for width, layers in SIZES]
        case "context":
            return [_step(192, 4, context) for context in CONTEXTS]
        case "corpus":
            return [_packing(size) for size in MEGABYTES]
        case _:
            return [_reading(number) for number in SHARDS]


def exponent(points: Sequence[Point], x: str, y: str) -> float:
    """The k of y ~ x^k by least squares on logarithms."""
    logs = [(math.log(p[x]), math.log(p[y])) for p in points]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in logs)
    return float(covariance / sum((a - mean_x) ** 2 for a, _ in logs))


def _step(width: int, layers: int, context: int) -> Point:
    figures = _alone(
        "growth_pieces", {"piece": "step", "width": width, "layers": layers, "context": context,
                          "batch_size": TOKENS_PER_STEP // context},
    )  # fmt: skip
    return {
        "parameters": figures[0]["parameters"],
        "context": context,
        "seconds_per_token": median(figures, "seconds") / TOKENS_PER_STEP,
        "memory_mb": figures[-1]["memory_mb"],
    }


def _packing(megabytes: int) -> Point:
    figures = _alone("ours_packing", {"megabytes": megabytes, "processes": 2}, rounds=1)
    return {
        "megabytes": megabytes,
        "seconds": megabytes / figures[-1]["mb_per_second"],
        "memory_mb": figures[-1]["peak_mb"],
    }


def _reading(shards: int) -> Point:
    figures = _alone("growth_pieces", {"piece": "read", "shards": shards})
    return {
        "shards": figures[0]["shards"],
        "open_seconds": median(figures, "open_seconds"),
        "read_microseconds": median(figures, "read_microseconds"),
    }


def _alone(module: str, args: dict[str, Any], rounds: int = ROUNDS) -> list[dict[str, Any]]:
    return hold({str(args): (module, args)}, rounds, lambda line: print(f"  {line}", flush=True))[
        str(args)
    ]


def draw(curves: dict[str, list[Point]], fits: dict[str, dict[str, float]], path: Path) -> None:
    """Four log-log pictures of two curves each, with their exponents."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "growth"  # or ids, and so bytes, differ from run to run
    from matplotlib import pyplot

    panels = (
        ("parameters", "parameters", ("seconds_per_token", 1e6, "µs a token"), "memory_mb"),
        ("context", "tokens of context", ("seconds_per_token", 1e6, "µs a token"), "memory_mb"),
        ("corpus", "MB of text", ("seconds", 1.0, "seconds"), "memory_mb"),
        ("shards", "shards", ("open_seconds", 1e3, "ms to open"), "read_microseconds"),
    )
    figure, grid = pyplot.subplots(2, 2, figsize=(9, 6.4), constrained_layout=True)
    for axes, (curve, label, (key, factor, unit), other) in zip(grid.flat, panels, strict=True):
        x = [p[AXES[curve][0]] for p in curves[curve]]
        for name, scale, mark, text in (
            (key, factor, "o-", f"{unit}, exponent {fits[curve][key]:.2f}"),
            (other, 1.0, "s--", f"{_unit(other)}, exponent {fits[curve][other]:.2f}"),
        ):
            axes.plot(x, [p[name] * scale for p in curves[curve]], mark, label=text)
        axes.set(xscale="log", yscale="log", xlabel=label)
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _unit(name: str) -> str:
    return {"memory_mb": "MB of memory", "read_microseconds": "µs to read a random row"}[name]


if __name__ == "__main__":
    sys.exit(main())
