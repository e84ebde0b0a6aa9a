"""Old checkpoints go, records stay, and a directory in use is left alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_trainer.locks import hold_lock
from llm_trainer.training.tracking.record import RunInfo, RunRecord
from pipeline.gc import collect, find_runs, size, superfluous

ROOT = Path(__file__).parents[2]


def make_run(root: Path, name: str, status: str | None, *steps: str, age_days: float = 0.0) -> Path:
    directory = root / name
    for step in steps:
        (directory / f"checkpoint-{step}" / "model").mkdir(parents=True)
        (directory / f"checkpoint-{step}" / "model" / "weights").write_bytes(b"x" * 1000)
    directory.mkdir(parents=True, exist_ok=True)
    if status is not None:
        record = RunRecord(directory / "run")
        moment = time.time() - age_days * 86400
        info = RunInfo(name=name, experiment="e", fingerprint=name, started=moment)
        info.status = status  # type: ignore[assignment]
        info.ended = None if status == "RUNNING" else moment
        record.write_info(info)
    return directory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / ".checkpoints"
    make_run(root, "aaaaaaaa1", "FINISHED", "10", "9", "100", age_days=3)
    make_run(root, "bbbbbbbb2", "FINISHED", "50", age_days=1)
    make_run(root, "cccccccc3", "RUNNING", "7", "7-2", age_days=10)  # killed, not continued
    make_run(root, "dddddddd4", None, "5")
    (root / "aaaaaaaa1" / "previous-1" / "checkpoint-3").mkdir(parents=True)
    (root / "cccccccc3" / ".partial-checkpoint-8-123").mkdir()
    return root


def left(root: Path) -> dict[str, list[str]]:
    return {
        run.name: sorted(p.name for p in (*run.checkpoints, *run.rest)) for run in find_runs(root)
    }


def test_what_is_there(root: Path) -> None:
    runs = {run.name: run for run in find_runs(root)}
    assert [run.name for run in find_runs(root)][1:] == ["bbbbbbbb", "aaaaaaaa", "cccccccc"]
    assert {name: run.state for name, run in runs.items()} == {
        "aaaaaaaa": "finished", "bbbbbbbb": "finished", "cccccccc": "stopped",
        "dddddddd": "stopped",
    }  # fmt: skip
    assert runs["aaaaaaaa"].step == 100  # by number, not by name or time
    assert runs["cccccccc"].checkpoints[0].name == "checkpoint-7-2"
    assert size(root / "bbbbbbbb2" / "checkpoint-50") == 1000


def test_the_newest_finished_runs_keep_their_last_checkpoint(root: Path) -> None:
    collect(root, keep=1)
    assert left(root) == {
        "aaaaaaaa": [], "bbbbbbbb": ["checkpoint-50"],
        "cccccccc": ["checkpoint-7", "checkpoint-7-2"], "dddddddd": ["checkpoint-5"],
    }  # fmt: skip
    assert (root / "aaaaaaaa1" / "run" / "run.json").is_file()


def test_more_kept_and_none_kept(root: Path) -> None:
    collect(root, keep=5)
    assert left(root)["aaaaaaaa"] == ["checkpoint-100"]
    collect(root, keep=0)
    assert left(root)["aaaaaaaa"] == left(root)["bbbbbbbb"] == []
    assert collect(root, keep=0) == []


def test_stopped_runs_go_only_when_asked_and_old(root: Path) -> None:
    collect(root, keep=5, stopped_days=20)
    assert left(root)["cccccccc"] == ["checkpoint-7", "checkpoint-7-2"]
    collect(root, keep=5, stopped_days=9)
    assert left(root)["cccccccc"] == []
    assert left(root)["dddddddd"] == ["checkpoint-5"]


def test_a_dry_run_removes_nothing_and_counts_the_same(root: Path) -> None:
    before = left(root)
    wanted = [(run.name, num) for run, num in collect(root, keep=1, dry_run=True)]
    assert left(root) == before
    assert [(run.name, num) for run, num in collect(root, keep=1)] == wanted
    assert dict(wanted)["aaaaaaaa"] == 3000


HOLDER = """
import sys, time
from llm_trainer.locks import hold_lock
with hold_lock(sys.argv[1], "train"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_in_use_is_left_alone(root: Path) -> None:
    lock = root / "aaaaaaaa1" / "lock"
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        runs = find_runs(root)
        assert {run.name: run.state for run in runs}["aaaaaaaa"] == "running"
        assert "aaaaaaaa" not in {run.name for run, _ in superfluous(runs, 0)}
        collect(root, keep=0)
        assert len(left(root)["aaaaaaaa"]) == 4
        holder.kill()
    with hold_lock(lock, "test"):
        pass


def test_the_command(root: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline.gc", *arguments],
            cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip

    assert "aaaaaaaa  finished" in run("--list").stdout
    assert "would free 0.0 MiB" in run("--keep", "1", "--dry-run").stdout
    assert run("--keep", "1").returncode == 0
    assert left(root)["aaaaaaaa"] == []
    assert run("--keep", "-1").returncode == 2
    shutil.rmtree(root)
    assert "no runs in" in run("--list").stdout
    assert "freed 0.0 MiB" in run().stdout
