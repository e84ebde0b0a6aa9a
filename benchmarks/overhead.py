"""What the pipeline adds around the work: start-up of stages, DVC with nothing to do."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.contest import ROOT
from benchmarks.corpus import FOLDER

Report = Callable[[str], None]
LIGHT_STAGES = ("download", "train_tokenizer", "pack_sequences")
TORCH_STAGE = "evaluate"
EMPTY_STAGE = "stages:\n  empty:\n    cmd: 'true'\n    deps: [file]\n"
TINY: dict[str, dict[str, Any]] = {
    "data": {"train_file": "text", "max_documents": 20},
    "tokenizer": {"vocab_size": 300},
    "evaluation": {"prompts": ["def"], "samples_per_prompt": 1, "max_new_tokens": 2},
}
"""What the smoke preset is made smaller by."""


def measure_overhead(rounds: int, report: Report) -> dict[str, float]:
    """Medians in seconds: `noop`, `bare_dvc`, and a name for each stage.

    A copy of the project runs the smoke preset once on 20 small documents; then `dvc repro` with
    nothing to do alternates with the same in a repository of one empty stage; after that each
    stage runs by itself on next to nothing.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        project, bare = Path(folder) / "project", Path(folder) / "bare"
        _make_project(project)
        bare.mkdir()
        (bare / "dvc.yaml").write_text(EMPTY_STAGE)
        (bare / "file").write_text("x")
        _run(["git", "init", "--quiet"], bare)
        _run(["dvc", "init", "--quiet"], bare)
        _run(["dvc", "repro", "--quiet"], bare)
        times: dict[str, list[float]] = {}
        repro = ["dvc", "repro", "--quiet"]
        stages = (*LIGHT_STAGES, TORCH_STAGE)
        # all of the first kind first: a stage that is run by itself leaves DVC something to do
        for commands in (
            [("noop", project, repro), ("bare_dvc", bare, repro)],
            [(stage, project, ["python", "-m", f"pipeline.{stage}"]) for stage in stages],
        ):
            for number in range(rounds):
                for name, where, command in commands:
                    times.setdefault(name, []).append(_run(command, where))
                report(f"overhead of {commands[0][0]} ...: round {number + 1} of {rounds}")
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _make_project(folder: Path) -> None:
    _run(["git", "clone", "--quiet", str(ROOT), str(folder)], FOLDER)
    for name in ("dvc.lock", "metrics", "plots"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (folder / "text").mkdir()
    for number in range(20):
        (folder / "text" / f"{number:02}.txt").write_text(f"def f{number}():\n    pass\n" * 60)
    preset = yaml.safe_load((folder / "configs" / "smoke.yaml").read_text())
    for section, values in TINY.items():
        preset.setdefault(section, {}).update(values)
    (folder / "configs" / "tiny.yaml").write_text(yaml.safe_dump(preset))
    _run(["python", "-m", "pipeline.preset", "tiny"], folder)
    _run(["dvc", "repro", "--quiet"], folder)


def _run(command: list[str], folder: Path) -> float:
    """Run to the end; seconds. `dvc` and `python` are those of this environment.

    Python keeps compiled modules from one round to the next, as it does for users, even where this
    process was told not to write any.
    """
    if command[0] in ("dvc", "python"):
        prefix = [sys.executable] + (["-m", "dvc"] if command[0] == "dvc" else [])
        command = [*prefix, *command[1:]]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1",
    }  # fmt: skip
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return seconds
