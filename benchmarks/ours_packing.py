"""Contestant: `pack_corpus`, from raw Parquet to shards on the disk."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.contest import Turn
from benchmarks.corpus import FOLDER, ROW_LENGTH, load_corpus
from benchmarks.large_corpus import large_raw
from llm_trainer.config.data import PackingConfig
from llm_trainer.data.packing import pack_corpus


def run(args: dict[str, Any], turn: Turn) -> None:
    """args: megabytes, processes."""
    raw = large_raw(args["megabytes"])
    tokenizer = load_corpus().tokenizer
    size = raw.num_bytes("train") + raw.num_bytes("validation")
    turn({"documents": raw.num_documents("train")})
    while True:
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            started = time.perf_counter()
            metrics = pack_corpus(
                raw, tokenizer, PackingConfig(max_length=ROW_LENGTH), Path(folder) / "packed",
                num_workers=args["processes"], progress=False,
            )  # fmt: skip
            seconds = time.perf_counter() - started
            written = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
        turn({
            "mb_per_second": size / 1e6 / seconds,
            "peak_mb": max(metrics["peak_memory_mb"], metrics["peak_worker_memory_mb"]),
            "tokens": metrics["train_tokens"], "bytes_on_disk": written,
        })  # fmt: skip
