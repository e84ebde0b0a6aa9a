"""Where a run comes from: git revision, whether the tree differs from it, DVC experiment."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from llm_trainer.training.tracking.record import strip_secrets

OUTPUTS = ("dvc.lock", "metrics", "plots")
"""Files that `dvc repro` itself rewrites: they say nothing about changed code or params."""


def environment_tags(directory: Path) -> dict[str, str]:
    """Tags of the checkout that `directory` is in; what cannot be found out is left out.

    `mlflow.source.git.commit` repeats the revision under the name that MLflow's table shows.
    Nothing is taken from the environment but the names that DVC gives an experiment.
    """
    stage = os.environ.get("DVC_STAGE")
    tags = {
        "python": platform.python_version(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": f"pipeline.{stage}" if stage else Path(sys.argv[0]).name,
    }
    revision = _git(directory, "rev-parse", "HEAD")
    if revision:
        tags["git_revision"] = tags["mlflow.source.git.commit"] = revision
        changed = _git(
            directory, "status", "--porcelain", "--untracked-files=no", "--", ":/",
            *(f":(top,exclude){name}" for name in OUTPUTS),
        )  # fmt: skip
        if changed is not None:
            tags["git_dirty"] = "true" if changed else "false"
    remote = _git(directory, "config", "--get", "remote.origin.url")
    if remote:
        tags["mlflow.source.git.repoURL"] = strip_secrets(remote)
    for variable, tag in (
        ("DVC_EXP_NAME", "dvc_experiment"),
        ("DVC_EXP_BASELINE_REV", "dvc_baseline"),
    ):
        if os.environ.get(variable):
            tags[tag] = os.environ[variable]
    return tags


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            capture_output=True, text=True, timeout=10, check=False,
            # read-only: never take the index lock that the user's own git may want
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
