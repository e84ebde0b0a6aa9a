"""Packed directories for tests, made without a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_trainer.data import shard_file
from llm_trainer.data.packed_manifest import SPLITS, write_packed_manifest
from llm_trainer.data.packers import pack_arrays
from llm_trainer.data.row_batch import RowBatch
from llm_trainer.data.shard_file import id_dtype
from llm_trainer.data.shard_writer import ShardWriter

TOKENIZER, RAW = "a" * 64, "b" * 64


def random_documents(seed: int, count: int, longest: int, vocab_size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, vocab_size, rng.integers(1, longest + 1)) for _ in range(count)]


def write_packed(
    directory: Path,
    *,
    documents: int = 60,
    longest: int = 40,
    row_length: int = 16,
    vocab_size: int = 500,
    shard_bytes: int = 4096,
    batch_bytes: int = 2**20,
    strategy: Any = "concat",
    changed: dict[str, Any] | None = None,
) -> dict[str, RowBatch]:
    """Write both splits; `changed` replaces fields of the manifest. Returns the rows."""
    directory.mkdir(parents=True, exist_ok=True)
    dtype, rows, entries = id_dtype(vocab_size), {}, {}
    for seed, split in enumerate(SPLITS):
        texts = random_documents(seed, documents, longest, vocab_size)
        batch = pack_arrays(texts, strategy, row_length=row_length, end_id=0, pad_id=1, dtype=dtype)
        assert batch is not None
        rows[split] = batch
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shard_file, "BATCH_BYTES", batch_bytes)
            writer = ShardWriter(
                directory, split, row_length=row_length, dtype=dtype, shard_bytes=shard_bytes
            )
        writer.write(batch)
        summary = writer.close()
        entries[split] = {
            "rows": summary.rows,
            "tokens": summary.tokens,
            "documents": documents,
            "bytes": 3 * summary.tokens,
            "max_id": summary.max_id,
            "files": summary.files,
        }
    fields = {
        "row_length": row_length,
        "dtype": dtype.name,
        "strategy": strategy,
        "vocab_size": vocab_size,
        "end_id": 0,
        "pad_id": 1,
        "tokenizer_digest": TOKENIZER,
        "raw_digest": RAW,
        "origin": {},
        "splits": entries,
        "ledger": {},
    }
    write_packed_manifest(directory, **(fields | (changed or {})))
    return rows
