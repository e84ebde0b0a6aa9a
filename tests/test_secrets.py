"""Passwords and tokens in addresses and in the environment get into no file and no output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llm_trainer.config.checks import shown
from tests.mlflow_store import free_port
from tests.pipeline.small_project import PARAMS, ROOT, make_project

ENVIRONMENT = {
    "HF_TOKEN": "hf_" + "Q7w8" * 9,
    "AWS_SECRET_ACCESS_KEY": "aws-hush-hush",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-hush-hush",
    "SECRET_OF_MINE": "mine-hush-hush",
}
ADDRESS = "address-hush-hush"
SECRETS = (ADDRESS, *ENVIRONMENT.values())
TYPED = ("params.yaml", ".git/config", "train-address.yaml")
"""Where the user wrote them."""


def train_with_secrets(place: Path) -> str:
    """Train in a new project under `place` with secrets all around; what was said."""
    project = make_project(place)
    for name in ("pipeline", "llm_trainer", "dvc.yaml"):  # whose digests a run's identity has
        (project / name).symlink_to(ROOT / name)
    for command in (
        ["init", "--quiet"],
        ["remote", "add", "origin", f"https://u:{ADDRESS}@h/x.git"],
    ):
        subprocess.run(["git", *command], cwd=project, check=True)
    remote = f"http://me:{ADDRESS}@127.0.0.1:{free_port()}"
    said = ""
    for uri in (remote, None):
        runtime = {
            "tracking_uri": uri, "report_to": ["mlflow", "tensorboard", "console"],
            "logging_steps": 1,
        }  # fmt: skip
        seed = {"seed": 1 if uri else 2}  # so that the second is a run of its own
        said += stage(
            project, "train", training={"max_steps": 3, "batch_size": 2, **seed}, runtime=runtime
        )
        assert said.count("perplexity") or "step" in said, said
    for source in ({"train_file": f"https://me:{ADDRESS}@h/a.jsonl"},
                   {"train_file": f"https://me:{ADDRESS}@h/*.jsonl"},
                   {"dataset_name": f"https://me:{ADDRESS}@h/a"}):  # fmt: skip
        found = stage(project, "download", data=source)
        assert "error: download: " in found
        said += found
    return said


def stage(project: Path, name: str, **changes: dict[str, object]) -> str:
    params = {key: {**values, **changes.get(key, {})} for key, values in PARAMS.items()}
    params |= {key: values for key, values in changes.items() if key not in PARAMS}
    if "dataset_name" in changes.get("data", {}):
        params["data"] = changes["data"]
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    done = subprocess.run(
        [sys.executable, "-m", f"pipeline.{name}"], cwd=project, text=True, check=False,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(project)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == (2 if name == "download" else 0), done.stdout
    return done.stdout


def found_in(place: Path, said: str) -> list[str]:
    """Where a secret stands that nobody typed there."""
    found = [f"output: {secret}" for secret in SECRETS if secret in said]
    for path in place.rglob("*"):
        name = path.relative_to(place).as_posix()
        if path.is_file() and name not in TYPED:
            content = path.read_bytes()
            found += [f"{name}: {secret}" for secret in SECRETS if secret.encode() in content]
    return found


@pytest.mark.slow
def test_secrets_are_in_no_file_and_no_output(tmp_path: Path) -> None:
    said = train_with_secrets(tmp_path / "project")
    assert (tmp_path / "project/mlflow.db").is_file()
    assert list((tmp_path / "project").rglob("log.jsonl"))
    assert not found_in(tmp_path / "project", said)


def test_messages_show_no_password() -> None:
    assert shown(f"https://me:{ADDRESS}@h/x") == "'https://h/x'"
    assert shown([f"s3://me:{ADDRESS}@h/x", {"a": ENVIRONMENT["HF_TOKEN"]}]) == (
        "['s3://h/x', {'a': '***'}]"
    )
