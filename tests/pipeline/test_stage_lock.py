"""One stage at a time in a directory: who comes second is refused, and told by whom.

DVC refuses a second `dvc repro` by itself, but knows nothing of a stage that outlived it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.stage import LOCK_NAME
from tests.pipeline.repo import Repo, wait_for
from tests.pipeline.small_project import ROOT, make_project, run_stage

HOLDER = """
import sys, time
from pipeline.stage import run_stage
def main():
    print("held", flush=True)
    time.sleep(600)
run_stage(sys.argv[1], main)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("stages") / "project")


def start(project: Path, name: str) -> subprocess.Popen[bytes]:
    """A process that is in stage `name` of `project`, or in a command of that name."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, name], cwd=project, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_stage_is_refused_while_another_one_works_here(project: Path) -> None:
    """Another stage, too: what it reads may be what the first one writes."""
    before = (project / "data/packed/manifest.json").stat().st_mtime_ns
    with start(project, "train_tokenizer") as first:
        refused = run_stage(project, "pack_sequences")
        first.kill()
    assert refused.returncode == 2
    assert f"{project}: already in use by process {first.pid} (train_tokenizer)" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (project / "data/packed/manifest.json").stat().st_mtime_ns == before
    # the kernel frees the lock of the killed one
    assert run_stage(project, "pack_sequences").returncode == 0


def test_commands_that_only_look_are_not_refused(project: Path) -> None:
    (project / LOCK_NAME).unlink(missing_ok=True)
    with start(project, "summary") as command:
        assert not (project / LOCK_NAME).exists()
        assert run_stage(project, "download").returncode == 0
        command.kill()


@pytest.mark.slow
def test_a_second_repro_is_refused_and_told_by_whom(prepared_repo: Repo, tmp_path: Path) -> None:
    """By DVC while the first one runs, by the lock when only its stage does; then all goes on."""
    repo = prepared_repo.copy(tmp_path / "project")
    before = repo.outputs()
    shutil.rmtree(repo.path / "data/packed")
    (repo.path / "pipeline/pack_sequences.py").open("a").write("\n# a remark\n")
    first = repo.start(sys.executable, "-m", "dvc", "repro", "pack_sequences")
    lock = repo.path / LOCK_NAME

    def holder() -> int | None:
        text = lock.read_text() if lock.exists() else ""
        return int(text.split()[1]) if "(pack_sequences)" in text else None

    stage = wait_for(holder, "the stage to take its lock", pause=0.002)
    os.kill(stage, signal.SIGSTOP)
    try:
        printed = repo.dvc("repro", "pack_sequences", code=255)
        assert f"(PID {first.pid})" in printed
        first.kill()
        first.wait()
        printed = repo.dvc("repro", "pack_sequences", code=255)
        assert f"already in use by process {stage} (pack_sequences)" in printed
    finally:
        os.kill(stage, signal.SIGCONT)
    wait_for(lambda: not lock.read_text(), "the orphan to end")
    assert repo.repro() == ["pack_sequences"]
    assert repo.outputs() == before
