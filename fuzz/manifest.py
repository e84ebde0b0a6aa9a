"""Manifests of every kind of directory, with a right seal and right digests where they can be."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from fuzz.target import Draw, Target, dump, folder, mutate
from fuzz.worlds import packed_folder, raw_folder
from llm_trainer.data.raw import RawCorpus
from llm_trainer.data.shards import PackedRows
from llm_trainer.digests import digest_json
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.manifests import MANIFEST_NAME, manifest_digest, verify_manifest


@cache
def _place(kind: str) -> tuple[Path, bytes]:
    made = raw_folder() if kind == "raw" else packed_folder()
    copy = folder() / kind
    shutil.copytree(made, copy)
    return copy, (copy / MANIFEST_NAME).read_bytes()


def seeds() -> list[bytes]:
    """The good ones, decisions about mutations, and odd files."""
    texts = [
        _place("raw")[1],
        _place("packed")[1],
        b'{"files": {}}',
        b"[" * 2000,
        b"\xff",
        b"1e999",
    ]
    return [b"\x00" + text for text in texts] + [bytes([kind, 1, 9, 4]) * 5 for kind in (1, 2)]


def run(data: bytes) -> None:
    """The first byte says whether the rest is the file, or decisions about a mutation."""
    kind, rest = data[:1], data[1:]
    name = "packed" if kind == b"\x02" else "raw"
    directory, good = _place(name)
    content = rest
    if kind in (b"\x01", b"\x02"):
        content = dump(_sealed(mutate(json.loads(good), Draw(rest))))
    (directory / MANIFEST_NAME).write_bytes(content)
    for read in (_raw, _packed, _any):
        try:
            read(directory)
        except LLMTrainerError:
            pass
        else:
            assert read is _any or name in str(directory)


def _sealed(manifest: Any) -> Any:
    if isinstance(manifest, dict) and "seal" in manifest:
        try:
            seal = digest_json({k: v for k, v in manifest.items() if k != "seal"})
        except ValueError:  # NaN or a lone surrogate, which have no digest
            return manifest
        return manifest | {"seal": seal}
    return manifest


def _raw(directory: Path) -> None:
    corpus = RawCorpus(directory)
    assert corpus.digest
    for split in ("train", "validation"):
        assert sum(1 for _ in corpus.iter_documents(split)) == corpus.num_documents(split)


def _packed(directory: Path) -> None:
    for split in ("train", "validation"):
        rows = PackedRows(directory, split)
        assert len(rows.digest) == 64


def _any(directory: Path) -> None:
    for kind in ("raw", "packed", "tokenizer"):
        manifest_digest(verify_manifest(directory, kind, remedy="make it again"))


TARGET = Target("manifests of data/raw and data/packed", seeds, run)
