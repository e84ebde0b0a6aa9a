"""Contestant: `datasets.map` twice, as in transformers' example: tokenise, then group."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.contest import Turn
from benchmarks.corpus import FOLDER, ROW_LENGTH, load_corpus
from benchmarks.large_corpus import large_raw


def run(args: dict[str, Any], turn: Turn) -> None:
    """args: megabytes, processes."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    raw = large_raw(args["megabytes"])
    with tempfile.TemporaryDirectory(dir=FOLDER) as saved:
        load_corpus().tokenizer.save_pretrained(saved)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(saved)
    size = raw.num_bytes("train")
    end_id = tokenizer.eos_token_id

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        ids = tokenizer(batch["text"], add_special_tokens=False)["input_ids"]
        return {"input_ids": [[*row, end_id] for row in ids]}

    def group(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        stream = list(itertools.chain.from_iterable(batch["input_ids"]))
        end = len(stream) // ROW_LENGTH * ROW_LENGTH
        return {"input_ids": [stream[i : i + ROW_LENGTH] for i in range(0, end, ROW_LENGTH)]}

    turn({"documents": raw.num_documents("train")})
    while True:
        folder = Path(tempfile.mkdtemp(dir=FOLDER))
        text = datasets.load_dataset(
            "parquet", data_files=[str(f) for f in raw.files("train")], split="train",
            cache_dir=str(folder), columns=["text"],
        )  # fmt: skip
        started = time.perf_counter()
        rows = text.map(
            tokenize, batched=True, num_proc=args["processes"], remove_columns=["text"]
        ).map(group, batched=True, num_proc=args["processes"])
        seconds = time.perf_counter() - started
        tokens = len(rows) * ROW_LENGTH
        written = sum(Path(f["filename"]).stat().st_size for f in rows.cache_files)
        del rows, text
        shutil.rmtree(folder)
        turn({
            "mb_per_second": size / 1e6 / seconds, "tokens": tokens, "bytes_on_disk": written,
        })  # fmt: skip
