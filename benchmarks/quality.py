"""Time to quality: the peer gets 300 s, we are timed until we have its bits per byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.contest import LOG, ROOT
from benchmarks.corpus import FOLDER
from benchmarks.peers.gpt2_loop import train_for
from benchmarks.recipes import GPT2_QUALITY, default_recipe, quick_recipe

Report = Callable[[str], None]


def run_ours(recipe: Mapping[str, Any], inductor_cache: Path) -> dict[str, float]:
    """Train by a recipe in a process of its own; see `ours_run`."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(inductor_cache)}
    with LOG.open("a") as log:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.ours_run", json.dumps(recipe)], cwd=ROOT,
            env=environment, stdout=subprocess.PIPE, stderr=log, text=True, check=True,
        )  # fmt: skip
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def time_to_quality(report: Report) -> dict[str, Any]:
    """The peer's bits per byte after its time, and our time to them, cold and warm.

    Where our run ends above the peer's figure it is made longer, and all of it counts anew.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        peer = pool.submit(train_for, GPT2_QUALITY).result()
    report(f"gpt2: {peer['bits_per_byte']:.4f} bits per byte after {peer['seconds']:.0f} s")
    recipe = quick_recipe()
    while True:
        with tempfile.TemporaryDirectory(dir=FOLDER) as cache:
            runs = {kind: run_ours(recipe, Path(cache)) for kind in ("cold", "warm")}
        for kind, run in runs.items():
            report(f"ours, {kind}: {run['bits_per_byte']:.4f} after {run['seconds']:.1f} s")
        if runs["warm"]["bits_per_byte"] <= peer["bits_per_byte"]:
            return {"gpt2": peer, **runs}
        recipe["training"]["max_steps"] = round(1.15 * recipe["training"]["max_steps"])


def default_run(report: Report) -> dict[str, Any]:
    """The pipeline's default training, with a cold compile cache."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as cache:
        run = run_ours(
            {**default_recipe(), "training": default_recipe()["training"]
             | {"report_to": ["jsonl"]}}, Path(cache),
        )  # fmt: skip
    report(f"default: {run['bits_per_byte']:.4f} after {run['seconds']:.0f} s")
    return run
