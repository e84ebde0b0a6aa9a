"""The tables of docs/performance.md about the peers, from the recorded figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.measures import ROWS
from benchmarks.recipes import TRY_SECONDS


def peers(results: Mapping[str, Any]) -> str:
    """What `make bench` measured, against bar and goal."""
    lines = ["| Figure | | Measured | Bar | Goal |", "| --- | --- | --- | --- | --- |"]
    for row in ROWS:
        if row.name not in results["ratios"]:
            continue
        value = results["ratios"][row.name]
        sign = "at most " if row.lower_is_better else ""
        goal = "" if row.goal is None else f"{row.goal:g}"
        lines.append(
            f"| `{row.name}` | {row.what} | **{value:.3g}** | {sign}{row.bar:g} | {goal} |"
        )
    machine = results["machine"]
    packages = ", ".join(f"{name} {value}" for name, value in machine["packages"].items())
    lines += ["", f"On {machine['cpu']}, {machine['threads']} threads, Python "
              f"{machine['python']}; {packages}."]  # fmt: skip
    elsewhere: dict[str, list[str]] = {}
    for name, cpu in results["cpus"].items():
        if cpu != machine["cpu"]:
            elsewhere.setdefault(cpu, []).append(f"`{name}`")
    for cpu, names in elsewhere.items():
        lines.append(f"On {cpu}: {', '.join(names)}.")
    return "\n".join(lines)


def peer_settings(results: Mapping[str, Any]) -> str:
    """All settings that were tried for the peers, the best of each group in bold."""
    heads = {
        "gpt2_loop": (
            f"GPT-2 loop, {TRY_SECONDS} s: width x layers, rows, peak rate",
            "bits per byte",
        ),
        "hf_trainer": ("HF Trainer", "training tokens/s"),
        "hf_generate_1": ("HF generate, 1 prompt", "tokens/s"),
        "hf_generate_16": ("HF generate, 16 prompts", "tokens/s"),
    }
    lines = []
    for group, (what, figure) in heads.items():
        if group not in results:  # not measured yet
            continue
        tries: Mapping[str, float] = results[group]["figures"]
        fewer = group == "gpt2_loop"
        best = (min if fewer else max)(tries.values())
        lines += [f"| {what} | {figure} |", "| --- | --- |"]
        for name, value in tries.items():
            shown = f"{value:.3f}" if fewer else f"{value:,.0f}"
            lines.append(f"| {name} | {f'**{shown}**' if value == best else shown} |")
        lines += ["", f"On {results[group]['machine']['cpu']}.", ""]
    return "\n".join(lines[:-1])
