"""Push and pull through a local remote: a clone gets the results without running anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.repo import OUTPUTS, QUICK, Repo, stages_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(repo: Repo, tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """The first user pushes; the second clones."""
    storage = tmp_path_factory.mktemp("storage")
    repo.dvc("remote", "add", "--default", "storage", str(storage / "dvc"))
    repo.commit("remote storage")
    repo.git("init", "--quiet", "--bare", "--initial-branch=main", str(storage / "project.git"))
    repo.git("remote", "add", "origin", str(storage / "project.git"))
    repo.git("push", "--quiet", "origin", "main")
    repo.dvc("push")
    path: Path = tmp_path_factory.mktemp("clone") / "project"
    repo.git("clone", "--quiet", str(storage / "project.git"), str(path))
    return Repo(path)


def test_a_clone_has_figures_but_no_data(repo: Repo, clone: Repo) -> None:
    shared = ("metrics", "plots/train.csv", "plots/loss.png")
    assert clone.files(*shared) == repo.files(*shared)
    assert not (clone.path / "models").exists()
    assert "main" in clone.git("branch")


def test_only_what_is_needed_is_fetched(repo: Repo, clone: Repo) -> None:
    """Another benchmark needs model, tokenizer and rows, not the text."""
    clone.set(benchmark__repeats=2)
    printed = clone.dvc("repro", "--pull", "--allow-missing", "benchmark")
    assert stages_run(printed) == ["benchmark"]
    assert not (clone.path / "data/raw").exists()
    assert clone.files("data/packed") == repo.files("data/packed")
    assert clone.files("models/final") == repo.files("models/final")
    clone.git("checkout", "--quiet", "--", ".")


def test_pull_restores_everything_and_nothing_runs(repo: Repo, clone: Repo) -> None:
    clone.dvc("pull")
    assert clone.repro() == []
    assert clone.outputs() == repo.outputs()
    assert clone.files(*OUTPUTS) == repo.files(*OUTPUTS)
    assert clone.git("status", "--porcelain") == ""


def test_an_experiment_is_shared(repo: Repo, clone: Repo) -> None:
    assert QUICK["runtime"]["report_to"] == ["console"]
    change = ("--set-param", "training.learning_rate=0.011")
    repo.dvc("exp", "run", "--name", "shared", *change, "train")
    repo.dvc("exp", "push", "origin", "shared")
    assert "shared" in clone.dvc("exp", "list", "origin", "--all-commits")
    clone.dvc("exp", "pull", "origin", "shared")
    clone.dvc("exp", "apply", "shared")
    assert clone.repro("train") == []
    assert clone.files("models/final") == repo.files("models/final")
