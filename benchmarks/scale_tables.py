"""The tables of docs/scale.md, from benchmarks/scale_model.json and, where they are there, from
distributed.json and data_scale.json. `docs.update_results` puts them between their markers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.scale_model import summary
from llm_trainer.utils.planning import format_bytes, format_seconds

Results = Mapping[str, Any]


def tables(
    results: Results, distributed: Results | None = None, data: Results | None = None
) -> dict[str, str]:
    """Marker -> Markdown."""
    found = {
        "fit": _fit(results["fit"]), "cpu": _cpu(results["cpu"]),
        "published": _published(results["published"]), "others": _others(results["published"]),
        "corpus": _corpus(results["corpus"]),
        "distributed": several_processes(distributed),
        "data scale": data_scale(data),
    }  # fmt: skip
    for marker, case in zip(("small case", "large case"), results["cases"].values(), strict=True):
        found[marker] = _case(case)
    return found


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(share: float) -> str:
    return f"{share:+.0%}" if abs(share) >= 0.005 else "0%"


def _fit(fit: Results) -> str:
    constants = fit["constants"]
    rows = [
        (
            f"{p['width']} x {p['layers']}", f"{p['row']:,}", f"{p['measured_us']:.1f}",
            f"{p['predicted_us']:.1f}", f"{p['error']:+.1%}", f"{p['memory_mb']:,}",
            f"{p['planned_mb']:,}", f"{p['memory_error']:+.0%}",
            "held out" if p["held_out"] else "",
        )
        for p in fit["points"]
    ]  # fmt: skip
    told = (
        f"Found: {constants['bandwidth'] / 1e9:.0f} GB/s between products and "
        f"{constants['kernel_seconds'] * 1e6:.0f} µs a kernel, at {constants['matmul_share']:.0%} "
        f"of the peak in products."
    )
    heads = (
        "Width x layers", "Row", "Measured, µs a token", "Model", "Error", "Measured, MB", "Plan",
        "Error", "",
    )  # fmt: skip
    return f"{table(heads, rows)}\n\n{told}"


def _cpu(checks: Sequence[Results]) -> str:
    rows = [
        (row["name"], f"{row['measured']:,}", f"{row['predicted']:,.0f}", f"{row['error']:+.1%}",
         f"`{row['source']}`")
        for row in checks
    ]  # fmt: skip
    return table(("Step", "Measured, tokens/s", "Model", "Error", "From"), rows)


def _published(rows: Sequence[Results]) -> str:
    figures = summary(rows)
    lines = [
        (name, f"{f['runs']:.0f}", f"{f['median']:.0%}", _percent(f["mean"]),
         _percent(f["largest"]))
        for name, f in figures.items()
    ]  # fmt: skip
    heads = ("Runs", "Number", "Median error", "Mean", "Largest")
    return table(heads, lines)


def _others(rows: Sequence[Results]) -> str:
    lines = []
    for row in rows:
        chip, _, count = row["hardware"].partition(":")
        is_edge = row["name"].startswith("MPT") and (
            row["fitted"] or abs(row["error"]) > 0.14 or count in ("64", "128")
        )
        if row["source"] != "llm-foundry" or is_edge:
            note = "**fitted**" if row["fitted"] else row["note"]
            lines.append(
                (
                    row["name"], f"{count} x {chip}", row["source"], f"{row['measured']:,.0f}",
                    f"{row['predicted']:,.0f}", _percent(row["error"]), note,
                )
            )  # fmt: skip
    heads = ("Run", "On", "Source", "tokens/s of a GPU", "Model", "Error", "Note")
    return table(heads, lines)


def _case(case: Results) -> str:
    ways = table(
        ("Spread", "Step", "MFU", "Network a step", "not hidden", "Memory a rank", "", "Run",
         "Price"),
        [
            (
                w["way"], f"{w['step_s']:.2f} s", f"{w['mfu']:.0%}", f"{w['network_s']:.2f} s",
                f"{w['exposed_s']:.2f} s", f"{w['memory_gb']:.0f} GB", w["verdict"],
                *(("-", "-") if w["verdict"] in ("impossible", "too large") else
                  (format_seconds(w["hours"] * 3600), f"${w['price']:,.0f}")),
            )
            for w in case["ways"]
        ],
    )  # fmt: skip
    changes = table(
        ("If (under fsdp)", "the run takes"),
        [(row["change"], f"{row['time']:+.1%}") for row in case["sensitivity"]],
    )
    saving = case["saving"]
    told = (
        f"{case['parameters'] / 1e9:.2f} B parameters, {case['tokens'] / 1e9:.0f} B tokens in "
        f"{case['steps']:,} steps of {case['tokens_per_step'] / 1e6:.2f} M. A checkpoint is "
        f"{format_bytes(saving['bytes'])}: {format_seconds(saving['write_s'])} with all nodes "
        f"writing, {format_seconds(saving['one_writer_s'])} with one. A failure comes every "
        f"{saving['between_h']:,.0f} hours; saving every {format_seconds(saving['best_s'])} then "
        f"loses {1 - saving['goodput']:.2%} of the time in all, and "
        f"{1 - saving['asynchronous']:.2%} when saving does not stop training."
    )
    return f"{told}\n\n{ways}\n\n{changes}"


def _corpus(corpus: Results) -> str:
    stages = table(
        ("Stage", "Time", "Waits for", "Read", "Written", "Requests", "Memory of a process"),
        [
            (
                s["name"], format_seconds(s["seconds"]), s["bound"], format_bytes(s["read"]),
                format_bytes(s["written"]), f"{s['requests']:,.0f}", format_bytes(s["memory"]),
            )
            for s in corpus["stages"]
        ],
    )  # fmt: skip
    changes = table(
        ("If", "all of it takes"),
        [(row["change"], f"{row['time']:+.0%}") for row in corpus["sensitivity"]],
    )
    price = corpus["price"]
    told = (
        f"{corpus['tokens'] / 1e9:.0f} B tokens; {format_bytes(corpus['parquet_bytes'])} of "
        f"Parquet and {format_bytes(corpus['rows_bytes'])} of rows. Workers "
        f"${price['workers']:,.0f}, a month of storage ${price['storage']:,.0f}, requests "
        f"${price['requests']:,.2f}."
    )
    return f"{told}\n\n{stages}\n\n{changes}"


def _absent(name: str) -> str:
    return f"`{name}` is not there yet, so nothing stands here."


def several_processes(results: Results | None) -> str:
    """What `benchmarks.distributed` measured."""
    if results is None:
        return _absent("benchmarks/distributed.json")
    more = {"exact": "deterministic_reduction", "recomputed": "activation_checkpointing"}
    rows = [
        (
            str(run["processes"]),
            " + ".join(
                ["-" if run["processes"] == 1 else run["parallel"],
                 *(f"`{key}`" for name, key in more.items() if run[name])]
            ),
            f"{run['step_seconds']:.2f} s", f"{run['cpu_seconds_a_rank']:.2f} s",
            f"{run['efficiency']:.0%}", f"{run['efficiency_by_cpu_time']:.0%}",
            f"{run['weights_mb_a_rank']:,.0f} MB", f"{run['optimizer_mb_a_rank']:,.0f} MB",
            f"{run['peak_mb_a_rank']:,} MB",
        )
        for run in results["runs"]
    ]  # fmt: skip
    heads = (
        "Processes", "Mode", "A step", "its processor time", "Efficiency", "by processor time",
        "Weights", "Optimizer", "Peak of a rank",
    )  # fmt: skip
    model, machine = results["model"], results["machine"]
    told = (
        f"A Llama of {model['layers']} layers x {model['width']}, AdamW, bfloat16, eager, "
        f"{model['tokens_a_step']:,} tokens a step; one thread a process, on {machine['cpu']}. "
        f"Efficiency is the time of one process over that of all."
    )
    return f"{table(heads, rows)}\n\n{told}"


def data_scale(results: Results | None) -> str:
    """What `benchmarks.data_scale` measured."""
    if results is None:
        return _absent("benchmarks/data_scale.json")
    stages = zip(results["runs"][::2], results["runs"][1::2], strict=True)
    return table(
        ("Engine", "Workers", "Download", "Packing", "Peak memory: driver", "a worker"),
        (
            (
                first["engine"] + (", one killed in each stage" if first["killed"] else ""),
                str(first["workers"]),
                f"{first['mb_per_second']:.1f} MB/s",
                f"{second['mb_per_second']:.1f} MB/s",
                f"{max(first['driver_peak_mb'], second['driver_peak_mb']):,} MB",
                f"{max(first['worker_peak_mb'], second['worker_peak_mb']):,} MB",
            )
            for first, second in stages
        ),
    )
