"""P4: what all checks together cost a stage, at the default settings and on the default text.

Each stage runs once, as a process. Training is cut short: its checks are those of the whole run (as
many checkpoints), and the time of the steps that were left out is added: as measured, or as the
committed default run took if that is less, which is the harder test on a busy machine.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import yaml

import tests.conftest  # noqa: F401 - sets the environment that the tests run in
from benchmarks.soak.row import Report, Row
from llm_trainer.config.loader import read_config_file
from llm_trainer.json_file import read_json
from tests.pipeline.repo import ROOT, STAGES

AIM_PERCENT = 2.0
UNNOTICED_SECONDS = 0.1
"""Checks of less than this may be a larger share: the shortest stage takes less than a second."""


def run(folder: Path, scale: float) -> Report:
    """Time every stage; below full scale only those before the training."""
    report = Report()
    params = read_config_file(ROOT / "configs" / "default.yaml")
    steps, saves = params["training"]["max_steps"], params["runtime"]["save_steps"]
    short = -(-steps // saves)  # a checkpoint after each step: as many as the whole run has
    params["training"] |= {
        "max_steps": short, "eval_strategy": "no", "sample_steps": 0, "compile_model": False,
    }  # fmt: skip
    params["runtime"] |= {"save_steps": 1, "report_to": ["console"]}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for name in ("llm_trainer", "pipeline", "benchmarks", "tests"):
        (folder / name).symlink_to(ROOT / name)
    checked = work = 0.0
    for stage in STAGES[: len(STAGES) if scale == 1 else 3]:
        total, checks = _time(folder, stage)
        seconds = sum(checks.values())
        if stage == "train":
            loop = float(read_json(folder / "metrics/train.json")["seconds"])
            total += min(loop / short * steps, _committed_seconds(steps)) - loop
        percent = 100 * seconds / (total - seconds)
        report.counters |= {
            f"{stage}_seconds": round(total, 2),
            f"{stage}_checks_ms": round(1000 * seconds, 1),
            f"{stage}_percent": round(percent, 2),
        }
        report.require(
            percent < AIM_PERCENT or seconds < UNNOTICED_SECONDS,
            f"{stage}: checks add {percent:.2f} %",
        )
        shown = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in checks.items())
        print(f"    {stage}: {shown}", flush=True)
        checked, work = checked + seconds, work + total - seconds
    report.counters["all_stages_percent"] = round(100 * checked / work, 3)
    report.require(100 * checked / work < AIM_PERCENT, "all stages together: above the aim")
    return report


def _committed_seconds(steps: int) -> float:
    """Seconds of the default run's training in metrics/, if it is there."""
    path = ROOT / "metrics" / "train.json"
    figures = read_json(path) if path.is_file() else {}
    return float(figures["seconds"]) if figures.get("steps") == steps else math.inf


def _time(folder: Path, stage: str) -> tuple[float, dict[str, float]]:
    """Seconds of the whole process, and of each group of checks."""
    out = folder / f"{stage}.timed.json"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak.stage_checks", stage, str(out)], cwd=folder,
        env=environment | {"DVC_ROOT": str(folder)}, check=False, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{stage}: {done.stderr}"
    timed = read_json(out)
    return float(timed["total"]), timed["checks"]


ROW = Row("P4", "what all checks add to a stage", run)
