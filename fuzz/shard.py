"""Shards with damaged bytes, and a manifest that vouches for them."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import numpy as np

from fuzz.target import Draw, Target, damage, folder
from fuzz.worlds import noise, packed_folder
from llm_trainer.data.shards import PackedRows
from llm_trainer.digests import digest_json, sha256_bytes
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.json_file import read_json
from llm_trainer.manifests import MANIFEST_NAME

_NAME = "train-00000.arrow"


@cache
def _place() -> tuple[Path, bytes]:
    copy = folder() / "packed"
    shutil.copytree(packed_folder(), copy)
    return copy, (copy / _NAME).read_bytes()


def seeds() -> list[bytes]:
    """Decisions about bytes to replace, and the file itself."""
    return [b"\x01" + noise(seed, 40) for seed in range(12)] + [b"\x00" + _place()[1]]


def run(data: bytes) -> None:
    """The first byte says whether the rest is the file, or decisions about damage to it."""
    directory, good = _place()
    content = damage(good, Draw(data[1:])) if data[:1] != b"\x00" else data[1:]
    (directory / _NAME).write_bytes(content)
    reseal(directory, _NAME, content)
    try:
        rows = PackedRows(directory, "train")
    except LLMTrainerError:
        return
    every = np.arange(len(rows))
    ids, lengths = rows.rows(every)
    assert ids.max() < rows.vocab_size
    assert lengths.max() <= rows.row_length
    assert rows.segments(every).shape == ids.shape
    for index in every:
        rows.pieces(int(index))


def reseal(directory: Path, name: str, content: bytes) -> None:
    """Make the manifest vouch for the new `content`; quick, so without a sync."""
    manifest = read_json(packed_folder() / MANIFEST_NAME)
    manifest["files"][name] = {"bytes": len(content), "sha256": sha256_bytes(content)}
    del manifest["seal"]
    manifest["seal"] = digest_json(manifest)
    import json

    (directory / MANIFEST_NAME).write_text(json.dumps(manifest))


TARGET = Target("packed shards (Arrow)", seeds, run)
