"""What was tried for the peers, so that each is measured at its best.

`python -m benchmarks.peer_tries`: settings of the GPT-2 loop by the bits per byte that they reach,
those of the HF Trainer and of HF generate by their speed. Writes benchmarks/peer_tries.json;
`--only GROUP` measures one group again. Which settings the comparison then uses stands in `recipes`
and `measures`. Takes about half an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.contest import ROOT, hold, median
from benchmarks.measures import NEW_TOKENS, PROMPT_TOKENS, STEPS, WARMUP
from benchmarks.peers.gpt2_loop import planned_steps, train_steps
from benchmarks.recipes import HF_GENERATE, HF_TRAINER, TRY_SECONDS
from llm_trainer.files import write_text
from llm_trainer.json_file import read_json
from llm_trainer.utils.machine import describe_machine

RESULTS = ROOT / "benchmarks" / "peer_tries.json"
ROUNDS = 3
_SHAPES = {"256 x 6": (256, 4, 6), "192 x 4": (192, 3, 4), "192 x 2": (192, 3, 2),
           "128 x 3": (128, 2, 3)}  # fmt: skip
GPT2_LOOP: tuple[tuple[str, int, float], ...] = (
    ("256 x 6", 2, 1e-3),
    ("256 x 6", 4, 5e-4),
    ("256 x 6", 4, 1e-3),
    ("256 x 6", 4, 2e-3),
    ("256 x 6", 4, 4e-3),
    ("256 x 6", 8, 1e-3),
    ("256 x 6", 8, 2e-3),
    ("256 x 6", 8, 4e-3),
    ("256 x 6", 16, 2e-3),
    ("192 x 4", 4, 2e-3),
    ("192 x 2", 4, 2e-3),
    ("128 x 3", 4, 2e-3),
)
"""Width x layers, rows of a batch, peak learning rate."""

Tries = dict[str, float]
"""Setting -> figure."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the groups; each is written when it is done."""
    groups = {
        "gpt2_loop": gpt2_loop,
        "hf_trainer": hf_trainer,
        "hf_generate_1": lambda: hf_generate(1),
        "hf_generate_16": lambda: hf_generate(16),
    }
    parser = argparse.ArgumentParser(description="Measure what was tried for the peers.")
    parser.add_argument("--only", choices=groups, help="this group; the others stay as they are")
    only = parser.parse_args(arguments).only
    results = read_json(RESULTS) if RESULTS.exists() else {}
    for name in (only,) if only else groups:
        results[name] = {"figures": groups[name](), "machine": describe_machine()}
        write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    return 0


def gpt2_loop() -> Tries:
    """Bits per byte after as many steps as fit into TRY_SECONDS.

    The steps of each setting are counted with all threads, alone; then one setting a processor is
    trained at once, with one thread each, which changes no result beyond rounding.
    """
    settings = [
        dict(zip(("width", "heads", "layers"), _SHAPES[shape], strict=True))
        | {"batch_size": batch_size, "learning_rate": rate}
        for shape, batch_size, rate in GPT2_LOOP
    ]
    steps = [planned_steps(args, TRY_SECONDS) for args in settings]
    figures: Tries = {}
    with ProcessPoolExecutor(
        os.cpu_count(), mp_context=get_context("spawn"), initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:  # fmt: skip
        done = tqdm(pool.map(train_steps, settings, steps), total=len(steps), unit="setting")
        for (shape, batch_size, rate), figure in zip(GPT2_LOOP, done, strict=True):
            name = f"{shape}, {batch_size} rows, {rate:g}"
            figures[name] = figure["bits_per_byte"]
            tqdm.write(f"{name}: {figure['bits_per_byte']:.4f} after {figure['steps']} steps")
    return figures


def hf_trainer() -> Tries:
    """Tokens per second at shape A, in turns."""
    pace = {"steps": STEPS, "warmup": WARMUP}
    return _speeds("peers.hf_training", HF_TRAINER, pace)


def hf_generate(batch_size: int) -> Tries:
    """Tokens per second of greedy generation, in turns."""
    work = {"batch_size": batch_size, "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS}
    return _speeds("peers.hf_generation", HF_GENERATE, work)


def _speeds(module: str, settings: Mapping[str, Mapping[str, Any]], args: dict[str, Any]) -> Tries:
    entrants = {name: (module, {**args, **more}) for name, more in settings.items()}
    figures = hold(entrants, ROUNDS, lambda line: print(f"  {line}", flush=True))
    return {name: median(pieces, "tokens_per_second") for name, pieces in figures.items()}


if __name__ == "__main__":
    sys.exit(main())
