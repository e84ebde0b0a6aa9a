"""Experiments as a user runs them: exp run, queue, temp, show, apply, branch, and the diffs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.pipeline.repo import Repo, stages_run

pytestmark = pytest.mark.slow

AFTER = ["train", "evaluate", "benchmark"]


@pytest.fixture(scope="module", autouse=True)
def console_only(repo: Repo) -> None:
    """Trackers have tests of their own, and cost each stage seconds."""
    repo.set(runtime__report_to=["console"])
    repo.commit("console only")


def shown(repo: Repo) -> dict[str, dict[str, Any]]:
    """Name -> column -> value of `dvc exp show`; the workspace under its own name."""
    text = repo.dvc("exp", "show", "--json", "--all-commits")
    found: dict[str, dict[str, Any]] = {}

    def add(entry: dict[str, Any]) -> None:
        data = entry.get("data") or {}
        columns: dict[str, Any] = {}
        for kind in ("params", "metrics"):
            for name, content in (data.get(kind) or {}).items():
                columns |= {f"{name}:{k}": v for k, v in flat(content.get("data") or {}).items()}
        found[entry.get("name") or entry["rev"]] = columns

    for entry in json.loads(text[text.index("[") :]):
        add(entry)
        for experiment in entry.get("experiments") or []:
            for revision in experiment["revs"]:
                add(revision)
    return found


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def loss(repo: Repo, name: str) -> float:
    """Validation loss of an experiment, as the table shows it."""
    columns = shown(repo)[name]
    return float(columns["metrics/evaluate.json:loss"])


def test_exp_run_in_the_workspace_and_back_runs_nothing(repo: Repo) -> None:
    first, kept = repo.outputs(), repo.files("dvc.lock", "metrics", "plots", "models/final")
    printed = repo.dvc(
        "exp", "run", "--name", "slow", "--set-param", "training.learning_rate=0.005"
    )
    assert stages_run(printed) == AFTER
    columns = shown(repo)["slow"]
    assert columns["params.yaml:training.learning_rate"] == 0.005
    assert columns["metrics/train.json:steps"] == 12
    # DVC writes params.yaml, and what it writes is still valid, with its comments
    text = (repo.path / "params.yaml").read_text()
    assert "learning_rate: 0.005" in text
    assert "# peak rate of the hidden matrices" in text
    assert repo.repro() == []
    changed = repo.outputs()
    assert {name for name in first if changed[name] != first[name]} >= {"models/final"}
    assert {name for name in first if changed[name] == first[name]} >= {
        "data/raw", "models/tokenizer", "data/packed",
    }  # fmt: skip

    repo.set(training__learning_rate=0.02)
    assert repo.repro() == []
    assert repo.files("dvc.lock", "metrics", "plots", "models/final") == kept
    repo.set(training__learning_rate=0.005)
    assert repo.repro() == []
    assert repo.outputs() == changed


def test_an_unknown_param_is_refused_by_dvc_and_a_wrong_type_by_the_first_stage(repo: Repo) -> None:
    before = (repo.path / "params.yaml").read_bytes()
    printed = repo.dvc("exp", "run", "--set-param", "training.learning_ratee=1", code=255)
    assert "learning_ratee" in printed
    printed = repo.dvc("exp", "run", "--set-param", "training.learning_rate=abc", code=255)
    assert "training.learning_rate: expected a number, found 'abc'" in printed
    assert "step" not in printed
    (repo.path / "params.yaml").write_bytes(before)


def test_a_queue_with_choices(repo: Repo) -> None:
    repo.dvc(
        "exp", "run", "--queue", "--name", "sweep",
        "--set-param", "training.learning_rate=choice(0.007,0.04)", "evaluate",
    )  # fmt: skip
    repo.start_queue()
    found = shown(repo)
    rates = {c.get("params.yaml:training.learning_rate") for c in found.values()}
    assert {0.007, 0.04} <= rates
    # workers train in copies; what must outlive these is in the main checkout
    assert len(list((repo.path / ".checkpoints").glob("*/run/run.json"))) >= 4


def test_apply_and_branch(repo: Repo) -> None:
    before = (repo.path / "params.yaml").read_bytes()
    assert b"learning_rate: 0.005" in before  # the queue left the workspace alone
    repo.dvc("exp", "apply", "sweep-1")
    assert "learning_rate: 0.007" in (repo.path / "params.yaml").read_text()
    assert repo.repro("evaluate") == []  # outputs come with it
    repo.dvc("exp", "branch", "sweep-1", "sweep-branch")
    assert "sweep-branch" in repo.git("branch", "--list", "sweep-branch")
    tree = repo.git("ls-tree", "-r", "--name-only", "sweep-branch").splitlines()
    assert {"dvc.lock", "metrics/evaluate.json", "plots/train.csv"} <= set(tree)


def test_diffs(repo: Repo) -> None:
    """Between the first commit and the applied experiment in the workspace."""
    params = json.loads(repo.dvc("params", "diff", "--json", "HEAD"))
    rate = params["params.yaml"]["training.learning_rate"]
    assert (rate["old"], rate["new"]) == (0.02, 0.007)
    metrics = json.loads(repo.dvc("metrics", "diff", "--json", "HEAD"))
    assert {"old", "new", "diff"} <= set(metrics["metrics/evaluate.json"]["loss"])
    assert "metrics/train.json" in metrics
    repo.dvc("plots", "diff", "--out", "report", "HEAD", "workspace")
    page = (repo.path / "report" / "index.html").read_text()
    for word in ("Loss by optimizer step", "optimizer step", "train_loss", "eval_loss"):
        assert word in page


def test_tables_for_people(repo: Repo) -> None:
    assert "learning_rate" in repo.dvc("params", "diff", "HEAD")
    assert "bits_per_byte" in repo.dvc("metrics", "show")
    table = repo.dvc("exp", "show", "--only-changed", "--md")
    assert "learning_rate" in table
    assert "bits_per_byte" in table
    assert "sweep-2" in table
