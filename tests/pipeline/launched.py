"""A small project whose stage `train` runs as several processes, and how to disturb it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.pipeline.repo import wait_for
from tests.pipeline.small_project import PARAMS, ROOT, make_project

TRAINING: dict[str, Any] = {
    "batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 120, "learning_rate": 0.01,
    "warmup_steps": 1, "use_amp": False, "eval_strategy": "no", "deterministic_reduction": True,
}  # fmt: skip
TWO: dict[str, Any] = {"launcher": "torchrun", "nproc_per_node": 2}
OUTPUTS = ("models/final", "plots/train.csv")
LIMIT = 60.0
"""Seconds within which what is left of a training must have ended."""


def make(path: Path) -> Path:
    """The project, with its code beside the data as in a real one."""
    make_project(path)
    for name in ("llm_trainer", "pipeline"):
        (path / name).symlink_to(ROOT / name)
    return path


def configure(path: Path, runtime: dict[str, Any], **training: Any) -> None:
    """Write params.yaml; a checkpoint every 10 steps."""
    sections = PARAMS | {
        "training": TRAINING | training,
        "runtime": {**PARAMS["runtime"], "save_steps": 10, "report_to": ["jsonl"], **runtime},
    }
    (path / "params.yaml").write_text(yaml.safe_dump(sections))


def start(path: Path, module: str = "pipeline.train", *wrapper: str) -> subprocess.Popen[str]:
    """Start the stage as DVC does, under `wrapper` such as `ip netns exec`."""
    return subprocess.Popen(
        [*wrapper, sys.executable, "-m", module], cwd=path, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(path)},
    )  # fmt: skip


def ended(process: subprocess.Popen[str], seconds: float = LIMIT) -> tuple[int, str]:
    """Exit code and stderr, when it has ended."""
    _, err = process.communicate(timeout=seconds)
    return process.returncode, err


def train(path: Path) -> str:
    """Run the stage to its end; returns stderr."""
    code, err = ended(start(path), 120)
    assert code == 0, err
    return err


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training processes of a launcher, by local rank."""
    found = [p for p in psutil.Process(process.pid).children() if p.is_running()]
    return sorted(found, key=lambda p: int(p.environ()["LOCAL_RANK"]))


def newest(path: Path) -> int:
    """Step of the newest checkpoint; 0 if there is none."""
    steps = [int(p.name.split("-")[1]) for p in path.glob(".checkpoints/*/checkpoint-*")]
    return max(steps, default=0)


def after_a_checkpoint(path: Path, process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait until the training has saved anew; returns its processes."""
    before = newest(path)

    def saved() -> bool:
        assert process.poll() is None, process.communicate()
        return newest(path) > before

    wait_for(saved, "a new checkpoint", 100)
    return workers(process)


def disturb(path: Path, victim: str, how: signal.Signals) -> tuple[int, str, float]:
    """Start, send a signal to the launcher or a rank after a checkpoint: code, stderr, seconds.

    Nothing of the training may be left.
    """
    process = start(path)
    found = after_a_checkpoint(path, process)
    began = time.monotonic()
    target = process.pid if victim == "launcher" else found[int(victim)].pid
    os.kill(target, how)
    code, err = ended(process)
    _, left = psutil.wait_procs(found, timeout=5)
    assert not left
    return code, err, time.monotonic() - began


def outputs(path: Path) -> dict[str, bytes]:
    """Path -> bytes of what the stage made."""
    places = [p for name in OUTPUTS for p in (path / name, *(path / name).rglob("*"))]
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in places if p.is_file()}
