"""Packed rows that several files read, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.data.packed_rows import write_packed


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "packed"
    write_packed(path, documents=120, batch_bytes=500)
    return path


@pytest.fixture
def packed(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "packed"))
