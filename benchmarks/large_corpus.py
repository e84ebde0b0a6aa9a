"""Generated text of any size for the data path, as raw Parquet: made once and kept."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.corpus import FOLDER
from docs.measure_data import write_corpus
from llm_trainer.config.data import SourceConfig
from llm_trainer.data.prepare import prepare_raw
from llm_trainer.data.raw import RawCorpus


def large_raw(megabytes: int) -> RawCorpus:
    """About `megabytes` MB of documents of unequal length, 1 % of them for validation."""
    # a process of its own: the memory that generating takes is not the reader's
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        path = pool.submit(_build, megabytes).result()
    return RawCorpus(path)


def _build(megabytes: int) -> Path:
    text = FOLDER / f"generated-{megabytes}.jsonl"
    if not text.exists():
        partial = text.with_suffix(".part")
        write_corpus(partial, megabytes * 10**6)
        partial.rename(text)
    source = SourceConfig(train_file=str(text), validation_fraction=0.01)
    return Path(prepare_raw(source, FOLDER, progress=False).path)
