"""Fixtures of real repositories; see `tests.pipeline.repo`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.repo import Repo, prepared


@pytest.fixture(scope="session")
def prepared_repo(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """A repository whose pipeline ran to the end; do not change it, take a copy."""
    base = tmp_path_factory.getbasetemp()
    # under xdist each process has a folder of its own in a common one
    shared = base.parent if base.name.startswith("popen-") else base
    return prepared(shared)


@pytest.fixture(scope="module")
def repo(prepared_repo: Repo, tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """A copy of the prepared repository for one test module, used in the order of its tests."""
    path: Path = tmp_path_factory.mktemp("repo") / "project"
    return prepared_repo.copy(path)
