"""The curve of a run as files: a CSV for DVC plots and a PNG for people.

Both come from the history and the evaluations in the checkpoint, never from the log, so they do not
depend on logging intervals or on interruptions.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from llm_trainer.files import atomic_path, write_text
from llm_trainer.training.state import TrainerState

MAX_POINTS = 400
COLUMNS = ("step", "train_loss", "learning_rate", "grad_norm", "eval_loss", "eval_bits_per_byte")


def curve_rows(state: TrainerState) -> list[dict[str, float | int | str]]:
    """At most about MAX_POINTS rows: means over equal windows of steps, and each evaluation."""
    steps = len(state.history)
    window = max(1, math.ceil(steps / MAX_POINTS))
    rows: dict[int, dict[str, float | int | str]] = {}
    for start in range(0, steps, window):
        part = state.history[start : start + window]
        losses = [loss for loss, _, _ in part if math.isfinite(loss)]
        end = start + len(part)
        rows[end] = {
            "step": end,
            "train_loss": sum(losses) / len(losses) if losses else "",
            "learning_rate": part[-1][1],
            "grad_norm": sum(norm for _, _, norm in part) / len(part),
        }
    for entry in state.evaluations:
        row = rows.setdefault(int(entry["step"]), {"step": int(entry["step"])})
        row["eval_loss"] = entry["loss"]
        if "bits_per_byte" in entry:
            row["eval_bits_per_byte"] = entry["bits_per_byte"]
    return [rows[step] for step in sorted(rows)]


def write_curve(state: TrainerState, path: Path) -> None:
    """Write the curve as CSV with the columns COLUMNS."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in curve_rows(state):
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_text(path, buffer.getvalue())


def draw_curve(state: TrainerState, path: Path) -> None:
    """Draw training and validation loss and the learning rate over the steps, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = curve_rows(state)
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    train = [(r["step"], r["train_loss"]) for r in rows if r.get("train_loss", "") != ""]
    axes.plot(*zip(*train, strict=True), color="#9db4d0", linewidth=1, label="training")
    smooth = _smooth([float(loss) for _, loss in train])
    axes.plot(
        [s for s, _ in train], smooth, color="#1f4e8c", linewidth=1.6, label="training, smoothed"
    )
    evaluated = [(r["step"], r["eval_loss"]) for r in rows if "eval_loss" in r]
    if evaluated:
        axes.plot(
            *zip(*evaluated, strict=True), color="#c8501e", marker="o", markersize=3,
            linewidth=1.4, label="validation",
        )  # fmt: skip
        last = next(r for r in reversed(rows) if "eval_loss" in r)
        text = f"{last['eval_loss']:.3f}"
        if "eval_bits_per_byte" in last:
            text += f" ({last['eval_bits_per_byte']:.3f} bits per byte)"
        axes.annotate(
            text, (float(last["step"]), float(last["eval_loss"])), xytext=(-6, 12),
            textcoords="offset points", ha="right", color="#c8501e",
        )  # fmt: skip
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    rate = axes.twinx()
    rates = [(r["step"], r["learning_rate"]) for r in rows if "learning_rate" in r]
    rate.plot(*zip(*rates, strict=True), color="#888888", linewidth=0.8, linestyle=":")
    rate.set_ylabel("learning rate (dotted)", color="#888888")
    rate.set_ylim(bottom=0)
    axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        # no software version in the file, so that the same run gives the same bytes
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average without the bias of its start."""
    smoothed, total, scale = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        scale = weight * scale + (1 - weight)
        smoothed.append(total / scale)
    return smoothed
