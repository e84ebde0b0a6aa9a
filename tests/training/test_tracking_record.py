"""The local record: what it keeps, and that no secret gets into it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_trainer.exceptions import ConfigurationError, IntegrityError
from llm_trainer.training.tracking.record import (
    MAX_ARTIFACT_BYTES,
    RunInfo,
    RunRecord,
    clean,
    flatten,
    run_directory,
    strip_secrets,
)
from llm_trainer.training.tracking.tags import environment_tags


def info(fingerprint: str = "f00d") -> RunInfo:
    return RunInfo(name="run", experiment="tests", fingerprint=fingerprint)


def test_a_second_attempt_keeps_identity_and_start(tmp_path: Path) -> None:
    record = RunRecord(run_directory(tmp_path, "f00d"))
    assert record.directory == tmp_path / "f00d" / "run"
    first = record.start(info())
    record.finish("KILLED")
    assert record.read_info().status == "KILLED"
    assert record.read_info().ended is not None
    second = record.start(info())
    assert (second.started, second.attempts) == (first.started, 2)
    assert record.read_info() == second
    assert second.status == "RUNNING"
    assert second.ended is None


def test_a_run_without_a_fingerprint_gets_one_and_keeps_it(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    made = record.start(info("")).fingerprint
    assert len(made) == 32
    assert record.start(info("")).fingerprint == made


def test_a_fingerprint_that_cannot_be_searched_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="fingerprint"):
        RunRecord(tmp_path).start(info("' OR 1=1"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "name": "x"}'])
def test_a_damaged_record_is_named_when_read_and_replaced_when_started(
    tmp_path: Path, text: str
) -> None:
    record = RunRecord(tmp_path)
    record.info_path.write_text(text)
    with pytest.raises(IntegrityError, match=r"run\.json"):
        record.read_info()
    record.start(info())
    assert record.read_info().name == "run"


def test_files_are_copied_and_tables_have_mlflows_layout(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.txt").write_text("a")
    (tmp_path / "loss.png").write_bytes(b"png")
    record.add_artifact(tmp_path / "loss.png")
    record.add_artifact(tmp_path / "loss.png", "plots")
    record.add_artifact(tmp_path / "samples")
    record.write_table("samples/evaluate.json", ["prompt", "text"], [["def", "def f"]])
    assert list(record.artifacts()) == [
        "loss.png", "plots/loss.png", "samples/a.txt", "samples/evaluate.json",
    ]  # fmt: skip
    table = json.loads((record.artifacts_path / "samples/evaluate.json").read_text())
    assert table == {"columns": ["prompt", "text"], "data": [["def", "def f"]]}


def test_missing_and_huge_files_are_refused(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run")
    with pytest.raises(IntegrityError, match="no such file"):
        record.add_artifact(tmp_path / "absent")
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(MAX_ARTIFACT_BYTES + 1)
    with pytest.raises(IntegrityError, match="larger than"):
        record.add_artifact(tmp_path / "huge")
    assert record.artifacts() == {}


def test_params_are_flat_and_read_like_yaml() -> None:
    values = {
        "training": {"learning_rate": 3e-4, "seed": 42, "x": None, "amp": True},
        "p": ["a", 1],
    }
    assert flatten(values) == {
        "training.learning_rate": "0.0003",
        "training.seed": "42",
        "training.x": "null",
        "training.amp": "true",
        "p": '["a", 1]',
    }


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("postgresql://me:pass@db.local/mlflow", "postgresql://db.local/mlflow"),
        ("see https://user:p%40ss@host:5000/a?b=1", "see https://host:5000/a?b=1"),
        ("https://token@github.com/a/b.git", "https://github.com/a/b.git"),
        ("https://h/x?sig=abc&b=1&token=xyz", "https://h/x?sig=***&b=1&token=***"),
        ("use hf_abcdefghijklmnopqrstuvwxyz please", "use *** please"),
        ("mail a@b.c and http://h/a@b stay", "mail a@b.c and http://h/a@b stay"),
    ],
)
def test_secrets_are_struck_out_of_text(text: str, cleaned: str) -> None:
    assert strip_secrets(text) == cleaned


def test_secrets_are_struck_out_by_name() -> None:
    values = {"hub": {"token": "abc", "api_key": "k", "password": "", "hf_token": None}}
    kept = {"tokenizer": {"vocab_size": 4096}, "sample_tokens": 48, "prompt_tokens": 32}
    assert flatten({**values, **kept}) == {
        "hub.token": "***", "hub.api_key": "***", "hub.password": "", "hub.hf_token": "null",
        "tokenizer.vocab_size": "4096", "sample_tokens": "48", "prompt_tokens": "32",
    }  # fmt: skip
    assert clean({"a": [{"source": "s3://k:s@bucket/x"}]}) == {"a": [{"source": "s3://bucket/x"}]}


@given(st.text(alphabet=st.characters(categories=["L", "N"]), min_size=1))
def test_no_password_survives(password: str) -> None:
    shown = strip_secrets(f"mysql+pymysql://user:{password}-SECRET@host/db")
    assert shown == "mysql+pymysql://host/db"


def git(place: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=place, check=True, capture_output=True)


def test_tags_name_revision_changes_and_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "puny-name")
    monkeypatch.setenv("SECRET_OF_MINE", "hunter2")
    assert "git_revision" not in environment_tags(tmp_path)
    git(tmp_path, "init", "-q")
    git(tmp_path, "remote", "add", "origin", "https://me:pass@host/repo.git")
    (tmp_path / "params.yaml").write_text("a: 1\n")
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "train.json").write_text("{}")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    tags = environment_tags(tmp_path)
    assert len(tags["git_revision"]) == 40
    assert tags["git_dirty"] == "false"
    assert tags["dvc_experiment"] == "puny-name"
    assert tags["mlflow.source.git.repoURL"] == "https://host/repo.git"
    assert "hunter2" not in str(tags)
    # what a running pipeline itself rewrites is no change of the user's
    (tmp_path / "metrics" / "train.json").unlink()
    assert environment_tags(tmp_path)["git_dirty"] == "false"
    (tmp_path / "params.yaml").write_text("a: 2\n")
    assert environment_tags(tmp_path)["git_dirty"] == "true"
