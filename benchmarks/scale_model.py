"""Scale on paper: `python -m benchmarks.scale_model`.

Fits the single-machine terms of the cost model, checks it against runs of others, works the cases
out, and writes benchmarks/scale_model.json and the pictures docs/images/scale-*.svg. Takes half a
minute and uses one core; nothing is trained. `python -m docs.update_results` then writes the tables
of docs/scale.md.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contest import ROOT
from benchmarks.growth import RESULTS as GROWTH
from benchmarks.scale_cases import cases, corpus
from benchmarks.scale_fit import PEAK, fit
from benchmarks.scale_published import Published, published
from llm_trainer.config.model import ModelConfig
from llm_trainer.files import atomic_path, write_text
from llm_trainer.json_file import read_json
from llm_trainer.utils.hardware import Cluster
from llm_trainer.utils.present import cpu_cluster
from llm_trainer.utils.step_model import Job, step_time

RESULTS = ROOT / "benchmarks" / "scale_model.json"
IMAGES = ROOT / "docs" / "images"
FITTED = ("MPT 7B, rows of 2048", "a100-80:8", "h100:8")
"""The run of each family that its share of the peak was fitted to."""
CPU_RUNS = (
    # name, width, heads, layers, inner, tied, qk_norm, rows, optimizer, measured tokens/s, source
    ("Llama of 5.8 M, compiled, AdamW", 256, 4, 6, 688, True, False, 16, "adamw", 7243,
     "benchmarks/results.json"),
    ("the same, Muon", 256, 4, 6, 688, True, False, 16, "muon", 6279, "benchmarks/results.json"),
    ("192 x 4, compiled, Muon", 192, 3, 4, 512, False, True, 8, "muon", 11492,
     "an earlier default run"),
)  # fmt: skip
"""Compiled steps measured here that no constant was fitted to."""


def main() -> int:
    """Compute, write, draw."""
    results = rounded(
        {
            "fit": fit(read_json(GROWTH)), "cpu": cpu_checks(), "published": checks(),
            "cases": cases(), "corpus": corpus(),
        }
    )  # fmt: skip
    write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    draw_published(results["published"], IMAGES / "scale-published.svg")
    draw_cases(results, IMAGES / "scale-cases.svg")
    for family, figures in summary(results["published"]).items():
        print(f"{family}: {figures}")
    return 0


def rounded(value: Any) -> Any:
    """Floats to 5 digits, so that the file does not depend on the last bit."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def cpu_checks() -> list[dict[str, Any]]:
    """Compiled steps on the CPU, predicted by the constants that eager steps gave."""
    here = cpu_cluster(PEAK, 25 * 10**9)
    rows = []
    for (
        name,
        width,
        heads,
        layers,
        inner,
        tied,
        qk_norm,
        batch,
        optimizer,
        speed,
        source,
    ) in CPU_RUNS:
        model = ModelConfig(
            vocab_size=4096, d_model=width, n_heads=heads, n_layers=layers, d_ff=inner,
            max_seq_len=256, dropout=0.0, attention_dropout=0.0, activation="swiglu",
            norm="rmsnorm", position="rope", bias=False, tie_embeddings=tied, qk_norm=qk_norm,
        )  # fmt: skip
        step = step_time(Job(model, batch, 256, optimizer=optimizer), here)
        found = batch * 256 / step.total
        rows.append({"name": name, "source": source, "measured": speed, "predicted": found,
                     "error": found / speed - 1})  # fmt: skip
    return rows


def checks() -> list[dict[str, Any]]:
    """Every published run with the model's prediction."""
    return [check(run) for run in published()]


def check(run: Published) -> dict[str, Any]:
    """One published run, predicted."""
    cluster: Cluster = run.cluster
    step = step_time(run.job, cluster)
    found = run.job.tokens / step.total
    return {
        "name": run.name, "source": run.source, "hardware": run.hardware,
        "measured": float(run.tokens_per_second), "predicted": found,
        "error": found / run.tokens_per_second - 1, "mfu": step.mfu,
        "fitted": run.name.lower() == FITTED[0].lower() and run.hardware in FITTED[1:],
        "recompute": run.job.recompute, "note": run.note,
    }  # fmt: skip


def family(row: Mapping[str, Any]) -> str:
    """Which table a run belongs to."""
    if row["source"] == "llm-foundry":
        return f"llm-foundry, {row['hardware'].partition(':')[0]}"
    return "other projects"


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Runs, median and largest error of each family, without the fitted run."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if not row["fitted"]:
            groups.setdefault(family(row), []).append(row["error"])
    return {
        name: {
            "runs": len(errors),
            "median": round(statistics.median(abs(e) for e in errors), 3),
            "largest": round(_worst(errors), 3),
            "mean": round(statistics.mean(errors), 3),
        }
        for name, errors in groups.items()
    }


def _worst(errors: Sequence[float]) -> float:
    return max(errors, key=abs)


# --------------------------------------------------------------------------- pictures


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "scale"  # or ids, and so bytes, differ from run to run
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def draw_published(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Predicted against published speed of a GPU."""
    figure, axes = _pyplot().subplots(figsize=(6.4, 5), constrained_layout=True)
    for name, mark in zip(summary(rows), "osd^", strict=False):
        of = [row for row in rows if family(row) == name]
        axes.plot([r["measured"] for r in of], [r["predicted"] for r in of], mark, label=name,
                  alpha=0.75)  # fmt: skip
    ends = [200, 250_000]
    axes.plot(ends, ends, "k-", linewidth=0.8, label="equal")
    for factor in (0.8, 1.25):
        axes.plot(ends, [end * factor for end in ends], "k:", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="tokens/s of a GPU, published",
             ylabel="predicted")  # fmt: skip
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize="small")
    _save(figure, path)


def draw_cases(results: Mapping[str, Any], path: Path) -> None:
    """Memory and speed against ranks, time lost against interval, stages against workers."""
    figure, grid = _pyplot().subplots(2, 2, figsize=(9.6, 7), constrained_layout=True)
    memory, speed, saving, stages = grid.flat
    for name, case in results["cases"].items():
        curve = case["memory"]
        ranks = [p["ranks"] for p in curve]
        for way, mark in (("ddp", "s--"), ("fsdp", "o-")):
            label = f"{name.partition(' on ')[0]}, {way}"
            memory.plot(ranks, [p[way] for p in curve], mark, label=label)
            speed.plot(ranks, [p[f"{way}_tokens"] / curve[0][f"{way}_tokens"] for p in curve],
                       mark, label=label)  # fmt: skip
        one = case["saving"]
        minutes = [i / 60 for i in one["intervals"]]
        saving.plot(minutes, [1 - v for v in one["closed"]], "-", label=f"{name}, closed form")
        saving.plot(minutes, [1 - v for v in one["simulated"]], "x", label="simulated")
    memory.axhline(80, color="k", linewidth=0.8)
    memory.set(xscale="log", xlabel="H100 (80 GB)", ylabel="GB of a rank")
    speed.set(xscale="log", xlabel="H100", ylabel="speed of a rank against one", ylim=(0, 1.1))
    saving.set(xscale="log", yscale="log", xlabel="minutes between checkpoints",
               ylabel="share of the time lost")  # fmt: skip
    work = results["corpus"]["workers"]
    for name in [key for key in work[0] if key != "workers"]:
        stages.plot([p["workers"] for p in work], [p[name] / 60 for p in work], "o-", label=name)
    stages.set(xscale="log", yscale="log", xlabel="workers of 8 cores",
               ylabel="minutes for 1 TB of text")  # fmt: skip
    for axes in grid.flat:
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend(fontsize="x-small")
    _save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
