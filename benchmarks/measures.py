"""The measures by name, in the order of their table; each gives ratios and the raw figures.

A measure is a function of a `Report`; some give several names, which are measured together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import harmonic_mean
from statistics import median as middle
from typing import Any

from benchmarks.contest import Figures, hold, median
from benchmarks.recipes import HF_GENERATE, HF_TRAINER

Report = Callable[[str], None]
Ratios = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One figure of the table."""

    name: str
    what: str
    """For people, in a few words."""
    bar: float
    goal: float | None
    lower_is_better: bool = False

    def met(self, value: float) -> str:
        """goal, bar, or no."""
        sign = -1 if self.lower_is_better else 1
        if self.goal is not None and sign * value >= sign * self.goal:
            return "goal"
        return "bar" if sign * value >= sign * self.bar else "no"


ROWS = (
    Row("train_vs_hf", "training tokens/s against the HF Trainer's best", 1.5, 2.0),
    Row("train_vs_gpt2", "training tokens/s against the GPT-2 loop, fp32", 2.2, 3.0),
    Row("mfu", "share of the bf16 matmul peak in training", 0.65, 0.80),
    Row("time_to_quality_warm", "GPT-2's bits per byte after 300 s, sooner by, warm", 4.5, 10.0),
    Row("time_to_quality_cold", "the same with a cold compile cache", 3.0, 6.0),
    Row("default_bpb", "bits per byte of the default run", 1.34, 1.15, lower_is_better=True),
    Row("pack_vs_datasets", "text to shards, MB/s, against datasets.map", 6.0, 10.0),
    Row("pack_memory_1gb_vs_20mb", "its peak memory, 1 GB against 20 MB", 1.1, None, True),
    Row("generate_b1_vs_hf", "generation, 1 prompt, against HF generate", 2.3, 4.0),
    Row("generate_b16_vs_hf", "generation, 16 prompts, against HF generate", 2.3, 4.0),
    Row("quantize_speedup", "int8 generation against unquantised", 1.3, 2.0),
    Row("quantize_bpb_loss", "its loss in bits per byte", 0.01, None, lower_is_better=True),
    Row("noop_vs_dvc", "dvc repro with nothing to do, against bare DVC", 1.1, 1.0, True),
    Row("stage_overhead_light_s", "start-up of a stage without torch, s", 1.0, None, True),
    Row("stage_overhead_torch_s", "start-up of a stage with torch, s", 3.0, None, True),
    Row("tracking_overhead", "time that all tracking adds to training", 0.02, 0.005, True),
)

STEPS, WARMUP = 10, 4
PROMPT_TOKENS, NEW_TOKENS = 32, 128


def training(report: Report, rounds: int = 8) -> tuple[Ratios, Any]:
    """Tokens per second at shape A, AdamW for all; beside it what Muon costs."""
    pace = {"steps": STEPS, "warmup": WARMUP}
    figures = hold(
        {
            "ours": ("ours_training", pace),
            "ours_muon": (
                "ours_training",
                {**pace, "training": {"optimizer": "muon", "learning_rate": 0.01}},
            ),
            **{
                f"hf: {name}": ("peers.hf_training", {**HF_TRAINER[name], **pace})
                for name in ("Llama, bf16, attention written out", "Llama, bf16, compiled",
                             "Llama, bf16, compiled, attention written out",
                             "GPT-2, bf16, compiled")
            },
            "gpt2_loop_fp32": (
                "peers.gpt2_loop",
                {**pace, "width": 256, "heads": 4, "layers": 6, "batch_size": 16,
                 "learning_rate": 1e-3},
            ),
        },
        rounds, report,
    )  # fmt: skip
    speed = _medians(figures, "tokens_per_second")
    best = max(v for k, v in speed.items() if k.startswith("hf: "))
    ratios = {
        "train_vs_hf": speed["ours"] / best,
        "train_vs_gpt2": speed["ours"] / speed["gpt2_loop_fp32"],
        "mfu": median(figures["ours"], "peak_share"),
    }
    return ratios, {"tokens_per_second": speed, "rounds": figures}


def quality(report: Report) -> tuple[Ratios, Any]:
    """Time to the quality that the GPT-2 recipe has after 300 s."""
    from benchmarks.quality import time_to_quality

    runs = time_to_quality(report)
    peer = runs["gpt2"]["seconds"]
    return {f"time_to_quality_{k}": peer / runs[k]["seconds"] for k in ("warm", "cold")}, runs


def default_bpb(report: Report) -> tuple[Ratios, Any]:
    """The default training of params.yaml, cold."""
    from benchmarks.quality import default_run

    run = default_run(report)
    return {"default_bpb": run["bits_per_byte"]}, run


def packing(report: Report, rounds: int = 3) -> tuple[Ratios, Any]:
    """Raw text to packed rows with two processes each."""
    args = {"megabytes": 60, "processes": 2}
    figures = hold(
        {"ours": ("ours_packing", args), "datasets": ("peers.hf_packing", args)}, rounds, report
    )
    speed = _medians(figures, "mb_per_second")
    return {"pack_vs_datasets": speed["ours"] / speed["datasets"]}, {
        "mb_per_second": speed, "rounds": figures,
    }  # fmt: skip


def packing_memory(report: Report, processes: int = 3) -> tuple[Ratios, Any]:
    """Peak memory of the largest process on 20 MB and on 1 GB, in turns; a peak is of a whole
    process, so each round has processes of its own."""
    rounds: dict[int, list[Figures]] = {20: [], 1000: []}
    for _ in range(processes):
        for size, figures in rounds.items():
            args = {"megabytes": size, "processes": 2}
            figures.append(hold({"ours": ("ours_packing", args)}, 1, report)["ours"][1])
    peak = {n: float(middle(f["peak_mb"] for f in figures)) for n, figures in rounds.items()}
    raw = {"peak_mb": {str(size): value for size, value in peak.items()}}
    return {"pack_memory_1gb_vs_20mb": peak[1000] / peak[20]}, raw | {
        "rounds": {str(size): figures for size, figures in rounds.items()}
    }


def generation(report: Report, rounds: int = 5) -> tuple[Ratios, Any]:
    """Greedy tokens per second; the best of ours that keeps the weights' 16 bits, the best of
    theirs; int8 against the best of ours."""
    ratios: Ratios = {}
    raw: dict[str, Any] = {}
    gains = []
    for batch in (1, 16):
        args = {"batch_size": batch, "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS}
        compiled = {"compile_model": True}
        options: dict[str, dict[str, Any]] = {
            "ours_eager": {},
            "ours_compiled": compiled,
            "ours_compiled_bf16": {**compiled, "dtype": "bfloat16"},
            "ours_int8": {"quantize": True},
            "ours_compiled_int8": {**compiled, "quantize": True},
        }
        peers = {
            f"hf: {name}": HF_GENERATE[name]
            for name in ("Llama, bf16", "Llama, bf16, static cache, compiled", "GPT-2",
                         "GPT-2, bf16")
        }  # fmt: skip
        figures = hold(
            {name: ("ours_generation", {**args, "options": o}) for name, o in options.items()}
            | {name: ("peers.hf_generation", {**args, **p}) for name, p in peers.items()},
            rounds, report,
        )  # fmt: skip
        speed = _medians(figures, "tokens_per_second")
        theirs = max(speed[name] for name in peers)
        ratios[f"generate_b{batch}_vs_hf"] = (
            max(speed["ours_compiled"], speed["ours_compiled_bf16"]) / theirs
        )
        gains.append(speed["ours_compiled_int8"] / speed["ours_compiled"])
        raw[f"batch_{batch}"] = {"tokens_per_second": speed, "rounds": figures}
    ratios["quantize_speedup"] = min(gains)
    return ratios, raw


def quantization(report: Report) -> tuple[Ratios, Any]:
    """Bits per byte of the model in models/final with int8 weights, less without."""
    from benchmarks.quantization_loss import measure

    raw = measure()
    report(f"int8: {raw['int8']:.5f} bits per byte, float32 {raw['float32']:.5f}")
    return {"quantize_bpb_loss": raw["int8"] - raw["float32"]}, raw


def overhead(report: Report, rounds: int = 7) -> tuple[Ratios, Any]:
    """What the pipeline adds around its work."""
    from benchmarks.overhead import LIGHT_STAGES, TORCH_STAGE, measure_overhead

    seconds = measure_overhead(rounds, report)
    return {
        "noop_vs_dvc": seconds["noop"] / seconds["bare_dvc"],
        "stage_overhead_light_s": max(seconds[stage] for stage in LIGHT_STAGES),
        "stage_overhead_torch_s": seconds[TORCH_STAGE],
    }, seconds


TRACKING_STEPS = 20
"""Steps of a turn, two seconds: the machine drifts within a minute by more than is measured."""
TRACKING_BLOCK = 10
"""Turns whose times are added up, so that each block has a checkpoint."""


def tracking(report: Report, blocks: int = 8) -> tuple[Ratios, Any]:
    """The default model, with all trackers and checkpoints and without, as long as a default run.

    The median over blocks of turns, so that a moment in which the machine was busy does not count.
    """
    from benchmarks.recipes import default_recipe

    recipe = default_recipe()
    keys = ("batch_size", "optimizer", "learning_rate")
    pace = {
        "steps": TRACKING_STEPS, "warmup": 10, "model": recipe["model"],
        "training": {key: recipe["training"][key] for key in keys},
    }  # fmt: skip
    everything = {
        "report_to": ["mlflow", "tensorboard", "console"], "logging_steps": 10, "save_steps": 200,
    }  # fmt: skip
    figures = hold(
        {
            "with": (
                "ours_training", {**pace, "training": {**pace["training"], **everything}}
            ),
            "without": (
                "ours_training",
                {**pace, "training": {**pace["training"], "logging_steps": 1_000_000}},
            ),
        },
        blocks * TRACKING_BLOCK, report,
    )  # fmt: skip
    speeds = {
        name: [
            harmonic_mean(
                piece["tokens_per_second"] for piece in pieces[start : start + TRACKING_BLOCK]
            )
            for start in range(1, len(pieces), TRACKING_BLOCK)
        ]
        for name, pieces in figures.items()
    }
    overheads = [
        without / with_all - 1.0
        for without, with_all in zip(speeds["without"], speeds["with"], strict=True)
    ]
    return {"tracking_overhead": middle(overheads)}, {
        "overhead_of_blocks": overheads, "tokens_per_second_of_blocks": speeds,
    }  # fmt: skip


MEASURES: dict[Callable[[Report], tuple[Ratios, Any]], tuple[str, ...]] = {
    training: ("train_vs_hf", "train_vs_gpt2", "mfu"),
    quality: ("time_to_quality_warm", "time_to_quality_cold"),
    default_bpb: ("default_bpb",),
    packing: ("pack_vs_datasets",),
    packing_memory: ("pack_memory_1gb_vs_20mb",),
    generation: ("generate_b1_vs_hf", "generate_b16_vs_hf", "quantize_speedup"),
    quantization: ("quantize_bpb_loss",),
    overhead: ("noop_vs_dvc", "stage_overhead_light_s", "stage_overhead_torch_s"),
    tracking: ("tracking_overhead",),
}
"""Each measure and the names that it gives."""


def _medians(figures: dict[str, list[Figures]], key: str) -> dict[str, float]:
    return {name: median(pieces, key) for name, pieces in figures.items()}
