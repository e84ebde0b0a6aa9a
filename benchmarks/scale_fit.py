"""The single-machine terms of the cost model, fitted to `benchmarks/growth.json`.

Two numbers of a CPU (bytes a second between products, cost of a kernel) are chosen by a grid search
on logarithms of the time a token; the largest model and the longest rows are held out.
`llm_trainer/utils/present.py` has the result; a test compares.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.corpus import VOCAB_SIZE
from benchmarks.growth import SIZES, TOKENS_PER_STEP
from llm_trainer.config.model import ModelConfig
from llm_trainer.utils.hardware import Accelerator, Cluster, Link
from llm_trainer.utils.parameters import calculate_parameters
from llm_trainer.utils.present import cpu_cluster
from llm_trainer.utils.rank_memory import rank_memory
from llm_trainer.utils.step_model import Job, step_time

PEAK = 440.9e9
"""bfloat16 FLOP/s of the machine of growth.json, as its stage `benchmark` measured it."""
SHARE = 0.93
"""Of the peak, that products reach in a step; measured by itself (docs/performance.md)."""
BANDWIDTHS = tuple(n * 1e9 for n in (8, 10, 12, 14, 16, 18, 20, 22, 25, 28, 32, 40, 50, 70, 100))
KERNELS = tuple(n * 1e-6 for n in range(0, 401, 10))
STARTED = 230e6
"""Bytes of a process after importing torch (utils/memory.py), which growth.json leaves out."""
HELD_OUT = ((384, 8, 256), (192, 4, 2048))
"""Width, layers and row length of the points that the fit does not see."""


@dataclass(frozen=True)
class Point:
    """A measured training step."""

    width: int
    layers: int
    row: int
    measured: float
    """Seconds a token."""
    memory: float
    """Bytes at the peak, beyond what Python and torch have at the start."""

    @property
    def held_out(self) -> bool:
        """Whether the fit is blind to it."""
        return (self.width, self.layers, self.row) in HELD_OUT


def shape(width: int, layers: int, row: int) -> ModelConfig:
    """The model of `benchmarks.growth_pieces`."""
    return ModelConfig(
        vocab_size=VOCAB_SIZE, d_model=width, n_heads=width // 64, n_layers=layers,
        max_seq_len=row, d_ff=width * 8 // 3, dropout=0.0, attention_dropout=0.0,
        activation="swiglu", norm="rmsnorm", position="rope", bias=False,
    )  # fmt: skip


def points(growth: Mapping[str, Any]) -> list[Point]:
    """The training steps of growth.json."""
    by_count = {calculate_parameters(shape(w, n, 256)): (w, n) for w, n in SIZES}
    return [
        Point(
            *by_count[int(p["parameters"])],
            int(p["context"]),
            p["seconds_per_token"],
            p["memory_mb"] * 1e6,
        )
        for curve in ("parameters", "context")
        for p in growth["curves"][curve]
    ]


def predicted(point: Point, share: float, bandwidth: float, kernel: float) -> float:
    """Seconds a token of an eager AdamW step."""
    chip = Accelerator(
        "cpu", PEAK, 0, bandwidth, share, 0, kernel_seconds=kernel, launch_seconds=0.0
    )
    here = Cluster(chip, 1, 1, Link(1e9, 0.0), Link(1e9, 0.0))
    model = shape(point.width, point.layers, point.row)
    job = Job(model, TOKENS_PER_STEP // point.row, point.row, fused=False)
    return step_time(job, here).total / TOKENS_PER_STEP


def planned_memory(point: Point) -> float:
    """Bytes of the whole process, by the plan."""
    model = shape(point.width, point.layers, point.row)
    job = Job(model, TOKENS_PER_STEP // point.row, point.row, fused=False)
    return rank_memory(job, cpu_cluster(PEAK, 25 * 10**9)).total


def error(measured: Iterable[Point], constants: tuple[float, float, float]) -> float:
    """Mean square of the logarithm of predicted over measured."""
    errors = [math.log(predicted(p, *constants) / p.measured) ** 2 for p in measured]
    return sum(errors) / len(errors)


def fit(growth: Mapping[str, Any]) -> dict[str, Any]:
    """The best constants, and each point with its error."""
    measured = points(growth)
    seen = [p for p in measured if not p.held_out]
    best = min(itertools.product((SHARE,), BANDWIDTHS, KERNELS), key=lambda c: error(seen, c))
    rows = [
        {
            "width": p.width, "layers": p.layers, "row": p.row, "held_out": p.held_out,
            "measured_us": round(p.measured * 1e6, 1),
            "predicted_us": round(predicted(p, *best) * 1e6, 1),
            "error": round(predicted(p, *best) / p.measured - 1, 3),
            "memory_mb": round((p.memory + STARTED) / 1e6),
            "planned_mb": round(planned_memory(p) / 1e6),
            "memory_error": round(planned_memory(p) / (p.memory + STARTED) - 1, 3),
        }
        for p in measured
    ]  # fmt: skip
    names = ("matmul_share", "bandwidth", "kernel_seconds")
    return {"constants": dict(zip(names, best, strict=True)), "points": rows}
