"""What wakes which stage, in a real repository: nothing runs without a cause, nothing is missed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.pipeline.repo import OUTPUTS, STAGES, Repo

pytestmark = pytest.mark.slow

SECTIONS = {
    "data": {"download"},
    "tokenizer": {"train_tokenizer"},
    "packing": {"pack_sequences"},
    "model": {"train"},
    "training": {"train"},
    "evaluation": {"evaluate"},
    "benchmark": {"benchmark"},
    "runtime": set(),
}
"""Section of params.yaml -> stages that a change of it wakes by itself."""

MODULES = {
    "pipeline/download.py": {"download"},
    "pipeline/train_tokenizer.py": {"train_tokenizer"},
    "pipeline/pack_sequences.py": {"pack_sequences"},
    "pipeline/train.py": {"train"},
    "pipeline/evaluate.py": {"evaluate"},
    "pipeline/benchmark.py": {"benchmark"},
    "llm_trainer/files.py": set(STAGES),
    "llm_trainer/data/stdlib.py": {"download"},
    "llm_trainer/data/hub.py": {"download"},
    "llm_trainer/data/raw.py": {"download", "train_tokenizer", "pack_sequences", "evaluate"},
    "llm_trainer/data/packing.py": {"pack_sequences"},
    "llm_trainer/data/vocabulary.py": {"train_tokenizer"},
    # BPETokenizer.train is a method of the class that all these stages load
    "llm_trainer/tokenizer/training.py": set(STAGES) - {"download"},
    "llm_trainer/training/trainer.py": {"train"},
    "llm_trainer/training/scheduler.py": {"train"},
    "llm_trainer/models/attention.py": {"train", "evaluate", "benchmark"},
    "llm_trainer/config/model.py": set(),
    "llm_trainer/config/loader.py": set(),
    "llm_trainer/exceptions.py": set(),
    "llm_trainer/training/tracking/run.py": set(),
    "pipeline/params.py": set(),
    "pipeline/preset.py": set(),
    "pipeline/stage.py": set(),
    "README.md": set(),
}
"""File -> stages that a change of it wakes by itself; a choice of what matters most."""


class Status:
    """`dvc status` of a repository without starting DVC each time."""

    def __init__(self, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in repo.environment.items():
            if name.startswith("DVC_"):
                monkeypatch.setenv(name, value)
        from dvc.repo import Repo as DvcRepo

        self.dvc = DvcRepo(str(repo.path))

    def woken(self) -> set[str]:
        """The stages whose own params or deps changed; not those that only follow another."""
        return {name.rpartition(":")[2] for name in self.dvc.status()}


@pytest.fixture
def status(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> Iterator[Status]:
    status = Status(repo, monkeypatch)
    yield status
    status.dvc.close()


@pytest.fixture(scope="module")
def first(repo: Repo) -> dict[str, str]:
    """The outputs of the first run; later ones are shown to no tracker, which costs seconds."""
    repo.set(runtime__report_to=["console"])
    repo.commit("console only")
    return repo.outputs()


def test_the_first_run_made_everything(repo: Repo, first: dict[str, str]) -> None:
    assert set(first) == set(OUTPUTS)
    for stage in STAGES:
        name = {"train_tokenizer": "tokenizer", "pack_sequences": "packing"}.get(stage, stage)
        assert (repo.path / "metrics" / f"{name}.json").is_file()
    assert (repo.path / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (repo.path / "plots" / "train.csv").read_text().startswith("step,train_loss,")
    # what is committed: figures and curves; no data, no model, no runs
    assert repo.git("status", "--porcelain") == ""
    tracked = repo.git("ls-files", "data", "models", "metrics", "plots", ".checkpoints", ".cache")
    assert {t for t in tracked.splitlines() if not t.startswith("metrics/")} == {
        "plots/loss.png", "plots/train.csv",
    }  # fmt: skip


def test_nothing_changed_nothing_runs(repo: Repo) -> None:
    assert repo.repro() == []
    assert "up to date" in repo.dvc("status")


@pytest.mark.parametrize("section", SECTIONS)
def test_a_key_wakes_the_stages_that_read_it(repo: Repo, status: Status, section: str) -> None:
    """The first and the last key of each section; that all keys are there is another test."""
    path = repo.path / "params.yaml"
    before = path.read_text()
    keys = list(yaml.safe_load(before)[section])
    try:
        for key in (keys[0], keys[-1]):
            # DVC compares values, and does not care whether they make sense
            repo.set(**{f"{section}__{key}": "another"})
            assert status.woken() == SECTIONS[section], key
            path.write_text(before)
    finally:
        path.write_text(before)


def test_each_module_wakes_the_stages_that_use_it(repo: Repo, status: Status) -> None:
    (repo.path / "README.md").touch()
    for name, stages in MODULES.items():
        path = repo.path / name
        before = path.read_bytes()
        path.write_bytes(before + b"\n# another line\n")
        try:
            assert status.woken() == stages, name
        finally:
            path.write_bytes(before)
    assert status.woken() == set()


def test_bytecode_and_caches_wake_nothing(repo: Repo, status: Status) -> None:
    for name in ("llm_trainer/__pycache__/x.cpython-311.pyc", "pipeline/__pycache__/y.pyc"):
        (repo.path / name).parent.mkdir(exist_ok=True)
        (repo.path / name).write_bytes(b"x")
    assert status.woken() == set()


@pytest.mark.parametrize(
    ("change", "back", "stages"),
    [
        (
            {"benchmark__repeats": 2, "evaluation__seed": 1},
            {"benchmark__repeats": 1, "evaluation__seed": 0},
            ["evaluate", "benchmark"],
        ),
        (
            {"packing__max_length": 48},
            {"packing__max_length": 64},
            ["pack_sequences", "train", "evaluate", "benchmark"],
        ),
        ({"runtime__logging_steps": 1}, {"runtime__logging_steps": 2}, []),
    ],
    ids=["evaluation and benchmark", "packing", "runtime"],
)
def test_a_change_runs_what_follows_from_it(
    repo: Repo, first: dict[str, str], change: dict[str, Any], back: dict[str, Any],
    stages: list[str],
) -> None:  # fmt: skip
    repo.set(**change)
    assert repo.repro() == stages
    repo.set(**back)
    assert repo.repro() == []
    assert repo.outputs() == first


def test_equal_bytes_stop_the_chain(repo: Repo, first: dict[str, str]) -> None:
    """A comment in a stage's module runs the stage; its outputs are the same, so nothing else."""
    for stage in ("download", "train_tokenizer", "pack_sequences"):
        path = repo.path / "pipeline" / f"{stage}.py"
        path.write_text(path.read_text() + "\n# a remark\n")
    assert repo.repro() == ["download", "train_tokenizer", "pack_sequences"]
    assert repo.outputs() == first


def test_a_run_from_scratch_ends_in_the_same_bytes(repo: Repo, first: dict[str, str]) -> None:
    """All stages forced, with no checkpoint, run cache or output of the first run."""
    for name in (".checkpoints", ".dvc/cache", "data", "models", "plots", "metrics"):
        shutil.rmtree(repo.path / name)
    assert repo.repro("--force") == list(STAGES)
    assert repo.outputs() == first
