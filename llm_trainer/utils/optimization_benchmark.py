"""What each option of `InferenceEngine.optimize` brings, and what those with smaller weights cost.

One prompt is continued greedily in each way, and the ratios are against the plain engine (cached,
eager, weights as they are), measured a moment before. What rounded weights cost is measured in
bits per byte over a part of the validation rows, spread evenly. Memory is told twice: the bytes of
the weights, which are exact, and the high-water mark of the process (of the allocator on CUDA),
which on a CPU never falls below what earlier measurements left behind. Price: `warmup + 2 repeats`
generations a way, some 10 to 40 s more for each compiled one unless its cache is warm, and a
forward pass over the rows for each kind of weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from llm_trainer.config.checks import choice, flags, instance, iterable, refuse, shown, text, whole
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.utils.compiler import compile_problem
from llm_trainer.utils.evaluation import evaluate_rows
from llm_trainer.utils.inference import InferenceEngine

if TYPE_CHECKING:
    import numpy as np

    from llm_trainer.data.dataset import LanguageModelingDataset
    from llm_trainer.data.shards import PackedRows

logger = logging.getLogger(__name__)

PLAIN = "plain"
"""The engine as it is made: cached, eager, weights as they are."""
WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "cache_off": {"enable_kv_cache": False},
    "quantize": {"quantize": True},
    "bfloat16": {"dtype": "bfloat16"},
    "compile": {"compile_model": True},
    "compile_quantize": {"compile_model": True, "quantize": True},
    "compile_bfloat16": {"compile_model": True, "dtype": "bfloat16"},
}
"""Name -> arguments of `InferenceEngine.optimize`."""


@dataclass(frozen=True)
class WayTiming:
    """One way to run the engine."""

    way: str
    figures: dict[str, float] | None
    """Of `InferenceEngine.benchmark`; None if it is not possible here."""
    problem: str | None = None
    """Why it is not possible."""


def benchmark_ways(
    engine: InferenceEngine,
    prompt: str,
    *,
    ways: Sequence[str],
    new_tokens: int,
    repeats: int,
    warmup: int,
    progress: bool = False,
) -> list[WayTiming]:
    """Time the plain engine, then each of `ways`; the engine is plain again at the end.

    Args:
        prompt: continued by itself, greedily, always to the full length.
        ways: names of WAYS.
        new_tokens: tokens generated after it, at least 2.
        repeats: timed runs; the median counts.
        warmup: runs before them; a compiled way has at least one, in which it is compiled.
        progress: show a bar if stderr is a terminal.

    Raises:
        ConfigurationError: an unknown way or an impossible number.
    """
    refuse(
        ConfigurationError,
        instance("engine", engine, InferenceEngine),
        text("prompt", prompt),
        iterable("ways", ways, "names"),
        whole("new_tokens", new_tokens, 2),
        whole("repeats", repeats, 1),
        whole("warmup", warmup, 0),
        flags(progress=progress),
    )
    refuse(ConfigurationError, *(choice("ways: a way", way, WAYS) for way in ways))
    problem = compile_problem(engine.model.device)
    compiled = [way for way in ways if "compile_model" in WAYS[way]]
    if problem and compiled:
        logger.warning("%s cannot be timed: %s", ", ".join(compiled), problem)
    timings = []
    names = [PLAIN, *(way for way in WAYS if way in ways and way != PLAIN)]
    for way in tqdm(names, "options", leave=False, disable=None if progress else True):
        if problem and way in compiled:
            timings.append(WayTiming(way, None, problem))
            continue
        engine.optimize(**WAYS[way])
        figures = engine.benchmark(
            [prompt],
            repeats,
            max_new_tokens=new_tokens,
            warmup_runs=max(warmup, 1) if way in compiled else warmup,
        )
        timings.append(WayTiming(way, figures))
    engine.optimize()
    return timings


def way_metrics(timings: Sequence[WayTiming]) -> dict[str, float | int | str]:
    """Flat figures: `optimize_quantize_tokens_per_second`, `..._tokens_per_second_ratio` and so on.

    A way that is not possible has `optimize_<way>` with the reason, and no figures.
    """
    plain = timings[0].figures
    assert timings[0].way == PLAIN
    assert plain is not None
    metrics: dict[str, float | int | str] = {}
    for timing in timings:
        name = f"optimize_{timing.way}"
        if timing.figures is None:
            metrics[name] = f"not possible: {timing.problem}"
            continue
        for figure, key, scale in (
            ("tokens_per_second", "tokens_per_second", 1),
            ("first_token_ms", "first_token_ms", 1),
            ("model_bytes", "model_mb", 2**20),
            ("peak_memory_bytes", "peak_memory_mb", 2**20),
        ):
            value = timing.figures[key] * scale
            metrics[f"{name}_{figure}"] = round(value) if scale > 1 else value
            if timing.way != PLAIN:
                metrics[f"{name}_{figure}_ratio"] = timing.figures[key] / plain[key]
    return metrics


def precision_metrics(
    engine: InferenceEngine,
    rows: PackedRows | LanguageModelingDataset,
    *,
    ways: Sequence[str],
    token_bytes: np.ndarray,
    max_bytes: int,
    batch_size: int,
    document_mask: bool = False,
) -> dict[str, float | int]:
    """Bits per byte with the weights as they are, and with those of each way that rounds them.

    Args:
        rows: of validation text; as many are scored, spread evenly, as have about `max_bytes`
            bytes of text, at least one batch.
        ways: names of WAYS; those that round no weights, and compiled ones, are left out, since
            compiling changes no more than the rounding of sums.
        token_bytes: see `evaluate_rows`, as for the last two.

    Returns:
        `optimize_<way>_bits_per_byte`, for ways other than plain `..._bits_per_byte_added`, the
        difference to plain, and `optimize_quality_bytes`, what it was measured on.

    Raises:
        ConfigurationError: an unknown way or an impossible number.
    """
    refuse(
        ConfigurationError,
        instance("engine", engine, InferenceEngine),
        iterable("ways", ways, "names"),
        [] if hasattr(rows, "num_bytes") else [f"rows ({shown(rows)}) must be packed rows"],
        whole("max_bytes", max_bytes, 1),
        whole("batch_size", batch_size, 1),
    )
    refuse(ConfigurationError, *(choice("ways: a way", way, WAYS) for way in ways))
    bytes_per_row = rows.num_bytes / len(rows)
    batches = max(1, math.ceil(max_bytes / bytes_per_row / batch_size))
    metrics: dict[str, float | int] = {}
    plain = 0.0
    for way in (PLAIN, *(way for way in WAYS if way in ways and _rounds(way))):
        engine.optimize(**WAYS[way])
        result = evaluate_rows(
            engine.model, rows, token_bytes=token_bytes, batch_size=batch_size,
            document_mask=document_mask, max_batches=batches,
        )  # fmt: skip
        metrics[f"optimize_{way}_bits_per_byte"] = result.bits_per_byte
        if way == PLAIN:
            plain = result.bits_per_byte
            metrics["optimize_quality_bytes"] = result.num_bytes
        else:
            metrics[f"optimize_{way}_bits_per_byte_added"] = result.bits_per_byte - plain
    engine.optimize()
    return metrics


def _rounds(way: str) -> bool:
    options = WAYS[way]
    return ("quantize" in options or "dtype" in options) and "compile_model" not in options
