"""Small projects for the rows that disturb whole pipelines: real git, real DVC, all six stages.

They are those of the tests, with a training that is long enough to be hit in its middle.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

import tests.conftest  # noqa: F401 - sets the environment that the tests run in
from llm_trainer.json_file import read_json
from tests.pipeline.repo import STAGES, Repo, make, stages_run, wait_for

__all__ = ["STAGES", "Repo", "Repro", "differences", "repro", "start_project", "wait_for"]

_TIMES = re.compile(
    r"seconds|per_second|_ms|mfu|peak|gflops|ratio|speedup|memory|(^|_)machine_|num_workers"
)
"""Names of figures that no two runs share."""


def start_project(path: Path) -> Repo:
    """A project in which nothing ran yet: 400 training steps, a checkpoint every 20."""
    repo = make(path)
    repo.set(
        training__max_steps=400, training__eval_steps=200, training__sample_steps=0,
        runtime__save_steps=20, runtime__save_total_limit=1,
    )  # fmt: skip
    repo.commit("a training to disturb")
    return repo


class Repro:
    """A running `dvc repro`, in a process group of its own, printing to a file."""

    def __init__(self, repo: Repo) -> None:
        self.repo = repo
        self.log = repo.path.parent / f"{repo.path.name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro"], cwd=repo.path, env=repo.environment,
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def stages(self) -> list[str]:
        """The stages that it began so far."""
        return stages_run(self.log.read_text("utf-8", "replace"))

    def wait_for_stage(self, first: int = 0) -> str | None:
        """Wait until it begins a stage whose number is at least `first`; None if it ends before."""

        def begun() -> list[str]:
            found = [stage for stage in self.stages() if STAGES.index(stage) >= first]
            return found or (["ended"] if self.process.poll() is not None else [])

        stage: str = wait_for(begun, "a stage", pause=0.005)[-1]
        return None if stage == "ended" else stage

    def stage_process(self, stage: str) -> psutil.Process:
        """The process of `stage`, once it holds the lock of its directory."""
        lock = self.repo.path / ".stage.lock"

        def holder() -> psutil.Process | None:
            held = re.match(
                rf"process (\d+) \({stage}\)", lock.read_text() if lock.exists() else ""
            )
            alive = held is not None and psutil.pid_exists(int(held[1]))
            return psutil.Process(int(held[1])) if held is not None and alive else None

        process: psutil.Process = wait_for(holder, f"{stage} to take the lock", pause=0.002)
        return process

    def end(self) -> int:
        """Wait for the end; the exit code."""
        return self.process.wait(timeout=600)


@dataclass(frozen=True)
class Finished:
    """A `dvc repro` that came to its end."""

    code: int
    printed: str
    stages: list[str]


def repro(repo: Repo) -> Finished:
    """Run `dvc repro` to its end."""
    running = Repro(repo)
    code = running.end()
    return Finished(code, running.log.read_text("utf-8", "replace"), running.stages())


def timed_repro(repo: Repo) -> dict[str, float]:
    """Run everything once; stage -> seconds from its beginning to that of the next."""
    running, begun = Repro(repo), {}
    for number in range(len(STAGES)):
        stage = running.wait_for_stage(number)
        assert stage is not None, running.log.read_text()
        begun[stage] = time.monotonic()
    assert running.end() == 0, running.log.read_text()
    moments = [*begun.values(), time.monotonic()]
    return {
        stage: after - before
        for stage, before, after in zip(begun, moments, moments[1:], strict=False)
    }


def differences(repo: Repo, undisturbed: Repo) -> list[str]:
    """What two finished projects have not in common, but for times: outputs, lock, figures."""
    found = []
    ours, theirs = _lock(repo), _lock(undisturbed)
    found += [
        f"dvc.lock: {name}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    folders = ("data", "models", "plots")
    ours_files, theirs_files = repo.files(*folders), undisturbed.files(*folders)
    found += [
        name
        for name in sorted({*ours_files, *theirs_files})
        if ours_files.get(name) != theirs_files.get(name)
    ]
    for path in sorted((undisturbed.path / "metrics").glob("*.json")):
        ours_path = repo.path / "metrics" / path.name
        if not ours_path.is_file() or _figures(ours_path) != _figures(path):
            found.append(f"metrics/{path.name}")
    if "up to date" not in repo.dvc("status"):
        found.append("dvc status: something changed")
    return found


def _unequal(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]


def _lock(repo: Repo) -> dict[str, Any]:
    """dvc.lock, flat, without the digests of metrics, which hold times."""
    document = yaml.safe_load((repo.path / "dvc.lock").read_text("utf-8"))
    return {
        f"{stage} {key} {entry['path'] if isinstance(entry, dict) else entry}": entry
        for stage, values in document["stages"].items()
        for key in ("deps", "outs", "params")
        for entry in values.get(key, [])
        if not (isinstance(entry, dict) and entry["path"].startswith("metrics/"))
    }


def _figures(path: Path) -> dict[str, Any]:
    return {name: value for name, value in read_json(path).items() if not _TIMES.search(name)}


def resume(process: psutil.Process) -> None:
    """Let a stopped process go on, and wait for its end."""
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: not _is_alive(process), f"process {process.pid} to end")


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
