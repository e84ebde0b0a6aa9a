"""What `make repro` checks first: mistakes that would otherwise show after long work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_trainer.config import Experiment
from pipeline.check import problems
from pipeline.params import load_params

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml in a git repository with a commit; also the current one."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "start")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True)


def changed(**keys: Any) -> Experiment:
    """The project's params with `section__key=value` changed."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    for name, value in keys.items():
        section, _, key = name.partition("__")
        values[section][key] = value
    Path("params.yaml").write_text(yaml.safe_dump(values))
    return load_params()


def errors(params: Experiment) -> str:
    return "\n".join(problems(params)[0])


def test_nothing_is_wrong_in_a_clone_and_it_takes_no_time(project: Path) -> None:
    assert problems(load_params()) == ([], [])
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.check"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - started < 3  # 0.4 s on an idle machine


def test_all_errors_come_at_once_with_exit_code_2(project: Path) -> None:
    changed(data__train_file="none.txt", runtime__tracking_uri="./mlruns")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.check"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: check: data.train_file: none.txt: no such file")
    assert lines[1].startswith("error: check: runtime: tracking_uri (./mlruns)")


def test_a_folder_without_git_says_what_to_type(project: Path) -> None:
    shutil.rmtree(".git")
    assert "git init && git add . && git commit" in errors(load_params())
    Path(".dvc").mkdir()
    Path(".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    assert errors(load_params()) == ""


def test_a_repository_without_a_commit_is_a_note(project: Path) -> None:
    shutil.rmtree(".git")
    git(project, "init", "--quiet")
    found = problems(load_params())
    assert found == ([], ["this repository has no commit yet; `dvc exp run` needs one"])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "mine.txt: no such file"), (b"", "empty"), (b"\n", "")],
)
def test_own_text_must_be_there_and_hold_something(
    project: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        Path("mine.txt").write_bytes(content)
    found = errors(changed(data__train_file="mine.txt"))
    assert (message in found) if message else found == ""


def lock_download(params: dict[str, Any], **metrics: Any) -> None:
    """As if stage download had run with `params` and measured `metrics`."""
    Path("dvc.lock").write_text(
        yaml.safe_dump({"stages": {"download": {"params": {"params.yaml": {"data": params}}}}})
    )
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/download.json").write_text(json.dumps(metrics))
    Path("data/raw").mkdir(parents=True, exist_ok=True)


def test_own_text_that_changed_behind_the_back_of_dvc(project: Path) -> None:
    Path("mine.txt").write_bytes(b"one\n")
    params = changed(data__train_file="mine.txt")
    section = yaml.safe_load(Path("params.yaml").read_text())["data"]
    lock_download(section, files=1, file_bytes=4)
    assert errors(params) == ""
    Path("mine.txt").write_bytes(b"one and two\n")
    assert "dvc repro --force download" in errors(params)
    # other params make the stage run anyway
    assert errors(changed(data__max_documents=5)) == ""


def test_another_python_is_a_note(project: Path) -> None:
    section = yaml.safe_load(Path("params.yaml").read_text())["data"]
    lock_download(section, python_version="3.11.0")
    found, notes = problems(load_params())
    assert found == []
    assert "library of Python 3.11.0 and stays so" in notes[0]


def test_a_missing_compiler(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = project / "bin"
    tools.mkdir()
    found_git = shutil.which("git")
    assert found_git is not None
    (tools / "git").symlink_to(found_git)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.delenv("CXX", raising=False)
    found, notes = problems(load_params())
    assert found == []
    assert "no C++ compiler" in notes[0]
    assert "compile_model: true, but there is no C++ compiler" in errors(
        changed(training__compile_model=True)
    )
    assert problems(changed(training__compile_model=False)) == ([], [])
    assert problems(changed(training__compile_model="auto", runtime__device="cuda")) == ([], [])


def test_a_missing_git(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project / "none"))
    monkeypatch.setenv("CXX", "c++")
    assert errors(load_params()).startswith("git is not installed")


def test_an_optional_tracker_that_is_not_installed(project: Path) -> None:
    import importlib.util

    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed here")
    found = errors(changed(runtime__report_to=["wandb"]))
    assert found.startswith("runtime: report_to: 'wandb' needs the package wandb")


def test_too_little_disk(project: Path) -> None:
    """A sparse file larger than any disk stands for a corpus."""
    with Path("mine.txt").open("wb") as file:
        file.truncate(4 * 10**12)
    found = errors(changed(data__train_file="mine.txt"))
    assert "GiB are needed" in found
