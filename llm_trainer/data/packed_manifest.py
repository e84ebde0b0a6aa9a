"""The manifest of `data/packed`: what it must say, and the seal that guards what it says.

The files' digests guard the shards; `seal`, a digest of all other fields, guards the manifest
itself, so that a flipped bit in a token count is noticed like one in a shard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from llm_trainer.data.shard_file import REMEDY, id_dtype
from llm_trainer.exceptions import DataError, IntegrityError
from llm_trainer.manifests import (
    MANIFEST_NAME,
    is_sealed,
    seal_manifest,
    verify_manifest,
    write_manifest,
)

KIND = "packed"
MAX_ROW_LENGTH = 2**31 - 1
"""Longest row that a shard can describe, in tokens."""
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
_FIELDS: dict[str, type] = {
    "row_length": int,
    "dtype": str,
    "strategy": str,
    "vocab_size": int,
    "end_id": int,
    "pad_id": int,
    "tokenizer_digest": str,
    "raw_digest": str,
    "origin": dict,
    "splits": dict,
    "ledger": dict,
}
_SPLIT_FIELDS: dict[str, type] = {
    "rows": int,
    "tokens": int,
    "documents": int,
    "bytes": int,
    "max_id": int,
    "files": list,
}


def write_packed_manifest(directory: Path, **fields: Any) -> dict[str, Any]:
    """Write and return the sealed manifest over the shards now in `directory`."""
    assert set(fields) == set(_FIELDS), "the fields of a packed manifest are fixed"
    return seal_manifest(directory, write_manifest(directory, KIND, **fields))


def read_packed_manifest(directory: Path, split: Split, *, verify: bool) -> dict[str, Any]:
    """Read the manifest and compare the directory with it.

    Names and sizes are compared for all files, bytes only for those of `split` and only with
    `verify`.

    Raises:
        DataError: `split` is not one of SPLITS.
        IntegrityError: manifest or shards are missing, damaged, or not of this format.
    """
    if split not in SPLITS:
        raise DataError(f"{directory}: has no split {split!r}; there are {' and '.join(SPLITS)}")
    path = directory / MANIFEST_NAME
    try:
        manifest = verify_manifest(
            directory,
            KIND,
            remedy=REMEDY,
            hashed=lambda name: verify and name.startswith(f"{split}-"),
        )
    except IntegrityError as error:
        if REMEDY in str(error):
            raise
        raise IntegrityError(f"{error}; {REMEDY}") from error
    if not is_sealed(manifest):
        raise IntegrityError(f"{path}: content differs from its seal; {REMEDY}")
    problem = _problem(manifest)
    if problem:
        raise IntegrityError(f"{path}: {problem}; {REMEDY}")
    return manifest


def _problem(manifest: dict[str, Any]) -> str | None:
    for name, kind in _FIELDS.items():
        if not isinstance(manifest.get(name), kind):
            return f"field '{name}' is missing or no {kind.__name__}"
    if not 2 <= manifest["row_length"] <= MAX_ROW_LENGTH:
        return f"row_length ({manifest['row_length']}) is below 2 or above {MAX_ROW_LENGTH:,}"
    vocab_size, dtype = manifest["vocab_size"], manifest["dtype"]
    if dtype != id_dtype(vocab_size).name:
        return f"dtype ({dtype}) is not that of {vocab_size:,} ids ({id_dtype(vocab_size).name})"
    for name in ("end_id", "pad_id"):
        if not 0 <= manifest[name] < vocab_size:
            return f"{name} ({manifest[name]}) is outside the vocabulary of {vocab_size:,}"
    listed: list[str] = []
    for split in SPLITS:
        entry = manifest["splits"].get(split)
        if not isinstance(entry, dict):
            return f"split '{split}' is missing"
        for name, kind in _SPLIT_FIELDS.items():
            if not isinstance(entry.get(name), kind):
                return f"field '{name}' of split '{split}' is missing or no {kind.__name__}"
            if kind is int and not 0 <= entry[name] < 2**63:
                return f"field '{name}' of split '{split}' is {entry[name]}"
        if entry["max_id"] >= vocab_size:
            return (
                f"split '{split}' holds the token id {entry['max_id']}, but the vocabulary has "
                f"{vocab_size:,} ids"
            )
        if entry["rows"] < 1 or not all(str(f).startswith(f"{split}-") for f in entry["files"]):
            return f"split '{split}' has no rows, or files of another split"
        listed += entry["files"]
    if sorted(listed) != sorted(manifest["files"]):
        return "the files of its splits are not the files that it lists"
    return None
