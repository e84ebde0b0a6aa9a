"""A stage `train` that is killed under DVC goes on when the same command is given again.

In the workspace, and in the copy of it in which a queue works; each ends in the bytes of an
undisturbed run.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.pipeline.repo import Repo, stages_run, wait_for

pytestmark = pytest.mark.slow

STEPS = 240
LONG = {"training__max_steps": STEPS, "training__eval_steps": 120, "training__sample_steps": 0}
SET = [
    part for key, value in LONG.items()
    for part in ("--set-param", f"{key.replace('__', '.')}={value}")
]  # fmt: skip


@pytest.fixture(scope="module")
def start(repo: Repo) -> Repo:
    """The project with checkpoints at short intervals; runtime is no param of any stage."""
    repo.set(runtime__save_steps=20, runtime__save_total_limit=1, runtime__report_to=["console"])
    repo.commit("checkpoints every 20 steps")
    return repo


@pytest.fixture(scope="module")
def undisturbed(start: Repo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Model and curve of a run that nothing stopped."""
    repo = start.copy(tmp_path_factory.mktemp("undisturbed") / "project")
    repo.set(**LONG)
    assert repo.repro("train") == ["train"]
    return repo.files("models/final", "plots/train.csv")


@pytest.fixture
def project(start: Repo, tmp_path: Path) -> Repo:
    return start.copy(tmp_path / "project")


def runs(repo: Repo) -> set[Path]:
    return set((repo.path / ".checkpoints").glob("*"))


def kill_at_a_checkpoint(
    repo: Repo, command: Sequence[str], before: set[Path], how: signal.Signals, beyond: int = 0
) -> None:
    """Start a command, and send `how` to the process group of its training once that has saved a
    checkpoint of a step after `beyond`."""
    with (repo.path.parent / "killed.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=repo.path, env=repo.environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        trainer = wait_for(
            lambda: training_process(repo, before, beyond), "a training with a checkpoint"
        )
        os.killpg(os.getpgid(trainer), how)
        wait_for(lambda: not is_alive(trainer), "the training to end")
        process.wait(timeout=120)


def training_process(repo: Repo, before: set[Path], beyond: int) -> int | None:
    """Process id of the new training, named by its lock, once it has saved a later checkpoint."""
    for run in runs(repo) - before:
        saved = [m.parent.name for m in run.glob("checkpoint-*/manifest.json")]
        if any(step_of(name) > beyond for name in saved) and (run / "lock").exists():
            held = re.match(r"process (\d+) \(train\)", (run / "lock").read_text())
            if held:
                return int(held[1])
    return None


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def resumed_from(repo: Repo, before: set[Path]) -> int:
    """Step of the newest checkpoint of the one run that is new."""
    (run,) = runs(repo) - before
    return max(step_of(path.name) for path in run.glob("checkpoint-*"))


def step_of(checkpoint: str) -> int:
    return int(checkpoint.split("-")[1])


def test_in_the_workspace(project: Repo, undisturbed: dict[str, bytes]) -> None:
    """Ctrl-C, then SIGKILL, then left alone."""
    project.set(**LONG)
    before = runs(project)
    command = [sys.executable, "-m", "dvc", "repro", "train"]
    kill_at_a_checkpoint(project, command, before, signal.SIGINT)
    stopped = resumed_from(project, before)
    kill_at_a_checkpoint(project, command, before, signal.SIGKILL, beyond=stopped)
    killed = resumed_from(project, before)
    assert 0 < stopped < killed < STEPS
    printed = project.dvc("repro", "train")
    assert stages_run(printed) == ["train"]
    assert f"checkpoint-{killed}" in printed
    assert len(runs(project) - before) == 1  # the same run went on
    assert project.files("models/final", "plots/train.csv") == undisturbed


def test_in_the_queue(project: Repo, undisturbed: dict[str, bytes]) -> None:
    before = runs(project)
    queue = ["exp", "run", "--queue", "--name", "queued", *SET, "train"]
    worker = [sys.executable, "-m", "dvc", "queue", "start", "--jobs", "1"]
    workspace = project.files("params.yaml", "dvc.lock", "metrics", "models/final")
    project.dvc(*queue)
    kill_at_a_checkpoint(project, worker, before, signal.SIGKILL)
    assert 0 < resumed_from(project, before) < STEPS
    # The worker died with the group, so nobody noted the end, and DVC may show the task as running
    # for ever: what people do then is to drop the state of its queue.
    shutil.rmtree(project.path / ".dvc" / "tmp" / "exps")
    project.dvc(*queue)
    project.start_queue()
    assert len(runs(project) - before) == 1
    assert project.files("params.yaml", "dvc.lock", "metrics", "models/final") == workspace
    project.dvc("exp", "apply", "queued")
    assert project.files("models/final", "plots/train.csv") == undisturbed
