"""What several processes cost and save: `python -m benchmarks.distributed`.

One model, trained a few steps by one process and by two, of one thread each, in each mode: seconds
a step, processor time, memory of a rank. The step is the same in all cases: four micro-batches of
two rows. Cases take turns, each time in fresh processes, so that all meet the same noise; medians
count. Writes benchmarks/distributed.json; takes about ten minutes on 2 cores, and nothing else
should run meanwhile.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.contest import ROOT
from benchmarks.distributed_case import (
    BATCH_SIZE,
    LAYERS,
    MICRO_BATCHES,
    ROW_LENGTH,
    VOCAB_SIZE,
    WIDTH,
)
from llm_trainer.exceptions import TrainingError
from llm_trainer.files import write_text
from llm_trainer.utils.machine import describe_machine

RESULTS = ROOT / "benchmarks" / "distributed.json"
ROUNDS = 2
FIGURES = ("seconds", "cpu_seconds", "weights_mb", "optimizer_mb", "peak_mb")


@dataclass(frozen=True)
class Case:
    """A way to train."""

    processes: int
    parallel: str = "auto"
    exact: bool = False
    """With deterministic_reduction."""
    recomputed: bool = False
    """With activation_checkpointing."""


ONE = Case(1)
CASES = (
    ONE, Case(1, exact=True), Case(1, recomputed=True),
    Case(2, "ddp"), Case(2, "ddp", exact=True),
    Case(2, "fsdp"), Case(2, "fsdp", exact=True), Case(2, "fsdp", recomputed=True),
)  # fmt: skip


def main() -> int:
    """Measure all cases in turns, and write the figures down."""
    rounds: dict[Case, list[dict[str, float]]] = {case: [] for case in CASES}
    for number in range(ROUNDS):
        for case in CASES:
            rounds[case].append(measure(case))
            print(f"  {number + 1}: {case}: {rounds[case][-1]['seconds']:.2f} s", flush=True)
    rows = [row(case, measured, rounds[ONE]) for case, measured in rounds.items()]
    results = {
        "model": {
            "width": WIDTH, "layers": LAYERS, "vocab_size": VOCAB_SIZE, "row_length": ROW_LENGTH,
            "tokens_a_step": BATCH_SIZE * MICRO_BATCHES * ROW_LENGTH,
        },
        "runs": rows,
        "machine": describe_machine(),
    }  # fmt: skip
    write_text(RESULTS, json.dumps(results, indent=2) + "\n")
    for each in rows:
        print(json.dumps(each))
    return 0


def measure(case: Case) -> dict[str, float]:
    """Figures of a run: those of its slowest, or largest, rank.

    Raises:
        TrainingError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "-m",
            "benchmarks.distributed_case",
            json.dumps(asdict(case) | {"out": folder}),
        ]
        if case.processes > 1:
            arguments = [
                "-m", "torch.distributed.run", "--standalone",
                f"--nproc_per_node={case.processes}", *arguments,
            ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise TrainingError(f"{case}: exit code {done.returncode}: {done.stdout[-2000:]}")
        ranks: list[dict[str, float]] = [
            json.loads((Path(folder) / f"rank{rank}.json").read_text(encoding="utf-8"))
            for rank in range(case.processes)
        ]
    return {name: max(rank[name] for rank in ranks) for name in FIGURES}


def row(
    case: Case, measured: list[dict[str, float]], one: list[dict[str, float]]
) -> dict[str, Any]:
    """Medians of a case, and what share of the processes' time went into what one would do."""
    found = {name: statistics.median(each[name] for each in measured) for name in FIGURES}
    alone = statistics.median(each["seconds"] for each in one)
    efficiency = alone / (case.processes * found["seconds"])
    # processor time of a rank, which other work on the machine does not add to
    work = statistics.median(each["cpu_seconds"] for each in one)
    return {
        **asdict(case),
        "step_seconds": round(found["seconds"], 3),
        "cpu_seconds_a_rank": round(found["cpu_seconds"], 3),
        "efficiency": round(efficiency, 3),
        "efficiency_by_cpu_time": round(work / (case.processes * found["cpu_seconds"]), 3),
        "weights_mb_a_rank": round(found["weights_mb"], 1),
        "optimizer_mb_a_rank": round(found["optimizer_mb"], 1),
        "peak_mb_a_rank": round(found["peak_mb"]),
    }


if __name__ == "__main__":
    sys.exit(main())
