"""Tensors in files: the bytes of the safetensors library, and indexes that nobody trusts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_trainer.exceptions import IntegrityError
from llm_trainer.models.stored_tensors import StoredTensors, index_name, part_name
from llm_trainer.models.tensor_file import DTYPES, write_tensors

Index = dict[str, Any]


@pytest.mark.parametrize("metadata", [None, {"format": "pt", "a": "b"}])
def test_the_bytes_are_those_of_the_library(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    tensors = {f"of.{name}": torch.arange(7).to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {
        "ü": torch.randn(3, 5, 2), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4),
        "large": torch.randn(700, 800), "b": torch.ones(3, dtype=torch.bfloat16),
    }  # fmt: skip
    save_file(tensors, tmp_path / "theirs", metadata)
    entry = write_tensors(tmp_path / "ours", tensors, metadata)
    theirs, ours = (tmp_path / "theirs").read_bytes(), (tmp_path / "ours").read_bytes()
    if metadata is None:  # of several entries the library's order is that of a hash
        assert ours == theirs
    assert entry == {"bytes": len(ours), "sha256": hashlib.sha256(ours).hexdigest()}
    read = load_file(tmp_path / "ours")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


PARTS = [part_name("model", number, 2) for number in (1, 2)]


def made(folder: Path) -> Index:
    """Rows 0-2 and 3-4 of `a`, and `b` in the first part alone."""
    save_file({"a": torch.arange(6.0).reshape(3, 2), "b": torch.ones(4)}, folder / PARTS[0])
    save_file({"a": torch.arange(6.0, 10.0).reshape(2, 2)}, folder / PARTS[1])
    return {
        "format": 1,
        "tensors": {
            "a": {"dtype": "F32", "shape": [5, 2], "pieces": [[PARTS[0], 0, 3], [PARTS[1], 3, 2]]},
            "b": {"dtype": "F32", "shape": [4], "pieces": [[PARTS[0], 0, 4]]},
        },
    }


def write(folder: Path, index: Any) -> None:
    (folder / index_name("model")).write_text(json.dumps(index))


def test_rows_of_parts(tmp_path: Path) -> None:
    write(tmp_path, made(tmp_path))
    stored = StoredTensors(tmp_path, "model", "again")
    whole = torch.arange(10.0).reshape(5, 2)
    assert torch.equal(stored["a"], whole)
    for first in range(6):
        for end in range(first, 6):
            assert torch.equal(stored.rows("a", first, end - first), whole[first:end])


HOSTILE: dict[str, tuple[Callable[[Index], Any], str]] = {
    "no mapping": (lambda _: [], "not an index of format 1"),
    "format": (lambda index: index.update(format=2), "not an index of format 1"),
    "no tensors": (lambda index: index.pop("tensors"), "not an index"),
    "entry": (lambda index: index["tensors"].update(a=3), "not a dtype, a shape and pieces"),
    "more keys": (lambda index: index["tensors"]["a"].update(x=1), "not a dtype, a shape"),
    "dtype": (lambda index: index["tensors"]["a"].update(dtype="F8"), "dtype 'F8' is unknown"),
    "another dtype": (lambda index: index["tensors"]["b"].update(dtype="F16"), "says F16"),
    "shape": (lambda index: index["tensors"]["a"].update(shape=[5, -2]), "no list of sizes"),
    "true": (lambda index: index["tensors"]["a"].update(shape=[True, 2]), "no list of sizes"),
    "huge": (lambda index: index["tensors"]["a"].update(shape=[2**60]), "no list of sizes"),
    "another shape": (lambda index: index["tensors"]["a"].update(shape=[5, 3]), "says F32"),
    "rows": (lambda index: index["tensors"]["a"].update(shape=[6, 2]), "5 of 6 rows"),
    "pieces": (lambda index: index["tensors"]["a"].update(pieces={}), "are not"),
    "piece": (lambda index: index["tensors"]["a"].update(pieces=[[PARTS[0], 0]]), "are not"),
    "none": (lambda index: index["tensors"]["a"].update(pieces=[]), "0 of 5 rows"),
    "empty": (lambda index: index["tensors"]["a"]["pieces"].insert(0, [PARTS[0], 0, 0]), "empty"),
    "gap": (lambda index: index["tensors"]["a"].update(pieces=[[PARTS[1], 3, 2]]), "a gap"),
    "overlap": (
        lambda index: index["tensors"]["a"]["pieces"][1].__setitem__(1, 2),
        "overlaps the one before",
    ),
    "swapped": (
        lambda index: index["tensors"]["a"].update(pieces=[[PARTS[1], 0, 3], [PARTS[0], 3, 2]]),
        "says F32",
    ),
    "missing": (
        lambda index: index["tensors"]["a"]["pieces"][1].__setitem__(
            0, part_name("model", 3, 3)
        ),
        "file is missing",
    ),
    "outside": (
        lambda index: index["tensors"]["a"]["pieces"][1].__setitem__(0, "../" + PARTS[1]),
        "not the name of a part",
    ),
    "absolute": (
        lambda index: index["tensors"]["a"]["pieces"][1].__setitem__(0, "/etc/passwd"),
        "not the name of a part",
    ),
    "unlisted": (lambda index: index["tensors"].pop("b"), "'b' is F32 .* says absent"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    index, (change, told) = made(tmp_path), HOSTILE[name]
    changed = change(index)
    write(tmp_path, changed if name == "no mapping" else index)
    with pytest.raises(IntegrityError, match=rf"{tmp_path}/model.*{told}.*; again"):
        StoredTensors(tmp_path, "model", "again")


def test_two_forms_at_once_are_refused(tmp_path: Path) -> None:
    write(tmp_path, made(tmp_path))
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(IntegrityError, match="which of them counts is unknown"):
        StoredTensors(tmp_path, "model", "again")
