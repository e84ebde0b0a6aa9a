"""A small project whose stage `train` runs as several processes, and how to disturb it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline import train
from pipeline.stage import LOCK_NAME
from tests.pipeline.repo import wait_for
from tests.pipeline.small_project import PARAMS, ROOT, make_project

STEPS = 120
TRAINING: dict[str, Any] = {
    "batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": STEPS, "learning_rate": 0.01,
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
    """Exit code and what it printed as errors (or all, if both go one way), when it has ended."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out if err is None else err


def outputs_of_one_process(path: Path) -> dict[str, bytes]:
    """What one process makes of the same configuration, without a launcher; leaves no run."""
    configure(path, {})
    with contextlib.chdir(path):
        train.main()
    shutil.rmtree(path / ".checkpoints")
    return outputs(path)


def launcher(path: Path) -> psutil.Process:
    """The process that holds the lock of the stage."""

    def holder() -> str | None:
        text = (path / LOCK_NAME).read_text() if (path / LOCK_NAME).exists() else ""
        found = re.match(r"process (\d+) \(train\)", text)
        return found and found[1]

    return psutil.Process(int(wait_for(holder, "the stage to begin")))


def workers(process: psutil.Process) -> list[psutil.Process]:
    """The training processes of a launcher, by local rank."""
    found = [p for p in process.children() if "LOCAL_RANK" in p.environ()]
    return sorted(found, key=lambda p: int(p.environ()["LOCAL_RANK"]))


def newest(path: Path) -> int:
    """Step of the newest checkpoint; 0 if there is none."""
    steps = [int(p.name.split("-")[1]) for p in path.glob(".checkpoints/*/checkpoint-*")]
    return max(steps, default=0)


def after_a_checkpoint(path: Path, process: subprocess.Popen[str], before: int) -> None:
    """Wait until the training has saved a later step than `before`."""

    def saved() -> bool:
        assert process.poll() is None, process.communicate()
        return newest(path) > before

    wait_for(saved, "a new checkpoint", 100)


def disturb(
    path: Path, process: subprocess.Popen[str], victim: str, how: signal.Signals
) -> tuple[int, str]:
    """Send a signal to the launcher, or a rank, after a checkpoint: exit code and errors.

    Nothing of the training may be left then.
    """
    after_a_checkpoint(path, process, newest(path))
    leader = launcher(path)
    found = workers(leader)
    os.kill(leader.pid if victim == "launcher" else found[int(victim)].pid, how)
    result = ended(process)
    _, left = psutil.wait_procs(found, timeout=5)
    assert not left
    return result


def outputs(path: Path) -> dict[str, bytes]:
    """Path -> bytes of what the stage made."""
    places = [p for name in OUTPUTS for p in (path / name, *(path / name).rglob("*"))]
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in places if p.is_file()}
